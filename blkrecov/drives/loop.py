"""Loop devices, by ioctl: a file becomes a block device, and is found again by what backs it.

A loop device's number says nothing: the kernel gives it to the next file once it is free. What identifies an attachment
is the backing file's inode, so every look-up goes by inode, and detach() looks at the inode again before it acts on a
number.

Devices are attached without autoclear: a LUN outlives the process that made it. A device whose autoclear is set has
been detached while somebody had it open, and goes when the last one closes it.

Kernel: drivers/block/loop.c; include/uapi/linux/loop.h.
"""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from blkrecov.blockdev import text
from blkrecov.drives import trust
from blkrecov.errors import (
    AccessDenied,
    DeviceInUse,
    InvalidDisk,
    NotSupported,
    PathNotFound,
    ProviderFailure,
    pass_on_exhaustion,
)

SYS_BLOCK: Final = Path("/sys/block")
CONTROL: Final = "/dev/loop-control"
MAJOR: Final = 7  # Documentation/admin-guide/devices.txt
BLOCK_SIZE: Final = 512
# Others take free devices at the same time. Each failure means that somebody else made progress, so the bound is
# generous.
ATTEMPTS: Final = 64

LOOP_SET_FD: Final = 0x4C00
LOOP_CLR_FD: Final = 0x4C01
LOOP_SET_STATUS64: Final = 0x4C04
LOOP_GET_STATUS64: Final = 0x4C05
LOOP_SET_CAPACITY: Final = 0x4C07
LOOP_SET_DIRECT_IO: Final = 0x4C08
LOOP_CONFIGURE: Final = 0x4C0A
LOOP_CTL_GET_FREE: Final = 0x4C82

LO_FLAGS_AUTOCLEAR: Final = 4
LO_FLAGS_DIRECT_IO: Final = 16

# struct loop_info64: device, inode, rdevice, offset, sizelimit; number, encrypt type, key size, flags; file name, crypt
# name, key; init[2]. struct loop_config: fd, block size, one of the former, 8 reserved words.
_INFO: Final = struct.Struct("=QQQQQIIII64s64s32s2Q")
_INFO_FLAGS: Final = 8
_CONFIG_HEAD: Final = struct.Struct("=II")
_CONFIG_RESERVED: Final = bytes(64)


class Inode(NamedTuple):
    """What a path names, whatever it is called: st_dev and st_ino."""

    device: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopDevice:
    """An attached loop device."""

    number: int
    backing_file: str  # Its path, as the kernel knows it; renaming the file changes it.
    backing: Inode
    offset: int  # Bytes into the file. Ours start at 0.
    direct_io: bool
    autoclear: bool  # It goes when its last user closes it.
    deleted: bool  # The backing file has no name any more. I/O goes on.

    @property
    def path(self) -> str:
        return f"/dev/loop{self.number}"


class LoopRefused(ProviderFailure):
    """The kernel refused a loop operation."""

    def __init__(self, operation: str, path: str, number: int) -> None:
        super().__init__(f"{operation} {path}: {os.strerror(number)} ({errno.errorcode.get(number, number)})")
        self.operation, self.path, self.errno = operation, path, number


def attach(path: str, size: int | None = None, *, expected: Inode | None = None) -> LoopDevice:
    """Attach a regular file to a free loop device; with `size`, only that many bytes of it can be reached. `expected` is what the
    path was when it was looked at. What is attached is the open file that is asked here, whatever becomes of its name.

    Direct I/O is asked for and may not be had: tmpfs before Linux 6.6 has none, nor has a file system on a disk with
    larger blocks than ours. The answer tells, from the flag as the kernel holds it.

    Raises: NotSupported without the loop driver; PathNotFound; DeviceInUse for a file that is attached already, since
            two devices on one file do not see each other's writes; AccessDenied; Untrusted; InvalidDisk where another file
            has taken the path; LoopRefused for the rest.
    """
    with ExitStack() as closing:
        file = _open(path, os.O_RDWR)
        closing.callback(os.close, file)
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and (why := trust.flaw_of(status)):
            raise trust.Untrusted(path, why)
        if expected is not None and inode_of(file) != expected:
            raise exchanged(path)
        if existing := backed_by(inode_of(file)):
            raise DeviceInUse(f"{path} is attached already, as {existing.path}", remedy=f"detach {existing.path} first")
        control = _open_control()
        closing.callback(os.close, control)
        for _ in range(ATTEMPTS):
            number = _ioctl("LOOP_CTL_GET_FREE", CONTROL, control, LOOP_CTL_GET_FREE)
            if _attach_to(number, file, path, size or 0):
                return _state_of(number, path)
    raise LoopRefused("LOOP_CONFIGURE", path, errno.EBUSY)


def detach(device: LoopDevice) -> bool:
    """Detach a device. True when it is gone; False when somebody has it open, and the kernel detaches it at the last
    close.

    A device that has gone already, or that backs another file by now, is left alone: that counts as gone.
    """
    # Opened for reading: closing a descriptor that could write would have udev look at the device once more.
    try:
        node = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return True
        raise _refusal("open", device.path, error) from error
    try:
        info = _status(node, device.path)
        if info is None or info.backing != device.backing:
            return True
        _ioctl("LOOP_CLR_FD", device.path, node, LOOP_CLR_FD)
    except LoopRefused as error:
        if error.errno != errno.ENXIO:  # It went between our look and our act.
            raise
    finally:
        os.close(node)
    # The kernel answers 0 whether it detached the device or only marked it, so look again.
    after = _look(device.number)
    return after is None or after.backing != device.backing


@contextmanager
def held(passing: frozenset[int] = frozenset()) -> Iterator[None]:
    """Keeps every loop device open that is attached now, so that none goes away between being looked at and being used; but for
    those with the numbers `passing` (st_rdev), which are others' to let go of.

    One that was told to detach while udev looked at it is still there, marked autoclear, until udev closes it; what is
    built on it then ends up on an empty device, or on the next file to get its number.
    """
    with ExitStack() as nodes:
        for device in attached():
            if os.makedev(MAJOR, device.number) in passing:
                continue
            try:
                node = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:  # Gone already.
                pass_on_exhaustion(error)
                continue
            nodes.callback(os.close, node)
        yield


def keep(device: LoopDevice) -> bool:
    """Take back an earlier detach() that waits for the last close. False when the device has gone.

    Kernel: LO_FLAGS_AUTOCLEAR can be cleared by LOOP_SET_STATUS64, linux/loop.h, LOOP_SET_STATUS_CLEARABLE_FLAGS.
    """
    node = _open(device.path, os.O_RDWR)
    try:
        info = _status(node, device.path)
        if info is None or info.backing != device.backing:
            return False
        if info.flags & LO_FLAGS_AUTOCLEAR:
            words = bytearray(_INFO.size)
            fcntl.ioctl(node, LOOP_GET_STATUS64, words)
            fields = list(_INFO.unpack(words))
            fields[_INFO_FLAGS] &= ~LO_FLAGS_AUTOCLEAR
            _ioctl("LOOP_SET_STATUS64", device.path, node, LOOP_SET_STATUS64, _INFO.pack(*fields))
        after = _status(node, device.path)
        return after is not None and after.backing == device.backing and not after.flags & LO_FLAGS_AUTOCLEAR
    finally:
        os.close(node)


def find(path: str) -> LoopDevice | None:
    """The loop device that a file backs, whatever the file was called when it was attached.

    Raises: PathNotFound; AccessDenied.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise _refusal("stat", path, error) from error
    return backed_by(Inode(status.st_dev, status.st_ino))


def is_attached(device: str) -> bool:
    """Whether a loop device has a file, which is in use for that long. False for other devices."""
    return Path("/sys/block", Path(device).name, "loop/backing_file").exists()


def backed_by(backing: Inode) -> LoopDevice | None:
    """The same of a file that was looked at, whatever its name is by now."""
    return next((device for device in attached() if device.backing == backing), None)


def attached(sys_block: Path = SYS_BLOCK) -> tuple[LoopDevice, ...]:
    """All attached loop devices, by number."""
    # Only an attached device has the directory `loop` in sysfs.
    numbers = sorted(int(entry.parent.name.removeprefix("loop")) for entry in sys_block.glob("loop*/loop"))
    return tuple(device for number in numbers if (device := _look(number)) is not None)


def resize(device: LoopDevice) -> None:
    """Let the device take on its file's size, after that has grown or shrunk. Sends a uevent with RESIZE=1.

    Raises: LoopRefused.
    """
    node = _open(device.path, os.O_RDONLY)
    try:
        _ioctl("LOOP_SET_CAPACITY", device.path, node, LOOP_SET_CAPACITY)
    finally:
        os.close(node)


def exchanged(path: str) -> InvalidDisk:
    return InvalidDisk(f"{path} is another file than a moment ago", remedy="see who moves files there, then try again")


def inode_of(descriptor: int) -> Inode:
    status = os.fstat(descriptor)
    return Inode(status.st_dev, status.st_ino)


@dataclass(frozen=True, slots=True)
class _Info:
    """What we use of struct loop_info64."""

    backing: Inode
    offset: int
    flags: int


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise _refusal("open", path, error) from error


def _open_control() -> int:
    try:
        return os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise NotSupported(
                "this kernel has no loop devices: there is no /dev/loop-control", remedy="modprobe loop"
            ) from error
        raise _refusal("open", CONTROL, error) from error


def _refusal(operation: str, path: str, error: OSError) -> PathNotFound | AccessDenied | LoopRefused:
    pass_on_exhaustion(error)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return PathNotFound(f"{path} does not exist")
        case errno.EACCES | errno.EPERM:
            return AccessDenied(f"{operation} {path}: {error.strerror}")
        case number:
            return LoopRefused(operation, path, number or errno.EIO)


def _ioctl(name: str, path: str, descriptor: int, request: int, argument: int | bytes = 0) -> int:
    """Raises: LoopRefused, naming the ioctl and the path."""
    try:
        answer = fcntl.ioctl(descriptor, request, argument)
    except OSError as error:
        pass_on_exhaustion(error)
        raise LoopRefused(name, path, error.errno or errno.EIO) from error
    return answer if isinstance(answer, int) else 0


def _attach_to(number: int, file: int, path: str, size: int) -> bool:
    """Bind a file to one loop device. False when somebody else was faster."""
    node_path = f"/dev/loop{number}"
    try:
        node = os.open(node_path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):  # Removed again between the answer and now.
            return False
        raise _refusal("open", node_path, error) from error
    flags = LO_FLAGS_DIRECT_IO if _takes_direct_io(file) else 0
    info = _INFO.pack(0, 0, 0, 0, size, 0, 0, 0, flags, os.fsencode(path)[-63:], b"", b"", 0, 0)
    try:
        try:
            _ioctl(
                "LOOP_CONFIGURE",
                path,
                node,
                LOOP_CONFIGURE,
                _CONFIG_HEAD.pack(file, BLOCK_SIZE) + info + _CONFIG_RESERVED,
            )
        except LoopRefused as error:
            # Since Linux kernel commit 3448914e8cc5 ("loop: Add LOOP_CONFIGURE ioctl") (in v5.8), one ioctl binds and
            # configures. Before that the kernel answers EINVAL: use LOOP_SET_FD, then LOOP_SET_STATUS64.
            if error.errno != errno.EINVAL:
                raise
            _attach_in_two(node, node_path, file, path, info)
    except LoopRefused as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    finally:
        os.close(node)
    return True


def _attach_in_two(node: int, node_path: str, file: int, path: str, info: bytes) -> None:
    _ioctl("LOOP_SET_FD", path, node, LOOP_SET_FD, file)
    with ExitStack() as undo:
        undo.callback(_ioctl, "LOOP_CLR_FD", node_path, node, LOOP_CLR_FD)
        _ioctl("LOOP_SET_STATUS64", path, node, LOOP_SET_STATUS64, info)
        undo.pop_all()
    if not _takes_direct_io(file):
        return
    try:
        # LOOP_SET_STATUS64 does not take this flag; the block size is 512 without being asked for.
        _ioctl("LOOP_SET_DIRECT_IO", path, node, LOOP_SET_DIRECT_IO, 1)
    except LoopRefused as error:
        if error.errno != errno.EINVAL:  # Not to be had here: that is no failure.
            raise


def _takes_direct_io(file: int) -> bool:
    """Whether a file can be opened for direct I/O: the kernel grants a loop device's wish on weaker grounds.

    Kernel: loop.c, __loop_update_dio() asks the file's own inode, and an overlay says yes for every file (fs/overlayfs/inode.c,
    ovl_aops) though the file system below, which is what open() asks, may not. Then each request ends in EIO.
    """
    try:
        os.close(os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise _refusal("open", f"/proc/self/fd/{file}", error) from error
        return False
    return True


def _state_of(number: int, path: str) -> LoopDevice:
    device = _look(number)
    if device is None:  # Detached by somebody else the moment we had it.
        raise LoopRefused("LOOP_GET_STATUS64", path, errno.ENXIO)
    return device


def _look(number: int) -> LoopDevice | None:
    """The state of one device; None when it has no file, or is not ours to open."""
    path = f"/dev/loop{number}"
    try:
        node = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        # EPERM is the device cgroup's: sysfs shows every container the same loop devices, and that one is somebody
        # else's.
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EPERM):
            return None
        raise _refusal("open", path, error) from error
    try:
        info = _status(node, path)
        if info is None:
            return None
        # Read while the node is open, so that the number cannot change hands in between. lo_file_name in the ioctl's
        # answer is what the attaching program said, cut to 63 bytes; this is what the kernel itself knows.
        name = text(SYS_BLOCK / f"loop{number}/loop/backing_file")
        if not name:
            return None
    finally:
        os.close(node)
    deleted = name.endswith(" (deleted)") and not _names(name, info.backing)
    return LoopDevice(
        number=number,
        backing_file=name.removesuffix(" (deleted)") if deleted else name,
        backing=info.backing,
        offset=info.offset,
        direct_io=bool(info.flags & LO_FLAGS_DIRECT_IO),
        autoclear=bool(info.flags & LO_FLAGS_AUTOCLEAR),
        deleted=deleted,
    )


def _names(path: str, backing: Inode) -> bool:
    try:
        status = Path(path).stat()
    except OSError:
        return False
    return Inode(status.st_dev, status.st_ino) == backing


def _status(node: int, path: str) -> _Info | None:
    """None when nothing is attached.

    Kernel: loop_get_status() fills lo_device and lo_inode from vfs_getattr(), so they are what stat() of the file
            tells.
    """
    buffer = bytearray(_INFO.size)
    try:
        fcntl.ioctl(node, LOOP_GET_STATUS64, buffer)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise _refusal("LOOP_GET_STATUS64", path, error) from error
    device, inode, _, offset, _, _, _, _, flags, *_ = _INFO.unpack(buffer)
    return _Info(Inode(device, inode), offset, flags)
