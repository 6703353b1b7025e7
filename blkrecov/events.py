"""What happened, for people and programs: one line of JSON per event in `<state>/events.jsonl`, and each event to `logging`.

The log tells; nothing is decided by it. So it is written without a flush to the medium, it may be lost without harm, and a disk
that is full stops no recovery: what cannot be written is given to `logging` only.

Several processes write it at once. Each line is one write to the end of the file, under a lock that is held for that write:
else the file could be moved away between another's open and its write, and who follows it would miss that line.
"""

import errno
import fcntl
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from blkrecov.errors import AccessDenied

log = logging.getLogger(__name__)

NAME: Final = "events.jsonl"
# With the file before it, the last few thousand events.
ROTATE_AT: Final = 2**20
TICK_S: Final = 0.5


class EventKind(StrEnum):
    """The words are what programs match. More may come."""

    MEMBER_FAILED = "member_failed"
    DRIVE_FAILED = "drive_failed"
    """By the kernel's word or the operator's, or gone from where it was."""
    DRIVE_RETURNED = "drive_returned"
    DRIVE_SET_ASIDE = "drive_set_aside"
    """It failed too often (blkrecov.flapping)."""
    DRIVE_TRUSTED = "drive_trusted"
    FAULT_INJECTED = "fault_injected"
    FAULT_REMOVED = "fault_removed"
    MOUNTED_AGAIN = "mounted_again"
    """A mount point of a LUN that had failed."""
    MOUNT_LEFT = "mount_left"
    """One that is of no use still."""
    RECOVERY_QUEUED = "recovery_queued"
    RECOVERY_STARTED = "recovery_started"
    RECOVERY_PROGRESS = "recovery_progress"
    RECOVERY_PAUSED = "recovery_paused"
    RECOVERY_RESUMED = "recovery_resumed"
    RECOVERY_DONE = "recovery_done"
    RECOVERY_FAILED = "recovery_failed"
    RECOVERY_CANCELLED = "recovery_cancelled"
    RECOVERY_IMPOSSIBLE = "recovery_impossible"
    """A LUN needs one and cannot have it: nothing was begun."""
    RECONNECT_STARTED = "reconnect_started"
    RECONNECT_PROGRESS = "reconnect_progress"
    RECONNECT_DONE = "reconnect_done"
    RECONNECT_CANCELLED = "reconnect_cancelled"
    REMOVAL_STARTED = "removal_started"
    """A drive is to leave, and what is on it moves first."""
    REMOVAL_PROGRESS = "removal_progress"
    REMOVAL_DONE = "removal_done"
    REMOVAL_FAILED = "removal_failed"
    REMOVAL_CANCELLED = "removal_cancelled"
    SCRUB_STARTED = "scrub_started"
    SCRUB_PROGRESS = "scrub_progress"
    SCRUB_PAUSED = "scrub_paused"
    SCRUB_RESUMED = "scrub_resumed"
    SCRUB_DONE = "scrub_done"
    SCRUB_FAILED = "scrub_failed"
    SCRUB_CANCELLED = "scrub_cancelled"
    REPLACEMENT_QUEUED = "replacement_queued"
    REPLACEMENT_STARTED = "replacement_started"
    REPLACEMENT_PROGRESS = "replacement_progress"
    REPLACEMENT_PAUSED = "replacement_paused"
    REPLACEMENT_RESUMED = "replacement_resumed"
    REPLACEMENT_DONE = "replacement_done"
    REPLACEMENT_FAILED = "replacement_failed"
    REPLACEMENT_CANCELLED = "replacement_cancelled"
    SNAPSHOT_STARTED = "snapshot_started"
    """A plex is being filled."""
    SNAPSHOT_PROGRESS = "snapshot_progress"
    SNAPSHOT_PAUSED = "snapshot_paused"
    SNAPSHOT_RESUMED = "snapshot_resumed"
    SNAPSHOT_DONE = "snapshot_done"
    SNAPSHOT_FAILED = "snapshot_failed"
    SNAPSHOT_CANCELLED = "snapshot_cancelled"
    LUN_SUSPENDED = "lun_suspended"
    """By somebody else: it is theirs to resume."""
    SNAPSHOT_FILLING = "snapshot_filling"
    """A shadow copy's store has not much room any more."""
    SNAPSHOT_LOST = "snapshot_lost"
    RESYNC_VETOED = "resync_vetoed"
    """A restore was refused: nothing was begun."""
    RESYNC_STARTED = "resync_started"
    RESYNC_PROGRESS = "resync_progress"
    RESYNC_PAUSED = "resync_paused"
    RESYNC_RESUMED = "resync_resumed"
    RESYNC_UNDOING = "resync_undoing"
    """What was there before is put back."""
    RESYNC_DONE = "resync_done"
    RESYNC_FAILED = "resync_failed"
    RESYNC_CANCELLED = "resync_cancelled"
    OBJECTS_CHANGED = "objects_changed"
    """`data` has MS-DMRP's notifications in their order (blkrecov.dmrp.notify)."""


# Every one of them comes beside what people read.
FOR_PROGRAMS: Final = frozenset({EventKind.OBJECTS_CHANGED})
# What an operator has to see.
_TROUBLE: Final = frozenset(
    {
        EventKind.MEMBER_FAILED,
        EventKind.DRIVE_FAILED,
        EventKind.DRIVE_SET_ASIDE,
        EventKind.MOUNT_LEFT,
        EventKind.RECOVERY_FAILED,
        EventKind.RECOVERY_IMPOSSIBLE,
        EventKind.SCRUB_FAILED,
        EventKind.REPLACEMENT_FAILED,
        EventKind.REMOVAL_FAILED,
        EventKind.SNAPSHOT_FAILED,
        EventKind.SNAPSHOT_FILLING,
        EventKind.SNAPSHOT_LOST,
        EventKind.RESYNC_VETOED,
        EventKind.RESYNC_FAILED,
    }
)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. Facts that it has not are None."""

    time: float
    """Seconds since 1970."""
    kind: EventKind
    array: str
    message: str
    """A sentence for people: what happened, and why."""
    lun: str | None = None
    drive: str | None = None
    task: int | None = None
    percent: int | None = None
    remedy: str = ""
    """What to do about it; empty where nothing is to be done."""
    data: tuple[dict[str, Any], ...] | None = None
    """What programs are told, in order."""


class EventLog:
    """The log below a state directory (Settings.state)."""

    def __init__(self, state: Path, *, rotate_at: int = ROTATE_AT) -> None:
        self.path: Final = state / NAME
        self.older: Final = state / f"{NAME}.1"
        self._rotate_at = rotate_at
        self._told = False

    def tell(
        self,
        kind: EventKind,
        message: str,
        *,
        array: str,
        lun: str | None = None,
        drive: str | None = None,
        task: int | None = None,
        percent: int | None = None,
        remedy: str = "",
        data: tuple[dict[str, Any], ...] | None = None,
    ) -> Event:
        """Something happened just now: append it, and return it."""
        event = Event(
            time=time.time(),
            kind=kind,
            array=array,
            message=message,
            lun=lun,
            drive=drive,
            task=task,
            percent=percent,
            remedy=remedy,
            data=data,
        )
        self.append(event)
        return event

    def append(self, event: Event) -> None:
        """Give an event to `logging`, and to the file. Never raises for what the file system says."""
        level = logging.WARNING if event.kind in _TROUBLE else logging.INFO
        if event.kind in FOR_PROGRAMS:
            level = logging.DEBUG
        log.log(level, "%s", event.message, extra=_fields(event))
        try:
            self._write(_line(event))
        except OSError as error:
            # Once, and not with every step of a recovery's progress.
            if not self._told:
                log.warning("%s cannot be written: %s", self.path, error.strerror or error)
            self._told = True
        else:
            self._told = False

    def _write(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked() as descriptor:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # A full disk, or a power cut, has left half a line.
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if size + len(line) >= self._rotate_at:
                self.path.replace(self.older)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The present file, which nobody else writes to or moves away now."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if _still(descriptor, self.path):
                    yield descriptor
                    return
            finally:
                os.close(descriptor)

    def read(
        self, last: int | None = None, *, array: str | None = None, without: frozenset[EventKind] = frozenset()
    ) -> tuple[Event, ...]:
        """The events there are, oldest first; only the `last` of them, only those of one array, none of some kinds, if asked.

        Lines that are no events (cut short, or of a kind that a later version has) are passed over. Raises: AccessDenied.
        """
        with closing(_Tail(self)) as tail:
            return _last(_events(tail.lines(), array, without), last)

    def follow(
        self,
        last: int = 0,
        *,
        array: str | None = None,
        without: frozenset[EventKind] = frozenset(),
        pause: Callable[[float], bool | None] = time.sleep,
    ) -> Iterator[Event]:
        """The `last` events there are, then each new one as it comes, for as long as one likes.

        "New" counts from the first `next()` on. `pause(seconds)` is called when there is nothing more; an answer that is
        true ends it, so `threading.Event().wait` makes it one that can be ended from outside. Raises: AccessDenied.
        """
        with closing(_Tail(self)) as tail:
            yield from _last(_events(tail.lines(), array, without), last)
            while True:
                lines = tail.lines()
                yield from _events(lines, array, without)
                if not lines and pause(TICK_S):
                    return


class _Tail:
    """The lines of a log that grows, and is moved away now and then. It holds at most the file open in which it is."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._file: BinaryIO | None = None
        self._half = b""

    def lines(self) -> list[bytes]:
        """The whole lines that came since the last call; the first time, all there are."""
        lines = self._more()
        present = self._present()
        try:
            following = self._following(present)
            if following:
                # Nothing comes into a file that another follows: who writes makes sure of that (EventLog._locked).
                lines += self._more()
                self.close()
                *whole, self._file = following
                for file in whole:
                    lines += file
                lines += self._more()
        finally:
            for file in present:
                if file is not self._file:
                    file.close()
        return lines

    def _present(self) -> list[BinaryIO]:
        """The files of the log, the older first. The newer is opened first: should it be moved away between, it is both."""
        newer, older = _opened(self._log.path), _opened(self._log.older)
        if newer is not None and older is not None and os.path.sameopenfile(newer.fileno(), older.fileno()):
            newer.close()
            newer = None
        return [file for file in (older, newer) if file is not None]

    def _following(self, present: list[BinaryIO]) -> list[BinaryIO]:
        """Those that come after the file that we are in."""
        if self._file is None:
            return present
        ours = self._file.fileno()
        for index, file in enumerate(present):
            if os.path.sameopenfile(file.fileno(), ours):
                return present[index + 1 :]
        # Ours is gone: the log was moved away twice, or an operator has deleted it. What is older has been told.
        written_ns = os.fstat(ours).st_mtime_ns
        return [file for file in present if os.fstat(file.fileno()).st_mtime_ns >= written_ns]

    def _more(self) -> list[bytes]:
        if self._file is None:
            return []
        *whole, self._half = (self._half + self._file.read()).split(b"\n")
        return whole

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file, self._half = None, b""


def _opened(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise AccessDenied(f"{path} is root's") from error


def _still(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one under this path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _line(event: Event) -> bytes:
    # A path may hold bytes that are no UTF-8; Python keeps them as characters that JSON does not have.
    plain = {
        name: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
        for name, value in msgspec.structs.asdict(event).items()
    }
    return msgspec.json.encode(plain) + b"\n"


def _events(lines: Iterable[bytes], array: str | None, without: frozenset[EventKind]) -> Iterator[Event]:
    for line in lines:
        try:
            event = msgspec.json.decode(line, type=Event)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if array in (None, event.array) and event.kind not in without:
            yield event


def _last(events: Iterable[Event], last: int | None) -> tuple[Event, ...]:
    return tuple(deque(events, maxlen=last))


def _fields(event: Event) -> dict[str, object]:
    """The event's facts for a handler that knows structure; their names are none of logging's own."""
    facts = msgspec.structs.asdict(event)
    return {f"blkrecov_{name}": value for name, value in facts.items() if value not in (None, "")}
