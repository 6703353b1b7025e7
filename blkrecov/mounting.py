"""Mount points that come back with their LUN.

A LUN that fails gives its users I/O errors. What becomes of a file system on it then (Linux 6.1):

    ext4         once its journal cannot be written it takes no change any more, for good. mountinfo goes on saying "rw", and a
                 remount says that it did well: only an attempt to change something tells
    xfs          shuts down when its log cannot be written, and opens nothing any more
    ext2, vfat   go on, without what they could not write
    all          live on where only files' contents could not be written; the writers were told

A dead file system serves nobody, and is put right by one thing: every mount of it is unmounted, and it is mounted again, when
its journal is replayed. What had reached the LUN (fsync) is there then. One that is alive is never unmounted: it may hold
changes that can be written still.

Nothing is mounted that was not wanted: by a systemd unit that something wants, by a line of /etc/fstab that is not "noauto",
or because it was mounted there until now. Nothing is forced: a file system that is in use is left as it is, and told. To see
whether one is in use is the kernel's business, for an unmount of it is refused.

All of this happens where process 1 has its mounts: a service may have mounts of its own. Commands do it, because each of them
may hang in the kernel where nothing can end it; then it is waited for no longer.

Kernel: fs/ext4/super.c, ext4_handle_error(); fs/xfs/xfs_fsops.c, xfs_do_force_shutdown(); fs/namespace.c, do_umount().
"""

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum, unique
from pathlib import Path
from time import monotonic
from typing import Any, Final

from blkrecov.drives import raw
from blkrecov.drives.store import DriveIoError
from blkrecov.errors import ProviderFailure, TimedOut
from blkrecov.holders import users
from blkrecov.page83 import udev
from blkrecov.surroundings import SYSTEMD

# For all mount points of a LUN together. A command that takes longer goes on without us.
PATIENCE_S: Final = 30.0
_MOUNTS: Final = "MAJ:MIN,SOURCE,TARGET,FSTYPE,FSROOT,VFS-OPTIONS,FS-OPTIONS"
_FSTAB: Final = "SOURCE,TARGET,FSTYPE,OPTIONS"
# Asks a file system for a file without a name, which leaves nothing behind, and to keep that; ends with what it answers. A change
# of times alone would not do: ext4 meets its dead journal then, and says that all is well. Twice, because what was lost before is
# told once by file systems that live on.
_ASK: Final = """
import os, sys
for last in (False, True):
    try:
        if sys.argv[2] == "change":
            os.fsync(os.open(sys.argv[1], os.O_TMPFILE | os.O_WRONLY, 0o600))
        else:
            os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
        break
    except OSError as error:
        if last:
            sys.exit(error.errno)
"""
# The answers of one that has given up. Others, as that it is full, or has no such files, are a living one's.
_DEAD: Final = (errno.EROFS, errno.EIO, errno.ESHUTDOWN, errno.EUCLEAN)
# They may be mounted "rw", and take no change for all that.
_NEVER_WRITTEN: Final = frozenset({"cramfs", "erofs", "iso9660", "romfs", "squashfs", "udf"})
# How a file system shows its state among its options; no mount takes these.
_STATES: Final = frozenset({"rw", "ro", "emergency_ro", "shutdown"})


@unique
class Outcome(StrEnum):
    """The values are the names of the events that tell it."""

    AGAIN = "mounted_again"
    LEFT = "mount_left"


@dataclass(frozen=True, slots=True)
class Mounting:
    """What was done about one mount point. `fstype` may be "auto" where nothing is mounted."""

    path: str
    fstype: str
    outcome: Outcome
    why: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class _Mount:
    """A line of mountinfo. `flags` are the mount point's own options, `options` the file system's."""

    number: str
    source: str
    path: str
    fstype: str
    root: str
    flags: str
    options: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """Somebody's wish for a mount point, and the command that fulfils it."""

    path: str
    fstype: str
    automatic: bool
    command: tuple[str, ...]


def bring_back(device: str, patience_s: float = PATIENCE_S) -> Iterator[Mounting]:
    """Makes the file systems of a disk that was away usable again: what was done about each mount point that was not.

    They may be on its partitions, and on what stands on these, as logical volumes. Nothing more is done than what is asked for
    of the iterator.

    Raises: TimedOut where even a look takes too long; ProviderFailure for a command that cannot be run, or understood.
    """
    return _Work(device, _Commands(patience_s)).results()


class _Commands:
    """Commands, which together have so many seconds. One that comes late has two all the same, so that there is an answer."""

    def __init__(self, patience_s: float) -> None:
        self._deadline = monotonic() + patience_s
        # Both namespaces are the same but in a sandbox.
        ours, first = (Path(f"/proc/{process}/ns/mnt").stat().st_ino for process in ("self", "1"))
        self._prefix = () if ours == first else ("nsenter", "--mount=/proc/1/ns/mnt", "--")

    @property
    def remaining_s(self) -> float:
        return max(2.0, self._deadline - monotonic())

    def run(self, *words: str) -> tuple[int, str, str]:
        """(exit status, output, what it complains of). Raises: TimedOut, ProviderFailure."""
        command = (*self._prefix, *words)
        environment = {**os.environ, "LC_ALL": "C"}
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="surrogateescape",  # A mount point may be any bytes.
                env=environment,
            )
        except FileNotFoundError as error:
            raise ProviderFailure(f"there is no {command[0]} command") from error
        try:
            output, complaint = process.communicate(timeout=self.remaining_s)
        except subprocess.TimeoutExpired as error:
            # Not ended: what hangs in the kernel cannot be, and a mount that takes its time may be done well. Somebody has to see
            # it off all the same.
            threading.Thread(target=process.communicate, daemon=True).start()
            raise TimedOut(f"{' '.join(words)} takes longer than there is time for; it goes on") from error
        return process.returncode, output, complaint.strip()

    def done(self, *words: str) -> str:
        """What a command complains of that was to change something; empty where it has. Raises: ProviderFailure."""
        try:
            status, _, complaint = self.run(*words)
        except TimedOut as error:
            return error.message
        return (complaint or f"{words[0]} ended with status {status}") if status else ""

    def table(self, *words: str) -> list[Any]:
        """What findmnt lists, which is nothing if it fails."""
        _, output, _ = self.run("findmnt", "--list", "--json", *words)
        try:
            return list(json.loads(output or "{}").get("filesystems", ()))
        except ValueError as error:
            raise ProviderFailure(f"findmnt cannot be understood: {error}") from error


class _Work:
    """What there is to be done for one disk."""

    def __init__(self, device: str, commands: _Commands) -> None:
        self._commands = commands
        self._numbers = _numbers(device)
        if not self._mounts():
            # Whoever opened the disk for writing while it failed has made udev look for its partitions, which are gone then.
            with suppress(DriveIoError):
                raw.reread_partitions(device)
        with suppress(TimedOut):
            udev.settle(commands.remaining_s / 2)
        self._numbers = _numbers(device)
        self._entries = {entry.path: entry for entry in (*self._fstab(), *self._units())}

    def results(self) -> Iterator[Mounting]:
        mounts = self._mounts()
        for number in dict.fromkeys(mount.number for mount in mounts):
            same = [mount for mount in mounts if mount.number == number]
            if self._is_dead(same):
                yield from self._revived(same)
        taken = {str(row["target"]) for row in self._commands.table("--kernel", "--output", "TARGET")}
        # Those that lie below others come after them.
        for path, entry in sorted(self._entries.items()):
            if entry.automatic and path not in taken:
                yield self._mounted(path, entry.fstype, entry.command, "it was not mounted")

    def _mounts(self) -> list[_Mount]:
        """Oldest first. btrfs shows numbers of its own, so the source counts as well."""
        rows = self._commands.table("--kernel", "--output", _MOUNTS)
        found = [_Mount(*(str(row[column.lower()]) for column in _MOUNTS.split(","))) for row in rows]
        return [mount for mount in found if {mount.number, _number(mount.source)} & self._numbers]

    def _fstab(self) -> Iterator[_Entry]:
        for row in self._commands.table("--fstab", "--evaluate", "--output", _FSTAB):
            path, options = str(row["target"]), str(row["options"]).split(",")
            ours = _number(str(row["source"])) in self._numbers and path.startswith("/")
            if ours or "bind" in options or "rbind" in options:
                # The kernel knows it without links, and without a slash at its end.
                _, real, _ = self._commands.run("realpath", "--canonicalize-missing", "--zero", "--", path)
                automatic = ours and "noauto" not in options
                yield _Entry(real.rstrip("\0") or path, str(row["fstype"]), automatic, ("mount", path))

    def _units(self) -> Iterator[_Entry]:
        """systemd's word for a mount point counts before fstab's: its units do more, as to check the file system.

        They are started, after an unmount of our own: a restart would end the services that want the mount point, and have
        nothing open there.

        Shape: name=value, a paragraph for each unit. A unit without a file tells of a mount that somebody else made.
        """
        if not SYSTEMD.exists():
            return
        properties = "--property=Id,Where,What,Type,FragmentPath,WantedBy,RequiredBy"
        _, output, _ = self._commands.run("systemctl", "show", "--all", properties, "*.mount")
        for paragraph in output.split("\n\n"):
            # Anybody's mount may have in its path what is an end of a line to splitlines().
            said = dict(line.partition("=")[::2] for line in paragraph.split("\n"))
            if said.get("FragmentPath") and _number(said["What"]) in self._numbers:
                wanted = bool(said["WantedBy"] or said["RequiredBy"])
                yield _Entry(said["Where"], said["Type"] or "auto", wanted, ("systemctl", "start", said["Id"]))

    def _is_dead(self, mounts: list[_Mount]) -> bool:
        """Whether a file system has given up."""
        writable = [mount for mount in mounts if "rw" in mount.flags.split(",") and mount.fstype not in _NEVER_WRITTEN]
        path = (writable or mounts)[0].path
        status, _, _ = self._commands.run(sys.executable, "-ISc", _ASK, path, "change" if writable else "look")
        return status in _DEAD

    def _revived(self, mounts: list[_Mount]) -> Iterator[Mounting]:
        """All mounts of one dead file system: as long as one of them stays, a new one would show the same."""
        refusal = self._refusal(mounts) or self._unmounted(mounts)
        for mount in mounts:
            command = self._again(mount)
            if refusal:
                why = f"its file system has shut down, and {refusal}"
                remedy = f"end what uses it, then run: umount {mount.path} && {' '.join(command)}"
                yield Mounting(mount.path, mount.fstype, Outcome.LEFT, why, remedy)
            else:
                yield self._mounted(mount.path, mount.fstype, command, "its file system had shut down")

    def _unmounted(self, mounts: list[_Mount]) -> str:
        """Unmounts all, or none: then why not."""
        done: list[_Mount] = []
        for mount in reversed(mounts):
            if complaint := self._commands.done("umount", mount.path):
                # What is written there meanwhile would be hidden later, below the mount.
                for gone in reversed(done):
                    self._commands.done(*self._again(gone))
                return f"it cannot be unmounted: {complaint}"
            done.append(mount)
        return ""

    def _refusal(self, mounts: list[_Mount]) -> str:
        """Why mounts are better left as they are; empty where nothing is known."""
        paths = tuple(mount.path for mount in mounts)
        if by := users(paths):
            return f"it is in use by {', '.join(by)}"
        parts = [mount.path for mount in mounts if mount.root != "/" and mount.fstype != "btrfs"]
        if foreign := [path for path in parts if path not in self._entries]:
            return f"parts of it are mounted on {', '.join(foreign)}, which nothing would mount again"
        return ""

    def _again(self, mount: _Mount) -> tuple[str, ...]:
        """The command that makes a mount as it was."""
        entry = self._entries.get(mount.path)
        if entry is not None:
            return entry.command
        options = [mount.flags, *(word for word in mount.options.split(",") if word not in _STATES)]
        return "mount", "-t", mount.fstype, "-o", ",".join(options), mount.source, mount.path

    def _mounted(self, path: str, fstype: str, command: tuple[str, ...], why: str) -> Mounting:
        complaint = self._commands.done(*command)
        made = [mount for mount in self._mounts() if mount.path == path]
        if complaint or not made:
            why += f", and cannot be mounted: {complaint or 'nothing is there'}"
        elif self._is_dead(made):
            why += ", and still takes no change: others may see mounts of it that we do not"
        else:
            return Mounting(path, made[-1].fstype, Outcome.AGAIN, why)
        return Mounting(path, fstype, Outcome.LEFT, why, f"see to it, then run: {' '.join(command)}")


def _numbers(device: str) -> frozenset[str]:
    """major:minor of a disk, of its partitions, and of all that stands on these. Empty for what is no block device."""
    found = set()
    number = _number(device)
    below = [Path(f"/sys/dev/block/{number}").resolve()] if number else []
    while below:
        each = below.pop()
        found.add((each / "dev").read_text().strip())
        below += [part.parent for part in each.glob(f"{each.name}*/dev")]
        below += [holder.resolve() for holder in (each / "holders").glob("*")]
    return frozenset(found)


def _number(path: str) -> str | None:
    try:
        # A source may be a word, as "tmpfs" is.
        status = Path(path).stat() if path.startswith("/") else None
    except OSError:
        status = None
    if status is None or not stat.S_ISBLK(status.st_mode):
        return None
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
