"""File systems on LUNs that failed and came back: which are mounted again, which are left as they are, and what is in them."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from blkrecov import mounting
from blkrecov.array import Array
from blkrecov.events import EventKind
from blkrecov.model import Task, TaskState
from blkrecov.mounting import Outcome
from blkrecov.units import MIB
from tests.kernel.lab import Lab, lun, run, show, until

SIZE = 16 * MIB
FSTAB = Path("/etc/fstab")
KEPT = bytes(range(256)) * 400


@pytest.fixture
def fstab() -> Iterator[Callable[..., None]]:
    """Writes lines of /etc/fstab; in the end it is as it was."""
    before = FSTAB.read_text() if FSTAB.exists() else ""

    def write(*lines: str) -> None:
        FSTAB.write_text("".join(f"{line}\n" for line in lines))

    yield write
    FSTAB.write_text(before)


@pytest.fixture
def point(tmp_path: Path) -> Path:
    """A mount point, with a space in its name as people have them."""
    path = tmp_path / "files"
    path.mkdir()
    return path


def word(path: Path) -> str:
    """A path as fstab has it."""
    return str(path).replace(" ", "\\040")


def made(array: Array, kind: str = "ext4", *, exported: bool = False) -> str:
    """LUN vol, linear on d0, with a file system: its disk."""
    disk = lun(array, "vol", "linear", SIZE, drives=("d0",), exported=exported)
    run(f"mkfs.{kind}", "-q", "-F", disk)
    run("udevadm", "settle")
    return disk


def mounted(disk: str, point: Path, *options: str) -> None:
    run("mount", *options, disk, str(point))
    with (point / "kept").open("wb") as file:
        file.write(KEPT)
        file.flush()
        os.fsync(file.fileno())


def failed(array: Array, point: Path) -> None:
    """The LUN's drive is gone, and a change to what is mounted from it could not be kept."""
    array.fail_drive("d0")
    with suppress(OSError):
        (point / "late").mkdir()
    assert subprocess.run(["sync", "--file-system", str(point)], check=False, capture_output=True).returncode


def back(array: Array) -> Task:
    task = array.reconnect(*array.propose_reconnect("d0"))
    assert task.state is TaskState.COMPLETED, task
    assert show(array, "vol")["status"] == "online"
    return task


def told(array: Array) -> list[tuple[str, str]]:
    """(kind, message) of the events of mount points."""
    kinds = (EventKind.MOUNTED_AGAIN, EventKind.MOUNT_LEFT)
    return [(event.kind.value, event.message) for event in array.events.read() if event.kind in kinds]


def mounts(point: Path) -> list[str]:
    """Options of what is mounted there."""
    command = ["findmnt", "--json", "--output", "OPTIONS", "--mountpoint", str(point)]
    out = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return [str(row["options"]) for row in json.loads(out or '{"filesystems": []}')["filesystems"]]


def is_whole(point: Path) -> bool:
    """What was there before is there, and what is written now is kept."""
    with (point / "new").open("wb") as file:
        file.write(b"new")
        file.flush()
        os.fsync(file.fileno())
    return (point / "kept").read_bytes() == KEPT


@contextmanager
def process(*command: str, cwd: Path | None = None) -> Iterator[None]:
    running = subprocess.Popen(command, cwd=cwd)
    try:
        comm = Path(f"/proc/{running.pid}/comm")
        until("the process", lambda: comm.read_text().strip() == "sleep")
        yield
    finally:
        running.terminate()
        running.wait()


def test_what_is_in_fstab_is_mounted_again(lab: Lab, fstab: Callable[..., None], point: Path) -> None:
    """What was written and flushed before is there, and what is written now is kept."""
    lab.create(2)
    with lab.opened() as array:
        disk = made(array, exported=True)
        uuid = run("blkid", "-s", "UUID", "-o", "value", disk)
        fstab(f"UUID={uuid} {word(point)} ext4 noatime,nofail 0 2")
        run("mount", str(point))
        (point / "kept").write_bytes(KEPT)
        run("sync", str(point / "kept"))
        before = mounts(point)
        failed(array, point)
        began = time.monotonic()
        task = back(array)
        print(f"ext4 in fstab: mounted again, {time.monotonic() - began:.1f} s for the reconnect")
        assert f"{point} (ext4) of LUN vol is mounted again: its file system had shut down" in task.message
        assert told(array)[0][0] == "mounted_again"
        assert is_whole(point)
        assert mounts(point) == before
        run("umount", str(point))


def test_what_nobody_wrote_down_is_mounted_as_it_was(lab: Lab, tmp_path: Path, point: Path) -> None:
    """Twice here: as long as one mount of a dead file system stays, another shows the same."""
    lab.create(2)
    second = tmp_path / "second place"
    second.mkdir()
    with lab.opened() as array:
        disk = made(array)
        mounted(disk, point, "-o", "noexec,nosuid,commit=7")
        run("mount", disk, str(second))
        before = mounts(point), mounts(second)
        failed(array, point)
        back(array)
        assert [kind for kind, _ in told(array)] == ["mounted_again"] * 2
        assert (mounts(point), mounts(second)) == before
        assert "noexec" in before[0][0]
        assert "commit=7" in before[0][0]
        assert is_whole(point)
        run("umount", str(point))
        run("umount", str(second))


def test_what_is_in_use_is_left_and_told(lab: Lab, fstab: Callable[..., None], point: Path) -> None:
    lab.create(2)
    with lab.opened() as array:
        disk = made(array)
        fstab(f"{disk} {word(point)} ext4 defaults 0 0")
        mounted(disk, point)
        with process("sleep", "1000", cwd=point):
            failed(array, point)
            task = back(array)
            ((kind, message),) = told(array)
            print(f"in use: {message}")
            assert kind == "mount_left"
            assert "(sleep)" in message
            assert message in task.message
            remedy = next(event.remedy for event in array.events.read() if event.kind is EventKind.MOUNT_LEFT)
            assert remedy.endswith(f"umount {point} && mount {point}"), remedy
            assert mounts(point)
        run("umount", str(point))
        run("mount", str(point))
        assert is_whole(point)
        run("umount", str(point))


def test_what_another_namespace_holds_is_told(lab: Lab, point: Path) -> None:
    """Nobody's process is on it, and the unmount succeeds; but the dead file system lives on in a mount that is not ours."""
    lab.create(2)
    with lab.opened() as array:
        disk = made(array)
        mounted(disk, point)
        with process("unshare", "--mount", "--propagation", "private", "sleep", "1000"):
            failed(array, point)
            back(array)
            ((kind, message),) = told(array)
            assert (kind, "still takes no change" in message) == ("mount_left", True), message
        run("umount", str(point))


def test_a_file_system_that_lives_is_left_alone(lab: Lab, fstab: Callable[..., None], point: Path) -> None:
    """Nothing was written while the LUN was away: what waits in memory still is written now, and nobody notices anything."""
    lab.create(2)
    with lab.opened() as array:
        disk = made(array)
        fstab(f"{disk} {word(point)} ext4 defaults 0 0")
        mounted(disk, point)
        with (point / "open").open("wb") as file:
            file.write(b"early")
            array.fail_drive("d0")
            back(array)
            file.write(b"late")
            file.flush()
            os.fsync(file.fileno())
        assert told(array) == []
        assert (point / "open").read_bytes() == b"earlylate"
        assert is_whole(point)
        run("umount", str(point))


def test_what_is_not_mounted_is_mounted_if_it_is_wanted(
    lab: Lab, fstab: Callable[..., None], tmp_path: Path, point: Path
) -> None:
    """noauto is not wanted, nor is what would lie on somebody's other mount, by whatever path; below another comes after it."""
    lab.create(2)
    manual, taken, below, link = tmp_path / "manual", tmp_path / "taken", point / "below", tmp_path / "link"
    for path in (manual, taken):
        path.mkdir()
    link.symlink_to(taken)
    with lab.opened() as array:
        disk = made(array)
        mounted(disk, point)
        below.mkdir()
        run("umount", str(point))
        fstab(
            f"{disk} {word(below)} ext4 defaults 0 0",
            f"{disk} {word(point)} ext4 defaults 0 0",
            f"{disk} {manual} ext4 noauto 0 0",
            f"{disk} {taken} ext4 defaults 0 0",
            f"{disk} {link}/ ext4 defaults 0 0",
            "LABEL=nobody /nowhere ext4 defaults 0 0",
            "/dev/ubda /elsewhere ext4 defaults 0 0",
        )
        run("mount", "-t", "tmpfs", "mine", str(taken))
        array.fail_drive("d0")
        back(array)
        assert [kind for kind, _ in told(array)] == ["mounted_again"] * 2, told(array)
        assert is_whole(point)
        assert is_whole(below)
        assert mounts(manual) == []
        for path in (below, point, taken):
            run("umount", str(path))


def test_where_nothing_is_mounted_nothing_happens(lab: Lab) -> None:
    lab.create(2)
    with lab.opened() as array:
        made(array)
        array.fail_drive("d0")
        assert back(array).message == "vol is online"
        assert told(array) == []


def test_a_partition_of_a_lun(lab: Lab, fstab: Callable[..., None], point: Path) -> None:
    """Whoever opens the disk while it fails makes its partitions vanish; they have to be looked for again."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", SIZE, drives=("d0",), exported=True)
        table = struct.pack("<I2xB3sB3sII", 0x1234ABCD, 0, b"", 0x83, b"", 2048, 16384).ljust(70, b"\0") + b"\x55\xaa"
        with open(disk, "r+b") as file:
            file.seek(440)
            file.write(table)
        run("udevadm", "settle")
        run("mkfs.ext4", "-q", "-F", f"{disk}1")
        fstab(f"PARTUUID=1234abcd-01 {word(point)} ext4 defaults 0 0")
        run("udevadm", "settle")
        run("mount", str(point))
        (point / "kept").write_bytes(KEPT)
        run("sync", str(point / "kept"))
        failed(array, point)
        print(f"partition: {back(array).message}")
        assert is_whole(point)
        run("umount", str(point))
        array.fail_drive("d0")
        subprocess.run(["blockdev", "--rereadpt", disk], check=False, capture_output=True)
        run("udevadm", "settle")
        assert not Path(f"{disk}1").exists()
        back(array)
        assert is_whole(point)
        assert [kind for kind, _ in told(array)] == ["mounted_again"] * 2
        run("umount", str(point))


def test_a_drive_that_is_found_again_brings_its_mounts(lab: Lab, fstab: Callable[..., None], point: Path) -> None:
    """Without a reconnect: its file was away, and is there when the array is opened."""
    lab.create(2)
    with lab.opened() as array:
        disk = made(array)
        fstab(f"{disk} {word(point)} ext4 defaults 0 0")
    lab.stop()
    hidden = lab.directory / "hidden" / "deeper"
    hidden.mkdir(parents=True)
    away = lab.path("d0").rename(hidden / "d0")
    with lab.opened() as array:
        assert not array.document.drive("d0").online
    away.rename(lab.path("d0"))
    with lab.opened() as array:
        assert [kind for kind, _ in told(array)] == ["mounted_again"]
        assert mounts(point)
        run("umount", str(point))


def test_a_mount_that_hangs_does_not_hang_us(lab: Lab, fstab: Callable[..., None], point: Path) -> None:
    """It goes on, and is told; so is one that fails."""
    lab.create(2)
    helper = Path("/sbin/mount.hanging")
    helper.write_text("#!/bin/sh\nexec sleep 6\n")
    helper.chmod(0o755)
    with lab.opened() as array:
        disk = made(array)
        fstab(f"{disk} {word(point)} hanging defaults 0 0")
        (found,) = mounting.bring_back(disk, patience_s=2)
        assert (found.outcome, "takes longer" in found.why) == (Outcome.LEFT, True), found
        fstab(f"{disk} /no/such/place ext4 defaults 0 0")
        (found,) = mounting.bring_back(disk)
        assert (found.outcome, "mount point does not exist" in found.why) == (Outcome.LEFT, True), found
        assert found.remedy.endswith("mount /no/such/place")


def test_mounts_are_made_where_process_1_has_its_own(lab: Lab, fstab: Callable[..., None], point: Path) -> None:
    """A service may have a mount namespace to itself; what it mounted there would be nobody's."""
    lab.create(2)
    with lab.opened() as array:
        disk = made(array)
        fstab(f"{disk} {word(point)} ext4 defaults 0 0")
        script = f"from blkrecov import mounting; print(*mounting.bring_back({disk!r}))"
        said = run("unshare", "--mount", "--propagation", "private", sys.executable, "-c", script)
        assert "mounted_again" in said
        assert mounts(point)
        run("umount", str(point))


_SYSTEMD = """
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/udev
mount --bind /run/udev /mnt/udev
mount --move /mnt /run
exec env container=lab /lib/systemd/systemd --system --unit=lab.target --log-target=null
"""


@contextmanager
def systemd() -> Iterator[Callable[..., str]]:
    """Runs commands where process 1 is systemd: in a namespace of processes and of mounts, with a /run of its own."""
    if not list(Path("/sys/fs/cgroup").iterdir()):
        run("mount", "-t", "cgroup2", "none", "/sys/fs/cgroup")
    target = Path("/etc/systemd/system/lab.target")
    target.write_text("[Unit]\nDefaultDependencies=no\n")
    command = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--mount-proc", "--propagation", "private"]
    running = subprocess.Popen([*command, "sh", "-c", _SYSTEMD])
    try:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        first = until("process 1", lambda: children.read_text().strip())
        inside = ("nsenter", f"--target={first}", "--mount", "--pid")
        # It talks on a socket of its own where there is no D-Bus.
        ready = [*inside, "systemctl", "is-active", "lab.target"]
        until("systemd", lambda: subprocess.run(ready, check=False, capture_output=True).returncode == 0)
        yield lambda *words: run(*inside, *words)
    finally:
        running.kill()
        running.wait()
        target.unlink()


@pytest.mark.long
def test_systemd_s_units_are_started(lab: Lab, fstab: Callable[..., None], tmp_path: Path, point: Path) -> None:
    """A file system that is dead, one that is not mounted, and one that nobody wants, each with a unit made of fstab."""
    lab.create(2)
    absent, manual = tmp_path / "absent", tmp_path / "manual"
    for path in (absent, manual):
        path.mkdir()
    with lab.opened() as array:
        disk = made(array)
        fstab(
            f"{disk} {point} ext4 noatime,nofail 0 0",
            f"{disk} {absent} ext4 nofail 0 0",
            f"{disk} {manual} ext4 noauto 0 0",
        )
        with systemd() as inside:
            fstab()
            units = {path: inside("systemd-escape", "--path", "--suffix=mount", str(path)) for path in (point, absent)}
            inside("systemctl", "start", units[point])
            inside("sh", "-c", f"echo kept >{point}/kept; sync {point}/kept")
            array.fail_drive("d0")
            inside("sh", "-c", f"mkdir {point}/late; ! sync --file-system {point}")
            assert back(array).message == "vol is online"
            script = f"from blkrecov import mounting; print(*mounting.bring_back({disk!r}), sep=chr(10))"
            said = inside(sys.executable, "-c", script).splitlines()
            print(*said, sep="\n")
            assert [line.count("mounted_again") for line in said] == [1, 1], said
            assert inside("cat", f"{point}/kept", f"{absent}/kept") == "kept\nkept"
            assert inside("systemctl", "is-active", *units.values()) == "active\nactive"
            assert "noatime" in inside("findmnt", "--noheadings", "--output", "OPTIONS", str(point))
            inside("umount", str(point), str(absent))


def test_a_file_system_without_a_journal_lives_on(lab: Lab, point: Path) -> None:
    """It takes changes as if nothing had been, and has more in memory than on the LUN: an unmount would not help it."""
    lab.create(2)
    with lab.opened() as array:
        disk = made(array, "ext2")
        mounted(disk, point)
        failed(array, point)
        task = back(array)
        print(f"ext2: {task.message}")
        assert told(array) == []
        assert is_whole(point)
        run("umount", str(point))
