"""dm-raid's superblock: what one leg remembers of its array.

It has no UUID, no checksum and no mark for a clean stop. So it is read for three questions only: is there one at all, how far
is the leg, and was the array in sync; and written for one purpose: to make the kernel resynchronise after a power cut the
regions that its bitmap calls dirty, which it does not do by itself.

Kernel: drivers/md/dm-raid.c, struct dm_raid_superblock. Little endian, packed, at byte 0 of a leg's metadata device.
"""

import struct
from dataclasses import dataclass
from typing import Final

BLOCK: Final = 4096
_MAGIC: Final = 0x64526D44  # "DmRd"
_IN_SYNC: Final = 2**64 - 1
_HEAD: Final = struct.Struct("<IIIIQQQQ")
_RESYNC_OFFSET: Final = 40
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
