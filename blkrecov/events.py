"""What happened, for people and programs: one line of JSON per event in `<state>/events.jsonl`, and each event to `logging`,
which gives it to the journal (blkrecov.journal).

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
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    LUN_SUSPENDED = "lun_suspended"
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


# What the journal and its catalog (blkrecov/data/blkrecov.catalog) know a kind by: 128 random bits, the same in every version.
MESSAGE_IDS: Final[Mapping[EventKind, str]] = {
    EventKind.MEMBER_FAILED: "d41d8e1f8e8f48c3bcbfae7f65a4769a",
    EventKind.LUN_SUSPENDED: "d70c3adee9fa4503a4c4c874c90d78c9",
    EventKind.DRIVE_FAILED: "f447471f77d348cfb5b00df2884304c2",
    EventKind.DRIVE_RETURNED: "b45cf80af6cd4c23a47aa9a3950c7f99",
    EventKind.DRIVE_SET_ASIDE: "161cb4791209462b92a34beb0466a618",
    EventKind.DRIVE_TRUSTED: "c66f041db13742cd979cec1b9cb0be12",
    EventKind.FAULT_INJECTED: "053af73e298e4c219279fc78da872744",
    EventKind.FAULT_REMOVED: "afb8b51a45f949fa9d27c057ad15ce5f",
    EventKind.MOUNTED_AGAIN: "42f81c72b61a457dbff588f20f86f2f3",
    EventKind.MOUNT_LEFT: "dfb84e3cd1334348b42dce6c72b27f50",
    EventKind.RECOVERY_QUEUED: "d83f8e8ca5d64895b524033556622b46",
    EventKind.RECOVERY_STARTED: "0d0d0fb1ac994cffb21740146e1594dd",
    EventKind.RECOVERY_PROGRESS: "8a9535e7f66a4b8c9a4911420fe24247",
    EventKind.RECOVERY_PAUSED: "63535f47fddc4007b705cd79853fecea",
    EventKind.RECOVERY_RESUMED: "6e65212aad594747a19028d22123b2ca",
    EventKind.RECOVERY_DONE: "ad37fe0d235745baa024cbabd97fc6a2",
    EventKind.RECOVERY_FAILED: "e04d2596b32641c9bb95499c205047e3",
    EventKind.RECOVERY_CANCELLED: "20ea1c43a8764b9182b7ffe1553c0e57",
    EventKind.RECOVERY_IMPOSSIBLE: "44ff7ccb9b0a447ab816f7eefbbb4348",
    EventKind.RECONNECT_STARTED: "53b64fb288e945f8bf095df9b4b33460",
    EventKind.RECONNECT_PROGRESS: "6e02b2aa458c4251bc08b602b8b76c97",
    EventKind.RECONNECT_DONE: "7c774503c1514a1abb93053f55117f4e",
    EventKind.RECONNECT_CANCELLED: "47bf14af42b64b08b610bacd077e3a3d",
    EventKind.REMOVAL_STARTED: "ee8b50926707482f899a2d1fe10b7d38",
    EventKind.REMOVAL_PROGRESS: "92b52e65eeec424995a283641d005745",
    EventKind.REMOVAL_DONE: "a001fcf2769d4fedba030d9c49d4589e",
    EventKind.REMOVAL_FAILED: "cd5a086539f44fc8b8a2c90a33246ebd",
    EventKind.REMOVAL_CANCELLED: "61cc51a5f5ad42e6a49cc59d5ae4236c",
    EventKind.SCRUB_STARTED: "dccff9a47ca141dd92ff9e4cf9fcd871",
    EventKind.SCRUB_PROGRESS: "1ad1954f0b7a4e6b940a30ed07698806",
    EventKind.SCRUB_PAUSED: "14812e861dd94716904a985ab3eb59f9",
    EventKind.SCRUB_RESUMED: "fb0ee4637c144e07b8e9081c381aa6e1",
    EventKind.SCRUB_DONE: "d199dd93cf304c9083ccd22e168a4496",
    EventKind.SCRUB_FAILED: "4674d7ce06054661ac7972b94666eb2f",
    EventKind.SCRUB_CANCELLED: "3c04ed04d6854af5876dbb9d02c4b9bb",
    EventKind.REPLACEMENT_QUEUED: "3d7f42ad0d854496a1581fa8760f6a93",
    EventKind.REPLACEMENT_STARTED: "516f79bb687441a5a31f2ceed41a522a",
    EventKind.REPLACEMENT_PROGRESS: "6485308c782e4eeaa1175a3e774937ae",
    EventKind.REPLACEMENT_PAUSED: "d540f58ad6a74201bbf38ff45842400a",
    EventKind.REPLACEMENT_RESUMED: "319b1adbe3104c4c99a6fc110598fb6a",
    EventKind.REPLACEMENT_DONE: "e76393f2337648f292b546d48de840c6",
    EventKind.REPLACEMENT_FAILED: "9a7b70f119144d3cb7d3268e6448791b",
    EventKind.REPLACEMENT_CANCELLED: "43a3ab5e7bc74638b04a55de87130b9c",
    EventKind.SNAPSHOT_STARTED: "c6d802b0597b4c31a99919436bf691b2",
    EventKind.SNAPSHOT_PROGRESS: "7a83cfb0b3d84ffeb9912dfd11fd8597",
    EventKind.SNAPSHOT_PAUSED: "50df2e747d9b49c8a31f532504ecc5f2",
    EventKind.SNAPSHOT_RESUMED: "e88c0ca2f7564de29c4a0c8fbe602b10",
    EventKind.SNAPSHOT_DONE: "b6528d9adc874dcbb00b88a42d0c78a8",
    EventKind.SNAPSHOT_FAILED: "83627fb9eb314c478f5bd8c548568b9a",
    EventKind.SNAPSHOT_CANCELLED: "02803cc65fc94ba5a337a8c07c21686e",
    EventKind.SNAPSHOT_FILLING: "fe06b717c4804052a79e8b932b761929",
    EventKind.SNAPSHOT_LOST: "de40f00e073543c9953ff4f5e94015a0",
    EventKind.RESYNC_VETOED: "f29b527c881a466b8ee73397e5f9f0c4",
    EventKind.RESYNC_STARTED: "1b95bba16fa9425eb33590c336e39a4e",
    EventKind.RESYNC_PROGRESS: "64d31bfec0694a1fa9ea6a6f35334cd0",
    EventKind.RESYNC_PAUSED: "7222951b24fc4b35ad2d40a86b6a1cea",
    EventKind.RESYNC_RESUMED: "086a91f40ca64187b5f4eb3531e9a097",
    EventKind.RESYNC_UNDOING: "6e3ceafd7cd24e6994a79fc6f40d0815",
    EventKind.RESYNC_DONE: "556d831ad8dd457196cc0059ff4cfeb1",
    EventKind.RESYNC_FAILED: "1314c5ebfd664d2288c2d9f0c6ed3d0d",
    EventKind.RESYNC_CANCELLED: "6652e38a5e704966bd25b199c1c14f65",
    EventKind.OBJECTS_CHANGED: "be5bb2c6d0234896a7a4addfbe5c1f91",
}
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


_FACTS: Final = ("kind", "array", "lun", "drive", "task", "percent", "code", "remedy")


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
    code: str | None = None
    """The result code's name, of what has ended or was refused."""
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
        code: str | None = None,
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
            code=code,
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
        after: Event | None = None,
        pause: Callable[[float], bool | None] = time.sleep,
    ) -> Iterator[Event]:
        """The `last` events there are, or those that came `after` one, then each new one as it comes, for as long as one likes.

        "New" counts from the first `next()` on. `pause(seconds)` is called when there is nothing more; an answer that is
        true ends it, so `threading.Event().wait` makes it one that can be ended from outside. Raises: AccessDenied.
        """
        with closing(_Tail(self)) as tail:
            events = _events(tail.lines(), array, without)
            yield from _last(events, last) if after is None else _since(events, after)
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


def _since(events: Iterable[Event], one: Event) -> tuple[Event, ...]:
    """Those after one; all if it is not among them, for then it has gone with an older file."""
    found: list[Event] = []
    for event in events:
        if event == one:
            found.clear()
        else:
            found.append(event)
    return tuple(found)


def _fields(event: Event) -> dict[str, object]:
    """The event's facts for a handler that knows structure; their names are none of logging's own."""
    facts = msgspec.structs.asdict(event)
    told = {f"blkrecov_{name}": facts[name] for name in _FACTS if facts[name] not in (None, "")}
    return {"message_id": MESSAGE_IDS[event.kind], **told}
