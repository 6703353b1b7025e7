"""Recover (IVdsLun::Recover): what a degraded LUN needs, and what is wanted then. Pure.

Three recoveries, chosen by what is wrong:

    substitution of a spare      a member is lost: another drive gets its place, the kernel regenerates its contents
    mirror resynchronisation     members are there and not in sync: the kernel is at it, or is asked for it
    parity regeneration          a scrub counted mismatches, or power was cut while a member was lost: the kernel repairs

A recovery is a task with phases, each of them work that the kernel does by itself and goes on with after a crash:
substitute, REBUILD until in sync, then REPAIR where members may still disagree. The extents of the lost member are free as
soon as the substitute has its place: from then on nothing refers to them, and the drive they lie on has failed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import msgspec

from blkrecov import geometry, tasks
from blkrecov.dm.status import LegHealth, SyncAction
from blkrecov.errors import InvalidOperation, ObjectFailed
from blkrecov.model import Document, Drive, Lun, MemberState, Phase, Task, TaskKind
from blkrecov.observed import Observed
from blkrecov.proposal import Proposal, plex_message, zeroed
from blkrecov.provision import refuse_busy


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a LUN."""

    lost: frozenset[int]
    syncing: bool
    disagree: bool

    @property
    def healthy(self) -> bool:
        return not (self.lost or self.syncing or self.disagree)


def examine(document: Document, observed: Observed, lun: Lun) -> Finding:
    """Raises: ObjectFailed, then InvalidOperation. What can be done about the one comes before what the other never can."""
    lost = observed.lost(document, lun)
    if not observed.survives(document, lun):
        raise ObjectFailed(
            f"LUN {lun.name!r} has lost members {', '.join(map(str, sorted(lost)))} of {len(lun.members)}, "
            f"more than {lun.layout.value} can do without"
        )
    if not lun.layout.fault_tolerant:
        raise InvalidOperation(
            f"LUN {lun.name!r} is {lun.layout.value}: without redundancy there is nothing to recover from",
            remedy="restore its contents from a shadow copy or a backup",
        )
    raid = observed.raid(lun)
    syncing = raid is not None and (
        raid.action in (SyncAction.RESYNC, SyncAction.RECOVER)
        or (raid.action is SyncAction.REPAIR and raid.done < raid.total)
        or LegHealth.OUT_OF_SYNC in raid.legs
    )
    return Finding(lost=lost, syncing=syncing, disagree=lun.suspect or bool(lun.mismatches))


def propose(
    document: Document, observed: Observed, lun: Lun, spare: Drive | None, ids: Iterator[UUID]
) -> tuple[Proposal, Task]:
    """What a Recover of this LUN comes to.

    Raises: ObjectFailed, InvalidOperation, AnotherCallInProgress, then what geometry.choose_substitute() does.
    """
    finding = examine(document, observed, lun)
    refuse_busy(document, lun)
    task = tasks.started(Task(id=document.next_task, kind=TaskKind.RECOVER, lun=lun.uuid, objects=(lun.name,)))
    if finding.healthy:
        task = tasks.completed(task, "the LUN was healthy: there was nothing to do")
        return Proposal(document=document.with_task(task), why=f"LUN {lun.name} is healthy", lun=lun.uuid), task

    wanted, recovered, names = document, lun, []
    for index in sorted(finding.lost):
        wanted, recovered, name = _substitute(wanted, recovered, index, spare, ids)
        names.append(name)
        spare = None
    phases: list[Phase] = []
    if finding.lost or finding.syncing:
        phases.append(Phase.REBUILD)
    # "rebuild" ends a LUN's initial synchronisation for good (array_resync_offset becomes "done", drivers/md/dm-raid.c):
    # what the rebuilt member does not cover, such as the second parity of a raid6, has to be put right afterwards.
    if finding.disagree or (finding.lost and not lun.initialised):
        phases.append(Phase.REPAIR)
    task = msgspec.structs.replace(task, phases=tuple(phases), objects=(lun.name, *names))
    then = (plex_message(document, lun, "repair"),) if phases[0] is Phase.REPAIR else ()
    what = f"substitute {', '.join(names)}" if names else "resynchronise" if finding.syncing else "repair"
    proposal = Proposal(
        document=wanted.with_lun(recovered).with_task(task),
        why=f"recovery of LUN {lun.name}: {what}",
        prepare=zeroed(wanted, tuple(recovered.members[index] for index in sorted(finding.lost))),
        then=then,
        lun=lun.uuid,
    )
    return proposal, task


def _substitute(
    document: Document, lun: Lun, index: int, spare: Drive | None, ids: Iterator[UUID]
) -> tuple[Document, Lun, str]:
    """A new member in the place of a lost one: (document, LUN, name of the drive)."""
    lost = lun.members[index]
    # Without the lost member's extents: its drive may be this very one, back again or never gone.
    released = lun.with_member(index, msgspec.structs.replace(lost, data=(), meta=(), state=MemberState.FAILED))
    document = document.with_lun(released)
    drive = geometry.choose_substitute(document, released, lost.length, spare)
    if drive.hot_spare:
        drive = msgspec.structs.replace(drive, hot_spare=False)  # A spare in use is no spare (VDS_DRF_HOTSPARE).
        document = document.with_drive(drive)
    member = geometry.new_member(document, drive, lost.length, meta=True, uuid=next(ids), state=MemberState.REBUILDING)
    recovered = released.with_member(index, member)
    return document.with_lun(recovered), recovered, drive.name


def rebuilt(lun: Lun) -> Lun:
    """The LUN when the kernel has regenerated its substitutes: they are members like all others."""
    for index, member in enumerate(lun.members):
        if member.state is MemberState.REBUILDING:
            lun = lun.with_member(index, msgspec.structs.replace(member, state=MemberState.IN_SYNC))
    return lun
