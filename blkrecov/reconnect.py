"""A drive that comes back (MS-DMRP IVolumeClient::ReConnectDisk), with all that lives on it. Pure.

What becomes of each LUN on the drive:

    not fault tolerant        it missed nothing that was acknowledged: the drive's port is enough
    its member was replaced   nothing of it is on the drive any more
    its member is lost        the kernel takes it back, and regenerates what it missed by its write-intent bitmap; or all of it,
                              where the superblocks do not prove that the bitmap tells all
    it has lost too much      it stays failed: there is nothing to regenerate the member from

The proof is in the superblocks, for dm-raid has no other identity: the freshest one calls the member failed, and the member's own
is older. Without the first the kernel would take the member for whole, on the word of a superblock that anything may have
(drivers/md/dm-raid.c, super_validate()); without the second it is somebody else's.

The reconnect is a task that lasts until the recoveries which it has begun are over. What cannot come online does not make it
fail.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

import msgspec

from blkrecov import tasks
from blkrecov.dm.superblock import Superblock
from blkrecov.model import Document, Drive, DriveStatus, Lun, Member, MemberState, Phase, Task, TaskKind
from blkrecov.proposal import Proposal, zeroed

Superblocks = Mapping[UUID, Superblock | None]


@dataclass(frozen=True, slots=True)
class Return:
    """What becomes of one LUN. `why` is for people; a LUN that cannot come online says so there."""

    lun: Lun
    why: str
    comes: bool = True
    regenerates: bool = False
    zeroed: tuple[Member, ...] = ()


def propose(
    document: Document, drive: Drive, path: str, superblocks: Superblocks, ids: Iterator[UUID]
) -> tuple[Proposal, Task]:
    """The array with the drive online, found at this path, and a task that is complete when all is regenerated.

    `superblocks` has those of all members of the LUNs on the drive, as far as they can be read.
    """
    online = msgspec.structs.replace(drive, status=DriveStatus.ONLINE, reason="", path=path)
    wanted = document.with_drive(online)
    number = document.next_task
    children: list[Task] = []
    prepared: list[Member] = []
    said: list[str] = []
    changed: set[UUID] = set()
    for lun in document.luns:
        if drive.uuid not in {member.drive for member in lun.members}:
            continue
        back = returned(wanted, lun, drive, superblocks, ids)
        said.append(f"{lun.name} {back.why}")
        wanted = wanted.with_lun(back.lun)
        prepared += back.zeroed
        changed.add(lun.uuid)
        if back.regenerates:
            children.append(_child(lun, drive, number + 1 + len(children), whole=bool(back.zeroed)))
    task = tasks.started(
        Task(
            id=number,
            kind=TaskKind.RECONNECT,
            lun=drive.uuid,
            objects=(drive.name,),
            phases=(Phase.REBUILD,),
            message="; ".join(said),
            children=tuple(child.id for child in children),
        )
    )
    for each in (task, *children):
        wanted = wanted.with_task(each)
    proposal = Proposal(
        document=wanted,
        why=f"drive {drive.name} comes back: {'; '.join(said) or 'nothing is on it'}",
        prepare=zeroed(wanted, tuple(prepared)),
    )
    return proposal, task


def _child(lun: Lun, drive: Drive, number: int, *, whole: bool) -> Task:
    """The recovery of one LUN. What the kernel's bitmap tells is no matter for a check of all: that would take longer."""
    return tasks.started(
        Task(
            id=number,
            kind=TaskKind.RECOVER,
            lun=lun.uuid,
            objects=(lun.name, drive.name),
            phases=(Phase.REBUILD, Phase.VERIFY) if whole else (Phase.REBUILD,),
        )
    )


def returned(document: Document, lun: Lun, drive: Drive, superblocks: Superblocks, ids: Iterator[UUID]) -> Return:
    """What becomes of one LUN that has members on the drive."""
    lost = [index for index in sorted(lun.lost) if lun.members[index].drive == drive.uuid]
    if not lun.layout.fault_tolerant:
        away = [member for member in lun.members if not document.drive_of(member.drive).online]
        if away:
            names = ", ".join(sorted({document.drive_of(member.drive).name for member in away}))
            return Return(lun, f"stays failed: drive {names} is away", comes=False)
        return Return(lun, "is online")
    if not lost:
        return Return(lun, "has lost nothing on it")
    # A LUN that is not used loses nothing: members on drives that are away are in sync, and no help.
    missing = {index for index, member in enumerate(lun.members) if not document.drive_of(member.drive).online}
    if not lun.layout.survives(len(lun.members), lun.lost | lun.rebuilding | missing):
        return Return(lun, "stays failed: it has lost more members than it can do without", comes=False)
    task = document.task_on(lun.uuid)
    if task is not None:
        return Return(lun, f"is busy with task {task.id}, and can be recovered after that", comes=False)
    fresh: list[Member] = []
    for index in lost:
        member = lun.members[index]
        if proven(lun, index, superblocks):
            lun = lun.with_member(index, msgspec.structs.replace(member, state=MemberState.RETURNING))
        else:
            # The same place, as a member that nobody knows: nothing of what lies there is believed.
            anew = msgspec.structs.replace(member, uuid=next(ids), state=MemberState.REBUILDING, successor=None)
            fresh.append(anew)
            lun = lun.with_member(index, anew)
    why = (
        "is regenerated as a whole: its superblock does not prove what it missed"
        if fresh
        else "regenerates what it missed"
    )
    return Return(lun, why, regenerates=True, zeroed=tuple(fresh))


def proven(lun: Lun, index: int, superblocks: Superblocks) -> bool:
    """Whether the kernel will know that a member has missed writes, and its bitmap which."""
    own = superblocks.get(lun.members[index].uuid)
    serving = [
        found
        for other, member in enumerate(lun.members)
        if other != index
        and member.state is MemberState.IN_SYNC
        and (found := superblocks.get(member.uuid)) is not None
    ]
    if own is None or not serving or own.position != index or own.legs != len(lun.members):
        return False
    freshest = max(serving, key=lambda found: found.events)
    return bool(freshest.failed >> index & 1) and own.events < freshest.events and own.recovery_offset is None


def taken_back(lun: Lun, failed: frozenset[int]) -> Lun:
    """The LUN after the kernel was asked to take members back; `failed` are those that it did not take."""
    for index in sorted(lun.returning):
        state = MemberState.FAILED if index in failed else MemberState.REBUILDING
        lun = lun.with_member(index, msgspec.structs.replace(lun.members[index], state=state))
    return lun


def recoveries(document: Document, task: Task) -> tuple[Task, ...]:
    """What a reconnect has begun. The oldest of many that have ended are forgotten."""
    return tuple(child for child in document.tasks if child.id in task.children)


def percent(document: Document, task: Task) -> float:
    """How much of a reconnect is done, 0 to 1: all of its recoveries count the same."""
    found = recoveries(document, task)
    if not found:
        return 1.0
    return sum(1.0 if child.state.ended else child.percent / 100 for child in found) / len(found)


def ended(document: Document, task: Task) -> Task | None:
    """The reconnect when all its recoveries are over; None while they are not. One that failed is told, and fails nothing."""
    found = recoveries(document, task)
    if any(not child.state.ended for child in found):
        return None
    names = {lun.uuid: lun.name for lun in document.luns}
    results = [
        f"recovery of {names.get(child.lun, 'a deleted LUN')} {child.state.value}: {child.message or child.code}"
        for child in found
    ]
    moved = sum(child.bytes_kernel for child in found)
    own = sum(child.bytes_process for child in found)
    task = msgspec.structs.replace(task, bytes_kernel=moved, bytes_process=task.bytes_process + own)
    return tasks.completed(task, "; ".join([task.message, *results]))
