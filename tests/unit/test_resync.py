"""Restores: which are refused, and with what; what is asked of the document for those that are not; how they end."""

from collections.abc import Sequence
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import changes, geometry, provision, resync, shadows, tasks
from blkrecov.changes import Runs, whole
from blkrecov.dm import names
from blkrecov.dm.status import SnapshotUsage
from blkrecov.dm.table import TargetLine
from blkrecov.errors import (
    BadState,
    BlkrecovError,
    InsufficientStorage,
    InvalidArgument,
    NotEnoughSpace,
    ObjectExists,
    ProviderVeto,
    RestoreCancelled,
    VolumeNotSupported,
)
from blkrecov.model import (
    UNIT,
    Document,
    Extent,
    Layout,
    MemberState,
    Phase,
    Restore,
    Task,
    TaskKind,
    TaskState,
)
from blkrecov.observed import Live, Observed
from blkrecov.page83.identity import naa_of_serial, serial_of
from blkrecov.proposal import Proposal
from blkrecov.resync import Compared, Copied, Facts, Options, Wish
from blkrecov.shadows import ShadowRequest
from blkrecov.steps import DiscardExtent, Flush, ZeroExtent
from blkrecov.units import MIB, Sectors
from tests.unit.arrays import (
    copying,
    drives,
    seen,
    stamped,
    uuids,
    with_lost,
    with_lun,
    with_plex,
    with_shadow,
    with_states,
)

CHUNK = Sectors(128)
SOME: Runs = (Extent(0, 1280),)
NOTHING = Facts()
DIFFERS = Facts(differs=SOME)
PLAIN = Options()


def array() -> Document:
    """A mirror v on d0 and d1 with a shadow copy s, and another LUN w."""
    document, _ = with_lun(drives(12), Layout.RAID1, on=("d0", "d1"))
    document, _ = with_shadow(document)
    return with_lun(document, Layout.LINEAR, "w", on=("d5",))[0]


def wish(document: Document, source: str = "s", target: str = "v") -> Wish:
    """A target that is not there is to be made."""
    return Wish(document.lun(source), next((lun for lun in document.luns if lun.name == target), None), target)


def proposed(
    document: Document,
    *pairs: tuple[str, str],
    facts: Facts = DIFFERS,
    options: Options = PLAIN,
    discards: frozenset[UUID] = frozenset(),
) -> tuple[Proposal, Task]:
    wishes = [wish(document, *pair) for pair in pairs or [("s", "v")]]
    return resync.propose(document, wishes, [facts] * len(wishes), options, uuids(0x9000), discards)


def asked(document: Document, *pairs: tuple[str, str], undo: bool = False) -> Document:
    return proposed(document, *pairs, options=Options(undo=undo))[0].document


def the_task(document: Document) -> Task:
    return next(task for task in document.tasks if not task.state.ended)


def with_restore(document: Document, **changed: object) -> Document:
    lun = document.lun("v")
    assert lun.restore is not None
    return document.with_lun(msgspec.structs.replace(lun, restore=msgspec.structs.replace(lun.restore, **changed)))


def restore_of(document: Document, name: str = "v") -> Restore:
    restore = document.lun(name).restore
    assert restore is not None
    return restore


def device(name: str, uuid: str, kind: str, words: Sequence[str], *, length: int = 131072, each: int = 0) -> Live:
    """A device of which the kernel says these words, one target after the other."""
    each = each or length // max(len(words), 1)
    lines = tuple(
        TargetLine(start=Sectors(number * each), length=Sectors(each), kind=kind, params=params)
        for number, params in enumerate(words)
    )
    return Live(
        name=name, uuid=uuid, number="253:9", table=lines, status=lines, suspended=False, inactive=False, open_count=1
    )


def said(document: Document, *devices: Live) -> Observed:
    plain = seen(document)
    return Observed(devices={live.uuid: live for live in devices}, backings=plain.backings)


def store_device(document: Document, words: str, name: str = "s") -> Live:
    lun = document.lun(name)
    return device(f"blkrecov-lab-{name}-shadow", names.dm_uuid(lun.uuid, "shadow"), "snapshot", [words])


def mirrors(document: Document, *words: str, name: str = "v") -> Observed:
    """The kernel copies onto a LUN, and says this of each part."""
    uuid = names.dm_uuid(restore_of(document, name).uuid, "copy")
    return said(
        document, device(f"blkrecov-lab-{name}-copy", uuid, "mirror", words), store_device(document, "16/32 16")
    )


def part(done: int, total: int = 256, legs: str = "AA", log: str = "A") -> str:
    return f"2 253:1 253:2 {done}/{total} 1 {legs} 3 disk 253:3 {log}"


# What can never be meant.


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ([], "no pair is named"),
        ([("s", "v"), ("s", "w")], "'s' is named as a source twice"),
        ([("s", "v"), ("t", "v")], "'v' is named as a target twice"),
        ([("s", "new"), ("t", "new")], "'new' is named as a target twice"),
        ([("s", "v"), ("t", "s")], "'s' is named as a source and as a target"),
        ([("s", "s")], "'s' is named as a source and as a target"),
        ([("s", "a b")], "'a b' is not a name"),
        ([("s", "drive")], "reserved"),
    ],
)
def test_arguments_that_contradict_each_other(pairs: list[tuple[str, str]], text: str) -> None:
    """E_INVALIDARG, before anything else is looked at."""
    document, _ = with_shadow(array(), "t")
    with pytest.raises(InvalidArgument, match=text):
        resync.refuse_arguments([wish(document, *pair) for pair in pairs])


def test_arguments_that_do_not() -> None:
    """Two shadow copies of one LUN onto two LUNs, one of them new."""
    document, _ = with_shadow(array(), "t")
    resync.refuse_arguments([wish(document, "s", "v"), wish(document, "t", "new")])


# What can never be a source, or a target.


def test_a_source_is_a_shadow_copy() -> None:
    """The remedy is to take one."""
    document = array()
    with pytest.raises(VolumeNotSupported, match="'w' is no shadow copy") as refused:
        resync.refuse_unsuitable(document, [wish(document, "w", "v")])
    assert refused.value.remedy == "take one first, with: blkrecov snapshot create w NAME"


def test_a_source_has_contents() -> None:
    """Not one that is lost, nor a plex that is not filled."""
    document = with_lost(array())
    with pytest.raises(VolumeNotSupported, match="does not hold what it should: its store was full"):
        resync.refuse_unsuitable(document, [wish(document)])
    document, plex = with_plex(array())
    for unfilled in (
        msgspec.structs.replace(plex, restore=Restore(uuid=UUID(int=1), source=plex.uuid)),
        msgspec.structs.replace(plex, incomplete="it failed"),
    ):
        with pytest.raises(VolumeNotSupported, match="not filled yet"):
            resync.refuse_unsuitable(document, [Wish(unfilled, document.lun("v"), "v")])


def test_a_target_is_no_shadow_copy() -> None:
    """Those are never altered."""
    document, _ = with_plex(array())
    with pytest.raises(VolumeNotSupported, match="'p' is a shadow copy itself"):
        resync.refuse_unsuitable(document, [wish(document, "s", "p")])


def test_a_target_does_not_shrink_under_its_own_shadow_copies() -> None:
    """What they show beyond its end would be gone. Those that are as short as it will be are no hindrance."""
    document, _ = with_lun(array(), Layout.LINEAR, "x", mib=96)
    document, short = with_shadow(document, "x1", of="x")
    document = document.with_lun(msgspec.structs.replace(short, size=64 * UNIT))
    resync.refuse_unsuitable(document, [wish(document, "s", "x")])
    document, _ = with_shadow(document, "x2", of="x")
    with pytest.raises(VolumeNotSupported, match=r"'x' would shrink to 64 MiB, and its shadow copies x2 show more"):
        resync.refuse_unsuitable(document, [wish(document, "s", "x")])


@pytest.mark.parametrize("state", TaskState)
def test_there_is_one_restore_at_a_time(state: TaskState) -> None:
    """VSS_E_BAD_STATE while one is under way; what has ended is history, and a plex that is filled is no restore."""
    document = array()
    task = Task(id=7, kind=TaskKind.RESYNC, lun=UUID(int=1), objects=("s:v",), state=state)
    if state.ended:
        resync.refuse_another(document.with_task(task))
    else:
        with pytest.raises(BadState, match=r"task 7 \(resync of s:v\) is under way"):
            resync.refuse_another(document.with_task(task))
    resync.refuse_another(document.with_task(msgspec.structs.replace(task, kind=TaskKind.SNAPSHOT)))


# What must not be done now.


def refused(
    document: Document, facts: Facts = NOTHING, options: Options = PLAIN, *, target: str = "v", away: str = ""
) -> ProviderVeto:
    observed = seen(document, away=tuple(away.split()))
    with pytest.raises(ProviderVeto) as caught:
        resync.refuse_dangerous(document, observed, [wish(document, "s", target)], [facts], options)
    return caught.value


def allowed(document: Document, facts: Facts = NOTHING, options: Options = PLAIN, *, target: str = "v") -> None:
    resync.refuse_dangerous(document, seen(document), [wish(document, "s", target)], [facts], options)


NAA = naa_of_serial(serial_of(array().lun("v").uuid))
FORCED = Options(forced=frozenset({NAA}))


def test_nothing_is_in_the_way_of_a_plain_restore() -> None:
    """A LUN that nobody uses, and its own shadow copy; or a new LUN."""
    allowed(array())
    allowed(array(), target="new")


@pytest.mark.parametrize("name", ["s", "v"])
def test_a_lun_that_is_busy_is_left_alone(name: str) -> None:
    """Source or target, forced or not: the veto has the busy one's remedy."""
    document = array()
    task = Task(id=3, kind=TaskKind.SCRUB, lun=document.lun(name).uuid, objects=(name,))
    veto = refused(document.with_task(task), options=FORCED)
    assert veto.message == f"task 3 (scrub) is under way on LUN {name!r}"
    assert veto.remedy == "wait for it with: blkrecov task wait 3"


def test_a_source_that_cannot_be_read_is_refused_whatever_is_forced() -> None:
    """Its store's drives, or its origin's."""
    document = array()
    store = " ".join(document.drive_of(member.drive).name for member in document.lun("s").members)
    for away in (store, "d0 d1"):
        assert "shadow copy 's' cannot be read" in refused(document, options=FORCED, away=away, target="w").message


def test_a_failed_target_is_refused_whatever_is_forced() -> None:
    """There is nothing to write to."""
    document = array()
    document, _ = with_plex(document, "s2", on=("d9",))
    observed = seen(document, away=("d0", "d1"))
    with pytest.raises(ProviderVeto, match="'v' has failed"):
        resync.refuse_dangerous(document, observed, [wish(document, "s2", "v")], [Facts()], FORCED)


@pytest.mark.parametrize("state", [MemberState.FAILED, MemberState.REBUILDING])
def test_a_degraded_target_keeps_its_size(state: MemberState) -> None:
    """dm-raid would shrink or grow it, and forget which member is lost. At its size it is restored as it is."""
    document = array()
    allowed(document.with_lun(with_states(document.lun("v"), state)))
    for mib in (32, 96):
        changed, lun = with_lun(document, Layout.RAID1, "x", mib=mib)
        allowed(changed, target="x")
        veto = refused(changed.with_lun(with_states(lun, state)), target="x")
        assert veto.message == "LUN 'x' has to change its size, and has lost a member"
        assert veto.remedy == "run: blkrecov recover x"


def test_a_target_in_use_names_who_uses_it() -> None:
    """The remedy has the identity that forces it, in full; that of another LUN forces nothing."""
    facts = Facts(holders=("ext4 on /mnt", "qemu (4711)"))
    veto = refused(array(), facts)
    assert veto.message == "LUN 'v' is in use by ext4 on /mnt, qemu (4711)"
    assert (
        veto.remedy
        == f"end what uses it (umount, swapoff), then try again; if that is what you want, add: --force {NAA}"
    )
    refused(array(), facts, Options(forced=frozenset({NAA[:-1], NAA.upper() + "0"})))
    allowed(array(), facts, FORCED)


def test_other_volumes_on_the_target_are_saved_first() -> None:
    """VSS_RECOVERY_NO_VOLUME_CHECK lets them go."""
    facts = Facts(strangers=("sda2", "sda3"))
    veto = refused(array(), facts)
    assert veto.message == "LUN 'v' has volumes that shadow copy 's' has not, and that would be lost: sda2, sda3"
    assert veto.remedy == "save them, then add --no-volume-check"
    allowed(array(), facts, Options(any_volume=True))
    allowed(array(), facts, FORCED)


@pytest.mark.parametrize(("restored", "older"), [(0, False), (999, False), (1000, False), (1001, True)])
def test_a_target_does_not_go_back_in_time_by_mistake(restored: int, older: bool) -> None:
    """What it holds is of then, by its last restore; the shadow copy is of 1000."""
    document = array()
    document = document.with_lun(msgspec.structs.replace(document.lun("v"), restored=restored))
    if older:
        assert "go back in time" in refused(document).message
        allowed(document, options=FORCED)
    else:
        allowed(document)


def test_dangers_come_in_their_order() -> None:
    """Busy, unreadable, failed, in use, other volumes, older: the first that there is."""
    facts = Facts(holders=("somebody",), strangers=("sda2",))
    document = array()
    document = document.with_lun(msgspec.structs.replace(document.lun("v"), restored=2000))
    task = Task(id=3, kind=TaskKind.SCRUB, lun=document.lun("v").uuid, objects=("v",))
    assert "under way" in refused(document.with_task(task), facts, away="d0 d1").message
    assert "cannot be read" in refused(document, facts, away="d0 d1").message
    assert "in use" in refused(document, facts).message
    assert "volumes" in refused(document, Facts(strangers=("sda2",))).message
    assert "back in time" in refused(document).message


# What is wanted then.


def test_a_revert_in_the_document() -> None:
    """The target is to become quiet; where the log is to be is settled. Nothing else changes."""
    document = array()
    proposal, task = proposed(document, facts=Facts(differs=SOME, signature="mbr:0x12345678"))
    restore = restore_of(proposal.document)
    assert (restore.source, restore.length, restore.todo) == (document.lun("s").uuid, 0, 0)
    assert restore.signature == "mbr:0x12345678"
    assert sum(extent.length for extent in restore.log) == UNIT
    assert proposal.prepare == ()
    assert proposal.others == {document.lun("v").uuid}
    assert (task.state, task.kind, task.phases) == (TaskState.IN_PROGRESS, TaskKind.RESYNC, (Phase.RESTORE,))
    assert (task.objects, task.temporary) == (("s:v",), ())
    assert task.luns == {document.lun("s").uuid, document.lun("v").uuid}
    plain = msgspec.structs.replace(proposal.document.lun("v"), restore=None)
    assert proposal.document.with_lun(plain).luns == document.luns


def test_verify_is_a_phase_more() -> None:
    """After the copy."""
    _, task = proposed(array(), options=Options(verify=True))
    assert task.phases == (Phase.RESTORE, Phase.COMPARE)


def test_all_pairs_are_one_task() -> None:
    """With logs that do not lie on one another."""
    document, _ = with_shadow(array(), "t")
    proposal, task = proposed(document, ("s", "v"), ("t", "w"))
    logs = [(restore.drive, restore.log) for name in "vw" if (restore := restore_of(proposal.document, name))]
    assert len(set(logs)) == 2
    assert task.objects == ("s:v", "t:w")
    assert [(pair.target, pair.made) for pair in task.pairs] == [
        (document.lun("v").uuid, False),
        (document.lun("w").uuid, False),
    ]


def test_a_new_target_is_like_the_origin() -> None:
    """Layout and size; superblocks of an earlier life are zeroed."""
    document = array()
    proposal, task = proposed(document, ("s", "new"))
    new = proposal.document.lun("new")
    assert (new.layout, new.size, new.shadow) == (Layout.RAID1, 64 * UNIT, None)
    assert task.pairs[0].made
    assert [type(step) for step in proposal.prepare] == [ZeroExtent, ZeroExtent]
    assert not restore_of(proposal.document, "new").blank


def test_a_new_target_is_like_the_shadow_copy_whose_origin_is_gone() -> None:
    """A plex outlives its origin."""
    document, _ = with_plex(array(), layout=Layout.RAID5)
    document = document.without_lun(document.lun("s")).without_lun(document.lun("v"))
    assert proposed(document, ("p", "new"))[0].document.lun("new").layout is Layout.RAID5


def test_a_new_target_on_drives_that_can_be_blanked_reads_as_zeros() -> None:
    """Then only what is no hole is copied. One drive that cannot is enough to copy everything."""
    document = array()
    every = frozenset(drive.uuid for drive in document.drives)
    proposal, _ = proposed(document, ("s", "new"), discards=every)
    new = proposal.document.lun("new")
    assert restore_of(proposal.document, "new").blank
    discarded = [step.extent for step in proposal.prepare if isinstance(step, DiscardExtent)]
    assert discarded == [extent for member in new.members for extent in member.data]
    proposal, _ = proposed(document, ("s", "new"), discards=every - {new.members[0].drive})
    assert not restore_of(proposal.document, "new").blank
    assert [step for step in proposal.prepare if isinstance(step, DiscardExtent)] == []


def test_a_name_that_is_taken_is_refused() -> None:
    """Asked for as new by a caller that did not see the LUN."""
    document = array()
    with pytest.raises(ObjectExists):
        resync.propose(document, [Wish(document.lun("s"), None, "w")], [Facts()], Options(), uuids(0x9000), frozenset())


@pytest.mark.parametrize("layout", Layout)
def test_a_smaller_target_grows_first(layout: Layout) -> None:
    """A larger one shrinks at the end: until then nothing of it is given away."""
    document = array()
    for mib in (32, 64, 96):
        changed, _ = with_lun(document, layout, f"x{mib}", mib=mib)
        target = proposed(changed, ("s", f"x{mib}"))[0].document.lun(f"x{mib}")
        assert target.size == max(mib, 64) * UNIT


def test_without_room_nothing_is_begun() -> None:
    """VSS_E_INSUFFICIENT_STORAGE: a target that cannot grow, one that cannot be made, a log that lies nowhere."""
    document, _ = with_lun(drives(2, units=65), Layout.RAID1, mib=40)
    document, _ = with_shadow(document, mib=16)
    free = [geometry.free_length(document, drive) // UNIT for drive in document.drives]
    assert free == [7, 7]
    with pytest.raises(InsufficientStorage):
        proposed(document, ("s", "new"))
    document, _ = with_lun(document, Layout.RAID1, "x", mib=5)
    with pytest.raises(InsufficientStorage, match="needs 35 MiB more on drive"):
        proposed(document, ("s", "x"))
    document, _ = with_lun(document, Layout.LINEAR, "y", mib=2)
    with pytest.raises(InsufficientStorage, match="log of a copy"):
        proposed(document, ("s", "v"))


def test_an_undo_is_a_shadow_copy_of_the_target_that_goes_at_the_end() -> None:
    """With room for what is about to be overwritten: header, one area, ten chunks; its first blocks are zeroed."""
    document = array()
    proposal, task = proposed(document, ("s", "w"), options=Options(undo=True))
    undo = proposal.document.lun("undo-1-0")
    assert undo.shadow is not None
    assert (undo.shadow.origin, undo.shadow.chunk, undo.exported) == (document.lun("w").uuid, CHUNK, False)
    assert geometry.plex_length(undo) == UNIT
    assert geometry.plex_length(undo) >= 12 * CHUNK
    assert task.temporary == (undo.uuid,)
    assert task.pairs[0].undo == undo.uuid
    assert proposal.others == {document.lun("w").uuid, undo.uuid}
    assert [type(step) for step in proposal.prepare] == [ZeroExtent]


def test_an_undo_is_of_the_target_s_own_size() -> None:
    """Taken before it grows."""
    document, _ = with_lun(array(), Layout.LINEAR, "x", mib=32)
    after = asked(document, ("s", "x"), undo=True)
    assert (after.lun("undo-1-0").size, after.lun("x").size) == (32 * UNIT, 64 * UNIT)


def test_stores_that_would_overflow_are_refused_before_the_first_write() -> None:
    """The remedy names the size that does. Ten chunks of 64 KiB and their rounding are one MiB more than the 16 there are."""
    document = array()
    saves = {document.lun("s").uuid: 10}
    with pytest.raises(InsufficientStorage, match="'s' has no room") as refused:
        proposed(document, facts=Facts(differs=SOME, saves=saves))
    assert refused.value.remedy == f"give it 1 MiB more: blkrecov snapshot extend s --store {17 * MIB}"
    proposed(document, facts=Facts(differs=SOME, saves={document.lun("s").uuid: 0}))
    # Another LUN's shadow copies have nothing to save.
    proposed(document, ("s", "new"), facts=Facts(differs=SOME, saves=None))


@pytest.mark.parametrize(
    ("allocated", "saved", "missing"),
    [
        (256, 254, 0),  # A store of 256 chunks: header, one area, 254 exceptions.
        (256, 255, 1),
        (256 + 100 * 128, 154, 0),
        (256 + 100 * 128, 155, 1),
        (256 + 254 * 128, 0, 0),
        (0, 254, 0),
    ],
)
def test_how_many_chunks_a_store_has_too_few(allocated: int, saved: int, missing: int) -> None:
    """16 MiB in chunks of 64 KiB; the first two are the kernel's own."""
    shadow = array().lun("s")
    usage = SnapshotUsage(allocated=Sectors(allocated), total=Sectors(16 * UNIT), metadata=Sectors(256))
    assert max(resync.lacking(shadow, usage, saved), 0) == missing


# How it is copied.


def test_a_target_with_shadow_copies_is_copied_by_their_chunks() -> None:
    """Larger regions would save, in the source's own store, what has not changed."""
    document = array()
    assert resync.region(document, document.lun("v"), whole(64 * UNIT), 64 * UNIT) == CHUNK


def test_a_target_without_is_copied_by_what_is_fastest() -> None:
    """All of it in 4 MiB, next to nothing in 64 KiB; a source shorter than that in one piece."""
    document = array()
    w = document.lun("w")
    assert resync.region(document, w, whole(64 * UNIT), 64 * UNIT) == 4 * UNIT
    assert resync.region(document, w, SOME, 64 * UNIT) in (128, 256, 512, 1024, 2048)
    assert resync.region(document, w, (Extent(0, 8),), 64 * UNIT) == 128


def test_a_large_target_s_log_stays_short_whatever_its_chunks() -> None:
    """2^17 regions for each part: above, larger regions cost less than their logs."""
    document = array()
    length = 4 * 2**31
    region = resync.region(document, document.lun("v"), SOME, length)
    assert changes.divide(length, region)[-1].regions <= changes.MANY_REGIONS
    assert region > CHUNK


# What the kernel says of it.


def test_how_far_a_copy_is() -> None:
    """Four parts of 16 MiB, ten regions of 64 KiB to copy; three are left."""
    document = copying(asked(array()))
    observed = mirrors(document, part(254), part(255), part(256), part(256))
    assert resync.copied(observed, document.lun("v")) == Copied(
        done=Sectors(7 * 128),
        total=Sectors(1280),
        source_failed=False,
        destination_failed=False,
        log_failed=False,
        complete=False,
    )


def test_how_far_a_copy_of_fewer_parts_is() -> None:
    """As many as were written down: ten of 1024 regions were to be copied, by one mirror."""
    document = with_restore(copying(asked(array())), parts=1)
    assert resync.copied(mirrors(document, part(1020, 1024)), document.lun("v")).done == 6 * 128
    assert resync.copied(mirrors(document, part(1024, 1024)), document.lun("v")).complete
    assert not resync.copied(mirrors(document, *[part(256)] * 4), document.lun("v")).complete


def test_a_copy_that_is_whole() -> None:
    """Every part, and no leg has had an error."""
    document = copying(asked(array()))
    copied = resync.copied(mirrors(document, *[part(256)] * 4), document.lun("v"))
    assert (copied.done, copied.complete) == (1280, True)


@pytest.mark.parametrize(
    ("legs", "log", "failed"),
    [
        ("SA", "A", "source_failed"),
        ("RA", "A", "source_failed"),
        ("DA", "A", "source_failed"),
        ("AD", "A", "destination_failed"),
        ("AS", "A", "destination_failed"),
        ("AF", "A", "destination_failed"),
        ("AA", "D", "log_failed"),
        ("AA", "F", "log_failed"),
    ],
)
def test_what_a_failed_copy_failed_by(legs: str, log: str, failed: str) -> None:
    """One part is enough, and however far it is: all regions done does not make it whole."""
    document = copying(asked(array()))
    copied = resync.copied(mirrors(document, part(256), part(256, 256, legs, log), *[part(256)] * 2), document.lun("v"))
    words = ("source_failed", "destination_failed", "log_failed")
    assert {word: getattr(copied, word) for word in words} == {word: word == failed for word in words}
    assert not copied.complete


def test_a_copy_that_is_not_there_has_done_nothing() -> None:
    """Not seeded, held, or its devices not made; a table of another shape is no copy of this."""
    unseeded = asked(array())
    assert resync.copied(seen(unseeded), unseeded.lun("v")).total == 0
    document = copying(unseeded)
    for observed in (seen(document), mirrors(document, part(256))):
        copied = resync.copied(observed, document.lun("v"))
        assert (copied.done, copied.total, copied.complete) == (0, 1280, False)


@given(st.lists(st.integers(0, 256), min_size=4, max_size=4), st.integers(0, 1024))
def test_what_is_done_is_never_more_than_all_nor_less_than_nothing(done: list[int], todo: int) -> None:
    """A region of the log stays dirty for a while when it is copied already; one may be dirty that was clean."""
    document = copying(asked(array()), todo=todo * 128)
    copied = resync.copied(mirrors(document, *map(part, done)), document.lun("v"))
    assert 0 <= copied.done <= copied.total == todo * 128


def comparison(document: Document, words: str | None) -> Observed:
    uuid = names.dm_uuid(restore_of(document).uuid, "compare")
    if words is None:
        return seen(document)
    return said(document, device("blkrecov-lab-v-compare", uuid, "raid", [words], length=1280))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("raid1 2 AA 640/1280 check 0 0 -", (640, 0, False, False)),
        ("raid1 2 AA 1280/1280 check 0 0 -", (1280, 0, False, False)),
        ("raid1 2 AA 1280/1280 idle 0 0 -", (1280, 0, False, True)),
        ("raid1 2 AA 1280/1280 idle 256 0 -", (1280, 256, False, True)),
        ("raid1 2 DA 640/1280 idle 0 0 -", (640, 0, True, False)),
        ("raid1 2 AD 1280/1280 idle 0 0 -", (1280, 0, True, False)),
    ],
)
def test_what_a_comparison_found(words: str, found: tuple[int, int, bool, bool]) -> None:
    """It has ended when it is idle and both could be read; one that could not be read is no mismatch."""
    document = with_restore(copying(asked(array())), comparing=True)
    done, mismatch, failed, complete = found
    assert resync.compared(comparison(document, words), document.lun("v")) == Compared(
        done=Sectors(done), total=Sectors(1280), mismatch=Sectors(mismatch), failed=failed, complete=complete
    )


def test_a_comparison_of_nothing_has_ended() -> None:
    """Where something was copied, one that is not there has failed."""
    document = with_restore(copying(asked(array()), todo=0), comparing=True)
    assert resync.compared(comparison(document, None), document.lun("v")).complete
    document = with_restore(document, todo=128)
    found = resync.compared(comparison(document, None), document.lun("v"))
    assert (found.failed, found.complete) == (True, False)


# What goes wrong.


def wrong(document: Document, observed: Observed) -> str:
    veto = resync.trouble(document, observed, the_task(document))
    return veto.message if veto is not None else ""


def test_no_trouble_is_none() -> None:
    """However far the copy is."""
    document = copying(asked(array()))
    assert wrong(document, mirrors(document, *[part(3)] * 4)) == ""
    assert wrong(asked(array()), seen(document)) == ""


def test_each_trouble_has_its_words() -> None:
    """The source gone, lost, unreadable; the target dead; the store full; the copy failed on either side."""
    document = copying(asked(array()))
    fine = mirrors(document, *[part(3)] * 4)
    assert wrong(document.without_lun(document.lun("s")), fine) == "what LUN 'v' is restored from is gone"
    assert wrong(with_lost(document), fine) == "shadow copy 's' was lost while it was read: its store was full"
    store = tuple(document.drive_of(member.drive).name for member in document.lun("s").members)
    assert "'s' lost more drives than it can do without" in wrong(document, seen(document, away=store))
    full = said(document, store_device(document, "Invalid"))
    assert "'s' overflowed, or its store could not be written" in wrong(document, full)
    assert wrong(document, mirrors(document, part(3, 256, "SA"), *[part(3)] * 3)) == (
        "shadow copy 's' cannot be read in places"
    )
    assert wrong(document, mirrors(document, part(3, 256, "AS"), *[part(3)] * 3)) == (
        "LUN 'v' cannot be written in places"
    )


def test_a_dead_target_is_told_from_a_dead_source() -> None:
    """A plex has drives of its own."""
    document, _ = with_plex(array(), on=("d9",))
    document = copying(asked(document, ("p", "v")))
    assert wrong(document, seen(document, away=("d0", "d1"))).startswith("LUN 'v' lost more drives")
    assert wrong(document, seen(document, away=("d9",))).startswith("shadow copy 'p' lost more drives")


def test_a_lost_log_is_no_trouble() -> None:
    """There is room for another."""
    document = copying(asked(array()))
    assert wrong(document, mirrors(document, part(3, 256, "AA", "D"), *[part(3)] * 3)) == ""


def test_targets_are_those_that_are_not_done_with() -> None:
    """Of this task alone."""
    document = asked(array())
    assert [lun.name for lun in resync.targets(document, the_task(document))] == ["v"]
    done = document.with_lun(msgspec.structs.replace(document.lun("v"), restore=None))
    assert resync.targets(done, the_task(done)) == ()


def test_a_copy_whose_log_is_lost_begins_anew_with_one_elsewhere() -> None:
    """Of another UUID: the log of the first is never taken for its own. It is known that the LUN was written to."""
    document = copying(asked(array()))
    before = restore_of(document)
    after = restore_of(resync.restarted(document, document.lun("v"), uuids(0xB000)))
    assert after.drive != before.drive
    assert after.uuid != before.uuid
    assert (after.length, after.region, after.todo, after.begun) == (0, 0, 0, True)
    assert (after.source, after.signature) == (before.source, before.signature)


def test_a_copy_that_has_not_begun_has_not_begun_with_another_log_either() -> None:
    """Nothing was written yet."""
    document = asked(array())
    document = resync.restarted(document, document.lun("v"), uuids(0xB000))
    assert not restore_of(document).begun


def test_without_room_for_another_log_that_is_told() -> None:
    """On the one drive that is left there is the log that was lost."""
    document, _ = with_lun(drives(1), Layout.LINEAR)
    document, _ = with_plex(document)
    document = copying(asked(document, ("p", "v")))
    with pytest.raises(NotEnoughSpace):
        resync.restarted(document, document.lun("v"), uuids(0xB000))


def test_what_is_flushed_at_the_end() -> None:
    """The targets' drives, each once, those that are there."""
    document = copying(asked(array()))
    flushes = resync.flushes(document, seen(document, away=("d1",)), the_task(document))
    assert flushes == (Flush("/dev/mapper/blkrecov-lab-drive-d0"),)


# How it ends.


def ended(document: Document) -> Document:
    return resync.finished(document, the_task(document))


def test_a_finished_revert_is_the_lun_as_it_was_but_for_its_contents() -> None:
    """Of the shadow copy's moment. That stays as it is."""
    document = array()
    after = ended(copying(asked(document)))
    assert after.luns == document.with_lun(msgspec.structs.replace(document.lun("v"), restored=1000)).luns


def test_a_finished_restore_makes_whole_what_was_not() -> None:
    """An earlier one had failed."""
    document = array()
    document = document.with_lun(msgspec.structs.replace(document.lun("v"), incomplete="the resync of s:v failed"))
    after = ended(copying(asked(document))).lun("v")
    assert after.ready
    assert after.incomplete == ""


def test_a_larger_target_is_as_large_as_its_source_at_the_end() -> None:
    """What it held beyond is free."""
    document, before = with_lun(array(), Layout.LINEAR, "x", mib=96, on=("d11",))
    after = ended(copying(asked(document, ("s", "x")), "x"))
    assert after.lun("x").size == 64 * UNIT
    assert geometry.plex_length(after.lun("x")) == 64 * UNIT
    drive = after.drive("d11")
    assert before.members[0].drive == drive.uuid
    assert geometry.free_length(after, drive) == geometry.free_length(document, drive) + 32 * UNIT


def test_what_was_made_for_the_copy_s_sake_goes_with_it() -> None:
    """Its undo copy, as any LUN that is deleted; the log's place is free."""
    document = array()
    after = ended(copying(asked(document, undo=True)))
    assert [lun.name for lun in after.luns] == ["v", "s", "w"]
    assert [stone.name for stone in after.tombstones] == ["undo-1-0"]
    free = [geometry.free_length(after, drive) for drive in after.drives]
    assert free == [geometry.free_length(document, drive) for drive in document.drives]


def filling() -> Document:
    """A plex p of v, into which the kernel copies."""
    document, _ = with_lun(drives(8), Layout.RAID1)
    request = ShadowRequest(origin="v", name="p", plex=True)
    document = shadows.propose(document, seen(document), [request], uuids(0x8000))[0].document
    return copying(stamped(stamped(document, "base-1-0", 1000)[0], "p", 1000)[0], "p")


def test_a_filled_plex_is_of_its_own_moment() -> None:
    """It was not restored: `restored` is for what has held something else before. What it was filled from goes."""
    after = ended(filling())
    assert [lun.name for lun in after.luns] == ["v", "p"]
    assert (after.lun("p").restored, after.lun("p").ready) == (0, True)


def test_a_plex_that_came_to_nothing_never_was() -> None:
    """Half of one is no shadow copy."""
    after = given_up(filling())
    assert [lun.name for lun in after.luns] == ["v"]
    assert [stone.name for stone in after.tombstones] == ["base-1-0"]


def given_up(document: Document) -> Document:
    return resync.abandoned(document, the_task(document), "it failed")


@pytest.mark.parametrize(
    ("changed", "incomplete"),
    [
        ({}, ""),
        ({"length": 131072, "region": 128}, "it failed"),
        ({"written": True}, "it failed"),
    ],
)
def test_what_was_written_to_is_not_ready_until_a_restore_succeeds(changed: dict[str, int], incomplete: str) -> None:
    """By this copy, or by one before it whose log was lost. What was not is as it was."""
    document = given_up(with_restore(asked(array()), **changed))
    assert (document.lun("v").restore, document.lun("v").incomplete) == (None, incomplete)
    assert document.lun("v").ready == (not incomplete)


def test_what_was_not_whole_before_is_not_whole_after_a_failure() -> None:
    """Though the second restore never wrote."""
    document = array()
    document = document.with_lun(msgspec.structs.replace(document.lun("v"), incomplete="an earlier one"))
    assert given_up(asked(document)).lun("v").incomplete == "it failed"


def test_the_source_stays_good() -> None:
    """And the undo copy goes; nothing else is different."""
    document = array()
    after = given_up(copying(asked(document, undo=True)))
    assert after.lun("s") == document.lun("s")
    assert [lun.name for lun in after.luns] == ["v", "s", "w"]


def test_a_new_target_that_came_to_nothing_never_was() -> None:
    """No tombstone: nobody has seen it."""
    document = array()
    after = given_up(copying(asked(document, ("s", "new")), "new"))
    assert after.luns == document.luns
    assert after.tombstones == ()


def test_all_pairs_or_none() -> None:
    """One is copied, the other has not begun: the one is not whole, the other is as it was."""
    document, _ = with_shadow(array(), "t")
    document = given_up(copying(asked(document, ("s", "v"), ("t", "w"))))
    assert [document.lun(name).incomplete for name in "vw"] == ["it failed", ""]


# Going back.

CANCELLED: BlkrecovError = RestoreCancelled("the task was cancelled")


def undone(document: Document) -> Document | None:
    return resync.undone(document, the_task(document), CANCELLED, uuids(0xB000))


def with_undo() -> Document:
    """The copy onto v has begun, and there is a shadow copy of what was there before."""
    return stamped(copying(asked(array(), undo=True)), "undo-1-0", 2000)[0]


def test_what_was_there_before_is_put_back_like_any_shadow_copy() -> None:
    """A copy of its own, from the undo copy; the task knows what it will end with."""
    document = with_undo()
    back = undone(document)
    assert back is not None
    restore = restore_of(back)
    assert (restore.source, restore.length, restore.signature) == (document.lun("undo-1-0").uuid, 0, "")
    assert restore.uuid != restore_of(document).uuid
    task = the_task(back)
    assert (tasks.phase(task), task.code) == (Phase.UNDO, "VSS_S_ASYNC_CANCELLED")


def test_a_lun_that_is_put_back_is_as_it_was() -> None:
    """No later moment, and ready."""
    back = undone(with_undo())
    assert back is not None
    after = ended(copying(back))
    assert after.luns == array().luns


def test_a_lun_that_was_not_whole_is_not_whole_when_it_is_put_back() -> None:
    """What is there again is half a restore."""
    document = array()
    document = document.with_lun(msgspec.structs.replace(document.lun("v"), incomplete="an earlier one"))
    document = stamped(copying(asked(document, undo=True)), "undo-1-0", 2000)[0]
    back = undone(document)
    assert back is not None
    assert ended(copying(back)).lun("v").incomplete == "an earlier one"


def test_a_lun_that_grew_for_it_is_as_small_as_before() -> None:
    """Its undo copy is of its old size."""
    document, before = with_lun(array(), Layout.LINEAR, "x", mib=32)
    document = stamped(copying(asked(document, ("s", "x"), undo=True), "x"), "undo-1-0", 2000)[0]
    back = undone(document)
    assert back is not None
    assert ended(copying(back, "x")).lun("x") == before


def test_what_was_not_written_to_has_nothing_to_put_back() -> None:
    """Then the task just ends; of several, those that were are put back."""
    document = stamped(asked(array(), undo=True), "undo-1-0", 2000)[0]
    assert undone(document) is None
    document, _ = with_shadow(array(), "t")
    document = asked(document, ("s", "v"), ("t", "w"), undo=True)
    document = copying(stamped(stamped(document, "undo-1-0", 2000)[0], "undo-1-1", 2000)[0], "w")
    back = undone(document)
    assert back is not None
    assert back.lun("v").restore is None
    assert restore_of(back, "w").source == document.lun("undo-1-1").uuid


def test_without_a_good_undo_copy_there_is_no_way_back() -> None:
    """None was asked for, it was lost, or never made."""
    assert undone(copying(asked(array()))) is None
    assert undone(with_lost(with_undo(), "undo-1-0")) is None
    document = with_undo()
    assert undone(document.without_unmade(document.lun("undo-1-0"))) is None


def test_going_back_is_not_gone_back_from() -> None:
    """When that fails the LUN is not ready, and says why: also before the way back has copied anything."""
    back = undone(with_undo())
    assert back is not None
    assert undone(back) is None
    assert undone(copying(back)) is None
    for stage in (back, copying(back)):
        assert resync.abandoned(stage, the_task(stage), "it failed").lun("v").incomplete == "it failed"


def test_a_copy_that_lost_its_log_can_go_back() -> None:
    """It had written before it lost it."""
    document = with_undo()
    document = resync.restarted(document, document.lun("v"), uuids(0xC000))
    back = undone(document)
    assert back is not None
    assert restore_of(back).source == document.lun("undo-1-0").uuid


def test_nothing_of_a_restore_is_deleted_or_restored_while_it_runs() -> None:
    """Source and target are busy."""
    document = copying(asked(array()))
    for name in ("s", "v"):
        with pytest.raises(BlkrecovError, match="under way"):
            provision.delete(document, document.lun(name), ())
