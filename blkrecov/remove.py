"""A drive that leaves the array for good, after all that lies on it was moved to others. Pure.

Each LUN on the drive moves by a replacement of its own (blkrecov.replace), and the removal is a task that waits for these. They
take turns, for all of them read the same drive. Until the last one has ended geometry gives the drive nothing more.

All places are found before anything is copied, the longest first, and as if all were copied at once: so what fits then fits
in whatever order they get their turns, and no room is counted twice. Each replacement keeps to the drive that was found for it.
Room is not held for it, though. If somebody takes that room meanwhile, or the other drive fails, then that replacement fails, and
with it the removal; what has moved stays where it is, and a second removal moves the rest.

Whether the drive can leave is read from the document, not from what became of the replacements: nothing must lie on it. One
version of the document takes it out of the array and ends the task, so no crash comes between the two.
"""

from collections.abc import Iterator
from uuid import UUID

import msgspec

from blkrecov import family, provision, replace, tasks
from blkrecov.errors import DeviceInUse, DriveNotOnline, InvalidOperation, NotEnoughDrives, NotEnoughSpace
from blkrecov.model import Document, Drive, Lun, Phase, Task, TaskKind
from blkrecov.observed import Observed
from blkrecov.proposal import Proposal


def propose(
    document: Document, observed: Observed, drive: Drive, ids: Iterator[UUID]
) -> tuple[Proposal, Task, tuple[Proposal, ...]]:
    """The removal of a drive: (what is wanted now, its task, how each LUN is to move).

    A drive that nothing lies on leaves at once: the task has completed, and no LUN moves. Else the replacements are queued.

    Raises: AnotherCallInProgress while a task needs the drive, or a LUN on it is busy; DriveNotOnline, InvalidOperation and what
            replace.propose() does for what cannot be copied; NotEnoughDrives or NotEnoughSpace, naming all LUNs that lack room.
    """
    provision.refuse_needed(document, drive)
    task = Task(
        id=document.next_task, kind=TaskKind.REMOVE, lun=drive.uuid, objects=(drive.name,), phases=(Phase.COPY,)
    )
    task = tasks.started(task)
    luns = [lun for lun in document.luns if drive.uuid in lun.drives]
    if not luns:
        return (*departed(document, task), ())
    for lun in luns:
        provision.refuse_busy(document, lun)
    _refuse_unreadable(drive, luns)
    placed = document.with_task(task)
    children: list[Task] = []
    moves: list[Proposal] = []
    lacking: list[NotEnoughDrives | NotEnoughSpace] = []
    for lun in sorted(luns, key=lambda lun: -_length(lun, drive)):
        child = Task(
            id=task.id + 1 + len(children), kind=TaskKind.REPLACE, lun=lun.uuid, objects=(), leaving=drive.uuid
        )
        try:
            proposal, begun = replace.begin(placed, observed, lun, child, ids)
        except (NotEnoughDrives, NotEnoughSpace) as error:
            lacking.append(error)
            continue
        placed = proposal.document
        children.append(msgspec.structs.replace(child, objects=begun.objects, spare=begun.spare, why=proposal.why))
        alone = document.with_lun(placed.lun_of(lun.uuid))
        moves.append(Proposal(document=alone, why=proposal.why, prepare=proposal.prepare, lun=lun.uuid))
    if lacking:
        message = f"drive {drive.name!r} cannot be emptied: {'; '.join(error.message for error in lacking)}"
        raise type(lacking[0])(message, remedy=lacking[0].remedy)
    task = msgspec.structs.replace(
        task, children=tuple(child.id for child in children), why="\n".join(child.why for child in children)
    )
    wanted = document
    for each in (task, *children):
        wanted = wanted.with_task(each)
    names = ", ".join(lun.name for lun in luns)
    return Proposal(document=wanted, why=f"drive {drive.name} leaves after {names}"), task, tuple(moves)


def _length(lun: Lun, drive: Drive) -> int:
    return sum(member.length for member in lun.members if member.drive == drive.uuid)


def _refuse_unreadable(drive: Drive, luns: list[Lun]) -> None:
    """Raises: DriveNotOnline, InvalidOperation."""
    names = ", ".join(repr(lun.name) for lun in luns)
    if not drive.online:
        raise DriveNotOnline(
            f"drive {drive.name!r} is {drive.status.value}: nothing can be copied off it, and LUN {names} has a part there",
            remedy=f"run: blkrecov recover {luns[0].name}; a LUN without redundancy has to be deleted, or the drive reconnected",
        )
    for lun in luns:
        if lun.shadow is not None and lun.shadow.lost:
            raise InvalidOperation(
                f"shadow copy {lun.name!r} on drive {drive.name!r} has lost its contents: there is nothing to move",
                remedy=f"delete it with: blkrecov snapshot delete {lun.name}",
            )


def departed(document: Document, task: Task) -> tuple[Proposal, Task]:
    """The array without the drive, and the task complete.

    Raises: DeviceInUse, naming the LUNs that are on it still.
    """
    drive = document.drive_of(task.lun)
    left = [lun.name for lun in document.luns if drive.uuid in lun.drives]
    if left:
        became = "; ".join(family.results(document, task, "replacement"))
        raise DeviceInUse(
            f"drive {drive.name!r} stays in the array, for LUN {', '.join(map(repr, left))} is on it still: {became}",
            remedy=f"put that right, then move the rest with: blkrecov drive remove {drive.name}",
        )
    moved = [child for child in family.children(document, task) if len(child.objects) > 2]
    message = ", ".join(f"{child.objects[0]} moved to {child.objects[2]}" for child in moved)
    task = tasks.completed(family.accounted(document, task), message or "nothing was on it")
    proposal = provision.remove_drive(document.with_task(task), str(drive.uuid))
    return proposal, task


def afterwards(document: Document, drive: Drive, moves: tuple[Proposal, ...]) -> Proposal:
    """The array when all has moved and the drive has left, to be shown before anything is done."""
    for move in moves:
        assert move.lun is not None
        moved = replace.finished(move.document, move.document.lun_of(move.lun))
        document = document.with_lun(moved.lun_of(move.lun))
    return provision.remove_drive(document, str(drive.uuid))
