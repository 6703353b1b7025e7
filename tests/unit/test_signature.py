"""Disk signatures: where they are found, where none is, and what a rewriting leaves whole.

The literal headers are sgdisk's, of a disk of 128 blocks with one partition in blocks 40 to 60.
"""

import struct
import zlib
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.errors import InvalidArgument
from blkrecov.signature import PAGE, Signature, Write, fresh, read_signature, rewritten
from blkrecov.units import Bytes

BLOCK = 512
BLOCKS = 128
GUID = UUID("0a0b0c0d-0e0f-4a4b-8c8d-010203040506")
WANTED = UUID("deadbeef-0000-4000-8000-00000000beef")
ENTRY = bytes.fromhex("af3dc60f838472478e793d69d8477de4 11111111222233438444555555555555") + struct.pack("<QQ", 40, 60)
ENTRIES = ENTRY.ljust(128 * 128, b"\0")


def header(crc: str, at: int, other: int, last: int, guid: UUID, entries_at: int) -> bytes:
    """A header as sgdisk writes it, the checksum given as the bytes that are found there."""
    places = struct.pack("<QQQQ", at, other, 34, last)
    return (
        bytes.fromhex(f"4546492050415254 00000100 5c000000 {crc} 00000000") + places + guid.bytes_le
        + struct.pack("<Q", entries_at) + bytes.fromhex("80000000 80000000 2496d9e3")
    )  # fmt: skip


FIRST = header("32a05f75", 1, 127, 94, GUID, 2)
SECOND = header("3698eea9", 127, 1, 94, GUID, 95)
FIRST_WANTED = header("19778bf6", 1, 127, 94, WANTED, 2)
SECOND_WANTED = header("1d4f3a2a", 127, 1, 94, WANTED, 95)
FIRST_GROWN = header("b7597062", 1, 255, 222, GUID, 2)
SECOND_GROWN = header("6b528e4a", 255, 1, 222, GUID, 223)


def entry(boot: int, kind: int, first: int, blocks: int) -> bytes:
    return struct.pack("<B3xB3xII", boot, kind, first, blocks)


def mbr(*entries: bytes, signature: int = 0, code: bytes = b"") -> bytes:
    table = b"".join(entries).ljust(64, b"\0")
    return code.ljust(0x1B8, b"\0") + struct.pack("<IH", signature, 0) + table + b"\x55\xaa"


class Disk:
    """Bytes that are read and written as a drive is: in whole pages, the last of which the end may cut short."""

    def __init__(self, data: bytes, block: int = BLOCK) -> None:
        self.data = bytearray(data)
        self.block = block
        self.pages = 0

    @classmethod
    def gpt(cls, *pieces: tuple[int, bytes], blocks: int = BLOCKS) -> "Disk":
        """sgdisk's disk, and pieces at blocks of it."""
        disk = cls(bytes(blocks * BLOCK))
        protective = mbr(entry(0, 0xEE, 1, BLOCKS - 1))
        for at, data in ((0, protective), (1, FIRST), (2, ENTRIES), (95, ENTRIES), (127, SECOND), *pieces):
            disk.data[at * BLOCK : at * BLOCK + len(data)] = data
        return disk

    def resized(self, blocks: int) -> "Disk":
        return Disk(bytes(self.data[: blocks * self.block]).ljust(blocks * self.block, b"\0"), self.block)

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        self.pages += 1
        return bytes(self.data[offset : offset + length])

    def write(self, *writes: Write) -> None:
        for write in writes:
            self._check(write.offset, len(write.data))
            self.data[write.offset : write.offset + len(write.data)] = write.data

    def _check(self, offset: int, length: int) -> None:
        end = offset + length
        assert offset % PAGE == 0
        assert length > 0
        assert end % PAGE == 0 or end == len(self.data)
        assert end <= len(self.data)

    def signature(self) -> Signature | None:
        return read_signature(self.read, Bytes(len(self.data)), self.block)

    def rewritten(self, wanted: Signature) -> tuple[Write, ...]:
        return rewritten(self.read, Bytes(len(self.data)), wanted, self.block)

    def at(self, block: int, length: int) -> bytes:
        return bytes(self.data[block * self.block : block * self.block + length])


LINUX = entry(0, 0x83, 8, 64)
BAD = b"\xff"
FAT = bytes.fromhex("eb3c90") + b"mkfs.fat" + struct.pack("<HBHBHHB", 512, 4, 4, 2, 512, 8192, 0xF8)
NTFS = bytes.fromhex("eb5290") + b"NTFS    " + struct.pack("<HBHBHHB", 512, 8, 0, 0, 0, 0, 0xF8)
EXFAT = bytes.fromhex("eb7690") + b"EXFAT   "
GRUB = bytes.fromhex("eb6390")


# The value.


@pytest.mark.parametrize(
    ("text", "signature"),
    [
        ("mbr:1a2b3c4d", Signature(0x1A2B3C4D)),
        ("mbr:00000000", Signature(0)),
        ("gpt:0a0b0c0d-0e0f-4a4b-8c8d-010203040506", Signature(GUID)),
    ],
)
def test_text_form_both_ways(text: str, signature: Signature) -> None:
    """It is what the array's configuration holds."""
    assert str(signature) == text
    assert Signature.parse(text) == Signature.parse(text.upper()) == signature
    assert signature.kind == text[:3]


@pytest.mark.parametrize(
    "text", ["", "mbr:1a2b3c4", "mbr:1a2b3c4d5", "mbr:0x1a2b3c", "gpt:1a2b3c4d", f"gpt:{{{GUID}}}", str(GUID)]
)
def test_other_text_is_refused(text: str) -> None:
    """A number of another length would be another signature."""
    with pytest.raises(InvalidArgument, match="no disk signature"):
        Signature.parse(text)


def test_as_guid_is_what_vds_lun_information_holds() -> None:
    """An MBR's number is the first 32 bits, and zero means that there is none."""
    assert Signature(GUID).as_guid() == GUID
    assert Signature(0x1A2B3C4D).as_guid().bytes_le == bytes.fromhex("4d3c2b1a") + bytes(12)
    assert Signature(0).as_guid() == UUID(int=0)


def test_fresh_is_of_the_asked_kind_and_never_zero() -> None:
    """A number of 0 is an MBR's that has no signature yet."""
    assert fresh("gpt", GUID) == Signature(GUID)
    assert fresh("mbr", GUID) == Signature(0x0A0B0C0D)
    assert fresh("mbr", UUID("00000000-0e0f-4a4b-8c8d-010203040506")) == Signature(1)


# Reading.


@pytest.mark.parametrize(
    ("sector", "text"),
    [
        (mbr(LINUX, signature=0x1A2B3C4D), "mbr:1a2b3c4d"),
        (mbr(LINUX), "mbr:00000000"),
        (mbr(signature=0x1A2B3C4D), "mbr:1a2b3c4d"),
        (mbr(signature=0x1A2B3C4D, code=GRUB), "mbr:1a2b3c4d"),
        (mbr(LINUX, signature=0x1A2B3C4D, code=FAT), "mbr:1a2b3c4d"),
        (mbr(entry(0x80, 0x17, 0, 64), signature=0x1A2B3C4D), "mbr:1a2b3c4d"),
    ],
    ids=[
        "a partition",
        "nobody gave one",
        "no partitions",
        "no partitions but GRUB",
        "a boot sector's beginning",
        "isohybrid",
    ],
)
def test_mbr_is_read(sector: bytes, text: str) -> None:
    """GRUB keeps what a file system's boot sector had at its beginning; the partitions count."""
    assert str(Disk(sector + bytes(64 * 1024 - 512)).signature()) == text


@pytest.mark.parametrize(
    "sector",
    [
        bytes(512),
        mbr(LINUX)[:-2] + b"\0\0",
        mbr(code=FAT),
        mbr(code=NTFS),
        mbr(code=EXFAT),
        mbr(b"Press Ctrl+Alt+Del to restart\r\n", code=NTFS),
        mbr(LINUX, entry(0, 0x83, 72, 0)),
        mbr(LINUX, bytes(8) + bytes.fromhex("00008a01a701bf01")),
    ],
    ids=["zeros", "no 55AA", "FAT", "NTFS", "exFAT", "text", "a partition without blocks", "offsets of messages"],
)
def test_without_a_partition_table_there_is_no_signature(sector: bytes) -> None:
    """The bytes at 0x1B8 are a file system's code then, and not to be written to."""
    disk = Disk(sector + bytes(64 * 1024 - 512))
    assert disk.signature() is None
    with pytest.raises(InvalidArgument, match="no partition table"):
        disk.rewritten(Signature(1))


def test_the_smallest_disks_are_read() -> None:
    """One without a block, of one block, and with an MBR that promises more."""
    assert Disk(b"").signature() is None
    assert Disk(bytes(512)).signature() is None
    assert Disk(mbr(LINUX, signature=7)).signature() == Signature(7)
    assert Disk(mbr(entry(0, 0xEE, 1, 127))).signature() is None


def test_gpt_is_read_in_five_pages() -> None:
    """The header and its entries. Both are needed to tell a whole table."""
    disk = Disk.gpt()
    assert disk.signature() == Signature(GUID)
    assert disk.pages == 5


@pytest.mark.parametrize(
    "damage", [(1, BAD), (1, bytes(512)), (2, BAD), (1, SECOND)], ids=["magic", "lost", "entries", "place"]
)
def test_second_table_stands_in_for_a_damaged_first(damage: tuple[int, bytes]) -> None:
    """It has another GUID here, so that it shows whose is read."""
    assert Disk.gpt((127, SECOND_WANTED), damage).signature() == Signature(WANTED)
    assert Disk.gpt((127, SECOND_WANTED)).signature() == Signature(GUID)


def test_second_table_is_found_where_the_first_header_says() -> None:
    """On a disk that has grown it is not in the last block."""
    assert Disk.gpt((2, BAD), (127, SECOND_WANTED)).resized(256).signature() == Signature(WANTED)


def test_two_damaged_tables_have_no_signature() -> None:
    """Which of them would be right?"""
    disk = Disk.gpt((1, BAD), (95, BAD))
    assert disk.signature() is None
    with pytest.raises(InvalidArgument, match="neither table is whole"):
        disk.rewritten(Signature(WANTED))


def test_gpt_without_protective_mbr_is_none() -> None:
    """Neither the kernel nor Windows takes it for one: what the headers are left of is gone."""
    assert Disk.gpt((0, bytes(512))).signature() is None
    assert str(Disk.gpt((0, mbr(LINUX, signature=7))).signature()) == "mbr:00000007"


# Rewriting.


def test_mbr_changes_in_four_bytes() -> None:
    """Boot code and partitions are in the same page."""
    disk = Disk(mbr(LINUX, signature=0x1A2B3C4D, code=GRUB) + bytes(64 * 1024 - 512))
    writes = disk.rewritten(Signature(0xDEADBEEF))
    page = mbr(LINUX, signature=0xDEADBEEF, code=GRUB).ljust(PAGE, b"\0")
    assert writes == (Write(0, page),)


def test_gpt_changes_in_both_headers_the_second_first() -> None:
    """A crash between the two leaves two whole tables; what was believed before is believed until the last write."""
    disk = Disk.gpt()
    second, first = disk.rewritten(Signature(WANTED))
    assert (second.offset, len(second.data), first.offset, len(first.data)) == (15 * PAGE, PAGE, 0, PAGE)
    disk.write(second)
    assert (disk.at(1, 92), disk.at(127, 92)) == (FIRST, SECOND_WANTED)
    assert disk.signature() == Signature(GUID)
    disk.write(first)
    assert disk.data == Disk.gpt((1, FIRST_WANTED), (127, SECOND_WANTED)).data


def test_a_damaged_first_table_is_written_before_the_second_that_is_whole() -> None:
    """Else a torn write would cost the only table. The header comes after the entries that it speaks of."""
    disk = Disk.gpt((1, BAD * 4096))
    writes = disk.rewritten(Signature(WANTED))
    assert [(write.offset, len(write.data)) for write in writes] == [(0, 2 * PAGE), (0, PAGE), (15 * PAGE, PAGE)]
    disk.write(*writes)
    assert (disk.at(1, 92), disk.at(127, 92)) == (FIRST_WANTED, SECOND_WANTED)
    assert disk.at(2, 128 * 128) == ENTRIES


@pytest.mark.parametrize("damage", [(127, BAD), (127, bytes(512)), (95, BAD), (1, BAD), (2, BAD)])
def test_a_damaged_table_is_made_anew_from_the_other(damage: tuple[int, bytes]) -> None:
    """Also when the GUID is right already."""
    disk = Disk.gpt(damage)
    disk.write(*disk.rewritten(Signature(GUID)))
    assert disk.data == Disk.gpt().data


def test_on_a_larger_disk_the_second_table_goes_to_the_end() -> None:
    """As sgdisk --move-second-header does it. The new end is usable, and the protective MBR covers it."""
    disk = Disk.gpt().resized(256)
    disk.write(*disk.rewritten(Signature(GUID)))
    assert (disk.at(1, 92), disk.at(255, 92)) == (FIRST_GROWN, SECOND_GROWN)
    assert disk.at(2, 128 * 128) == disk.at(223, 128 * 128) == ENTRIES
    assert disk.at(0, 512) == mbr(entry(0, 0xEE, 1, 255))


def test_on_a_smaller_disk_as_well() -> None:
    """The copied second table was in what is cut off."""
    disk = Disk.gpt(blocks=256)
    disk.write(*disk.rewritten(Signature(GUID)))
    disk = disk.resized(128)
    disk.write(*disk.rewritten(Signature(GUID)))
    assert disk.data == Disk.gpt().data


def test_a_partition_in_the_way_of_the_second_table_is_not_written_over() -> None:
    """Blocks 61 to 93 are just enough for it; with one less it would begin in the partition's last."""
    disk = Disk.gpt().resized(94)
    disk.write(*disk.rewritten(Signature(GUID)))
    with pytest.raises(InvalidArgument, match="93 blocks, the table would begin in block 60, and blocks up to 60"):
        disk.resized(93).rewritten(Signature(GUID))


def test_a_last_usable_block_that_was_chosen_stays_until_the_disk_changes_in_size() -> None:
    """Some align it. At another size it would be the old end."""
    first, second = (
        sealed(at, other, 34, 80, GUID, entries_at, 128, zlib.crc32(ENTRIES))
        for at, other, entries_at in ((1, 127, 2), (127, 1, 95))
    )
    disk = Disk.gpt((1, first), (127, second))
    assert disk.rewritten(Signature(GUID)) == ()
    disk = disk.resized(256)
    disk.write(*disk.rewritten(Signature(GUID)))
    assert (disk.at(1, 92), disk.at(255, 92)) == (FIRST_GROWN, SECOND_GROWN)


@pytest.mark.parametrize(
    "sector",
    [mbr(entry(0, 0xEE, 1, 0xFFFFFFFF)), mbr(entry(0, 0xEE, 1, 39), entry(0, 0x83, 40, 21), signature=7)],
    ids=["of any size", "hybrid"],
)
def test_such_protective_mbrs_stay_as_they_are(sector: bytes) -> None:
    """Windows writes the largest size on every disk; a hybrid's is somebody's choice."""
    disk = Disk.gpt((0, sector)).resized(256)
    disk.write(*disk.rewritten(Signature(WANTED)))
    assert disk.signature() == Signature(WANTED)
    assert disk.at(0, 512) == sector


@pytest.mark.parametrize(
    ("disk", "wanted", "has"),
    [
        (Disk.gpt(), "mbr:1a2b3c4d", "it has a GPT"),
        (Disk(mbr(LINUX) + bytes(4096 - 512)), f"gpt:{GUID}", "it has an MBR"),
    ],
)
def test_a_signature_of_the_other_kind_is_refused(disk: Disk, wanted: str, has: str) -> None:
    """The partition table would have to be converted."""
    with pytest.raises(InvalidArgument, match=f"{wanted}: {has}"):
        disk.rewritten(Signature.parse(wanted))


# What holds for all of them.


def sealed(
    at: int, other: int, first: int, last: int, guid: UUID, entries_at: int, entries: int, entries_crc: int
) -> bytes:
    """A header with a checksum of its own."""
    bare = struct.pack("<8s4I4Q", b"EFI PART", 0x10000, 92, 0, 0, at, other, first, last)
    bare += guid.bytes_le + struct.pack("<QIII", entries_at, entries, 128, entries_crc)
    return bare[:16] + struct.pack("<I", zlib.crc32(bare)) + bare[20:]


@st.composite
def gpts(draw: st.DrawFn) -> Disk:
    """GPTs on disks of either block size and any length, some damaged in one table, some made larger or smaller since."""
    block = draw(st.sampled_from([512, 4096]))
    entries = draw(st.sampled_from([4, 128]))
    span = -(-entries * 128 // block)
    blocks = draw(st.integers(2 * span + 12, 2 * span + 200))
    table = draw(st.binary(max_size=16)).ljust(32, b"\1") + struct.pack("<QQ", 2 + span, 2 + span + 1)
    table = table.ljust(entries * 128, b"\0")
    disk = Disk(bytes(blocks * block), block)
    disk.data[:512] = mbr(entry(0, 0xEE, 1, blocks - 1))
    guid = draw(st.uuids())
    for at, other, entries_at in ((1, blocks - 1, 2), (blocks - 1, 1, blocks - 1 - span)):
        made = sealed(at, other, 2 + span, blocks - 2 - span, guid, entries_at, entries, zlib.crc32(table))
        disk.data[at * block : at * block + 92] = made
        disk.data[entries_at * block : entries_at * block + len(table)] = table
    match draw(st.sampled_from(["whole", "first", "second", "resized", "first, grown"])):
        case "first":
            disk.data[draw(st.sampled_from([1, 2])) * block] ^= 0xFF
        case "second":
            disk.data[draw(st.sampled_from([blocks - 1, blocks - 1 - span])) * block] ^= 0xFF
        case "resized":
            return disk.resized(draw(st.integers(2 * span + 5, 2 * span + 300)))
        case "first, grown":
            disk.data[2 * block] ^= 0xFF
            return disk.resized(blocks + draw(st.integers(1, 100)))
    return disk


@given(disk=gpts(), guid=st.uuids())
def test_rewritten_is_read_and_rewriting_twice_is_nothing(disk: Disk, guid: UUID) -> None:
    disk.write(*disk.rewritten(Signature(guid)))
    assert disk.signature() == Signature(guid)
    assert disk.rewritten(Signature(guid)) == ()


@given(disk=gpts(), guid=st.uuids(), data=st.data())
def test_a_crash_anywhere_leaves_a_whole_table_and_the_next_rewriting_ends_it(
    disk: Disk, guid: UUID, data: st.DataObject
) -> None:
    """Some writes are whole; of the next any blocks have come to the medium."""
    before, wanted = disk.signature(), Signature(guid)
    writes = disk.rewritten(wanted)
    ended = Disk(bytes(disk.data), disk.block)
    ended.write(*writes)
    whole = data.draw(st.integers(0, len(writes)))
    disk.write(*writes[:whole])
    for write in writes[whole : whole + 1]:
        for start in data.draw(st.sets(st.sampled_from(range(0, len(write.data), disk.block)))):
            at = write.offset + start
            disk.data[at : at + disk.block] = write.data[start : start + disk.block]
    assert disk.signature() in (before, wanted)
    disk.write(*disk.rewritten(wanted))
    assert disk.data == ended.data
