"""What a restore needs of the world: who holds a LUN, what differs, whose signature a disk has; logs and signatures written.

All that is read and written here is metadata: exception tables, logs, partition tables. The contents are moved by the kernel.
"""

import time
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import msgspec

from blkrecov import changes, resync, stack, tasks
from blkrecov.catalog import Discovered
from blkrecov.changes import Runs
from blkrecov.converge import converge
from blkrecov.dm import cow, mirror_log, names
from blkrecov.dm.status import SnapshotUsage
from blkrecov.drives import holes, loop, raw
from blkrecov.drives.store import DriveIoError
from blkrecov.engine import fresh_ids
from blkrecov.errors import (
    BlkrecovError,
    CannotRevertDiskId,
    NotEnoughSpace,
    ProviderFailure,
    ProviderVeto,
    RestoreCancelled,
    VolumeNotSupported,
)
from blkrecov.locks import Lock
from blkrecov.model import Document, Drive, Lun, MemberState, Phase, Task, TaskState
from blkrecov.page83 import lun_information, sysfs
from blkrecov.page83.export import can_discard
from blkrecov.page83.information import NO_SIGNATURE, LunInformation
from blkrecov.resync import Facts, Wish
from blkrecov.running import Running
from blkrecov.settings import Settings
from blkrecov.signature import Read, Signature, fresh, read_signature, rewritten
from blkrecov.steps import CreateDevice, Message
from blkrecov.units import KIB, Bytes, Sectors, format_size, in_bytes

# As long as Windows tries to get hold of a target (windows-semantics 5.7).
HOLD_PATIENCE_S: Final = 5.0
_HOLD_PAUSE_S: Final = 0.25
_PAGE: Final = 4 * KIB
# Logs that a restore begins before it is believed that there is no drive which would keep one.
MOST_LOGS: Final = 3
# Runs that a comparison is made of: each is a target of a table, twice.
MANY_SEGMENTS: Final = 2048
# A copy that is over sooner tells no quarters: each is a version of the document.
LONG_S: Final = 2.0


class Restoring(Running):
    """An open array that can say what a restore would do, and do what the kernel cannot."""

    def __init__(self, settings: Settings, found: Discovered, lock: Lock, owned: ExitStack) -> None:
        super().__init__(settings, found, lock, owned)
        self._logs_lost: dict[int, int] = {}
        self._seeded_s: dict[int, float] = {}

    @abstractmethod
    def _advanced(self, number: int) -> Task:
        """Do what is due for a task, by what was observed just now."""

    @abstractmethod
    def _note(self, *, settle: bool = True) -> bool:
        """Write down what was lost, and tell it. Whether there was anything."""

    def facts(self, wish: Wish, *, revert: bool, patience_s: float = HOLD_PATIENCE_S) -> Facts:
        """What is to be known of a pair before anything is done for it. Who holds the target has so long to let go.

        Raises: CannotRevertDiskId; DriveIoError; DeviceInUse for a LUN that somebody has suspended.
        """
        source, target = wish.source, wish.target
        for lun in (source, target):
            if lun is not None:
                self.refuse_held(lun)
        if not self._readable(source):
            return Facts()  # It will be refused for that.
        if target is None:
            return Facts(signature=self._wanted_signature(source, None, revert=revert))
        differs = self.differs(source, target)
        return Facts(
            holders=self._lasting_holders(target, patience_s),
            strangers=self._strangers(source, target),
            signature=self._wanted_signature(source, target, revert=revert),
            differs=differs,
            saves=self._saves(source, target, differs),
        )

    @property
    def blanking(self) -> frozenset[UUID]:
        """The drives whose space reads as zeros when it is discarded: files behind loop devices, which punch holes."""
        return frozenset(
            drive.uuid
            for drive in self.document.drives
            if self._file_of(drive) is not None and can_discard(self.observed.backings[drive.uuid].device)
        )

    def _file_of(self, drive: Drive) -> str | None:
        """The file behind a drive's loop device; none for a block device, and where the path leads to another file by now."""
        backing = self.observed.backings.get(drive.uuid)
        if backing is None or not Path(drive.path).is_file():
            return None
        attached = loop.find(drive.path)
        return drive.path if attached is not None and attached.path == backing.device else None

    def _lasting_holders(self, lun: Lun, patience_s: float) -> tuple[str, ...]:
        """Who has a LUN open, and does not let go in time."""
        deadline = time.monotonic() + patience_s
        while found := self.holders(lun):
            if time.monotonic() >= deadline:
                break
            time.sleep(_HOLD_PAUSE_S)
        return found

    def _strangers(self, source: Lun, target: Lun) -> tuple[str, ...]:
        """Partitions of a target that its source does not have: volumes that nobody has named. Known of SCSI disks only."""
        disks = [self.observed.exports.get(lun.uuid) for lun in (source, target)]
        if None in disks:
            return ()
        ours, theirs = (sysfs.partitions(disk.disk) for disk in disks if disk is not None)
        return tuple(name for name, place in theirs.items() if place not in ours.values())

    # What differs.

    def differs(self, source: Lun, target: Lun) -> Runs:
        """What of a target may differ from a shadow copy, in sectors. Asked again while the copy runs, it is no less.

        Raises: DriveIoError.
        """
        assert source.shadow is not None
        if source.differential and source.shadow.origin == target.uuid:
            return changes.from_chunks(self._exceptions(source), source.shadow.chunk, source.size)
        if target.restore is not None and target.restore.blank:
            return self._data(source)
        return changes.whole(source.size)

    def _exceptions(self, shadow: Lun) -> tuple[int, ...]:
        """The origin's chunks that a differential shadow copy has saved.

        Read from the store past every cache: the kernel writes an exception down before it lets the origin be written.
        """
        assert shadow.shadow is not None
        node = self._actor.path_of(stack.node(names.plex_name(self.document.name, shadow.name)))

        def read(offset: int, length: int) -> bytes:
            return raw.read(node, offset, length, self.counter)

        header = cow.parse_header(read(0, _PAGE))
        if header is None:
            return ()
        if not header.valid or header.chunk != shadow.shadow.chunk:
            raise ProviderFailure(f"the store of shadow copy {shadow.name!r} is not what it should be")
        usage = self.observed.store(shadow)
        if not isinstance(usage, SnapshotUsage):
            raise ProviderFailure(f"shadow copy {shadow.name!r} is not loaded")
        return cow.changed(read, header, usage.total)

    def _data(self, source: Lun) -> Runs:
        """What of a shadow copy may hold anything but zeros."""
        assert source.shadow is not None
        if not source.differential:
            return self._allocated(source, source.size)
        origin = self.document.lun_of(source.shadow.origin)
        saved = changes.from_chunks(self._exceptions(source), source.shadow.chunk, source.size)
        return changes.union(saved, self._allocated(origin, source.size))

    def _allocated(self, lun: Lun, length: int) -> Runs:
        """What of a LUN is allocated in its drives' files; all of it where they do not tell."""
        raid = self.observed.raid(lun)
        if not lun.initialised and (raid is None or not raid.in_sync):
            return changes.whole(length)  # Members may differ where one has a hole.
        found = {}
        for index, member in enumerate(lun.members):
            path = self._file_of(self.document.drive_of(member.drive))
            if member.state is MemberState.IN_SYNC and path is not None:
                found[index] = holes.data(path, member.data)
        return changes.data_of(lun, found, length)

    def _saves(self, source: Lun, target: Lun, differs: Runs) -> dict[UUID, int]:
        """How many chunks the stores of a target's shadow copies have too few for a copy."""
        lacking: dict[UUID, int] = {}
        for shadow in self.document.shadows_of(target.uuid):
            usage = self.observed.store(shadow)
            if not isinstance(usage, SnapshotUsage) or shadow.shadow is None:
                continue
            chunk = shadow.shadow.chunk
            region = resync.region(self.document, target, differs, source.size)
            written = changes.rounded(differs, max(region, chunk), shadow.size)
            kept = changes.from_chunks(self._exceptions(shadow), chunk, shadow.size)
            new = changes.total(changes.union(written, kept)) - changes.total(kept)
            lacking[shadow.uuid] = resync.lacking(shadow, usage, -(-new // chunk))
        return lacking

    # Logs.

    def seeded(self, lun: Lun) -> Lun:
        """The LUN with its copy about to begin: what differs is in the copy's log, on the drive.

        Raises: DriveIoError.
        """
        restore = lun.restore
        assert restore is not None
        assert restore.drive is not None
        source = self.document.lun_of(restore.source)
        runs = self.differs(source, lun)
        region = resync.region(self.document, lun, runs, source.size)
        port = self._actor.path_of(stack.port_node(self.document, restore.drive))
        todo = changes.total(changes.rounded(runs, region, source.size))
        count = changes.parts(-(-todo // region))
        while changes.is_too_fine(source.size, region, count):
            count += 1
        for number, part in enumerate(changes.divide(source.size, region, count)):
            log = mirror_log.seeded(part.regions, changes.dirty_regions(runs, part))
            where = restore.log[0].start + number * stack.COPY_LOG_LENGTH
            raw.write(port, in_bytes(Sectors(where)), log, self.counter)
        begun = msgspec.structs.replace(restore, length=source.size, region=region, parts=count, todo=todo)
        return msgspec.structs.replace(lun, restore=begun)

    # Comparing.

    def compare(self, lun: Lun) -> None:
        """Have the kernel compare what was copied, if it is not at it. Done twice it is asked once more.

        Raises: KernelRefused.
        """
        restore = lun.restore
        assert restore is not None
        source = self.document.lun_of(restore.source)
        runs = changes.rounded(self.differs(source, lun), restore.region, source.size)
        region = restore.region
        while len(runs) > MANY_SEGMENTS:
            region *= 2
            runs = changes.rounded(runs, region, source.size)
        if not runs:
            return
        for device in stack.comparison(self.document, lun, runs):
            if self._control.find(device.name) is None:
                self._actor.act(CreateDevice(device))
        self._actor.act(Message(names.layer_name(self.document.name, lun.name, "compare"), "check"))

    # Signatures.

    def signature(self, lun: Lun) -> Signature | None:
        """The disk signature in a LUN's contents. Raises: DriveIoError."""
        return read_signature(self._reader(lun), lun.bytes)

    def information(self, lun: Lun) -> LunInformation:
        """A LUN's VDS_LUN_INFORMATION. Raises: VolumeNotSupported for one that is no SCSI disk; DriveIoError."""
        exported = self.observed.exports.get(lun.uuid)
        if exported is None:
            raise VolumeNotSupported(
                f"LUN {lun.name!r} is no SCSI disk, so it has no page 83h to be found by",
                remedy="make LUNs without --no-export",
            )
        signature = self.signature(lun) if lun.ready and self._readable(lun) else None
        return lun_information.of_disk(exported.disk, signature.as_guid() if signature else NO_SIGNATURE)

    def _reader(self, lun: Lun) -> Read:
        node = self._actor.path_of(stack.below(self.document, lun))

        def read(offset: int, length: int) -> bytes:
            return raw.read(node, offset, length, self.counter)

        return read

    def _wanted_signature(self, source: Lun, target: Lun | None, *, revert: bool) -> str:
        """What the target's signature is to be, empty for what the source has.

        A target keeps its own; one that has none, or one of another kind, gets a new one, because the original may be there
        still, and the shadow copy is. Raises: CannotRevertDiskId where another LUN has the original's.
        """
        theirs = self.signature(source)
        if theirs is None:
            return ""
        if revert:
            for other in self.document.luns:
                mistaken = other.shadow is not None or (target is not None and other.uuid == target.uuid)
                if not mistaken and self._readable(other) and self.signature(other) == theirs:
                    raise CannotRevertDiskId(
                        f"LUN {other.name!r} has the signature {theirs} of the original, and no two may have one"
                    )
            return ""
        own = self.signature(target) if target is not None and self._readable(target) else None
        if own is not None and own.kind == theirs.kind:
            return str(own)
        return str(fresh(theirs.kind, uuid4()))

    def _readable(self, lun: Lun) -> bool:
        return self.observed.loaded(lun) and self.observed.reachable(self.document, lun)

    def sign(self, lun: Lun) -> None:
        """Give a target whose contents are copied the signature that it is to have. Done twice it changes nothing.

        Raises: CannotRevertDiskId where it cannot be written.
        """
        restore = lun.restore
        assert restore is not None
        if not restore.signature:
            return
        node = self._actor.path_of(stack.below(self.document, lun))
        try:
            wanted = Signature.parse(restore.signature)
            size = Bytes(in_bytes(Sectors(restore.length)))
            for write in rewritten(self._reader(lun), size, wanted):
                raw.write(node, write.offset, write.data, self.counter)
        except BlkrecovError as error:
            raise CannotRevertDiskId(
                f"LUN {lun.name!r} was restored, and cannot be given the signature {restore.signature}: {error.message}",
                remedy="restore it with --revert-identity, or onto another LUN",
            ) from error

    # The task, step by step.

    def _restore_started(self, task: Task) -> Task:
        self._tell("started", f"{task.kind.value} of {' '.join(task.objects)} has begun", task=task)
        return self._advanced(task.id)

    def _step_restore(self, task: Task) -> Task:
        """Shadow copies are put on LUNs: all of them end, or none does."""
        error = resync.trouble(self.document, self.observed, task)
        if error is not None:
            # A shadow copy that was lost may call itself good when it is loaded anew.
            self._note(settle=False)
            return self._turn_back(task, error)
        if task.paused:
            return task
        targets = resync.targets(self.document, task)
        if tasks.phase(task) is Phase.COMPARE:
            return self._step_compare(task, targets)
        unseeded = tuple(target for target in targets if not target.restore or not target.restore.length)
        if unseeded:
            return self._seed(task, unseeded)
        copies = {target.uuid: resync.copied(self.observed, target) for target in targets}
        logless = tuple(target for target in targets if copies[target.uuid].log_failed)
        if logless:
            return self._seed_anew(task, logless)
        if all(copy.complete for copy in copies.values()):
            return self._copied(task, targets)
        unmade = (target for target in targets if target.restore and not self.observed.copy(target.restore))
        stuck = next((self.trouble[target.uuid] for target in unmade if target.uuid in self.trouble), None)
        if stuck is not None:
            return self._veto(task, stuck)
        return self._told(self.progress(task.id)) if self._is_long(task) else task

    def _is_long(self, task: Task) -> bool:
        """Whether a copy takes so long that its quarters are worth the writing down."""
        return time.monotonic() - self._seeded_s.get(task.id, 0.0) > LONG_S

    def _put(self, document: Document, task: Task) -> Task:
        """Write a version down with the task in it, and make the kernel agree, by what was observed last."""
        self.store(self._accounted(document, task))
        self._run(converge(self.document, self.observed))
        return self.document.task(task.id)

    def _veto(self, task: Task, error: BlkrecovError) -> Task:
        """What something below us has said ends the restore, in the words that a provider has for it."""
        return self._turn_back(task, ProviderVeto(error.message, remedy=error.remedy))

    def _seed(self, task: Task, targets: Sequence[Lun]) -> Task:
        """The targets are quiet: write down what differs, and let the kernel copy it."""
        document = self.document
        for target in targets:
            try:
                document = document.with_lun(self.seeded(target))
            except DriveIoError:
                return self._seed_anew(task, (target,))
            except BlkrecovError as error:
                return self._veto(task, error)
        self._seeded_s[task.id] = time.monotonic()
        for target in targets:
            self.trouble.pop(target.uuid, None)
        return self._put(document, task)

    def _seed_anew(self, task: Task, targets: Sequence[Lun]) -> Task:
        """A copy's log cannot be written: begin with one on another drive. What is copied already is equal, and harmless."""
        self._logs_lost[task.id] = self._logs_lost.get(task.id, 0) + 1
        try:
            if self._logs_lost[task.id] > MOST_LOGS:
                raise NotEnoughSpace("no drive keeps the log of the copy")
            document = self.document
            for target in targets:
                document = resync.restarted(document, target, fresh_ids())
        except NotEnoughSpace as error:
            return self._veto(task, error)
        return self._put(document, task)

    def _copied(self, task: Task, targets: Sequence[Lun]) -> Task:
        try:
            self._act_on(resync.flushes(self.document, self.observed, task))
        except BlkrecovError as error:
            return self._veto(task, error)
        moved = sum(target.restore.todo for target in targets if target.restore)
        last = tasks.phase(task) is Phase.UNDO or task.done + 1 == len(task.phases)
        task = msgspec.structs.replace(task, bytes_kernel=task.bytes_kernel + in_bytes(Sectors(moved)))
        if last:
            return self._restored(task, targets)
        task = tasks.next_phase(tasks.progressed(task, 1.0))
        document = self.document
        for target in targets:
            assert target.restore is not None
            comparing = msgspec.structs.replace(target.restore, comparing=True)
            document = document.with_lun(msgspec.structs.replace(target, restore=comparing))
        return self._put(document, msgspec.structs.replace(task, boot=""))

    def _step_compare(self, task: Task, targets: Sequence[Lun]) -> Task:
        if not self._was_here(task):
            try:
                for target in targets:
                    self.compare(target)
            except BlkrecovError as refused:
                return self._veto(task, refused)
            self._begun(task.id)
            self.observe()
            return self.document.task(task.id)
        found = [resync.compared(self.observed, target) for target in targets]
        if any(each.failed for each in found):
            error = ProviderVeto(
                "what was copied could not be compared: a LUN cannot be read in places",
                remedy="see the kernel's log (journalctl -k); recover the LUNs whose drives have failed, then restore again",
            )
            return self._turn_back(task, error)
        if not all(each.complete for each in found):
            return self._told(self.progress(task.id))
        mismatch = sum(each.mismatch for each in found)
        if mismatch:
            error = ProviderVeto(
                f"what was copied differs from its source: {format_size(in_bytes(Sectors(mismatch)))}",
                remedy="check the drives of both LUNs (blkrecov scrub), then restore again",
            )
            return self._turn_back(task, error)
        regions = sum(-(-target.restore.todo // target.restore.region) for target in targets if target.restore)
        total = format_size(in_bytes(Sectors(sum(each.total for each in found))))
        message = f"verified: {regions} regions ({total}) compared, 0 mismatches"
        return self._restored(msgspec.structs.replace(task, message=message), targets)

    def _restored(self, task: Task, targets: Sequence[Lun]) -> Task:
        """All is copied. The targets get their signatures, then they are ready, all at once."""
        back = tasks.phase(task) is Phase.UNDO
        try:
            for target in targets:
                self.sign(target)
        except BlkrecovError as error:
            return self._turn_back(task, error)
        moved = format_size(Bytes(task.bytes_kernel))
        ended = tasks.gone_back(task) if back else tasks.completed(task, task.message or f"{moved} copied")
        ended = self._put(resync.finished(self.document, task), ended)
        about = f"{task.kind.value} of {' '.join(task.objects)}"
        if back:
            word = "cancelled" if ended.state is TaskState.CANCELLED else "failed"
            self._tell(word, f"{about}: {ended.message}", task=ended, remedy=ended.remedy)
        else:
            self._tell("done", f"{about} is done: {ended.message}", task=ended)
        return ended

    def _turn_back(self, task: Task, error: BlkrecovError) -> Task:
        """A restore cannot end: what was there before is put back, if a shadow copy of it was taken; else the targets say why."""
        about = f"{task.kind.value} of {' '.join(task.objects)}"
        with suppress(NotEnoughSpace):
            undone = resync.undone(self.document, task, error, fresh_ids())
            if undone is not None:
                self._tell("undoing", f"{about} goes back: {error.message}", task=task, remedy=error.remedy)
                return self._put(undone, undone.task(task.id))
        if tasks.phase(task) is Phase.UNDO:
            error = ProviderVeto(
                f"{task.message}; what was there before cannot be put back: {error.message}", remedy=task.remedy
            )
        cancelled = isinstance(error, RestoreCancelled)
        ended = tasks.cancelled(task) if cancelled else tasks.failed(task, error)
        # First the event: who is told the code finds it there.
        word = "cancelled" if cancelled else "failed"
        self._tell(word, f"{about}: {error.message}", task=ended, remedy=error.remedy)
        why = f"the {about} (task {task.id}) did not end: {error.message}"
        return self._put(resync.abandoned(self.document, task, why), ended)

    def _measured_restore(self, task: Task, phase: Phase) -> tuple[float, Bytes]:
        done = total = 0
        for target in resync.targets(self.document, task):
            each: resync.Copied | resync.Compared
            each = (resync.compared if phase is Phase.COMPARE else resync.copied)(self.observed, target)
            done += each.done
            total += each.total
        return (done / total if total else 0.0), in_bytes(Sectors(total))

    def _restore_is_ripe(self, task: Task) -> bool:
        if resync.trouble(self.document, self.observed, task) is not None:
            return True
        targets = resync.targets(self.document, task)
        if tasks.phase(task) is Phase.COMPARE:
            compared = [resync.compared(self.observed, target) for target in targets]
            if not self._was_here(task) or all(each.complete or each.failed for each in compared):
                return True
        else:
            copies = [resync.copied(self.observed, target) for target in targets]
            unseeded = any(target.restore and not target.restore.length for target in targets)
            if unseeded or all(copy.complete for copy in copies) or any(copy.log_failed for copy in copies):
                return True
        return self._is_long(task) and tasks.quarter(self.progress(task.id).task) > task.percent

    def _hold(self, task: Task, *, held: bool) -> Task:
        """Take a restore's copies away, or make them again: their logs know what is left to do."""
        self.observe()  # It was paused for however long, and a process that is long open has looked before that.
        document = self.document
        for target in resync.targets(document, task):
            assert target.restore is not None
            restore = msgspec.structs.replace(target.restore, held=held)
            document = document.with_lun(msgspec.structs.replace(target, restore=restore))
        task = self._put(document, task)
        what, word = ("paused", "is paused") if held else ("resumed", "goes on")
        self._tell(what, f"{task.kind.value} of {' '.join(task.objects)} {word}", task=task)
        return task
