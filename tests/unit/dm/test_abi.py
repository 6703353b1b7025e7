"""The bytes of linux/dm-ioctl.h, in both directions."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.dm.abi import (
    COMMANDS,
    HEADER,
    NONE,
    DeviceNumber,
    Flag,
    ListedDevice,
    decode_deps,
    decode_devices,
    decode_number,
    decode_reply,
    decode_table,
    decode_versions,
    encode_message,
    encode_number,
    encode_request,
    encode_table,
    udev_event,
)
from blkrecov.dm.kmsg import parse_record
from blkrecov.dm.table import ErrorTable, LinearTable, Segment, TargetLine
from blkrecov.units import Sectors


def test_the_header_has_312_bytes() -> None:
    """Its size is part of every ioctl's number."""
    assert HEADER.size == 312
    assert COMMANDS["VERSION"].request == 0xC138FD00
    assert COMMANDS["DEV_ARM_POLL"].request == 0xC138FD10


def test_fields_lie_where_the_kernel_reads_them() -> None:
    """Offsets from struct dm_ioctl."""
    raw = encode_request(COMMANDS["DEV_SUSPEND"], size=312, name="n", uuid="u", flags=Flag.SUSPEND, event_nr=7)
    assert raw[0:12] == struct.pack("=3I", 4, 0, 0)
    assert struct.unpack_from("=II", raw, 12) == (312, 312)
    assert struct.unpack_from("=II", raw, 28) == (2, 7)
    assert (raw[48:50], raw[176:178]) == (b"n\0", b"u\0")


def test_a_flag_that_a_command_does_not_take_is_our_mistake() -> None:
    """The kernel would ignore it, and we would believe in it."""
    with pytest.raises(AssertionError):
        encode_request(COMMANDS["DEV_STATUS"], size=312, flags=Flag.NOFLUSH)


def test_a_reply_is_read_up_to_its_size() -> None:
    """What follows data_size in the buffer is not an answer; flags of newer kernels are left out."""
    raw = HEADER.pack(4, 47, 0, 314, 312, 1, 2, 0x8000_0022, 5, 0xFD03, b"name", b"uuid") + b"abcd"
    reply = decode_reply(raw)
    assert (reply.version, reply.target_count, reply.open_count, reply.event_nr) == ((4, 47, 0), 1, 2, 5)
    assert (reply.name, reply.uuid, reply.number) == ("name", "uuid", DeviceNumber(253, 3))
    assert (reply.flags, reply.data) == (Flag.SUSPEND | Flag.ACTIVE_PRESENT, b"ab")


@given(st.integers(0, 2**12 - 1), st.integers(0, 2**20 - 1))
def test_device_numbers_survive_the_encoding(major: int, minor: int) -> None:
    """The minor's upper bits lie above the major."""
    number = DeviceNumber(major, minor)
    assert decode_number(encode_number(number)) == number


def test_a_large_minor_is_encoded_around_the_major() -> None:
    """include/linux/kdev_t.h, huge_encode_dev()"""
    assert encode_number(DeviceNumber(253, 0x1234)) == 0x0120_FD34
    assert str(DeviceNumber(253, 0x1234)) == "253:4660"


def test_a_loaded_table_counts_next_from_each_record() -> None:
    """40 bytes of record, the words with their NUL, padded to 8."""
    segments = (
        Segment(device="7:0", offset=Sectors(0), length=Sectors(8)),
        Segment(device="7:100", offset=Sectors(1234), length=Sectors(16)),
    )
    raw = encode_table(LinearTable(segments=segments).render())
    assert raw[:48] == struct.pack("=QQiI16s", 0, 8, 0, 48, b"linear") + b"7:0 0\0\0\0"
    assert struct.unpack_from("=QQiI", raw, 48) == (8, 16, 0, 56)
    assert len(raw) == 104


def test_status_lines_count_next_from_the_first_record() -> None:
    """Unlike a loaded table's."""
    first = struct.pack("=QQiI16s", 0, 8, 0, 48, b"linear") + b"7:0 0\0\0\0"
    second = struct.pack("=QQiI16s", 8, 16, 0, 96, b"error") + b"\0" * 8
    assert decode_table(first + second, 2) == (
        TargetLine(start=Sectors(0), length=Sectors(8), kind="linear", params="7:0 0"),
        TargetLine(start=Sectors(8), length=Sectors(16), kind="error", params=""),
    )


def test_a_table_of_one_line_reads_back() -> None:
    """One record is laid out the same way in both directions."""
    table = ErrorTable(length=Sectors(64)).render()
    assert decode_table(encode_table(table), 1) == table


def test_listed_devices_carry_event_numbers_and_uuids() -> None:
    """The name ends the record's first half, padded to 8; no UUID is another flag."""
    first = struct.pack("=QI", 0xFD00, 32) + b"abc\0" + struct.pack("=II", 9, 1) + b"uuid\0".ljust(8, b"\0")
    second = struct.pack("=QI", 0xFD01, 0) + b"abcd\0".ljust(12, b"\0") + struct.pack("=II", 3, 2)
    assert decode_devices(first + second, (4, 47, 0)) == (
        ListedDevice(name="abc", uuid="uuid", number=DeviceNumber(253, 0), event_nr=9),
        ListedDevice(name="abcd", uuid="", number=DeviceNumber(253, 1), event_nr=3),
    )


def test_older_drivers_list_no_uuids() -> None:
    """There the flags' place is padding that nobody cleared."""
    raw = struct.pack("=QI", 0xFD00, 0) + b"abc\0" + struct.pack("=II", 9, 0xFFFF_FFFF)
    (device,) = decode_devices(raw, (4, 43, 0))
    assert (device.uuid, device.event_nr) == (None, 9)


def test_uuids_that_were_not_asked_for_are_unknown() -> None:
    """A device without a UUID is another thing."""
    raw = struct.pack("=QI", 0xFD00, 0) + b"abc\0" + struct.pack("=II", 9, 0)
    assert decode_devices(raw, (4, 47, 0))[0].uuid is None


def test_no_devices_is_a_record_with_number_zero() -> None:
    """Kernel: drivers/md/dm-ioctl.c, list_devices()"""
    assert decode_devices(struct.pack("=QI4x", 0, 0), (4, 47, 0)) == ()
    assert decode_devices(b"", (4, 47, 0)) == ()


def test_versions_are_read_by_name() -> None:
    """`next` counts from each record."""
    raw = struct.pack("=I3I", 24, 1, 15, 1) + b"raid\0\0\0\0" + struct.pack("=I3I", 0, 1, 4, 0) + b"linear\0\0"
    assert decode_versions(raw) == {"raid": (1, 15, 1), "linear": (1, 4, 0)}


def test_deps_are_counted() -> None:
    """The buffer may be longer than they."""
    assert decode_deps(struct.pack("=I4xQQQ", 2, 0x700, 0x701, 0xBAD)) == (DeviceNumber(7, 0), DeviceNumber(7, 1))


def test_a_message_is_a_sector_and_a_text() -> None:
    """struct dm_target_msg"""
    assert encode_message(Sectors(1), "check") == b"\x01\0\0\0\0\0\0\0check\0"


def test_udev_is_told_what_a_device_is() -> None:
    """PRIMARY_SOURCE always; a private device also has subsystem, disk and other rules switched off."""
    assert udev_event(visible=True) == 0x0040_0000
    assert udev_event(visible=False) == 0x004E_0000


def test_commands_know_the_driver_that_brought_them() -> None:
    """The daemon's sleep depends on this one; all others are as old as any kernel we meet."""
    assert COMMANDS["DEV_ARM_POLL"].since == (4, 37, 0)
    assert COMMANDS["DEV_CREATE"].flags == NONE


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("3,110,1,-;device-mapper: table: 254:0: zork: unknown target type\n", True),
        ("6,111,1,-;md/raid1:mdX: active with 2 out of 2 mirrors\n SUBSYSTEM=block\n", True),
        ("3,112,1,-;md: personality for level 1 is not loaded!\n", True),
        ("6,113,1,-;loop0: detected capacity change from 0 to 8192\n", False),
        ("6,114,1,-;mdio_bus: probed\n", False),
    ],
)
def test_only_device_mappers_and_mds_lines_are_quoted(record: str, message: bool) -> None:
    """Somebody else's line beside our error would send people the wrong way."""
    assert (parse_record(record) is not None) is message
