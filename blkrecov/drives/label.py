"""What lies on a drive: the label, its copy, and the two metadata slots, as bytes and as values.

    byte 0                  label, one block
    1 MiB                   slot A, slot_size bytes
    1 MiB + slot_size       slot B, slot_size bytes
    data_start              the data area: data_length bytes, in whole units of 1 MiB
    data_start+data_length  tail, 1 MiB and what is left of a unit; its last whole block is the label's copy

Always true: a block that we wrote carries a CRC32C over all of its bytes, so whatever else may be said about a drive,
nothing that is damaged is taken for valid; and the newest valid slot is never the one to be written next, so a write
that the power cut tore costs the change that it carried and nothing older.

What the document in a slot says is model.py's business; getting blocks to and from the medium is store.py's.
docs/on-disk-format.md has the same as byte tables, with the rules for other programs that read or write it.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self
from uuid import UUID

import google_crc32c

from blkrecov.errors import ConfigurationLimit, InvalidArgument, InvalidDisk, NotSupported
from blkrecov.units import GIB, KIB, MIB, Bytes, format_size, round_down, round_up

BLOCK: Final = 4096
UNIT: Final = MIB  # The data area is given out in these.
HEADER: Final = MIB  # Byte 0 to the first slot. Only its first block is used.
MINIMUM_SIZE: Final = Bytes(16 * MIB)
LARGE_DRIVE: Final = 8 * GIB  # From here on, slots are large: such a drive may belong to a large array.
SMALL_SLOT: Final = Bytes(MIB)
LARGE_SLOT: Final = Bytes(4 * MIB)
NAME_MAX: Final = 64  # Bytes of UTF-8.

VERSION: Final = 1
INCOMPAT_KNOWN: Final = 0  # No features yet. A set bit that is not in here: the drive is not for us.

COMPRESS_ABOVE: Final = 64 * KIB
PAYLOAD_MAX: Final = 64 * MIB  # Of the document, uncompressed: bounds what a forged slot can make us allocate.
ZLIB: Final = 1  # The one slot flag.

LABEL_MAGIC: Final = b"blkrecov drive\0\0"
SLOT_MAGIC: Final = b"blkrecov slot\0\0\0"

# Magic, version and checksum stand at the same place in both, in every version to come: a reader can tell damage from
# novelty.
_COMMON: Final = struct.Struct("<16sII")
_LABEL: Final = struct.Struct("<16sIIQQ16s16sQQQQQQ64s64s")
_SLOT: Final = struct.Struct("<16sIIQIIQQ16s16s")
_CRC_AT: Final = 20


class NoLabel(InvalidDisk):
    """There is no label: the file or device is none of ours."""


class DamagedLabel(InvalidDisk):
    """There is, or was, a label, and it cannot be trusted. The message says why."""

    default_remedy = "if this was a drive of an array, take it out and let the array rebuild onto another"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where things lie on a drive of a certain size. All in bytes."""

    size: Bytes
    slot_size: Bytes
    data_start: Bytes
    data_length: Bytes

    def slot_at(self, index: int) -> Bytes:
        assert index in (0, 1), f"a drive has slots 0 and 1, not {index}"
        return Bytes(HEADER + index * self.slot_size)

    @property
    def tail_start(self) -> Bytes:
        return Bytes(self.data_start + self.data_length)

    @property
    def copy_at(self) -> Bytes:
        return copy_at(self.size)


def copy_at(size: int) -> Bytes:
    """Where a drive of this size has its label's copy: its last whole block, found without knowing anything else."""
    return Bytes(round_down(size, BLOCK) - BLOCK)


def plan_layout(size: int) -> Layout:
    """Lay out a new drive.

    Raises: InvalidArgument for a drive that is too small.
    """
    if size < MINIMUM_SIZE:
        raise InvalidArgument(
            f"{size} bytes are too few for a drive; it takes {MINIMUM_SIZE} ({format_size(MINIMUM_SIZE)}) or more",
            remedy=f"choose a size of {format_size(MINIMUM_SIZE)} or more",
        )
    slot_size = LARGE_SLOT if size >= LARGE_DRIVE else SMALL_SLOT
    data_start = HEADER + 2 * slot_size
    data_end = round_down(size, UNIT) - UNIT
    return Layout(
        size=Bytes(size), slot_size=slot_size, data_start=Bytes(data_start), data_length=Bytes(data_end - data_start)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """Who a drive is, whose, and where on it things lie. Written when the drive is made; it never changes after."""

    drive_uuid: UUID
    array_uuid: UUID
    drive_name: str
    array_name: str
    layout: Layout
    created_s: int  # Seconds since 1970, UTC.
    incompat: int = 0
    compat: int = 0

    @classmethod
    def new(
        cls, *, size: int, drive_uuid: UUID, array_uuid: UUID, drive_name: str, array_name: str, created_s: int
    ) -> Self:
        """The label of a new drive of `size` bytes.

        Raises: InvalidArgument for a size that is too small, or a name that the label has no room for.
        """
        for name in (drive_name, array_name):
            if not name or "\0" in name or len(name.encode()) > NAME_MAX:
                raise InvalidArgument(
                    f"{name!r} is no name for a label: 1 to {NAME_MAX} bytes of UTF-8, none of them zero"
                )
        return cls(
            drive_uuid=drive_uuid,
            array_uuid=array_uuid,
            drive_name=drive_name,
            array_name=array_name,
            layout=plan_layout(size),
            created_s=created_s,
        )

    def encode(self) -> bytes:
        """The label's block."""
        fields = _LABEL.pack(
            LABEL_MAGIC,
            VERSION,
            0,
            self.incompat,
            self.compat,
            self.drive_uuid.bytes,
            self.array_uuid.bytes,
            self.layout.size,
            self.layout.slot_size,
            self.layout.data_start,
            self.layout.data_length,
            UNIT,
            self.created_s,
            self.array_name.encode(),
            self.drive_name.encode(),
        )
        return _sealed(fields)

    @classmethod
    def decode(cls, block: bytes) -> Self:
        """Read a label.

        Raises: NoLabel without our magic; DamagedLabel when the checksum is wrong or the fields contradict each other;
                NotSupported for a valid label of a later version, or with features that this version does not know.
        """
        assert len(block) == BLOCK, f"a label has {BLOCK} bytes, not {len(block)}"
        magic, version, _ = _COMMON.unpack_from(block)
        if magic != LABEL_MAGIC:
            raise NoLabel("there is no blkrecov label")
        if not _seal_holds(block):
            raise DamagedLabel("the label's checksum is wrong")
        if version != VERSION:
            raise NotSupported(
                f"the label has version {version}; this program knows version {VERSION}",
                remedy="use a later version of blkrecov",
            )
        (
            _,
            _,
            _,
            incompat,
            compat,
            drive,
            array,
            size,
            slot_size,
            start,
            length,
            unit,
            created_s,
            array_name,
            drive_name,
        ) = _LABEL.unpack_from(block)
        if unknown := incompat & ~INCOMPAT_KNOWN:
            raise NotSupported(
                f"the drive uses features that this program does not know: {unknown:#x}",
                remedy="use a later version of blkrecov",
            )
        layout = Layout(
            size=Bytes(size), slot_size=Bytes(slot_size), data_start=Bytes(start), data_length=Bytes(length)
        )
        _check(layout, unit)
        return cls(
            drive_uuid=UUID(bytes=drive),
            array_uuid=UUID(bytes=array),
            drive_name=_name(drive_name),
            array_name=_name(array_name),
            layout=layout,
            created_s=created_s,
            incompat=incompat,
            compat=compat,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A valid slot: the document as it was given to encode_slot(), and its place in the order of changes."""

    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class BadSlot:
    """A slot that holds nothing valid, and why: never written, torn by a power cut, damaged, another drive's."""

    reason: str


def encode_slot(sequence: int, array_uuid: UUID, drive_uuid: UUID, payload: bytes, slot_size: int) -> bytes:
    """The bytes of a slot: header block and payload, padded with zeros to whole blocks. What follows them stays as it
    is.

    Raises: ConfigurationLimit when they are more than the slot has.
    """
    assert sequence > 0, "sequence numbers start at 1"
    flags, stored = 0, payload
    if len(payload) > COMPRESS_ABOVE:
        packed = zlib.compress(payload, 6)
        if len(packed) < len(payload):
            flags, stored = ZLIB, packed
    body = stored + bytes(round_up(len(stored), BLOCK) - len(stored))
    if len(payload) > PAYLOAD_MAX or BLOCK + len(body) > slot_size:
        raise ConfigurationLimit(
            f"the array's configuration takes {BLOCK + len(body)} bytes; a slot on the drive has {slot_size}"
        )
    # The checksum covers the padding too: not one bit of what is written goes unwatched.
    header = _SLOT.pack(
        SLOT_MAGIC,
        VERSION,
        0,
        sequence,
        flags,
        _crc(body),
        len(stored),
        len(payload),
        array_uuid.bytes,
        drive_uuid.bytes,
    )
    return _sealed(header) + body


def slot_length(header: bytes, slot_size: int) -> Bytes | BadSlot:
    """How many bytes of a slot are in use, from its first block, so that a reader need not read all of it.

    Raises: NotSupported for a valid header of a later version: what it holds may be the newest, and must not be
            overwritten.
    """
    magic, version, _ = _COMMON.unpack_from(header)
    if magic != SLOT_MAGIC:
        return BadSlot("empty" if not any(header[:BLOCK]) else "there is no slot header")
    if not _seal_holds(header[:BLOCK]):
        return BadSlot("the header's checksum is wrong")
    if version != VERSION:
        raise NotSupported(
            f"the metadata has version {version}; this program knows version {VERSION}",
            remedy="use a later version of blkrecov",
        )
    _, _, _, _, flags, _, stored, length, _, _ = _SLOT.unpack_from(header)
    if unknown := flags & ~ZLIB:
        raise NotSupported(
            f"the metadata has flags that this program does not know: {unknown:#x}",
            remedy="use a later version of blkrecov",
        )
    used = BLOCK + round_up(stored, BLOCK)
    if used > slot_size or length > PAYLOAD_MAX:
        return BadSlot(f"the header speaks of {stored} bytes, too many for the slot")
    return Bytes(used)


def decode_slot(data: bytes, array_uuid: UUID, drive_uuid: UUID, slot_size: int) -> Slot | BadSlot:
    """Read a slot. `data` starts with its header and holds slot_length() bytes or more; what is not in use is ignored.

    Raises: NotSupported, as slot_length() does.
    """
    used = slot_length(data, slot_size)
    if isinstance(used, BadSlot):
        return used
    _, _, _, sequence, flags, payload_crc, stored, length, array, drive = _SLOT.unpack_from(data)
    body = data[BLOCK:used]
    if len(body) < used - BLOCK:
        return BadSlot("the payload is cut off")
    if _crc(body) != payload_crc:
        return BadSlot("the payload's checksum is wrong: the write was torn, or the medium is damaged")
    if array != array_uuid.bytes:
        return BadSlot(f"it belongs to another array, {UUID(bytes=array)}")
    if drive != drive_uuid.bytes:
        return BadSlot(f"it belongs to another drive, {UUID(bytes=drive)}")
    payload = body[:stored]
    if flags & ZLIB:
        unpacker = zlib.decompressobj()
        try:
            payload = unpacker.decompress(payload, length + 1)
        except zlib.error as error:
            return BadSlot(f"the payload cannot be decompressed: {error}")
    if len(payload) != length:
        return BadSlot(f"the payload has {len(payload)} bytes, the header speaks of {length}")
    return Slot(sequence=sequence, payload=payload)


def newest(slots: Sequence[Slot | BadSlot]) -> Slot | None:
    """The valid slot with the highest sequence number; none if none is valid."""
    return max((slot for slot in slots if isinstance(slot, Slot)), key=lambda slot: slot.sequence, default=None)


def next_slot(a: Slot | BadSlot, b: Slot | BadSlot) -> int:
    """Which of the two to write next, 0 for A and 1 for B: never the newest valid one."""
    return 1 if isinstance(a, Slot) and newest((a, b)) is a else 0


def _crc(data: bytes) -> int:
    return int(google_crc32c.value(data))


def _sealed(fields: bytes) -> bytes:
    """A block of these fields, its checksum put in place. The checksum is taken with its own four bytes zero."""
    block = fields + bytes(BLOCK - len(fields))
    return block[:_CRC_AT] + struct.pack("<I", _crc(block)) + block[_CRC_AT + 4 :]


def _seal_holds(block: bytes) -> bool:
    (crc,) = struct.unpack_from("<I", block, _CRC_AT)
    return _crc(block[:_CRC_AT] + bytes(4) + block[_CRC_AT + 4 :]) == int(crc)


def _check(layout: Layout, unit: int) -> None:
    """Hold the fields against each other: a checksum only says that they are what somebody wrote."""
    if unit != UNIT:
        raise DamagedLabel(f"the label speaks of units of {unit} bytes; version {VERSION} has {UNIT}")
    if layout.slot_size < 2 * BLOCK or layout.slot_size % BLOCK:
        raise DamagedLabel(f"the label speaks of slots of {layout.slot_size} bytes")
    if layout.data_start < HEADER + 2 * layout.slot_size or layout.data_start % UNIT:
        raise DamagedLabel(f"the label's data area starts at byte {layout.data_start}, in the slots or between units")
    if layout.data_length % UNIT or layout.tail_start > layout.copy_at:
        raise DamagedLabel(f"the label's data area of {layout.data_length} bytes does not fit a drive of {layout.size}")


def _name(field: bytes) -> str:
    try:
        return field.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise DamagedLabel(f"a name in the label is not UTF-8: {field!r}") from error
