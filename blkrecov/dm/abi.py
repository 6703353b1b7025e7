"""linux/dm-ioctl.h as data: numbers, flags and layouts, and functions on bytes in both directions.

One ioctl is one buffer: the header of 312 bytes, then a payload whose layout depends on the command. Here a request becomes
such a buffer and a buffer that came back becomes values; nothing here opens or calls anything.

Offsets inside payloads are counted from three different places: a loaded table's `next` from its own record, a status line's
`next` from the first record, a listed device's and version's `next` from its own record.
"""

import struct
from dataclasses import dataclass
from enum import IntFlag, unique
from typing import Final, NamedTuple

from blkrecov.dm.table import Table, TargetLine
from blkrecov.units import Sectors, round_up

Version = tuple[int, int, int]

# version[3], data_size, data_start, target_count, open_count, flags, event_nr, padding, dev, name, uuid, padding.
HEADER: Final = struct.Struct("=3I I I I i I I 4x Q 128s 129s 7x")
TARGET_SPEC: Final = struct.Struct("=QQiI16s")  # sector_start, length, status, next, target_type; params follow.
TARGET_DEPS: Final = struct.Struct("=I4x")  # count; then that many device numbers.
TARGET_MSG: Final = struct.Struct("=Q")  # sector; the text follows.
TARGET_VERSIONS: Final = struct.Struct("=I3I")  # next, version[3]; the name follows.
NAME_LIST: Final = struct.Struct("=QI")  # dev, next; the name follows, then, aligned to 8:
NAME_LIST_TAIL: Final = struct.Struct("=II")  # event_nr, flags; the UUID follows.
DEVICE_NUMBER: Final = struct.Struct("=Q")

ALIGNMENT: Final = 8
# DM_NAME_LEN, DM_UUID_LEN and DM_MAX_TYPE_NAME, each less its NUL.
MAX_NAME: Final = 127
MAX_UUID: Final = 128
MAX_KIND: Final = 15
INTERFACE: Final[Version] = (4, 0, 0)  # The kernel compares the first number, and answers with its own version.


@unique
class Flag(IntFlag):
    READONLY = 1 << 0
    SUSPEND = 1 << 1
    PERSISTENT_DEV = 1 << 3
    STATUS_TABLE = 1 << 4
    ACTIVE_PRESENT = 1 << 5
    INACTIVE_PRESENT = 1 << 6
    BUFFER_FULL = 1 << 8
    SKIP_LOCKFS = 1 << 10
    NOFLUSH = 1 << 11
    QUERY_INACTIVE_TABLE = 1 << 12
    UEVENT_GENERATED = 1 << 13
    UUID = 1 << 14
    SECURE_DATA = 1 << 15
    DATA_OUT = 1 << 16
    DEFERRED_REMOVE = 1 << 17
    INTERNAL_SUSPEND = 1 << 18


NONE: Final = Flag(0)


@unique
class UdevFlag(IntFlag):
    """libdevmapper.h's DM_UDEV_*: they travel in the high half of event_nr and reach the udev rules as DM_COOKIE."""

    DISABLE_DM_RULES = 0x01
    DISABLE_SUBSYSTEM_RULES = 0x02
    DISABLE_DISK_RULES = 0x04
    DISABLE_OTHER_RULES = 0x08
    LOW_PRIORITY = 0x10
    DISABLE_LIBRARY_FALLBACK = 0x20
    PRIMARY_SOURCE = 0x40


PRIVATE: Final = UdevFlag.DISABLE_SUBSYSTEM_RULES | UdevFlag.DISABLE_DISK_RULES | UdevFlag.DISABLE_OTHER_RULES


def udev_event(*, visible: bool) -> int:
    """The event_nr that tells the udev rules what a device is. A private one is not scanned and gets no links in /dev/disk.

    The low half, the cookie that somebody waits for, is 0: nobody does. Without PRIMARY_SOURCE the rules take the event for
    a stray one and keep everything disabled for as long as the device lives (libdm/libdm-common.c; 10-dm.rules).
    """
    wanted = UdevFlag.PRIMARY_SOURCE if visible else UdevFlag.PRIMARY_SOURCE | PRIVATE
    return int(wanted) << 16


@dataclass(frozen=True, slots=True)
class Command:
    """A command's number, the driver version that brought it, the flags that it takes. `explains`: why it was refused is in
    the kernel's log."""

    number: int
    since: Version
    flags: Flag = NONE
    explains: bool = False

    @property
    def request(self) -> int:
        """_IOWR(0xfd, number, struct dm_ioctl), as on every machine that uses asm-generic/ioctl.h."""
        return 3 << 30 | HEADER.size << 16 | 0xFD << 8 | self.number


COMMANDS: Final = {
    "VERSION": Command(0, since=(4, 0, 0)),
    "LIST_DEVICES": Command(2, since=(4, 0, 0), flags=Flag.UUID),  # With the flag, UUIDs are listed as well.
    "DEV_CREATE": Command(3, since=(4, 0, 0), explains=True),
    "DEV_REMOVE": Command(4, since=(4, 0, 0), flags=Flag.DEFERRED_REMOVE, explains=True),
    "DEV_RENAME": Command(5, since=(4, 0, 0), flags=Flag.UUID, explains=True),
    "DEV_SUSPEND": Command(6, since=(4, 0, 0), flags=Flag.SUSPEND | Flag.NOFLUSH | Flag.SKIP_LOCKFS, explains=True),
    "DEV_STATUS": Command(7, since=(4, 0, 0), flags=Flag.QUERY_INACTIVE_TABLE),
    "TABLE_LOAD": Command(9, since=(4, 0, 0), flags=Flag.READONLY | Flag.SECURE_DATA, explains=True),
    "TABLE_CLEAR": Command(10, since=(4, 0, 0)),
    "TABLE_DEPS": Command(11, since=(4, 0, 0), flags=Flag.QUERY_INACTIVE_TABLE),
    "TABLE_STATUS": Command(12, since=(4, 0, 0), flags=Flag.STATUS_TABLE | Flag.NOFLUSH | Flag.QUERY_INACTIVE_TABLE),
    "LIST_VERSIONS": Command(13, since=(4, 1, 0)),
    "TARGET_MSG": Command(14, since=(4, 2, 0), explains=True),
    "DEV_ARM_POLL": Command(16, since=(4, 37, 0)),  # Linux 4.13
}


class DeviceNumber(NamedTuple):
    """Major and minor; its text is a device's name in a table."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


def encode_number(number: DeviceNumber) -> int:
    """include/linux/kdev_t.h, huge_encode_dev()"""
    return number.minor & 0xFF | number.major << 8 | (number.minor & ~0xFF) << 12


def decode_number(dev: int) -> DeviceNumber:
    return DeviceNumber(dev >> 8 & 0xFFF, dev & 0xFF | dev >> 12 & 0xFFF00)


def encode_request(
    command: Command,
    *,
    size: int,
    name: str = "",
    uuid: str = "",
    flags: Flag = NONE,
    event_nr: int = 0,
    target_count: int = 0,
    payload: bytes = b"",
) -> bytes:
    """The buffer for one ioctl: `size` bytes, which is also the room for the answer."""
    assert not flags & ~command.flags, f"command {command.number} does not take {flags & ~command.flags!r}"
    assert size >= HEADER.size + len(payload), "the buffer has no room for the request"
    head = HEADER.pack(
        *INTERFACE,
        size,
        HEADER.size,
        target_count,
        0,
        flags,
        event_nr,
        0,
        _text(name, MAX_NAME),
        _text(uuid, MAX_UUID),
    )
    return (head + payload).ljust(size, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A buffer that came back: the header's fields, and `data` after it."""

    version: Version
    target_count: int
    open_count: int
    flags: Flag
    event_nr: int
    number: DeviceNumber
    name: str
    uuid: str
    data: bytes


def decode_reply(raw: bytes) -> Reply:
    """Kernel: drivers/md/dm-ioctl.c, __dev_status() fills most of it. data_size is how much of the buffer was used."""
    major, minor, patch, size, start, targets, opened, flags, event_nr, dev, name, uuid = HEADER.unpack_from(raw)
    return Reply(
        version=(major, minor, patch),
        target_count=targets,
        open_count=opened,
        flags=Flag(flags & _KNOWN_FLAGS),  # A newer kernel may have flags that we do not know.
        event_nr=event_nr,
        number=decode_number(dev),
        name=_until_nul(name),
        uuid=_until_nul(uuid),
        data=raw[start : max(size, start)],
    )


def encode_table(table: Table) -> bytes:
    """The payload of TABLE_LOAD. `next` counts from its own record."""
    records = []
    for line in table:
        kind, params = _text(line.kind, MAX_KIND), line.params.encode() + b"\0"
        size = round_up(TARGET_SPEC.size + len(params), ALIGNMENT)
        records.append((TARGET_SPEC.pack(line.start, line.length, 0, size, kind) + params).ljust(size, b"\0"))
    return b"".join(records)


def decode_table(data: bytes, count: int) -> Table:
    """The answer of TABLE_STATUS, status words or table words. `next` counts from the first record."""
    lines, place = [], 0
    for _ in range(count):
        start, length, _status, following, kind = TARGET_SPEC.unpack_from(data, place)
        # Some targets print a blank after their last word, as flakey does.
        params = _string_at(data, place + TARGET_SPEC.size).rstrip()
        lines.append(TargetLine(start=Sectors(start), length=Sectors(length), kind=_until_nul(kind), params=params))
        place = following
    return tuple(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedDevice:
    """uuid is None where the kernel does not list it, and empty where the device has none."""

    name: str
    uuid: str | None
    number: DeviceNumber
    event_nr: int


# Since driver 4.45.0 a record ends in flags and, when Flag.UUID asked for it, the UUID. Before that their place was padding,
# which the kernel does not clear, so the flags cannot tell for themselves.
UUID_LISTED_SINCE: Final[Version] = (4, 45, 0)
_HAS_UUID: Final = 1
_HAS_NO_UUID: Final = 2


def decode_devices(data: bytes, version: Version) -> tuple[ListedDevice, ...]:
    """The answer of LIST_DEVICES from a driver of this version. No device at all is one record with dev 0.

    Kernel: drivers/md/dm-ioctl.c, list_devices()
    """
    devices = []
    place: int | None = 0 if len(data) >= NAME_LIST.size else None
    while place is not None:
        dev, following = NAME_LIST.unpack_from(data, place)
        if not dev:
            break
        name = _string_at(data, place + NAME_LIST.size)
        tail = place + round_up(NAME_LIST.size + len(name.encode()) + 1, ALIGNMENT)
        event_nr, flags = NAME_LIST_TAIL.unpack_from(data, tail)
        uuid = None
        if version >= UUID_LISTED_SINCE and flags & (_HAS_UUID | _HAS_NO_UUID):
            uuid = _string_at(data, tail + NAME_LIST_TAIL.size) if flags & _HAS_UUID else ""
        devices.append(ListedDevice(name=name, uuid=uuid, number=decode_number(dev), event_nr=event_nr))
        place = place + following if following else None
    return tuple(devices)


def decode_versions(data: bytes) -> dict[str, Version]:
    """The answer of LIST_VERSIONS: the target types that are there, in their versions."""
    versions: dict[str, Version] = {}
    place: int | None = 0 if len(data) >= TARGET_VERSIONS.size else None
    while place is not None:
        following, major, minor, patch = TARGET_VERSIONS.unpack_from(data, place)
        versions[_string_at(data, place + TARGET_VERSIONS.size)] = (major, minor, patch)
        place = place + following if following else None
    return versions


def decode_deps(data: bytes) -> tuple[DeviceNumber, ...]:
    """The answer of TABLE_DEPS: the devices that a table is built on."""
    (count,) = TARGET_DEPS.unpack_from(data)
    numbers = data[TARGET_DEPS.size : TARGET_DEPS.size + count * DEVICE_NUMBER.size]
    return tuple(decode_number(dev) for (dev,) in DEVICE_NUMBER.iter_unpack(numbers))


def encode_message(sector: Sectors, text: str) -> bytes:
    """The payload of TARGET_MSG."""
    return TARGET_MSG.pack(sector) + text.encode() + b"\0"


_KNOWN_FLAGS: Final = sum(Flag)


def _text(text: str, limit: int) -> bytes:
    raw = text.encode()
    assert len(raw) <= limit, f"{text!r} is longer than {limit} bytes"
    assert b"\0" not in raw, f"{text!r} would end at its NUL"
    return raw


def _until_nul(raw: bytes) -> str:
    # Names are any bytes that somebody chose; those that are no UTF-8 must not stop us from listing ours.
    return raw.partition(b"\0")[0].decode(errors="surrogateescape")


def _string_at(data: bytes, place: int) -> str:
    end = data.find(b"\0", place)
    return data[place : end if end >= 0 else len(data)].decode(errors="surrogateescape")
