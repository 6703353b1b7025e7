"""Sectors and bytes: two types that are never mixed by accident, and the exact ways between them.

Device-mapper, md and sysfs count in sectors of 512 bytes, whatever the logical block size of the device. People, files and our
JSON count in bytes.
"""

import re
from typing import Final, NewType

from blkrecov.errors import InvalidArgument

Sectors = NewType("Sectors", int)
Bytes = NewType("Bytes", int)

SECTOR: Final = 512
KIB: Final = 2**10
MIB: Final = 2**20
GIB: Final = 2**30
TIB: Final = 2**40

_UNITS: Final = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB, "P": 2**50}
_SIZE: Final = re.compile(r"(\d{1,18})(?:\.(\d{1,18}))?\s*(?:([KMGTP])(?:I?B)?|B)?", re.IGNORECASE | re.ASCII)


def sectors(size: int) -> Sectors:
    """Sectors of a size in bytes that is a whole number of them."""
    assert size % SECTOR == 0, f"{size} bytes are no whole number of sectors"
    return Sectors(size // SECTOR)


def in_bytes(length: int) -> Bytes:
    """Bytes of a length in sectors."""
    return Bytes(length * SECTOR)


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def round_down(value: int, unit: int) -> int:
    return value // unit * unit


def parse_size(text: str) -> Bytes:
    """Bytes of a size as people write it: 4G, 512MiB, 1.5T, 1048576. All units are powers of 1024.

    Raises: InvalidArgument for anything else, for nothing at all, and for a fraction of a byte.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f"{text!r} is not a size", remedy="write a number and a unit, such as 512M or 4G")
    whole, fraction, unit = match[1], match[2] or "", (match[3] or "").upper()
    scaled = int(whole + fraction) * _UNITS[unit]
    size, rest = divmod(scaled, 10 ** len(fraction))
    if rest or not size:
        raise InvalidArgument(
            f"{text!r} is not a whole number of bytes above zero", remedy="write a size such as 512M or 4G"
        )
    return Bytes(size)


def format_size(size: int) -> str:
    """A size for people, in the largest unit that leaves a number from 1 up: "252 MiB", "1.5 GiB", "0 B"."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size} B"
