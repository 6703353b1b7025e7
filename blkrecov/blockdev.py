"""Block devices as sysfs shows them: which there are below a file or another device, and what the kernel says of each.

No device is asked, and none is waited for. Whoever opens a drive comes through here first, so it is the fewest calls that do.
Kernel: Documentation/ABI/stable/sysfs-block.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from blkrecov.errors import pass_on_exhaustion

SYSFS: Final = Path("/sys/dev/block")
# One attribute is a page at most (Documentation/filesystems/sysfs.rst).
_PAGE: Final = 4096


def text(attribute: Path) -> str:
    """What an attribute says, without the end of its line; empty where there is none. A path may have bytes that are no UTF-8.

    Raises: OSError when the process or the kernel has run out of something.
    """
    try:
        descriptor = os.open(attribute, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        pass_on_exhaustion(error)
        return ""
    try:
        return os.read(descriptor, _PAGE).decode(errors="surrogateescape").removesuffix("\n")
    except OSError:  # The device is going.
        return ""
    finally:
        os.close(descriptor)


def plain(text: str) -> str:
    """A name as JSON and D-Bus can say it: bytes that are no UTF-8, which are surrogates, are written out."""
    return text.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """A name as a message can say it: what would do something to a terminal is written out as well."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def directory(number: int) -> Path | None:
    """The device of this number; None where there is none, as below file systems that lie on no block device."""
    try:
        link = (SYSFS / f"{os.major(number)}:{os.minor(number)}").readlink()
    except OSError:
        return None
    return Path(os.path.normpath(SYSFS / link))


def below(number: int, further: Callable[[Path], Iterable[int]]) -> Iterator[Path]:
    """The device of this number, the disk in the place of a partition, and all that it stands on, from the top down.

    sysfs tells what device-mapper and md stand on. `further` gives the numbers that it does not know.
    """
    pending, seen = [number], set()
    while pending:
        number = pending.pop()
        if number in seen or (device := directory(number)) is None:
            continue
        seen.add(number)
        if (device / "partition").exists():
            device = device.parent
        yield device
        pending += [*slaves(device), *further(device)]


def slaves(device: Path) -> Iterator[int]:
    """The numbers of what a device of device-mapper's or md's stands on."""
    try:
        found = list((device / "slaves").iterdir())
    except OSError as error:
        pass_on_exhaustion(error)
        return  # It is going.
    for slave in found:
        major, _, minor = text(slave / "dev").partition(":")
        if minor:
            yield os.makedev(int(major), int(minor))
