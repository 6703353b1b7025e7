"""Reconnect: which members the kernel takes back, which it regenerates as a whole, which LUNs stay as they are."""

from collections.abc import Mapping
from uuid import UUID

import msgspec
import pytest

from blkrecov import family, faults, provision, reconnect, tasks
from blkrecov.dm.superblock import Superblock
from blkrecov.errors import AnotherCallInProgress, Cancelled, ObjectFailed
from blkrecov.model import (
    Document,
    DriveStatus,
    Fault,
    FaultKind,
    Layout,
    Lun,
    MemberState,
    Phase,
    Task,
    TaskKind,
    TaskState,
)
from blkrecov.observed import Observed
from blkrecov.proposal import Proposal
from blkrecov.steps import ZeroExtent
from tests.unit.arrays import FAULT_TOLERANT, drive, drives, uuids, with_lun, with_shadow, with_states

LOST = MemberState.FAILED
GOOD = MemberState.IN_SYNC
REBUILDING = MemberState.REBUILDING
RETURNING = MemberState.RETURNING
Superblocks = Mapping[UUID, Superblock | None]


def superblock(
    position: int = 1, events: int = 7, failed: int = 0, legs: int = 2, recovery: int | None = None
) -> Superblock:
    return Superblock(
        legs=legs, position=position, events=events, failed=failed, recovery_offset=recovery, resync_offset=None
    )


def remembered(lun: Lun, *failed: int) -> dict[UUID, Superblock | None]:
    """What the members remember after these were lost: theirs end with event 7, the others go on and call them failed."""
    bits = sum(1 << index for index in failed)
    return {
        member.uuid: superblock(index, 7, 0, len(lun.members))
        if index in failed
        else superblock(index, 9, bits, len(lun.members))
        for index, member in enumerate(lun.members)
    }


def whole(layout: Layout = Layout.RAID1, number: int = 6) -> Document:
    """An array of so many drives with one LUN, v, whose first members are on d0 and d1."""
    return with_lun(drives(number), layout, on=tuple(f"d{index}" for index in range(layout.minimum)))[0]


def without(document: Document, *names: str) -> Document:
    """The array after drives failed."""
    for name in names:
        document = provision.fail_drive(document, name).document
    return document


def returned(document: Document, name: str = "d1", superblocks: Superblocks | None = None) -> reconnect.Return:
    """What becomes of v when a drive is back; its superblocks tell the truth unless others are given."""
    lun, back = document.lun("v"), document.drive(name)
    known = remembered(lun, *lun.lost) if superblocks is None else superblocks
    document = document.with_drive(msgspec.structs.replace(back, status=DriveStatus.ONLINE, reason=""))
    return reconnect.returned(document, Observed(), lun, back, known, uuids(0x9000))


def states(lun: Lun) -> list[MemberState]:
    return [member.state for member in lun.members]


def child(number: int, state: TaskState = TaskState.IN_PROGRESS, percent: int = 0, **more: object) -> Task:
    task = Task(id=number, kind=TaskKind.RECOVER, lun=UUID(int=7), objects=("v", "d1"), state=state, percent=percent)
    return msgspec.structs.replace(task, **more)


def parent(*children: int) -> Task:
    task = Task(
        id=1, kind=TaskKind.RECONNECT, lun=UUID(int=8), objects=("d1",), phases=(Phase.REBUILD,), children=children
    )
    return tasks.started(msgspec.structs.replace(task, message="v regenerates what it missed"))


def holding(*items: Task) -> Document:
    return Document(array=UUID(int=9), name="lab", tasks=items)


# The proof.


@pytest.mark.parametrize(
    ("own", "other", "believed"),
    [
        (superblock(1, 7), superblock(0, 9, failed=0b10), True),
        (superblock(1, 7, failed=0b1), superblock(0, 9, failed=0b11), True),
        (None, superblock(0, 9, failed=0b10), False),
        (superblock(1, 7), None, False),
        (superblock(1, 7), superblock(0, 9), False),
        (superblock(1, 7), superblock(0, 9, failed=0b01), False),
        (superblock(1, 9), superblock(0, 9, failed=0b10), False),
        (superblock(1, 11), superblock(0, 9, failed=0b10), False),
        (superblock(0, 7), superblock(0, 9, failed=0b10), False),
        (superblock(1, 7, legs=3), superblock(0, 9, failed=0b10), False),
        (superblock(1, 7, recovery=4096), superblock(0, 9, failed=0b10), False),
    ],
    ids=[
        "called failed by a fresher one",
        "whatever it says itself",
        "it has none",
        "nobody else has one",
        "nobody calls it failed",
        "another is called failed",
        "as fresh as the others",
        "fresher than the others",
        "of another position",
        "of an array of another width",
        "it never was whole",
    ],
)
def test_a_member_is_believed_when_the_others_call_it_failed(
    own: Superblock | None, other: Superblock | None, believed: bool
) -> None:
    """Then the kernel knows that it has missed writes, and its bitmap which. Anything else may be anybody's superblock."""
    lun = without(whole(), "d1").lun("v")
    first, second = lun.members
    assert reconnect.proven(lun, 1, {first.uuid: other, second.uuid: own}) is believed


def test_the_freshest_of_the_others_decides() -> None:
    """An older one was written before the member was lost, or after an earlier loss that was made good."""
    lun = without(whole(Layout.RAID5), "d1").lun("v")
    old, own, new = (member.uuid for member in lun.members)
    own_word, failed = superblock(1, 7, legs=3), 0b10
    assert reconnect.proven(lun, 1, {old: superblock(0, 8), own: own_word, new: superblock(2, 9, failed)})
    assert not reconnect.proven(lun, 1, {old: superblock(0, 8, failed), own: own_word, new: superblock(2, 9)})


@pytest.mark.parametrize("state", [LOST, REBUILDING, RETURNING])
def test_only_members_in_sync_are_witnesses(state: MemberState) -> None:
    """One that is lost itself has stopped at some time; one that is regenerated repeats what it was told."""
    lun = with_states(whole(Layout.RAID6).lun("v"), state, LOST, GOOD, GOOD)
    words = remembered(lun, 1)
    liar, own = lun.members[0].uuid, lun.members[1].uuid
    words[liar] = superblock(0, 99, failed=0, legs=4)
    assert reconnect.proven(lun, 1, words)
    assert not reconnect.proven(lun, 1, {liar: superblock(0, 99, failed=0b10, legs=4), own: words[own]})


def test_a_drive_that_cannot_be_read_proves_nothing() -> None:
    lun = without(whole(), "d1").lun("v")
    assert not reconnect.proven(lun, 1, {})
    assert not reconnect.proven(lun, 1, {lun.members[0].uuid: superblock(0, 9, failed=0b10)})


# What becomes of a LUN.


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_lost_member_returns(layout: Layout) -> None:
    """The same member in the same place, for the kernel to take back."""
    document = without(whole(layout), "d1")
    back = returned(document)
    before, after = document.lun("v").members, back.lun.members
    assert (back.comes, back.regenerates, back.zeroed) == (True, True, ())
    assert states(back.lun) == [RETURNING if index == 1 else GOOD for index in range(layout.minimum)]
    assert [member.uuid for member in after] == [member.uuid for member in before]
    assert (after[1].data, after[1].meta) == (before[1].data, before[1].meta)
    assert back.why == "regenerates what it missed"


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_member_without_proof_is_a_new_one_in_its_old_place(layout: Layout) -> None:
    """Another UUID, so nothing that is known of the old one is believed of it; its superblock area is to be zeroed."""
    document = without(whole(layout), "d1")
    back = returned(document, superblocks={})
    before, after = document.lun("v").members[1], back.lun.members[1]
    assert (after.state, back.zeroed, back.regenerates) == (REBUILDING, (after,), True)
    assert after.uuid != before.uuid
    assert (after.drive, after.data, after.meta, after.successor) == (before.drive, before.data, before.meta, None)
    assert "as a whole" in back.why


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_lun_that_has_lost_nothing_on_the_drive_is_let_be(layout: Layout) -> None:
    """The drive was never failed; or its LUN was not used while it was away, and so missed nothing."""
    document = whole(layout)
    back = returned(document)
    assert (back.lun, back.comes, back.regenerates) == (document.lun("v"), True, False)


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_lun_that_has_lost_too_much_stays_failed(layout: Layout) -> None:
    """One of its members is back, and there is nothing to regenerate that from."""
    names = [f"d{index}" for index in range(layout.minimum)]
    document = without(whole(layout), *names)
    back = returned(document, "d0")
    assert (back.lun, back.comes, back.regenerates, back.zeroed) == (document.lun("v"), False, False, ())
    assert "stays failed" in back.why


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
@pytest.mark.parametrize("known", [True, False], ids=["proven", "not proven"])
def test_a_lun_whose_other_drives_are_away_stays_failed(layout: Layout, known: bool) -> None:
    """It was not used without them, so they are in sync still: but they are not here to regenerate anything from."""
    document = without(whole(layout), "d1")
    for index in {0, *range(2, layout.minimum)}:
        away = msgspec.structs.replace(document.drive(f"d{index}"), status=DriveStatus.REMOVED)
        document = document.with_drive(away)
    back = returned(document, superblocks=None if known else {})
    assert (back.lun, back.comes, back.regenerates, back.zeroed) == (document.lun("v"), False, False, ())
    assert "stays failed" in back.why


def test_a_member_that_is_being_regenerated_is_nothing_to_regenerate_from() -> None:
    document = without(whole(Layout.RAID5), "d1")
    lun = with_states(document.lun("v"), REBUILDING, LOST, GOOD)
    assert not returned(document.with_lun(lun)).comes


def test_a_second_member_returns_while_a_first_is_regenerated() -> None:
    """A raid6 has redundancy for both."""
    document = without(whole(Layout.RAID6), "d1")
    lun = with_states(document.lun("v"), REBUILDING, LOST, GOOD, GOOD)
    assert states(returned(document.with_lun(lun)).lun) == [REBUILDING, RETURNING, GOOD, GOOD]


@pytest.mark.parametrize(
    ("lost", "comes", "returns"),
    [
        (("d0", "d1"), True, False),
        (("d1", "d0"), False, False),
        (("d1", "d2"), True, True),
        (("d1", "d3"), True, True),
        (("d1", "d2", "d3"), False, False),
    ],
)
def test_a_raid10_comes_when_each_pair_has_the_one_that_served_last(
    lost: tuple[str, ...], comes: bool, returns: bool
) -> None:
    back = returned(without(whole(Layout.RAID10), *lost))
    assert back.comes is comes
    assert back.lun.returning == (frozenset({1}) if returns else frozenset())


def test_a_lun_with_a_task_is_told_to_wait() -> None:
    """A recovery is putting another drive in the member's place at this moment."""
    document = without(whole(), "d1")
    lun = document.lun("v")
    document = document.with_task(child(4, lun=lun.uuid))
    back = returned(document)
    assert (back.lun, back.comes, back.regenerates) == (lun, False, False)
    assert "task 4" in back.why


@pytest.mark.parametrize("layout", [Layout.LINEAR, Layout.RAID0])
def test_a_lun_without_redundancy_is_online_again(layout: Layout) -> None:
    """Nobody was told that a write had been done which the drive has not."""
    document = with_lun(drives(4), layout, on=("d0", "d1")[: layout.minimum])[0]
    name = f"d{layout.minimum - 1}"
    back = returned(without(document, name), name)
    assert (back.lun, back.comes, back.regenerates, back.why) == (document.lun("v"), True, False, "is online")


def test_a_lun_without_redundancy_needs_all_its_drives() -> None:
    """The names of those that are away, so that somebody can bring them."""
    document = with_lun(drives(4), Layout.RAID0, on=("d0", "d1", "d2"))[0]
    back = returned(without(document, "d0", "d1", "d2"))
    assert (back.comes, back.regenerates) == (False, False)
    assert back.why == "stays failed: drive d0, d2 is away"


# The proposal.


def several() -> Document:
    """Four LUNs on d1, one beside it: a mirror and a raid5 that return, a raid0, a mirror that is lost; d1 and d5 are away."""
    document = drives(6)
    document, _ = with_lun(document, Layout.RAID1, "mirror", mib=16, on=("d0", "d1"))
    document, _ = with_lun(document, Layout.RAID0, "striped", mib=16, on=("d1", "d2"))
    document, _ = with_lun(document, Layout.RAID5, "parity", mib=16, on=("d1", "d2", "d3"))
    document, _ = with_lun(document, Layout.RAID1, "gone", mib=16, on=("d1", "d5"))
    document, _ = with_lun(document, Layout.RAID1, "elsewhere", mib=16, on=("d2", "d3"))
    document = document.with_task(child(3, TaskState.COMPLETED))
    return without(document, "d1", "d5")


def test_one_proposal_for_all_that_is_on_a_drive() -> None:
    """The drive is online where it was found; a recovery each for what regenerates; the rest is told."""
    before = several()
    words = remembered(before.lun("mirror"), 1) | remembered(before.lun("parity"), 0)
    proposal, task = reconnect.propose(before, Observed(), before.drive("d1"), "/mnt/d1", words, uuids(0x9000))
    after = proposal.document
    back = after.drive("d1")
    assert (back.status, back.reason, back.path) == (DriveStatus.ONLINE, "", "/mnt/d1")
    assert (task.id, task.kind, task.lun, task.objects) == (4, TaskKind.RECONNECT, back.uuid, ("d1",))
    assert (task.state, task.percent, task.children) == (TaskState.IN_PROGRESS, 0, (5, 6))
    assert after.task(4) == task
    children = [after.task(number) for number in task.children]
    assert [item.objects for item in children] == [("mirror", "d1"), ("parity", "d1")]
    assert [item.lun for item in children] == [before.lun("mirror").uuid, before.lun("parity").uuid]
    assert [(item.kind, item.state, item.phases) for item in children] == [
        (TaskKind.RECOVER, TaskState.IN_PROGRESS, (Phase.REBUILD,))
    ] * 2
    assert after.next_task == 7
    assert states(after.lun("mirror")) == [GOOD, RETURNING]
    assert states(after.lun("parity")) == [RETURNING, GOOD, GOOD]
    assert [after.lun(name) for name in ("striped", "gone", "elsewhere")] == [
        before.lun(name) for name in ("striped", "gone", "elsewhere")
    ]
    assert proposal.prepare == ()
    assert task.message == (
        "mirror regenerates what it missed; striped is online; parity regenerates what it missed; "
        "gone stays failed: member 1 is missing, and served last"
    )
    assert proposal.why == f"drive d1 comes back: {task.message}"


def test_what_is_regenerated_as_a_whole_is_zeroed_and_verified() -> None:
    """Where its superblock and bitmap will be; and a check at the end is short beside it."""
    before = without(whole(), "d1")
    proposal, task = reconnect.propose(before, Observed(), before.drive("d1"), "/srv/d1", {}, uuids(0x9000))
    member = proposal.document.lun("v").members[1]
    assert proposal.prepare == (ZeroExtent("/dev/mapper/blkrecov-lab-drive-d1", member.meta[0]),)
    assert proposal.document.task(task.children[0]).phases == (Phase.REBUILD, Phase.VERIFY)


def test_an_empty_drive_comes_back_too() -> None:
    before = without(drives(2), "d1")
    proposal, task = reconnect.propose(before, Observed(), before.drive("d1"), "/srv/d1", {}, uuids(0x9000))
    assert proposal.document.drive("d1").online
    assert (task.children, task.message) == ((), "")
    assert proposal.why == "drive d1 comes back: nothing is on it"


def test_a_drive_that_comes_back_keeps_its_record() -> None:
    """It failed before, and is distrusted for that as long as it was."""
    failed = msgspec.structs.replace(
        drive(1), status=DriveStatus.FAILED, failures=(5, 9), failing="twice", hot_spare=True
    )
    before = drives(1).with_drive(failed)
    proposal, _ = reconnect.propose(before, Observed(), failed, failed.path, {}, uuids(0x9000))
    assert proposal.document.drive("d1") == msgspec.structs.replace(failed, status=DriveStatus.ONLINE)


# What the kernel made of it.


@pytest.mark.parametrize(
    ("failed", "after"),
    [
        (frozenset[int](), [REBUILDING, LOST, REBUILDING, GOOD]),
        (frozenset({0}), [LOST, LOST, REBUILDING, GOOD]),
        (frozenset({0, 2}), [LOST, LOST, LOST, GOOD]),
        (frozenset({3}), [REBUILDING, LOST, REBUILDING, GOOD]),
    ],
)
def test_what_the_kernel_took_back_is_rebuilding_and_the_rest_is_lost(
    failed: frozenset[int], after: list[MemberState]
) -> None:
    """Only of those that return: what else has failed is noted elsewhere."""
    lun = with_states(whole(Layout.RAID6).lun("v"), RETURNING, LOST, RETURNING, GOOD)
    assert states(reconnect.taken_back(lun, failed)) == after


# The task.


@pytest.mark.parametrize(
    ("children", "done"),
    [
        ((), 1.0),
        ((child(2, percent=50),), 0.5),
        ((child(2, percent=50), child(3)), 0.25),
        ((child(2, TaskState.COMPLETED, 100), child(3, percent=20)), 0.6),
        ((child(2, TaskState.FAILED, 0), child(3, TaskState.CANCELLED, 0)), 1.0),
    ],
    ids=["without any", "half", "half of one", "one is over", "both are over, if not well"],
)
def test_all_recoveries_count_the_same(children: tuple[Task, ...], done: float) -> None:
    task = parent(*(item.id for item in children))
    assert family.percent(holding(task, *children, child(9, percent=99)), task) == pytest.approx(done)


def test_a_reconnect_lasts_as_long_as_its_recoveries() -> None:
    task = parent(2, 3)
    assert reconnect.ended(holding(task, child(2, TaskState.COMPLETED, 100), child(3, percent=99)), task) is None


def test_a_reconnect_that_regenerates_nothing_ends_at_once() -> None:
    task = parent()
    ended = reconnect.ended(holding(task), task)
    assert ended is not None
    assert (ended.state, ended.percent, ended.code) == (TaskState.COMPLETED, 100, "S_OK")
    assert ended.message == "v regenerates what it missed"


def test_a_recovery_that_ended_so_long_ago_that_it_is_forgotten_is_over() -> None:
    """A drive may have more LUNs than the array remembers tasks."""
    task = parent(2, 3)
    assert family.children(holding(task, child(3, percent=40)), task) == (child(3, percent=40),)
    assert family.percent(holding(task, child(3, percent=40)), task) == pytest.approx(0.7)
    ended = reconnect.ended(holding(task, child(3, TaskState.COMPLETED, 100)), task)
    assert ended is not None
    assert ended.state is TaskState.COMPLETED


def test_a_recovery_that_fails_is_told_and_fails_nothing() -> None:
    """The drive is back, which is what was asked for. Bytes are those of all recoveries."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    good = tasks.completed(child(2, bytes_kernel=300, bytes_process=30, lun=lun.uuid), "3 MiB regenerated")
    bad = tasks.failed(child(3, bytes_kernel=200, bytes_process=20), ObjectFailed("LUN 'w' lost too many members"))
    mute = tasks.cancelled(child(4))
    task = msgspec.structs.replace(parent(2, 3, 4), bytes_process=5)
    for item in (task, good, bad, mute):
        document = document.with_task(item)
    ended = reconnect.ended(document, task)
    assert ended is not None
    assert (ended.state, ended.percent, ended.code) == (TaskState.COMPLETED, 100, "S_OK")
    assert (ended.bytes_kernel, ended.bytes_process) == (500, 55)
    assert ended.message == (
        "v regenerates what it missed; recovery of v completed: 3 MiB regenerated; "
        "recovery of a deleted LUN failed: LUN 'w' lost too many members; "
        f"recovery of a deleted LUN cancelled: {Cancelled('the task was cancelled').message}"
    )


# A drive that loses writes.


def lying(document: Document, name: str = "d1") -> Document:
    return faults.propose(document, name, Fault(FaultKind.DROP_WRITES)).document


def proposed(document: Document, superblocks: Superblocks | None = None) -> tuple[Proposal, Task]:
    return reconnect.propose(document, Observed(), document.drive("d1"), "/srv/d1", superblocks or {}, uuids(0x9000))


@pytest.mark.parametrize("fault", [Fault(FaultKind.AFTER, 3), Fault(FaultKind.ERROR_RATE, 1), Fault(FaultKind.SLOW, 5)])
def test_a_reconnect_takes_a_fault_away(fault: Fault) -> None:
    """What the kernel gave up because of it comes back as after any failure; the rest has lost nothing."""
    proposal, _ = proposed(faults.propose(whole(), "d1", fault).document)
    assert proposal.first is None
    assert proposal.document.drive("d1").fault is None
    assert proposal.document.lun("v") == whole().lun("v")
    assert proposal.why == "drive d1 is without its fault: v has lost nothing on it"


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_what_lost_writes_is_out_before_its_drive_is_sound_again(layout: Layout) -> None:
    """The first version of the document keeps the fault, and does without the member; the second regenerates all of it."""
    document = lying(whole(layout))
    before = document.lun("v").members[1]
    proposal, task = proposed(document)
    assert proposal.first is not None
    assert proposal.first.document.drive("d1") == document.drive("d1")
    assert states(proposal.first.document.lun("v")) == [LOST if index == 1 else GOOD for index in range(layout.minimum)]
    after = proposal.document.lun("v").members[1]
    assert proposal.document.drive("d1").fault is None
    assert (after.state, after.uuid != before.uuid, after.data) == (REBUILDING, True, before.data)
    assert proposal.prepare == (ZeroExtent("/dev/mapper/blkrecov-lab-drive-d1", before.meta[0]),)
    assert len(task.children) == 1


def test_no_superblock_proves_what_was_lost_silently() -> None:
    """The drive lost writes first, and failed after that: the bitmap tells what it missed since."""
    document = without(lying(whole()), "d1")
    proposal, _ = proposed(document, remembered(document.lun("v"), 1))
    assert states(proposal.document.lun("v")) == [GOOD, REBUILDING]
    assert "v is regenerated as a whole: drive d1 lost writes, and nobody knows which" in proposal.why


def test_the_last_copy_is_kept_with_what_it_has() -> None:
    """There is nothing to regenerate it from."""
    document = without(lying(whole()), "d0")
    proposal, task = proposed(document)
    assert proposal.document.lun("v") == document.lun("v")
    assert (task.children, task.message) == ((), "v may have lost what was written to it: drive d1 lost writes")


def test_a_lun_without_redundancy_is_told_that_it_may_have_lost_writes() -> None:
    """It is online, and nobody knows more."""
    document = lying(with_lun(drives(2), Layout.LINEAR, on=("d1",))[0])
    assert (
        proposed(document)[1].message == "v is online, and may have lost what was written to it: drive d1 lost writes"
    )


def test_a_shadow_copy_whose_store_lost_writes_is_lost() -> None:
    """What it would show was overwritten on the origin, and never saved."""
    document, _ = with_shadow(with_lun(drives(2), Layout.LINEAR, on=("d0",))[0], on=("d1",))
    shadow = proposed(lying(document))[0].document.lun("s").shadow
    assert shadow is not None
    assert shadow.lost == "its store is lost: drive d1 lost writes"


def test_a_fault_that_loses_writes_stays_while_a_task_works_on_its_members() -> None:
    """A task would go on with a member that is not there any more."""
    document = lying(whole())
    lun = document.lun("v").uuid
    busy = document.with_task(Task(id=1, kind=TaskKind.SCRUB, lun=lun, objects=("v",), state=TaskState.IN_PROGRESS))
    with pytest.raises(AnotherCallInProgress):
        proposed(busy)


def test_a_lun_has_failed_when_its_drives_are_more_than_it_can_do_without() -> None:
    """By the document alone: before the array is opened nothing else is known."""
    plain, mirror = whole(Layout.LINEAR), whole(Layout.RAID1)
    assert reconnect.failed(plain) == frozenset()
    assert reconnect.failed(without(plain, "d0")) == {plain.lun("v").uuid}
    assert reconnect.failed(without(plain, "d5")) == frozenset()
    assert reconnect.failed(without(mirror, "d0")) == frozenset()
    gone = msgspec.structs.replace(mirror.drive("d1"), status=DriveStatus.REMOVED)
    assert reconnect.failed(without(mirror, "d0").with_drive(gone)) == {mirror.lun("v").uuid}


def test_a_shadow_copy_has_failed_with_its_origin() -> None:
    document, lun = with_shadow(whole(Layout.LINEAR))
    origin = document.lun("v")
    lost = without(document, *(document.drive_of(drive).name for drive in origin.drives))
    assert reconnect.failed(lost) >= {origin.uuid, lun.uuid}
