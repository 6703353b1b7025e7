"""Ways in which a drive goes, and ways in which it comes back: what happens to the drive's file or disk, and what is to be seen.

The drive is d1 of an array that was made once, stopped, and packed up; each cell unpacks it, and puts d1 where the way of going
wants it: into the array's directory, onto a file system of its own, or onto a SCSI disk.
"""

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from blkrecov.array import Array
from blkrecov.dm import names
from blkrecov.drives.label import NoLabel, plan_layout
from blkrecov.engine import create_array
from blkrecov.errors import BlkrecovError, DeviceInUse, InvalidDisk, PathNotFound
from blkrecov.model import DriveStatus, Fault, FaultKind
from blkrecov.monitor import Monitor
from blkrecov.settings import Settings
from blkrecov.units import KIB, MIB
from tests.kernel.lab import (
    DEADLINE_S,
    DRIVE,
    Lab,
    Slow,
    copy,
    flip,
    in_sync,
    lun,
    read,
    run,
    until,
    write,
)

SIZE: Final = 4 * MIB
PIECE: Final = 64 * KIB
# The first half of each LUN is written when it is made; the other is holes in the drives' files: to write there takes room.
HALF: Final = SIZE // 2
LAYOUTS: Final = ("raid5", "raid6", "raid10")
_DEBUG: Final = Path("/sys/bus/pseudo/drivers/scsi_debug")


class Home(Enum):
    """What d1 is."""

    FILE = "a file among the others"
    SMALL = "a file on a file system of its own"
    JOURNAL = "the same, and the file system has a journal"
    DISK = "a disk"


class Shelf(Lab):
    """An array that also looks for its drives on the small file system."""

    @property
    def settings(self) -> Settings:
        return Settings(state=self.state, directories=(str(self.directory), str(self.directory.parent / "slow")))


@dataclass
class World:
    """One cell's array, and what its LUNs are to hold."""

    lab: Lab
    home: Home
    contents: dict[str, bytearray]
    file: Path
    slow: Slow | None = None
    # Where writes were not acknowledged: nobody knows what is there.
    torn: dict[str, set[int]] = field(default_factory=dict)
    undo: ExitStack = field(default_factory=ExitStack)
    _numbers: random.Random = field(default_factory=lambda: random.Random(1))

    @property
    def hidden(self) -> Path:
        """A place that no search comes to."""
        hidden = self.lab.directory / "away/and/out"
        hidden.mkdir(parents=True, exist_ok=True)
        return hidden

    def node(self, name: str) -> str:
        return f"/dev/mapper/{names.lun_name(self.lab.name, name)}"

    def write(self, name: str, at: int) -> bool:
        """Whether a write was acknowledged."""
        data = self._numbers.randbytes(PIECE)
        try:
            write(self.node(name), at, data)
        except OSError:
            self.torn.setdefault(name, set()).add(at)
            return False
        self.contents[name][at : at + PIECE] = data
        self.torn.get(name, set()).discard(at)
        return True

    def wrong(self, name: str) -> list[int]:
        """Where a LUN does not hold what was acknowledged."""
        held = b"".join(read(self.node(name), at, MIB) for at in range(0, SIZE, MIB))
        torn = self.torn.get(name, set())
        return [
            at
            for at in range(0, SIZE, PIECE)
            if at not in torn and held[at : at + PIECE] != self.contents[name][at : at + PIECE]
        ]


@dataclass(frozen=True)
class Going:
    """`reason` is found in the drive's reason; for a drive that stays online in why it is set aside, and "" is not at all."""

    name: str
    go: Callable[[World], None]
    status: DriveStatus
    reason: str = ""
    mend: Callable[[World], None] = lambda _: None
    home: Home = Home.FILE
    stopped: bool = False
    """It happens while the array is stopped."""
    missed: bool = True
    """Members on the drive miss writes."""
    doubtful: bool = False
    """Nothing tells what the drive lacks."""
    unseen: bool = False
    """Nothing is to be noticed."""


@dataclass(frozen=True)
class Coming:
    name: str
    put: Callable[[World], str | None]
    """Puts the drive where it comes from; the path that the operator gives."""
    restart: str = ""
    refused: type[BlkrecovError] | None = None
    words: str = ""
    after: Callable[[World], None] = lambda _: None
    """After the refusal, before it comes in its own place."""


# Ways of going.


def _with_array(world: World, act: Callable[[Array], object]) -> None:
    with world.lab.opened() as array:
        act(array)


def _fault(kind: FaultKind, value: float = 0) -> Callable[[World], None]:
    def go(world: World) -> None:
        _with_array(world, lambda array: array.inject_fault("d1", Fault(kind, value)))
        use(world)

    return go


def _fail(world: World) -> None:
    _with_array(world, lambda array: array.fail_drive("d1"))


def use(world: World) -> None:
    """Every LUN is written to."""
    for name in world.contents:
        for at in (HALF, HALF + 4 * PIECE):
            world.write(name, at)


def _delete(world: World) -> None:
    os.link(world.file, world.hidden / "link")
    world.file.unlink()


def _link_back(world: World) -> None:
    os.link(world.hidden / "link", world.file)


def _rename(world: World) -> None:
    world.file = world.file.rename(world.lab.directory / "renamed")


def _cut(world: World) -> None:
    os.truncate(world.file, DRIVE // 2)


def _grow(world: World) -> None:
    os.truncate(world.file, DRIVE)


def _fill_up(world: World) -> None:
    ballast = world.file.parent / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(MIB)):
            pass
    with suppress(OSError), (world.file.parent / "rest").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    os.sync()
    use(world)


def _free(world: World) -> None:
    for name in ("ballast", "rest"):
        (world.file.parent / name).unlink(missing_ok=True)


def _below(world: World) -> str:
    number = world.file.parent.stat().st_dev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name


def _read_only(world: World) -> None:
    Path(f"/sys/fs/ext4/{_below(world)}/trigger_fs_error").write_text("lab\n")
    use(world)


def _read_write(world: World) -> None:
    """A journal that was aborted is taken up again by the next mount, and by no remount, whatever that answers."""
    point = str(world.file.parent)
    run("umount", point)
    subprocess.run(["fsck.ext4", "-f", "-y", "/dev/mapper/lab-slow"], check=False, capture_output=True)
    run("mount", "-o", "errors=remount-ro", "/dev/mapper/lab-slow", point)


def _die(world: World) -> None:
    """The device below the file system answers nothing."""
    _has_table("lab-slow", f"0 {run('dmsetup', 'table', 'lab-slow').split()[1]} error")
    use(world)


def _live(world: World) -> None:
    assert world.slow is not None
    world.slow.delay(0)


def _has_table(device: str, table: str) -> None:
    run("dmsetup", "reload", device, "--table", table)
    run("dmsetup", "suspend", "--nolockfs", "--noflush", device)
    run("dmsetup", "resume", device)


def _losetup(world: World) -> None:
    device = run("losetup", "--noheadings", "--output", "NAME", "--associated", str(world.file))
    run("losetup", "--detach", device)


def _unplug(world: World) -> None:
    Path(f"/sys/block/{world.file.name}/device/delete").write_text("1\n")


def _plug(world: World) -> None:
    for host in _DEBUG.glob("adapter*/host*"):
        Path(f"/sys/class/scsi_host/{host.name}/scan").write_text("- - -\n")
    world.file = _disk()


def _disk() -> Path:
    def found() -> Path | None:
        blocks = list(_DEBUG.glob("adapter*/host*/target*/*/block/sd*"))
        return Path("/dev", blocks[0].name) if blocks else None

    disk = until("the disk", found)
    run("udevadm", "settle", "--timeout=30")
    return disk


def _take_away(world: World) -> None:
    world.file.rename(world.hidden / "taken")


def _bring(world: World) -> None:
    (world.hidden / "taken").rename(world.file)


def _two(world: World) -> None:
    copy(world.file, world.lab.directory / "clone")


def _one(world: World) -> None:
    (world.lab.directory / "clone").unlink()


ONLINE, FAILED, REMOVED, OFFLINE = DriveStatus.ONLINE, DriveStatus.FAILED, DriveStatus.REMOVED, DriveStatus.OFFLINE

GOINGS: Final = (
    Going("drive fail", _fail, FAILED, "failed by"),
    Going("I/O errors", _fault(FaultKind.AFTER), FAILED, "Input/output error"),
    Going("medium dead", _die, FAILED, "Input/output error", _live, Home.SMALL),
    Going("file system full", _fill_up, FAILED, "is full", _free, Home.SMALL),
    Going("read-only", _read_only, FAILED, "is read-only", _read_write, Home.JOURNAL),
    Going("cut", _cut, FAILED, "its file was cut to 18", _grow, doubtful=True),
    Going("cut while stopped", _cut, FAILED, "its end is missing", _grow, stopped=True, doubtful=True),
    Going("taken while stopped", _take_away, REMOVED, "not found", _bring, stopped=True),
    Going("doubled while stopped", _two, OFFLINE, "both say that they are this drive", _one, stopped=True),
    Going("unplugged", _unplug, REMOVED, "has gone", _plug, Home.DISK),
    Going("deleted", _delete, ONLINE, "was deleted", _link_back, missed=False),
    Going("renamed", _rename, ONLINE, missed=False),
    Going("losetup -d", _losetup, ONLINE, missed=False),
    Going("slow", _fault(FaultKind.SLOW, 10), ONLINE, missed=False, unseen=True),
    Going("lost writes", _fault(FaultKind.DROP_WRITES), ONLINE, doubtful=True, unseen=True),
    Going("bad blocks", _fault(FaultKind.ERROR_RATE, 0.5), ONLINE, missed=False, unseen=True),
)


# Ways of coming.


def _here(_: World) -> str | None:
    return None


def _move(world: World, target: Path) -> None:
    """To the same file system it is a rename; to another one a copy is made, and what was copied is deleted."""
    if world.file.stat().st_dev == target.parent.stat().st_dev:
        world.file.rename(target)
    else:
        copy(world.file, target)
        world.file.unlink()
    world.file = target


def _moved(world: World) -> None:
    _move(world, world.lab.directory / "moved")


def _elsewhere(world: World) -> str:
    _move(world, world.hidden / "d1")
    return str(world.file)


def _another(world: World) -> str:
    """The drive of another array."""
    other = Lab(world.lab.directory, "other")
    create_array(other.settings, other.name)
    with other.opened() as array:
        other.add(array, "o0")
        array.stop()
    return str(other.path("o0"))


def _clone(world: World) -> str:
    clone = world.lab.directory / "clone"
    copy(world.file, clone)
    return str(clone)


def _longer(world: World) -> None:
    os.truncate(world.file, DRIVE + MIB)


def _label(world: World) -> None:
    flip(world.file, 100)


def _end(world: World) -> None:
    flip(world.file, DRIVE - 4096 + 100)


def _no_labels(world: World) -> str:
    broken = world.hidden / "broken"
    copy(world.file, broken)
    with broken.open("r+b") as file:
        for offset in (0, plan_layout(DRIVE).copy_at):
            file.seek(offset)
            file.write(bytes(4096))
    return str(broken)


COMINGS: Final = (
    Coming("same place", _here),
    Coming("same place, restart", _here, "stop"),
    Coming("same place, power cut", _here, "power cut"),
    Coming("moved, found", _moved),
    Coming("moved, restart", _moved, "stop"),
    Coming("moved, power cut", _moved, "power cut"),
    Coming("elsewhere, --path", _elsewhere),
    Coming("elsewhere, restart, --path", _elsewhere, "stop"),
    Coming("label damaged", _label, "stop"),
    Coming("label's copy damaged", _end, "stop"),
    Coming("another array's", _another, refused=InvalidDisk, words="belongs to array 'other'"),
    Coming("clone", _clone, refused=DeviceInUse, words="is a copy of it"),
    Coming("two candidates", _two, "stop", InvalidDisk, "both say that they are this drive", _one),
    Coming("longer", _longer, "stop", InvalidDisk, f"has {DRIVE + MIB} bytes", _grow),
    Coming("no labels", _no_labels, refused=NoLabel, words="no blkrecov label"),
    Coming("not there", _here, refused=PathNotFound, words="was last at"),
)


# The array.


def fixed(parent: Path) -> Lab:
    return Shelf(parent / "ways")


def packed(parent: Path, layout: str) -> tuple[Path, dict[str, bytearray]]:
    """An array that was stopped, as an archive, and what its LUNs hold."""
    lab = fixed(parent)
    lab.directory.mkdir()
    world = World(lab, Home.FILE, {name: bytearray(SIZE) for name in ("mirror", "parity", "plain")}, lab.path("d1"))
    lab.create(4)
    with lab.opened() as array:
        everyone = ("d0", "d1", "d2", "d3")
        lun(array, "mirror", "raid1", SIZE, drives=("d0", "d1"), exported=False)
        lun(array, "parity", layout, SIZE, drives=everyone[: 3 if layout == "raid5" else 4], exported=False)
        lun(array, "plain", "linear", SIZE, drives=("d1",), exported=False)
        for name in world.contents:
            in_sync(array, name)
            for at in range(0, HALF, PIECE):
                world.write(name, at)
        assert not world.torn
        # With that the bitmaps are clean: otherwise all that was ever written counts as changed for ten seconds.
        array.stop()
    archive = parent / f"{layout}.tar"
    run("tar", "--sparse", "-C", str(parent), "-cf", str(archive), lab.directory.name)
    shutil.rmtree(lab.directory)
    return archive, world.contents


@contextmanager
def unpacked(parent: Path, archive: Path, contents: dict[str, bytearray], home: Home) -> Iterator[World]:
    lab = fixed(parent)
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, lab.directory)
        run("tar", "-C", str(parent), "-xf", str(archive))
        world = World(lab, home, {name: bytearray(data) for name, data in contents.items()}, lab.path("d1"))
        match home:
            case Home.SMALL | Home.JOURNAL:
                world.slow = undo.enter_context(Slow.made(parent))
                if home is Home.JOURNAL:
                    run("umount", str(world.slow.directory))
                    run("mkfs.ext4", "-q", "-F", "/dev/mapper/lab-slow")
                    run("mount", "-o", "errors=remount-ro", "/dev/mapper/lab-slow", str(world.slow.directory))
                _move(world, world.slow.directory / "d1")
            case Home.DISK:
                run("modprobe", "scsi_debug", f"dev_size_mb={DRIVE // MIB}")
                undo.callback(run, "modprobe", "-r", "scsi_debug")
                disk = _disk()
                run("dd", f"if={world.file}", f"of={disk}", "bs=1M", "oflag=direct", "status=none")
                world.file.unlink()
                world.file = disk
            case Home.FILE:
                pass
        yield world


@contextmanager
def watched(lab: Lab) -> Iterator[Array]:
    """The array of a monitor that runs in a thread."""
    begun, running = threading.Event(), []

    def work() -> None:
        with lab.opened() as array:
            monitor = Monitor(array)
            running.append((array, monitor))
            begun.set()
            monitor.run()

    thread = threading.Thread(target=work, name="monitor")
    thread.start()
    assert begun.wait(DEADLINE_S)
    try:
        yield running[0][0]
    finally:
        running[0][1].end()
        thread.join(DEADLINE_S)
    assert not thread.is_alive()
