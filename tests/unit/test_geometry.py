"""Where things lie: examples for each rule, then any sequence of operations against what always holds."""

from contextlib import suppress
from itertools import pairwise
from uuid import UUID

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from blkrecov import geometry, provision, recover, replace, shadows
from blkrecov.errors import BlkrecovError, InvalidArgument, NotEnoughDrives, NotEnoughSpace
from blkrecov.geometry import Request, carve, choose_substitute, member_length, region_size
from blkrecov.model import UNIT, Document, DriveStatus, Extent, Layout, Lun, MemberState, Role, TaskState
from blkrecov.units import MIB, Bytes, Sectors
from tests.unit.arrays import (
    DATA_START,
    FAULT_TOLERANT,
    array,
    drive,
    drives,
    seen,
    uuids,
    with_lun,
    with_plex,
    with_states,
)

GIB = 1024 * MIB


def extent(start: int, length: int) -> Extent:
    """In units."""
    return Extent(start * UNIT, length * UNIT)


def names(document: Document, lun: Lun) -> list[str]:
    return [document.drive_of(member.drive).name for member in lun.members]


def test_carving_takes_the_smallest_gap_that_has_room() -> None:
    """One piece if possible, and large gaps kept for large requests."""
    taken, left = carve([extent(0, 9), extent(20, 3), extent(40, 4)], 3 * UNIT)
    assert taken == (extent(20, 3),)
    assert left == (extent(0, 9), extent(40, 4))


def test_carving_takes_the_largest_gaps_when_none_has_room() -> None:
    """As few pieces as possible."""
    taken, left = carve([extent(0, 2), extent(10, 5), extent(20, 4)], 7 * UNIT)
    assert taken == (extent(10, 5), extent(20, 2))
    assert left == (extent(0, 2), extent(22, 2))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8), st.data())
def test_carving_loses_and_invents_nothing(gaps: list[tuple[int, int]], data: st.DataObject) -> None:
    """Taken and left together are what there was."""
    free, position = [], 0
    for skip, length in gaps:
        free.append(extent(position + skip, length))
        position += skip + length
    total = sum(gap.length for gap in free)
    length = data.draw(st.integers(0, total // UNIT)) * UNIT
    taken, left = carve(free, length)
    assert sum(piece.length for piece in taken) == length

    def units(extents: tuple[Extent, ...] | list[Extent]) -> list[int]:
        return sorted(unit for piece in extents for unit in range(piece.start // UNIT, piece.end // UNIT))

    assert sorted(units(taken) + units(left)) == units(free)


@pytest.mark.parametrize(
    ("layout", "members", "units"),
    [
        (Layout.RAID0, 3, 34),
        (Layout.RAID1, 3, 100),
        (Layout.RAID4, 3, 50),
        (Layout.RAID5, 4, 34),
        (Layout.RAID6, 5, 34),
        (Layout.RAID10, 4, 50),
        (Layout.LINEAR, 1, 100),
    ],
)
def test_a_member_s_length_is_its_share_in_whole_units(layout: Layout, members: int, units: int) -> None:
    """Of 100 MiB; shares are rounded up, so the plex is never smaller than the LUN."""
    assert member_length(layout, 100 * UNIT, members) == units * UNIT


@pytest.mark.parametrize(("gib", "kib"), [(1, 1024), (2048, 1024), (2049, 2048), (8192, 4096)])
def test_a_region_is_as_small_as_the_kernel_can_count(gib: int, kib: int) -> None:
    """At most 2^21 regions (drivers/md/dm-raid.c)."""
    assert region_size(gib * GIB // 512) == kib * 2


@pytest.mark.parametrize(("layout", "members"), [(layout, layout.minimum) for layout in Layout])
def test_as_few_members_as_do(layout: Layout, members: int) -> None:
    """Each member more is a drive more that can fail."""
    _, lun = with_lun(drives(8), layout)
    assert len(lun.members) == members
    assert geometry.plex_length(lun) >= lun.size == 64 * UNIT


def test_more_members_where_each_drive_has_too_little() -> None:
    """Striping exists for that."""
    _, lun = with_lun(drives(8, 40), Layout.RAID5, mib=150)
    assert len(lun.members) == 5


def test_pairs_stay_pairs() -> None:
    """A raid10 of five would keep copies of one chunk on one drive's neighbour twice."""
    _, lun = with_lun(drives(9, 40), Layout.RAID10, mib=80)
    assert len(lun.members) == 6


def test_a_new_member_is_metadata_then_data() -> None:
    """At the start of an empty drive; the metadata takes one unit."""
    _, lun = with_lun(drives(2), Layout.RAID1)
    assert lun.members[0].meta == (Extent(DATA_START, UNIT),)
    assert lun.members[0].data == (Extent(DATA_START + UNIT, 64 * UNIT),)


def test_without_redundancy_there_is_no_metadata() -> None:
    """Nothing persists about a raid0's legs."""
    _, lun = with_lun(drives(2), Layout.RAID0)
    assert [member.meta for member in lun.members] == [(), ()]
    assert (lun.region, lun.initialised, lun.chunk) == (0, True, 128)


def test_the_emptiest_drives_come_first() -> None:
    """Load spreads by itself."""
    document, lun = with_lun(array(drive(0, 70), drive(1, 90), drive(2, 80)), Layout.RAID1)
    assert names(document, lun) == ["d1", "d2"]


def test_named_drives_are_used_in_their_order_and_no_others() -> None:
    """Whoever names drives means those; as many members as names."""
    document, lun = with_lun(drives(5), Layout.RAID1, on=("d3", "d0", "d4"))
    assert names(document, lun) == ["d3", "d0", "d4"]


def test_a_hot_spare_is_left_alone_unless_it_is_named() -> None:
    """It waits for a failure."""
    spare = array(drive(0), drive(1, hot_spare=True), drive(2))
    document, lun = with_lun(spare, Layout.RAID1)
    assert names(document, lun) == ["d0", "d2"]
    document, lun = with_lun(spare, Layout.RAID1, on=("d0", "d1"))
    assert names(document, lun) == ["d0", "d1"]


def test_a_drive_that_is_not_online_is_not_used() -> None:
    """Nor may it be named."""
    document = drives(3)
    document = document.with_drive(msgspec.structs.replace(document.drives[0], status=DriveStatus.FAILED))
    placed, lun = with_lun(document, Layout.RAID1)
    assert names(placed, lun) == ["d1", "d2"]
    with pytest.raises(NotEnoughDrives, match="'d0' is failed"):
        with_lun(document, Layout.RAID1, on=("d0", "d1"))


def test_a_linear_lun_takes_one_drive_if_any_has_room() -> None:
    """The fullest of those that have: one drive less to lose, and large gaps kept."""
    document, lun = with_lun(array(drive(0, 90), drive(1, 70), drive(2, 10)), Layout.LINEAR)
    assert names(document, lun) == ["d1"]


def test_a_linear_lun_spreads_over_as_few_drives_as_possible() -> None:
    """The largest first."""
    document, lun = with_lun(array(drive(0, 10), drive(1, 40), drive(2, 30)), Layout.LINEAR)
    assert names(document, lun) == ["d1", "d2"]
    assert [member.length for member in lun.members] == [40 * UNIT, 24 * UNIT]


def test_a_size_is_rounded_up_to_whole_units() -> None:
    """The host gets at least what was asked for."""
    request = Request(name="v", layout=Layout.RAID1, size=Bytes(MIB + 1))
    assert geometry.place(drives(2), request, uuids()).size == 2 * UNIT


@pytest.mark.parametrize(
    ("layout", "members", "text"),
    [
        (Layout.RAID1, 1, "raid1 cannot have 1 members"),
        (Layout.RAID5, 2, "raid5 cannot have 2 members"),
        (Layout.RAID6, 3, "raid6 cannot have 3 members"),
        (Layout.RAID10, 5, "raid10 keeps pairs"),
        (Layout.RAID0, 65, "65 members are too many"),
    ],
)
def test_a_number_of_members_that_cannot_be_is_refused(layout: Layout, members: int, text: str) -> None:
    """Whatever drives there are: it is the argument that is wrong."""
    with pytest.raises(InvalidArgument, match=text):
        with_lun(drives(3), layout, members=members)


def test_a_drive_named_twice_is_refused() -> None:
    """Two members on one drive are one member."""
    with pytest.raises(InvalidArgument, match="twice"):
        with_lun(drives(3), Layout.RAID1, on=("d0", "d0"))


def test_a_lun_below_one_unit_is_refused() -> None:
    """1 MiB is what space is given out in."""
    with pytest.raises(InvalidArgument, match="too small"):
        geometry.place(drives(2), Request(name="v", layout=Layout.RAID1, size=Bytes(MIB - 1)), uuids())


def test_too_few_drives_are_told_from_too_little_space() -> None:
    """The remedies differ: another drive, or a larger one."""
    with pytest.raises(NotEnoughDrives, match="needs 3 drives"):
        with_lun(drives(2), Layout.RAID5)
    with pytest.raises(NotEnoughSpace, match="needs 65 MiB free on each; 0 of 2 have that"):
        with_lun(drives(2, 64), Layout.RAID1)
    with pytest.raises(NotEnoughSpace, match="64 MiB do not fit into the 60 MiB"):
        with_lun(drives(2, 30), Layout.LINEAR)


def test_a_grown_member_goes_on_where_it_ended() -> None:
    """Neighbouring extents become one."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    grown = geometry.extended(document, lun, Bytes(100 * MIB), uuids(0x9000))
    assert grown.members[0].data == (Extent(DATA_START + UNIT, 100 * UNIT),)
    assert grown.members[0].uuid == lun.members[0].uuid
    assert grown.size == 100 * UNIT


def test_a_linear_lun_grows_by_new_members() -> None:
    """Onto whatever drive has room; what is there stays where it is."""
    document, lun = with_lun(drives(2, 70), Layout.LINEAR)
    grown = geometry.extended(document, lun, Bytes(100 * MIB), uuids(0x9000))
    assert grown.members[0] == lun.members[0]
    assert names(document, lun) == ["d0"]
    assert names(document, grown) == ["d0", "d1"]
    assert grown.members[1].length == 36 * UNIT


@pytest.mark.parametrize("mib", [1, 63, 64])
def test_a_lun_does_not_shrink(mib: int) -> None:
    """Nor stay: the argument is the new size, and people mistake it for the difference."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    with pytest.raises(InvalidArgument, match="would not make it larger"):
        geometry.extended(document, lun, Bytes(mib * MIB), uuids(0x9000))


def test_a_lun_whose_drive_is_full_cannot_grow() -> None:
    """The message names the drive, for that one is to be emptied."""
    document, lun = with_lun(array(drive(0, 200), drive(1, 70)), Layout.RAID1)
    with pytest.raises(NotEnoughSpace, match="32 MiB more on drive 'd1', which has 5 MiB free"):
        geometry.extended(document, lun, Bytes(96 * MIB), uuids(0x9000))


def degraded(document: Document, layout: Layout = Layout.RAID1) -> tuple[Document, Lun]:
    """A LUN on d0 and d1 whose member on d0 is lost with its drive."""
    document, lun = with_lun(document, layout, on=("d0", "d1"))
    lun = with_states(lun, MemberState.FAILED)
    lost = msgspec.structs.replace(document.drives[0], status=DriveStatus.FAILED)
    return document.with_drive(lost).with_lun(lun), lun


def chosen(document: Document, lun: Lun, spare: str | None = None) -> str:
    length = lun.members[0].length
    return choose_substitute(document, lun, length, document.drive(spare) if spare else None).name


def test_the_smallest_hot_spare_that_fits_comes_first() -> None:
    """Larger spares are kept for larger members; plain free space for LUNs."""
    spares = [drive(3, 300, hot_spare=True), drive(4, 65, hot_spare=True), drive(5, 64, hot_spare=True)]
    assert chosen(*degraded(array(drive(0), drive(1), drive(2, 66), *spares))) == "d4"


def test_without_a_hot_spare_the_tightest_free_space_is_taken() -> None:
    """Where it leaves the least behind."""
    assert chosen(*degraded(array(drive(0), drive(1), drive(2, 300), drive(3, 80), drive(4, 64)))) == "d3"


def test_an_explicit_spare_is_taken_whatever_else_there_is() -> None:
    """Whoever names it has reasons."""
    plain = array(drive(0), drive(1), drive(2, 300), drive(3, hot_spare=True))
    assert chosen(*degraded(plain), spare="d2") == "d2"


def test_the_lost_member_s_own_drive_comes_last() -> None:
    """It failed once; it is better than nothing."""
    document, lun = degraded(drives(3))
    back = msgspec.structs.replace(document.drives[0], status=DriveStatus.ONLINE)
    assert chosen(document.with_drive(back), lun) == "d2"
    full = msgspec.structs.replace(document.drives[2], status=DriveStatus.FAILED)
    assert chosen(document.with_drive(back).with_drive(full), lun) == "d0"


def test_a_drive_with_another_member_is_never_the_substitute() -> None:
    """One drive's failure would take two members."""
    with pytest.raises(NotEnoughDrives, match="every drive"):
        chosen(*degraded(drives(2)))


def test_free_space_that_is_too_small_is_said_so() -> None:
    """There is a drive; what is missing is room for the data and one unit of metadata."""
    with pytest.raises(NotEnoughSpace, match="65 MiB"):
        chosen(*degraded(array(drive(0), drive(1), drive(2, 64))))


def test_an_explicit_spare_that_cannot_serve_is_refused() -> None:
    """No other is taken in its place: the operator would believe that the one named was used."""
    document, lun = degraded(array(drive(0), drive(1), drive(2, 64), drive(3), drive(4)))
    document = document.with_drive(msgspec.structs.replace(document.drive("d3"), status=DriveStatus.OFFLINE))
    with pytest.raises(InvalidArgument, match="serves LUN 'v' already"):
        chosen(document, lun, "d1")
    with pytest.raises(NotEnoughSpace, match="'d2' has 64 MiB free"):
        chosen(document, lun, "d2")
    with pytest.raises(NotEnoughDrives, match="'d3' is offline"):
        chosen(document, lun, "d3")


def suspected(document: Document, name: str, *, failures: int = 0, aside: bool = True) -> Document:
    """The array with a drive that has failed lately, and is set aside for it."""
    failing = "failed or went away 3 times within 24 hours" if aside else ""
    changed = msgspec.structs.replace(document.drive(name), failures=tuple(range(failures)), failing=failing)
    return document.with_drive(changed)


def test_a_drive_that_is_set_aside_is_given_nothing() -> None:
    """Neither a new LUN nor a substitute, although it has the most room, or is the hot spare."""
    document = suspected(array(drive(0), drive(1), drive(2, 900), drive(3)), "d2")
    assert set(names(*with_lun(document, Layout.RAID1))) <= {"d0", "d1", "d3"}
    assert names(*with_lun(document, Layout.LINEAR)) != ["d2"]
    spares = suspected(array(drive(0), drive(1), drive(2, hot_spare=True), drive(3)), "d2")
    assert chosen(*degraded(spares)) == "d3"


def test_a_drive_that_is_set_aside_is_refused_by_name() -> None:
    """Whoever names it is told why, and how to have it all the same."""
    document = suspected(drives(4), "d2")
    with pytest.raises(InvalidArgument, match="'d2' is set aside: failed or went away 3 times") as refused:
        with_lun(document, Layout.RAID1, on=("d0", "d2"))
    assert refused.value.remedy == "use another drive, or trust it again with: blkrecov drive trust d2"
    with pytest.raises(InvalidArgument, match="'d2' is set aside"):
        chosen(*degraded(document), spare="d2")


def test_a_member_on_a_drive_that_is_set_aside_does_not_grow() -> None:
    """That would be something more; a linear LUN goes on elsewhere."""
    document, lun = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    document = suspected(document, "d1")
    with pytest.raises(InvalidArgument, match="'d1' is set aside"):
        geometry.extended(document, lun, Bytes(100 * MIB), uuids(0x9000))
    document, lun = with_lun(drives(2), Layout.LINEAR, on=("d0",))
    grown = geometry.extended(suspected(document, "d0"), lun, Bytes(100 * MIB), uuids(0x9000))
    assert names(document, grown) == ["d0", "d1"]


def test_where_all_is_set_aside_that_is_said() -> None:
    """Else an operator with enough drives would be told that there are too few."""
    document = suspected(drives(3), "d2")
    with pytest.raises(NotEnoughDrives, match="there are 2; set aside for failing too often: d2"):
        with_lun(document, Layout.RAID5)
    with pytest.raises(NotEnoughDrives, match="could serve LUN 'v' are set aside: d2") as refused:
        chosen(*degraded(document))
    assert refused.value.remedy == "add a drive, or trust one again with: blkrecov drive trust d2"


def test_a_drive_without_recent_failures_is_preferred() -> None:
    """To a hot spare too: the next failure would cost another rebuild. One that failed is better than none."""
    document = suspected(array(drive(0), drive(1), drive(2, hot_spare=True), drive(3)), "d2", failures=1, aside=False)
    assert chosen(*degraded(document)) == "d3"
    document = suspected(document, "d3", failures=2, aside=False)
    assert chosen(*degraded(document)) == "d2"


# Any sequence of operations.

Operation = tuple[str, int, int, Layout]
operations = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("create", "create", "extend", "delete", "fail", "back", "substitute", "move", "arrive", "stay"),
                *("log", "shrink"),
            ]
        ),
        st.integers(0, 9),
        st.integers(1, 120),
        st.sampled_from(Layout),
    ),
    max_size=25,
)


def carried_out(document: Document, operation: Operation, number: int) -> Document:
    """The array after the operation, or as it was if the operation was refused."""
    word, which, mib, layout = operation
    ids = uuids(0x1000 * (number + 1))
    try:
        if word == "create":
            request = Request(name=f"v{number}", layout=layout, size=Bytes(mib * MIB))
            return provision.create(document, request, ids).document
        target = document.drives[which % len(document.drives)]
        if word == "fail":
            return provision.fail_drive(document, target.name).document
        if word == "back":
            return document.with_drive(msgspec.structs.replace(target, status=DriveStatus.ONLINE))
        if not document.luns:
            return document
        lun = document.luns[which % len(document.luns)]
        if word == "extend":
            return provision.extend(document, lun, Bytes(lun.bytes + mib * MIB), ids).document
        if word == "delete":
            return provision.delete(document, lun, ()).document
        if word == "move":
            away = document.drive_of(lun.members[mib % len(lun.members)].drive)
            moved = replace.propose(document, seen(document), lun, away, None, ids)[0].document
            return msgspec.structs.replace(moved, tasks=document.tasks)
        if word == "log":
            return document.with_lun(shadows.filled(document, lun, lun, ids))
        if word == "shrink":
            plain = msgspec.structs.replace(lun, restore=None)
            moving = any(member.successor is not None for member in lun.members)
            return document if moving else document.with_lun(geometry.shrunk(plain, min(mib * UNIT, lun.size)))
        if word == "arrive":
            return replace.finished(document, lun)
        if word == "stay":
            return replace.abandoned(document, lun)
        proposal, task = recover.propose(document, seen(document), lun, None, ids)
        after = proposal.document.lun_of(lun.uuid)
        ended = msgspec.structs.replace(task, state=TaskState.COMPLETED)
        return proposal.document.with_lun(recover.rebuilt(after)).with_task(ended)
    except BlkrecovError:
        return document


def assert_well_laid(document: Document) -> None:
    """What geometry's theory says always holds."""
    for target in document.drives:
        regions = geometry.used(document, target)
        for region in regions:
            assert region.extent.length > 0
            assert region.extent.start % UNIT == region.extent.length % UNIT == 0
            assert region.extent.start >= target.data_start
            assert region.extent.end <= target.data_start + target.data_length
        assert all(before.extent.end <= after.extent.start for before, after in pairwise(regions))
        taken = sum(region.extent.length for region in regions)
        assert geometry.free_length(document, target) + taken == target.data_length
    for lun in document.luns:
        if lun.layout is not Layout.LINEAR:
            moving = [member.successor.drive for member in lun.members if member.successor is not None]
            serving = [member.drive for member in lun.members]
            assert len({*serving, *moving}) == len(serving) + len(moving)
            assert len({member.length for member in lun.members}) == 1
        assert geometry.plex_length(lun) >= lun.size
        metas = [sum(piece.length for piece in member.meta) for member in lun.members]
        assert metas == [UNIT if lun.layout.fault_tolerant else 0] * len(metas)
    uuids_of_members = [member.uuid for lun in document.luns for member in lun.members]
    assert len(set(uuids_of_members)) == len(uuids_of_members)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(2, 150), min_size=2, max_size=8), operations)
def test_extents_never_overlap_whatever_is_done(sizes: list[int], sequence: list[Operation]) -> None:
    """Whole units, inside the data area, no two members of a LUN on one drive, after each operation."""
    document = array(*(drive(number, units) for number, units in enumerate(sizes)))
    for number, operation in enumerate(sequence):
        document = carried_out(document, operation, number)
        assert_well_laid(document)


@settings(max_examples=60, deadline=None)
@given(operations)
def test_hot_spares_are_for_failures_only(sequence: list[Operation]) -> None:
    """Creating and extending never touch them; once one serves (not while it is being copied to), it is a hot spare no more. A
    restore's log may be there for as long as it copies.
    """
    document = array(*(drive(number, 100) for number in range(4)), *(drive(n, 150, hot_spare=True) for n in (4, 5)))
    for number, operation in enumerate(sequence):
        document = carried_out(document, operation, number)
        for target in document.drives:
            regions = geometry.used(document, target)
            assert not target.hot_spare or all(region.arriving or region.member is None for region in regions)


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_growing_keeps_what_is_there_where_it_is(layout: Layout) -> None:
    """The first sectors of every member are its data; they cannot move."""
    document, lun = with_lun(drives(6), layout)
    grown = geometry.extended(document, lun, Bytes(150 * MIB), uuids(0x9000))
    for before, after in zip(lun.members, grown.members, strict=True):
        assert after.data[0].start == before.data[0].start
        assert after.data[0].length >= before.data[0].length
        assert after.meta == before.meta


def test_the_gaps_of_a_drive_are_what_nothing_lies_on() -> None:
    """In the order of its sectors; the space of a deleted LUN is free again."""
    document, first = with_lun(drives(2), Layout.RAID1, "v")
    document, _ = with_lun(document, Layout.RAID1, "w", mib=10)
    document = document.without_lun(first)
    assert geometry.free(document, document.drives[0]) == (
        Extent(DATA_START, 65 * UNIT),
        Extent(DATA_START + 76 * UNIT, 124 * UNIT),
    )


def test_neighbours_are_joined_and_others_are_not() -> None:
    """The order is the data's, and is kept."""
    pieces = (extent(4, 2), extent(6, 1), extent(0, 4), extent(9, 1))
    assert geometry.joined(pieces) == (extent(4, 3), extent(0, 4), extent(9, 1))


# The log of a restore.


def restored(document: Document, name: str = "v", source: str = "s") -> Document:
    """The LUN is about to be restored; its log has its place."""
    lun = document.lun(name)
    return document.with_lun(shadows.filled(document, lun, document.lun(source), uuids(0x8000)))


def test_a_log_lies_on_the_emptiest_drive() -> None:
    """A unit of it; hot spares come last, and are better than none. Not where it is not wanted."""
    document = array(drive(0, 40), drive(1, 60), drive(2, 90, hot_spare=True), drive(3, 50))
    assert geometry.place_log(document) == (document.drives[1], (Extent(DATA_START, UNIT),))
    avoid = frozenset(document.drives[number].uuid for number in (1, 3))
    assert geometry.place_log(document, avoid)[0].name == "d0"
    assert geometry.place_log(document, avoid | {document.drives[0].uuid})[0].name == "d2"


def test_a_log_lies_on_a_drive_that_works() -> None:
    """Neither on one that is away, nor on one that is set aside."""
    document = array(drive(0, 10), drive(1, 20), drive(2, 30))
    document = suspected(document, "d1")
    document = provision.fail_drive(document, "d2").document
    assert geometry.place_log(document)[0].name == "d0"
    with pytest.raises(NotEnoughSpace, match="no drive has 1 MiB free for the log of a copy"):
        geometry.place_log(document, frozenset([document.drives[0].uuid]))


def test_a_log_is_not_free_space() -> None:
    """It is nobody's member; the drive serves the LUN for as long as it is there."""
    document, _ = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    document, _ = with_plex(document, "s", on=("d0",))
    before = geometry.free_length(document, document.drive("d2"))
    document = restored(document)
    (region,) = geometry.used(document, document.drive("d2"))
    assert (region.extent, region.role, region.member, region.lun.name) == (extent(8, 1), Role.META, None, "v")
    assert geometry.free_length(document, document.drive("d2")) == before - UNIT
    assert document.drive("d2").uuid in document.lun("v").drives


def test_two_logs_lie_side_by_side() -> None:
    """Of two LUNs that are restored at once."""
    document, _ = with_lun(drives(1), Layout.LINEAR)
    document, _ = with_lun(document, Layout.LINEAR, "w")
    document, _ = with_plex(document, "s", mib=10)
    document = restored(restored(document), "w")
    assert_well_laid(document)
    assert sum(region.member is None for region in geometry.used(document, document.drives[0])) == 2


# Shrinking.


def places(lun: Lun) -> list[tuple[UUID, int]]:
    """Where each chunk of a member's data lies, member by member in the order of its sectors: drive and sector, in units."""
    return [
        (member.drive, sector)
        for member in lun.members
        for piece in member.data
        for sector in range(piece.start, piece.end, UNIT)
    ]


def place_of(lun: Lun, unit: int) -> list[tuple[UUID, int]]:
    """Where a unit of a LUN's contents lies: of a linear one its place, else that of its row in every member."""
    if lun.layout is Layout.LINEAR:
        return [places(lun)[unit]]
    row = unit // lun.layout.data_members(len(lun.members))
    return [places(msgspec.structs.replace(lun, members=(member,)))[row] for member in lun.members]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(Layout),
    st.lists(st.integers(1, 30), min_size=6, max_size=8),
    st.integers(1, 60),
    st.lists(st.integers(1, 40), max_size=3),
    st.data(),
)
def test_a_shrunk_lun_keeps_what_is_left_of_it_where_it_is(
    layout: Layout, sizes: list[int], mib: int, growth: list[int], data: st.DataObject
) -> None:
    """However its members are scattered: what is left is where it was, the rest is free, and nothing overlaps."""
    document = array(*(drive(number, units) for number, units in enumerate(sizes)))
    for number, more in enumerate((mib, *growth)):
        request = Request(name="v", layout=layout, size=Bytes(more * MIB))
        with suppress(BlkrecovError):
            if number == 0:
                document = provision.create(document, request, uuids(0x1000)).document
            else:
                size = Bytes(document.lun("v").bytes + more * MIB)
                document = provision.extend(document, document.lun("v"), size, uuids(0x1000 * (number + 2))).document
        with suppress(BlkrecovError):
            document, _ = with_lun(document, Layout.LINEAR, f"w{number}", mib=1, start=0x9000 + 0x100 * number)
    assume(any(lun.name == "v" for lun in document.luns))
    before = document.lun("v")
    units = data.draw(st.integers(1, before.size // UNIT))
    after = geometry.shrunk(before, units * UNIT)
    assert after.size == units * UNIT
    assert [place_of(after, unit) for unit in range(units)] == [place_of(before, unit) for unit in range(units)]
    assert set(places(after)) <= set(places(before))
    assert [member.meta for member in after.members] == [member.meta for member in before.members][: len(after.members)]
    assert_well_laid(document.with_lun(after))
    # No more is kept than a LUN of that size would have been given.
    assert after.members[0].length == (
        before.members[0].length
        if layout is Layout.LINEAR and len(after.members) > 1
        else member_length(layout, units * UNIT, len(after.members))
    )


def test_a_shrunk_linear_lun_gives_up_whole_members() -> None:
    """And the end of the last one that is left."""
    _, lun = with_lun(array(drive(0, 40), drive(1, 30)), Layout.LINEAR)
    assert [member.length // UNIT for member in geometry.shrunk(lun, 50 * UNIT).members] == [40, 10]
    assert [member.length // UNIT for member in geometry.shrunk(lun, 40 * UNIT).members] == [40]
    assert [member.length // UNIT for member in geometry.shrunk(lun, 7 * UNIT).members] == [7]


def test_a_lun_as_long_as_it_shall_be_is_the_same() -> None:
    """Nothing to give up."""
    for layout in Layout:
        _, lun = with_lun(drives(6), layout)
        assert geometry.shrunk(lun, lun.size) == lun


def test_a_linear_plex_is_its_members_together() -> None:
    """Of any lengths."""
    _, lun = with_lun(array(drive(1, 40), drive(2, 30)), Layout.LINEAR)
    assert geometry.plex_length(lun) == Sectors(64 * UNIT)
