"""The on-drive format as bytes: what is written, what is refused, and what a torn write leaves."""

import struct
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.drives.label import (
    BLOCK,
    BadSlot,
    DamagedLabel,
    Label,
    Layout,
    NoLabel,
    Slot,
    decode_slot,
    encode_slot,
    newest,
    next_slot,
    plan_layout,
)
from blkrecov.errors import ConfigurationLimit, InvalidArgument, NotSupported
from blkrecov.units import GIB, MIB, Bytes

DRIVE = UUID("0d0d0d0d-0000-4000-8000-00000000000d")
ARRAY = UUID("a1a1a1a1-0000-4000-8000-00000000000a")
OTHER = UUID("ffffffff-0000-4000-8000-00000000000f")
LABEL = Label.new(
    size=64 * MIB, drive_uuid=DRIVE, array_uuid=ARRAY, drive_name="d0", array_name="lab", created_s=1_700_000_000
)
GOLDEN = Path(__file__).parents[2] / "golden"


def resealed(block: bytes, offset: int, value: bytes) -> bytes:
    """The block with other bytes at an offset, and a checksum that is right for them."""
    block = block[:offset] + value + block[offset + len(value) :]
    bare = block[:20] + bytes(4) + block[24:]
    return bare[:20] + struct.pack("<I", google_crc32c.value(bare)) + bare[24:]


def golden(name: str) -> bytes:
    """Bytes of a hex dump: "offset: bytes" lines, zeros in between; the first line gives the length."""
    lines = [line for line in (GOLDEN / name).read_text().splitlines() if line and not line.startswith("#")]
    data = bytearray(int(lines[0].removeprefix("length ")))
    for line in lines[1:]:
        offset, _, words = line.partition(": ")
        data[int(offset, 16) : int(offset, 16) + len(bytes.fromhex(words))] = bytes.fromhex(words)
    return bytes(data)


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def decoded(data: bytes) -> Slot | BadSlot:
    return decode_slot(data, ARRAY, DRIVE, MIB)


def test_layout_of_a_small_drive_has_slots_of_one_mebibyte() -> None:
    """A GiB of slots would be a waste on the drives that people try things with."""
    assert plan_layout(64 * MIB) == Layout(
        size=Bytes(64 * MIB), slot_size=Bytes(MIB), data_start=Bytes(3 * MIB), data_length=Bytes(60 * MIB)
    )


def test_layout_of_a_large_drive_has_slots_of_four_mebibytes() -> None:
    """A drive of 8 GiB may belong to an array with many LUNs."""
    layout = plan_layout(8 * GIB)
    assert (layout.slot_size, layout.data_start, layout.slot_at(1)) == (4 * MIB, 9 * MIB, 5 * MIB)


def test_layout_of_an_odd_size_keeps_the_tail_whole_and_the_copy_in_the_last_whole_block() -> None:
    """Block devices have any number of sectors; units and blocks must not hang over their end."""
    layout = plan_layout(20 * MIB + 4096 + 512)
    assert (layout.tail_start, layout.data_length, layout.copy_at) == (19 * MIB, 16 * MIB, 20 * MIB)


def test_layout_refuses_a_drive_that_is_too_small_and_names_the_minimum() -> None:
    """The message must let people choose a size that works."""
    with pytest.raises(InvalidArgument, match=r"16777216 \(16 MiB\)"):
        plan_layout(16 * MIB - 1)
    assert plan_layout(16 * MIB).data_length == 12 * MIB


@given(st.integers(min_value=16 * MIB, max_value=64 * GIB))
def test_nothing_on_a_drive_overlaps(size: int) -> None:
    """For every size: label, slots, data and the copy, in this order."""
    layout = plan_layout(size)
    assert BLOCK <= layout.slot_at(0) < layout.slot_at(1)
    assert layout.slot_at(1) + layout.slot_size <= layout.data_start < layout.tail_start
    assert layout.tail_start + MIB <= size
    assert layout.tail_start < layout.copy_at <= size - BLOCK


def test_label_is_what_it_was_when_the_format_became_final() -> None:
    """Drives made by any version must be read by every later one, so these bytes never change."""
    assert LABEL.encode() == golden("label-v1.hex")
    assert Label.decode(golden("label-v1.hex")) == LABEL


def test_slot_is_what_it_was_when_the_format_became_final() -> None:
    """As above, for the metadata slots."""
    assert encode_slot(7, ARRAY, DRIVE, b'{"hello": "drive"}', MIB) == golden("slot-v1.hex")
    assert decoded(golden("slot-v1.hex")) == Slot(sequence=7, payload=b'{"hello": "drive"}')


@given(st.integers(min_value=0, max_value=BLOCK * 8 - 1))
def test_any_flipped_bit_of_a_label_is_refused(bit: int) -> None:
    """A label that decodes is one that somebody wrote. Damage to the magic makes it none of ours."""
    with pytest.raises(NoLabel if bit < 16 * 8 else DamagedLabel):
        Label.decode(flipped(LABEL.encode(), bit))


@given(st.data(), st.binary(max_size=9000))
def test_any_flipped_bit_of_a_slot_is_detected(data: st.DataObject, payload: bytes) -> None:
    """Padding included: the checksums cover all that is written."""
    slot = encode_slot(1, ARRAY, DRIVE, payload, MIB)
    bit = data.draw(st.integers(min_value=0, max_value=len(slot) * 8 - 1))
    assert isinstance(decoded(flipped(slot, bit)), BadSlot)


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=16),
    st.uuids(),
    st.integers(min_value=16 * MIB, max_value=2**50),
    st.integers(min_value=0, max_value=2**40),
)
def test_label_survives_encoding(name: str, uuid: UUID, size: int, created_s: int) -> None:
    """Sixteen characters fit the 64 bytes whatever they are."""
    label = Label.new(
        size=size, drive_uuid=uuid, array_uuid=ARRAY, drive_name=name, array_name=name, created_s=created_s
    )
    assert Label.decode(label.encode()) == label


def test_label_refuses_a_name_that_does_not_fit() -> None:
    """It would be cut, and perhaps in the middle of a character."""
    with pytest.raises(InvalidArgument, match="no name for a label"):
        Label.new(size=64 * MIB, drive_uuid=DRIVE, array_uuid=ARRAY, drive_name="é" * 33, array_name="lab", created_s=0)


def test_label_of_a_later_version_is_not_supported() -> None:
    """Not damage: it must not be repaired, nor taken for an empty drive."""
    with pytest.raises(NotSupported, match="version 2"):
        Label.decode(resealed(LABEL.encode(), 16, struct.pack("<I", 2)))


def test_label_with_an_unknown_incompat_feature_is_not_supported() -> None:
    """Such a bit says that whoever does not know it gets the drive wrong."""
    with pytest.raises(NotSupported, match="0x8"):
        Label.decode(replace(LABEL, incompat=8).encode())


def test_label_with_an_unknown_compat_feature_is_read_and_the_bit_kept() -> None:
    """Such a bit says that others may go on as they did."""
    assert Label.decode(replace(LABEL, compat=8).encode()).compat == 8


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (80, 100, "slots of 100 bytes"),
        (88, 2 * MIB, "data area starts at byte 2097152"),
        (96, 64 * MIB, "does not fit a drive of 67108864"),
        (104, 512, "units of 512 bytes"),
    ],
)
def test_label_whose_fields_contradict_each_other_is_damaged(offset: int, value: int, message: str) -> None:
    """A right checksum does not make a wrong layout safe to write to."""
    with pytest.raises(DamagedLabel, match=message):
        Label.decode(resealed(LABEL.encode(), offset, struct.pack("<Q", value)))


def test_slot_of_a_later_version_is_not_supported() -> None:
    """It may be the newest: treated as damaged, it would be overwritten."""
    with pytest.raises(NotSupported, match="version 2"):
        decoded(resealed(encode_slot(1, ARRAY, DRIVE, b"", MIB), 16, struct.pack("<I", 2)))


def test_slot_with_unknown_flags_is_not_supported() -> None:
    """Another way of packing is a payload that we would read as noise."""
    block = encode_slot(1, ARRAY, DRIVE, b"", MIB)
    with pytest.raises(NotSupported, match="0x2"):
        decoded(resealed(block, 32, struct.pack("<I", 2)))


def test_slot_of_another_drive_is_refused() -> None:
    """Someone copied the first megabytes of a drive over another's."""
    assert decode_slot(encode_slot(1, ARRAY, OTHER, b"", MIB), ARRAY, DRIVE, MIB) == BadSlot(
        "it belongs to another drive, ffffffff-0000-4000-8000-00000000000f"
    )


def test_slot_never_written_is_empty() -> None:
    """Said in its own word, since it is no damage."""
    assert decoded(bytes(BLOCK)) == BadSlot("empty")


def test_short_payload_is_stored_as_it_is() -> None:
    """So that hexdump shows a small array's configuration to people."""
    assert b'{"a": 1}' in encode_slot(1, ARRAY, DRIVE, b'{"a": 1}', MIB)


def test_long_payload_is_compressed_and_comes_back() -> None:
    """Above 64 KiB, room in the slot is worth more than being readable in a hex dump."""
    payload = b"extent 0 1048576 linear " * 100_000
    slot = encode_slot(1, ARRAY, DRIVE, payload, MIB)
    assert len(slot) < 64 * 1024
    assert decoded(slot) == Slot(sequence=1, payload=payload)


def test_payload_that_does_not_fit_is_refused() -> None:
    """A slot that ran into its neighbour would destroy the other half of the safety."""
    with pytest.raises(ConfigurationLimit, match="a slot on the drive has 8192"):
        encode_slot(1, ARRAY, DRIVE, bytes(4097), 8192)
    assert len(encode_slot(1, ARRAY, DRIVE, bytes(4096), 8192)) == 8192


@pytest.mark.parametrize(
    ("a", "b", "index"),
    [
        (BadSlot("empty"), BadSlot("empty"), 0),
        (Slot(sequence=1, payload=b""), BadSlot("empty"), 1),
        (BadSlot("torn"), Slot(sequence=1, payload=b""), 0),
        (Slot(sequence=2, payload=b""), Slot(sequence=1, payload=b""), 1),
        (Slot(sequence=2, payload=b""), Slot(sequence=3, payload=b""), 0),
    ],
)
def test_next_slot_is_never_the_newest_valid_one(a: Slot | BadSlot, b: Slot | BadSlot, index: int) -> None:
    """A write that fails halfway must leave the newest document that there was."""
    assert next_slot(a, b) == index


@given(st.binary(max_size=9000), st.binary(max_size=9000), st.integers(min_value=0))
def test_a_torn_slot_write_leaves_the_other_slot_or_is_whole(older: bytes, newer: bytes, cut: int) -> None:
    """Every prefix of slot 3 over slot 1, beside slot 2: one never reads a mixture, and never goes back to 1."""
    old, new = encode_slot(1, ARRAY, DRIVE, older, MIB), encode_slot(3, ARRAY, DRIVE, newer, MIB)
    beside = Slot(sequence=2, payload=b"beside")
    cut %= len(new)
    torn = decoded(new[:cut] + old[cut:])
    assert newest((torn, beside)) in (beside, Slot(sequence=3, payload=newer))
    if torn != Slot(sequence=3, payload=newer):
        assert next_slot(torn, beside) == 0
