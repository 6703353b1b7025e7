"""Recover (IVdsLun::Recover): what a degraded LUN needs, and what is wanted then. Pure.

Three recoveries, chosen by what is wrong:

    substitution of a spare      a member is lost: another drive gets its place, the kernel regenerates its contents; or its drive
                                 is failing and can be read still: then it is copied underneath (blkrecov.replace)
    mirror resynchronisation     members are there and not in sync: the kernel is at it, or is asked for it
    parity regeneration          a scrub counted mismatches, or power was cut while a member was lost: the kernel repairs

A recovery is a task with phases, each of them work that the kernel does by itself and goes on with after a crash:
substitute, REBUILD until in sync, then REPAIR where members may still disagree, then VERIFY. The extents of the lost member
are free as soon as the substitute has its place: from then on nothing refers to them, and the drive they lie on has failed.

A member that is lost while its LUN is being recovered is one more to substitute: `begin` is asked again, for the same task.
As many members are substituted as there are drives for, for each of them makes the LUN safer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import msgspec

from blkrecov import geometry, replace, tasks, turns
from blkrecov.condition import endangered, is_syncing
from blkrecov.errors import InvalidArgument, InvalidOperation, NotEnoughDrives, NotEnoughSpace, ObjectFailed
from blkrecov.model import Document, Drive, Lun, MemberState, Phase, Task, TaskKind, TaskState
from blkrecov.observed import Observed
from blkrecov.proposal import Proposal, plex_message, zeroed
from blkrecov.provision import refuse_busy


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a LUN. `held`: substitutes whose rebuild was cancelled, and can go on from where it was. `failing`:
    drives that are set aside, and have a member of it that is good still.
    """

    lost: frozenset[int]
    held: bool
    syncing: bool
    disagree: bool
    failing: tuple[Drive, ...]

    @property
    def whole(self) -> bool:
        return not (self.lost or self.held or self.syncing or self.disagree)


def examine(document: Document, observed: Observed, lun: Lun) -> Finding:
    """Raises: ObjectFailed, then InvalidOperation. What can be done about the one comes before what the other never can."""
    lost = observed.lost(document, lun)
    if not observed.survives(document, lun):
        raise ObjectFailed(
            f"LUN {lun.name!r} has lost members {', '.join(map(str, sorted(lost | lun.rebuilding)))} of {len(lun.members)}, "
            f"more than {lun.layout.value} can do without"
        )
    if not lun.layout.fault_tolerant:
        raise InvalidOperation(
            f"LUN {lun.name!r} is {lun.layout.value}: without redundancy there is nothing to recover from",
            remedy="restore its contents from a shadow copy or a backup",
        )
    syncing = is_syncing(observed.raid(lun))
    disagree = lun.suspect or bool(lun.mismatches)
    failing = tuple(document.drive_of(lun.members[index].drive) for index in sorted(endangered(document, lun) - lost))
    held = lun.frozen and bool(lun.rebuilding)
    return Finding(lost=lost, held=held, syncing=syncing, disagree=disagree, failing=failing)


def propose(
    document: Document, observed: Observed, lun: Lun, spare: Drive | None, ids: Iterator[UUID]
) -> tuple[Proposal, Task]:
    """What a Recover of this LUN comes to. Its task is queued where a LUN that shares a drive is being recovered.

    Raises: ObjectFailed, InvalidOperation, AnotherCallInProgress, then what geometry.choose_substitute() does.
    """
    examine(document, observed, lun)
    refuse_busy(document, lun)
    asked = spare.uuid if spare else None
    task = Task(id=document.next_task, kind=TaskKind.RECOVER, lun=lun.uuid, objects=(lun.name,), spare=asked)
    proposal, begun = begin(document, observed, lun, task, ids)
    if not begun.state.ended and turns.must_wait(document, proposal.document.lun_of(lun.uuid)):
        why = f"recovery of LUN {lun.name} waits for another that uses the same drives"
        return Proposal(document=document.with_task(task), why=why, lun=lun.uuid), task
    return proposal, begun


def begin(document: Document, observed: Observed, lun: Lun, task: Task, ids: Iterator[UUID]) -> tuple[Proposal, Task]:
    """What is wanted for a task that has its turn, or whose LUN has lost one more member.

    Raises: what examine() and geometry.choose_substitute() do. Not for want of drives while others of its members are being
            rebuilt, or can be.
    """
    finding = examine(document, observed, lun)
    if task.state is TaskState.QUEUED:
        task = tasks.started(task)
    if finding.whole and finding.failing:
        return _move(document, lun, task, finding.failing[0], ids)
    if finding.whole:
        task = tasks.completed(task, "the LUN was healthy: there was nothing to do")
        return Proposal(document=document.with_task(task), why=f"LUN {lun.name} is healthy", lun=lun.uuid), task

    spare = document.drive_of(task.spare) if task.spare else None
    if spare is not None and finding.held and not finding.lost:
        _refuse_other(document, lun, spare)
    wanted, recovered = document, lun
    substituted: list[int] = []
    for index in sorted(finding.lost):
        try:
            wanted, recovered = _substitute(wanted, recovered, index, spare, ids)
        except (NotEnoughDrives, NotEnoughSpace):
            if spare is not None or not (substituted or lun.rebuilding):
                raise
            left = msgspec.structs.replace(recovered.members[index], state=MemberState.FAILED)
            recovered = recovered.with_member(index, left)
            wanted = wanted.with_lun(recovered)
            continue
        substituted.append(index)
        spare = None
    recovered = msgspec.structs.replace(recovered, frozen=False)
    names = [document.drive_of(recovered.members[index].drive).name for index in sorted(recovered.rebuilding)]
    phases: list[Phase] = []
    if finding.lost or finding.held or finding.syncing:
        phases.append(Phase.REBUILD)
    # "rebuild" ends a LUN's initial synchronisation for good (array_resync_offset becomes "done", drivers/md/dm-raid.c):
    # what the rebuilt member does not cover, such as the second parity of a raid6, has to be put right afterwards.
    if finding.disagree or (finding.lost and not lun.initialised):
        phases.append(Phase.REPAIR)
    phases.append(Phase.VERIFY)
    task = msgspec.structs.replace(task, phases=tuple(phases), done=0, objects=(lun.name, *names), boot="")
    then = (plex_message(document, lun, "repair"),) if phases[0] is Phase.REPAIR else ()
    what = f"substitute {', '.join(names)}" if names else "resynchronise" if finding.syncing else "repair"
    proposal = Proposal(
        document=wanted.with_lun(recovered).with_task(task),
        why=f"recovery of LUN {lun.name}: {what}",
        prepare=zeroed(wanted, tuple(recovered.members[index] for index in substituted)),
        then=then,
        lun=lun.uuid,
    )
    return proposal, task


def _move(document: Document, lun: Lun, task: Task, old: Drive, ids: Iterator[UUID]) -> tuple[Proposal, Task]:
    """A LUN that lacks nothing leaves a failing drive before that is lost."""
    spare = document.drive_of(task.spare) if task.spare else None
    wanted, drive, prepare = replace.moved(replace.abandoned(document, lun), lun.uuid, old, spare, ids)
    task = msgspec.structs.replace(
        task,
        phases=(Phase.COPY, Phase.VERIFY),
        done=0,
        objects=(lun.name, old.name, drive.name),
        spare=drive.uuid,
        leaving=old.uuid,
    )
    why = f"recovery of LUN {lun.name}: leave drive {old.name}, which is failing, for drive {drive.name}"
    return Proposal(document=wanted.with_task(task), why=why, prepare=prepare, lun=lun.uuid), task


def _refuse_other(document: Document, lun: Lun, spare: Drive) -> None:
    """A rebuild that was cancelled goes on where it was."""
    held = [document.drive_of(lun.members[index].drive) for index in sorted(lun.rebuilding)]
    if spare not in held:
        on = ", ".join(drive.name for drive in held)
        raise InvalidArgument(
            f"LUN {lun.name!r} has a substitute already, on drive {on}, whose rebuild was cancelled and can go on",
            remedy=f"leave --spare out: blkrecov recover {lun.name}",
        )


def _substitute(
    document: Document, lun: Lun, index: int, spare: Drive | None, ids: Iterator[UUID]
) -> tuple[Document, Lun]:
    """A new member in the place of a lost one."""
    lost = lun.members[index]
    # Without the lost member's extents: its drive may be this very one, back again or never gone.
    released = lun.with_member(
        index, msgspec.structs.replace(lost, data=(), meta=(), successor=None, state=MemberState.FAILED)
    )
    document = document.with_lun(released)
    drive = geometry.choose_substitute(document, released, lost.length, spare)
    if drive.hot_spare:
        drive = msgspec.structs.replace(drive, hot_spare=False)  # A spare in use is no spare (VDS_DRF_HOTSPARE).
        document = document.with_drive(drive)
    member = geometry.new_member(document, drive, lost.length, meta=True, uuid=next(ids), state=MemberState.REBUILDING)
    recovered = released.with_member(index, member)
    return document.with_lun(recovered), recovered


def rebuilt(lun: Lun) -> Lun:
    """The LUN when the kernel has regenerated its substitutes: they are members like all others."""
    for index, member in enumerate(lun.members):
        if member.state is MemberState.REBUILDING:
            lun = lun.with_member(index, msgspec.structs.replace(member, state=MemberState.IN_SYNC))
    return lun
