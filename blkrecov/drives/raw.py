"""Blocks of a device, read and written past every cache, and zeroed by the kernel.

Direct I/O throughout: the page cache of a lower device is not told of what comes through device-mapper, so a buffered read
may show what was there before.

All of it raises Stalled too: for a device, or one below it, that would not answer.
"""

import errno
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from blkrecov.dm.stalled import refuse_stalled
from blkrecov.drives.store import DriveIoError, IoCounter
from blkrecov.errors import pass_on_exhaustion

T = TypeVar("T")

# linux/fs.h, _IO(0x12, ...)
_BLKRRPART: Final = 0x125F
_BLKFLSBUF: Final = 0x1261
_BLKDISCARD: Final = 0x1277
_BLKZEROOUT: Final = 0x127F

# udev opens disks and partitions, for moments, to look at them.
_PARTITIONS_PATIENCE_S: Final = 1.0
_PARTITIONS_PAUSE_S: Final = 0.05


def read(node: str, offset: int, length: int, counter: IoCounter) -> bytes:
    """Exactly `length` bytes. Offset and length are multiples of the device's logical block.

    Raises: DriveIoError.
    """
    buffer = mmap.mmap(-1, length)
    with _opened(node, os.O_RDONLY) as descriptor:
        got = _checked("read", node, lambda: os.preadv(descriptor, [buffer], offset))
    counter.bytes_read += got
    if got != length:
        raise DriveIoError("read", node, errno.ENODATA)
    return buffer[:]


def write(node: str, offset: int, data: bytes, counter: IoCounter) -> None:
    """Write, and wait until the medium has it.

    Raises: DriveIoError.
    """
    buffer = mmap.mmap(-1, len(data))
    buffer[:] = data
    with _opened(node, os.O_WRONLY) as descriptor:
        put = _checked("write", node, lambda: os.pwritev(descriptor, [buffer], offset))
        counter.bytes_written += put
        if put != len(data):
            raise DriveIoError("write", node, errno.EIO)
        _checked("flush", node, lambda: os.fdatasync(descriptor))


def zero(node: str, offset: int, length: int) -> None:
    """Have the kernel make a range read as zeros; a loop device punches a hole for it. Nothing passes through this process.

    Raises: DriveIoError.
    """
    with _opened(node, os.O_WRONLY) as descriptor:
        _checked("zero", node, lambda: fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("=QQ", offset, length)))
        _checked("flush", node, lambda: os.fdatasync(descriptor))


def discard(node: str, offset: int, length: int) -> None:
    """Give a range's space back to what is below; a loop device punches a hole, which reads as zeros.

    Raises: DriveIoError, where nothing below can do that too.
    """
    with _opened(node, os.O_WRONLY) as descriptor:
        _checked("discard", node, lambda: fcntl.ioctl(descriptor, _BLKDISCARD, struct.pack("=QQ", offset, length)))
        _checked("flush", node, lambda: os.fdatasync(descriptor))


def forget(node: str) -> None:
    """Drop what the page cache holds of a device: it was changed underneath. Raises: DriveIoError."""
    with _opened(node, os.O_RDONLY) as descriptor:
        _checked("drop the cache of", node, lambda: fcntl.ioctl(descriptor, _BLKFLSBUF))


def reread_partitions(node: str) -> None:
    """Have the kernel look for partitions anew. A disk one of whose partitions stays in use keeps those it has.

    Raises: DriveIoError.
    """
    deadline = time.monotonic() + _PARTITIONS_PATIENCE_S
    with _opened(node, os.O_RDONLY) as descriptor:
        while True:
            try:
                fcntl.ioctl(descriptor, _BLKRRPART)
            except OSError as error:
                if error.errno == errno.EBUSY and time.monotonic() < deadline:
                    time.sleep(_PARTITIONS_PAUSE_S)
                    continue
                # EINVAL: a device without partitions, as device-mapper's are.
                if error.errno not in (errno.EBUSY, errno.EINVAL):
                    raise DriveIoError("read the partitions of", node, error.errno or errno.EIO) from error
            return


def flush(node: str) -> None:
    """Wait until the medium has all that it has acknowledged, whoever wrote it.

    Raises: DriveIoError.
    """
    with _opened(node, os.O_WRONLY) as descriptor:
        _checked("flush", node, lambda: os.fdatasync(descriptor))


@contextmanager
def _opened(node: str, flags: int) -> Iterator[int]:
    refuse_stalled(node)
    descriptor = _checked("open", node, lambda: os.open(node, flags | os.O_DIRECT | os.O_CLOEXEC))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _checked(operation: str, node: str, act: Callable[[], T]) -> T:
    try:
        return act()
    except OSError as error:
        pass_on_exhaustion(error)
        raise DriveIoError(operation, node, error.errno or errno.EIO) from error
