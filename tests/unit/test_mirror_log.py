"""dm-mirror's disk log: what is seeded is what the kernel copies."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.dm.mirror_log import dirty, log_length, seeded


def log(bits: str, *, magic: bytes = b"rRiM", version: int = 2, regions: int = 16) -> bytes:
    """A log with these bits, in hexadecimal."""
    return (magic + struct.pack("<IQ", version, regions)).ljust(1024, b"\0") + bytes.fromhex(bits).ljust(3072, b"\0")


def test_a_log_is_written() -> None:
    """Regions 0, 9 and 66 of 70 are dirty: their bits are 0. So are those that stand for no region."""
    data = seeded(70, [0, 9, 66])
    assert data[:16].hex(" ", 4) == "7252694d 02000000 46000000 00000000"
    assert data[16:1024] == bytes(1008)
    assert data[1024:].hex(" ").startswith("fe fd ff ff ff ff ff ff 3b 00 00 00")
    assert len(data) == 4096


def test_a_log_is_read() -> None:
    """What the kernel has not copied yet."""
    assert dirty(log("fe7f"), 16) == (0, 15)


def test_regions_that_the_log_does_not_cover_are_dirty() -> None:
    """disk_resume() clears their bits, whatever they were: the mirror has grown."""
    assert dirty(log("ffffff", regions=16), 18) == (16, 17)


def test_regions_that_are_no_more_are_not_told_of() -> None:
    """The mirror has shrunk."""
    assert dirty(log("fc7f", regions=16), 1) == (0,)


@pytest.mark.parametrize(
    "data",
    [
        bytes(4096),
        log("ffff", magic=b"MiRr"),
        log("ffff", version=3),
        log("ffff")[:1031],
        b"",
    ],
)
def test_what_is_no_log_tells_nothing(data: bytes) -> None:
    """The kernel copies everything then."""
    assert dirty(data, 16) is None


def test_a_log_is_read_without_what_pads_it() -> None:
    """The bits come in words of 64."""
    assert dirty(log("feff")[:1032], 16) == (0,)


@pytest.mark.parametrize(
    ("regions", "length"), [(1, 4096), (24576, 4096), (24577, 8192), (2**17, 20480), (2**20, 135168)]
)
def test_how_long_a_log_is(regions: int, length: int) -> None:
    """A kilobyte of header and a bit per region, in whole blocks of 4096 bytes."""
    assert log_length(regions) == length
    assert len(seeded(regions, ())) == length


@pytest.mark.parametrize("region", [-1, 16])
def test_a_region_that_does_not_exist_cannot_be_dirty(region: int) -> None:
    """Its change would go uncopied."""
    with pytest.raises(AssertionError, match=f"region {region} of 16"):
        seeded(16, [region])


@given(st.data(), st.integers(1, 70_000))
def test_a_log_tells_what_was_seeded(data: st.DataObject, regions: int) -> None:
    """However often, and in whatever order, a region was named."""
    named = data.draw(st.lists(st.integers(0, regions - 1), max_size=50))
    assert dirty(seeded(regions, named), regions) == tuple(sorted(set(named)))
