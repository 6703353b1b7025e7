"""dm-snapshot's exception store: read as the kernel wrote it, and made large enough."""

import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.dm.cow import MalformedStore, StoreHeader, capacity, changed, parse_header, store_length
from blkrecov.units import SECTOR, Sectors

MAGIC = 0x70416E53
VALID = StoreHeader(valid=True, version=1, chunk=Sectors(1))
# An area of one sector has 32 entries.
ENTRIES = 32
CHUNKS = st.sampled_from([Sectors(1), Sectors(2), Sectors(32), Sectors(1024)])


class Full(Exception):
    """The kernel writes "Invalid" into the header."""


@dataclass
class Store:
    """A store of chunks of one sector, filled as persistent_prepare_exception() and persistent_commit_exception() do it."""

    length: int
    next_free: int = 2
    area: int = 0
    entries: list[tuple[int, int]] = field(default_factory=list)
    medium: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        # What lay there before is no zeros.
        self.medium = bytearray(b"\xee" * self.length * SECTOR)
        self.write(0, struct.pack("<IIII", MAGIC, 1, 1, 1))
        self.write(1, b"")

    def write(self, chunk: int, data: bytes) -> None:
        if chunk >= self.length:
            raise Full
        self.medium[chunk * SECTOR : (chunk + 1) * SECTOR] = data.ljust(SECTOR, b"\0")

    def add(self, old: int) -> None:
        if self.length < self.next_free + 1:
            raise Full
        self.entries.append((old, self.next_free))
        self.next_free += 1
        if self.next_free % (ENTRIES + 1) == 1:
            self.next_free += 1
        if len(self.entries) == ENTRIES:
            self.write(1 + (ENTRIES + 1) * (self.area + 1), b"")
        self.write(1 + (ENTRIES + 1) * self.area, b"".join(struct.pack("<QQ", *entry) for entry in self.entries))
        if len(self.entries) == ENTRIES:
            self.area += 1
            self.entries = []

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(self.medium), "the reader stays inside the store"
        return bytes(self.medium[offset : offset + length])


def header(magic: int = MAGIC, valid: int = 1, version: int = 1, chunk: int = 32) -> bytes:
    return struct.pack("<IIII", magic, valid, version, chunk).ljust(4096, b"\0")


def test_a_header_is_read() -> None:
    """As it lies on the medium."""
    block = bytes.fromhex("536e4170 01000000 01000000 20000000").ljust(4096, b"\0")
    assert parse_header(block) == StoreHeader(valid=True, version=1, chunk=Sectors(32))


def test_a_store_that_ran_full_says_so() -> None:
    """persistent_drop_snapshot() writes the header again, with valid 0."""
    assert parse_header(header(valid=0)) == StoreHeader(valid=False, version=1, chunk=Sectors(32))


def test_zeros_are_a_new_store() -> None:
    """The kernel writes the header when the snapshot is first loaded."""
    assert parse_header(bytes(4096)) is None


@pytest.mark.parametrize(
    ("block", "wrong"),
    [
        (header(magic=0x4D695272), "its magic is 0x4d695272"),
        (header(magic=0), "its magic is 0x00000000"),
        (header(version=2), "its version is 2"),
        (header(chunk=0), "chunks of 0 sectors"),
        (header(chunk=24), "chunks of 24 sectors"),
        (header(chunk=2**22), "chunks of 4194304 sectors"),
    ],
)
def test_what_the_kernel_did_not_write_is_refused(block: bytes, wrong: str) -> None:
    """To take it for a store without exceptions would be to say that nothing has changed."""
    with pytest.raises(MalformedStore, match=wrong):
        parse_header(block)


def test_a_new_store_holds_no_chunk() -> None:
    """Its first area is all zeros."""
    store = Store(length=100)
    assert changed(store.read, VALID, Sectors(100)) == ()


def test_exceptions_end_at_the_first_entry_without_a_place() -> None:
    """New chunk 0 is the header: nothing is copied there. Old chunk 0 is a chunk like any other."""
    entries = [(7, 2), (0, 3), (5, 4), (9, 0), (8, 6)]
    area = b"".join(struct.pack("<QQ", *entry) for entry in entries).ljust(SECTOR, b"\0")
    assert changed(lambda offset, length: area, VALID, Sectors(100)) == (0, 5, 7)


def test_areas_lie_behind_the_data_of_those_before() -> None:
    """Chunks 1, 34 and 67, where an area has 32 entries."""
    asked = []

    def read(offset: int, length: int) -> bytes:
        asked.append((offset // SECTOR, length))
        return b"".join(struct.pack("<QQ", entry, 2) for entry in range(32)) if len(asked) < 3 else bytes(length)

    changed(read, VALID, Sectors(1000))
    assert asked == [(1, 512), (34, 512), (67, 512)]


def test_exceptions_end_with_the_store() -> None:
    """An area of which the store has only a part is none."""
    full = b"".join(struct.pack("<QQ", entry, 2) for entry in range(64))
    two = StoreHeader(valid=True, version=1, chunk=Sectors(2))
    # The second area is chunk 66, sectors 132 and 133.
    assert len(changed(lambda offset, length: full, two, Sectors(133))) == 64
    assert len(changed(lambda offset, length: full, two, Sectors(134))) == 128


def test_a_store_that_is_not_valid_is_not_asked() -> None:
    """What was written after it had run full is not in there."""
    with pytest.raises(AssertionError, match="does not know all"):
        changed(Store(length=100).read, StoreHeader(valid=False, version=1, chunk=Sectors(1)), Sectors(100))


@given(st.sets(st.integers(0, 2**63), max_size=100))
def test_what_the_kernel_noted_is_read(chunks: set[int]) -> None:
    """Whatever order it came in."""
    length = store_length(len(chunks), Sectors(1))
    store = Store(length)
    for chunk in chunks:
        store.add(chunk)
    assert changed(store.read, VALID, length) == tuple(sorted(chunks))


@given(st.integers(0, 200))
def test_a_store_of_that_length_stays_valid_and_a_shorter_one_does_not(count: int) -> None:
    """Also where the last exception fills an area, and the kernel zeroes the next."""

    def fill(length: int) -> None:
        store = Store(length)
        for chunk in range(count):
            store.add(chunk)

    length = store_length(count, Sectors(1))
    fill(length)
    with pytest.raises(Full):
        fill(length - 1)


@pytest.mark.parametrize(
    ("chunks", "chunk", "length"), [(0, 32, 64), (1, 32, 96), (1023, 32, 32800), (1024, 32, 32864), (4, 8, 48)]
)
def test_how_long_a_store_is(chunks: int, chunk: int, length: int) -> None:
    """An empty one has two chunks, which is what the kernel says of it: 64 sectors for chunks of 16 KiB."""
    assert store_length(chunks, Sectors(chunk)) == length


@given(st.integers(0, 2**40), CHUNKS)
def test_a_store_holds_what_it_was_made_for(chunks: int, chunk: Sectors) -> None:
    """Neither less nor more."""
    length = store_length(chunks, chunk)
    assert capacity(length, chunk) == chunks
    assert capacity(Sectors(length - 1), chunk) == max(chunks - 1, 0)


@given(st.integers(0, 2**40), CHUNKS)
def test_nothing_more_fits_than_a_store_s_capacity(length: int, chunk: Sectors) -> None:
    """The same, asked the other way around; what is left of a chunk is of no use."""
    most = capacity(Sectors(length), chunk)
    assert length < store_length(most + 1, chunk)
    assert most == 0 or store_length(most, chunk) <= length
