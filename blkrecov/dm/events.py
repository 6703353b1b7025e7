"""Events of device-mapper devices, by polling the control node.

A leg fails, a recovery ends, a snapshot overflows: each adds one to its device's event number, and to a global one that poll()
watches. There is no telling which device it was, nor how many events, so the order is: arm, list, compare. Arming before
listing is what loses nothing: an event between the two shows in the list, and wakes the next poll once too often.

Progress makes no events, nor do suspend, resume, load and messages. Kernel: drivers/md/dm-ioctl.c, dm_poll()
"""

import select
import time
from types import TracebackType
from typing import Self, TypeAlias

from blkrecov.dm.abi import DeviceNumber
from blkrecov.dm.control import Control

# A name can go and come back as another device, whose event number may be the same again.
_Seen: TypeAlias = tuple[str, DeviceNumber, int]


class EventWatcher:
    """Watches all devices through a control node of its own, for what is armed belongs to one opening.

    Plainly:      while watcher.wait(1.0): handle(watcher.changed())
    In asyncio:   loop.add_reader(watcher.fileno(), on_readable), which calls changed().
    """

    def __init__(self) -> None:
        self._control = Control()
        self._seen: dict[str, _Seen] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._control.close()

    def fileno(self) -> int:
        """Stays readable after an event until arm() or changed()."""
        return self._control.fileno()

    def arm(self) -> None:
        self._control.arm_poll()

    def changed(self) -> dict[str, int]:
        """Arms, then gives the event numbers of the devices that had events, or are new, since the last call.

        The first call gives every device. Devices that have gone are not reported. Re-read a changed device's status: a number
        may have grown by more than one, and grows for events that change nothing.
        """
        self.arm()
        now = {entry.name: (entry.uuid, entry.number, entry.event_nr) for entry in self._control.devices()}
        before, self._seen = self._seen, now
        return {name: seen[2] for name, seen in now.items() if before.get(name) != seen}

    def wait(self, timeout_s: float) -> bool:
        """Whether something happened before the time was up, since the last arm() or changed()."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            if poll.poll(left_s * 1000):
                return True
            if left_s == 0.0:
                return False
