"""Runs of changed sectors, held against plain sets of sectors; and how they are copied."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from random import Random
from time import perf_counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from blkrecov import changes
from blkrecov.changes import (
    MANY_REGIONS,
    Part,
    Runs,
    choose_region,
    data_of,
    dirty_regions,
    divide,
    from_chunks,
    rounded,
    total,
    union,
    whole,
)
from blkrecov.geometry import plex_length
from blkrecov.model import Extent, Layout, Lun
from blkrecov.units import GIB, MIB, SECTOR, TIB, Sectors
from tests.unit.arrays import drives, with_lun

LENGTH = 200
MIB_SECTORS = MIB // SECTOR
SETS = st.frozensets(st.integers(0, LENGTH - 1), max_size=40)
POWERS = st.sampled_from([1, 2, 4, 8, 64])


def runs(*bounds: tuple[int, int]) -> Runs:
    """Runs of these starts and ends."""
    return tuple(Extent(start, end - start) for start, end in bounds)


def of(sectors: Iterable[int]) -> Runs:
    """The runs of a set of sectors, found one sector at a time."""
    there = set(sectors)
    starts = sorted(sector for sector in there if sector - 1 not in there)
    ends = sorted(sector + 1 for sector in there if sector + 1 not in there)
    return runs(*zip(starts, ends, strict=True))


def touched(sectors: Iterable[int], region: int) -> set[int]:
    return {sector // region for sector in sectors}


def regions(numbers: Iterable[int], region: int, length: int) -> Runs:
    return of(sector for sector in range(length) if sector // region in set(numbers))


def test_neighbouring_chunks_are_one_run() -> None:
    """In whatever order they come; the last chunk of all may be cut short."""
    assert from_chunks([12, 4, 3, 0], 8, 100) == runs((0, 8), (24, 40), (96, 100))


@given(st.lists(st.integers(0, 30)), st.integers(1, 20), st.integers(1, LENGTH))
def test_chunks_are_their_sectors(numbers: list[int], chunk: int, length: int) -> None:
    """Those that lie behind the end are none."""
    assert from_chunks(numbers, chunk, length) == regions(numbers, chunk, length)


def test_nothing_has_no_run() -> None:
    """A run is never empty."""
    assert (from_chunks([], 8, 100), whole(0), union(), union((), ())) == ((), (), (), ())
    assert total(()) == 0


@given(st.lists(SETS, max_size=4))
def test_a_union_has_what_is_in_any(sets: list[frozenset[int]]) -> None:
    """Runs that overlap or touch become one."""
    assert union(*(of(sectors) for sectors in sets)) == of(frozenset().union(*sets))


@given(SETS)
def test_the_sectors_of_runs_are_counted(sectors: frozenset[int]) -> None:
    """Each once, as runs do not overlap."""
    assert total(of(sectors)) == len(sectors)


@given(st.integers(1, LENGTH))
def test_a_whole_is_all_of_it(length: int) -> None:
    """One run."""
    assert whole(length) == of(range(length))


@given(SETS, st.integers(1, 50), st.integers(1, LENGTH))
def test_rounded_runs_are_the_regions_that_are_touched(sectors: frozenset[int], region: int, length: int) -> None:
    """Whole regions, but for one that reaches over the end."""
    assert rounded(of(sectors), region, length) == regions(touched(sectors, region), region, length)


def linear(*lengths: int) -> Lun:
    """A linear LUN on drives of so many MiB, all of them used."""
    document = drives(0)
    for index, length in enumerate(lengths):
        document = document.with_drive(drives(index + 1, length).drives[index])
    return with_lun(document, Layout.LINEAR, mib=sum(lengths))[1]


def striped(layout: Layout, members: int) -> Lun:
    """A LUN of few MiB, in chunks of 64 KiB."""
    return with_lun(drives(members), layout, mib=4, members=members)[1]


def test_members_of_a_linear_lun_lie_one_after_the_other() -> None:
    """A run that goes from one member to the next is one."""
    lun = linear(2, 3)
    first, second = (member.length for member in lun.members)
    data = {0: runs((0, 8), (first - 8, first)), 1: runs((0, 16), (100, second))}
    assert data_of(lun, data, lun.size) == runs((0, 8), (first - 8, first + 16), (first + 100, first + second))


def test_a_linear_lun_s_member_that_is_not_known_is_data() -> None:
    """The others' holes are holes still."""
    lun = linear(2, 3)
    start = lun.members[0].length
    assert data_of(lun, {0: runs((0, 8))}, lun.size) == runs((0, 8), (start, lun.size))


def test_one_member_of_a_mirror_is_enough() -> None:
    """The first that is given: one that is not in sync is not."""
    lun = striped(Layout.RAID1, 3)
    assert data_of(lun, {2: runs((8, 16)), 1: runs((0, 1))}, lun.size) == runs((8, 16))


@pytest.mark.parametrize("layout", [layout for layout in Layout if layout is not Layout.LINEAR])
def test_of_a_lun_without_known_members_all_is_data(layout: Layout) -> None:
    """A drive that cannot tell of holes."""
    lun = striped(layout, 4)
    assert data_of(lun, {}, lun.size) == whole(lun.size)


@pytest.mark.parametrize(
    ("layout", "members", "width"),
    [
        (Layout.RAID0, 3, 3),
        (Layout.RAID4, 3, 2),
        (Layout.RAID5, 4, 3),
        (Layout.RAID6, 5, 3),
        (Layout.RAID10, 4, 2),
    ],
)
def test_a_row_is_data_where_any_member_is(layout: Layout, members: int, width: int) -> None:
    """Rows of chunks of 128 sectors: number 0 by member 0, 2 and 3 by a run of the last."""
    lun = striped(layout, members)
    data = {**dict.fromkeys(range(members), ()), 0: runs((5, 6)), members - 1: runs((300, 400))}
    assert data_of(lun, data, plex_length(lun)) == runs((0, 128 * width), (256 * width, 512 * width))


@pytest.mark.parametrize("layout", [Layout.RAID0, Layout.RAID5, Layout.RAID10])
def test_a_striped_lun_is_all_data_when_a_member_is_not_known(layout: Layout) -> None:
    """Any row may have something on it."""
    lun = striped(layout, 4)
    assert data_of(lun, {0: (), 1: (), 3: ()}, lun.size) == whole(lun.size)


@pytest.mark.parametrize("layout", list(Layout))
def test_data_ends_with_the_lun(layout: Layout) -> None:
    """The plex may be larger: members are whole units."""
    lun = with_lun(drives(6), layout, mib=5, members=None if layout is Layout.LINEAR else 6)[1]
    everything = {index: whole(member.length) for index, member in enumerate(lun.members)}
    assert data_of(lun, everything, lun.size) == whole(lun.size)


@given(st.data(), st.sampled_from([layout for layout in Layout if layout not in (Layout.LINEAR, Layout.RAID1)]))
def test_rows_are_found_like_one_at_a_time(data: st.DataObject, layout: Layout) -> None:
    """For every member a set of chunks that hold something."""
    lun = striped(layout, 4)
    rows = lun.members[0].length // lun.chunk
    chunks = [data.draw(st.frozensets(st.integers(0, rows - 1))) for _ in lun.members]
    known = {index: from_chunks(held, lun.chunk, lun.members[0].length) for index, held in enumerate(chunks)}
    row = lun.chunk * layout.data_members(4)
    assert data_of(lun, known, lun.size) == from_chunks(frozenset().union(*chunks), row, lun.size)


@pytest.mark.parametrize(
    ("mib", "region", "starts"),
    [
        (1, 2048, [0]),
        (31, 2048, [0]),
        (32, 2048, [0, 16]),
        (64, 2048, [0, 16, 32, 48]),
        (67, 8192, [0, 16, 32, 48]),
        (100, 128, [0, 16, 32, 48, 64, 80]),
        (103, 8192, [0, 16, 32, 48, 64, 80]),
        (103, 128, [0, 17, 34, 51, 68, 85]),
        (130, 65536, [0, 32, 64, 96]),
        (800, 128, list(range(0, 800, 50))),
    ],
)
def test_how_a_length_is_divided(mib: int, region: int, starts: list[int]) -> None:
    """Into sixteen parts, of 16 MiB or more."""
    parts = divide(mib * MIB_SECTORS, region)
    assert [part.start // MIB_SECTORS for part in parts] == starts
    assert {part.region for part in parts} == {region}


@pytest.mark.parametrize(("dirty", "count"), [(0, 1), (1, 1), (95, 1), (96, 2), (767, 15), (768, 16), (10**6, 16)])
def test_a_mirror_target_is_worth_its_making_for_so_many_regions(dirty: int, count: int) -> None:
    """Each has a device of its own for its log: 32 regions and more, and no more than sixteen."""
    assert changes.parts(dirty) == count


SIX = [0, 16, 32, 48, 64, 80]


@pytest.mark.parametrize(("most", "starts"), [(0, SIX), (3, [0, 33, 66]), (1, [0]), (16, SIX)])
def test_a_length_is_divided_no_further_than_is_asked_for(most: int, starts: list[int]) -> None:
    """Nor further than it would be."""
    assert [part.start // MIB_SECTORS for part in divide(100 * MIB_SECTORS, 128, most)] == starts


@given(
    st.integers(2, 64 * GIB // SECTOR), st.integers(1, 20).map(lambda power: 2**power), st.integers(0, changes.PARTS)
)
def test_parts_hold_all_and_mirror_targets_take_them(length: int, region: int, most: int) -> None:
    """No part is shorter than a region, which the kernel would refuse; and none begins in the midst of one."""
    assume(region <= length)
    parts = divide(length, region, most)
    assert parts[0].start == 0
    assert parts[-1].end == length
    assert all(part.end == following.start for part, following in pairwise(parts))
    assert all(part.start % max(region, MIB_SECTORS) == 0 for part in parts)
    assert all(part.length >= max(region, 16 * MIB_SECTORS) for part in parts) or len(parts) == 1
    assert max(part.length for part in parts) == parts[-1].length
    assert len(parts) <= (most or changes.PARTS)


@pytest.mark.parametrize(("length", "region"), [(2048, 3000), (2048, 4096), (2048, 0)])
def test_a_region_that_no_target_takes_is_a_mistake(length: int, region: int) -> None:
    """The caller chose it."""
    with pytest.raises(AssertionError):
        divide(length, region)


def test_scattered_changes_are_copied_in_small_regions() -> None:
    """One chunk in 16 MiB: whatever else a region holds is copied for nothing."""
    length = GIB // SECTOR
    scattered = from_chunks(range(0, length // 32, 1024), 32, length)
    assert choose_region(scattered, length, 128) == 128


def test_what_has_changed_altogether_is_copied_in_large_regions() -> None:
    """4 MiB, and no larger ones."""
    assert choose_region(whole(GIB // SECTOR), GIB // SECTOR, 128) == 8192


def test_a_region_is_not_longer_than_a_small_lun() -> None:
    """The kernel refuses that."""
    assert choose_region(whole(MIB_SECTORS), MIB_SECTORS, 128) == MIB_SECTORS


@pytest.mark.parametrize(
    ("size", "region"), [(GIB, 128), (512 * GIB, 512), (2 * TIB, 2048), (8 * TIB, 8192), (32 * TIB, 32768)]
)
def test_a_part_s_log_is_kept_short(size: int, region: int) -> None:
    """2^17 regions and no more, whatever has changed."""
    length = size // SECTOR
    assert choose_region(runs((0, 8)), length, 128) == region
    assert max(part.regions for part in divide(length, region)) <= MANY_REGIONS


@given(st.frozensets(st.integers(0, 2047), max_size=12), st.sampled_from([2, 8, 32]))
def test_the_region_with_the_least_estimate_is_chosen(chunks: frozenset[int], least: int) -> None:
    """1.5 ms for each dirty region, and 400 MB a second."""
    length = 64 * MIB_SECTORS
    candidates = [least * 2**power for power in range(14) if least * 2**power <= 8192]

    def estimate(region: int) -> float:
        return len(touched((chunk * 64 for chunk in chunks), region)) * (0.0015 + region * 512 / 400e6)

    # Chunks of 64 sectors at their own size; smaller regions of one are all dirty.
    changed = from_chunks(chunks, 64, length)
    best = min(candidates, key=lambda region: estimate(region) * max(64 // region, 1))
    assert choose_region(changed, length, least) == best


def test_a_million_runs_do_not_keep_anybody_waiting() -> None:
    """A busy LUN's snapshot holds so many; what is done to them takes a second or two."""
    length = 256 * GIB // SECTOR
    chunks = Random(1).sample(range(length // 32), 1_000_000)

    def timed(work: Callable[[], object]) -> float:
        before = perf_counter()
        work()
        return perf_counter() - before

    changed = from_chunks(chunks, 32, length)
    assert timed(lambda: choose_region(changed, length, 128)) < 5


def test_a_part_counts_its_own_regions() -> None:
    """A run that begins before the part, two in one region, one beyond."""
    part = Part(Sectors(100), Sectors(90), Sectors(16))
    assert part.regions == 6
    assert list(dirty_regions(runs((90, 101), (120, 125), (130, 134), (189, 300), (400, 500)), part)) == [0, 1, 2, 5]


@given(SETS, st.integers(0, LENGTH), st.integers(1, LENGTH), POWERS)
def test_dirty_regions_are_those_that_are_touched(
    sectors: frozenset[int], start: int, length: int, region: int
) -> None:
    """Each once, and in order, as a log is seeded with them."""
    part = Part(Sectors(start), Sectors(length), Sectors(region))
    inside = (sector - start for sector in sectors if start <= sector < start + length)
    assert list(dirty_regions(of(sectors), part)) == sorted(touched(inside, region))
