"""Blocks that say who they are, and the log that says what must be there. Pure.

Every sector of a written block names its LUN, its block, its place in the block and the number of the write, under a checksum.
So a block that was torn by a power cut, came from elsewhere or was mixed out of two writes is told from one that is old.

The log is what a host would know: a line "i" before a write is issued, a line "f" when it was acknowledged and a flush after it
was acknowledged too. From then on the block holds this write or one that was issued later, whatever happens to the power.
"""

import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

SECTOR: Final = 512
BLOCK: Final = 4096
_MAGIC: Final = b"crashed!"
_HEAD: Final = struct.Struct("<8sIIQI")
_CRC: Final = struct.Struct("<I")
_REPEATS: Final = SECTOR // (_HEAD.size + _CRC.size)
assert _REPEATS * (_HEAD.size + _CRC.size) == SECTOR

Block = tuple[int, int]
"""A LUN's number, and a block's number in it."""


def _sector(lun: int, block: int, write: int, place: int) -> bytes:
    head = _HEAD.pack(_MAGIC, lun, block, write, place)
    return (head + _CRC.pack(zlib.crc32(head))) * _REPEATS


def content(lun: int, first: int, count: int, write: int) -> bytes:
    """What write number `write` puts into `count` blocks from `first` on."""
    return b"".join(
        _sector(lun, block, write, place) for block in range(first, first + count) for place in range(BLOCK // SECTOR)
    )


def written_by(lun: int, block: int, data: bytes) -> tuple[int | None, ...]:
    """The numbers of the writes that the sectors of a block are from. 0: never written. None: nothing that was written here."""
    return tuple(
        _write_of(lun, block, place, data[place * SECTOR : (place + 1) * SECTOR])
        for place in range(len(data) // SECTOR)
    )


def _write_of(lun: int, block: int, place: int, data: bytes) -> int | None:
    if not any(data):
        return 0
    magic, said_lun, said_block, write, said_place = _HEAD.unpack_from(data)
    if (magic, said_lun, said_block, said_place) != (_MAGIC, lun, block, place):
        return None
    return int(write) if data == _sector(lun, block, write, place) else None


@dataclass(slots=True)
class History:
    """What was written where. Write numbers grow; two writes to a block never overlap in time."""

    issued: defaultdict[Block, set[int]] = field(default_factory=lambda: defaultdict(set))
    flushed: dict[Block, int] = field(default_factory=dict)
    writes: int = 0
    flushes: int = 0

    def read(self, log: str) -> None:
        """Take in a log. A line without its end was being written when the power went: what it speaks of was not done."""
        for line in log.splitlines(keepends=True):
            if not line.endswith("\n"):
                continue
            word, *numbers = line.split()
            lun, write, first, count = map(int, numbers)
            for block in range(first, first + count):
                if word == "i":
                    self.issued[lun, block].add(write)
                else:
                    self.flushed[lun, block] = max(write, self.flushed.get((lun, block), 0))
            self.writes += word == "i"
            self.flushes += word == "f"

    def open_blocks(self) -> frozenset[Block]:
        """Blocks with a write that was issued and not flushed: the only ones that a power cut may leave in doubt."""
        return frozenset(block for block, writes in self.issued.items() if max(writes) > self.flushed.get(block, 0))

    def losses(self, lun: int, data: bytes) -> Iterator[tuple[int, str]]:
        """Blocks of a LUN's contents that break the promise, each with how."""
        for block in range(len(data) // BLOCK):
            least = self.flushed.get((lun, block), 0)
            allowed = self.issued.get((lun, block), set()) | {0}
            found = written_by(lun, block, data[block * BLOCK : (block + 1) * BLOCK])
            if any(write is None or write < least or write not in allowed for write in found):
                yield block, f"write {least} was flushed, its sectors hold writes {found}"


def same_row(block: int, data_members: int, chunk: int) -> Iterable[int]:
    """The blocks of a parity LUN that share their parity with a block, itself included; `chunk` in blocks."""
    stripe, within = divmod(block, chunk * data_members)
    return (stripe * chunk * data_members + member * chunk + within % chunk for member in range(data_members))
