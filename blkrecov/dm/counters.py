"""The kernel's own count of what went to and from a block device, by number (major:minor).

Counted since the device was made, or since the machine started. A device that has gone counts nothing.
Kernel: Documentation/block/stat.rst, /sys/dev/block/MAJOR:MINOR/stat.
"""

from blkrecov.blockdev import SYSFS, text
from blkrecov.traffic import Counters
from blkrecov.units import Sectors, in_bytes


def reads(number: str) -> int:
    """Reads that were completed: field 1."""
    return _fields(number)[0]


def sectors_read(number: str) -> Sectors:
    """Sectors that were read: field 3."""
    return Sectors(_fields(number)[2])


def sectors_written(number: str) -> Sectors:
    """Sectors that were written: field 7."""
    return Sectors(_fields(number)[6])


def sectors_moved(number: str) -> Sectors:
    """Sectors that were read or written: fields 3 and 7. Discards and flushes are not among them."""
    fields = _fields(number)
    return Sectors(fields[2] + fields[6])


def count(number: str) -> Counters:
    """All of it: fields 1, 3, 5, 7 and 10."""
    fields = _fields(number)
    return Counters(
        reads=fields[0],
        read=in_bytes(fields[2]),
        writes=fields[4],
        written=in_bytes(fields[6]),
        busy_ms=fields[9],
    )


def _fields(number: str) -> list[int]:
    return [int(word) for word in text(SYSFS / number / "stat").split()] or [0] * 17
