"""What is at a path before it becomes a drive: what it holds, who holds it, and whether it may be destroyed.

inspect() looks and decides nothing; refuse_if_unfit() decides and touches nothing. Being in use is never overruled;
holding something is, by --force, since only people know whether that may go.

Two nets for contents. blkid knows signatures; what it does not know, such as a text file given by mistake, is caught by
looking for anything but zeros near both ends. A file that another program has open without a lock cannot be told from
one that nobody has: the kernel keeps no such record.
"""

import errno
import fcntl
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from blkrecov import mountinfo
from blkrecov.blockdev import printable, text
from blkrecov.drives import loop
from blkrecov.drives.label import BLOCK, Label, NoLabel, copy_at
from blkrecov.errors import (
    AccessDenied,
    DeviceInUse,
    DiskNotEmpty,
    InvalidArgument,
    InvalidDisk,
    NotSupported,
    PathNotFound,
    ProviderFailure,
)
from blkrecov.units import MIB, Bytes, round_down

SAMPLE: Final = MIB  # Read at either end in search of data.

# struct flock on 64-bit Linux: type, whence, start, length, pid.
_FLOCK: Final = struct.Struct("hhqqi4x")
_BLKID_NOTHING: Final = 2
_BLKID_AMBIVALENT: Final = 8


class Kind(Enum):
    """What a path can be and still become a drive, and everything else. The values are for people."""

    FILE = "regular file"
    BLOCK = "block device"
    DIRECTORY = "directory"
    FIFO = "FIFO"
    SOCKET = "socket"
    CHARACTER = "character device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What is at a path."""

    path: str
    kind: Kind
    size: Bytes
    allocated: Bytes  # What a file takes on its file system. A block device takes its size.
    writable: bool
    holder: str | None  # Who has it, in words that end "... is ": "attached as /dev/loop0", "mounted at /srv".
    label: Label | None  # It is a drive already; of which array, the label tells.
    holds: str | None  # What would be destroyed, in words: "an ext4 file system", "the drive d0 of the array lab".
    inode: loop.Inode | None = None  # Of a file.


def inspect(path: str) -> Contents:
    """Look at a path. Symbolic links are followed: /dev/disk/by-id is made of them.

    Raises: PathNotFound; AccessDenied; NotSupported without blkid; ProviderFailure when something cannot be read.
    """
    try:
        status = Path(path).stat()
        kind = _kind(status.st_mode)
        if kind not in (Kind.FILE, Kind.BLOCK):
            return Contents(
                path=path,
                kind=kind,
                size=Bytes(0),
                allocated=Bytes(0),
                writable=False,
                holder=None,
                label=None,
                holds=None,
            )
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return _inspect(path, kind, descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise PathNotFound(f"{path} does not exist") from error
    except NotADirectoryError as error:
        raise PathNotFound(f"{path}: a part of the path is no directory") from error
    except PermissionError as error:
        raise AccessDenied(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise ProviderFailure(f"{path} cannot be read: {error.strerror}") from error


def refuse_if_unfit(contents: Contents, *, force: bool) -> None:
    """Decide whether this may become a drive. Its size is for label.plan_layout() to judge.

    Raises: InvalidArgument for what can never be one; DeviceInUse, force or not; DiskNotEmpty unless forced.
    """
    if contents.kind not in (Kind.FILE, Kind.BLOCK):
        raise InvalidArgument(
            f"{contents.path} is a {contents.kind.value}; a drive is a regular file or a block device"
        )
    if not contents.writable:
        raise InvalidArgument(f"{contents.path} cannot be written")
    if contents.holder is not None:
        raise DeviceInUse(f"{contents.path} is {contents.holder}")
    if contents.holds is not None and not force:
        raise DiskNotEmpty(f"{contents.path} holds {contents.holds}")


def _inspect(path: str, kind: Kind, descriptor: int) -> Contents:
    status = os.fstat(descriptor)
    size = os.lseek(descriptor, 0, os.SEEK_END)
    holder = _file_holder(descriptor, status) if kind is Kind.FILE else _block_holder(path, status.st_rdev)
    label, holds = _label(descriptor, size)
    return Contents(
        path=path,
        kind=kind,
        size=Bytes(size),
        allocated=Bytes(status.st_blocks * 512 if kind is Kind.FILE else size),
        writable=_writable(path, kind, status.st_rdev),
        holder=holder,
        label=label,
        holds=holds or _signature(path) or _data(descriptor, size),
        inode=loop.inode_of(descriptor) if kind is Kind.FILE else None,
    )


def _kind(mode: int) -> Kind:
    for test, kind in ((stat.S_ISREG, Kind.FILE), (stat.S_ISBLK, Kind.BLOCK), (stat.S_ISDIR, Kind.DIRECTORY)):
        if test(mode):
            return kind
    for test, kind in ((stat.S_ISFIFO, Kind.FIFO), (stat.S_ISSOCK, Kind.SOCKET)):
        if test(mode):
            return kind
    return Kind.CHARACTER


def _writable(path: str, kind: Kind, device: int) -> bool:
    """Root may write to files whose mode says otherwise; the mode of a regular file is taken for what its owner
    wants.
    """
    if kind is Kind.BLOCK:
        return os.access(path, os.W_OK) and text(_sysfs(device) / "ro") != "1"
    return os.access(path, os.W_OK) and bool(Path(path).stat().st_mode & 0o222)


# Who holds it.


def _file_holder(descriptor: int, status: os.stat_result) -> str | None:
    backing = loop.Inode(status.st_dev, status.st_ino)
    if device := next((device for device in loop.attached() if device.backing == backing), None):
        return f"attached as {device.path}"
    if _is_swap(status):
        return "used as swap"
    return _lock_holder(descriptor)


def _lock_holder(descriptor: int) -> str | None:
    """Virtual machine monitors and databases lock their files, in one of two ways that do not see each other.

    Kernel: fs/locks.c. F_GETLK for a write lock on everything reports any lock; for an open file description's its pid
            is -1.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "locked by another process (flock)"
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    if kind == fcntl.F_UNLCK:
        return None
    return f"locked by process {pid}" if pid > 0 else "locked by another process"


def _block_holder(path: str, device: int) -> str | None:
    """The most telling answer first; the last one, asking the kernel for exclusive use, is the one that is complete.

    Kernel: block/bdev.c, bd_prepare_to_claim(): whoever claims a disk or one of its partitions keeps others from the
            disk.
    """
    sysfs = _sysfs(device)
    numbers = [f"{os.major(device)}:{os.minor(device)}"]
    numbers += [text(entry) for entry in sorted(sysfs.glob("*/dev")) if (entry.parent / "partition").exists()]
    mounts = mountinfo.read()
    for number in numbers:
        if place := next((mount.point for mount in mounts if mount.number == number), None):
            return f"mounted at {printable(place)}"
    if any(_is_swap_device(number) for number in numbers):
        return "used as swap"
    for entry in (*sorted(sysfs.glob("holders/*")), *sorted(sysfs.glob("*/holders/*"))):
        return f"held by {_device_name(entry.name)}"
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return "opened exclusively by the kernel or another process"
    return None


def _device_name(name: str) -> str:
    """What people call a device: a device-mapper device has a name of its own beside dm-7."""
    dm_name = text(Path("/sys/block") / name / "dm/name")
    return f"{name} ({dm_name})" if dm_name else name


def _sysfs(device: int) -> Path:
    return Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")


def _swaps() -> Iterator[os.stat_result]:
    for path in mountinfo.swaps():
        try:
            yield Path(path).stat()
        except OSError:  # Deleted, or in another mount namespace.
            continue


def _is_swap(status: os.stat_result) -> bool:
    return any((swap.st_dev, swap.st_ino) == (status.st_dev, status.st_ino) for swap in _swaps())


def _is_swap_device(number: str) -> bool:
    return any(
        stat.S_ISBLK(swap.st_mode) and f"{os.major(swap.st_rdev)}:{os.minor(swap.st_rdev)}" == number
        for swap in _swaps()
    )


# What it holds.


def _label(descriptor: int, size: int) -> tuple[Label | None, str | None]:
    """Our own label or its copy, and what that makes of it in words."""
    damage = None
    for offset in (0, copy_at(size)) if size >= 2 * BLOCK else ():
        block = os.pread(descriptor, BLOCK, offset)
        try:
            label = Label.decode(block)
        except NoLabel:
            continue
        except InvalidDisk as error:
            damage = f"a drive of an array, damaged: {error.message}"
        except NotSupported as error:
            damage = f"a drive of an array, made by a later version of blkrecov: {error.message}"
        else:
            return label, f"the drive {label.drive_name} of the array {label.array_name}"
    return None, damage


def _signature(path: str) -> str | None:
    """What blkid finds, in words."""
    # -p looks at the medium and asks no cache. It takes no lock and opens for reading.
    try:
        answer = subprocess.run(
            ["blkid", "--probe", "--output", "export", path],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise NotSupported("blkid is not installed", remedy="install util-linux") from error
    if answer.returncode == _BLKID_AMBIVALENT:
        return "signatures of several file systems"
    if answer.returncode == _BLKID_NOTHING and not answer.stdout:
        return None
    if answer.returncode:
        raise ProviderFailure(f"blkid failed on {path}: {answer.stderr.strip()}")
    return describe(dict(line.split("=", 1) for line in answer.stdout.splitlines() if "=" in line))


def describe(found: dict[str, str]) -> str | None:
    """Put blkid's answer into words: its keys are TYPE and USAGE, PTTYPE for a partition table."""
    if table := found.get("PTTYPE"):
        return f"a partition table ({table})"
    if not (kind := found.get("TYPE")):
        return None
    match found.get("USAGE"):
        case "filesystem":
            return f"a file system ({kind})"
        case "raid":
            return f"a member of a RAID array or volume group ({kind})"
        case "crypto":
            return f"encrypted data ({kind})"
        case _:
            return f"a signature ({kind})"


def _data(descriptor: int, size: int) -> str | None:
    """Anything but zeros near the ends. Holes read as zeros and cost nothing."""
    for offset in (0, max(0, round_down(size - SAMPLE, BLOCK))):
        if any(os.pread(descriptor, 2 * SAMPLE if offset else SAMPLE, offset)):
            return "data of an unknown kind"
    return None
