"""What has become of a drive, seen from outside: the kernel's RAID layer knows members, and linear LUNs have none.

    REMOVED     its device has gone: it was unplugged
    FAILED      it cannot be read or written; or its file was cut, and what lay behind the cut is zeros for whoever asks
    OFFLINE     there is nothing wrong with it but that it is not attached any more
    ONLINE      it serves; a file without a name serves too, until it is detached, and should be left while that is so

A look costs nothing and wakes nobody: it asks sysfs, and opens no drive. Whether a drive takes reads and writes is tried only
where something has failed on it, with its own label, which is read and written back.
"""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blkrecov.blockdev import text
from blkrecov.dm.stalled import Stalled
from blkrecov.drives import raw
from blkrecov.drives.label import BLOCK
from blkrecov.drives.store import IoCounter
from blkrecov.errors import BlkrecovError
from blkrecov.model import Drive, DriveStatus
from blkrecov.units import SECTOR, Bytes, format_size

_SYSFS: Final = Path("/sys/class/block")
_LOOP: Final = re.compile(r"/dev/loop\d+")
_DELETED: Final = " (deleted)"
_NAMELESS: Final = "was deleted, and is gone for good when it is detached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Below:
    """What a loop device stands on, by sysfs. Kernel: drivers/block/loop.c, loop_attribute_attrs."""

    file: str
    """Its name, as the process had it that attached it; that may have had mounts of its own."""
    deleted: bool
    released: bool
    """Somebody has told the device to go, which it does when the last one closes it."""
    direct_io: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """`reason` is for people: why it does not serve, or why it will not for long. Empty for a drive that is well."""

    status: DriveStatus
    reason: str = ""


WELL: Final = Finding(DriveStatus.ONLINE)


def below(device: str) -> Below | None:
    """None for a device that is no loop device, or has no file."""
    if not _LOOP.fullmatch(device):
        return None
    directory = _SYSFS / Path(device).name / "loop"
    name = text(directory / "backing_file")
    if not name:
        return None
    deleted = name.endswith(_DELETED) and not _exists(name)
    return Below(
        file=name.removesuffix(_DELETED) if deleted else name,
        deleted=deleted,
        released=text(directory / "autoclear") == "1",
        direct_io=text(directory / "dio") == "1",
    )


def look(drive: Drive, device: str) -> Finding:
    """What can be seen of a drive that is said to be on this device."""
    if not Path(device).exists() or not (_SYSFS / Path(device).name).exists():
        return Finding(DriveStatus.REMOVED, f"its device {device} has gone")
    if not _LOOP.fullmatch(device):
        return WELL
    attached = below(device)
    if attached is None:
        return Finding(DriveStatus.OFFLINE, f"its file was detached from {device}")
    if attached.deleted:
        return Finding(DriveStatus.ONLINE, f"its file {drive.path} {_NAMELESS}")
    try:
        size = Path(attached.file).stat().st_size
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
    except Stalled:
        return found  # To take it for failed would be to wait for what is under way on it.
    except BlkrecovError as error:
        return Finding(DriveStatus.FAILED, error.message)
    return found


def moved_to(drive: Drive, device: str) -> str | None:
    """Where a drive's file is now, if it is not where it was."""
    attached = below(device)
    if attached is None or attached.deleted or attached.file == drive.path or _exists(drive.path):
        return None
    return attached.file if _exists(attached.file) else None


def _exists(path: str) -> bool:
    """A file system that has shut down has no files, but errors."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def is_outdated(drive: Drive, found: Finding) -> bool:
    """Whether a drive is set aside for having no name, and has one again."""
    return drive.failing.endswith(_NAMELESS) and not found.reason


def _exhausted(device: str) -> str:
    """Why the file system that a drive's file lies on takes no writes; empty where it does."""
    attached = below(device)
    if attached is None:
        return ""
    try:
        room, file = os.statvfs(attached.file), Path(attached.file).stat()
    except OSError:
        return ""
    if room.f_flag & os.ST_RDONLY or _takes_no_file(Path(attached.file).parent):
        return f"the file system that {attached.file} lies on is read-only"
    if not room.f_bavail and file.st_blocks * SECTOR < file.st_size:
        return f"the file system that {attached.file} lies on is full"
    return ""


def _takes_no_file(directory: Path) -> bool:
    """Whether a file system refuses a new file (one without a name, which is gone at once) because it is read-only.

    Since Linux kernel commit d3476f3dad4a ("ext4: don't set SB_RDONLY after filesystem errors"), in v6.12 and in 6.1's later
    versions, ext4 with errors=remount-ro says that it is mounted read-write, and goes on writing to blocks that a file
    has. Blocks that it has not are refused: a sparse drive fails, and its label can be written.
    """
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        return error.errno == errno.EROFS
    return False
