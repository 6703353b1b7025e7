"""A disk's own signature: what hosts know it by, kept in its partition table. Copying a disk's blocks brings the source's along.

    MBR    4 bytes at 0x1B8, little endian, in a sector with four plausible partition entries
    GPT    the disk GUID at 0x38 of the header; one header in block 1, one in the last block, each with a checksum

What it knows: where the two kinds of partition table keep it, and what else has to change with it. What it refuses to know: whose
signature a disk ought to have, and how its bytes are got and put; it asks for pages and answers with pages. What always holds:

- A GPT's table counts only as a whole: a header and its partition entries, both with the right checksum, as UEFI has it.
- Of a GPT's two tables the one that was believed is written last, and a header after its entries, since it sends its readers to
  the other table even where its own entries are damaged. So at every moment one table is whole and can be found.
- Partitions are never touched: where the second table would lie on one, nothing is written.

Sources: UEFI 2.10, 5.2 (MBR, protective MBR) and 5.3 (GPT). Kernel: block/partitions/msdos.c, efi.c.
"""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Self, TypeAlias
from uuid import UUID

from blkrecov.errors import InvalidArgument
from blkrecov.units import MIB, Bytes, round_down, round_up

PAGE: Final = 4096  # What is read and written; a multiple of every logical block.

Kind: TypeAlias = Literal["mbr", "gpt"]
Read: TypeAlias = Callable[[int, int], bytes]  # Offset and length in bytes, to exactly that many bytes.

_TEXT: Final = re.compile(r"mbr:([0-9a-f]{8})|gpt:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.IGNORECASE)

_MBR_SIZE: Final = 512  # Of every disk, whatever its blocks.
_MBR_SIGNATURE_AT: Final = 0x1B8
_MBR_ENTRIES_AT: Final = 0x1BE
_MBR_ENTRY: Final = struct.Struct("<B3xB3xII")  # Boot indicator, type, first block, number of blocks.
_MBR_BLOCKS_AT: Final = 12  # In an entry.
_MBR_BLOCKS_MAX: Final = 0xFFFFFFFF
_PROTECTIVE: Final = 0xEE

_GPT: Final = struct.Struct("<8sIIIIQQQQ16sQIII")  # What a header's block begins with: the fields of _Header.
_GPT_MAGIC: Final = b"EFI PART"
_GPT_ENTRY: Final = struct.Struct("<16s24xQ")  # Type and last block; unused if the type is zero.
_GPT_ENTRY_MIN: Final = 128
_GPT_ENTRIES_MAX: Final = MIB  # Usual are 16 KiB. Bounds what a forged header can make us read.


@dataclass(frozen=True, slots=True)
class Signature:
    """A 32-bit number for an MBR, a UUID for a GPT. A number of 0 is what an MBR has to which nobody gave one."""

    value: int | UUID

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "mbr:1a2b3c4d" or "gpt:c12a7328-f81f-11d2-ba4b-00a0c93ec93b", in small letters or capitals.

        Raises: InvalidArgument for anything else.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise InvalidArgument(f"{text!r} is no disk signature", remedy="write mbr:1a2b3c4d, or gpt: and a GUID")
        return cls(UUID(match[2])) if match[2] else cls(int(match[1], 16))

    def __str__(self) -> str:
        return f"gpt:{self.value}" if isinstance(self.value, UUID) else f"mbr:{self.value:08x}"

    @property
    def kind(self) -> Kind:
        return "gpt" if isinstance(self.value, UUID) else "mbr"

    def as_guid(self) -> UUID:
        """As VDS_LUN_INFORMATION has it in m_diskSignature: an MBR's number is the first 32 bits, the rest is zero."""
        return self.value if isinstance(self.value, UUID) else UUID(fields=(self.value, 0, 0, 0, 0, 0))


def fresh(kind: Kind, entropy: UUID) -> Signature:
    """A new signature out of a random UUID. An MBR's is not 0, which would say that it has none."""
    return Signature(entropy) if kind == "gpt" else Signature(entropy.time_low or 1)


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes to be put on the disk: whole pages, but for a last page that the disk's end cuts short."""

    offset: int
    data: bytes


def read_signature(read: Read, size: Bytes, block: int = 512) -> Signature | None:
    """The signature of a disk; none if it has no partition table, or a GPT of which neither table is whole.

    Units:   `size` and all that `read` is asked for are bytes, in whole pages; at the end of a disk that is no whole number of
             pages, in logical blocks. `block` is the size of those.
    Costs:   one page without a GPT; with one the usual five, and five more if the first table is damaged.
    """
    disk = _Disk(read, size, block)
    match _kind(disk):
        case "mbr":
            return Signature(int.from_bytes(disk.at(_MBR_SIGNATURE_AT, 4), "little"))
        case "gpt":
            table = _believed(disk)
            return None if table is None else Signature(UUID(bytes_le=table.header.guid))
        case None:
            return None


def rewritten(read: Read, size: Bytes, wanted: Signature, block: int = 512) -> tuple[Write, ...]:
    """What to write, in this order, for the disk to have the wanted signature; nothing if it has.

    A GPT is made sound with that: a damaged table is written anew from the other; where the disk has changed in size, the second
    table goes to its end, and the protective MBR says the new size. Units are read_signature()'s.

    Raises:  InvalidArgument for a disk with a partition table of the other kind or none, and for one whose partitions leave no
             room for the second table. The caller decides what that means.
    """
    disk = _Disk(read, size, block)
    match _kind(disk), wanted.value:
        case "mbr", int(number):
            return disk.put((_MBR_SIGNATURE_AT, number.to_bytes(4, "little")))
        case "gpt", UUID() as guid:
            table = _believed(disk)
            if table is not None:
                return _with_guid(disk, table, guid)
            has = "a GPT of which neither table is whole"
        case "gpt", _:
            has = "a GPT"
        case "mbr", _:
            has = "an MBR"
        case _:
            has = "no partition table"
    raise InvalidArgument(f"the disk cannot be given the signature {wanted}: it has {has}")


class _Disk:
    """Pages, each read once. What was put into them is what is read from then on."""

    def __init__(self, read: Read, size: int, block: int) -> None:
        self.block: Final = block
        self.blocks: Final = size // block
        self._read: Final = read
        self._pages: Final[dict[int, bytes]] = {}

    def at(self, offset: int, length: int) -> bytes:
        first = round_down(offset, PAGE)
        pages = b"".join(self._page(start) for start in range(first, offset + length, PAGE))
        return pages[offset - first : offset - first + length]

    def put(self, *pieces: tuple[int, bytes]) -> tuple[Write, ...]:
        """Put bytes at offsets. Pages that this changes are to be written, neighbours together."""
        changed: dict[int, bytes] = {}
        for offset, data in pieces:
            for start in range(round_down(offset, PAGE), offset + len(data), PAGE):
                page = self._page(start)
                here, there = max(offset, start), min(offset + len(data), start + PAGE)
                new = page[: here - start] + data[here - offset : there - offset] + page[there - start :]
                if new != page:
                    changed[start] = self._pages[start] = new
        writes: list[Write] = []
        for start, page in sorted(changed.items()):
            if writes and writes[-1].offset + len(writes[-1].data) == start:
                writes[-1] = Write(writes[-1].offset, writes[-1].data + page)
            else:
                writes.append(Write(start, page))
        return tuple(writes)

    def _page(self, start: int) -> bytes:
        if start not in self._pages:
            self._pages[start] = self._read(start, min(PAGE, self.blocks * self.block - start))
        return self._pages[start]


def _mbr_entries(disk: _Disk) -> list[tuple[int, int, int, int]]:
    return list(_MBR_ENTRY.iter_unpack(disk.at(_MBR_ENTRIES_AT, 4 * _MBR_ENTRY.size)))


def _kind(disk: _Disk) -> Kind | None:
    """Which partition table the first sector speaks of.

    Boot sectors of file systems end as an MBR does. Where an MBR has its partitions, they have code, text, or nothing; then
    it takes a look at their beginning to tell them from the MBR of a disk without partitions.
    """
    if disk.blocks == 0:
        return None
    sector = disk.at(0, _MBR_SIZE)
    if sector[-2:] != b"\x55\xaa":
        return None
    entries = _mbr_entries(disk)
    if any(kind == _PROTECTIVE for _, kind, _, _ in entries):
        return "gpt"
    used = [entry for entry in entries if any(entry[1:])]
    if any(boot not in (0x00, 0x80) for boot, *_ in entries):
        return None
    # The first block may be 0: optical discs' images for USB sticks have a partition that begins there.
    if any(kind == 0 or blocks == 0 for _, kind, _, blocks in used):
        return None
    return "mbr" if used or not _is_boot_sector(sector) else None


def _is_boot_sector(sector: bytes) -> bool:
    """A jump, and the size of a sector, as FAT, NTFS and BitLocker have them; or exFAT, which has zeros for the latter."""
    jump = sector[0] == 0xE9 or (sector[0] == 0xEB and sector[2] == 0x90)
    sized = int.from_bytes(sector[11:13], "little") in (512, 1024, 2048, 4096)
    return jump and (sized or sector[3:11] == b"EXFAT   ")


class _Header(NamedTuple):
    """A GPT's header, field by field. Places, first and last are blocks; what lies from first to last is for partitions."""

    magic: bytes
    revision: int
    size: int
    crc: int
    reserved: int
    at: int
    other_at: int
    first: int
    last: int
    guid: bytes
    entries_at: int
    entries: int
    entry_size: int
    entries_crc: int

    def sealed(self, rest: bytes) -> bytes:
        """The header's block, with `rest` after the fields, and a right checksum, which is taken with its own bytes zero."""
        bare = _GPT.pack(*self._replace(crc=0)) + rest
        return _GPT.pack(*self._replace(crc=zlib.crc32(bare[: self.size]))) + rest


@dataclass(frozen=True, slots=True)
class _Table:
    """A header, what follows it in its block, and its entries in whole blocks."""

    header: _Header
    rest: bytes
    entries: bytes

    def ends(self) -> list[int]:
        """The last block of each partition."""
        starts = range(0, self.header.entries * self.header.entry_size, self.header.entry_size)
        entries = (_GPT_ENTRY.unpack_from(self.entries, start) for start in starts)
        return [last for kind, last in entries if any(kind)]


def _believed(disk: _Disk) -> _Table | None:
    """The first table if it is whole, else the second, where the first says or in the last block.

    Kernel: efi.c, find_valid_gpt()
    """
    first = _header(disk, 1)
    places = (1, first[0].other_at if first else 0, disk.blocks - 1)
    return next(filter(None, (_table(disk, at) for at in places)), None)


def _table(disk: _Disk, at: int) -> _Table | None:
    """The table whose header is in this block, if it is whole."""
    found = _header(disk, at)
    if found is None:
        return None
    header, rest = found
    used = header.entries * header.entry_size
    length = round_up(used, disk.block)
    if header.entry_size < _GPT_ENTRY_MIN or not 0 < used <= _GPT_ENTRIES_MAX:
        return None
    if header.entries_at + length // disk.block > disk.blocks:
        return None
    entries = disk.at(header.entries_at * disk.block, length)
    return _Table(header, rest, entries) if zlib.crc32(entries[:used]) == header.entries_crc else None


def _header(disk: _Disk, at: int) -> tuple[_Header, bytes] | None:
    """The header in this block and what follows it there, if its checksum is right.

    It may speak of blocks after the disk's end, unlike one that the kernel accepts: the disk was larger then.
    """
    if not 1 <= at < disk.blocks:
        return None
    sector = disk.at(at * disk.block, disk.block)
    header, rest = _Header._make(_GPT.unpack_from(sector)), sector[_GPT.size :]
    if header.magic != _GPT_MAGIC or header.at != at or not _GPT.size <= header.size <= disk.block:
        return None
    return (header, rest) if header.sealed(rest) == sector else None


def _with_guid(disk: _Disk, table: _Table, guid: UUID) -> tuple[Write, ...]:
    header, end = table.header, disk.blocks - 1
    span = len(table.entries) // disk.block
    from_first = header.at == 1
    # A second table does not tell where the first had its entries; this is where sgdisk puts them then, too.
    first_entries_at = header.entries_at if from_first else 2
    second_entries_at = end - span
    used = max([header.first, *table.ends()])
    if used >= second_entries_at:
        raise InvalidArgument(
            f"the disk's GPT has no room for its second table: the disk has {disk.blocks} blocks, the table would begin in block "
            f"{second_entries_at}, and blocks up to {used} are for partitions",
            remedy="make the disk larger, or its last partition smaller",
        )
    resized = end not in (header.at, header.other_at)
    last = second_entries_at - 1 if resized else min(header.last, second_entries_at - 1)
    header = header._replace(last=last, guid=guid.bytes_le)
    first = header._replace(at=1, other_at=end, entries_at=first_entries_at).sealed(table.rest)
    second = header._replace(at=end, other_at=1, entries_at=second_entries_at).sealed(table.rest)
    to_first = [[(first_entries_at * disk.block, table.entries)], [(disk.block, first), *_protective(disk)]]
    to_second = [[(second_entries_at * disk.block, table.entries)], [(end * disk.block, second)]]
    steps = to_second + to_first if from_first else to_first + to_second
    return tuple(write for pieces in steps for write in disk.put(*pieces))


def _protective(disk: _Disk) -> list[tuple[int, bytes]]:
    """The size in the protective MBR, where it is to be corrected.

    Not where the MBR has partitions beside the protective one, which are somebody's own arrangement; and the largest number is
    right for every disk: some write it whatever the size (efi.c, is_pmbr_valid()).
    """
    match [(index, entry) for index, entry in enumerate(_mbr_entries(disk)) if any(entry)]:
        case [(index, (_, _, 1, blocks))] if blocks != _MBR_BLOCKS_MAX:
            size = min(disk.blocks - 1, _MBR_BLOCKS_MAX)
            return [(_MBR_ENTRIES_AT + index * _MBR_ENTRY.size + _MBR_BLOCKS_AT, size.to_bytes(4, "little"))]
        case _:
            return []
