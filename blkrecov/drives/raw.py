"""Blocks of a device, read and written past every cache, and zeroed by the kernel.

Direct I/O throughout: the page cache of a lower device is not told of what comes through device-mapper, so a buffered read
may show what was there before.
"""

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from blkrecov.drives.store import DriveIoError, IoCounter
from blkrecov.errors import pass_on_exhaustion

T = TypeVar("T")

_BLKZEROOUT: Final = 0x127F  # linux/fs.h, _IO(0x12, 127)


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


def flush(node: str) -> None:
    """Wait until the medium has all that it has acknowledged, whoever wrote it.

    Raises: DriveIoError.
    """
    with _opened(node, os.O_WRONLY) as descriptor:
        _checked("flush", node, lambda: os.fdatasync(descriptor))


@contextmanager
def _opened(node: str, flags: int) -> Iterator[int]:
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
