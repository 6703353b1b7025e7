"""dm-mirror's disk log: which regions are still to be copied, as the bytes of its device.

    byte 0      header: magic, version, number of regions
    byte 1024   one bit per region, in words of 64 bits, the lowest bit of the first byte first; 1 is clean, 0 is dirty

The kernel reads it at every resume and copies the regions that are dirty. So a log that is written before the table is loaded
says what to copy. What is no log means a full copy; nothing in the header says which mirror it belongs to, so a log that another
left there would be believed.

Kernel: drivers/md/dm-log.c, struct log_header_disk, disk_resume(). Little endian.
"""

import struct
from collections.abc import Iterable
from typing import Final

from blkrecov.units import KIB, Bytes, round_up

# The kernel reads and writes the log in whole logical blocks of its device; these have so many bytes or fewer.
BLOCK: Final = 4096
_MAGIC: Final = 0x4D695272  # "rRiM", as it lies on the medium.
_VERSION: Final = 2
_BITS_AT: Final = KIB
_WORD: Final = 64
_HEADER: Final = struct.Struct("<IIQ")


def log_length(regions: int) -> Bytes:
    """Bytes of a log for so many regions: whole blocks, so that it fits whatever the blocks of its device are."""
    return Bytes(round_up(_bits_end(regions), BLOCK))


def seeded(regions: int, dirty: Iterable[int]) -> bytes:
    """A log of so many regions in which these are dirty and all others are clean; log_length() bytes.

    To be loaded with neither "sync" nor "nosync", which would overrule it.
    """
    bits = (1 << regions) - 1
    clean = bytearray(bits.to_bytes(log_length(regions) - _BITS_AT, "little"))
    for region in dirty:
        assert 0 <= region < regions, f"region {region} of {regions}"
        clean[region // 8] &= ~(1 << region % 8)
    return _HEADER.pack(_MAGIC, _VERSION, regions).ljust(_BITS_AT, b"\0") + clean


def dirty(data: bytes, regions: int) -> tuple[int, ...] | None:
    """The dirty ones of a mirror's regions by its log, ascending; None where there is no log, or not all of it.

    Regions that the log does not cover are dirty, as they are for the kernel: the mirror has grown.
    """
    if len(data) < _bits_end(regions):
        return None
    magic, version, covered = _HEADER.unpack_from(data)
    if (magic, version) != (_MAGIC, _VERSION):
        return None
    clean = data[_BITS_AT:]
    return tuple(region for region in range(regions) if region >= covered or not clean[region // 8] >> region % 8 & 1)


def _bits_end(regions: int) -> int:
    return _BITS_AT + round_up(regions, _WORD) // 8
