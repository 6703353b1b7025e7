"""Waits for drives to arrive where they are looked for: for those who cannot open an array, and would have to ask time and again.

    uevents     a block device comes, goes or changes
    inotify     of the directories in which drives are, or were: a file comes, goes or has been written; of the directory above
                where that is not there
    mountinfo   a file system is mounted: directories and their files may be others

Any of these is a reason to compare what is there with what was there before. Only a difference ends the wait, for trying to open
an array makes events of its own.
"""

import select
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, TypeAlias

import pyudev
from inotify_simple import INotify, flags

from blkrecov.blockdev import text

Places: TypeAlias = frozenset[tuple[str, ...]]

_BLOCK: Final = Path("/sys/block")
_MOUNTS: Final = Path("/proc/self/mountinfo")
_CHANGES: Final = flags.CREATE | flags.MOVED_TO | flags.CLOSE_WRITE | flags.ATTRIB | flags.DELETE_SELF | flags.MOVE_SELF


def present(paths: Iterable[str], directories: Iterable[str]) -> Places:
    """What is there by way of disks, of drives' files and of files in directories, as far as names and sizes tell."""
    return frozenset((*_disks(), *_files(paths), *_files(directories)))


def wait(before: Places, paths: Iterable[str], directories: Iterable[str], also: int, timeout_s: float) -> bool:
    """Until something else is there than before, or the file number `also` is readable. False when the time is over."""
    paths, directories = tuple(paths), tuple(directories)
    deadline = time.monotonic() + timeout_s
    with ExitStack() as closing:
        changes = INotify(nonblocking=True)
        closing.callback(changes.close)
        uevents = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        uevents.filter_by("block")
        uevents.start()
        mounts = closing.enter_context(_MOUNTS.open("rb"))
        poll = select.poll()
        for number in (changes.fileno(), uevents.fileno(), also):
            poll.register(number, select.POLLIN)
        poll.register(mounts, select.POLLPRI)
        wanted = {*(Path(path).parent for path in paths), *map(Path, directories)}
        while True:
            # A directory may have come, and what is in it has to be watched too.
            for directory in {_existing(each) for each in wanted}:
                with suppress(OSError):
                    changes.add_watch(directory, _CHANGES)
            # Looked at after the watches are there: what comes in between is seen by the one or the other.
            if present(paths, directories) != before:
                return True
            left_s = deadline - time.monotonic()
            ready = poll.poll(1000 * left_s) if left_s > 0 else []
            if not ready:
                return False
            if any(number == also for number, _ in ready):
                return True
            changes.read(timeout=0)
            with suppress(OSError):  # ENOBUFS: there was more than the kernel keeps for us.
                while uevents.poll(timeout=0) is not None:
                    pass


def _disks() -> Iterator[tuple[str, ...]]:
    """Of what has come in the place of another the sequence number tells (Linux 5.15 and later). Devices that are made of drives
    are none.
    """
    for disk in _BLOCK.glob("*"):
        if not disk.name.startswith("dm-"):
            yield (disk.name, text(disk / "size"), text(disk / "diskseq"))


def _files(paths: Iterable[str]) -> Iterator[tuple[str, ...]]:
    for path in paths:
        with suppress(OSError):
            found = Path(path).stat()
            # Whose it is, too: a file that others may write to is no drive until that is mended (drives.trust).
            told = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_uid, found.st_mode)
            yield (path, *map(str, told))


def _existing(directory: Path) -> Path:
    while not directory.is_dir() and directory != directory.parent:
        directory = directory.parent
    return directory
