"""The array as values: drives, extents, members, LUNs, and the document that holds them all.

The document is what the drives' metadata slots carry (docs/on-disk-format.md) and what the engine strives to make true in
the kernel. It holds what was decided and what must outlive a restart; what the kernel knows better (how far a resync is, which
leg is in sync) is observed, never stored.

Lengths and offsets on drives are sectors, as in the kernel's tables. Nothing in here touches the world.
"""

from enum import StrEnum
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from blkrecov.errors import MetadataCorrupt, NotSupported, ObjectDeleted, ObjectNotFound
from blkrecov.units import MIB, SECTOR, Bytes, Sectors, in_bytes

FORMAT: Final = 1
# Space on drives is given out in units of this size, so every member is aligned to whatever a drive below it likes.
UNIT: Final = Sectors(MIB // SECTOR)
# How many earlier commits a document names, so that a stale copy is told from the copy of another history.
HISTORY: Final = 64
# How many ended tasks and deleted objects are remembered.
REMEMBERED: Final = 64


class Layout(StrEnum):
    """How a LUN's data lies on its members. The values are the command line's words."""

    LINEAR = "linear"
    RAID0 = "raid0"
    RAID1 = "raid1"
    RAID4 = "raid4"
    RAID5 = "raid5"
    RAID6 = "raid6"
    RAID10 = "raid10"

    @property
    def fault_tolerant(self) -> bool:
        return self not in (Layout.LINEAR, Layout.RAID0)

    @property
    def minimum(self) -> int:
        """Fewest members. The kernel takes two for raid4 and raid5, but those are mirrors in disguise."""
        return _MINIMUM[self]

    @property
    def parity(self) -> int:
        """Members' worth of space that parity takes."""
        return {Layout.RAID4: 1, Layout.RAID5: 1, Layout.RAID6: 2}.get(self, 0)

    def data_members(self, members: int) -> int:
        """How many members' worth of space holds distinct data."""
        match self:
            case Layout.RAID1:
                return 1
            case Layout.RAID10:
                return members // 2
            case _:
                return members - self.parity

    def survives(self, members: int, lost: frozenset[int]) -> bool:
        """Whether all data is still there when the members with these indexes are not."""
        match self:
            case Layout.LINEAR | Layout.RAID0:
                return not lost
            case Layout.RAID1:
                return len(lost) < members
            case Layout.RAID10:
                # The near format with two copies: members 0 and 1 hold the same data, 2 and 3 the same, and so on.
                return not any({pair, pair + 1} <= lost for pair in range(0, members, 2))
            case _:
                return len(lost) <= self.parity

    def misses(self, members: int, lost: frozenset[int], gone: frozenset[int]) -> frozenset[int]:
        """Of members that go, beside those that are lost: the ones that miss writes, since a LUN is written to without them.

        With what it cannot do without, writes end. But not all of those to a raid10: its other pairs go on.
        """
        if self is Layout.RAID10:
            return frozenset(index for index in gone if index ^ 1 not in lost | gone)
        return gone if self.survives(members, lost | gone) else frozenset()


_MINIMUM: Final = {
    Layout.LINEAR: 1,
    Layout.RAID0: 2,
    Layout.RAID1: 2,
    Layout.RAID4: 3,
    Layout.RAID5: 3,
    Layout.RAID6: 4,
    Layout.RAID10: 4,
}


class DriveStatus(StrEnum):
    """VDS_DRIVE_STATUS, in lower case and without prefix."""

    UNKNOWN = "unknown"
    ONLINE = "online"
    NOT_READY = "not_ready"
    OFFLINE = "offline"
    """Present, but out of the array: it was away while LUNs went on without it."""
    FAILED = "failed"
    REMOVED = "removed"
    """Not found anywhere."""


class LunStatus(StrEnum):
    """VDS_LUN_STATUS."""

    UNKNOWN = "unknown"
    ONLINE = "online"
    NOT_READY = "not_ready"
    OFFLINE = "offline"
    FAILED = "failed"


class Health(StrEnum):
    """VDS_HEALTH, the values that a LUN may have."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    REBUILDING = "rebuilding"
    FAILING = "failing"
    FAILING_REDUNDANCY = "failing_redundancy"
    FAILED_REDUNDANCY = "failed_redundancy"
    FAILED_REDUNDANCY_FAILING = "failed_redundancy_failing"
    FAILED = "failed"


class MemberState(StrEnum):
    """What the document says of a member, which decides how its leg is loaded."""

    IN_SYNC = "in_sync"
    REBUILDING = "rebuilding"
    """Substituted for a lost member; the kernel's superblock knows how far its contents are regenerated."""
    RETURNING = "returning"
    """Has missed writes, and is back: the kernel is to take it back and to regenerate what it missed. Rebuilding when it has."""
    FAILED = "failed"
    """Has missed writes. Its leg is never shown to the kernel as readable again before it was regenerated, because
    dm-raid's superblock has no UUID and no clean flag: a stale leg would be accepted in silence."""


class Role(StrEnum):
    META = "meta"
    DATA = "data"


class Extent(msgspec.Struct, frozen=True):
    """A run of sectors on a drive."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


class Successor(msgspec.Struct, frozen=True):
    """Where a member is moving to while it serves: the kernel copies underneath it, so that redundancy never drops.

    `log` holds the copy's dirty log, on the drive that the member moves to. The UUID is the copy's: devices of an earlier one are
    never taken for its own.
    """

    uuid: UUID
    drive: UUID
    data: tuple[Extent, ...]
    meta: tuple[Extent, ...]
    log: tuple[Extent, ...]


class Member(msgspec.Struct, frozen=True):
    """One leg of a LUN. `meta` is empty where the layout has no superblock."""

    uuid: UUID
    drive: UUID
    state: MemberState
    data: tuple[Extent, ...]
    meta: tuple[Extent, ...] = ()
    successor: Successor | None = None

    @property
    def length(self) -> Sectors:
        return Sectors(sum(extent.length for extent in self.data))


class Shadow(msgspec.Struct, frozen=True):
    """What makes a LUN a shadow copy: whose contents it shows, and of when.

    With a chunk it is a differential one: its members hold the exceptions, the origin all else. Without, it is a plex, with
    contents of its own, and the origin need not exist any more.
    """

    origin: UUID
    taken: int = 0
    """In seconds since 1970; 0 until the kernel has it."""
    chunk: int = 0
    lost: str = ""
    """Why its contents are lost: an origin's write could not be recorded."""


class Restore(msgspec.Struct, frozen=True):
    """A LUN's contents being replaced by a shadow copy's. `uuid` is the copy's: no log is ever taken for another's.

    Until `length` is set the LUN is being made quiet; then its log is true, and the kernel copies.
    """

    uuid: UUID
    source: UUID
    length: int = 0
    region: int = 0
    parts: int = 0
    """How many mirrors share it, at most (changes.divide())."""
    todo: int = 0
    """Sectors to copy, in whole regions; the rest is equal already."""
    drive: UUID | None = None
    """The drive that holds the log."""
    log: tuple[Extent, ...] = ()
    blank: bool = False
    """The LUN read as zeros when it began."""
    written: bool = False
    """A copy before this one has written to the LUN."""
    held: bool = False
    """The copy is paused; its log knows how far it is."""
    comparing: bool = False
    """All is copied, and the kernel compares."""
    signature: str = ""
    """What the disk's signature is to be afterwards; empty for whatever the source has."""

    @property
    def begun(self) -> bool:
        """Whether the LUN's contents may be neither what they were nor what they are to be."""
        return self.written or self.length > 0


class Lun(msgspec.Struct, frozen=True):
    """A LUN as decided. `size` is what the host sees; the plex below may be larger, never smaller.

    Of a differential shadow copy the plex is the store of exceptions, of any size.
    """

    uuid: UUID
    name: str
    layout: Layout
    size: int
    members: tuple[Member, ...]
    chunk: int = 0
    region: int = 0
    exported: bool = True
    initialised: bool = False
    """The initial synchronisation has ended once: until then members may differ where nothing was ever written."""
    suspect: bool = False
    """The power was cut while a member was lost: where writes were in flight, the others may disagree. Repaired once whole."""
    mismatches: int | None = None
    """What the last scrub counted, in sectors; None before the first, and after a repair until the next."""
    scrubbed: int = 0
    """When the last scrub of all of it ended, in seconds since 1970; 0 before the first."""
    frozen: bool = False
    """The kernel is held back from rebuilding it: its recovery was cancelled or is paused, and the substitutes are kept."""
    shadow: Shadow | None = None
    restore: Restore | None = None
    incomplete: str = ""
    """Why its contents are not whole: not ready to its host until a restore has succeeded."""
    restored: int = 0
    """Of when its contents were that a restore put on it last, in seconds since 1970; 0 for a LUN that never was restored."""
    trusted: tuple[int, ...] = ()
    """The members that are to serve again after it had lost too many: their superblocks are made to agree, and it is loaded
    anew. Empty when it is."""
    forced: bool = False
    """Those have not all that was written, so no bitmap tells what others lack."""

    @property
    def differential(self) -> bool:
        """Whether it shows its origin's contents, and its own members hold the exceptions."""
        return self.shadow is not None and bool(self.shadow.chunk)

    @property
    def ready(self) -> bool:
        return not self.incomplete and self.restore is None

    @property
    def bytes(self) -> Bytes:
        return in_bytes(self.size)

    @property
    def lost(self) -> frozenset[int]:
        return frozenset(index for index, member in enumerate(self.members) if member.state is MemberState.FAILED)

    @property
    def rebuilding(self) -> frozenset[int]:
        """Members that are regenerated, those that return among them."""
        states = (MemberState.REBUILDING, MemberState.RETURNING)
        return frozenset(index for index, member in enumerate(self.members) if member.state in states)

    @property
    def returning(self) -> frozenset[int]:
        return frozenset(index for index, member in enumerate(self.members) if member.state is MemberState.RETURNING)

    @property
    def drives(self) -> frozenset[UUID]:
        """The drives that its members are on, or are moving to; and the one that has the log while it is restored."""
        moving = (member.successor.drive for member in self.members if member.successor is not None)
        log = self.restore.drive if self.restore is not None else None
        return frozenset((*(member.drive for member in self.members), *moving, *([log] if log else [])))

    def with_member(self, index: int, member: Member) -> "Lun":
        return msgspec.structs.replace(self, members=(*self.members[:index], member, *self.members[index + 1 :]))


class FaultKind(StrEnum):
    """How a drive misbehaves when it is asked to. The values are the command line's options."""

    AFTER = "after"
    """It works for `value` seconds, and fails all I/O from then on. The clock begins anew whenever its port is loaded: when the
    array is started, or the machine."""
    ERROR_RATE = "error_rate"
    """`value` percent of its blocks cannot be read until they are written (blkrecov.faults). They are all unreadable again when
    its port is loaded anew."""
    SLOW = "slow"
    """Each I/O takes `value` milliseconds longer."""
    DROP_WRITES = "drop_writes"
    """Writes are acknowledged and lost. `value` is 0."""


class Fault(msgspec.Struct, frozen=True):
    """A fault that was injected at a drive's port. What the array itself writes down on the drive goes past it."""

    kind: FaultKind
    value: int | float = 0

    @property
    def words(self) -> str:
        match self.kind:
            case FaultKind.AFTER:
                return f"fails after {self.value} s"
            case FaultKind.ERROR_RATE:
                return f"{self.value:g} % of its blocks are unreadable"
            case FaultKind.SLOW:
                return f"each I/O takes {self.value} ms longer"
            case FaultKind.DROP_WRITES:
                return "loses what is written to it"


class Drive(msgspec.Struct, frozen=True):
    """A drive as decided. `path` is where it was last found: a hint, the label on the drive is the truth."""

    uuid: UUID
    name: str
    path: str
    size: int
    data_start: int
    data_length: int
    status: DriveStatus = DriveStatus.ONLINE
    reason: str = ""
    """Why it is not online, for people."""
    hot_spare: bool = False
    failures: tuple[int, ...] = ()
    """When it failed or went away lately, in seconds since 1970, oldest first."""
    carried: int = 0
    """The last version of the document that it is known to have, when it failed or went away; 0 where that is not known."""
    failing: str = ""
    """Why it is set aside: it still serves what lies on it, and is given nothing more. Empty for a drive that is well."""
    fault: Fault | None = None
    """Injected, and there until the drive is reconnected; also while the drive has failed or is away."""

    @property
    def online(self) -> bool:
        return self.status is DriveStatus.ONLINE

    @property
    def drops_writes(self) -> bool:
        """Whether it may lack what was written to it, and no superblock or bitmap tells."""
        return self.fault is not None and self.fault.kind is FaultKind.DROP_WRITES


class TaskState(StrEnum):
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (TaskState.COMPLETED, TaskState.CANCELLED, TaskState.FAILED)


class TaskKind(StrEnum):
    RECOVER = "recover"
    SCRUB = "scrub"
    REPLACE = "replace"
    SNAPSHOT = "snapshot"
    """A plex, being filled."""
    RESYNC = "resync"
    RECONNECT = "reconnect"
    """A drive that came back. Its work is that of the recoveries that it has begun."""
    REMOVE = "remove"
    """A drive that leaves when all that is on it has moved. Its work is that of the replacements that it has begun."""


class Phase(StrEnum):
    """Where a task is. It decides what the next process does with it, after a crash too."""

    REBUILD = "rebuild"
    """The kernel regenerates substituted members, or resynchronises; when it has, members are in sync."""
    REPAIR = "repair"
    """The kernel compares all members and rewrites what differs."""
    CHECK = "check"
    """The kernel compares all members and counts."""
    VERIFY = "verify"
    """A check with a bound, after a recovery."""
    COPY = "copy"
    """The kernel copies members that move to another drive, underneath the RAID layer."""
    RESTORE = "restore"
    """The kernel copies shadow copies onto LUNs."""
    COMPARE = "compare"
    """The kernel compares what it has copied."""
    UNDO = "undo"
    """The kernel copies what was there before back onto LUNs."""


class Schedule(StrEnum):
    """How often the array scrubs its LUNs by itself."""

    OFF = "off"
    WEEKLY = "weekly"
    MONTHLY = "monthly"


class Pair(msgspec.Struct, frozen=True):
    """What of a restore goes where. `undo` is the shadow copy of the target that was taken before; `made` says that the
    target was made for it.
    """

    source: UUID
    target: UUID
    undo: UUID | None = None
    made: bool = False


class Task(msgspec.Struct, frozen=True):
    """A long operation. `percent` follows IVdsAsync: it never falls, is 0 after a failure, and 100 only at the very end."""

    id: int
    kind: TaskKind
    lun: UUID
    objects: tuple[str, ...]
    state: TaskState = TaskState.QUEUED
    phases: tuple[Phase, ...] = ()
    done: int = 0
    """How many of the phases have ended."""
    percent: int = 0
    code: str = "S_OK"
    message: str = ""
    remedy: str = ""
    bytes_kernel: int = 0
    bytes_process: int = 0
    boot: str = ""
    """The boot in which its present phase was begun: checks and repairs do not outlive the machine's memory."""
    spare: UUID | None = None
    """The drive that members go to: the one that was asked for, or was chosen for a replacement."""
    leaving: UUID | None = None
    """The drive that a replacement, or the recovery of a failing drive's member, moves members away from."""
    paused: bool = False
    mismatches: int = 0
    """What its check counted before it was paused, in sectors."""
    rate_min: int = 0
    """Bytes per second and member that it is given whatever else goes on; 0: the array's."""
    rate_max: int = 0
    """Bytes per second and member that it never exceeds; 0: the array's."""
    pairs: tuple[Pair, ...] = ()
    temporary: tuple[UUID, ...] = ()
    """Shadow copies that go when it ends."""
    base: int = 0
    """Sectors that the returning members' legs had been written in `boot` before: they are not the task's."""
    children: tuple[int, ...] = ()
    """The tasks that a reconnect or a removal waits for; its `lun` is the drive."""
    why: str = ""
    """What it does and why, for people, as told when it was begun."""

    @property
    def luns(self) -> frozenset[UUID]:
        """All that it works on."""
        pairs = (lun for pair in self.pairs for lun in (pair.source, pair.target))
        return frozenset((self.lun, *pairs, *self.temporary))


class Tombstone(msgspec.Struct, frozen=True):
    """An object that existed: asking for it is "deleted", which is not "never heard of"."""

    kind: str
    uuid: UUID
    name: str


class Document(msgspec.Struct, frozen=True):
    """All of an array that must outlive a restart."""

    array: UUID
    name: str
    sequence: int = 0
    commit: str = ""
    history: tuple[str, ...] = ()
    """The commits before this one, newest first, at most HISTORY of them."""
    running: str = ""
    """The boot in which LUNs were made usable and not stopped since; empty after a clean stop."""
    carriers: tuple[UUID, ...] = ()
    """The drives that this version of the document was written to."""
    drives: tuple[Drive, ...] = ()
    luns: tuple[Lun, ...] = ()
    tasks: tuple[Task, ...] = ()
    tombstones: tuple[Tombstone, ...] = ()
    next_task: int = 1
    auto_recover: bool | None = None
    """Whether failures are recovered from without being asked; None: where a hot spare is there for it."""
    scrub: Schedule = Schedule.OFF
    rate_min: int = 0
    """Bytes per second and member that a synchronisation is given whatever else goes on; 0: the kernel's own."""
    rate_max: int = 0
    """Bytes per second and member that a synchronisation never exceeds; 0: as fast as it can while nobody is disturbed."""
    format: int = FORMAT

    def drive(self, name: str) -> Drive:
        """The drive of this name or UUID. Raises ObjectNotFound or ObjectDeleted."""
        for drive in self.drives:
            if name in (drive.name, str(drive.uuid)):
                return drive
        raise self._absent("drive", name)

    def away(self, lun: Lun) -> frozenset[int]:
        """The members of a LUN whose drives are not online, by index."""
        return frozenset(index for index, member in enumerate(lun.members) if not self.drive_of(member.drive).online)

    def drive_of(self, uuid: UUID) -> Drive:
        return next(drive for drive in self.drives if drive.uuid == uuid)

    def lun(self, name: str) -> Lun:
        """The LUN of this name or UUID. Raises ObjectNotFound or ObjectDeleted."""
        for lun in self.luns:
            if name in (lun.name, str(lun.uuid)):
                return lun
        raise self._absent("lun", name)

    def lun_of(self, uuid: UUID) -> Lun:
        for lun in self.luns:
            if lun.uuid == uuid:
                return lun
        raise self._absent("lun", str(uuid))

    def _absent(self, kind: str, name: str) -> ObjectNotFound | ObjectDeleted:
        word = {"lun": "LUN"}.get(kind, kind)
        remedy = f"list what exists with: blkrecov {kind} list"
        if any(stone.kind == kind and name in (stone.name, str(stone.uuid)) for stone in self.tombstones):
            return ObjectDeleted(f"{word} {name!r} has been deleted", remedy=remedy)
        return ObjectNotFound(f"array {self.name!r} has no {word} {name!r}", remedy=remedy)

    def task(self, number: int) -> Task:
        for task in self.tasks:
            if task.id == number:
                return task
        raise ObjectNotFound(
            f"array {self.name!r} has no task {number}", remedy="list what there is with: blkrecov task list"
        )

    def task_on(self, lun: UUID) -> Task | None:
        """The task that is under way on a LUN: at most one."""
        return next((task for task in self.tasks if lun in task.luns and not task.state.ended), None)

    def shadows_of(self, lun: UUID) -> tuple[Lun, ...]:
        """The differential shadow copies of a LUN that have not lost their contents, oldest first."""
        return tuple(
            other
            for other in self.luns
            if other.differential and other.shadow is not None and other.shadow.origin == lun and not other.shadow.lost
        )

    def with_drive(self, drive: Drive) -> "Document":
        """With this drive added, or in the place of the one with its UUID."""
        return msgspec.structs.replace(self, drives=_placed(self.drives, drive))

    def with_lun(self, lun: Lun) -> "Document":
        return msgspec.structs.replace(self, luns=_placed(self.luns, lun))

    def with_task(self, task: Task) -> "Document":
        """With this task added or replaced; of the ended ones only the newest are remembered."""
        if task.id >= self.next_task:
            tasks = (*self.tasks, task)
        else:
            tasks = tuple(task if other.id == task.id else other for other in self.tasks)
        ended = [other.id for other in tasks if other.state.ended]
        forgotten = set(ended[:-REMEMBERED])
        tasks = tuple(other for other in tasks if other.id not in forgotten)
        return msgspec.structs.replace(self, tasks=tasks, next_task=max(self.next_task, task.id + 1))

    def without_lun(self, lun: Lun) -> "Document":
        luns = tuple(other for other in self.luns if other.uuid != lun.uuid)
        return self._buried(Tombstone("lun", lun.uuid, lun.name), luns=luns)

    def without_unmade(self, lun: Lun) -> "Document":
        """Without a LUN that never was one."""
        return msgspec.structs.replace(self, luns=tuple(other for other in self.luns if other.uuid != lun.uuid))

    def without_drive(self, drive: Drive) -> "Document":
        drives = tuple(other for other in self.drives if other.uuid != drive.uuid)
        return self._buried(Tombstone("drive", drive.uuid, drive.name), drives=drives)

    def forgetting(self, drive: Drive) -> "Document":
        """Without a drive that never was one."""
        return msgspec.structs.replace(self, drives=tuple(other for other in self.drives if other.uuid != drive.uuid))

    def _buried(
        self, stone: Tombstone, *, luns: tuple[Lun, ...] | None = None, drives: tuple[Drive, ...] | None = None
    ) -> "Document":
        return msgspec.structs.replace(
            self,
            luns=self.luns if luns is None else luns,
            drives=self.drives if drives is None else drives,
            tombstones=(*self.tombstones, stone)[-REMEMBERED:],
        )

    def after(self, commit: str, carriers: tuple[UUID, ...]) -> "Document":
        """The next version, about to be written under this commit name to these drives."""
        history = ((self.commit, *self.history) if self.commit else ())[:HISTORY]
        return msgspec.structs.replace(
            self, sequence=self.sequence + 1, commit=commit, history=history, carriers=carriers
        )

    def descends_from(self, other: "Document") -> bool:
        """Whether `other` is an earlier version of this document, as far as the remembered history tells (blkrecov.lineage).

        Two documents of one array that do not descend from each other were written by two machines, or by one that ran on
        one half of the drives and then on the other half: choosing between them would lose what one of them acknowledged.
        """
        if other.commit == self.commit:
            return True
        return self.has_forgotten(other) or other.commit in self.history

    def has_forgotten(self, other: "Document") -> bool:
        """Whether `other` is older than what the history names: whether it is an earlier version cannot be told by that."""
        return self.sequence - other.sequence > HISTORY


_Object = TypeVar("_Object", Drive, Lun)


def _placed(items: tuple[_Object, ...], item: _Object) -> tuple[_Object, ...]:
    """In the place of the item with the same UUID, else at the end."""
    after: list[_Object] = [item if other.uuid == item.uuid else other for other in items]
    if item not in after:
        after.append(item)
    return tuple(after)


def encode(document: Document) -> bytes:
    """The document as the bytes of a metadata slot's payload: JSON, so that a person with a hex dump can read it."""
    return msgspec.json.encode(document)


def decode(payload: bytes) -> Document:
    """Raises MetadataCorrupt for bytes that are no document, NotSupported for one of a later format."""
    try:
        version = msgspec.json.decode(payload, type=_Version).format
        if version != FORMAT:
            raise NotSupported(
                f"the array's configuration has format {version}, this blkrecov reads format {FORMAT}",
                remedy="use the version of blkrecov that wrote it, or a later one",
            )
        return msgspec.json.decode(payload, type=Document)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MetadataCorrupt(f"the array's configuration does not decode: {error}") from error


class _Version(msgspec.Struct):
    format: int
