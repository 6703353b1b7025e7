"""dm-raid's superblock: read, and changed in one place."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.dm.superblock import BLOCK, Superblock, parse, with_resync_from_start

IN_SYNC = 2**64 - 1


def block(
    *, recovery: int = IN_SYNC, resync: int = IN_SYNC, failed: int = 0, magic: bytes = b"DmRd", rest: bytes = b""
) -> bytes:
    """struct dm_raid_superblock of leg 1 of 3 after 77 events."""
    head = magic + struct.pack("<IIIQQQQ", 0, 3, 1, 77, failed, recovery, resync)
    return (head + rest).ljust(BLOCK, b"\0")


def test_a_superblock_is_read() -> None:
    """The words at their places in drivers/md/dm-raid.c."""
    assert parse(block(recovery=2048, resync=4096, failed=0b101)) == Superblock(
        legs=3, position=1, events=77, failed=5, recovery_offset=2048, resync_offset=4096
    )


def test_all_ones_mean_in_sync() -> None:
    """MaxSector is no offset."""
    superblock = parse(block())
    assert superblock is not None
    assert (superblock.recovery_offset, superblock.resync_offset) == (None, None)


@pytest.mark.parametrize("raw", [bytes(BLOCK), b"\xff" * BLOCK, block(magic=b"dRmD")])
def test_what_has_another_magic_is_no_superblock(raw: bytes) -> None:
    """A zeroed metadata device is what tells a new member from an old one."""
    assert parse(raw) is None


@given(st.integers(0, IN_SYNC), st.binary(max_size=BLOCK - 48))
def test_asking_for_a_resync_changes_eight_bytes(resync: int, rest: bytes) -> None:
    """Everything else in the block is the kernel's, reshape fields and all."""
    before = block(resync=resync, rest=rest)
    after = with_resync_from_start(before)
    assert after[40:48] == bytes(8)
    assert after[:40] + after[48:] == before[:40] + before[48:]


def test_a_block_without_superblock_is_not_changed() -> None:
    """Eight zeros in whatever else lies there would be damage."""
    with pytest.raises(AssertionError, match="no superblock"):
        with_resync_from_start(bytes(BLOCK))
