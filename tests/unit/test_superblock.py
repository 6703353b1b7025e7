"""dm-raid's superblock: read, and changed in one place."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.dm.superblock import BLOCK, Superblock, agreed, parse, with_resync_from_start

IN_SYNC = 2**64 - 1


def block(
    *,
    legs: int = 3,
    position: int = 1,
    events: int = 77,
    recovery: int = IN_SYNC,
    resync: int = IN_SYNC,
    failed: int = 0,
    magic: bytes = b"DmRd",
    rest: bytes = b"",
) -> bytes:
    """struct dm_raid_superblock: of leg 1 of 3 after 77 events, unless told."""
    head = magic + struct.pack("<IIIQQQQ", 0, legs, position, events, failed, recovery, resync)
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


def test_those_that_serve_again_agree_whom_they_call_failed() -> None:
    """The freshest one's words, the lowest counter, each with its own position; and nobody else is failed."""
    blocks = {
        1: block(position=1, events=9, failed=0b001, legs=3),
        2: block(position=2, events=12, failed=0b011, legs=3),
    }
    made = {position: parse(each) for position, each in agreed(blocks, frozenset({0})).items()}
    assert {position: head and (head.position, head.events, head.failed) for position, head in made.items()} == {
        1: (1, 9, 0b001),
        2: (2, 9, 0b001),
    }


def test_when_all_serve_again_they_are_made_equal() -> None:
    """As after a power cut: the regions of the bitmap."""
    blocks = {0: block(position=0, events=9), 1: block(position=1, events=12, failed=0b01)}
    heads = [parse(each) for each in agreed(blocks, frozenset()).values()]
    assert [head and (head.resync_offset, head.failed, head.recovery_offset) for head in heads] == [(0, 0, None)] * 2


def test_a_member_without_superblock_cannot_serve_again() -> None:
    with pytest.raises(ValueError, match="position 1"):
        agreed({0: block(), 1: bytes(BLOCK)}, frozenset())
