"""Waiting until md's sync thread has begun, or has met a failure.

Two moments at which a dm-raid device must not be suspended or removed while its sync thread is at work:

**Before the thread's first turn**, after the resume or message that starts it. On Linux 6.1.176 the machine panics
otherwise ("Segfault with no mm" in mdX_resync, called from md_thread()): removing the device at once did so in the first
few dozen tries for raid1, raid5 and raid10; so did a suspend before the removal, and the message "frozen". After the first
read by the sync thread, hundreds of removals in a row were harmless. By the look of it drivers/md/md.c, __md_stop_writes()
finds no sync thread to stop, because md_check_recovery() is about to queue one, and takes the personality away from under
it.

**When a leg has just failed.** The suspend never returns then (Linux 6.1.176, raid6, once in a few tries with a leg that fails
during the first synchronisation). raid_postsuspend() in drivers/md/dm-raid.c takes the array's lock and waits for the sync thread
to end; that waits for its stripes, these for the superblock that tells of the failure, and that is written by
md_check_recovery(), which cannot have the lock. So whoever suspends waits first until the failure has been met and written down.
"""

import time
from collections.abc import Collection
from typing import Final

from blkrecov.dm import counters
from blkrecov.dm.control import Control
from blkrecov.dm.status import LegHealth, RaidStatus, SyncAction, parse_raid
from blkrecov.dm.table import raid_devices

PATIENCE_S: Final = 5.0
FAILURE_PATIENCE_S: Final = 2.0
# From the status that shows a leg failed to its superblocks being written, and the next sync thread's first turn: milliseconds.
SETTLED_S: Final = 0.25
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


def let_failures_settle(
    control: Control, name: str, lost: Collection[int], patience_s: float = FAILURE_PATIENCE_S
) -> None:
    """Before the suspend of a device whose legs `lost` (indexes) fail from now on, or failed just now.

    While something is synchronised, md meets the failure by itself: that is waited for, though not for long, as a slow sync
    thread may not come by. While nothing is, there is no thread that a suspend would wait for.
    """
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        lines = control.status(name)
        if not lines or lines[0].kind != "raid":
            return
        raid = parse_raid(lines[0].params)
        if raid.action in (SyncAction.IDLE, SyncAction.FROZEN):
            return
        if set(lost) <= set(raid.lost):
            time.sleep(SETTLED_S)
            return
        time.sleep(_LOOK_AGAIN_S)


def _is_still(raid: RaidStatus) -> bool:
    """Nothing is synchronised and nothing is about to be. Just after a resume "idle" alone says neither."""
    return raid.action is SyncAction.IDLE and raid.done == raid.total and LegHealth.OUT_OF_SYNC not in raid.legs


def data_legs(params: str) -> tuple[str, ...]:
    """The data devices in a raid target's table, by number: every second of the pairs at its end."""
    return tuple(word for word in raid_devices(params)[1::2] if word != "-")
