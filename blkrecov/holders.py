"""Who holds a block device: the names that an operator needs before a disk may be taken away.

The kernel knows *whether* a device is claimed (an exclusive open fails), not by whom. So `holders` collects what can be named:
devices stacked on it, mounts, swap, loop devices, LIO backstores, processes. Where none of these explains a claim, the claim
itself is reported. The answer is a photograph: `claimed` keeps the device claimed while the caller acts on it.

All is read from /proc, /sys and configfs, for a device node of any kind. Mounts of other mount namespaces have no line in our
/proc/self/mountinfo; their claim shows.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from blkrecov import mountinfo
from blkrecov.blockdev import printable, text
from blkrecov.errors import AccessDenied, DeviceInUse, PathNotFound, ProviderFailure
from blkrecov.page83 import sysfs

_CLAIM: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_EXCL
# udev's workers open every new or changed disk to probe it, for milliseconds, and survive its removal; so do the programs that
# they start, as scsi_id. Nobody has to wait for them. The kernel cuts these names to 15 characters.
_PROBERS: Final = frozenset({"systemd-udevd", "(udev-worker)", "udevd"})


def holders(node: str) -> tuple[str, ...]:
    """Everything that holds a block device or one of its partitions, in words. Empty where nothing does.

    Raises: PathNotFound for a path that is no block device, AccessDenied; ProviderFailure where it cannot be opened.
    """
    numbers = _numbers(node)
    named = (
        *_stacked(numbers),
        *_mounts(numbers),
        *_swaps(numbers),
        *_files_of(numbers, "/sys/block", "loop*/loop/backing_file", "loop device {0.parts[3]}"),
        *_files_of(
            numbers, "/sys/kernel/config/target/core", "*/*/udev_path", "LIO backstore {0.parts[6]}/{0.parts[7]}"
        ),
        *_processes(numbers),
    )
    if not named and _is_claimed(node):
        return ("an exclusive claim in the kernel that it gives no name to",)
    return tuple(dict.fromkeys(named))


def users(points: tuple[str, ...]) -> tuple[str, ...]:
    """Processes that have something open on or below one of these paths, or are there. Touches no file below them.

    Without root's rights only one's own processes are seen.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        links = (
            process / "cwd",
            process / "root",
            process / "exe",
            *_links(process / "fd"),
            *_links(process / "map_files"),
        )
        if any(_is_below(link, points) for link in links):
            name = next(_lineage(int(process.name)), "ended")
            found.append(f"process {process.name} ({name})")
    return tuple(found)


def _links(directory: Path) -> tuple[Path, ...]:
    try:
        return tuple(directory.iterdir())
    except OSError:
        return ()  # The process has ended.


def _is_below(link: Path, points: tuple[str, ...]) -> bool:
    try:
        path = link.readlink()
    except OSError:
        return False  # Closed since it was listed; a thread of the kernel has none.
    return any(path.is_relative_to(point) for point in points)


@contextmanager
def claimed(node: str) -> Iterator[None]:
    """Keeps a device claimed for the caller, as a mount would.

    Raises: DeviceInUse, naming the holders, if it is claimed already.
    """
    fd = _claim(node)
    if fd is None:
        raise in_use(node, holders(node))
    try:
        yield
    finally:
        os.close(fd)


def in_use(node: str, by: tuple[str, ...]) -> DeviceInUse:
    return DeviceInUse(f"{node} is in use by {', '.join(by) or 'something that let go just now'}")


def _claim(node: str) -> int | None:
    """A descriptor that claims the device, or None where it is claimed already (open(2), O_EXCL on block devices)."""
    try:
        return os.open(node, _CLAIM)
    except PermissionError as error:
        raise AccessDenied(f"may not open {node}") from error
    except FileNotFoundError as error:
        raise PathNotFound(f"{node} does not exist") from error
    except OSError as error:
        if error.errno == errno.EBUSY:
            return None
        raise ProviderFailure(f"open of {node}: {error.strerror}") from error


def _is_claimed(node: str) -> bool:
    fd = _claim(node)
    if fd is None:
        return True
    os.close(fd)
    return False


def _numbers(node: str) -> dict[int, str]:
    """Device numbers of a block device and its partitions, each with the kernel's name."""
    number = _number(node)
    if number is None:
        raise PathNotFound(f"{node} is no block device")
    name = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    parts = {_device(part): partition for partition, part in sysfs.partition_numbers(name.name).items()}
    return {number: name.name, **parts}


def _number(path: str) -> int | None:
    """The device number of a block device node; None for anything else, and for a path that does not exist."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def _device(text: str) -> int:
    major, minor = text.strip().split(":")
    return os.makedev(int(major), int(minor))


def _stacked(numbers: dict[int, str]) -> Iterator[str]:
    """Documentation/ABI/testing/sysfs-block: dm and md link themselves into holders/ of what they stand on."""
    for name in numbers.values():
        for holder in sorted(Path(f"/sys/class/block/{name}/holders").glob("*")):
            dm_name = text(holder / "dm/name")
            yield f"dm device {dm_name}" if dm_name else f"device {holder.name}"


def _mounts(numbers: dict[int, str]) -> Iterator[str]:
    """The source is looked at as well as the number, because btrfs shows a number of its own there."""
    for mount in mountinfo.read():
        if _device(mount.number) in numbers or _number(mount.source) in numbers:
            yield f"a mount on {printable(mount.point)}"


def _swaps(numbers: dict[int, str]) -> Iterator[str]:
    for path in mountinfo.swaps():
        if _number(path) in numbers:
            yield "swap"


def _files_of(numbers: dict[int, str], top: str, pattern: str, words: str) -> Iterator[str]:
    """Kernel objects that name what they stand on in a file of their own."""
    for file in Path(top).glob(pattern):
        if _number(text(file)) in numbers:
            yield printable(words.format(file))


def _processes(numbers: dict[int, str]) -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            holds = any(_number(str(fd)) in numbers for fd in (process / "fd").iterdir())
        except OSError:
            continue  # It has ended.
        if holds:
            names = tuple(_lineage(int(process.name)))
            if names and _PROBERS.isdisjoint(names):
                yield f"process {process.name} ({names[0]})"


def _lineage(process: int) -> Iterator[str]:
    """The names of a process, its parent and so on, as far as they have not ended.

    Kernel: proc_pid_stat(5). The name is in parentheses, and may have any bytes in it, these too; the parent is second after it.
    """
    while process:
        try:
            before, _, after = os.fsdecode(Path(f"/proc/{process}/stat").read_bytes()).rpartition(")")
        except OSError:
            return
        yield printable(before.partition("(")[2])
        process = int(after.split()[1])
