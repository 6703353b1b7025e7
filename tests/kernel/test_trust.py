"""Files that somebody else has put where drives are looked for, and places that an array cannot do without itself."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest

from blkrecov import model
from blkrecov.array import Array
from blkrecov.bell import Bell, ring
from blkrecov.drives import loop
from blkrecov.drives.label import Label
from blkrecov.drives.store import DriveStore, IoCounter, format_drive
from blkrecov.drives.trust import Untrusted
from blkrecov.engine import create_array
from blkrecov.errors import InvalidArgument, InvalidDisk, MetadataCorrupt
from blkrecov.model import Document, DriveStatus
from blkrecov.units import MIB, Bytes
from tests.kernel.lab import Lab, blkrecov, checksum, copy, disk_of, fill, in_sync, lun, new_directory, run, tables

SIZE = Bytes(16 * MIB)
NOBODY = 65534


@pytest.fixture
def home(ext4: Path) -> Iterator[Path]:
    """A directory of root's on a file system that is searched when drives are missing."""
    directory = ext4 / "home"
    directory.mkdir()
    yield directory
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


def forged(path: Path, document: Document, drive: UUID, *, carries: int = 0) -> Path:
    """A file that says that it is this drive of the array, and carries the array's configuration as of a version to come."""
    with path.open("wb") as file:
        file.truncate(SIZE)
    label = Label.new(
        size=SIZE, drive_uuid=drive, array_uuid=document.array, drive_name="x", array_name=document.name, created_s=1
    )
    format_drive(str(path), label, IoCounter())
    if carries:
        empty = msgspec.structs.replace(document, luns=(), sequence=carries, commit="e" * 12, history=())
        with DriveStore(str(path), IoCounter()) as store:
            store.write_slot(label, carries, model.encode(empty))
    return path


def given_away(path: Path) -> Path:
    os.chown(path, NOBODY, NOBODY)
    return path


def mirrored(lab: Lab, drives: int) -> Document:
    """An array with a raid1 on its first and last drive, stopped."""
    lab.create(drives, size=SIZE)
    with lab.opened() as array:
        lun(array, "vol", "raid1", 2 * MIB, drives=("d0", f"d{drives - 1}"))
        in_sync(array, "vol")
        array.stop()
        return array.document


@contextmanager
def hidden(lab: Lab, drive: str) -> Iterator[None]:
    """The drive is where nobody looks."""
    directory = lab.directory / "h1" / "h2"
    directory.mkdir(parents=True)
    away = lab.path(drive).rename(directory / drive)
    yield
    away.rename(lab.path(drive))


def test_a_strangers_configuration_is_none(lab: Lab, home: Path) -> None:
    """Of version 1000000 and without LUNs, in files of theirs; a service may attach such a file for whoever asks it."""
    document = mirrored(lab, 3)
    given_away(forged(home / "evil", document, uuid4(), carries=10**6))
    served = given_away(forged(home / "served", document, uuid4(), carries=10**6))
    device = run("losetup", "--find", "--show", str(served))
    try:
        with hidden(lab, "d1"), lab.opened() as array:
            assert [lun.name for lun in array.document.luns] == ["vol"]
            assert array.document.sequence < document.sequence + 10
            assert array.document.drive("d1").status is DriveStatus.REMOVED
            array.stop()
    finally:
        run("losetup", "--detach", device)


def test_a_strangers_file_takes_no_drives_place(lab: Lab, home: Path) -> None:
    """With the UUID of a drive that is away, by which the LUN's contents would have been regenerated into it."""
    document = mirrored(lab, 7)
    last = document.drive("d6")
    evil = given_away(forged(home / "evil", document, last.uuid))
    with hidden(lab, "d6"):
        with lab.opened() as array:
            assert array.document.drive("d6").status is DriveStatus.REMOVED
        assert blkrecov(lab, "drive", "reconnect", "d6", "--json").error["code"] == "VDS_E_PATH_NOT_FOUND"
        refused = blkrecov(lab, "drive", "reconnect", "d6", "--path", str(evil), "--json")
        why = f"{evil} is not believed: it is not root's, but user {NOBODY}'s"
        assert refused.error["message"] == why
        device = run("losetup", "--find", "--show", str(evil))
        try:
            assert blkrecov(lab, "drive", "reconnect", "d6", "--json").error["message"] == f"drive 'd6': {why}"
        finally:
            run("losetup", "--detach", device)


def test_a_drive_that_others_may_write_to_says_so_and_comes_back_when_that_is_mended(lab: Lab) -> None:
    """As one that an operator has made as himself."""
    mirrored(lab, 2)
    path = lab.path("d1")
    path.chmod(0o666)
    with lab.opened() as array:
        drive = array.document.drive("d1")
        why = "is not believed: others than its owner may write to it (mode 0666)"
        assert (drive.status, drive.reason) == (DriveStatus.OFFLINE, f"{path} {why}")
        array.stop()
    lab.path("d0").chmod(0o666)
    with pytest.raises(MetadataCorrupt, match="is not believed") as refused, lab.opened():
        pass
    assert refused.value.remedy.startswith(f"if what is in it is yours: chown root: {lab.path('d0')}; chmod go-w")
    path.chmod(0o600)
    lab.path("d0").chmod(0o600)
    with lab.opened() as array:
        assert array.document.drive("d1").online


def test_what_serves_goes_on_serving(lab: Lab) -> None:
    """It was believed when it was attached, and LUNs are on it."""
    lab.create(2, size=SIZE)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", 2 * MIB)
        digest = fill(disk, 2 * MIB, seed=1)
    for name in ("d0", "d1"):
        given_away(lab.path(name))
    with lab.opened() as array:
        assert all(drive.online for drive in array.document.drives)
        assert checksum(disk_of(array, "vol")) == digest
    for name in ("d0", "d1"):
        os.chown(lab.path(name), 0, 0)


def test_what_is_added_is_roots(lab: Lab) -> None:
    """Nothing is written before that is known."""
    lab.create(1, size=SIZE)
    path = lab.path("theirs")
    path.write_bytes(b"")
    os.truncate(path, SIZE)
    given_away(path)
    before = lab.sequence()
    answer = blkrecov(lab, "drive", "add", str(path), "--json")
    assert answer.error["message"] == f"{path} is not believed: it is not root's, but user {NOBODY}'s"
    assert answer.error["remedy"] == f"if what is in it is yours: chown root: {path}; chmod go-w {path}"
    assert (lab.sequence(), path.stat().st_blocks) == (before, 0)


def test_what_is_attached_is_the_file_that_was_looked_at(lab: Lab) -> None:
    """Its name may be another file's by then: the owner of a directory can rename what is root's."""
    first, second = lab.path("first"), lab.path("second")
    for path in (first, second):
        path.write_bytes(b"")
        os.truncate(path, SIZE)
    status = first.stat()
    seen = loop.Inode(status.st_dev, status.st_ino)
    second.rename(first)
    with pytest.raises(InvalidDisk, match="is another file than a moment ago"):
        loop.attach(str(first), expected=seen)
    given_away(first)
    with pytest.raises(Untrusted):
        loop.attach(str(first))
    assert loop.find(str(first)) is None


def test_a_version_that_nothing_leads_to_is_not_chosen(lab: Lab, home: Path) -> None:
    """Root's own file this time, or a disk that was plugged in: the array stays shut, and nothing is written."""
    document = mirrored(lab, 2)
    evil = forged(lab.path("evil"), document, uuid4(), carries=10**6)
    before = [checksum(str(lab.path(name))) for name in ("d0", "d1")]
    with pytest.raises(InvalidDisk, match="nothing proves that what") as refused, lab.opened():
        pass
    assert f"{evil} says that its configuration is version 1000000" in refused.value.message
    assert [checksum(str(lab.path(name))) for name in ("d0", "d1")] == before
    evil.unlink()
    with lab.opened() as array:
        assert [lun.name for lun in array.document.luns] == ["vol"]


def test_an_older_copy_elsewhere_is_not_taken_for_the_drive(lab: Lab, home: Path) -> None:
    """The drive has gone, and somebody had kept a copy of it."""
    mirrored(lab, 2)
    copy(lab.path("d1"), home / "kept")
    with lab.opened() as array:
        digest = fill(disk_of(array, "vol"), 2 * MIB, seed=1)
        array.stop()
    lab.path("d1").unlink()
    with lab.opened() as array:
        drive = array.document.drive("d1")
        assert (drive.status, drive.reason) == (DriveStatus.FAILED, f"what is at {home}/kept is an older copy of it")
        assert checksum(disk_of(array, "vol")) == digest


# What an array cannot stand on.


@contextmanager
def mounted(disk: str, point: Path) -> Iterator[Path]:
    point.mkdir()
    run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", disk)
    run("mount", disk, str(point))
    try:
        yield point
    finally:
        run("umount", str(point))
        point.rmdir()


def test_no_array_stands_on_itself(lab: Lab, ext4: Path) -> None:
    """Neither by a file on one of its LUNs, nor by way of another array that stands on it; that one may."""
    lab.create(2, size=Bytes(40 * MIB))
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", 30 * MIB, drives=("d0",))
    with mounted(disk, lab.directory / "point") as point, made_other(ext4) as other:
        answer = blkrecov(lab, "drive", "add", str(point / "d9"), "--size", "16M", "--json")
        assert answer.error["code"] == "E_INVALIDARG"
        assert answer.error["message"] == f"{point}/d9 stands on LUN 'vol' of array 'lab' itself"
        assert not (point / "d9").exists()
        with other.opened() as upper:
            upper.add_drive(str(point / "o0"), size=Bytes(22 * MIB), name="o0", spare=False, force=False)
            inner = lun(upper, "inner", "linear", 17 * MIB)
        with mounted(inner, other.directory / "point") as inside:
            answer = blkrecov(lab, "drive", "add", str(inside / "d9"), "--size", "16M", "--array", "lab", "--json")
            assert answer.error["message"] == f"{inside}/d9 stands on LUN 'vol' of array 'lab' itself"
            with lab.opened() as array:
                array.fail_drive("d1")
                copy(lab.path("d1"), inside / "d1")
                with pytest.raises(InvalidArgument, match="stands on LUN 'vol'"):
                    array.propose_reconnect("d1", str(inside / "d1"))


@contextmanager
def made_other(ext4: Path) -> Iterator[Lab]:
    other = Lab(new_directory(ext4), name="other")
    create_array(other.settings, "other")
    try:
        yield other
    finally:
        other.stop()
        shutil.rmtree(other.directory)


# Where nothing can be written down.


def test_an_array_works_while_its_state_cannot_be_written(lab: Lab) -> None:
    """The machine's file system has become read-only after an error: the arrays on it go down in good order all the same."""
    lab.create(2, size=SIZE)
    with lab.opened() as array:
        lun(array, "vol", "raid1", 2 * MIB)
        in_sync(array, "vol")
    state = str(lab.state)
    run("mount", "--bind", state, state)
    run("mount", "-o", "remount,bind,ro", state)
    try:
        assert blkrecov(lab, "lun", "create", "two", "--layout", "linear", "--size", "1M").status == 0
        refused = blkrecov(lab, "array", "create", "more", "--json").error
        assert (refused["code"], refused["message"]) == (
            "VDS_E_PROVIDER_FAILURE",
            f"{state} cannot be written: Read-only file system",
        )
        with Bell(lab.state / "x.bell"):
            assert ring(lab.state / "x.bell")
        assert not ring(lab.state / "x.bell")
        done = subprocess.run(
            [sys.executable, "-m", "blkrecov.boot", "stop"],
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, **lab.environment},
            check=False,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        assert "blkrecov-" not in tables()
    finally:
        run("umount", state)
    with Array.opened(lab.settings, "lab") as array:
        assert {lun.name for lun in array.document.luns} == {"vol", "two"}
        assert not any(lun.suspect for lun in array.document.luns)
