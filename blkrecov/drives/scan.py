"""Finding drives by what is on them, wherever they are now.

Places, in this order: the paths that the array remembers, the configured directories (one level), attached loop
devices, block devices, and, asked for as a last resort, the top three levels of file systems that lie on block devices.

A drive is known by its label, never by its path. Something met twice, such as a file and the loop device on it, is one
thing and found once; two things with one drive UUID are a drive and a stale clone of it, and which is which is not for
this module to say: all are found, and the clash is told.

Bounded, and harmless in directories that others can write to: no symbolic link is followed there, nothing but regular
files is opened, and nothing that waits when opened; a mount is not crossed. What is believed, and where, is in drives.trust.
"""

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID

from blkrecov import mountinfo
from blkrecov.blockdev import text
from blkrecov.dm.names import parse_dm_uuid
from blkrecov.dm.stalled import Stalled, refuse_stalled
from blkrecov.drives import loop, trust
from blkrecov.drives.label import MINIMUM_SIZE, Label, NoLabel
from blkrecov.drives.loop import Inode, LoopDevice
from blkrecov.drives.store import DriveStore, IoCounter, LabelReading
from blkrecov.drives.trust import Untrusted
from blkrecov.errors import BlkrecovError, InvalidDisk, NotSupported, PathNotFound, ProviderFailure, pass_on_exhaustion
from blkrecov.mountinfo import Mount
from blkrecov.units import sectors

MAX_FILES: Final = 10_000
DEEP_LEVELS: Final = 3
_NAME_IT: Final = "if it is yours, move it to a directory of root's, or name its own in /etc/blkrecov/blkrecov.toml"
# Devices that stand on other devices, that lose what they hold, or whose opening makes a drive search for a medium.
_SKIPPED: Final = ("dm-", "loop", "md", "ram", "zram", "sr", "fd", "nbd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A drive. `path` is the file or block device; `device` the node for its I/O, if there is one by now."""

    path: str
    device: str | None
    reading: LabelReading
    inode: Inode | None = None
    """Of a file that was read itself, as it has no device yet."""

    @property
    def label(self) -> Label:
        return self.reading.label


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What was found."""

    found: tuple[Found, ...]
    refused: tuple[tuple[str, BlkrecovError], ...]  # Hints that failed, and labels that cannot be used.
    complete: bool  # False when there were more files than the bound.
    strangers: tuple[tuple[Label, Untrusted], ...] = ()
    """What says that it is a drive, and is not believed: where drives are expected, and attached files."""

    def clones(self) -> dict[UUID, tuple[Found, ...]]:
        """Drive UUIDs that more than one thing answers to."""
        by_uuid: defaultdict[UUID, list[Found]] = defaultdict(list)
        for found in self.found:
            by_uuid[found.label.drive_uuid].append(found)
        return {uuid: tuple(all_of_it) for uuid, all_of_it in by_uuid.items() if len(all_of_it) > 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the kernel tells about devices and mounts."""

    sys_block: Path = loop.SYS_BLOCK
    dev: Path = Path("/dev")
    mountinfo: Path = mountinfo.SELF
    top: Path = Path("/")
    """From where on directories are asked whose they are."""


def scan(
    hints: Sequence[str],
    directories: Sequence[str],
    counter: IoCounter,
    *,
    deep: bool = False,
    passing: frozenset[int] = frozenset(),
    max_files: int = MAX_FILES,
    places: Places | None = None,
) -> Scan:
    """Find drives. A hint or a directory that is not there is told in `refused`; nothing of this stops the search. Block devices
    with the numbers `passing` (st_rdev), and the files below them, are not looked at.

    Raises: AccessDenied when loop devices may not be looked at.
    """
    places = places or Places()
    search = _Search(
        counter,
        max_files,
        {device.backing: device for device in _whole(loop.attached(places.sys_block))},
        places,
        # A loop device's number may be another file's by now.
        frozenset(os.path.realpath(place) for place in (*hints, *directories) if not place.startswith("/dev/loop")),
        passing,
    )
    for hint in hints:
        search.look(hint, asked_for=True)
    for directory in directories:
        search.look_in(directory, levels=1, asked_for=True)
    for device in search.loops.values():
        search.look_at_loop(device)
    for node in block_devices(places):
        search.look(str(node))
    if deep:
        for point in mounts(mountinfo.read(places.mountinfo)):
            if not trust.way_flaw(f"{point}/", places.top):
                search.look_in(point, levels=DEEP_LEVELS)
    return Scan(
        found=tuple(search.found),
        refused=tuple(search.refused),
        complete=not search.gave_up,
        strangers=tuple(search.strangers),
    )


def look(path: str, counter: IoCounter, places: Places | None = None) -> Found:
    """The drive at a path that somebody has named. Raises: PathNotFound, InvalidDisk and what else reading its label does."""
    places = places or Places()
    loops = {device.backing: device for device in _whole(loop.attached(places.sys_block))}
    search = _Search(counter, MAX_FILES, loops, places, frozenset({os.path.realpath(path)}))
    search.look(path, asked_for=True)
    if not search.found:
        raise search.refused[0][1]
    return search.found[0]


def block_devices(places: Places) -> Iterator[Path]:
    """Disks and partitions that may be drives: not what stands on other devices, not the disks that this machine
    exports.
    """
    for disk in sorted(places.sys_block.iterdir()) if places.sys_block.is_dir() else ():
        if disk.name.startswith(_SKIPPED) or _is_exported(disk):
            continue
        partitions = sorted(entry.parent for entry in disk.glob("*/partition"))
        for device in (disk, *partitions):
            if int(text(device / "size") or 0) >= sectors(MINIMUM_SIZE):
                yield places.dev / device.name.replace("!", "/")  # The kernel's own spelling of cciss/c0d0.


def mounts(listed: Iterable[Mount]) -> Iterator[str]:
    """Mount points of file systems on block devices, each file system once.

    Not of those that are mounted `nosuid`: that is how users' media are, on which files have whatever owners somebody gave them.

    The device number of btrfs is none of a disk's, so it is the source that tells.
    """
    seen = set()
    for mount in listed:
        if "nosuid" in mount.options.split(","):
            continue
        if mount.source.startswith("/dev/") and (mount.number, mount.root) not in seen:
            seen.add((mount.number, mount.root))
            yield mount.point


def _whole(devices: tuple[LoopDevice, ...]) -> Iterator[LoopDevice]:
    """A loop device on a part of a file is none of ours, and the file is more than it."""
    return (device for device in devices if device.offset == 0)


def _is_exported(disk: Path) -> bool:
    """Whether a SCSI disk is one that this machine's LIO shows to itself: its contents are a LUN's, not a drive's.

    Kernel: drivers/target/loopback/tcm_loop.c names itself "tcm_loopback" in proc_name of its SCSI hosts.
    """
    device = (disk / "device").resolve()
    host = next((part for part in device.parts if part.startswith("host") and part[4:].isdigit()), None)
    if host is None:
        return False
    while device.name != host:
        device = device.parent
    return text(device / "scsi_host" / host / "proc_name") == "tcm_loopback"


@dataclass(slots=True)
class _Search:
    """What one scan has seen so far."""

    counter: IoCounter
    files_left: int
    loops: dict[Inode, LoopDevice]
    places: Places
    named: frozenset[str]
    """Hints and directories: there it is enough that a file is root's."""
    passing: frozenset[int] = frozenset()
    gave_up: bool = False
    seen: set[Inode] = field(default_factory=set)
    found: list[Found] = field(default_factory=list)
    refused: list[tuple[str, BlkrecovError]] = field(default_factory=list)
    strangers: list[tuple[Label, Untrusted]] = field(default_factory=list)

    def look(self, path: str, *, asked_for: bool = False) -> None:
        """Look at a path, following symbolic links. What nobody asked for and is no drive is passed over in silence."""
        try:
            status = Path(path).stat()
        except OSError as error:
            if asked_for:
                self.refused.append((path, _unreachable(path, error)))
            return
        if stat.S_ISBLK(status.st_mode):
            device = next((device for device in self.loops.values() if _is_node_of(status, device)), None)
            # All nodes of a block device are one thing, whatever directory they are in.
            inode = device.backing if device else Inode(-1, status.st_rdev)
        else:
            inode = Inode(status.st_dev, status.st_ino)
            device = self.loops.get(inode)
        if device is not None:
            self.look_at_loop(device)
        elif inode not in self.seen and inode.number not in (self.passing if inode.device < 0 else ()):
            self.seen.add(inode)
            self._read(path, None, asked_for=asked_for)

    def look_at_loop(self, device: LoopDevice) -> None:
        """Look through a loop device: while there is one, the file is not to be read itself."""
        if device.backing not in self.seen and os.makedev(loop.MAJOR, device.number) not in self.passing:
            self.seen.add(device.backing)
            doubt = self._doubt(device)
            self._read(device.path if device.deleted else device.backing_file, device.path, doubt=doubt)

    def _doubt(self, device: LoopDevice) -> Untrusted | None:
        """Why an attached file is not to be believed: a service may attach files for whoever asks it (udisks2 does).

        One that serves an array was believed before, and LUNs are on it. Of one without a name the way to it is asked.
        """
        if device.path in self.named or serves(self.places.sys_block / f"loop{device.number}"):
            return None
        file = device.backing_file
        with suppress(OSError):
            status = Path(file).stat()
            if Inode(status.st_dev, status.st_ino) == device.backing:
                if flaw := trust.flaw_of(status):
                    return Untrusted(file, flaw)
                if not self.named.isdisjoint((file, str(Path(file).parent))):
                    return None
        flaw = trust.way_flaw(file, self.places.top)
        with suppress(OSError):
            if os.statvfs(Path(file).parent).f_flag & os.ST_NOSUID:
                flaw = "the file system that it lies on is mounted nosuid"
        return Untrusted(file, flaw, remedy=_NAME_IT) if flaw else None

    def look_in(self, directory: str, *, levels: int, asked_for: bool = False) -> None:
        """Look at the regular files of a directory, and of those in it, down to so many levels."""
        try:
            status = Path(directory).stat()
            if not asked_for and trust.flaw_of(status):
                return
            device = status.st_dev
            refuse_stalled(directory)
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except Stalled as stalled:
            self.refused.append((directory, stalled))
            return
        except OSError as error:
            pass_on_exhaustion(error)
            if asked_for:
                self.refused.append((directory, _unreachable(directory, error)))
            return
        for entry in entries:
            if self.files_left <= 0:
                self.gave_up = True
                return
            self.files_left -= 1
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:  # Gone since the directory was read.
                continue
            if stat.S_ISDIR(status.st_mode) and levels > 1 and status.st_dev == device:
                self.look_in(entry.path, levels=levels - 1)
            elif stat.S_ISREG(status.st_mode) and status.st_size >= MINIMUM_SIZE:
                self._look_at_file(entry.path, Inode(status.st_dev, status.st_ino), named=asked_for)

    def _look_at_file(self, path: str, inode: Inode, *, named: bool) -> None:
        if device := self.loops.get(inode):
            self.look_at_loop(device)
        elif inode not in self.seen:
            self.seen.add(inode)
            self._read(path, None, follow=False, named=named)

    def _read(
        self,
        path: str,
        device: str | None,
        *,
        asked_for: bool = False,
        follow: bool = True,
        named: bool = True,
        doubt: Untrusted | None = None,
    ) -> None:
        node = device or path
        try:
            with DriveStore(node, self.counter, writable=False, follow=follow, anybody=True) as store:
                reading = store.read_label()
                is_block, inode = store.is_block, store.inode
                if store.flaw:
                    doubt = Untrusted(path, store.flaw)
        except NoLabel as error:
            if asked_for:
                self.refused.append((path, error))
        except (InvalidDisk, NotSupported, Stalled) as error:
            self.refused.append((path, error))
        except BlkrecovError as error:
            # A disk that cannot be read, a socket, a file that went away: no news unless it was asked for.
            if asked_for:
                self.refused.append((path, error))
        else:
            if doubt is None:
                self.found.append(Found(path=path, device=node if is_block else None, reading=reading, inode=inode))
            elif named:
                self.refused.append((path, doubt))
                self.strangers.append((reading.label, doubt))


def serves(device: Path) -> bool:
    """Whether one of our devices stands on a block device, by its directory in sysfs."""
    return any(parse_dm_uuid(text(uuid)) for uuid in device.glob("holders/*/dm/uuid"))


def _is_node_of(status: os.stat_result, device: LoopDevice) -> bool:
    return status.st_rdev == os.makedev(loop.MAJOR, device.number)


def _unreachable(path: str, error: OSError) -> BlkrecovError:
    pass_on_exhaustion(error)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return PathNotFound(f"{path} does not exist")
    return ProviderFailure(f"{path}: {error.strerror}")
