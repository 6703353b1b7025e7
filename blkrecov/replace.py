"""Planned replacement of a drive: a member moves to another drive while it serves. Pure.

The kernel copies it underneath the RAID layer (dm-mirror, in the place of the leg's linear table), so redundancy never drops, and
LUNs without redundancy move as well. All writes go to the old place as long as the copy runs, to the new one as well where it was
copied already; so until the very end the old place is whole by itself, and giving up costs nothing.

What the engine does with a task in its phase COPY:

    copied() says          then
    complete               act on flushes(); store finished() and the task's next phase in one version; converge
    destination_failed,    store abandoned() and the failed task; converge
    log_failed
    source_failed          the drive to be replaced failed, or cannot be read in places: store abandoned(), converge, and
                           substitute that member onto the new drive (Task.spare) as Recover does

in this order, for a copy that is complete needs its source no more. Somebody has to look soon after an event: a mirror that had
an error holds the LUN's writes until its table is replaced (drivers/md/dm-raid1.c, do_failures()). If nobody does, whoever opens
the array next releases them: converge.take_note() drops successors of copies that came to nothing. So a task may find its LUN
without successors; copied() tells what that means. A cancelled task is abandoned(); a copy cannot be paused.

finished() is stored and converged, never carried out with a way back: once the new place serves alone, the old one is stale. The
flush comes before, because a region counts as copied before the new drive was told to keep it (drivers/md/dm-region-hash.c,
dm_rh_update_states(): the bit is set, then the legs are flushed; a core log flushes nothing).

A crash on the way is no case of its own: the document has the successor, converge() makes the mirrors again, and their logs, on
the new drive, tell what is left to copy. A leg that has served without its mirror begins its copy anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import msgspec

from blkrecov import geometry, tasks, turns
from blkrecov.dm.status import LegHealth
from blkrecov.errors import AnotherCallInProgress, DriveNotOnline, InvalidArgument, InvalidOperation, ObjectFailed
from blkrecov.model import Document, Drive, Lun, Member, MemberState, Phase, Task, TaskKind
from blkrecov.observed import Observed
from blkrecov.proposal import Proposal
from blkrecov.provision import refuse_busy
from blkrecov.stack import port_node
from blkrecov.steps import Flush, ZeroExtent
from blkrecov.units import Sectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """How far the copies of a LUN's moving members are, superblocks included."""

    done: Sectors
    total: Sectors
    source_failed: bool
    destination_failed: bool
    log_failed: bool
    complete: bool
    """All of it was copied, and every write since has gone to both drives."""

    @property
    def failed(self) -> bool:
        return self.source_failed or self.destination_failed or self.log_failed


def propose(
    document: Document, observed: Observed, lun: Lun, old: Drive, new: Drive | None, ids: Iterator[UUID]
) -> tuple[Proposal, Task]:
    """A LUN's members on one drive moved to another: to `new`, or the one that a substitute would go to. The task is queued where
    a LUN that shares a drive is being recovered or moved.

    Raises: InvalidArgument when the LUN has nothing on `old`, or has something on `new` already; ObjectFailed; DriveNotOnline,
            InvalidOperation and AnotherCallInProgress for what is to be recovered instead; AnotherCallInProgress for a LUN
            that is busy; then what geometry.choose_drive() does.
    """
    _refuse_unfit(document, observed, lun, old, new)
    refuse_busy(document, lun)
    task = Task(
        id=document.next_task,
        kind=TaskKind.REPLACE,
        lun=lun.uuid,
        objects=(lun.name, old.name),
        spare=new.uuid if new else None,
        leaving=old.uuid,
    )
    proposal, begun = begin(document, observed, lun, task, ids)
    if turns.must_wait(document, proposal.document.lun_of(lun.uuid)):
        why = f"LUN {lun.name} waits for another that uses the same drives before it leaves drive {old.name}"
        return Proposal(document=document.with_task(task), why=why, lun=lun.uuid), task
    return proposal, begun


def begin(document: Document, observed: Observed, lun: Lun, task: Task, ids: Iterator[UUID]) -> tuple[Proposal, Task]:
    """What is wanted for a task that has its turn. Raises what propose() does, but for a LUN that is busy."""
    assert task.leaving is not None, f"task {task.id} leaves no drive"
    old = document.drive_of(task.leaving)
    new = document.drive_of(task.spare) if task.spare else None
    _refuse_unfit(document, observed, lun, old, new)
    # What an earlier replacement has left that nobody is at any more.
    wanted, drive, prepare = moved(abandoned(document, lun), lun.uuid, old, new, ids)
    task = msgspec.structs.replace(
        tasks.started(task), objects=(lun.name, old.name, drive.name), phases=_phases(lun), spare=drive.uuid
    )
    proposal = Proposal(
        document=wanted.with_task(task),
        why=f"LUN {lun.name} moves from drive {old.name} to drive {drive.name}",
        prepare=prepare,
        lun=lun.uuid,
    )
    return proposal, task


def _phases(lun: Lun) -> tuple[Phase, ...]:
    return (Phase.COPY, Phase.VERIFY) if lun.layout.fault_tolerant else (Phase.COPY,)


def moved(
    document: Document, uuid: UUID, old: Drive, new: Drive | None, ids: Iterator[UUID]
) -> tuple[Document, Drive, tuple[ZeroExtent, ...]]:
    """The array with successors for a LUN's members on a drive: (document, the drive they go to, what is to be zeroed first).

    Raises: what geometry.choose_drive() does.
    """
    lun = document.lun_of(uuid)
    leaving = [index for index, member in enumerate(lun.members) if member.drive == old.uuid]
    needed = sum(geometry.successor_length(lun.members[index]) for index in leaving)
    drive = geometry.choose_drive(document, lun, needed, new)
    prepare: list[ZeroExtent] = []
    for index in leaving:
        successor = geometry.new_successor(document, drive, lun.members[index], next(ids))
        lun = lun.with_member(index, msgspec.structs.replace(lun.members[index], successor=successor))
        document = document.with_lun(lun)
        # A log that reads as zeros calls all regions dirty; drivers/md/dm-log.c, disk_resume().
        port = port_node(document, drive.uuid)
        prepare += [ZeroExtent(port, extent) for extent in (*successor.meta, *successor.log)]
    return document, drive, tuple(prepare)


def _refuse_unfit(document: Document, observed: Observed, lun: Lun, old: Drive, new: Drive | None) -> None:
    """What cannot be copied is recovered."""
    leaving = frozenset(index for index, member in enumerate(lun.members) if member.drive == old.uuid)
    if not leaving:
        raise InvalidArgument(
            f"LUN {lun.name!r} has nothing on drive {old.name!r}",
            remedy="see blkrecov drive show for what is on a drive",
        )
    if new is not None and any(member.drive == new.uuid for member in lun.members):
        raise InvalidArgument(
            f"drive {new.name!r} serves LUN {lun.name!r} already", remedy="choose a drive that the LUN does not use"
        )
    lost = observed.lost(document, lun)
    remedy = f"run: blkrecov recover {lun.name}"
    if not observed.survives(document, lun):
        raise ObjectFailed(f"LUN {lun.name!r} has failed: it has lost more than its layout can do without")
    if not old.online:
        raise DriveNotOnline(f"drive {old.name!r} is {old.status.value}: nothing can be copied from it", remedy=remedy)
    if leaving & lost:
        raise InvalidOperation(
            f"LUN {lun.name!r} has lost its member on drive {old.name!r}: what that holds is of no use", remedy=remedy
        )
    raid = observed.raid(lun)
    if leaving & lun.rebuilding or (
        raid is not None and any(raid.legs[index] is LegHealth.OUT_OF_SYNC for index in leaving)
    ):
        raise AnotherCallInProgress(
            f"the member of LUN {lun.name!r} on drive {old.name!r} is being synchronised", remedy=remedy
        )


def copied(document: Document, observed: Observed, lun: Lun) -> Copy:
    """What the kernel says of a LUN's copies.

    Where none is wanted any more (a drive failed and the document was told), the side that is gone has failed: the source, if the
    LUN has lost a member, else the destination.
    """
    moving = [index for index, member in enumerate(lun.members) if member.successor is not None]
    lost = observed.lost(document, lun)
    if not moving:
        return Copy(
            done=Sectors(0),
            total=Sectors(0),
            source_failed=bool(lost),
            destination_failed=not lost,
            log_failed=False,
            complete=False,
        )
    mirrors = [mirror for index in moving for mirror in observed.mirrors(lun.members[index])]
    total = sum(_length(lun.members[index]) for index in moving)
    source_failed = not lost.isdisjoint(moving) or any(mirror.source_failed for mirror in mirrors)
    destination_failed = any(mirror.destination_failed for mirror in mirrors) or any(
        not _is_there(document, observed, lun.members[index]) for index in moving
    )
    log_failed = any(mirror.log_failed for mirror in mirrors)
    whole = sum(mirror.length for mirror in mirrors) == total
    equal = all(mirror.status.done == mirror.status.total for mirror in mirrors)
    return Copy(
        done=Sectors(sum(mirror.done for mirror in mirrors)),
        total=Sectors(total),
        source_failed=source_failed,
        destination_failed=destination_failed,
        log_failed=log_failed,
        complete=whole and equal and not destination_failed and not log_failed,
    )


def _is_there(document: Document, observed: Observed, member: Member) -> bool:
    assert member.successor is not None
    return document.drive_of(member.successor.drive).online and member.successor.drive in observed.backings


def _length(member: Member) -> int:
    return member.length + sum(extent.length for extent in member.meta)


def flushes(document: Document, lun: Lun) -> tuple[Flush, ...]:
    """What is to be done when the copies are complete, before that is written down: the new drives keep what they were given."""
    drives = sorted({member.successor.drive for member in lun.members if member.successor is not None})
    return tuple(Flush(port_node(document, drive)) for drive in drives)


def finished(document: Document, lun: Lun) -> Document:
    """The array when the copies are complete: members are where they were moving to, and hot spares among these none any more."""
    for index, member in enumerate(lun.members):
        successor = member.successor
        if successor is not None:
            assert member.state is MemberState.IN_SYNC, f"member {index} of {lun.name} has missed writes"
            moved = msgspec.structs.replace(
                member, drive=successor.drive, data=successor.data, meta=successor.meta, successor=None
            )
            lun = lun.with_member(index, moved)
            drive = document.drive_of(successor.drive)
            document = document.with_drive(msgspec.structs.replace(drive, hot_spare=False))
    return document.with_lun(lun)


def abandoned(document: Document, lun: Lun) -> Document:
    """The array with the LUN's members where they are; the places that they were moving to are free."""
    for index, member in enumerate(lun.members):
        if member.successor is not None:
            lun = lun.with_member(index, msgspec.structs.replace(member, successor=None))
    return document.with_lun(lun)
