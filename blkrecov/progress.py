"""Progress that is true: between the kernel's coarse ratio and the fine counters of the members' devices. Pure.

md tells of its position when a sixteenth of the members has been done, or after a few minutes (drivers/md/md.c, md_do_sync(),
curr_resync_completed), so on large drives its ratio stands still for hours. The devices' own counters move with every
request, but they also count what the host reads and writes meanwhile, and what was moved before we looked. So the counters
say where between two of the kernel's steps the work is, and never more than that.
"""

from dataclasses import dataclass, replace
from typing import Final, Self

STEP: Final = 1 / 16


@dataclass(frozen=True, slots=True)
class Meter:
    """How far one phase of a task is. Values in, a new meter out; the fraction never falls.

    `since` is the fraction at the first look, `count` what the counters said then, in sectors.
    """

    since: float
    count: int
    fraction: float

    @classmethod
    def begun(cls, ratio: float, count: int, total: int = 0) -> Self:
        """At the first look; counters are those of all members that are worked on, together.

        With a `total`, the counters have counted this phase from its beginning: substitutes' devices are made for it. So another
        process that looks sees no less than the first. After a restart of the machine they begin anew, and the ratio decides.
        """
        since = min(max(count / total, ratio), ratio + STEP, 1.0) if total else ratio
        return cls(since=since, count=count, fraction=since)

    def moved(self, ratio: float, count: int, total: int) -> Self:
        """`ratio` is the kernel's (0 to 1), `count` what the counters say now, `total` what the whole phase moves."""
        counted = self.since + (count - self.count) / total if total else ratio
        fraction = min(max(counted, ratio), ratio + STEP, 1.0)
        return replace(self, fraction=max(self.fraction, fraction))
