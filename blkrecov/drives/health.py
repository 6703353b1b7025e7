"""What has become of a drive, seen from outside: the kernel's RAID layer knows members, and linear LUNs have none.

    REMOVED     its device has gone: it was unplugged
    FAILED      it cannot be read or written; or its file was cut, and what lay behind the cut is zeros for whoever asks
    OFFLINE     there is nothing wrong with it but that it is not attached any more
    ONLINE      it serves; a file without a name serves too, until it is detached, and should be left while that is so

A look costs nothing: no drive is opened. Whether a drive takes reads and writes is tried only where something has failed on it,
with its own label, which is read and written back.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blkrecov.drives import loop, raw
from blkrecov.drives.label import BLOCK
from blkrecov.drives.loop import Inode, LoopDevice
from blkrecov.drives.store import IoCounter
from blkrecov.errors import BlkrecovError
from blkrecov.model import Drive, DriveStatus
from blkrecov.units import SECTOR, Bytes, format_size

_SYSFS: Final = Path("/sys/class/block")
_LOOP: Final = re.compile(r"/dev/loop\d+")


@dataclass(frozen=True, slots=True)
class Finding:
    """`reason` is for people: why it does not serve, or why it will not for long. Empty for a drive that is well."""

    status: DriveStatus
    reason: str = ""


WELL: Final = Finding(DriveStatus.ONLINE)


def look(drive: Drive, device: str) -> Finding:
    """What can be seen of a drive that is said to be on this device."""
    if not Path(device).exists() or not (_SYSFS / Path(device).name).exists():
        return Finding(DriveStatus.REMOVED, f"its device {device} has gone")
    if not _LOOP.fullmatch(device):
        return WELL
    attached = _attached(device)
    if attached is None:
        return Finding(DriveStatus.OFFLINE, f"its file was detached from {device}")
    if attached.deleted:
        return Finding(
            DriveStatus.ONLINE, f"its file {drive.path} was deleted, and is gone for good when it is detached"
        )
    try:
        size = Path(attached.backing_file).stat().st_size
    except OSError:  # Named in another mount namespace, perhaps; I/O goes on.
        return WELL
    if size < drive.size:
        cut = f"its file was cut to {format_size(Bytes(size))} of {format_size(Bytes(drive.size))}"
        return Finding(DriveStatus.FAILED, cut)
    return WELL


def examine(drive: Drive, device: str, port: str, counter: IoCounter) -> Finding:
    """The same for a drive on which something has failed: it is tried, through its port where a fault is injected there."""
    found = look(drive, device)
    if found.status is not DriveStatus.ONLINE:
        return found
    if why := _exhausted(device):
        return Finding(DriveStatus.FAILED, why)
    node = port if drive.fault is not None else device
    try:
        raw.write(node, 0, raw.read(node, 0, BLOCK, counter), counter)
    except BlkrecovError as error:
        return Finding(DriveStatus.FAILED, error.message)
    return found


def moved_to(device: str) -> str | None:
    """Where the file of a loop device is now. None for all other devices, for a file without a name, and for one whose name is no
    use to us: the kernel tells it as the process had it that attached the file, which may have had mounts of its own.
    """
    attached = _attached(device) if _LOOP.fullmatch(device) else None
    if attached is None or attached.deleted:
        return None
    try:
        status = Path(attached.backing_file).stat()
    except OSError:
        return None
    ours = Inode(status.st_dev, status.st_ino) == attached.backing
    return attached.backing_file if ours else None


def released(device: str) -> bool:
    """Whether somebody has told a loop device to go, which it does when the last one closes it."""
    attached = _attached(device) if _LOOP.fullmatch(device) else None
    return attached is not None and attached.autoclear


def _attached(device: str) -> LoopDevice | None:
    return next((found for found in loop.attached() if found.path == device), None)


def _exhausted(device: str) -> str:
    """Why the file system that a drive's file lies on takes no writes; empty where it does."""
    attached = _attached(device) if _LOOP.fullmatch(device) else None
    if attached is None:
        return ""
    try:
        below, file = os.statvfs(attached.backing_file), Path(attached.backing_file).stat()
    except OSError:
        return ""
    if below.f_flag & os.ST_RDONLY:
        return f"the file system that {attached.backing_file} lies on is mounted read-only"
    if not below.f_bavail and file.st_blocks * SECTOR < file.st_size:
        return f"the file system that {attached.backing_file} lies on is full"
    return ""
