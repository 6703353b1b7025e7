"""Waiting until md's sync thread has begun.

A dm-raid device that was resumed (or told to check) with something to synchronise must not be suspended or removed before its
sync thread has had its first turn. On Linux 6.1.176 the machine panics otherwise ("Segfault with no mm" in mdX_resync, called
from md_thread()): removing the device at once did so in the first few dozen tries for raid1, raid5 and raid10; so did a suspend
before the removal, and the message "frozen". After the first read by the sync thread, hundreds of removals in a row were
harmless. By the look of it drivers/md/md.c, __md_stop_writes() finds no sync thread to stop, because md_check_recovery() is
about to queue one, and takes the personality away from under it.
"""

import time
from typing import Final

from blkrecov.dm import counters
from blkrecov.dm.control import Control
from blkrecov.dm.status import LegHealth, RaidStatus, SyncAction, parse_raid
from blkrecov.dm.table import raid_devices

PATIENCE_S: Final = 5.0
_LOOK_AGAIN_S: Final = 0.002


class SyncStart:
    """Made before the resume or message, asked after it."""

    def __init__(self, control: Control, legs: tuple[str, ...]) -> None:
        """`legs`: the numbers (major:minor) of the data devices that the sync thread will read."""
        self._control = control
        self._legs = legs
        self._reads = self._count()

    def wait(self, name: str, patience_s: float = PATIENCE_S) -> None:
        """Until the sync thread has read something, or has nothing to do. A thread that does not come is not waited for long."""
        deadline = time.monotonic() + patience_s
        while self._count() == self._reads and time.monotonic() < deadline:
            lines = self._control.status(name)
            if not lines or lines[0].kind != "raid" or _is_still(parse_raid(lines[0].params)):
                return
            time.sleep(_LOOK_AGAIN_S)

    def _count(self) -> int:
        return sum(counters.reads(leg) for leg in self._legs)


def _is_still(raid: RaidStatus) -> bool:
    """Nothing is synchronised and nothing is about to be. Just after a resume "idle" alone says neither."""
    return raid.action is SyncAction.IDLE and raid.done == raid.total and LegHealth.OUT_OF_SYNC not in raid.legs


def data_legs(params: str) -> tuple[str, ...]:
    """The data devices in a raid target's table, by number: every second of the pairs at its end."""
    return tuple(word for word in raid_devices(params)[1::2] if word != "-")
