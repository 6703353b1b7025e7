"""Who works on what: one lock for each array, and claims on what is about to become a drive.

    <state>/<array's name>.lock    whoever changes the array, from the opening to the end; let go while a task is waited for
    <state>/lock                   one byte for each path and each file: whoever makes a drive of it; a byte of its own for
                                   whoever gives an array its name

What always holds:

- What blocks in the kernel holds its own array's lock and no other's. So a drive that never answers, or a LUN that somebody has
  suspended, holds up one array: the others are opened, changed and stopped beside it.
- Order: an array's lock, then a claim. A claim is never waited for (whoever finds one is refused), the name's byte is held for
  two looks at the state directory, and nobody takes a second array's lock while holding one. So nobody waits in a circle.
- All of them are the kernel's (flock(2), fcntl(2) F_OFD_SETLK), bound to an open file: they go with the process however that
  ends, and mean the same between threads as between processes. A file in the state directory means nothing by being there.
- Questions to the daemon and the list of arrays take none. What is read beside a writer is a whole version of the document (two
  slots, written in turn), if perhaps not the last one.

LIO, loop devices, device-mapper and udev need no lock between arrays. Names in LIO's tree and of device-mapper's devices begin
with the array's name; numbers (of loop devices, of LIO's backstores) are asked for until one is free, since others take some
as well; what is half made belongs to the array in its name.
"""

import errno
import fcntl
import hashlib
import math
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote
from uuid import UUID

from blkrecov.errors import DeviceInUse, resources
from blkrecov.settings import Settings

PATIENCE_S: Final = 60.0
# One that the kernel has held in the same wait for so long is not waited for any longer.
HELD_S: Final = 5.0
NAMING_S: Final = 10.0

_PAUSE_S: Final = 0.02
_LOOK_S: Final = 0.5
# struct flock on 64-bit Linux: type, whence, start, length, pid.
_FLOCK: Final = struct.Struct("hhqqi4x")
_NAMES: Final = 0


class Lock:
    """An array's. It is not taken when it is made; `name` is what people call the array."""

    def __init__(self, settings: Settings, array: UUID, name: str = "") -> None:
        self._settings = settings
        self.array: Final = array
        self._name = name or str(array)
        # By name, for of two arrays of one name only one may come up: the second sees that. Quoted, for names come from drives.
        self._file = f"{quote(self._name, safe='')}.lock"
        self._descriptor = -1

    def take(self, patience_s: float = PATIENCE_S) -> None:
        """Raises: DeviceInUse naming the process that has it, when it does not let go in time, or the kernel does not let it."""
        descriptor = _open(self._settings, self._file)
        began = look_at = held_since = time.monotonic()
        held = None
        while not _try(descriptor):
            now = time.monotonic()
            if now >= look_at or now - began >= patience_s:
                look_at = now + _LOOK_S
                process, _, thread = os.pread(descriptor, 32, 0).decode(errors="replace").strip().partition(" ")
                before, held = held, held_at(thread)
                held_since = held_since if held == before else now
                stuck = held is not None and now - held_since >= HELD_S and patience_s != math.inf
                if stuck or now - began >= patience_s:
                    os.close(descriptor)
                    raise self._refusal(process or "unknown", held, now - began)
            time.sleep(_PAUSE_S)
        with suppress(OSError):  # Who has it is for people.
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {threading.get_native_id()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _refusal(self, process: str, held: "Held | None", waited_s: float) -> DeviceInUse:
        said = f"process {process} is working on array {self._name}, for {waited_s:.0f} s by now"
        if held is None:
            return DeviceInUse(said, remedy="wait until it has ended")
        return DeviceInUse(
            f"{said}; the kernel holds it in {held.where}: something below the array does not answer",
            remedy="find what is suspended or hangs: dmsetup info -c -o name,suspended; journalctl -k",
        )


@dataclass(frozen=True, slots=True)
class Held:
    """A wait of a thread that cannot be interrupted: the kernel's function, and which of the thread's waits it is."""

    where: str
    count: str


def held_at(thread: str) -> Held | None:
    """Where the kernel holds a thread, if it does.

    Kernel: proc_pid_stat(5), state D; proc_pid_wchan(5), which says 0 to those who may not know; proc_pid_status(5).
    """
    known = Path("/proc", thread)
    try:
        if not thread.isdecimal() or (known / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "D":
            return None
        where = (known / "wchan").read_text().strip()
        lines = (known / "status").read_text(errors="replace").splitlines()
    except OSError:  # It has ended.
        return None
    count = next((line for line in lines if line.startswith("voluntary_ctxt_switches")), "")
    return Held(where if where not in ("", "0") else "an uninterruptible wait", count)


@contextmanager
def being_made(settings: Settings, path: str) -> Iterator[None]:
    """Keep others of this machine from making a drive of the same path, or of the same file by another path.

    Raises: DeviceInUse where somebody is at it.
    """
    descriptor = _open(settings, "lock", to_read=False)
    try:
        for key in _keys(path):
            if not _try_byte(descriptor, key):
                raise DeviceInUse(f"somebody else is making a drive of {path}", remedy="choose another path")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def naming(settings: Settings) -> Iterator[None]:
    """Be the only one who gives an array its name. Raises: DeviceInUse."""
    descriptor = _open(settings, "lock", to_read=False)
    deadline = time.monotonic() + NAMING_S
    try:
        while not _try_byte(descriptor, _NAMES):
            if time.monotonic() >= deadline:
                raise DeviceInUse("another process is making an array", remedy="wait until it has ended")
            time.sleep(_PAUSE_S)
        yield
    finally:
        os.close(descriptor)


def _open(settings: Settings, name: str, *, to_read: bool = True) -> int:
    """On a file system that has become read-only the file is there, and to lock all of it takes no right to write; where it never
    was, and for bytes of it (`to_read` is false), everybody meets in /run. Raises: OutOfResources.
    """
    with resources():
        try:
            settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            return os.open(settings.state / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        with suppress(FileNotFoundError):
            if to_read:
                return os.open(settings.state / name, os.O_RDONLY | os.O_CLOEXEC)
        settings.volatile.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(settings.volatile / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try_byte(descriptor: int, number: int) -> bool:
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except BlockingIOError:
        return False
    return True


def _keys(path: str) -> list[int]:
    """A byte each for a path and for what is there, which may have several."""
    real = os.path.realpath(path)
    words = [real]
    try:
        status = Path(real).stat()
        words.append(f"{status.st_dev}:{status.st_ino}")
    except OSError:
        pass  # It is to be created.
    # Never the names' own; within what a file offset can be.
    return [1 + int.from_bytes(hashlib.blake2b(os.fsencode(word), digest_size=7).digest()) for word in words]
