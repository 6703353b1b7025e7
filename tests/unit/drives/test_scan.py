"""Finding drives in directories, under a made-up list of devices."""

import os
import shutil
from pathlib import Path
from uuid import UUID

import pytest

from blkrecov.drives.label import Label
from blkrecov.drives.scan import Places, block_devices, mounts, scan
from blkrecov.drives.store import IoCounter, create_file, format_drive
from blkrecov.mountinfo import parse
from blkrecov.units import MIB

SIZE = 16 * MIB


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A machine without devices or mounts."""
    (tmp_path / "sys").mkdir()
    (tmp_path / "mountinfo").write_text("")
    return Places(sys_block=tmp_path / "sys", mountinfo=tmp_path / "mountinfo", top=tmp_path)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    (tmp_path / "pool").mkdir()
    return tmp_path / "pool"


def make_drive(path: Path, number: int) -> str:
    create_file(str(path), SIZE)
    label = Label.new(
        size=SIZE,
        drive_uuid=UUID(int=number),
        array_uuid=UUID(int=99),
        drive_name=f"d{number}",
        array_name="lab",
        created_s=0,
    )
    format_drive(str(path), label, IoCounter())
    return str(path)


def test_drives_are_found_in_a_directory_whatever_they_are_called(pool: Path, places: Places) -> None:
    """A drive is known by its label."""
    path = make_drive(pool / "renamed.bak", 1)
    create_file(str(pool / "blank"), SIZE)
    (pool / "notes.txt").write_text("not a drive")
    found = scan([], [str(pool)], IoCounter(), places=places).found
    assert [(drive.path, drive.device, drive.label.drive_name) for drive in found] == [(path, None, "d1")]


def test_one_file_by_two_names_is_found_once(pool: Path, places: Places) -> None:
    """A hint, a hard link and the directory all lead to it."""
    path = make_drive(pool / "d1", 1)
    os.link(path, pool / "d1-too")
    result = scan([path], [str(pool)], IoCounter(), places=places)
    assert [drive.path for drive in result.found] == [path]
    assert result.clones() == {}


def test_a_clone_is_found_and_told(pool: Path, places: Places) -> None:
    """Someone copied a drive; which one is stale the sequence numbers have to tell."""
    path = make_drive(pool / "d1", 1)
    shutil.copy(path, pool / "d1-copy")
    clones = scan([], [str(pool)], IoCounter(), places=places).clones()
    assert [drive.path for drive in clones[UUID(int=1)]] == [path, path + "-copy"]


def test_links_and_fifos_in_a_directory_are_passed_over(pool: Path, tmp_path: Path, places: Places) -> None:
    """A directory that others can write to must not lead us elsewhere, nor make us wait."""
    (pool / "link").symlink_to(make_drive(tmp_path / "elsewhere", 1))
    os.mkfifo(pool / "fifo")
    assert scan([], [str(pool)], IoCounter(), places=places).found == ()


def test_directories_are_searched_one_level_deep(pool: Path, places: Places) -> None:
    """A configured directory is where drives lie, not a tree to search."""
    (pool / "below").mkdir()
    make_drive(pool / "below" / "d1", 1)
    assert scan([], [str(pool)], IoCounter(), places=places).found == ()


def test_the_last_resort_searches_three_levels_of_mounted_file_systems(pool: Path, places: Places) -> None:
    """The files were moved, and nobody told us where."""
    (pool / "below" / "deeper" / "deepest").mkdir(parents=True)
    path = make_drive(pool / "below" / "deeper" / "d1", 1)
    make_drive(pool / "below" / "deeper" / "deepest" / "d2", 2)
    places.mountinfo.write_text(f"36 35 254:1 / {pool} rw - ext4 /dev/vdb rw\n")
    assert scan([], [], IoCounter(), places=places).found == ()
    assert [drive.path for drive in scan([], [], IoCounter(), deep=True, places=places).found] == [path]


def test_the_search_is_bounded_and_says_when_it_gave_up(pool: Path, places: Places) -> None:
    """A mail spool has a million files."""
    for number in range(5):
        (pool / str(number)).touch()
    assert not scan([], [str(pool)], IoCounter(), max_files=4, places=places).complete
    assert scan([], [str(pool)], IoCounter(), max_files=5, places=places).complete


def test_a_hint_that_fails_is_told_and_the_rest_is_found(pool: Path, places: Places) -> None:
    """Why a drive is missing is what the operator wants to know."""
    path = make_drive(pool / "d1", 1)
    result = scan([str(pool / "gone")], [str(pool)], IoCounter(), places=places)
    assert [error.message for _, error in result.refused] == [f"{pool}/gone does not exist"]
    assert [drive.path for drive in result.found] == [path]


def test_a_drive_that_cannot_be_used_is_told(pool: Path, places: Places) -> None:
    """Label and copy are damaged: it is ours, and must not be passed over in silence."""
    path = make_drive(pool / "d1", 1)
    with open(path, "r+b") as file:
        for offset in (100, SIZE - 4000):
            file.seek(offset)
            file.write(b"x")
    result = scan([], [str(pool)], IoCounter(), places=places)
    assert [refused for refused, _ in result.refused] == [path]


def test_disks_and_partitions_are_looked_at_and_stacked_or_exported_ones_are_not(tmp_path: Path) -> None:
    """A LUN that this machine exports to itself may hold anything, even a label."""
    sys_block = tmp_path / "block"
    for name in ("vda", "vda/vda1", "dm-0", "loop0", "sr0", "small"):
        (sys_block / name).mkdir(parents=True)
        (sys_block / name / "size").write_text("8\n" if name == "small" else "65536\n")
    (sys_block / "vda/vda1/partition").write_text("1\n")
    target = tmp_path / "tcm_loop_0" / "host2" / "target2:0:1" / "2:0:1:0"
    (target / "block").mkdir(parents=True)
    (tmp_path / "tcm_loop_0/host2/scsi_host/host2").mkdir(parents=True)
    (tmp_path / "tcm_loop_0/host2/scsi_host/host2/proc_name").write_text("tcm_loopback\n")
    (sys_block / "sda").mkdir()
    (sys_block / "sda/size").write_text("65536\n")
    (sys_block / "sda/device").symlink_to(target)
    found = block_devices(Places(sys_block=sys_block, dev=Path("/dev")))
    assert list(found) == [Path("/dev/vda"), Path("/dev/vda1")]


def test_mounts_are_those_on_block_devices_each_once() -> None:
    """Network file systems may hang; a bind mount shows what was searched already."""
    text = (
        b"21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
        b"22 21 0:5 / /proc rw - proc proc rw\n"
        b"23 21 254:1 / /again rw - ext4 /dev/vda1 rw\n"
        b"24 21 0:40 / /srv/my\\040disks rw - btrfs /dev/vdb rw\n"
        b"25 21 0:41 / /net rw - nfs4 server:/export rw\n"
    )
    assert list(mounts(parse(text))) == ["/", "/srv/my disks"]


def test_a_file_that_others_can_write_to_is_told_where_it_was_expected(pool: Path, places: Places) -> None:
    """By what it says it is: the operator looks for that drive."""
    path = make_drive(pool / "d1", 1)
    Path(path).chmod(0o666)
    result = scan([], [str(pool)], IoCounter(), places=places)
    assert result.found == ()
    assert [(label.drive_name, error.message) for label, error in result.strangers] == [
        ("d1", f"{path} is not believed: others than its owner may write to it (mode 0666)")
    ]


@pytest.mark.parametrize("open_to_all", ["", "below", "below/deeper"])
def test_the_last_resort_enters_no_directory_that_others_can_write_to(
    pool: Path, places: Places, open_to_all: str
) -> None:
    """Anybody could have moved an old copy there, though it be root's."""
    (pool / "below" / "deeper").mkdir(parents=True)
    make_drive(pool / "below" / "deeper" / "d1", 1)
    (pool / open_to_all).chmod(0o1777)
    places.mountinfo.write_text(f"36 35 254:1 / {pool} rw - ext4 /dev/vdb rw\n")
    result = scan([], [], IoCounter(), deep=True, places=places)
    assert (result.found, result.refused, result.strangers) == ((), (), ())


def test_a_directory_that_was_named_may_be_anybodys(pool: Path, places: Places) -> None:
    """Who named it knows whose it is; the files in it are root's."""
    path = make_drive(pool / "d1", 1)
    pool.chmod(0o777)
    assert [drive.path for drive in scan([], [str(pool)], IoCounter(), places=places).found] == [path]


def test_media_of_users_are_not_searched() -> None:
    """Their files have whatever owners somebody gave them elsewhere; so they are mounted nosuid."""
    text = (
        b"21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
        b"22 21 8:1 / /media/eve/STICK rw,nosuid,nodev,relatime shared:2 - ext4 /dev/sda1 rw\n"
    )
    assert list(mounts(parse(text))) == ["/"]
