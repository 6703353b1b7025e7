"""Names and UUIDs of our device-mapper devices.

A name is "blkrecov" and parts, joined by single hyphens; a hyphen inside a part is doubled, as LVM does. Parts never begin with
a hyphen, so a name splits in one way only: of an odd run of hyphens the last one is the joint.

    blkrecov-<array>-<lun>               what the host uses
    blkrecov-<array>-<lun>-<layer>       the layers below it: plex, rmeta_N, rimage_N, and below a leg that is being copied to
                                         another drive rimage_N_from, rimage_N_to, rimage_N_log_K, rmeta_N_from, rmeta_N_to;
                                         above a plex with shadow copies origin, above one that is a store shadow; copy and
                                         copy_log_K while a LUN is restored, compare, compare_from and compare_to afterwards
    blkrecov-<array>-drive-<drive>       the drive port

"drive" is therefore no name for a LUN. Names of arrays and the rest are limited so that every name fits device-mapper's 127
bytes; a hyphen counts twice, as it is written.

A name is for people and for finding a device; the UUID says whose it is: BLKRECOV-<owner>-<role>-<array>, owner and array as 32
hex digits. Devices made by version 0.1 have no array in theirs. "BLKRECOV-" also keeps other tools off (10-dm.rules exports it,
LVM and multipath ignore what is not theirs).
"""

import re
from dataclasses import dataclass
from enum import Enum, unique
from typing import Final
from uuid import UUID

from blkrecov.dm.abi import MAX_NAME
from blkrecov.errors import InvalidArgument

PREFIX: Final = "blkrecov"

_DRIVE: Final = "drive"
_PLEX: Final = "plex"
# Of the characters that libdevmapper writes as they are; others would appear as \x20 and the like under /dev/mapper.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_JOINT: Final = re.compile(r"(?<!-)((?:--)*)-(?!-)")
_ROLE: Final = re.compile(r"[a-z0-9_]{1,64}")
_SIDE: Final = re.compile(r"(rmeta|rimage)_(from|to|log_[0-9]+)")
_COPY: Final = re.compile(r"copy|compare|copy_log_[0-9]+|compare_(from|to)")
_UUID: Final = re.compile(r"BLKRECOV-([0-9a-f]{32})-([a-z0-9_]+)(?:-([0-9a-f]{32}))?")


@unique
class NameKind(Enum):
    """Whose name it is; shadow copies are LUNs and share the LUNs' names."""

    ARRAY = "array"
    LUN = "LUN"
    DRIVE = "drive"

    @property
    def limit(self) -> int:
        return 32 if self is NameKind.ARRAY else 48


def check_name(kind: NameKind, text: str) -> str:
    """The text itself, when it can be a name of this kind.

    Raises: InvalidArgument for a bad character, a reserved word, or too many characters.
    """
    if _NAME.fullmatch(text) is None:
        raise InvalidArgument(
            f"{text!r} is not a name for {_article(kind)}",
            remedy="use letters, digits and _ . + -, and begin with a letter or digit",
        )
    if kind is NameKind.LUN and text == _DRIVE:
        raise InvalidArgument(
            f"{text!r} is reserved: the drives' own devices are called so", remedy="choose another name"
        )
    if len(_escape(text)) > kind.limit:
        raise InvalidArgument(
            f"{text!r} is too long a name for {_article(kind)}",
            remedy=f"use at most {kind.limit} characters, counting hyphens twice",
        )
    return text


def dm_name(array: str, *parts: str) -> str:
    """The name made of an array's name and parts, none of which may be empty or begin with a hyphen."""
    words = (PREFIX, array, *parts)
    for word in words:
        assert _NAME.fullmatch(word), f"{word!r} cannot be part of a name"
    name = "-".join(_escape(word) for word in words)
    assert len(name) <= MAX_NAME, f"{name!r} is longer than device-mapper takes"
    return name


def split_dm_name(name: str) -> tuple[str, ...] | None:
    """The array's name and the parts after it; None for a name that is not ours. The inverse of dm_name()."""
    words, begin = [], 0
    for joint in _JOINT.finditer(name):
        words.append(name[begin : joint.end() - 1])
        begin = joint.end()
    words.append(name[begin:])
    prefix, *parts = (word.replace("--", "-") for word in words)
    if prefix != PREFIX or not parts or not all(_NAME.fullmatch(part) for part in parts):
        return None
    return tuple(parts)


def array_of(name: str) -> str | None:
    """The array's name in a device's; None for a name that is not ours."""
    parts = split_dm_name(name)
    return parts[0] if parts is not None else None


def lun_name(array: str, lun: str) -> str:
    check_name(NameKind.LUN, lun)
    return dm_name(check_name(NameKind.ARRAY, array), lun)


def plex_name(array: str, lun: str) -> str:
    return layer_name(array, lun, _PLEX)


def layer_name(array: str, lun: str, layer: str) -> str:
    """One of the layers below a LUN: "origin", "shadow", "copy", ..."""
    check_name(NameKind.LUN, lun)
    return dm_name(check_name(NameKind.ARRAY, array), lun, layer)


def meta_name(array: str, lun: str, index: int) -> str:
    """Superblock and bitmap of leg `index`."""
    return layer_name(array, lun, f"rmeta_{index}")


def data_name(array: str, lun: str, index: int) -> str:
    """Data of leg `index`."""
    return layer_name(array, lun, f"rimage_{index}")


def side_name(array: str, lun: str, index: int, role: str) -> str:
    """What is below leg `index` while it is copied. The role says which: "rimage_from", "rimage_to", "rimage_log_0", ..."""
    leg, _, side = role.partition("_")
    assert _SIDE.fullmatch(role), f"{role!r} is not a side of a copy"
    return layer_name(array, lun, f"{leg}_{index}_{side}")


def is_side(role: str) -> bool:
    """Whether a device of this role is below a leg or a copy: a side, or a log."""
    return _SIDE.fullmatch(role) is not None or (is_copy(role) and "_" in role)


def is_copy(role: str) -> bool:
    """Whether a device of this role restores a LUN, or compares what was restored; or is below one that does."""
    return _COPY.fullmatch(role) is not None


def drive_name(array: str, drive: str) -> str:
    """The drive port."""
    check_name(NameKind.DRIVE, drive)
    return dm_name(check_name(NameKind.ARRAY, array), _DRIVE, drive)


@dataclass(frozen=True, slots=True)
class DmUuid:
    """Whose device (array, LUN or drive), which of its layers, and of which array, where that is told."""

    owner: UUID
    role: str
    array: UUID | None = None


def dm_uuid(owner: UUID, role: str) -> str:
    """What tells a device from all others of its array."""
    assert _ROLE.fullmatch(role), f"{role!r} is not a role"
    return f"BLKRECOV-{owner.hex}-{role}"


def dm_uuid_in(array: UUID, uuid: str) -> str:
    """What the kernel is given for dm_uuid(): with the array."""
    return f"{uuid}-{array.hex}"


def parse_dm_uuid(text: str) -> DmUuid | None:
    """None for a UUID that is not ours."""
    match = _UUID.fullmatch(text)
    if match is None:
        return None
    return DmUuid(UUID(hex=match[1]), match[2], UUID(hex=match[3]) if match[3] else None)


def _escape(part: str) -> str:
    return part.replace("-", "--")


def _article(kind: NameKind) -> str:
    return f"an {kind.value}" if kind is NameKind.ARRAY else f"a {kind.value}"
