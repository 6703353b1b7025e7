"""Runs of changed sectors, and how dm-mirror is to copy them.

Not all of a LUN has to be copied when it is known what has changed (the chunks in a snapshot's store) or what was never written
(the holes of the drives' files). Both become runs of the LUN's sectors here. Then the regions are chosen in which dm-mirror
copies, for it knows nothing smaller; its dirty logs say which of them.

What always holds: runs are sorted, not empty, and neither overlap nor touch each other; what is done to them may add sectors that
have not changed, and never drops one that has.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Final, TypeAlias

from blkrecov.model import UNIT, Extent, Layout, Lun
from blkrecov.units import MIB, SECTOR, Sectors, in_bytes, round_down, round_up

Runs: TypeAlias = tuple[Extent, ...]

# A mirror target copies one region at a time. Several side by side are faster (stack.py).
PARTS: Final = 16
REGIONS_EACH: Final = 48
PART: Final = Sectors(16 * MIB // SECTOR)
# A target rewrites all of its log twice for each region that it copies: that is kept short.
MANY_REGIONS: Final = 2**17
# Eight pieces of 512 KiB are under way at a time (drivers/md/dm-kcopyd.c): a larger region is copied no faster.
LARGE_REGION: Final = Sectors(4 * MIB // SECTOR)
# Estimates, of which only the ratio matters: what a region costs however small it is (its log is written twice, the legs are
# flushed), and how fast what it holds is copied.
REGION_S: Final = 0.0015
BYTES_PER_S: Final = 400_000_000

_ENDLESS: Final = 2**64  # The kernel's sector numbers end before it.


def from_chunks(chunks: Iterable[int], chunk: int, length: int) -> Runs:
    """The chunks with these numbers, each of `chunk` sectors, as far as they lie within `length` sectors."""
    return _joined(((number * chunk, (number + 1) * chunk) for number in sorted(chunks)), length)


def whole(length: int) -> Runs:
    """All of `length` sectors."""
    return _joined([(0, length)], length)


def union(*runs: Runs) -> Runs:
    """What is in any of them."""
    every = sorted(chain.from_iterable(runs), key=attrgetter("start"))
    return _joined((run.start, run.end) for run in every)


def total(runs: Runs) -> int:
    """Their sectors."""
    return sum(run.length for run in runs)


def rounded(runs: Runs, region: int, length: int) -> Runs:
    """The regions of `region` sectors that the runs touch, as far as they lie within `length` sectors."""
    return _joined(((round_down(run.start, region), round_up(run.end, region)) for run in runs), length)


def data_of(lun: Lun, data: Mapping[int, Runs], length: int) -> Runs:
    """What of a LUN's first `length` sectors may hold anything but zeros.

    `data` has for members, by their index, what of their own sectors is no hole; only for members that are in sync. Of a mirror
    one is enough, and the first that is given is taken. In other layouts, one that is not given may hold anything anywhere.
    """
    match lun.layout:
        case Layout.RAID1:
            return _joined(_bounds(next(iter(data.values()), whole(length))), length)
        case Layout.LINEAR:
            return _joined(_one_after_the_other(lun, data), length)
        case _:
            return _rows(lun, data, length)


def _one_after_the_other(lun: Lun, data: Mapping[int, Runs]) -> Iterator[tuple[int, int]]:
    offset = 0
    for index, member in enumerate(lun.members):
        for run in data.get(index, whole(member.length)):
            yield offset + run.start, offset + run.end
        offset += member.length


def _rows(lun: Lun, data: Mapping[int, Runs], length: int) -> Runs:
    """Rows are one chunk of every member. Where all of them have a hole it is zero, wherever its parity or its copies lie."""
    if any(index not in data for index in range(len(lun.members))):
        return whole(length)
    rows = rounded(union(*data.values()), lun.chunk, lun.members[0].length)
    width = lun.layout.data_members(len(lun.members))
    return _joined(((row.start * width, row.end * width) for row in rows), length)


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of sectors that one mirror target copies, region by region."""

    start: Sectors
    length: Sectors
    region: Sectors

    @property
    def end(self) -> Sectors:
        return Sectors(self.start + self.length)

    @property
    def regions(self) -> int:
        return -(-self.length // self.region)


def parts(dirty: int) -> int:
    """How many mirror targets are worth their making for so many dirty regions: each has a log, which is a device of its own."""
    return min(max(dirty // REGIONS_EACH, 1), PARTS)


def divide(length: int, region: int, most: int = 0) -> tuple[Part, ...]:
    """How `length` sectors are shared out to mirror targets, `most` of them at most; PARTS, where it does not say.

    Parts begin where regions do, and none is longer than the last.

    `region` is a power of two from 2 to `length`: the kernel takes no other (drivers/md/dm-log.c, _check_region_size()).
    """
    assert region.bit_count() == 1, f"regions of {region} sectors"
    assert region <= length, f"a region of {region} sectors in {length}"
    count = min(max(length // max(region, PART), 1), most or PARTS)
    each = round_down(length // count, max(region, UNIT)) if count > 1 else length
    starts = [number * each for number in range(count)]
    ends = (*starts[1:], length)
    return tuple(
        Part(Sectors(start), Sectors(end - start), Sectors(region)) for start, end in zip(starts, ends, strict=True)
    )


def is_too_fine(length: int, region: int, most: int = 0) -> bool:
    """Whether a part would have more regions than a log is to have."""
    return divide(length, region, most)[-1].regions > MANY_REGIONS


def choose_region(runs: Runs, length: int, least: int) -> int:
    """Sectors of the regions in which these runs are copied soonest, of all powers of two from `least` to LARGE_REGION.

    Small regions copy little that has not changed, large ones are few. Where a part would have more than MANY_REGIONS, larger
    ones are taken whatever that costs, above LARGE_REGION even. `least` is a power of two and not above `length`.
    """
    region = least
    while is_too_fine(length, region):
        region *= 2
    times: dict[int, float] = {}
    while not times or region <= min(LARGE_REGION, length):
        # What is dirty in small regions is dirty in large ones, so there is less to look through each time.
        runs = rounded(runs, region, length)
        dirty = -(-total(runs) // region)
        times[region] = dirty * (REGION_S + in_bytes(Sectors(region)) / BYTES_PER_S)
        region *= 2
    return min(times, key=times.__getitem__)


def dirty_regions(runs: Runs, part: Part) -> Iterator[int]:
    """The numbers, ascending, of a part's regions that the runs touch; the part's first is 0."""
    following = 0
    for index in range(bisect_right(runs, part.start, key=attrgetter("end")), len(runs)):
        run = runs[index]
        if run.start >= part.end:
            break
        first = max(run.start - part.start, 0) // part.region
        end = -(-(min(run.end, part.end) - part.start) // part.region)
        yield from range(max(first, following), end)
        following = end


def _bounds(runs: Runs) -> Iterator[tuple[int, int]]:
    return ((run.start, run.end) for run in runs)


def _joined(bounds: Iterable[tuple[int, int]], length: int = _ENDLESS) -> Runs:
    """Runs of these starts and ends, which come by their starts, as far as they lie within `length` sectors."""
    runs = []
    start = end = 0
    for other, its_end in bounds:
        if other >= length:
            break
        if other > end:
            if end:
                runs.append(Extent(start, end - start))
            start = other
        if its_end > end:
            end = its_end
    if end:
        runs.append(Extent(start, min(end, length) - start))
    return tuple(runs)
