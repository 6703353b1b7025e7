"""An array on real drives, what its tests do to it, and what takes it out of the kernel whatever a test has left.

Drives are files on an ext4 of their own, where direct I/O can be had. Everything that is looked at to judge the array (checksums,
members, parity, what the kernel has) is read here by other means than the array's own, and past every page cache.

What ends an array's run in here: `stop`, as an operator would; `power_cut`, which freezes what is on the drives at one moment and
then takes the devices away, as if the machine had been restarted.
"""

import hashlib
import io
import json
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self, TypeVar
from unittest import mock
from uuid import UUID, uuid4

from blkrecov.array import Array
from blkrecov.cli import main as cli_main
from blkrecov.cli.common import Options
from blkrecov.dm.control import Control
from blkrecov.dm.events import EventWatcher
from blkrecov.dm.speed import SpeedLimits
from blkrecov.dm.table import ErrorTable
from blkrecov.engine import create_array
from blkrecov.geometry import Request
from blkrecov.model import Layout, Lun, Member, Task
from blkrecov.settings import Settings
from blkrecov.units import MIB, SECTOR, Bytes, Sectors, sectors

T = TypeVar("T")

DRIVE: Final = Bytes(36 * MIB)
BLOCK: Final = 4096
DEADLINE_S: Final = 60.0
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
TARGET: Final = Path("/sys/kernel/config/target")
PIECE: Final = MIB
_WINDOW: Final = 64 * 1024
_own: Final = threading.local()


def run(*command: str) -> str:
    """A command's output. Raises CalledProcessError, whose text is shown, when it fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout.strip()


def until(what: str, ask: Callable[[], T | None], deadline_s: float = DEADLINE_S) -> T:
    """Ask until there is an answer; device-mapper's events wake us, and a quarter of a second without any."""
    deadline = time.monotonic() + deadline_s
    with EventWatcher() as events:
        while True:
            events.changed()
            answer = ask()
            if answer:
                return answer
            assert time.monotonic() < deadline, f"{what} did not come within {deadline_s:g} s"
            events.wait(0.25)


# What the kernel has.


@dataclass(frozen=True)
class Kernel:
    """Everything of ours, or like ours, that could be left behind."""

    dm: tuple[str, ...]
    loops: tuple[str, ...]
    lio: tuple[str, ...]
    hosts: tuple[str, ...]

    @classmethod
    def now(cls) -> "Kernel":
        return cls(
            dm=tuple(sorted(_word(name) for name in Path("/sys/block").glob("dm-*/dm/name"))),
            loops=tuple(sorted(_word(name) for name in Path("/sys/block").glob("loop*/loop/backing_file"))),
            lio=tuple(sorted(str(path) for top in ("core", "loopback") for path in (TARGET / top).glob("*/*"))),
            hosts=tuple(sorted(path.name for path in Path("/sys/class/scsi_host").glob("*"))),
        )


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # Gone since it was listed.
        return ""


def tables() -> str:
    """Every device with its live table, as dmsetup prints them."""
    return run("dmsetup", "table")


def forget_power_cuts() -> None:
    """This machine's own boot goes on. Another one's limits for md are put back: the kernel would have forgotten them."""
    SpeedLimits().restore()
    while _is_mounted(BOOT_ID):
        run("umount", str(BOOT_ID))


def _is_mounted(point: Path) -> bool:
    return any(line.split()[4] == str(point) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def sweep(directory: Path) -> None:
    """Take everything that is ours out of the kernel, whatever state it is in, without a word to the array."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        source = line.partition(" - ")[2].split()[1]
        if source.startswith(("/dev/sd", "/dev/mapper/blkrecov-")):
            run("umount", "--lazy", line.split()[4])
    # Whatever is above gives up at once: nothing can hang, and nothing reaches the drives from here on.
    fail_at_once([name for name in our_devices() if "-drive-" in name])
    # But for mirrors: they hold what they cannot write until they have another table.
    fail_at_once(mirrors())
    take_down_exports()
    left = our_devices()
    if left:
        run("udevadm", "settle", "--timeout=30")
        remove_devices(left)
    for device in Path("/sys/block").glob("loop*/loop/backing_file"):
        if _word(device).startswith((f"{directory}/", f"{directory.parent}/slow/")):
            run("losetup", "--detach", f"/dev/{device.parts[3]}")


def take_down_exports() -> None:
    """Take away every export of ours, whoever uses its disk."""
    for link in TARGET.glob("loopback/*/tpgt_*/lun/lun_*/*"):
        if link.is_symlink() and link.name.startswith("blkrecov-"):
            _unlink_target(link)
    for backstore in TARGET.glob("core/iblock_*/blkrecov-*"):
        backstore.rmdir()
        backstore.parent.rmdir()


def _unlink_target(link: Path) -> None:
    """A LUN of tcm_loop with all above it. The nexus has to go before the group (drivers/target/loopback/tcm_loop.c)."""
    lun, group = link.parent, link.parents[2]
    link.unlink()
    lun.rmdir()
    (group / "nexus").write_text("NULL")
    group.rmdir()
    group.parent.rmdir()


def our_devices() -> list[str]:
    return [name for name in Kernel.now().dm if name.startswith("blkrecov-")]


def mirrors() -> list[str]:
    """Legs of members that are being copied to another drive."""
    with Control() as control:
        return [name for name in our_devices() if any(line.kind == "mirror" for line in control.table(name))]


def fail_at_once(ports: Sequence[str]) -> None:
    """All I/O to these devices fails, from one moment on for all of them: so no drive can tell of another's failure."""
    with Control() as control:
        for name in ports:
            control.suspend(name, flush=False, freeze=False)
        for writer in Writer.at_work:
            writer.powerless = True
        for name in ports:
            length = Sectors(sum(line.length for line in control.table(name)))
            control.load(name, ErrorTable(length=length).render())
        for name in ports:
            control.resume(name, visible=False)


def remove_devices(names: Sequence[str]) -> None:
    """LUNs, plexes, legs, ports: whatever nothing stands on, until nothing is left."""
    left = list(names)
    with Control() as control:
        for name in left:
            control.resume(name, visible=False)
        while left:
            free = [name for name in left if not control.info(name).open_count]
            assert free, f"none of {left} can be removed"
            for name in free:
                control.remove(name)
            left = [name for name in left if name not in free]


# Reading and writing past every cache.


def _window(length: int) -> memoryview:
    """Memory for direct I/O, this thread's own for good: the guest takes 90 microseconds for every page that is new."""
    assert length <= PIECE
    if not hasattr(_own, "window"):
        _own.window = mmap.mmap(-1, PIECE)
    return memoryview(_own.window)[:length]


def pieces(path: str, start: int, length: int) -> Iterator[bytes]:
    """Exactly `length` bytes by direct I/O, piece by piece."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        for offset in range(start, start + length, PIECE):
            part = _window(min(PIECE, start + length - offset))
            got = os.preadv(descriptor, [part], offset)
            assert got == len(part), f"{path} ends at byte {offset + got}"
            yield bytes(part)
    finally:
        os.close(descriptor)


def read(path: str, start: int, length: int) -> bytes:
    return b"".join(pieces(path, start, length))


@contextmanager
def _written(path: str) -> Iterator[Callable[[int, bytes], None]]:
    """Gives what writes bytes at an offset. In the end all of them are on the medium."""
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)

    def put(offset: int, data: bytes) -> None:
        part = _window(len(data))
        part[:] = data
        assert os.pwritev(descriptor, [part], offset) == len(data)

    try:
        yield put
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: str, offset: int, data: bytes) -> None:
    with _written(path) as put:
        for at in range(0, len(data), PIECE):
            put(offset + at, data[at : at + PIECE])


def flip(path: Path, offset: int) -> None:
    """Turn one bit of a file around."""
    block = offset - offset % BLOCK
    data = bytearray(read(str(path), block, BLOCK))
    data[offset - block] ^= 1
    write(str(path), block, bytes(data))


def checksum(path: str, length: int | None = None) -> str:
    """SHA-256 of a disk's, or file's, first bytes: all of them unless told."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END) if length is None else length
    finally:
        os.close(descriptor)
    digest = hashlib.sha256()
    for piece in pieces(path, 0, size):
        digest.update(piece)
    return digest.hexdigest()


def fill(disk: str, length: int, seed: int, offset: int = 0) -> str:
    """Write random bytes to a disk, and return the checksum of what was written."""
    source, digest = random.Random(seed), hashlib.sha256()
    # Opened once: udev looks at a disk again whenever it is closed after writing.
    with _written(disk) as put:
        for at in range(offset, offset + length, PIECE):
            data = source.randbytes(min(PIECE, offset + length - at))
            put(at, data)
            digest.update(data)
    return digest.hexdigest()


def filled(length: int, seed: int) -> str:
    """The checksum of what fill() writes."""
    source, digest = random.Random(seed), hashlib.sha256()
    for at in range(0, length, PIECE):
        digest.update(source.randbytes(min(PIECE, length - at)))
    return digest.hexdigest()


def size_of(disk: str) -> int:
    with open(disk, "rb") as file:
        return file.seek(0, os.SEEK_END)


class Files:
    """An ext4 on a disk with files whose checksums are known."""

    def __init__(self, disk: str, point: Path) -> None:
        self.disk, self.point = disk, point
        self._sums: dict[str, str] = {}

    @classmethod
    def make(cls, disk: str, point: Path, total: int) -> "Files":
        """`total` bytes of files, in a mounted file system on all of the disk."""
        run("mkfs.ext4", "-q", "-F", "-N", "64", "-E", "nodiscard,lazy_itable_init=0", disk)
        files = cls(disk, point)
        files.mount()
        files.add(total)
        return files

    def add(self, total: int, count: int = 3) -> None:
        for number in range(count):
            # Whole blocks: they are read again by direct I/O.
            data = random.Random(number + len(self._sums)).randbytes(total // count // BLOCK * BLOCK)
            path = self.point / f"file{len(self._sums)}"
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._sums[path.name] = hashlib.sha256(data).hexdigest()

    def room(self, name: str, length: int) -> str:
        """A file of zeros for somebody to write to."""
        path = self.point / name
        path.write_bytes(bytes(length))
        return str(path)

    def mount(self) -> None:
        self.point.mkdir(exist_ok=True)
        run("mount", self.disk, str(self.point))

    def umount(self) -> None:
        run("umount", str(self.point))

    def wrong(self) -> list[str]:
        """The files whose contents are not what was written."""
        return [name for name, digest in self._sums.items() if checksum(str(self.point / name)) != digest]

    def wrong_on(self, disk: str) -> list[str]:
        """The same after the disk has come back, maybe as another one; with a check of the file system itself."""
        run("fsck.ext4", "-f", "-n", disk)
        self.disk = disk
        self.mount()
        try:
            return self.wrong()
        finally:
            self.umount()


class Writer:
    """Writes numbered blocks at random places past the page cache, and remembers which were acknowledged.

    A write that had not come back when the power was cut may be there or not, and both are right. The kernel of a simulated cut
    lives on, and may call a write done that one leg has taken when all legs have failed, since none is left to tell of it: a
    machine without power says nothing, so that counts for nothing.
    """

    at_work: ClassVar[set["Writer"]] = set()

    def __init__(self, path: str, length: int, *, offset: int = 0, seed: int = 1) -> None:
        self._path, self._offset, self._blocks = path, offset, length // BLOCK
        self._random = random.Random(seed)
        self._generations = [0] * self._blocks
        self._under_way: tuple[int, int, int] | None = None
        self._news = threading.Condition()
        self._stopping = False
        self.acknowledged = 0
        self.powerless = False
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)

    def __enter__(self) -> Self:
        self.at_work.add(self)
        self._thread.start()
        self.wait_for(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopping = True
        self._thread.join(DEADLINE_S)
        self.at_work.discard(self)
        assert not self._thread.is_alive(), f"a write to {self._path} did not come back within {DEADLINE_S:g} s"

    def wait_for(self, more: int) -> None:
        """Until so many more writes were acknowledged."""
        with self._news:
            goal = self.acknowledged + more
            done = self._news.wait_for(lambda: self.acknowledged >= goal or self.error is not None, DEADLINE_S)
        assert self.error is None, f"{self._path}: {self.error}"
        assert done, f"{self._path} took {goal - self.acknowledged} of {more} writes too few within {DEADLINE_S:g} s"

    def wrong(self, path: str | None = None) -> list[int]:
        """The blocks that do not hold what was acknowledged last."""
        first, count, newest = self._under_way or (0, 0, 0)
        bad = []
        data = read(path or self._path, self._offset, self._blocks * BLOCK)
        for number, generation in enumerate(self._generations):
            found = data[number * BLOCK : (number + 1) * BLOCK]
            allowed = {generation, newest} if first <= number < first + count else {generation}
            if generation and all(found != self._block(number, each) for each in allowed if each):
                bad.append(number)
        return bad

    def _block(self, number: int, generation: int) -> bytes:
        return struct.pack("<QQ", number, generation) * (BLOCK // 16)

    def _work(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            generation = 0
            while not self._stopping:
                generation += 1
                count = self._random.choice((1, 1, 2, 16))
                first = self._random.randrange(self._blocks - count + 1)
                self._under_way = (first, count, generation)
                part = _window(count * BLOCK)
                part[:] = b"".join(self._block(number, generation) for number in range(first, first + count))
                put = os.pwritev(descriptor, [part], self._offset + first * BLOCK)
                assert put == count * BLOCK
                if self.powerless:
                    return
                self._generations[first : first + count] = [generation] * count
                self._under_way = None
                with self._news:
                    self.acknowledged += 1
                    self._news.notify_all()
        except OSError as error:
            with self._news:
                self.error = error
                self._news.notify_all()
        finally:
            os.close(descriptor)


class Slow:
    """A file system for drives whose writes can be delayed, so that a test may look while the kernel is at work."""

    drive: Final = DRIVE

    def __init__(self, device: str, directory: Path, loop: str, length: int) -> None:
        self.directory, self._device, self._loop, self._length = directory, device, loop, length

    def delay(self, milliseconds: int) -> None:
        table = f"0 {self._length} delay {self._loop} 0 0 {self._loop} 0 {milliseconds}"
        run("dmsetup", "reload", self._device, "--table", table)
        # Not frozen for that: to thaw it is to write to it, which would be delayed already.
        run("dmsetup", "suspend", "--nolockfs", self._device)
        run("dmsetup", "resume", self._device)

    @classmethod
    @contextmanager
    def made(cls, ext4: Path) -> Iterator["Slow"]:
        image, point = ext4 / "slow.image", ext4 / "slow"
        length = sectors(Bytes(64 * MIB))
        with ExitStack() as undo:
            run("truncate", f"--size={length * SECTOR}", str(image))
            undo.callback(image.unlink)
            loop = run("losetup", "--find", "--show", "--direct-io=on", str(image))
            undo.callback(run, "losetup", "--detach", loop)
            run("dmsetup", "create", "lab-slow", "--table", f"0 {length} delay {loop} 0 0 {loop} 0 0")
            undo.callback(run, "dmsetup", "remove", "--retry", "lab-slow")
            run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "/dev/mapper/lab-slow")
            point.mkdir()
            undo.callback(point.rmdir)
            run("mount", "/dev/mapper/lab-slow", str(point))
            undo.callback(run, "umount", str(point))
            slow = cls("lab-slow", point, loop, length)
            undo.callback(slow.delay, 0)
            yield slow


# The array.


@dataclass
class Lab:
    """An array, by default "lab", whose drives are the files d0, d1, ... in a directory of their own."""

    directory: Path
    name: str = "lab"
    drives: list[str] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def settings(self) -> Settings:
        return Settings(state=self.state, directories=(str(self.directory),))

    @property
    def environment(self) -> dict[str, str]:
        """For the command line: the same settings."""
        return {"BLKRECOV_STATE": str(self.state), "BLKRECOV_DIRECTORIES": str(self.directory)}

    def path(self, drive: str) -> Path:
        return self.directory / drive

    @contextmanager
    def opened(self) -> Iterator[Array]:
        with Array.opened(self.settings, self.name) as array:
            yield array

    def create(self, drives: int, *, spares: int = 0, size: Bytes = DRIVE) -> None:
        """The array with drives d0, d1, ... and hot spares s0, s1, ..."""
        create_array(self.settings, self.name)
        with self.opened() as array:
            self.add(array, *[f"d{number}" for number in range(drives)], size=size)
            self.add(array, *[f"s{number}" for number in range(spares)], size=size, spare=True)

    def add(self, array: Array, *names: str, size: Bytes = DRIVE, spare: bool = False) -> None:
        for name in names:
            array.add_drive(str(self.path(name)), size=size, name=name, spare=spare, force=False)
            self.drives.append(name)

    def stop(self) -> None:
        with self.opened() as array:
            array.stop()

    def power_cut(self) -> None:
        """The drives keep what they have at this moment, the kernel forgets everything, and the machine's next boot begins.

        A real power cut, with the page cache lost as well, is what the crash tests do.
        """
        sweep(self.directory)
        boot = self.directory / "boot_id"
        boot.write_text(f"{uuid4()}\n")
        forget_power_cuts()
        run("mount", "--bind", str(boot), str(BOOT_ID))

    def forget(self, name: str) -> None:
        """Have this machine know nothing of an array."""
        for file in self.state.glob("*.json"):
            if json.loads(file.read_text())["name"] == name:
                file.unlink()

    def sequence(self) -> int:
        """The version of the configuration that the drives carry."""
        with self.opened() as array:
            return array.document.sequence


def lun(
    array: Array,
    name: str,
    layout: str,
    size: int,
    *,
    drives: Sequence[str] = (),
    members: int | None = None,
    exported: bool = True,
) -> str:
    """Make a LUN, and return the disk to use it by."""
    request = Request(
        name=name, layout=Layout(layout), size=Bytes(size), drives=tuple(drives), members=members, exported=exported
    )
    array.create_lun(array.propose_lun(request))
    return disk_of(array, name)


def disk_of(array: Array, name: str) -> str:
    shown = show(array, name)
    return str(shown["device"] or shown["node"])


def show(array: Array, name: str) -> dict[str, Any]:
    """A LUN as programs are shown it, looked at anew."""
    array.observe()
    return array.lun_json(array.document.lun(name))


def states(array: Array, name: str) -> list[str]:
    return [member["state"] for member in show(array, name)["members"]]


def in_sync(array: Array, name: str) -> None:
    """Wait until the kernel has synchronised a LUN."""

    def synchronised() -> bool:
        array.observe()
        raid = array.observed.raid(array.document.lun(name))
        return raid is None or raid.in_sync

    until(f"the synchronisation of {name}", synchronised)


def recover(array: Array, name: str, spare: str | None = None) -> Task:
    proposal, task = array.propose_recover(name, spare)
    return array.wait(array.start(proposal, task).id, timeout_s=DEADLINE_S)


def scrub(array: Array, name: str, *, repair: bool = False) -> Task:
    proposal, task = array.propose_scrub(name, repair=repair)
    return array.wait(array.start(proposal, task).id, timeout_s=DEADLINE_S)


# What is on the members.


def backing(array: Array, member: Member) -> str:
    """The block device that a member's drive is on."""
    path = array.document.drive_of(member.drive).path
    if Path(path).is_block_device():
        return path
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    named = next((f"/dev/{file.parts[3]}" for file in files if _word(file) == path), "")
    # By its inode: one whose name was deleted, and that has another, is told by the old one.
    return named or run("losetup", "--noheadings", "--output", "NAME", "--associated", path)


def member_bytes(array: Array, member: Member) -> bytes:
    """All data of a member, read from its drive."""
    device = backing(array, member)
    return b"".join(read(device, extent.start * SECTOR, extent.length * SECTOR) for extent in member.data)


def overwrite(array: Array, member: Member, data: bytes) -> None:
    """Write over a member's first bytes behind everybody's back."""
    write(backing(array, member), member.data[0].start * SECTOR, data)


def disagreements(array: Array, name: str) -> list[str]:
    """Where the members of a LUN contradict each other, computed here from what is on the drives."""
    lun = array.document.lun(name)
    data = [member_bytes(array, member) for member in lun.members]
    match lun.layout:
        case Layout.RAID1:
            return [f"member {index} is not member 0" for index in range(1, len(data)) if data[index] != data[0]]
        case Layout.RAID10:
            return [f"members {i} and {i + 1} differ" for i in range(0, len(data), 2) if data[i] != data[i + 1]]
        case Layout.RAID4 | Layout.RAID5:
            # Wherever the parity is, all chunks of a stripe together come to nothing.
            return [
                f"parity at byte {at}"
                for at in range(0, len(data[0]), _WINDOW)
                if any(_xor([part[at : at + _WINDOW] for part in data]))
            ]
        case Layout.RAID6:
            return _raid6_disagreements(lun, data)
        case _:
            return []


def _xor(parts: Sequence[bytes]) -> bytes:
    total = 0
    for part in parts:
        total ^= int.from_bytes(part, "little")
    return total.to_bytes(len(parts[0]), "little")


def _times(factor: int) -> bytes:
    """The table that multiplies each byte by g**factor in the field of raid6 (polynomial 0x11d, lib/raid6/mktables.c)."""
    table = []
    for byte in range(256):
        for _ in range(factor):
            byte = (byte << 1) ^ (0x11D if byte & 0x80 else 0)
        table.append(byte)
    return bytes(table)


def _raid6_disagreements(lun: Lun, data: Sequence[bytes]) -> list[str]:
    """raid6_zr: P turns to the right, Q is the next one, and Q counts the members by their number.

    Kernel: drivers/md/raid5.c, raid5_compute_sector(), ALGORITHM_ROTATING_ZERO_RESTART; raid6_idx_to_slot(), ddf_layout.
    """
    count, chunk = len(data), lun.chunk * SECTOR
    tables = [_times(index) for index in range(count)]
    wrong = []
    for stripe, at in enumerate(range(0, len(data[0]), chunk)):
        p = stripe % count
        q = (p + 1) % count
        chunks = [part[at : at + chunk] for part in data]
        if any(_xor([chunks[index] for index in range(count) if index != q])):
            wrong.append(f"P of stripe {stripe}")
        terms = [chunks[index].translate(tables[index]) for index in range(count) if index not in (p, q)]
        if any(_xor([chunks[q], *terms])):
            wrong.append(f"Q of stripe {stripe}")
    return wrong


@dataclass(frozen=True)
class Answer:
    """What a command said, and the status that it ended with."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, str]:
        """The error object on standard error, which is its last line."""
        found: dict[str, str] = json.loads(self.err.splitlines()[-1])
        return found


def blkrecov(lab: Lab, *words: str) -> Answer:
    """The command line, run within this process; a process of its own takes two seconds here."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["blkrecov", *words]
    with (
        mock.patch.dict(os.environ, lab.environment),
        mock.patch.object(sys, "argv", argv),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        status = cli_main.run(Options(json="--json" in words))
    return Answer(status, out.getvalue(), err.getvalue())


def regions_of(array: Array, drive: str) -> set[str | None]:
    """The LUNs that have something on a drive."""
    from blkrecov.views import drive_view

    view = drive_view(array.document, array.document.drive(drive))
    return {row["lun"] for row in view["regions"] if row["role"] in ("meta", "data")}


@contextmanager
def made(ext4: Path) -> Iterator[Lab]:
    """An array to be made. Afterwards it is stopped as an operator would, which has to leave the kernel as it was before.

    A test that leaves its array in a state that cannot be opened says so with `lab.drives.clear()`.
    """
    before = Kernel.now()
    lab = Lab(new_directory(ext4))
    try:
        yield lab
        if lab.drives:
            lab.stop()
            run("udevadm", "settle", "--timeout=30")
            assert Kernel.now() == before
    finally:
        sweep(lab.directory)
        forget_power_cuts()
        shutil.rmtree(lab.directory)
    assert Kernel.now() == before


def copy(source: Path, target: Path) -> None:
    """A copy of a drive's file as it is on the medium, holes and all."""
    run("cp", "--sparse=always", "--reflink=never", str(source), str(target))


def new_directory(parent: Path) -> Path:
    directory = parent / f"lab-{UUID(int=random.getrandbits(128)).hex[:8]}"
    directory.mkdir()
    return directory
