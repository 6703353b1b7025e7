"""dm-snapshot's persistent exception store: which chunks of the origin it holds, and how much room it needs.

    chunk 0                 header
    chunk 1                 metadata area 0: one entry per exception, chunk bytes / 16 of them
    chunks 2 to 1+E         the exceptions' data, E being the entries of an area
    chunk 1+(E+1)*k         metadata area k, and its exceptions' data behind it

An origin's write is let go only when the old data and its entry are on the medium, so at any instant, after a power cut too, the
entries name every chunk that has changed. They name more than that: a chunk that was written to the snapshot itself has an entry
as well. This holds while the store is valid; one that ran out of room no longer hears of the origin's writes.

Kernel: drivers/md/dm-snap-persistent.c. Little endian; chunks are numbered from the start of the store.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from blkrecov.errors import ProviderFailure
from blkrecov.units import Sectors, in_bytes

_MAGIC: Final = 0x70416E53  # "SnAp"
_VERSION: Final = 1
# dm_exception_store_set_chunk_size() in drivers/md/dm-exception-store.c refuses what has 2^31 bytes or more.
_LARGEST_CHUNK: Final = Sectors(2**21)
_HEADER: Final = struct.Struct("<IIII")
_ENTRY: Final = struct.Struct("<QQ")


class MalformedStore(ProviderFailure):
    """What should be an exception store does not begin like one."""

    default_remedy = "delete the shadow copy; its LUN's data is not affected"

    def __init__(self, wrong: str) -> None:
        super().__init__(f"cannot read the snapshot's exception store: {wrong}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHeader:
    """A store's first words. One that is not valid never becomes so again, and its entries are not all."""

    valid: bool
    version: int
    chunk: Sectors


def parse_header(block: bytes) -> StoreHeader | None:
    """Read a store's header, the first 16 bytes of `block`; None for zeros, of which the kernel makes a new store.

    Raises:  MalformedStore for another magic or version, or a chunk that is no power of two.
    Kernel:  drivers/md/dm-snap-persistent.c, struct disk_header and read_header().
    """
    words = _HEADER.unpack_from(block)
    if not any(words):
        return None
    magic, valid, version, chunk = words
    if magic != _MAGIC:
        raise MalformedStore(f"its magic is {magic:#010x}")
    if version != _VERSION:
        raise MalformedStore(f"its version is {version}")
    if chunk.bit_count() != 1 or chunk > _LARGEST_CHUNK:
        raise MalformedStore(f"it speaks of chunks of {chunk} sectors")
    return StoreHeader(valid=bool(valid), version=version, chunk=Sectors(chunk))


def changed(read: Callable[[int, int], bytes], header: StoreHeader, total: Sectors) -> tuple[int, ...]:
    """The numbers of the origin's chunks that a valid store of `total` sectors holds, ascending.

    `read(offset, length)` gives so many bytes of the store; it is asked for whole metadata areas. It must go past the page cache,
    which does not hear of what the kernel writes to the store. A store in use may be read: entries are only ever appended, and
    the next area is zeroed before one is full.

    Kernel:  drivers/md/dm-snap-persistent.c, struct disk_exception, read_exceptions() and insert_exceptions().
    """
    assert header.valid, "a store that is not valid does not know all that has changed"
    area = in_bytes(header.chunk)
    distance = (_entries(header.chunk) + 1) * area
    chunks: list[int] = []
    for offset in range(area, in_bytes(total) - area + 1, distance):
        for old, new in _ENTRY.iter_unpack(read(offset, area)):
            if not new:
                return tuple(sorted(chunks))
            chunks.append(old)
    return tuple(sorted(chunks))


def store_length(chunks: int, chunk: Sectors) -> Sectors:
    """Sectors of a store that holds so many exceptions and stays valid: header, metadata and data.

    The exception that fills an area needs room for the next area as well. Without it the kernel takes the exception, fails to
    zero what lies behind the store's end, and calls the store invalid.

    Kernel:  drivers/md/dm-snap-persistent.c, persistent_prepare_exception() and persistent_commit_exception().
    """
    areas = chunks // _entries(chunk) + 1
    return Sectors((1 + areas + chunks) * chunk)


def capacity(length: Sectors, chunk: Sectors) -> int:
    """The most exceptions that a store of so many sectors holds and stays valid; 0 too where not even a new store fits."""
    entries = _entries(chunk)
    # Header and first area are always there.
    full, rest = divmod(length // chunk - 2, entries + 1)
    return max(full * entries + min(rest, entries - 1), 0)


def _entries(chunk: Sectors) -> int:
    """Entries of a metadata area, which is a chunk."""
    return in_bytes(chunk) // _ENTRY.size
