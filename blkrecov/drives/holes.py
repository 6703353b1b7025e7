"""Where a drive's file has holes: what never was written there, or was discarded. Asks the file system, and reads no data.

Kernel: lseek(2), SEEK_DATA and SEEK_HOLE. A file system that knows no holes calls everything data, which is right.
"""

import errno
import os
from collections.abc import Iterator, Sequence

from blkrecov.changes import Runs, union
from blkrecov.drives.store import DriveIoError
from blkrecov.errors import pass_on_exhaustion
from blkrecov.model import Extent
from blkrecov.units import SECTOR


def data(path: str, extents: Sequence[Extent]) -> Runs:
    """What of these extents of a file is no hole, in sectors counted through the extents one after the other.

    Raises: DriveIoError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return union(tuple(_runs(descriptor, extents)))
        finally:
            os.close(descriptor)
    except OSError as error:
        pass_on_exhaustion(error)
        raise DriveIoError("look for holes in", path, error.errno or errno.EIO) from error


def _runs(descriptor: int, extents: Sequence[Extent]) -> Iterator[Extent]:
    before = 0
    for extent in extents:
        position, end = extent.start * SECTOR, extent.end * SECTOR
        offset = before * SECTOR - position
        while position < end:
            try:
                begin = os.lseek(descriptor, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # Only holes from here to the end of the file.
                    raise
                break
            if begin >= end:
                break
            position = min(os.lseek(descriptor, begin, os.SEEK_HOLE), end)
            first, last = (begin + offset) // SECTOR, -(-(position + offset) // SECTOR)
            yield Extent(first, last - first)
        before += extent.length
