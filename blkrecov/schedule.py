"""When LUNs are scrubbed without being asked for it. Pure: the clock arrives as an argument.

A scrub finds what no read of the host's would: a copy, or parity, that nobody looks at until the other copy is lost. Only a LUN
that is whole can be compared with itself, and one whose initial synchronisation has not ended disagrees with itself by right.
A LUN that was never scrubbed is due at the first chance.
"""

from collections.abc import Mapping
from typing import Final

from blkrecov.model import Document, Lun, MemberState, Schedule

DAY: Final = 24 * 60 * 60
PERIOD_S: Final[Mapping[Schedule, int]] = {Schedule.WEEKLY: 7 * DAY, Schedule.MONTHLY: 30 * DAY}


def due(document: Document, now: int) -> tuple[Lun, ...]:
    """The LUNs to scrub at `now` (seconds since 1970): the one whose last scrub is the longest ago first."""
    period = PERIOD_S.get(document.scrub)
    if period is None:
        return ()
    ripe = [lun for lun in _scrubbable(document) if _due_at(lun, period, now) <= now]
    return tuple(sorted(ripe, key=lambda lun: _scrubbed(lun, now)))


def next_due(document: Document, now: int) -> int | None:
    """When the next LUN is due, in seconds since 1970: `now` if one is already, None if none will ever be as things are.

    A LUN that is busy or not whole counts again when it no longer is, so ask again when the document has changed.
    """
    period = PERIOD_S.get(document.scrub)
    if period is None:
        return None
    return min((max(now, _due_at(lun, period, now)) for lun in _scrubbable(document)), default=None)


def _scrubbable(document: Document) -> list[Lun]:
    return [
        lun
        for lun in document.luns
        if lun.layout.fault_tolerant
        and lun.initialised
        and all(member.state is MemberState.IN_SYNC for member in lun.members)
        and document.task_on(lun.uuid) is None
    ]


def _due_at(lun: Lun, period: int, now: int) -> int:
    scrubbed = _scrubbed(lun, now)
    return scrubbed + period if scrubbed else 0


def _scrubbed(lun: Lun, now: int) -> int:
    """A scrub in the future was noted by a clock that was wrong. It counts for nothing, else the next would come years late."""
    return lun.scrubbed if lun.scrubbed <= now + DAY else 0
