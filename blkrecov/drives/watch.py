"""Tells when something happens to drives that no RAID layer hears of: to a drive's file, to its device, to requests on it.

    inotify        of the file that a loop device stands on: deleted, renamed, cut; and of the device's node, which somebody
                   closes who has told the loop device to go (losetup -d)
    uevents        a block device goes
    kernel's log   a request to a device has failed

None of this says what has become of a drive (drives.health does): it is a reason to look. We open devices ourselves, so what
has happened while the array was attended to is to be taken as seen: happened() once, then a look.
"""

import select
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Final, Self

import pyudev
from inotify_simple import INotify, flags

from blkrecov.dm.kmsg import LogMark
from blkrecov.drives import health

_FILE: Final = flags.ATTRIB | flags.MOVE_SELF | flags.DELETE_SELF
_NODE: Final = flags.CLOSE_NOWRITE | flags.CLOSE_WRITE


class DriveWatcher:
    """Watches block devices and the files below them. One poll(2) object, to be registered by its file numbers."""

    def __init__(self) -> None:
        self._closing = ExitStack()
        self._log = self._closing.enter_context(LogMark())
        self._changes = INotify(nonblocking=True)
        self._closing.callback(self._changes.close)
        self._watched: dict[str, int] = {}
        self._uevents = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        self._uevents.filter_by("block")
        self._uevents.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def register(self, poll: select.poll) -> None:
        numbers = (self._changes.fileno(), self._uevents.fileno(), self._log.fileno())
        for number in numbers:
            if number is not None:
                poll.register(number, select.POLLIN)

    def follow(self, devices: Iterable[str]) -> None:
        """Watch these block devices from now on, and no others."""
        wanted: dict[str, int] = {}
        for device in devices:
            below = health.below(device)
            if below is not None:
                wanted[device] = _NODE
                if not below.deleted:
                    # What is written through a loop device with direct I/O is no change of the file to inotify; a cut is one.
                    wanted[below.file] = _FILE | flags.MODIFY if below.direct_io else _FILE
        for path in self._watched.keys() - wanted.keys():
            with suppress(OSError):  # The kernel drops a watch with its file.
                self._changes.rm_watch(self._watched.pop(path))
        for path in wanted.keys() - self._watched.keys():
            with suppress(OSError):
                self._watched[path] = self._changes.add_watch(path, wanted[path])

    def happened(self) -> tuple[bool, frozenset[str]]:
        """Since the last call: (whether any of it may have changed, names of devices on which requests have failed)."""
        changed = bool(self._changes.read(timeout=0))
        try:
            while (event := self._uevents.poll(timeout=0)) is not None:
                changed = changed or event.action in ("remove", "offline")
        except OSError:  # ENOBUFS: there was more than the kernel keeps for us.
            changed = True
        return changed, self._log.errors()
