"""What is at a path, told from ordinary files; and who may become a drive, decided from values."""

import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from blkrecov.drives.label import Label
from blkrecov.drives.probe import Contents, Kind, describe, inspect, refuse_if_unfit
from blkrecov.drives.store import IoCounter, create_file, format_drive
from blkrecov.errors import DeviceInUse, DiskNotEmpty, InvalidArgument, PathNotFound
from blkrecov.units import MIB, Bytes

BLANK = Contents(
    path="/srv/d0",
    kind=Kind.FILE,
    size=Bytes(16 * MIB),
    allocated=Bytes(0),
    writable=True,
    holder=None,
    label=None,
    holds=None,
)


@pytest.fixture
def blank(tmp_path: Path) -> str:
    path = str(tmp_path / "d0")
    create_file(path, 16 * MIB)
    return path


def test_a_new_file_is_fit(blank: str) -> None:
    """Regular, writable, nobody's, all zeros."""
    contents = inspect(blank)
    assert contents == replace(BLANK, path=blank, inode=contents.inode)
    refuse_if_unfit(contents, force=False)


def test_a_text_file_given_by_mistake_holds_data(tmp_path: Path) -> None:
    """blkid knows no signature for it, and it must not be destroyed for that."""
    path = tmp_path / "fstab"
    path.write_text("/dev/vda1 / ext4 defaults 0 1\n")
    assert inspect(str(path)).holds == "data of an unknown kind"


def test_data_at_the_end_counts(blank: str) -> None:
    """Backup headers stand there, and a file may start with a hole."""
    with open(blank, "r+b") as file:
        file.seek(16 * MIB - 1)
        file.write(b"x")
    assert inspect(blank).holds == "data of an unknown kind"


def test_a_file_system_is_named(blank: str) -> None:
    """What would be destroyed, in a word that people know."""
    subprocess.run(["mkfs.ext4", "-q", "-F", blank], check=True)
    assert inspect(blank).holds == "a file system (ext4)"


def test_a_partition_table_is_named(blank: str) -> None:
    """A disk with partitions has its file systems further in, where nobody looks."""
    with open(blank, "r+b") as file:
        file.seek(446)  # An MBR: one Linux partition from sector 2048, 8192 sectors long, and the mark at its end.
        file.write(bytes.fromhex("00000000 83000000 00080000 00200000") + bytes(48) + b"\x55\xaa")
    assert inspect(blank).holds == "a partition table (dos)"


def test_a_drive_is_named_with_its_array(blank: str) -> None:
    """Adding a drive of another array by mistake is the accident to prevent."""
    label = Label.new(
        size=16 * MIB, drive_uuid=UUID(int=1), array_uuid=UUID(int=2), drive_name="d0", array_name="lab", created_s=0
    )
    format_drive(blank, label, IoCounter())
    contents = inspect(blank)
    assert (contents.label, contents.holds) == (label, "the drive d0 of the array lab")


def test_a_damaged_label_is_still_somebodys(blank: str) -> None:
    """The data area behind it may be whole."""
    with open(blank, "r+b") as file:
        file.write(b"blkrecov drive\0\0")
    assert inspect(blank).holds == "a drive of an array, damaged: the label's checksum is wrong"


def test_a_file_locked_with_flock_is_in_use(blank: str) -> None:
    """Another open file description's lock counts even within one process."""
    with open(blank, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert inspect(blank).holder == "locked by another process (flock)"


def test_a_file_locked_with_fcntl_is_in_use_and_its_holder_named(blank: str) -> None:
    """A process does not meet its own lock of this kind, so another one takes it."""
    take = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX)"
    program = f"{take}; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program, blank], stdin=-1, stdout=-1) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert inspect(blank).holder == f"locked by process {other.pid}"
        other.communicate()
    assert inspect(blank).holder is None


def test_a_missing_path_says_so(tmp_path: Path) -> None:
    """In the code that the specification has for it."""
    with pytest.raises(PathNotFound):
        inspect(str(tmp_path / "none"))


def test_a_directory_and_a_fifo_can_never_be_drives(tmp_path: Path) -> None:
    """Nor is a FIFO opened, which would wait for its writer."""
    os.mkfifo(tmp_path / "fifo")
    for path, word in ((tmp_path, "directory"), (tmp_path / "fifo", "FIFO")):
        with pytest.raises(InvalidArgument, match=word):
            refuse_if_unfit(inspect(str(path)), force=True)


def test_a_read_only_file_is_refused_to_root_too(blank: str) -> None:
    """Its owner said that it is not to be written."""
    Path(blank).chmod(0o400)
    with pytest.raises(InvalidArgument, match="cannot be written"):
        refuse_if_unfit(inspect(blank), force=True)


def test_force_overrules_contents_and_never_use() -> None:
    """Only people know whether data may go; nobody may pull a file from under its holder."""
    full = replace(BLANK, holds="a file system (ext4)")
    with pytest.raises(DiskNotEmpty, match=r"/srv/d0 holds a file system \(ext4\)"):
        refuse_if_unfit(full, force=False)
    refuse_if_unfit(full, force=True)
    with pytest.raises(DeviceInUse, match="/srv/d0 is mounted at /srv"):
        refuse_if_unfit(replace(full, holder="mounted at /srv"), force=True)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, None),
        ({"TYPE": "LVM2_member", "USAGE": "raid"}, "a member of a RAID array or volume group (LVM2_member)"),
        ({"TYPE": "crypto_LUKS", "USAGE": "crypto"}, "encrypted data (crypto_LUKS)"),
        ({"TYPE": "swap", "USAGE": "other"}, "a signature (swap)"),
    ],
)
def test_blkids_answer_in_words(found: dict[str, str], words: str | None) -> None:
    """Its keys are for programs."""
    assert describe(found) == words
