"""Shadow copies made: what is wanted of the document, what is refused, and what a store is large enough for."""

from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import geometry, shadows
from blkrecov.dm import cow, names
from blkrecov.dm.table import TargetLine
from blkrecov.errors import (
    AnotherCallInProgress,
    InsufficientStorage,
    InvalidArgument,
    InvalidOperation,
    ObjectExists,
    ObjectNotFound,
)
from blkrecov.model import UNIT, Document, Extent, Layout, Phase, Restore, Shadow, Task, TaskKind, TaskState
from blkrecov.observed import Live, Observed
from blkrecov.proposal import Proposal
from blkrecov.shadows import ShadowRequest
from blkrecov.steps import DiscardExtent, ZeroExtent
from blkrecov.units import KIB, MIB, Bytes, Sectors
from tests.unit.arrays import drives, seen, uuids, with_lost, with_lun, with_plex, with_shadow

TIB = 2**40


def array(layout: Layout = Layout.RAID1, *, mib: int = 64) -> Document:
    """A LUN v."""
    return with_lun(drives(10, units=1000), layout, mib=mib)[0]


def of(origin: str, name: str, **more: object) -> ShadowRequest:
    return msgspec.convert({"origin": origin, "name": name, **more}, ShadowRequest)


def proposed(
    document: Document, *requests: ShadowRequest, away: tuple[str, ...] = (), discards: frozenset[UUID] = frozenset()
) -> tuple[Proposal, Task | None]:
    return shadows.propose(document, seen(document, away=away), requests, uuids(0x9000), discards)


def made(document: Document, *requests: ShadowRequest) -> Document:
    return proposed(document, *requests)[0].document


# What is wanted.


def test_a_differential_one_is_a_store_that_shows_its_origin() -> None:
    """As large as the origin for its host; of a moment when the kernel has it. It is no task."""
    document = array()
    proposal, task = proposed(document, of("v", "s"))
    shadow = proposal.document.lun("s")
    assert shadow.shadow == Shadow(origin=document.lun("v").uuid, taken=0, chunk=128)
    assert (shadow.differential, shadow.size, shadow.exported) == (True, 64 * UNIT, True)
    assert proposal.others == {shadow.uuid}
    assert task is None


@pytest.mark.parametrize(
    ("mib", "asked", "store"),
    [
        (64, None, 16),  # At least so much.
        (500, None, 100),  # A fifth.
        (500, 32, 32),
        (500, 5000, 501),  # More than every chunk, its entry, header and areas is never needed.
        (1, None, 2),
    ],
)
def test_how_large_a_store_is(mib: int, asked: int | None, store: int) -> None:
    """In MiB: what is asked for, else a part of its origin."""
    document = array(Layout.LINEAR, mib=mib)
    size = Bytes(asked * MIB) if asked else None
    assert geometry.plex_length(made(document, of("v", "s", size=size)).lun("s")) == store * UNIT


@given(st.integers(1, 4 * 2**20), st.sampled_from([4, 16, 64, 512]))
def test_the_largest_store_never_overflows(mib: int, kib: int) -> None:
    """Whatever of its origin is overwritten: there is room for every chunk."""
    chunk = Sectors(kib * KIB // 512)
    chunks = -(-mib * UNIT // chunk)
    assert cow.capacity(cow.store_length(chunks, chunk), chunk) >= chunks


@pytest.mark.parametrize("layout", Layout)
def test_a_store_is_as_safe_as_its_origin(layout: Layout) -> None:
    """One that is lost sooner would be no copy of a LUN that lives. Another layout can be asked for."""
    document = array(layout)
    wanted = Layout.RAID1 if layout.fault_tolerant else Layout.LINEAR
    assert made(document, of("v", "s")).lun("s").layout is wanted
    assert made(document, of("v", "s", layout=Layout.RAID6)).lun("s").layout is Layout.RAID6


def test_a_store_s_beginning_is_zeroed() -> None:
    """The kernel takes it for an old one by its first chunk; superblocks as ever."""
    document = array()
    proposal, _ = proposed(document, of("v", "s"))
    members = proposal.document.lun("s").members
    ports = [f"/dev/mapper/blkrecov-lab-drive-{document.drive_of(member.drive).name}" for member in members]
    assert proposal.prepare == (
        ZeroExtent(ports[0], members[0].meta[0]),
        ZeroExtent(ports[0], Extent(members[0].data[0].start, UNIT)),
        ZeroExtent(ports[1], members[1].meta[0]),
        ZeroExtent(ports[1], Extent(members[1].data[0].start, UNIT)),
    )


def test_a_plex_is_a_lun_like_its_origin_and_is_filled() -> None:
    """From a differential one that goes afterwards. That is a task."""
    document = array(Layout.RAID5)
    proposal, task = proposed(document, of("v", "p", plex=True))
    plex, base = proposal.document.lun("p"), proposal.document.lun("base-1-0")
    assert task is not None
    assert (plex.layout, plex.size, plex.differential, plex.ready) == (Layout.RAID5, 64 * UNIT, False, False)
    assert plex.shadow == Shadow(origin=document.lun("v").uuid)
    assert plex.restore is not None
    assert (plex.restore.source, plex.restore.length, plex.restore.blank) == (base.uuid, 0, False)
    assert (base.differential, base.exported) == (True, False)
    assert (task.kind, task.state, task.phases) == (TaskKind.SNAPSHOT, TaskState.IN_PROGRESS, (Phase.RESTORE,))
    assert [(pair.source, pair.target) for pair in task.pairs] == [(base.uuid, plex.uuid)]
    assert task.temporary == (base.uuid,)
    assert proposal.others == {base.uuid, plex.uuid}


def test_a_plex_on_drives_that_can_be_blanked_reads_as_zeros_first() -> None:
    """Then holes need not be copied."""
    document = array()
    every = frozenset(drive.uuid for drive in document.drives)
    proposal, _ = proposed(document, of("v", "p", plex=True), discards=every)
    plex = proposal.document.lun("p")
    assert plex.restore is not None
    assert plex.restore.blank
    assert [step.extent for step in proposal.prepare if isinstance(step, DiscardExtent)] == [
        extent for member in plex.members for extent in member.data
    ]


def test_a_set_is_one_proposal() -> None:
    """Several of several LUNs, plexes among them: one document, one task for those that are filled."""
    document, _ = with_lun(array(), Layout.LINEAR, "w")
    proposal, task = proposed(document, of("v", "s"), of("w", "p", plex=True), of("v", "t"))
    assert [lun.name for lun in proposal.document.luns] == ["v", "w", "s", "base-1-1", "p", "t"]
    assert task is not None
    assert task.objects == ("p",)
    assert proposal.why == "shadow copies: s of LUN v, p of LUN w, t of LUN v"


def test_several_of_one_origin() -> None:
    """Oldest first. Not those that are lost, nor plexes, nor another LUN's."""
    document, _ = with_lun(array(), Layout.LINEAR, "w")
    for name in ("s", "t", "u"):
        document, _ = with_shadow(document, name)
    document, _ = with_shadow(document, "x", of="w")
    document, _ = with_plex(document)
    document = with_lost(document, "t")
    assert [lun.name for lun in document.shadows_of(document.lun("v").uuid)] == ["s", "u"]


# What is refused.


def test_nothing_is_no_request() -> None:
    """E_INVALIDARG."""
    with pytest.raises(InvalidArgument, match="no LUN is named"):
        proposed(array())


def test_an_origin_that_is_not_there() -> None:
    """By its name."""
    with pytest.raises(ObjectNotFound, match="no LUN 'w'"):
        proposed(array(), of("w", "s"))


@pytest.mark.parametrize("name", ["v", "t"])
def test_a_name_that_is_taken(name: str) -> None:
    """By a LUN, or by another one of the same call."""
    with pytest.raises(ObjectExists):
        proposed(array(), of("v", "t"), of("v", name))


def test_a_name_that_cannot_be() -> None:
    """As for any LUN."""
    with pytest.raises(InvalidArgument, match="not a name"):
        proposed(array(), of("v", "a b"))


def test_a_differential_one_has_no_shadow_copies() -> None:
    """A plex has: it is a LUN like others."""
    document, _ = with_shadow(array())
    with pytest.raises(InvalidOperation, match="'s' is a differential shadow copy"):
        proposed(document, of("s", "t"))
    document, _ = with_plex(document)
    assert made(document, of("p", "t")).lun("t").differential


def test_an_origin_that_is_busy() -> None:
    """One operation at a time."""
    document = array()
    task = Task(id=1, kind=TaskKind.SCRUB, lun=document.lun("v").uuid, objects=("v",))
    with pytest.raises(AnotherCallInProgress):
        proposed(document.with_task(task), of("v", "s"))


def test_an_origin_without_whole_contents() -> None:
    """Half a restore is nothing to keep; neither is what cannot be read."""
    document = array()
    lun = document.lun("v")
    for unready in (
        msgspec.structs.replace(lun, incomplete="the resync failed"),
        msgspec.structs.replace(lun, restore=Restore(uuid=UUID(int=1), source=lun.uuid)),
    ):
        with pytest.raises(InvalidOperation, match="no whole contents"):
            proposed(document.with_lun(unready), of("v", "s"))
    away = tuple(document.drive_of(member.drive).name for member in lun.members)
    with pytest.raises(InvalidOperation, match="no whole contents: it has failed"):
        proposed(document, of("v", "s"), away=away)


def test_a_degraded_origin_has_shadow_copies() -> None:
    """Now of all times."""
    document = array()
    away = document.drive_of(document.lun("v").members[0].drive).name
    assert proposed(document, of("v", "s"), away=(away,))[0].document.lun("s").differential


@pytest.mark.parametrize("chunk", [0, 1, 2 * KIB, 5 * KIB, 96 * KIB, MIB])
def test_a_chunk_that_no_store_has(chunk: int) -> None:
    """A power of two, from a page to what the kernel copies at a time."""
    with pytest.raises(InvalidArgument, match="none that a store can have"):
        proposed(array(), of("v", "s", chunk=Bytes(chunk)))


@pytest.mark.parametrize("chunk", [4 * KIB, 64 * KIB, 512 * KIB])
def test_a_chunk_that_a_store_has(chunk: int) -> None:
    """In sectors in the document, as in the kernel's table."""
    shadow = made(array(), of("v", "s", chunk=Bytes(chunk))).lun("s").shadow
    assert shadow is not None
    assert shadow.chunk == chunk // 512


def test_all_shadow_copies_of_an_origin_have_the_same_chunk() -> None:
    """The device that it is written through goes by the least when it is resumed. One that is lost does not count."""
    document, _ = with_shadow(array())
    other = of("v", "t", chunk=Bytes(16 * KIB))
    with pytest.raises(InvalidArgument, match="has shadow copies with chunks of 64 KiB"):
        proposed(document, other)
    assert made(with_lost(document), other).lun("t").differential


def test_too_little_room() -> None:
    """VSS_E_INSUFFICIENT_STORAGE, with what can be done about it: for the store, the plex, and the log of its copy."""
    document, _ = with_lun(drives(2, units=90), Layout.RAID1)
    for request in (of("v", "s", size=Bytes(40 * MIB)), of("v", "s", layout=Layout.RAID5), of("v", "p", plex=True)):
        with pytest.raises(InsufficientStorage, match=r"shadow copy '[sp]'") as refused:
            proposed(document, request)
        assert "smaller --store, or --layout linear" in refused.value.remedy
    full, _ = with_lun(drives(1, units=10), Layout.LINEAR, mib=3)
    with pytest.raises(InsufficientStorage, match="log of a copy"):
        proposed(full, of("v", "p", plex=True, size=Bytes(16 * MIB)))


# Larger stores.


def test_a_store_is_extended_and_nothing_of_what_it_shows() -> None:
    """Where its members are."""
    document, shadow = with_shadow(array())
    proposal = shadows.extend(document, shadow, Bytes(32 * MIB), uuids(0xB000))
    after = proposal.document.lun("s")
    assert (after.size, geometry.plex_length(after)) == (64 * UNIT, 32 * UNIT)
    assert (proposal.lun, proposal.why) == (shadow.uuid, "the store of s grows to 32 MiB")
    assert after.shadow == shadow.shadow


def test_a_store_can_be_larger_than_what_it_shows() -> None:
    """Or smaller: the two sizes have nothing to do with each other."""
    document, shadow = with_shadow(array())
    after = shadows.extend(document, shadow, Bytes(100 * MIB), uuids(0xB000)).document.lun("s")
    assert (after.size, geometry.plex_length(after)) == (64 * UNIT, 100 * UNIT)


def test_only_a_store_that_is_good_is_extended() -> None:
    """An overflow is for good, and a LUN or a plex has none."""
    document, plex = with_plex(array())
    for lun in (document.lun("v"), plex):
        with pytest.raises(InvalidOperation, match="no store that could be larger"):
            shadows.extend(document, lun, Bytes(100 * MIB), uuids(0xB000))
    document = with_lost(with_shadow(document)[0])
    with pytest.raises(InvalidOperation, match="has lost its contents: its store was full"):
        shadows.extend(document, document.lun("s"), Bytes(100 * MIB), uuids(0xB000))


def test_a_store_does_not_shrink_nor_grow_beyond_what_there_is() -> None:
    """E_INVALIDARG and VSS_E_INSUFFICIENT_STORAGE."""
    document, shadow = with_shadow(array())
    with pytest.raises(InvalidArgument):
        shadows.extend(document, shadow, Bytes(16 * MIB), uuids(0xB000))
    with pytest.raises(InsufficientStorage):
        shadows.extend(document, shadow, Bytes(TIB), uuids(0xB000))


# Their moment.


def kernel_has(document: Document, name: str) -> Observed:
    lun = document.lun(name)
    uuid = names.dm_uuid(lun.uuid, "shadow")
    line = TargetLine(start=Sectors(0), length=Sectors(lun.size), kind="snapshot", params="16/32768 16")
    live = Live(
        name=f"blkrecov-lab-{name}-shadow",
        uuid=uuid,
        number="253:9",
        table=(line,),
        status=(line,),
        suspended=False,
        inactive=False,
        open_count=1,
    )
    return Observed(devices={uuid: live}, backings=seen(document).backings)


def taken(document: Document) -> dict[str, int]:
    return {lun.name: lun.shadow.taken for lun in document.luns if lun.shadow is not None}


def test_a_moment_is_known_when_the_kernel_has_it() -> None:
    """Not before; and it never changes again."""
    document = made(array(), of("v", "s"), of("v", "t"))
    assert taken(shadows.stamped(document, seen(document), 1000)) == {"s": 0, "t": 0}
    document = shadows.stamped(document, kernel_has(document, "s"), 1000)
    assert taken(document) == {"s": 1000, "t": 0}
    assert shadows.stamped(document, kernel_has(document, "s"), 2000) == document


def test_a_plex_is_of_the_moment_of_what_it_is_filled_from() -> None:
    """Not of when it is whole."""
    document = made(array(), of("v", "p", plex=True))
    assert taken(shadows.stamped(document, kernel_has(document, "base-1-0"), 1000)) == {"base-1-0": 1000, "p": 1000}
