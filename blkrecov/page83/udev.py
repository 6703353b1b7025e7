"""udev as a witness, and as the one to wait for.

udev works behind the kernel: a disk is in sysfs before its entry is in udev's database, and an entry can outlive its disk for
a moment. So waiting is on udev's own events, and a `Watch` is opened *before* the first look and before the act whose result
is waited for: what happens in between is then queued, not lost. Nothing here sleeps and looks again.
"""

import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any, Final, TypeVar

import pyudev

from blkrecov.errors import PathNotFound, TimedOut
from blkrecov.page83 import sysfs
from blkrecov.page83.identity import Witness, udev_witness

T = TypeVar("T")

# Disks come by the hundred when a host starts. The default buffer drops events then, and a dropped event is a missed one.
_BUFFER: Final = 16 * 2**20
_own: Final = threading.local()


@dataclass(frozen=True, slots=True)
class Event:
    """What udev has finished handling: add, change or remove, of a block device by the kernel's name for it."""

    action: str
    name: str


class Watch:
    """A queue of udev's events of block devices, open since `watch()`."""

    def __init__(self, monitor: Any) -> None:  # pyudev has no types.
        self._monitor = monitor

    def until(self, look: Callable[[Event | None], T | None], timeout_s: float, what: str) -> T:
        """What `look` finds: it is called at once with None, and again with each event, until it returns a value.

        Raises: TimedOut, naming what was waited for.
        """
        deadline = monotonic() + timeout_s
        found = look(None)
        while found is None:
            remaining = deadline - monotonic()
            device = self._monitor.poll(timeout=remaining) if remaining > 0 else None
            if device is None:
                raise TimedOut(f"{what}: not within {timeout_s:g} seconds")
            found = look(Event(device.action, device.sys_name))
        return found


@contextmanager
def watch() -> Iterator[Watch]:
    """Opens the queue. Everything that udev handles from here on is in it."""
    monitor = pyudev.Monitor.from_netlink(_context(), source="udev")
    monitor.filter_by(subsystem="block")
    monitor.set_receive_buffer_size(_BUFFER)
    monitor.start()
    yield Watch(monitor)


def properties(device: str) -> Mapping[str, str]:
    """What udev's database says about a block device: ID_WWN_WITH_EXTENSION, ID_SERIAL, DM_UUID, DEVLINKS and more.

    Empty while udev has not handled the device yet. That includes a disk whose entry is still that of the last disk of this
    name: udev stores the number which the kernel gives each disk (DISKSEQ), and it must be this one's.

    Raises: PathNotFound where there is no such device.
    """
    try:
        entry = pyudev.Devices.from_name(_context(), "block", Path(device).resolve().name)
    except pyudev.DeviceNotFoundError as error:
        raise PathNotFound(f"{device} is no block device") from error
    if not entry.is_initialized:
        return MappingProxyType({})
    said = dict(entry.properties)
    of_disk = sysfs.disk_sequence(said["DEVNAME"])
    if of_disk is not None and said.get("DISKSEQ", of_disk) != of_disk:
        return MappingProxyType({})
    return MappingProxyType(said)


def wait_for(device: str, predicate: Callable[[Mapping[str, str]], bool], timeout_s: float) -> Mapping[str, str]:
    """The properties of a device as soon as they satisfy the predicate; a device that is not there yet has none.

    Raises: TimedOut.
    """

    def look(_event: Event | None) -> Mapping[str, str] | None:
        try:
            said = properties(device)
        except PathNotFound:
            return None
        return said if predicate(said) else None

    with watch() as queue:
        return queue.until(look, timeout_s, f"udev's entry of {device}")


def witness(device: str) -> Witness:
    """What udev's database says that a SCSI disk is."""
    where = f"udev's entry of {device}"
    try:
        return udev_witness(properties(device), where)
    except PathNotFound as error:
        return Witness("udev", None, f"{where}: {error}")


def link_of(naa: str) -> Path:
    """The link that udev keeps to the disk of this identity (60-persistent-storage.rules)."""
    return Path(f"/dev/disk/by-id/wwn-0x{naa}")


def _context() -> Any:
    """libudev's handle, one for each thread: it is not to be shared. For each new one pyudev starts ldconfig, to find libudev."""
    if not hasattr(_own, "context"):
        _own.context = pyudev.Context()
    return _own.context


def settle(timeout_s: float) -> None:
    """Waits until udev has no event left to handle.

    udevadm(8) does it by inotify on udev's queue, which has no other public face.

    Raises: TimedOut.
    """
    command = ["udevadm", "settle", f"--timeout={max(1, round(timeout_s))}"]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        raise TimedOut(f"udev still has events to handle after {timeout_s:g} seconds")
