"""dm-raid's superblock: what one leg remembers of its array.

It has no UUID, no checksum and no mark for a clean stop. So it is read for few questions: is there one at all, how far is the
leg, was the array in sync, whom does it call failed; and written for two purposes: to make the kernel resynchronise after a power
cut the regions that its bitmap calls dirty, which it does not do by itself, and to have it load an array again that had lost too
many legs for a while.

Kernel: drivers/md/dm-raid.c, struct dm_raid_superblock. Little endian, packed, at byte 0 of a leg's metadata device.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

BLOCK: Final = 4096
_MAGIC: Final = 0x64526D44  # "DmRd"
_IN_SYNC: Final = 2**64 - 1
_HEAD: Final = struct.Struct("<IIIIQQQQ")
_RESYNC_OFFSET: Final = 40
_MORE_FAILED: Final = slice(120, 144)
assert _HEAD.size == _RESYNC_OFFSET + 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """What is read of it. Offsets are sectors; None is "in sync"."""

    legs: int
    position: int
    events: int
    failed: int
    """Bit N: leg N had failed when this was written. Only the freshest superblock's word counts."""
    recovery_offset: int | None
    """How far this leg has been rebuilt."""
    resync_offset: int | None
    """How far the array has been synchronised."""

    @property
    def lost(self) -> frozenset[int]:
        """The legs that it calls failed."""
        return frozenset(index for index in range(self.failed.bit_length()) if self.failed >> index & 1)


def parse(block: bytes) -> Superblock | None:
    """The superblock in a metadata device's first block; None where there is none, as on a zeroed device."""
    magic, _features, legs, position, events, failed, recovery, resync = _HEAD.unpack_from(block)
    if magic != _MAGIC:
        return None
    return Superblock(
        legs=legs,
        position=position,
        events=events,
        failed=failed,
        recovery_offset=None if recovery == _IN_SYNC else recovery,
        resync_offset=None if resync == _IN_SYNC else resync,
    )


def with_resync_from_start(block: bytes) -> bytes:
    """The same block with array_resync_offset 0: the next load resynchronises every region whose bitmap bit is set.

    Without it the kernel takes the set bits of an array that had been in sync for "dirty but equal" and clears them some
    seconds later: mirrors stay different and parity stays wrong, under a status of "AA idle" (Linux 6.1 and 6.12).
    """
    assert parse(block) is not None, "there is no superblock to change"
    return block[:_RESYNC_OFFSET] + bytes(8) + block[_RESYNC_OFFSET + 8 :]


def agreed(blocks: Mapping[int, bytes], failed: frozenset[int], *, incremental: bool = True) -> dict[int, bytes]:
    """The superblocks of legs that are to serve again, by position: the freshest one's words for all of them, no leg called
    failed but these, and the lowest of their event counters; or one more than the highest.

    The kernel takes the bitmap of the first leg in sync, and regenerates everything where that is older than the superblocks
    (drivers/md/md-bitmap.c, md_bitmap_read_sb()). The lowest counter makes it believe the bitmap. That is right where no write
    was acknowledged after the array had lost too much, for until then each leg that served has every bit.

    With no leg failed, what was being written then is resynchronised. Where one is, the others are not equal to anything.

    Raises: ValueError where a block has no superblock.
    """
    found = {position: parse(block) for position, block in blocks.items()}
    heads = {position: head for position, head in found.items() if head is not None}
    if set(heads) != set(blocks):
        raise ValueError(f"there is no superblock at position {', '.join(map(str, sorted(set(blocks) - set(heads))))}")
    freshest = max(heads, key=lambda position: heads[position].events)
    counters = [head.events for head in heads.values()]
    events = min(counters) if incremental else max(counters) + 1
    word = sum(1 << position for position in failed)
    made = {}
    for position in blocks:
        block = bytearray(blocks[freshest])
        words = list(_HEAD.unpack_from(block))
        words[3:7] = position, events, word & 2**64 - 1, _IN_SYNC
        if not failed:
            words[7] = 0
        _HEAD.pack_into(block, 0, *words)
        block[_MORE_FAILED] = (word >> 64).to_bytes(24, "little")
        made[position] = bytes(block)
    return made
