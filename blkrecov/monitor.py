"""The monitor: looks after an array for as long as it runs, and does nothing while nothing happens.

It sleeps until the kernel tells of an event (device-mapper's control node), something happens to a drive or its file, something
of the array is mounted or unmounted, another process has changed the array (its bell), or the next scrub is due; then it takes
the lock, does what is due (Array.attend), and lets go again. Only while tasks are under way does it look four times a second,
because progress makes no events. Whatever it does any command does as well: it can be killed at any moment, and the next one goes
on.
"""

import logging
import math
import select
import time
from pathlib import Path
from typing import Final
from uuid import UUID

from blkrecov import objects, schedule
from blkrecov.array import TICK_S, Array
from blkrecov.bell import Bell
from blkrecov.dm.events import EventWatcher
from blkrecov.drives.watch import DriveWatcher
from blkrecov.errors import BlkrecovError
from blkrecov.turns import Standstill

log = logging.getLogger(__name__)

# What could not be done is tried again after this, if nothing happens before, and each time after twice as long.
AGAIN_S: Final = 10.0
AGAIN_MOST_S: Final = 600.0
# A scrub that is due and was not begun just now could not be.
SCRUB_AGAIN_S: Final = 3600.0
# The kernel tells nobody that a shadow copy's store fills up, so as long as there is one it is looked at.
STORES_S: Final = 10.0
MOUNTS: Final = Path("/proc/self/mountinfo")


class Monitor:
    """Made with an open array; `end` may be called from a signal handler or another thread."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self._ended = False
        self._trouble = ""
        self._again_s = AGAIN_S
        self._unease: frozenset[tuple[UUID, str]] = frozenset()
        self._down = False
        self._standstill = Standstill()
        self._mounted: frozenset[tuple[UUID, str, str]] = frozenset()

    def end(self) -> None:
        self._ended = True
        self.wake()

    def wake(self) -> None:
        self._array.ring()

    def run(self) -> None:
        """Until end() is called. Raises: DeviceInUse where the array has a monitor already."""
        with (
            Bell(self._array.bell) as bell,
            EventWatcher() as events,
            DriveWatcher() as drives,
            open(MOUNTS, "rb") as mounts,
        ):
            events.changed()
            self._attend(frozenset())
            while not self._ended:
                drives.follow(self._array.watched())
                suspects = self._array.drives_behind(drives.happened()[1])
                if not suspects:
                    with self._array.unlocked(math.inf):
                        suspects = self._sleep(events, bell, drives, mounts.fileno())
                if not self._ended:
                    self._attend(suspects)

    def _attend(self, suspects: frozenset[UUID]) -> None:
        """What cannot be done ends nothing: drives come back, and so does space to write to. It is told once."""
        try:
            self._array.catch_up()
            # Stopped by somebody, with its tasks as they are: whoever brings it up goes on with them.
            self._down = self._array.down()
            if not self._down:
                self._array.attend(suspects=suspects)
            self._mounted = self._mounts()
        except BlkrecovError as error:
            if error.message != self._trouble:
                log.warning("array %s cannot be looked after: %s", self._array.document.name, error.message)
                self._again_s = AGAIN_S
            else:
                self._again_s = min(2 * self._again_s, AGAIN_MOST_S)
            self._trouble = error.message
        else:
            self._trouble = ""

    def _mounts(self) -> frozenset[tuple[UUID, str, str]]:
        """(LUN, partition, mount point) of all that is mounted from the array."""
        found = objects.mounted(self._array.document, self._array.observed)
        return frozenset((each.lun, each.part, each.path) for each in found)

    def _sleep(self, events: EventWatcher, bell: Bell, drives: DriveWatcher, mounts: int) -> frozenset[UUID]:
        """Until something is due. The drives on which requests have failed meanwhile.

        What a drive looks like when we have done all we can about it is no reason to begin again.
        """
        unease = self._array.unease()
        if unease != self._unease:
            self._unease = unease
            return frozenset()
        poll = select.poll()
        drives.register(poll)
        # The kernel tells a poll of every change since the one before (fs/proc_namespace.c, mounts_poll()).
        poll.register(mounts, select.POLLPRI)
        poll.register(events.fileno(), select.POLLIN)
        poll.register(bell.fileno(), select.POLLIN)
        while not (self._ended or self._is_wanted()):
            busy = not (self._trouble or self._down) and any(
                not task.state.ended and not task.paused for task in self._array.document.tasks
            )
            ripe = busy and self._array.ripe()
            stands = self._standstill.seen(ripe, self._array.document.sequence)
            if ripe and not stands:
                return frozenset()
            if busy:
                self._array.govern()
                self._ticked()
            ready = poll.poll(1000 * (TICK_S if busy else self._patience_s()))
            bell.hush()
            if any(descriptor == events.fileno() for descriptor, _ in ready):
                events.arm()
                return self._array.drives_behind(drives.happened()[1])
            changed, failed = drives.happened()
            suspects = self._array.drives_behind(failed)
            if suspects or stands or self._array.outdated() or not (ready or busy):
                return suspects
            if changed and self._array.unease() != unease:
                return frozenset()
            if any(descriptor == mounts for descriptor, _ in ready) and self._mounts() != self._mounted:
                return frozenset()
        return frozenset()

    def _is_wanted(self) -> bool:
        """Whether there is something else to do under the lock. Asked again after wake()."""
        return False

    def _ticked(self) -> None:
        """Called while tasks are under way, without the lock."""

    def _patience_s(self) -> float:
        """How long to sleep while nothing happens."""
        if self._trouble:
            return self._again_s
        now = time.time()
        due = schedule.next_due(self._array.document, int(now))
        patience = SCRUB_AGAIN_S if due is None or due <= now else min(due - now, SCRUB_AGAIN_S)
        fills = any(lun.differential for lun in self._array.document.luns)
        return min(patience, STORES_S) if fills else patience
