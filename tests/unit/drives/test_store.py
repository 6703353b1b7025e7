"""Labels and slots in ordinary files: what is read, what is repaired, and what an interrupted write leaves."""

import os
import stat
from pathlib import Path
from uuid import UUID

import pytest

from blkrecov.drives.label import BLOCK, BadSlot, DamagedLabel, Label, NoLabel, Slot
from blkrecov.drives.store import DriveIoError, DriveStore, IoCounter, create_file, format_drive, remove_file
from blkrecov.errors import InvalidArgument, InvalidDisk, ObjectExists, PathNotFound
from blkrecov.units import MIB

SIZE = 16 * MIB
LABEL = Label.new(
    size=SIZE,
    drive_uuid=UUID("0d0d0d0d-0000-4000-8000-00000000000d"),
    array_uuid=UUID("a1a1a1a1-0000-4000-8000-00000000000a"),
    drive_name="d0",
    array_name="lab",
    created_s=1_700_000_000,
)
LAST_BLOCK = SIZE - BLOCK


class PowerCut(Exception):
    """The machine goes dark before a write."""


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    path = tmp_path / "d0"
    create_file(str(path), SIZE)
    return path


@pytest.fixture
def drive(blank: Path) -> Path:
    format_drive(str(blank), LABEL, IoCounter())
    return blank


def test_a_formatted_drive_has_its_label_its_copy_and_empty_slots(drive: Path) -> None:
    """What drive add leaves for the engine to write the first document into."""
    with DriveStore(str(drive), IoCounter()) as store:
        reading = store.read_label()
        assert (reading.label, reading.from_copy, reading.damage) == (LABEL, False, None)
        assert store.read_slots(LABEL) == (BadSlot("empty"), BadSlot("empty"))


def test_formatting_leaves_a_sparse_file_sparse(drive: Path) -> None:
    """A new file is zeros already; its label and the copy are all that needs room."""
    assert drive.stat().st_blocks * 512 <= 64 * 1024


def test_formatting_takes_old_contents_away_at_both_ends(blank: Path) -> None:
    """Signatures of what was there would have blkid and udev take the drive for it."""
    overwrite(blank, 1024, b"old superblock")
    overwrite(blank, 2 * MIB, b"old slot")
    overwrite(blank, SIZE - 100_000, b"old backup header")
    format_drive(str(blank), LABEL, IoCounter())
    assert b"old" not in blank.read_bytes()


def test_a_format_cut_short_leaves_no_drive_or_a_whole_one(blank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power goes before each write in turn. A drive without its copy is whole: the copy can be repaired."""
    write = DriveStore._write
    outcomes = []
    for allowed in range(6):
        blank.write_bytes(b"old" * (SIZE // 3) + bytes(SIZE % 3))
        done: list[int] = []

        def cut(store: DriveStore, offset: int, data: bytes, allowed: int = allowed, done: list[int] = done) -> None:
            if len(done) == allowed:
                raise PowerCut
            done.append(offset)
            write(store, offset, data)

        with DriveStore(str(blank), IoCounter()) as store:
            monkeypatch.setattr(DriveStore, "_write", cut)
            with pytest.raises(PowerCut):
                store.format(LABEL)
            monkeypatch.setattr(DriveStore, "_write", write)
            try:
                outcomes.append(store.read_label().damage)
            except NoLabel:
                outcomes.append("no drive")
    assert outcomes == ["no drive"] * 5 + ["the copy of the label is lost: there is no blkrecov label"]


def test_an_overwritten_label_is_read_from_its_copy_and_repaired(drive: Path) -> None:
    """The first block is what a careless dd or a partitioning tool destroys."""
    overwrite(drive, 0, bytes(BLOCK))
    with DriveStore(str(drive), IoCounter()) as store:
        reading = store.read_label()
        assert (reading.label, reading.from_copy) == (LABEL, True)
        assert reading.damage == "the label is lost: there is no blkrecov label"
        repaired = store.repair_label()
        assert (repaired.from_copy, repaired.damage) == (False, None)


def test_a_lost_copy_is_told_and_repaired(drive: Path) -> None:
    """Nothing is wrong yet, and the next accident would be the last."""
    overwrite(drive, LAST_BLOCK, b"x")
    with DriveStore(str(drive), IoCounter()) as store:
        assert store.read_label().damage == "the copy of the label is lost: there is no blkrecov label"
        assert store.repair_label().damage is None


def test_a_drive_whose_label_and_copy_are_damaged_is_told_from_no_drive(drive: Path) -> None:
    """Somebody's data may still be on it."""
    overwrite(drive, 100, b"x")
    overwrite(drive, LAST_BLOCK + 100, b"x")
    with DriveStore(str(drive), IoCounter()) as store, pytest.raises(DamagedLabel, match="checksum is wrong; its copy"):
        store.read_label()


def test_a_file_without_a_label_is_no_drive(blank: Path) -> None:
    """The ordinary answer of a scan."""
    with DriveStore(str(blank), IoCounter()) as store, pytest.raises(NoLabel):
        store.read_label()


def test_a_truncated_drive_is_refused(drive: Path) -> None:
    """The kernel would read its lost end as zeros, and say nothing."""
    os.truncate(drive, SIZE - MIB)
    with DriveStore(str(drive), IoCounter()) as store, pytest.raises(InvalidDisk, match="its end is missing"):
        store.read_label()


def test_a_grown_drive_is_the_drive_that_it_was(drive: Path) -> None:
    """What lies beyond the end that the label knows is not used."""
    os.truncate(drive, SIZE + MIB)
    with DriveStore(str(drive), IoCounter()) as store:
        assert store.read_label().damage is None


def test_slots_are_written_in_turn(drive: Path) -> None:
    """Each write leaves the document before it alone."""
    with DriveStore(str(drive), IoCounter()) as store:
        assert [store.write_slot(LABEL, sequence, b"%d" % sequence) for sequence in (1, 2, 3)] == [0, 1, 0]
        assert store.read_slots(LABEL) == (Slot(sequence=3, payload=b"3"), Slot(sequence=2, payload=b"2"))


def test_the_damaged_slot_is_written_next(drive: Path) -> None:
    """Whichever it is: the valid one is all there is."""
    with DriveStore(str(drive), IoCounter()) as store:
        store.write_slot(LABEL, 1, b"1")
        store.write_slot(LABEL, 2, b"2")
    overwrite(drive, MIB + 100, b"x")
    with DriveStore(str(drive), IoCounter()) as store:
        assert store.write_slot(LABEL, 3, b"3") == 0
        assert store.read_slots(LABEL)[1] == Slot(sequence=2, payload=b"2")


def test_every_byte_is_counted(drive: Path) -> None:
    """A task's figure for this process has to stand up to a check from outside."""
    counter = IoCounter()
    with DriveStore(str(drive), counter) as store:
        store.read_label()
        assert counter == IoCounter(bytes_read=8192, bytes_written=0)
        store.write_slot(LABEL, 1, b"1")
        assert counter == IoCounter(bytes_read=16384, bytes_written=8192)
        store.read_slots(LABEL)
        assert counter == IoCounter(bytes_read=28672, bytes_written=8192)


def test_wiping_leaves_no_drive_and_keeps_the_data(drive: Path) -> None:
    """The copy goes too, or the drive would come back from it."""
    overwrite(drive, 5 * MIB, b"data")
    with DriveStore(str(drive), IoCounter()) as store:
        store.write_slot(LABEL, 1, b"1")
        store.wipe(LABEL.layout)
        with pytest.raises(NoLabel):
            store.read_label()
        assert store.read_slots(LABEL) == (BadSlot("empty"), BadSlot("empty"))
    assert drive.read_bytes()[5 * MIB : 5 * MIB + 4] == b"data"


def test_a_failed_write_tells_what_and_where(drive: Path) -> None:
    """Here: a descriptor that may not write."""
    with DriveStore(str(drive), IoCounter(), writable=False) as store, pytest.raises(DriveIoError, match="EBADF"):
        store.wipe(LABEL.layout)


def test_a_new_file_is_sparse_and_for_its_owner_only(blank: Path) -> None:
    """It will hold the contents of other people's file systems."""
    status = blank.stat()
    assert (status.st_size, status.st_blocks, stat.S_IMODE(status.st_mode)) == (SIZE, 0, 0o600)


def test_a_file_that_exists_is_not_touched(blank: Path) -> None:
    """O_EXCL: two commands at once cannot both have made it."""
    with pytest.raises(ObjectExists):
        create_file(str(blank), SIZE)


@pytest.mark.parametrize("size", [16 * MIB + 512, 15 * MIB])
def test_a_size_that_cannot_work_is_refused_before_anything_is_made(tmp_path: Path, size: int) -> None:
    """Direct I/O, and disks with 4096-byte blocks, need whole blocks."""
    with pytest.raises(InvalidArgument):
        create_file(str(tmp_path / "d1"), size)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_get_its_size_is_undone(tmp_path: Path) -> None:
    """2**63 - 4096 is a size that this file system may refuse; no file stays behind if so."""
    with pytest.raises((InvalidArgument, DriveIoError)):
        create_file(str(tmp_path / "d1"), 2**63 - 4096)
    assert list(tmp_path.iterdir()) == []


def test_creating_in_a_missing_directory_says_so(tmp_path: Path) -> None:
    """Directories are for the administrator to make."""
    with pytest.raises(PathNotFound):
        create_file(str(tmp_path / "none" / "d1"), SIZE)


def test_removing_spares_a_file_that_took_the_name(tmp_path: Path) -> None:
    """Undo must not destroy what somebody else made meanwhile."""
    path = tmp_path / "d1"
    created = create_file(str(path), SIZE)
    path.rename(tmp_path / "kept")
    path.write_text("another's")
    remove_file(str(path), created)
    assert path.read_text() == "another's"


def test_a_fifo_or_a_link_where_none_may_be_is_refused(tmp_path: Path, drive: Path) -> None:
    """Neither waits for a writer nor leaves the directory that is looked at."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(drive)
    with pytest.raises(InvalidArgument):
        DriveStore(str(tmp_path / "fifo"), IoCounter(), writable=False)
    with pytest.raises(InvalidArgument):
        DriveStore(str(tmp_path / "link"), IoCounter(), follow=False)
