"""The array's long operations: recoveries, scrubs and replacements as tasks that are started, watched, waited for and stopped.

A task's work is the kernel's. This module starts it, and looks: `advance` carries a task over the ends of its phases, gives
tasks that wait their turn, and substitutes one more member where one was lost meanwhile. It needs no memory of its own for
that: what a task is at stands in the document, how far it is the kernel tells. So whoever looks next goes on with it: a
waiting command, the monitor, or the next process that opens the array after a crash.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Final
from uuid import UUID

import msgspec

from blkrecov import (
    catalog,
    family,
    flapping,
    mounting,
    pressure,
    reconnect,
    recover,
    remove,
    replace,
    schedule,
    scrub,
    shadows,
    tasks,
    turns,
)
from blkrecov.blockdev import plain
from blkrecov.catalog import Discovered
from blkrecov.condition import fills_up, state_of, suspended
from blkrecov.converge import Group, converge, converge_ports, take_note
from blkrecov.dm import counters, names
from blkrecov.dm.events import EventWatcher
from blkrecov.dm.speed import SpeedLimits
from blkrecov.dm.status import LegHealth, RaidStatus, SnapshotUsage, SyncAction
from blkrecov.drives.scan import Found
from blkrecov.engine import failed_on, fresh_ids
from blkrecov.errors import (
    AnotherCallInProgress,
    BlkrecovError,
    Cancelled,
    CancelTooLate,
    DriveNotOnline,
    NotEnoughDrives,
    NotEnoughSpace,
    ObjectFailed,
    ProviderFailure,
    TimedOut,
    resources,
)
from blkrecov.governor import MD_MINIMUM, Governor
from blkrecov.locks import Lock
from blkrecov.model import (
    Document,
    Drive,
    DriveStatus,
    Fault,
    Lun,
    LunStatus,
    MemberState,
    Phase,
    Task,
    TaskKind,
    TaskState,
)
from blkrecov.progress import Meter
from blkrecov.proposal import Proposal, plex_message
from blkrecov.restoring import Restoring
from blkrecov.resync import COPIES
from blkrecov.running import Progress
from blkrecov.settings import Settings
from blkrecov.shadows import ShadowRequest
from blkrecov.turns import Standstill
from blkrecov.units import GIB, Bytes, Sectors, format_size, in_bytes, sectors

log = logging.getLogger(__name__)

TICK_S: Final = 0.25
EVENT_PATIENCE_S: Final = 1.0
# What of each member the check at the end of a recovery reads: enough to meet whatever is wrong everywhere, and over in
# seconds.
VERIFIED: Final = Bytes(GIB)
# What each phase asks of the plex; the kernel goes about a rebuild by itself.
_WORDS: Final = {Phase.REPAIR: "repair", Phase.CHECK: "check", Phase.VERIFY: "check"}
_CHECKS: Final = (Phase.CHECK, Phase.VERIFY)


class Array(Restoring):
    """An open array whose long operations can be started, watched, waited for and stopped. Made by Array.opened()."""

    def __init__(self, settings: Settings, found: Discovered, lock: Lock, resources: ExitStack) -> None:
        super().__init__(settings, found, lock, resources)
        self._meters: dict[tuple[int, int], Meter] = {}
        self._impossible: dict[UUID, str] = {}
        self._scrub_tried: dict[UUID, float] = {}
        self._filling: set[UUID] = set()
        self._held: set[UUID] = set()
        self._speed = SpeedLimits()
        self._governor = Governor()

    def assemble(self) -> None:
        """Bring up the array, and go on with the tasks that an earlier process began."""
        before = self.document
        if tasks.rates(before) != (0, 0):
            self._set_limits()
        super().assemble()
        self._tell_losses(before)
        if before.running == catalog.boot_id():  # Else the machine is starting, and mounts by itself.
            self._mount_again(reconnect.failed(before))
        self._lift_limits()
        self.objects()
        # Children first: what the kernel has forgotten is asked for again, before a parent looks whether they have ended.
        for earlier in sorted(self.document.tasks, key=lambda task: task.kind in family.PARENTS):
            for task in self.document.tasks:
                if task.id == earlier.id and not task.state.ended:
                    self._take_up(task)

    def carry_out(self, proposal: Proposal) -> None:
        # Before the kernel begins: what is to be slow may be over at once without limits.
        rated = tasks.rates(proposal.document) != tasks.rates(self.document)
        if rated:
            self._set_limits(proposal.document)
        try:
            super().carry_out(proposal)
        finally:
            if rated:
                self._set_limits()
        self._lift_limits()

    def fail_drive(self, name: str) -> Drive:
        before = self.document
        drive = super().fail_drive(name)
        self._tell_losses(before)
        return drive

    def inject_fault(self, name: str, fault: Fault) -> Drive:
        before = self.document
        drive = super().inject_fault(name, fault)
        self._tell_losses(before)
        return drive

    def stop(self) -> None:
        super().stop()
        self._speed.restore()

    # Proposals: pure decisions, after the gates.

    def propose_recover(
        self, name: str, spare: str | None, *, rate_min: int | None = None, rate_max: int | None = None
    ) -> tuple[Proposal, Task]:
        """IVdsLun::Recover. Errors come in the order of the specification's precedence.

        Raises: InvalidArgument for rates that contradict each other; NotInitialized, CacheCorrupt, ObjectDeleted, ObjectNotFound,
                ObjectFailed, InvalidOperation, AnotherCallInProgress; NotEnoughDrives, NotEnoughSpace, InvalidArgument for a
                spare that cannot serve; IdentityMismatch; OutOfResources wherever it shows.
        """
        tasks.refuse_rates(rate_min, rate_max)
        with resources():
            self.refuse_mistaken()
            lun = self.document.lun(name)
            drive = self.document.drive(spare) if spare else None
            usable = self.without_stalled(lun.drives | ({drive.uuid} if drive else frozenset()))
            proposal, task = recover.propose(usable, self.observed, lun, drive, fresh_ids())
            proposal = self.as_they_are(proposal)
            if task.state.ended and lun.uuid in self.trouble:
                raise self.trouble[lun.uuid]  # No member is lost, but the LUN could not be brought up.
            self.verify(proposal.document.lun_of(lun.uuid))
            return _rated(proposal, task, rate_min, rate_max)

    def propose_scrub(self, name: str, *, repair: bool) -> tuple[Proposal, Task]:
        with resources():
            self.refuse_mistaken()
            lun = self.document.lun(name)
            proposal = scrub.propose(self.document, lun, self.observed.raid(lun), repair=repair)
            self.verify(lun)
            return proposal

    def propose_replace(self, name: str, old: str, new: str | None) -> tuple[Proposal, Task]:
        """Move what a LUN has on one drive to another (IVdsSubSystem::ReplaceDrive, LUN by LUN).

        Raises: what replace.propose() does, after NotInitialized, CacheCorrupt, ObjectDeleted and ObjectNotFound.
        """
        with resources():
            self.refuse_mistaken()
            lun, leaving = self.document.lun(name), self.document.drive(old)
            onto = self.document.drive(new) if new else None
            proposal, task = replace.propose(self.document, self.observed, lun, leaving, onto, fresh_ids())
            self.verify(proposal.document.lun_of(lun.uuid))
            return proposal, task

    def propose_shadows(self, requests: Sequence[ShadowRequest]) -> tuple[Proposal, Task | None]:
        """Shadow copies of one moment. The task is that of filling plexes, None where there is none to fill.

        Raises: what shadows.propose() does, after NotInitialized, CacheCorrupt; IdentityMismatch.
        """
        with resources():
            self.refuse_mistaken()
            proposal, task = shadows.propose(self.document, self.observed, requests, fresh_ids(), self.blanking)
            for request in requests:
                self.refuse_held(self.document.lun(request.origin))
                self.verify(self.document.lun(request.origin))
            return proposal, task

    def reconnect(self, proposal: Proposal, task: Task, found: Found) -> Task:
        """IVolumeClient::ReConnectDisk, as proposed just now. The task goes on until all is regenerated."""
        document = proposal.document
        for number in task.children:
            child = document.task(number)
            count, _ = self._counted(Phase.REBUILD, document.lun_of(child.lun))
            document = document.with_task(msgspec.structs.replace(child, base=count, boot=catalog.boot_id()))
        before = self.document
        # By what the kernel had given up as well: all of a LUN's drives may be online.
        failed = reconnect.failed(before) | {
            lun.uuid for lun in before.luns if state_of(before, self.observed, lun)[0] is LunStatus.FAILED
        }
        with resources():
            self.reconnect_drive(dataclasses.replace(proposal, document=document).explaining(task), found)
            self._tell_losses(before)
            self._note()
        if said := self._mount_again(failed):
            task = self.document.task(task.id)
            task = msgspec.structs.replace(task, message="; ".join((task.message, *said)))
            self.store(self._accounted(self.document, task))
        self._tell("started", proposal.why, task=task, drive=task.objects[0])
        self._set_limits()
        task = self.advance(task.id)
        self.objects(task)
        return task

    def propose_remove(self, name: str) -> tuple[Proposal, Task, tuple[Proposal, ...]]:
        """A drive leaves the array, after all that is on it was moved: (what is wanted now, its task, how each LUN moves).

        Raises: what remove.propose() does, after NotInitialized, CacheCorrupt, ObjectDeleted and ObjectNotFound;
                IdentityMismatch.
        """
        with resources():
            self.refuse_mistaken()
            drive = self.document.drive(name)
            proposal, task, moves = remove.propose(self.document, self.observed, drive, fresh_ids())
            for move in moves:
                assert move.lun is not None
                self.verify(move.document.lun_of(move.lun))
            return proposal, task, moves

    def plan_remove(self, proposal: Proposal, task: Task, moves: tuple[Proposal, ...]) -> tuple[str, ...]:
        """All that a removal comes to: each LUN put onto its mirrors, one after the other, and the end."""
        drive = self.document.drive_of(task.lun)
        lines: list[str] = []
        if moves:
            lines += (line for step in self.plan(proposal) for line in step.lines())
            for move in moves:
                lines += (f"{move.why}:", *(line for step in self.plan(move) for line in step.lines()))
            lines.append("when the kernel has copied all of it:")
            proposal = remove.afterwards(self.document, drive, moves)
        lines += (line for step in self.plan(proposal) for line in step.lines())
        return (*lines, f"detach {drive.path} from its loop device", f"take the label off {drive.path}")

    def remove(self, proposal: Proposal, task: Task) -> Task:
        """As proposed just now. The task goes on until all has moved, and the drive has left."""
        with resources():
            if task.state.ended:
                self._left(proposal, task)
                return task
            self.carry_out(proposal)
        self._tell("started", proposal.why, task=task, drive=task.objects[0])
        self._give_turns()
        return self.advance(task.id)

    def luns_on(self, drive: str) -> tuple[str, ...]:
        """The LUNs that have a member on a drive, the most endangered first."""
        uuid = self.document.drive(drive).uuid
        found = [lun for lun in self.document.luns if any(member.drive == uuid for member in lun.members)]
        found.sort(key=lambda lun: turns.endangered(self.document, self.observed, lun))
        return tuple(lun.name for lun in found)

    # Tasks.

    def start(self, proposal: Proposal, task: Task, *, holding: AbstractContextManager[object] | None = None) -> Task:
        """Start a task's work in the kernel. It goes on without us.

        `holding` ends when the proposal is carried out: what follows may be the task's end already.
        """
        with resources(), holding or nullcontext():
            self.carry_out(proposal.explaining(task))
        return self._started(task)

    def _started(self, task: Task) -> Task:
        task = self.document.task(task.id)
        if task.kind in COPIES:
            return self._restore_started(task)
        lun = self.document.lun_of(task.lun)
        if task.state is TaskState.QUEUED:
            self._tell("queued", f"{task.kind.value} of LUN {lun.name} waits for its turn", task=task)
        elif not task.state.ended:
            onto = f" onto drive {', '.join(task.objects[1:])}" if task.objects[1:] else ""
            self._set_limits()
            self._tell("started", f"{task.kind.value} of LUN {lun.name}{onto} has begun", task=task)
            if tasks.phase(task) in _WORDS:
                self._begun(task.id)
        return self.document.task(task.id)

    def progress(self, number: int) -> Progress:
        """How far a task is, from the kernel's own counters. Reads no drive and writes nothing."""
        task = self.document.task(number)
        if task.kind in family.PARENTS and not task.state.ended:
            return self._progress_of_children(task)
        phase = tasks.phase(task)
        if task.state is not TaskState.IN_PROGRESS or task.paused or phase is None:
            return Progress(task, None, 1.0 if task.state is TaskState.COMPLETED else 0.0, Bytes(0), Bytes(0))
        lun = self.document.lun_of(task.lun)
        self._look()
        fraction, total = self._measured(task, phase, lun)
        task = tasks.progressed(task, min(fraction, 0.999))
        return Progress(task, phase, min(fraction, 0.999), Bytes(int(fraction * total)), total)

    def _progress_of_children(self, task: Task) -> Progress:
        """All of them in the percentage; what is done of how much, of the first that the kernel is at."""
        looks = [self.progress(child.id) for child in family.under_way(self.document, task)]
        document = self.document
        for look in looks:
            document = document.with_task(look.task)
        done = min(family.percent(document, task), 0.999)
        first = next((look for look in looks if look.phase is not None), None)
        if first is None:
            return Progress(tasks.progressed(task, done), tasks.phase(task), done, Bytes(0), Bytes(0))
        return Progress(tasks.progressed(task, done), first.phase, first.fraction, first.done, first.total)

    def _measured(self, task: Task, phase: Phase, lun: Lun) -> tuple[float, Bytes]:
        """(how much of the present phase is done, what there is to be done)."""
        if task.kind in COPIES:
            return self._measured_restore(task, phase)
        if phase is Phase.COPY:
            copy = replace.copied(self.document, self.observed, lun)
            return (copy.done / copy.total if copy.total else 0.0), in_bytes(copy.total)
        raid = self.observed.raid(lun)
        count, total = self._counted(phase, lun)
        meter = self._meters.get((task.id, task.done))
        if raid is None or not total:
            return (meter.fraction if meter else 0.0), in_bytes(total)
        ratio = raid.done / raid.total if raid.total and raid.action is not SyncAction.IDLE else 0.0
        if meter is None:
            meter = Meter.begun(ratio, count, total if phase is Phase.REBUILD and lun.rebuilding else 0)
        meter = meter.moved(ratio, count, total)
        self._meters[task.id, task.done] = meter
        if phase is Phase.VERIFY:
            bound = _bound(lun)
            return min((count - meter.count) / bound, 1.0), in_bytes(bound)
        return meter.fraction, in_bytes(total)

    def _counted(self, phase: Phase, lun: Lun) -> tuple[int, Sectors]:
        """What the members' devices say: (sectors moved so far, sectors that the whole phase moves)."""
        rebuilding = [lun.members[index] for index in sorted(lun.rebuilding)]
        chosen = rebuilding if phase is Phase.REBUILD and rebuilding else lun.members
        count = counters.sectors_written if chosen is rebuilding else counters.sectors_read
        uuids = (names.dm_uuid(member.uuid, "rimage") for member in chosen)
        numbers = [self.observed.devices[uuid].number for uuid in uuids if uuid in self.observed.devices]
        return sum(count(number) for number in numbers), Sectors(sum(member.length for member in chosen))

    def advance(self, number: int) -> Task:
        """Look at a task's work in the kernel, and do what is due: note an end, begin the next phase, finish the task.

        A task that waits gets its turn as soon as nobody needs its drives.
        """
        self.observe()
        return self._advanced(number)

    def _advanced(self, number: int) -> Task:
        """The same, from what was observed just now."""
        task = self.document.task(number)
        while not task.state.ended:
            following = self._step(task)
            if following == task:
                break
            task = following
            if task.kind not in COPIES:
                self.observe()  # A restore's steps leave what they have seen last.
        if task.state.ended:
            self.objects(task)
            self._give_turns()
        return self.document.task(number)

    def _give_turns(self) -> None:
        """A task has ended: others may have waited for its drives, and the machine's limits may have been its wish."""
        self._set_limits()
        if any(task.state is TaskState.QUEUED for task in self.document.tasks):
            for waiting in turns.queued(self.document, self.observe()):
                self._try_turn(waiting)

    def _try_turn(self, task: Task) -> Task:
        lun = self.document.lun_of(task.lun)
        try:
            if task.kind is TaskKind.REPLACE:
                proposal, begun = replace.begin(self.document, self.observed, lun, task, fresh_ids())
            else:
                proposal, begun = recover.begin(self.document, self.observed, lun, task, fresh_ids())
            if turns.must_wait(self.document, proposal.document.lun_of(lun.uuid)):
                return task
            self.verify(proposal.document.lun_of(lun.uuid))
            self.carry_out(proposal)
        except AnotherCallInProgress:
            return task  # The kernel synchronises what is to move, as after a power cut.
        except BlkrecovError as error:
            return self._fail(task, error)
        return self._started(begun)

    def _step(self, task: Task) -> Task:
        """One thing that is due, or the task as it was."""
        if task.state is TaskState.QUEUED:
            return self._try_turn(task)
        if task.kind in family.PARENTS:
            return self._step_parent(task)
        if task.kind in COPIES:
            return self._step_restore(task)
        lun = self.document.lun_of(task.lun)
        if not self.observed.survives(self.document, lun):
            error = ObjectFailed(f"LUN {lun.name!r} lost too many members during its {task.kind.value}")
            return self._fail(task, error)
        phase = tasks.phase(task)
        if phase is None:
            return self._finish(task, lun)
        if task.paused:
            return task
        if phase is Phase.COPY:
            return self._step_copy(task, lun)
        if self.observed.lost(self.document, lun):
            before = self.document
            following = self._substitute_more(task, lun)
            if self.document is not before:
                return following
        raid = self.observed.raid(lun)
        if raid is None:
            return task
        if raid.action is not SyncAction.IDLE or raid.done != raid.total:
            return self._under_way(task, lun, phase, raid)
        if phase is Phase.REBUILD and LegHealth.OUT_OF_SYNC in raid.legs:
            return task  # The kernel is about to begin.
        return self._phase_ended(task, lun, phase, raid)

    def _step_parent(self, task: Task) -> Task:
        for child in family.under_way(self.document, task):
            self.advance(child.id)
        if family.under_way(self.document, task):
            return self._told(self.progress(task.id))
        return self._end_removal(task) if task.kind is TaskKind.REMOVE else self._end_reconnect(task)

    def _end_removal(self, task: Task) -> Task:
        try:
            self._left(*remove.departed(self.document, task))
        except BlkrecovError as error:
            if self.document.task(task.id).state.ended:
                raise  # The drive has left, and its file is given back by whoever opens the array next.
            ended = tasks.failed(family.accounted(self.document, task), error)
            self.store(self._accounted(self.document, ended))
            self._tell("failed", error.message, task=ended, drive=task.objects[0], remedy=error.remedy)
        return self.document.task(task.id)

    def _left(self, proposal: Proposal, task: Task) -> None:
        self.take_out(proposal, self.document.drive_of(task.lun))
        self._tell("done", f"{proposal.why}: {task.message}", task=task, drive=task.objects[0])

    def _end_reconnect(self, task: Task) -> Task:
        ended = reconnect.ended(self.document, task)
        assert ended is not None, f"a child of task {task.id} is under way"
        self.store(self._accounted(self.document, ended))
        self._tell("done", f"drive {task.objects[0]}: {ended.message}", task=ended, drive=task.objects[0])
        return self.document.task(task.id)

    def _under_way(self, task: Task, lun: Lun, phase: Phase, raid: RaidStatus) -> Task:
        """While the kernel works: tell the quarters, and end a check that has seen enough."""
        progress = self.progress(task.id)
        if phase is Phase.VERIFY and progress.fraction >= 0.999 and raid.action is SyncAction.CHECK:
            self._stop_check(lun)
            return task
        return self._told(progress)

    def _stop_check(self, lun: Lun) -> None:
        # "idle" stops a check; from Linux 6.9 on it does so and answers EINVAL (drivers/md/dm-raid.c, raid_message()).
        with suppress(BlkrecovError):
            self._actor.act(plex_message(self.document, lun, "idle"))

    def _phase_ended(self, task: Task, lun: Lun, phase: Phase, raid: RaidStatus) -> Task:
        count, total = self._counted(phase, lun)
        if phase is Phase.REBUILD:
            moved = count - (task.base if self._was_here(task) else 0) if lun.rebuilding else 0
            task = msgspec.structs.replace(task, base=0, message=f"{format_size(in_bytes(Sectors(moved)))} regenerated")
            lun = recover.rebuilt(lun)
            # With a repair still due the LUN is not known to be right yet.
            lun = msgspec.structs.replace(lun, initialised=Phase.REPAIR not in task.phases)
        elif phase in _CHECKS:
            whole = phase is Phase.CHECK
            moved = total if whole else _bound(lun)
            lun = scrub.counted(lun, task, raid) if whole or raid.mismatch else lun
            if whole:
                lun = msgspec.structs.replace(lun, scrubbed=int(time.time()))
            task = msgspec.structs.replace(task, message=_compared(lun, Sectors(moved), raid, phase))
        else:
            moved = 0
            lun = scrub.repaired(lun)
        task = msgspec.structs.replace(task, bytes_kernel=task.bytes_kernel + in_bytes(Sectors(moved)))
        task = tasks.next_phase(tasks.progressed(task, 1.0))
        if tasks.phase(task) is Phase.VERIFY and lun.lost:
            task = tasks.next_phase(task)  # Nothing to compare with yet: there are members left to recover.
        # The kernel forgets what it was asked for when the machine stops, so the task says in which boot that was.
        self.store(self._accounted(self.document.with_lun(lun), msgspec.structs.replace(task, boot="", mismatches=0)))
        self._ask(task, lun)
        return self.document.task(task.id)

    def _ask(self, task: Task, lun: Lun) -> None:
        """Have the kernel do what a task's present phase is, if it is one that has to be asked for."""
        word = _WORDS.get(tasks.phase(task) or Phase.REBUILD)
        if word is not None:
            self._actor.act(plex_message(self.document, lun, word))
            self._begun(task.id)

    def _step_copy(self, task: Task, lun: Lun) -> Task:
        """A member moves underneath its LUN. What cannot be read from its old place is regenerated on its new one."""
        copy = replace.copied(self.document, self.observed, lun)
        if copy.complete:
            try:
                self._act_on(replace.flushes(self.document, lun))
            except BlkrecovError as refused:
                return self._fail(task, refused)  # The new drive does not keep what it was given.
            task = msgspec.structs.replace(task, bytes_kernel=task.bytes_kernel + in_bytes(copy.total))
            task = tasks.next_phase(tasks.progressed(task, 1.0))
            self.store(self._accounted(replace.finished(self.document, lun), msgspec.structs.replace(task, boot="")))
            self._run(converge(self.document, self.observe()))
            self._ask(task, lun)
            return self.document.task(task.id)
        if copy.destination_failed or copy.log_failed:
            error = DriveNotOnline(
                f"drive {task.objects[-1]} failed while LUN {lun.name!r} moved there; the LUN is where it was",
                remedy="choose another drive",
            )
            return self._fail(task, error)
        if copy.source_failed:
            return self._regenerate(task, lun)
        return self._told(self.progress(task.id))

    def _regenerate(self, task: Task, lun: Lun) -> Task:
        """What is on the leaving drive cannot be copied: it is given up, and regenerated from the others where it was to go."""
        name = task.objects[1]
        leaving = {index for index, member in enumerate(lun.members) if member.drive == task.leaving}
        unusable = self.observed.lost(self.document, lun) | lun.rebuilding | leaving
        if not lun.layout.survives(len(lun.members), unusable):
            error = ObjectFailed(
                f"LUN {lun.name!r} cannot be copied from drive {name} as a whole, and there is nothing to regenerate it from",
                remedy="what can be read is there still: save it, then restore the LUN from a backup",
            )
            return self._fail(task, error)
        document = replace.abandoned(self.document, lun)
        lun = document.lun_of(lun.uuid)
        for index in leaving:
            lun = lun.with_member(index, msgspec.structs.replace(lun.members[index], state=MemberState.FAILED))
        self.store(self._accounted(document.with_lun(lun), task))
        self._run(converge(self.document, self.observe()))
        message = f"drive {name} could not be read as a whole: LUN {lun.name} is regenerated from its other members"
        self._tell("member_failed", message, lun=lun.name, drive=name)
        return self._substitute_more(self.document.task(task.id), lun)

    def _substitute_more(self, task: Task, lun: Lun) -> Task:
        """A member was lost during a task. A recovery gets it a substitute too, where there is one; everything else ends."""
        self._note()
        lun = self.document.lun_of(lun.uuid)
        if task.kind is TaskKind.SCRUB:
            return self._fail(task, _lost_meanwhile(self.document, lun, task))
        try:
            proposal, following = recover.begin(self.document, self.observe(), lun, task, fresh_ids())
            if proposal.document.lun_of(lun.uuid) == lun:
                return self.document.task(task.id)  # There is no drive for it: the others go on.
            self.verify(proposal.document.lun_of(lun.uuid))
            self.carry_out(proposal)
        except (NotEnoughDrives, NotEnoughSpace) as error:
            if lun.rebuilding:
                return self.document.task(task.id)  # The others go on.
            return self._fail(task, error)
        except BlkrecovError as error:
            return self._fail(task, error)
        if following.state.ended:
            return self.document.task(task.id)
        return self._started(following)

    def _finish(self, task: Task, lun: Lun) -> Task:
        if lun.lost and (task.kind is TaskKind.RECOVER or Phase.REBUILD in task.phases):
            return self._substitute_more(task, lun)
        message = task.message
        if lun.mismatches and task.kind is not TaskKind.SCRUB:
            message += f"; put that right with: blkrecov scrub {lun.name} --repair"
        self.store(self._accounted(self.document, tasks.completed(task, message)))
        self._run(converge(self.document, self.observe()))
        task = self.document.task(task.id)
        self._tell("done", f"{task.kind.value} of LUN {lun.name} is done: {message}", task=task)
        return task

    def _fail(self, task: Task, error: BlkrecovError) -> Task:
        noted = take_note(self.document, self.observed, unclean=False)
        noted = replace.abandoned(noted, noted.lun_of(task.lun))
        lun = noted.lun_of(task.lun)
        noted = noted.with_lun(msgspec.structs.replace(lun, frozen=lun.frozen and bool(lun.rebuilding)))
        self.store(self._accounted(noted, tasks.failed(task, error)))
        self._run(converge(self.document, self.observe()))
        task = self.document.task(task.id)
        self._tell("failed", error.message, task=task, remedy=error.remedy)
        return task

    def cancel(self, number: int) -> Task:
        """Stop a task. A LUN whose rebuild is cancelled stays as degraded as it was, and a later Recover goes on from there:
        the substitute stays, and is kept up to date as far as it is rebuilt, for md keeps writing to it.

        Raises: CancelTooLate for a task that has ended, or restored the redundancy; Cancelled for one that is that already.
        """
        task = self.advance(number)
        stopped = tasks.cancelled(task)
        if task.kind in family.PARENTS:
            for child in family.under_way(self.document, task):
                with suppress(Cancelled, CancelTooLate):
                    self.cancel(child.id)
            stopped = family.accounted(self.document, stopped)
            self.store(self._accounted(self.document, stopped))
            self.objects(stopped)
            stays = "stays in the array, its removal" if task.kind is TaskKind.REMOVE else "stays online, its reconnect"
            self._tell("cancelled", f"drive {task.objects[0]} {stays} was cancelled", task=stopped)
            return self.document.task(number)
        if task.kind in COPIES:
            self._turn_back(task, tasks.cancellation(task))
            # Else nobody would begin to put back what was there before until the array is opened again.
            return self.advance(number)
        phase = tasks.phase(task)
        lun = self.document.lun_of(task.lun)
        document = self.document
        if task.state is TaskState.IN_PROGRESS:
            if phase is Phase.REBUILD:
                # What the kernel would do without a task as well, it goes on with.
                document = document.with_lun(msgspec.structs.replace(lun, frozen=bool(lun.rebuilding)))
            elif phase is Phase.COPY:
                document = replace.abandoned(document, lun)
            elif phase in _WORDS and not task.paused:
                self._stop_check(lun)
        self.store(self._accounted(document, stopped))
        self._run(converge(self.document, self.observe()))
        self.objects(stopped)
        self._tell("cancelled", f"{task.kind.value} of LUN {lun.name} was cancelled", task=stopped)
        self._give_turns()
        return self.document.task(number)

    def pause(self, number: int) -> Task:
        """Hold a task up until resume(), over restarts too. A rebuild keeps its place; a check goes on where it was as long as
        the machine runs, and begins anew after a restart, because dm-raid keeps a check's place in memory only.

        Raises: InvalidOperation.
        """
        self.advance(number)
        task = tasks.paused(self.progress(number).task)
        if task.kind in COPIES:
            return self._hold(task, held=True)
        lun = self.document.lun_of(task.lun)
        document = self.document
        phase = tasks.phase(task)
        if phase is Phase.REBUILD:
            document = document.with_lun(msgspec.structs.replace(lun, frozen=True))
        elif phase in _WORDS:
            self._stop_check(lun)
            raid = self.observe().raid(lun)
            task = msgspec.structs.replace(task, mismatches=task.mismatches + (raid.mismatch if raid else 0))
        self.store(self._accounted(document, task))
        self._run(converge(self.document, self.observe()))
        self._tell("paused", f"{task.kind.value} of LUN {lun.name} is paused", task=task)
        return self.document.task(number)

    def resume(self, number: int) -> Task:
        """Raises: InvalidOperation for a task that is not paused."""
        task = tasks.resumed(self.document.task(number))
        if task.kind in COPIES:
            return self._hold(task, held=False)
        if not self._was_here(task):
            task = msgspec.structs.replace(task, mismatches=0)  # A check begins anew, and counts anew.
        lun = self.document.lun_of(task.lun)
        self.store(self._accounted(self.document.with_lun(msgspec.structs.replace(lun, frozen=False)), task))
        self._run(converge(self.document, self.observe()))
        self._ask(task, lun)
        self._tell("resumed", f"{task.kind.value} of LUN {lun.name} goes on", task=task)
        return self.document.task(number)

    def wait(
        self, number: int, *, on_progress: Callable[[Progress], None] | None = None, timeout_s: float | None = None
    ) -> Task:
        """Wait for a task's end, without holding the lock. Ends as soon as the kernel tells of the end, which it does by event.

        Looks after the array's other tasks meanwhile: one of them may be what this one waits for.

        Raises: TimedOut; the task goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        task = self.advance(number)
        self.tell_objects()
        standstill = Standstill()
        with EventWatcher() as events:
            while not task.state.ended:
                events.changed()
                with self.unlocked():
                    if on_progress is not None:
                        on_progress(self.progress(number))
                    ripe = self.ripe()
                    self.govern()
                    if standstill.seen(ripe, self.document.sequence) or not ripe:
                        events.wait(TICK_S if on_progress or ripe else EVENT_PATIENCE_S)
                if ripe:
                    self.catch_up()
                    self.advance_all()
                    self.tell_objects()
                    task = self.document.task(number)
                if deadline is not None and not task.state.ended and time.monotonic() >= deadline:
                    raise TimedOut(
                        f"task {number} has not ended within {timeout_s:g} s; it goes on",
                        remedy=f"wait for it with: blkrecov task wait {number}",
                    )
        if on_progress is not None:
            on_progress(self.progress(number))
        return task

    def ripe(self) -> bool:
        """Whether something is due for a task: the kernel has come to the end of its work one way or another, a quarter has
        passed, or another process has changed the array. Needs no lock, and changes nothing.
        """
        if self.outdated():
            return True
        self._look()
        return any(self._is_ripe(task) for task in self.document.tasks if not task.state.ended)

    def _is_ripe(self, task: Task) -> bool:
        if task.state is TaskState.QUEUED:
            return not turns.must_wait(self.document, self.document.lun_of(task.lun))
        if task.paused:
            return False
        if task.kind in family.PARENTS:
            ended = not family.under_way(self.document, task)
            return ended or tasks.quarter(self.progress(task.id).task) > task.percent
        if task.kind in COPIES:
            return self._restore_is_ripe(task)
        lun, phase = self.document.lun_of(task.lun), tasks.phase(task)
        if phase is Phase.COPY:
            copy = replace.copied(self.document, self.observed, lun)
            if copy.complete or copy.failed or self.observed.failed_legs(lun) - lun.lost:
                return True
            return tasks.quarter(self.progress(task.id).task) > task.percent
        raid = self.observed.raid(lun)
        if phase is None or raid is None or set(raid.lost) - lun.lost:
            return True
        if raid.action is SyncAction.IDLE and raid.done == raid.total:
            return True
        progress = self.progress(task.id)
        enough = phase is Phase.VERIFY and progress.fraction >= 0.999
        return enough or tasks.quarter(progress.task) > task.percent

    def advance_all(self) -> None:
        self.observe()
        self._note()
        for task in self.document.tasks:
            if not task.state.ended:
                self.advance(task.id)

    def _take_up(self, task: Task) -> None:
        """A task that an earlier process began: the kernel may have ended it, or may have to be asked again."""
        if task.kind in COPIES or task.kind in family.PARENTS:
            self.advance(task.id)
            return
        suspect = self.document.lun_of(task.lun).suspect
        if suspect and tasks.phase(task) is Phase.REBUILD and Phase.REPAIR not in task.phases:
            # The power was cut meanwhile: whole again is not right again. Planned before a percentage is shown.
            task = msgspec.structs.replace(task, phases=(Phase.REBUILD, Phase.REPAIR, Phase.VERIFY))
            self.store(self._accounted(self.document, task))
        if task.state is TaskState.IN_PROGRESS and not task.paused:
            lun = self.document.lun_of(task.lun)
            raid = self.observed.raid(lun)
            word = _WORDS.get(tasks.phase(task) or Phase.REBUILD)
            if word is not None and raid is not None and not self._was_here(task):
                # A check does not survive a restart of the machine; it is asked for again from its start.
                self.document = self.document.with_task(msgspec.structs.replace(task, mismatches=0))
                if raid.action is SyncAction.IDLE:
                    self._actor.act(plex_message(self.document, lun, word))
                    self.observe()
                self._begun(task.id)
        self.advance(task.id)

    # How fast.

    def set_rates(self, number: int, minimum: int | None, maximum: int | None) -> Task:
        """Change a task's rates while it runs, in bytes per second and member; 0 is the array's, None leaves one as it is.

        Raises: InvalidArgument, InvalidOperation for a task that has ended.
        """
        self.store(self._accounted(self.document, tasks.rated(self.document.task(number), minimum, maximum)))
        self._set_limits()
        return self.progress(number).task

    def govern(self) -> None:
        """Look who else uses the drives of what is synchronised, and let the kernel's limits follow. Needs no lock.

        To be called while tasks are under way, as often as one likes: samples that are too close are not compared.
        """
        # What copies is no business of md's.
        running = {task.lun for task in self.document.tasks if not task.state.ended and task.kind not in COPIES}
        if not running:
            self._governor = Governor()
            return
        syncing = {lun.uuid for lun in self.document.luns if _is_at_work(self.observed.raid(lun))}
        sample = pressure.sample(self.document, self.observed, running | syncing)
        self._governor = self._governed(self.document).after(sample)
        self._set_limits()

    def _governed(self, document: Document) -> Governor:
        lowest, highest = tasks.rates(document)
        usual = self._speed.usual()
        minimum = usual.minimum if usual else MD_MINIMUM
        return dataclasses.replace(self._governor, rate_min=lowest, rate_max=highest, usual_minimum=minimum)

    def _lift_limits(self) -> None:
        """md's stock ceiling holds nothing up. Where limits are ours already, somebody governs by them."""
        if self._speed.read() == self._speed.usual():
            self._set_limits()

    def _set_limits(self, document: Document | None = None) -> None:
        """For the tasks of the array as it is, or as it is about to be."""
        document = document or self.document
        if any(lun.layout.fault_tolerant for lun in document.luns):
            try:
                self._speed.apply(self._governed(document).limits)
            except ProviderFailure as error:
                log.info("%s", error.message)  # As in a container: then md's own limits hold.

    # Looking after the array.

    def attend(self, now: float | None = None, *, suspects: frozenset[UUID] = frozenset()) -> None:
        """Do all that is due: note what has failed, carry tasks on, recover and scrub by itself as far as that is wanted.

        Suspects are drives that the kernel's log has told of.
        """
        now = time.time() if now is None else now
        self._note_returns()
        before = self.document
        self._look_at_drives(suspects)
        self.observe()
        # Nothing is done about it yet: a recovery that begins at once changes the same tables.
        noted = self._note(settle=False, before=before)
        if noted:
            # Devices are looked at one after the other: a port may have failed after it was looked at.
            ports = converge_ports(self.document, self.observe())
            self._run(tuple(Group(None, steps) for steps in ports.values()))
        self._recover_by_itself()
        if noted:
            self._run(converge(self.document, self.observe()))
        self.advance_all()
        self._scrub_by_itself(int(now))
        self._tell_filling()
        self._tell_held()
        self.tell_objects()

    def _note(self, *, settle: bool = True, before: Document | None = None) -> bool:
        """Write down what was lost, before it is done without; and tell it. Whether there was anything.

        `before` is the document as it was before the drives were looked at.
        """
        before = before or self.document
        noted = take_note(self.document, self.observed, unclean=False)
        if self._look_at_drives(failed_on(self.document, noted)):
            noted = take_note(self.document, self.observe(), unclean=False)
        noted = flapping.noted(before, noted, int(time.time()))
        if noted == before:
            return False
        self.store(noted)
        if settle:
            self._run(converge(self.document, self.observed))
        self._tell_losses(before)
        return True

    def _tell_losses(self, before: Document) -> None:
        """What was well in an earlier version of the document, and is not now; and the other way round."""
        known = {drive.uuid: drive for drive in before.drives}
        for drive in self.document.drives:
            earlier = known.get(drive.uuid, drive)
            if earlier.online and not drive.online:
                message = f"drive {drive.name} is {drive.status.value}: {drive.reason}"
                remedy = f"mend it and bring it back with: blkrecov drive reconnect {drive.name}"
                self._tell("drive_failed", message, drive=drive.name, remedy=remedy)
            if drive.online and earlier.status in (DriveStatus.FAILED, DriveStatus.REMOVED, DriveStatus.OFFLINE):
                self._tell("drive_returned", f"drive {drive.name} is back", drive=drive.name)
            if drive.fault is not None and earlier.fault is None:
                self._tell("fault_injected", f"drive {drive.name}: {drive.fault.words}", drive=drive.name)
            if drive.fault is None and earlier.fault is not None:
                message = f"drive {drive.name} is without its fault: {earlier.fault.words}"
                self._tell("fault_removed", message, drive=drive.name)
            if drive.failing and not earlier.failing:
                message = f"drive {drive.name} is set aside: {drive.failing}"
                remedy = f"replace it, or trust it again with: blkrecov drive trust {drive.name}"
                self._tell("drive_set_aside", message, drive=drive.name, remedy=remedy)
        lost_before = {lun.uuid for lun in before.luns if lun.shadow is not None and lun.shadow.lost}
        for lun in self.document.luns:
            if lun.shadow is not None and lun.shadow.lost and lun.uuid not in lost_before:
                message = f"shadow copy {lun.name} has lost its contents: {lun.shadow.lost}"
                remedy = f"delete it with: blkrecov snapshot delete {lun.name}; give the next one a larger --store"
                self._tell("snapshot_lost", message, lun=lun.name, remedy=remedy)
        lost = {lun.uuid: lun.lost for lun in before.luns}
        for lun in self.document.luns:
            for index in sorted(lun.lost - lost.get(lun.uuid, lun.lost)):
                name = self.document.drive_of(lun.members[index].drive).name
                message = f"LUN {lun.name} lost member {index} on drive {name}"
                self._tell(
                    "member_failed", message, lun=lun.name, drive=name, remedy=f"run: blkrecov recover {lun.name}"
                )

    def _mount_again(self, failed: frozenset[UUID]) -> list[str]:
        """The file systems on those of some LUNs that had failed which are online now: what was done.

        For that the lock is held, half a minute at most.
        """
        said: list[str] = []
        deadline = time.monotonic() + mounting.PATIENCE_S
        for lun in self.document.luns:
            shown = self.shown(lun) if lun.uuid in failed else None
            if shown is None or state_of(self.document, self.observed, lun)[0] is not LunStatus.ONLINE:
                continue
            if time.monotonic() >= deadline:
                log.warning("what was mounted from LUN %s is left: there was no time", lun.name)
                continue
            try:
                for found in mounting.bring_back(shown, deadline - time.monotonic()):
                    words = "is mounted again" if found.outcome is mounting.Outcome.AGAIN else "is of no use yet"
                    said.append(plain(f"{found.path} ({found.fstype}) of LUN {lun.name} {words}: {found.why}"))
                    self._tell(found.outcome, said[-1], lun=lun.name, remedy=plain(found.remedy))
            except (BlkrecovError, OSError) as error:
                log.warning("what was mounted from LUN %s could not be looked after: %s", lun.name, error)
        return said

    def _tell_filling(self) -> None:
        """A store that fills up is told once, while there is time to give it more room."""
        for lun in self.document.luns:
            usage = self.observed.store(lun)
            if not isinstance(usage, SnapshotUsage):
                continue
            if not fills_up(self.observed, lun):
                self._filling.discard(lun.uuid)
            elif lun.uuid not in self._filling:
                self._filling.add(lun.uuid)
                percent = 100 * usage.allocated // usage.total
                size = in_bytes(Sectors(2 * usage.total))
                message = f"the store of shadow copy {lun.name} is {percent} % full; when it overflows the copy is lost"
                remedy = f"give it more room: blkrecov snapshot extend {lun.name} --store {size}"
                self._tell("snapshot_filling", message, lun=lun.name, remedy=remedy)

    def _tell_held(self) -> None:
        """A LUN that somebody else has suspended is told once."""
        for lun in self.document.luns:
            live = self.observed.holding(lun)
            if live is None:
                self._held.discard(lun.uuid)
            elif lun.uuid not in self._held:
                self._held.add(lun.uuid)
                error = suspended(lun, live)
                self._tell("lun_suspended", error.message, lun=lun.name, remedy=error.remedy)

    def _recover_by_itself(self) -> None:
        wanted = self.document.auto_recover
        if wanted is None:
            wanted = any(drive.hot_spare and drive.online for drive in self.document.drives)
        if not wanted:
            return
        degraded = [
            lun
            for lun in self.document.luns
            if lun.layout.fault_tolerant
            and (lun.lost or lun.rebuilding)
            and not lun.frozen
            and self.document.task_on(lun.uuid) is None
        ]
        for lun in sorted(degraded, key=lambda lun: turns.endangered(self.document, self.observed, lun)):
            try:
                proposal, task = self.propose_recover(lun.name, None)
                self.start(proposal, task)
            except BlkrecovError as error:
                self._tell_impossible(lun, error)
            else:
                self._impossible.pop(lun.uuid, None)

    def _tell_impossible(self, lun: Lun, error: BlkrecovError) -> None:
        """Once for each reason, not each time that we look."""
        if self._impossible.get(lun.uuid) != error.message:
            self._impossible[lun.uuid] = error.message
            message = f"LUN {lun.name} cannot be recovered: {error.message}"
            self._tell("recovery_impossible", message, lun=lun.name, code=error.code.name, remedy=error.remedy)

    def _scrub_by_itself(self, now: int) -> None:
        """One LUN at a time: scrubs that share drives slow each other down, and nobody waits for them."""
        if any(not task.state.ended for task in self.document.tasks):
            return
        for lun in schedule.due(self.document, now):
            if now - self._scrub_tried.get(lun.uuid, 0.0) < schedule.DAY:
                continue  # It was cancelled, or could not be done: a day is soon enough to try again.
            self._scrub_tried[lun.uuid] = now
            try:
                proposal, task = self.propose_scrub(lun.name, repair=False)
                self.start(proposal, task)
            except BlkrecovError as error:
                log.info("LUN %s is due for a scrub, which has to wait: %s", lun.name, error.message)
            else:
                return


def _rated(proposal: Proposal, task: Task, minimum: int | None, maximum: int | None) -> tuple[Proposal, Task]:
    """A proposal whose task has rates of its own, if any are asked for."""
    if task.state.ended:
        return proposal, task
    task = tasks.rated(task, minimum, maximum)
    return dataclasses.replace(proposal, document=proposal.document.with_task(task)), task


def _bound(lun: Lun) -> Sectors:
    """What the check after a recovery reads, of all members together."""
    return Sectors(sum(min(member.length, sectors(VERIFIED)) for member in lun.members))


def _is_at_work(raid: RaidStatus | None) -> bool:
    return raid is not None and raid.action is not SyncAction.IDLE


def _compared(lun: Lun, moved: Sectors, raid: RaidStatus, phase: Phase) -> str:
    """What a check has found, for people."""
    if phase is Phase.CHECK:
        return f"{lun.mismatches} mismatches"
    each = Bytes(in_bytes(moved) // len(lun.members))
    return f"verified: {format_size(each)} of each member compared, {int(raid.mismatch)} mismatches"


def _lost_meanwhile(document: Document, lun: Lun, task: Task) -> DriveNotOnline:
    lost = sorted(lun.lost)
    drives = ", ".join(document.drive_of(lun.members[index].drive).name for index in lost)
    return DriveNotOnline(
        f"LUN {lun.name!r} lost member {', '.join(map(str, lost))} (drive {drives}) during its {task.kind.value}",
        remedy=f"run: blkrecov recover {lun.name}",
    )
