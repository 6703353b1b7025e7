r"""What is mounted, and swapped to, as the kernel tells this process. The bytes of a name may be any but NUL, and anybody who may
mount something (FUSE) chooses them, so nothing in here fails for what they are.

Kernel: proc_pid_mountinfo(5); Documentation/filesystems/proc.rst 3.5; fs/proc_namespace.c, show_mountinfo(). Of the bytes of
names only space, tab, newline, backslash and # are escaped, as \040: str.split() and str.splitlines() would split at others too.
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SELF: Final = Path("/proc/self/mountinfo")
_SWAPS: Final = Path("/proc/swaps")
_NUMBER: Final = re.compile(rb"[0-9]+:[0-9]+")
# No name has a NUL in it, and no path may be asked for that has one.
_ESCAPED: Final = re.compile(rb"\\(?!000)([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line. Bytes that are no UTF-8 are surrogates, so that a path can be used; blockdev.plain() is for what is told."""

    number: str  # major:minor of the file system: a block device's, or one of its own, as btrfs has.
    root: str  # What of the file system is mounted.
    point: str
    options: str  # Of the mount point, separated by commas; not the file system's.
    fstype: str
    source: str


def parse(content: bytes) -> tuple[Mount, ...]:
    """All mounts, oldest first. A line that cannot be understood is passed over."""
    found = []
    for line in content.split(b"\n"):
        with suppress(ValueError):
            words = line.split(b" ")
            dash = words.index(b"-", 6)  # Behind the optional fields, of which there may be any number.
            _, _, number, root, point, options = words[:6]
            fstype, source, _ = words[dash + 1 : dash + 4]
            if _NUMBER.fullmatch(number):
                found.append(Mount(*map(_unescaped, (number, root, point, options, fstype, source))))
    return tuple(found)


def read(file: Path = SELF) -> tuple[Mount, ...]:
    """The mounts in this process's namespace. Raises: OSError."""
    return parse(file.read_bytes())


def swaps(file: Path = _SWAPS) -> tuple[str, ...]:
    """Paths of the files and block devices that are swapped to. Kernel: proc_swaps(5); mm/swapfile.c, swap_show()."""
    try:
        lines = file.read_bytes().split(b"\n")[1:]
    except FileNotFoundError:  # A kernel without swap.
        return ()
    return tuple(_unescaped(line.split(b" ", 1)[0]) for line in lines if line)


def _unescaped(word: bytes) -> str:
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes((int(match[1], 8),)), word))
