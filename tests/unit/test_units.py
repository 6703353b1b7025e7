"""Sizes: read as people write them, shown as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.errors import InvalidArgument
from blkrecov.units import format_size, in_bytes, parse_size, round_down, round_up, sectors


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1048576),
        ("512B", 512),
        ("4k", 4096),
        ("512M", 536870912),
        ("512MB", 536870912),
        ("512MiB", 536870912),
        (" 4 G ", 4294967296),
        ("1.5T", 1649267441664),
        ("0.5K", 512),
        ("2P", 2251799813685248),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    """All units are powers of 1024, with or without the i: a drive is never smaller than its owner meant."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1,5G", "4GG", "4 X", "1e9", "0", "0M", "1.5", "0.3K", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Nothing is guessed: a wrong size is a wrong LUN."""
    with pytest.raises(InvalidArgument):
        parse_size(text)


@pytest.mark.parametrize("text", ["4\N{KELVIN SIGN}", "9" * 5000], ids=["kelvin", "digits"])
def test_odd_input_is_refused_like_any_other(text: str) -> None:
    """A kelvin sign matches K where case is ignored; Python's int() gives up on thousands of digits."""
    with pytest.raises(InvalidArgument):
        parse_size(text)


@given(st.text(alphabet="0123456789. KMGTPBikmgtpb-", max_size=12))
def test_any_text_is_a_size_above_zero_or_refused(text: str) -> None:
    """No text of the command line ends in a traceback."""
    try:
        size = parse_size(text)
    except InvalidArgument:
        return
    assert size > 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (252 * 2**20, "252 MiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**40, "1 TiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_a_size_is_shown_in_the_largest_unit_that_fits(size: int, text: str) -> None:
    """One digit after the point, and none where it would be 0."""
    assert format_size(size) == text


@given(st.integers(min_value=1, max_value=1023), st.sampled_from([" B", " KiB", " MiB", " GiB", " TiB"]))
def test_what_is_shown_can_be_typed_again(number: int, unit: str) -> None:
    """People copy sizes from one command's output into the next."""
    assert format_size(parse_size(f"{number}{unit}")) == f"{number}{unit}"


def test_sectors_and_bytes_convert_exactly() -> None:
    """A sector is 512 bytes everywhere in the kernel."""
    assert sectors(1024 * 1024) == 2048
    assert in_bytes(2048) == 1024 * 1024


def test_a_part_of_a_sector_is_our_own_mistake() -> None:
    """Rounding in silence would move data."""
    with pytest.raises(AssertionError, match="513 bytes"):
        sectors(513)


def test_rounding_leaves_whole_units_alone() -> None:
    """Up and down meet on a multiple, and are one unit apart elsewhere."""
    assert (round_up(4096, 2048), round_down(4096, 2048)) == (4096, 4096)
    assert (round_up(4097, 2048), round_down(4097, 2048)) == (6144, 4096)
