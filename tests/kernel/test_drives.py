"""Drives on a real kernel: loop devices, who holds what, and metadata through the one door."""

import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest

from blkrecov.drives import loop
from blkrecov.drives.label import Label, Slot
from blkrecov.drives.loop import LoopDevice, LoopRefused
from blkrecov.drives.probe import inspect, refuse_if_unfit
from blkrecov.drives.scan import scan
from blkrecov.drives.store import DriveStore, IoCounter, create_file, format_drive
from blkrecov.errors import DeviceInUse, InvalidArgument, PathNotFound
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


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Not below /tmp: what lies there may be anybody's, and is looked at only where somebody has named it."""
    with tempfile.TemporaryDirectory(dir="/mnt") as directory:
        yield Path(directory)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Every test ends with the loop devices it began with."""
    before = loop.attached()
    yield
    settle()
    assert loop.attached() == before


def settle() -> None:
    """Wait for udev, which opens each device that comes, and so puts off its detaching."""
    subprocess.run(["udevadm", "settle", "--timeout=30"], check=True)


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def backing(tmp_path: Path) -> str:
    """A new file, on whatever the test directory is on."""
    path = str(tmp_path / "d0")
    create_file(path, SIZE)
    return path


@pytest.fixture
def ext4(tmp_path: Path, cleanup: ExitStack) -> Path:
    """An ext4 file system on a loop device of its own: there, direct I/O can be had."""
    image, point = tmp_path / "ext4.image", tmp_path / "ext4"
    create_file(str(image), 128 * MIB)
    device = attach(str(image), cleanup)
    subprocess.run(["mkfs.ext4", "-q", "-F", device.path], check=True)
    point.mkdir()
    subprocess.run(["mount", device.path, str(point)], check=True)
    cleanup.callback(subprocess.run, ["umount", str(point)], check=True)
    return point


def attach(path: str, cleanup: ExitStack, size: int | None = None) -> LoopDevice:
    device = loop.attach(path, size)
    cleanup.callback(loop.detach, device)
    cleanup.callback(settle)
    return device


def size_of(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def test_an_attached_file_is_a_block_device_of_its_size(backing: str, cleanup: ExitStack) -> None:
    """512-byte blocks, no autoclear: it has to outlive this process."""
    device = attach(backing, cleanup)
    sysfs = Path(f"/sys/block/loop{device.number}")
    assert size_of(device.path) == SIZE
    assert (device.backing_file, device.offset, device.autoclear, device.deleted) == (backing, 0, False, False)
    assert (sysfs / "queue/logical_block_size").read_text() == "512\n"
    assert (sysfs / "loop/autoclear").read_text() == "0\n"


def test_a_size_limits_what_can_be_reached(backing: str, cleanup: ExitStack) -> None:
    """A file may have grown since its drive was made."""
    assert size_of(attach(backing, cleanup, size=8 * MIB).path) == 8 * MIB


def test_direct_io_is_had_on_ext4(ext4: Path, cleanup: ExitStack) -> None:
    """The flag as the kernel holds it, in the ioctl's answer and in sysfs."""
    path = str(ext4 / "d0")
    create_file(path, SIZE)
    device = attach(path, cleanup)
    assert device.direct_io
    assert Path(f"/sys/block/loop{device.number}/loop/dio").read_text() == "1\n"


def test_without_direct_io_attaching_works_and_tells(cleanup: ExitStack) -> None:
    """tmpfs has none before Linux 6.6; asking the file system for it tells what to expect here."""
    path = "/dev/shm/blkrecov-test-d0"
    create_file(path, SIZE)
    cleanup.callback(os.unlink, path)
    expected = True
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        expected = False
    device = attach(path, cleanup)
    assert device.direct_io is expected
    with DriveStore(device.path, IoCounter()) as store:
        store.format(LABEL)
        assert store.read_label().damage is None


def test_a_file_system_that_promises_direct_io_and_fails_it_is_not_believed(tmp_path: Path, cleanup: ExitStack) -> None:
    """An overlay says yes for whatever lies below. With the flag set, each read of the device would end in EIO."""
    below, point = Path("/dev/shm/blkrecov-test-overlay"), tmp_path / "overlay"
    for directory in (below / "lower", below / "upper", below / "work", point):
        directory.mkdir(parents=True)
    cleanup.callback(shutil.rmtree, below)
    options = f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(point)], check=True)
    cleanup.callback(subprocess.run, ["umount", str(point)], check=True)
    create_file(str(point / "d0"), SIZE)
    with DriveStore(attach(str(point / "d0"), cleanup).path, IoCounter()) as store:
        store.format(LABEL)
        assert store.read_label().damage is None


def test_before_linux_5_8_attaching_takes_three_ioctls(
    ext4: Path, cleanup: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ioctl that no kernel knows stands for the one that an old kernel does not: EINVAL, the fallback, the same device."""
    path = str(ext4 / "d0")
    create_file(path, SIZE)
    monkeypatch.setattr(loop, "LOOP_CONFIGURE", 0x4C0F)
    device = attach(path, cleanup, size=8 * MIB)
    assert (device.direct_io, device.autoclear, size_of(device.path)) == (True, False, 8 * MIB)


def test_a_lost_race_for_a_device_is_run_again(
    backing: str, tmp_path: Path, cleanup: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer of LOOP_CTL_GET_FREE is given away before it is used."""
    other = str(tmp_path / "other")
    create_file(other, SIZE)
    attach_to = loop._attach_to
    losses: list[int] = []

    def taken(number: int, file: int, path: str, size: int) -> bool:
        if not losses:
            losses.append(number)
            theirs = os.open(other, os.O_RDWR)
            assert attach_to(number, theirs, other, 0)
            os.close(theirs)
        return attach_to(number, file, path, size)

    monkeypatch.setattr(loop, "_attach_to", taken)
    device = attach(backing, cleanup)
    winner = loop.find(other)
    assert winner is not None
    cleanup.callback(loop.detach, winner)
    assert (winner.number, device.number != winner.number) == (losses[0], True)


def test_a_file_is_attached_once(backing: str, cleanup: ExitStack) -> None:
    """The kernel would allow a second device, whose cache knows nothing of the first one's."""
    device = attach(backing, cleanup)
    with pytest.raises(DeviceInUse, match=device.path):
        loop.attach(backing)


def test_a_device_is_found_by_its_file_whatever_that_is_called(backing: str, cleanup: ExitStack) -> None:
    """Renamed, linked: the inode is the same."""
    assert loop.find(backing) is None
    device = attach(backing, cleanup)
    Path(backing).rename(backing + "-renamed")
    os.link(backing + "-renamed", backing + "-linked")
    found = loop.find(backing + "-linked")
    assert found is not None
    assert (found.number, found.backing_file, found.deleted) == (device.number, backing + "-renamed", False)


def test_a_deleted_backing_file_is_told(backing: str, cleanup: ExitStack) -> None:
    """I/O goes on, and all is lost at the next boot: somebody has to say so."""
    device = attach(backing, cleanup)
    Path(backing).unlink()
    found = next(each for each in loop.attached() if each.number == device.number)
    assert (found.deleted, found.backing_file) == (True, backing)


def test_a_detached_device_is_gone(backing: str) -> None:
    """And detaching it again is no error: a step that was already done does nothing."""
    device = loop.attach(backing)
    settle()
    assert loop.detach(device)
    assert loop.find(backing) is None
    assert loop.detach(device)


def test_a_device_that_is_open_goes_at_the_last_close(backing: str) -> None:
    """The kernel answers 0 to LOOP_CLR_FD then, too; so detach() looks again."""
    device = loop.attach(backing)
    settle()
    descriptor = os.open(device.path, os.O_RDONLY)
    assert not loop.detach(device)
    leaving = loop.find(backing)
    assert leaving is not None
    assert leaving.autoclear
    os.close(descriptor)
    settle()
    assert loop.find(backing) is None


def test_detaching_spares_the_next_user_of_the_number(backing: str, tmp_path: Path, cleanup: ExitStack) -> None:
    """Numbers are given out again; an inode is not while its file is attached."""
    old = loop.attach(backing)
    settle()
    assert loop.detach(old)
    other = str(tmp_path / "other")
    create_file(other, SIZE)
    new = attach(other, cleanup)
    assert new.number == old.number
    assert loop.detach(old)
    assert loop.find(other) == new


def test_a_grown_file_is_taken_on_by_resize_only(backing: str, cleanup: ExitStack) -> None:
    """Without LOOP_SET_CAPACITY nothing changes."""
    device = attach(backing, cleanup)
    os.truncate(backing, 2 * SIZE)
    assert size_of(device.path) == SIZE
    loop.resize(device)
    assert size_of(device.path) == 2 * SIZE


def test_what_cannot_be_attached_is_refused_by_name(tmp_path: Path) -> None:
    """Path, operation and errno, as the kernel gave them."""
    with pytest.raises(PathNotFound):
        loop.attach(str(tmp_path / "none"))
    with pytest.raises(LoopRefused) as refused:
        loop.attach("/dev/null")
    assert (refused.value.path, refused.value.errno) == ("/dev/null", errno.EINVAL)


def test_an_attached_file_is_in_use_by_its_loop_device(backing: str, cleanup: ExitStack) -> None:
    """Force or not."""
    device = attach(backing, cleanup)
    with pytest.raises(DeviceInUse, match=f"attached as {device.path}"):
        refuse_if_unfit(inspect(backing), force=True)


def test_a_free_block_device_is_fit(backing: str, cleanup: ExitStack) -> None:
    """A loop device stands for a disk here."""
    device = attach(backing, cleanup)
    contents = inspect(device.path)
    assert (contents.size, contents.holder, contents.holds) == (SIZE, None, None)
    refuse_if_unfit(contents, force=False)


def test_a_mounted_block_device_is_in_use(ext4: Path) -> None:
    """And says where."""
    source = subprocess.run(
        ["findmnt", "-no", "SOURCE", str(ext4)], capture_output=True, text=True, check=True
    ).stdout.strip()
    contents = inspect(source)
    assert (contents.holder, contents.holds) == (f"mounted at {ext4}", "a file system (ext4)")


def test_a_swap_device_is_in_use(backing: str, cleanup: ExitStack) -> None:
    """It is claimed too, but this is the better word."""
    device = attach(backing, cleanup)
    subprocess.run(["mkswap", device.path], check=True, capture_output=True)
    subprocess.run(["swapon", device.path], check=True)
    cleanup.callback(subprocess.run, ["swapoff", device.path], check=True)
    assert inspect(device.path).holder == "used as swap"


def test_a_device_under_device_mapper_is_in_use_by_name(backing: str, cleanup: ExitStack) -> None:
    """dm-0 alone says nothing to people."""
    device = attach(backing, cleanup)
    table = f"0 2048 linear {device.path} 0"
    subprocess.run(["dmsetup", "create", "blkrecov-test-held", "--table", table], check=True)
    cleanup.callback(subprocess.run, ["dmsetup", "remove", "--retry", "blkrecov-test-held"], check=True)
    holder = inspect(device.path).holder
    assert holder is not None
    assert holder.endswith("(blkrecov-test-held)")


def test_a_device_opened_exclusively_is_in_use(backing: str, cleanup: ExitStack) -> None:
    """Whoever it is: LIO, mdadm, mkfs while it runs."""
    device = attach(backing, cleanup)
    descriptor = os.open(device.path, os.O_RDWR | os.O_EXCL)
    cleanup.callback(os.close, descriptor)
    assert inspect(device.path).holder == "opened exclusively by the kernel or another process"


def test_metadata_goes_through_the_loop_device_while_there_is_one(backing: str, cleanup: ExitStack) -> None:
    """Two page caches on one file do not know of each other."""
    format_drive(backing, LABEL, IoCounter())
    device = attach(backing, cleanup)
    with pytest.raises(DeviceInUse, match=f"attached as {device.path}"):
        DriveStore(backing, IoCounter())
    with DriveStore(device.path, IoCounter()) as store:
        assert store.read_label().damage is None


def test_io_through_the_device_is_direct(backing: str, cleanup: ExitStack) -> None:
    """Also where the file under it has no direct I/O: the device always has."""
    with DriveStore(attach(backing, cleanup).path, IoCounter()) as store:
        assert fcntl.fcntl(store._descriptor, fcntl.F_GETFL) & os.O_DIRECT


@pytest.mark.parametrize("where", ["ext4", "test directory"])
def test_slots_written_through_the_device_are_in_the_file_after(
    where: str, ext4: Path, backing: str, cleanup: ExitStack
) -> None:
    """On a file system with direct I/O and on one that may have none; label written before attaching, slots after."""
    path = str(ext4 / "d0") if where == "ext4" else backing
    if where == "ext4":
        create_file(path, SIZE)
    format_drive(path, LABEL, IoCounter())
    device = loop.attach(path)
    with DriveStore(device.path, IoCounter()) as store:
        assert [store.write_slot(LABEL, sequence, b"%d" % sequence * 5000) for sequence in (1, 2)] == [0, 1]
    settle()
    assert loop.detach(device)
    with DriveStore(path, IoCounter()) as store:
        assert store.read_slots(LABEL) == (Slot(sequence=1, payload=b"1" * 5000), Slot(sequence=2, payload=b"2" * 5000))


def test_a_formatted_drive_shows_no_foreign_signature(backing: str, cleanup: ExitStack) -> None:
    """A file system was on it before; blkid, and so udev, must find nothing."""
    subprocess.run(["mkfs.ext4", "-q", "-F", backing], check=True)
    device = attach(backing, cleanup)
    format_drive(device.path, LABEL, IoCounter())
    found = subprocess.run(["blkid", "--probe", device.path], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert inspect(device.path).holds == "the drive d0 of the array lab"


def test_a_label_that_does_not_fit_the_device_is_refused(backing: str) -> None:
    """The copy would be where nobody looks for it."""
    os.truncate(backing, 2 * SIZE)
    with pytest.raises(InvalidArgument, match="its label is for 16777216"):
        format_drive(backing, LABEL, IoCounter())


def test_an_attached_drive_is_found_once_with_its_device(backing: str, cleanup: ExitStack) -> None:
    """By its file, by its device, by its directory, and by asking for nothing at all."""
    format_drive(backing, LABEL, IoCounter())
    device = attach(backing, cleanup)
    for hints, directories in (([backing], []), ([device.path], []), ([], [str(Path(backing).parent)]), ([], [])):
        result = scan(hints, directories, IoCounter())
        assert [(found.path, found.device) for found in result.found] == [(backing, device.path)]
        assert result.clones() == {}


def test_a_drive_on_a_mounted_file_system_is_found_as_the_last_resort(ext4: Path) -> None:
    """Nobody remembers its path, and it is not attached."""
    path = str(ext4 / "moved")
    create_file(path, SIZE)
    format_drive(path, LABEL, IoCounter())
    assert scan([], [], IoCounter()).found == ()
    assert [found.path for found in scan([], [], IoCounter(), deep=True).found] == [path]


def test_a_drive_whose_file_was_deleted_is_found_by_its_device(backing: str, cleanup: ExitStack) -> None:
    """There is no other name left for it."""
    format_drive(backing, LABEL, IoCounter())
    device = attach(backing, cleanup)
    Path(backing).unlink()
    assert [found.path for found in scan([], [], IoCounter()).found] == [device.path]
