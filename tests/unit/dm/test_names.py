"""Names are unambiguous, fit, and say whose a device is."""

import re
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from blkrecov.dm.abi import MAX_NAME, MAX_UUID
from blkrecov.dm.names import (
    DmUuid,
    NameKind,
    check_name,
    data_name,
    dm_name,
    dm_uuid,
    dm_uuid_in,
    drive_name,
    is_side,
    lun_name,
    meta_name,
    parse_dm_uuid,
    plex_name,
    side_name,
    split_dm_name,
)
from blkrecov.errors import InvalidArgument

SOME_UUID = UUID("0123456789abcdef0123456789abcdef")


def valid_names(kind: NameKind) -> st.SearchStrategy[str]:
    def is_valid(text: str) -> bool:
        return len(text.replace("-", "--")) <= kind.limit and (kind is not NameKind.LUN or text != "drive")

    # Few letters, many hyphens, and the words that our own names use: that is where two names could meet.
    words = st.lists(
        st.sampled_from(["drive", "plex", "rmeta_0", "a", "-", "--", "_", ".", "+", "b1"]), min_size=1, max_size=8
    )
    return words.map("".join).filter(lambda text: re.match("[A-Za-z0-9]", text) is not None).filter(is_valid)


ARRAYS, LUNS, DRIVES = (valid_names(kind) for kind in NameKind)


def test_names_of_all_layers() -> None:
    """These are on disk in nobody's configuration but in everybody's scripts."""
    assert lun_name("a0", "db") == "blkrecov-a0-db"
    assert plex_name("a0", "db") == "blkrecov-a0-db-plex"
    assert meta_name("a0", "db", 0) == "blkrecov-a0-db-rmeta_0"
    assert data_name("a0", "db", 12) == "blkrecov-a0-db-rimage_12"
    assert side_name("a0", "db", 12, "rimage_from") == "blkrecov-a0-db-rimage_12_from"
    assert side_name("a0", "db", 0, "rimage_log_3") == "blkrecov-a0-db-rimage_0_log_3"
    assert drive_name("a0", "d0") == "blkrecov-a0-drive-d0"


def test_hyphens_inside_names_are_doubled() -> None:
    """LUN "drive-d0" is not drive "d0"."""
    assert lun_name("a", "drive-d0") == "blkrecov-a-drive--d0"
    assert lun_name("my-array", "x-") == "blkrecov-my--array-x--"


@given(ARRAYS, st.lists(LUNS, min_size=1, max_size=2))
def test_a_name_splits_into_what_it_was_made_of(array: str, parts: list[str]) -> None:
    """The sweep after a crash goes by names."""
    try:
        name = dm_name(array, *parts)
    except AssertionError:
        assume(False)
    assert split_dm_name(name) == (array, *parts)


@given(ARRAYS, LUNS, DRIVES, st.integers(0, 252))
def test_every_valid_name_fits_and_none_meets_another(array: str, lun: str, drive: str, index: int) -> None:
    """A drive called "plex" and a LUN called "drive" would meet; so LUNs are not called that."""
    names = [
        lun_name(array, lun),
        plex_name(array, lun),
        meta_name(array, lun, index),
        data_name(array, lun, index),
        side_name(array, lun, index, "rmeta_to"),
        side_name(array, lun, index, "rimage_to"),
        side_name(array, lun, index, "rimage_log_15"),
        drive_name(array, drive),
    ]
    assert len(set(names)) == len(names)
    assert all(len(name) <= MAX_NAME for name in names)


@given(ARRAYS, LUNS, ARRAYS, LUNS, DRIVES)
def test_different_objects_have_different_names(array: str, lun: str, other: str, another: str, drive: str) -> None:
    """Whatever the hyphens."""
    assert (plex_name(array, lun) == plex_name(other, another)) == ((array, lun) == (other, another))
    assert lun_name(other, another) not in {plex_name(array, lun), drive_name(array, drive)}
    assert plex_name(other, another) != drive_name(array, drive)


@pytest.mark.parametrize("name", ["vg0-lv0", "blkrecov", "blkrecov-", "blkrecov--a-b", "xblkrecov-a", "blkrecov-a b-c"])
def test_foreign_names_are_not_ours(name: str) -> None:
    """Nothing that somebody else made is ever swept away."""
    assert split_dm_name(name) is None


@pytest.mark.parametrize("text", ["", "-a", ".a", "a b", "a/b", "a\n", "ä", "a" * 49, "a" + "-" * 24])
@pytest.mark.parametrize("kind", list(NameKind))
def test_bad_names_are_refused(kind: NameKind, text: str) -> None:
    """A hyphen counts twice, as it is written."""
    with pytest.raises(InvalidArgument):
        check_name(kind, text)


def test_limits_and_reserved_words_depend_on_the_kind() -> None:
    """Only a LUN's name stands where "drive" does."""
    assert check_name(NameKind.DRIVE, "drive") == "drive"
    assert check_name(NameKind.LUN, "a" * 48) == "a" * 48
    with pytest.raises(InvalidArgument):
        check_name(NameKind.LUN, "drive")
    with pytest.raises(InvalidArgument):
        check_name(NameKind.ARRAY, "a" * 33)


def test_a_uuid_says_whose_and_which_layer() -> None:
    """Both ways."""
    text = "BLKRECOV-0123456789abcdef0123456789abcdef-rmeta_1"
    assert dm_uuid(SOME_UUID, "rmeta_1") == text
    assert parse_dm_uuid(text) == DmUuid(SOME_UUID, "rmeta_1")


def test_the_kernel_is_told_the_array_too() -> None:
    """Two arrays may have one name, and what is gone from an array's configuration must still be known as its own."""
    text = "BLKRECOV-0123456789abcdef0123456789abcdef-rmeta_1-000000000000000000000000000000aa"
    assert dm_uuid_in(UUID(int=0xAA), dm_uuid(SOME_UUID, "rmeta_1")) == text
    assert parse_dm_uuid(text) == DmUuid(SOME_UUID, "rmeta_1", UUID(int=0xAA))
    assert len(dm_uuid_in(UUID(int=0xAA), dm_uuid(SOME_UUID, "r" * 46))) < MAX_UUID


@pytest.mark.parametrize(
    "role", ["rmeta_from", "rmeta_to", "rimage_from", "rimage_to", "rimage_log_0", "rimage_log_12"]
)
def test_sides_are_told_from_legs(role: str) -> None:
    """They are made before the legs and removed after them."""
    parsed = parse_dm_uuid(dm_uuid(SOME_UUID, role))
    assert parsed is not None
    assert is_side(parsed.role)
    assert split_dm_name(side_name("a", "b-c", 3, role)) == ("a", "b-c", role.replace("_", "_3_", 1))


@pytest.mark.parametrize("role", ["rmeta", "rimage", "plex", "lun", "drive", "rimage_1", "rimage_log", "from"])
def test_nothing_else_is_a_side(role: str) -> None:
    """What stands on a side must not be taken for one."""
    assert not is_side(role)


@pytest.mark.parametrize(
    "text", ["", "LVM-0123", "BLKRECOV-0123-lun", f"BLKRECOV-{SOME_UUID}-lun", f"BLKRECOV-{SOME_UUID.hex}"]
)
def test_foreign_uuids_are_not_ours(text: str) -> None:
    """LVM's, multipath's, and what only looks like ours."""
    assert parse_dm_uuid(text) is None
