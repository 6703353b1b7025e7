"""How fast a synchronisation may be: as fast as it can while nobody else uses the drives, and out of the way when somebody does.

The kernel's own way of giving way is not enough. md looks only at I/O through the legs of the array that it synchronises
(drivers/md/md.c, is_mddev_idle()), so other LUNs on the same drives go unnoticed; and its stock ceiling of 200 MB/s holds up an
idle machine. So its limits follow what is seen, sample by sample:

    nobody else           the ceiling, after a while of quiet
    somebody, disturbed   half of what it was, down to the floor
    somebody, at ease     a little more every second

"Disturbed" is: tasks wait for I/O (PSI), or nobody can tell whether they do, or there is much of it. The last, because PSI sees
this machine's tasks only: those of an initiator elsewhere, or of a virtual machine, do not wait here.

md measures its speed over the last 27 to 30 seconds (SYNC_MARKS, SYNC_MARK_STEP). A lower limit therefore stops a synchronisation
that was fast, for as long as its average is above that limit; a higher one is felt within half a second (md_do_sync() sleeps for
so long). That is what giving way wants. But the speed that is measured after a lowering says nothing of what was asked for: each
halving is one of the limit, and of the fastest speed seen where no limit held.

No clock and no file in here: samples in, limits out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

from blkrecov.units import KIB, MIB, TIB, Bytes

# As fast as it can. md keeps a limit as an int of KiB/s, so 2 TiB/s would be too much for it.
CEILING: Final = Bytes(TIB)
# A day regenerates nearly a terabyte even if the drives are never left alone, and a hard disk that streams 100 to 250 MB/s keeps
# more than nine tenths of its time for its users. md's stock minimum, a tenth of it, would leave a LUN degraded for weeks.
FLOOR: Final = Bytes(10 * MIB)
# md's stock minimum, below which it gives way to nobody (drivers/md/md.c, sysctl_speed_limit_min).
MD_MINIMUM: Final = Bytes(1000 * KIB)

NOISE: Final = Bytes(64 * KIB)
"""Per second: less than this by others is nobody. Sixteen random reads of 4 KiB are somebody to a hard disk."""
MUCH: Final = FLOOR
"""Per second: this much by others is a user of the drives, whether or not any task of this machine waits for it."""
UNDER_PRESSURE: Final = 10.0
AT_EASE: Final = 5.0
"""Percent of the time in which some task waits for I/O. In between nothing is changed."""
SHORTEST_S: Final = 0.5
"""Samples that are closer together are not compared."""
QUIET_S: Final = 2.0
"""So long nobody else must have been there before all brakes are off."""
LONGEST_QUIET_S: Final = 16.0
RELAPSE_S: Final = 10.0
"""Who comes back so soon after the brakes were let off comes regularly: the next quiet has to be twice as long."""
HOLD_S: Final = 5.0
"""So long after a lowering there is no rise for those who are at ease: PSI is an average over ten seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """md's limits in bytes per second and member: what it keeps to whatever others do, and what it never exceeds."""

    minimum: Bytes
    maximum: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the kernel has counted at one moment. Only differences between samples mean anything."""

    at_s: float
    """Of a clock that never goes back."""
    foreign: int
    """Bytes that others than the synchronisations moved on their drives: at least these, and at most `doubt` more."""
    moved: Mapping[str, int]
    """Bytes that went through each leg of the LUNs that are synchronised."""
    devices: frozenset[str] = frozenset()
    """All that was counted. Sums over other devices cannot be compared with these."""
    doubt: int = 0
    pressure: float | None = None
    """PSI's "some avg10" for I/O, in percent; None where the kernel does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Governor:
    """Decides by samples: `governor = governor.after(sample)`, then `governor.limits`.

    `rate_min` and `rate_max` are what is wanted, in bytes per second, 0 for no wish. `usual_minimum` is md's minimum as this
    machine has it. The rest is memory.
    """

    rate_min: int = 0
    rate_max: int = 0
    usual_minimum: int = MD_MINIMUM
    limit: int = CEILING
    last: Sample | None = None
    fastest: int = 0
    """Bytes per second and member: the fastest that was seen."""
    busy_s: float = float("-inf")
    """When somebody else was there last."""
    lowered_s: float = float("-inf")
    freed_s: float = float("-inf")
    """When the brakes were let off last."""
    patience_s: float = QUIET_S

    @property
    def ceiling(self) -> int:
        return min(self.rate_max or CEILING, CEILING)

    @property
    def floor(self) -> int:
        return min(self.rate_min or max(FLOOR, self.usual_minimum), self.ceiling)

    @property
    def limits(self) -> Limits:
        maximum = max(self.floor, min(self.limit, self.ceiling))
        return Limits(minimum=Bytes(min(self.rate_min or self.usual_minimum, maximum)), maximum=Bytes(maximum))

    def after(self, sample: Sample) -> Self:
        """With one more sample. One of other devices than the last is another beginning, and changes nothing."""
        if self.last is None or (sample.devices, sample.moved.keys()) != (self.last.devices, self.last.moved.keys()):
            return replace(self, last=sample)
        elapsed = sample.at_s - self.last.at_s
        if elapsed < SHORTEST_S:
            return self
        foreign = (sample.foreign - self.last.foreign - self.last.doubt) / elapsed
        speed = max((sample.moved[leg] - self.last.moved[leg] for leg in sample.moved), default=0) / elapsed
        seen = replace(self, last=sample, fastest=max(self.fastest, int(speed)))
        if foreign < NOISE:
            return seen._undisturbed(sample.at_s)
        if sample.pressure is None or sample.pressure >= UNDER_PRESSURE or foreign >= MUCH:
            return seen._lowered(sample.at_s)
        if sample.pressure < AT_EASE:
            return seen._raised(sample.at_s, elapsed)
        return replace(seen, busy_s=sample.at_s)

    @property
    def _free(self) -> bool:
        return self.limit >= self.ceiling

    def _undisturbed(self, now_s: float) -> Self:
        if self._free or now_s - self.busy_s < self.patience_s:
            return self
        return replace(self, limit=CEILING, freed_s=now_s)

    def _lowered(self, now_s: float) -> Self:
        patience_s = self.patience_s
        if self._free:
            relapse = now_s - self.freed_s < RELAPSE_S
            patience_s = min(2 * patience_s, LONGEST_QUIET_S) if relapse else QUIET_S
        limit = max(self.floor, min(self.limit, self.ceiling, self.fastest) // 2)
        return replace(self, limit=limit, busy_s=now_s, lowered_s=now_s, patience_s=patience_s)

    def _raised(self, now_s: float, elapsed_s: float) -> Self:
        busy = replace(self, busy_s=now_s)
        if self._free or now_s - self.lowered_s < HOLD_S:
            return busy
        limit = self.limit + int(FLOOR * elapsed_s)
        # Above what it can do a limit is none.
        return replace(busy, limit=limit) if limit < self.fastest else replace(busy, limit=CEILING, freed_s=now_s)
