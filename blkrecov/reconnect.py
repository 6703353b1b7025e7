"""A drive that comes back (MS-DMRP IVolumeClient::ReConnectDisk), with all that lives on it. Pure.

What becomes of each LUN on the drive:

    not fault tolerant        it missed nothing that was acknowledged: the drive's port is enough
    its member was replaced   nothing of it is on the drive any more
    its drive lost writes     or was cut at its end, and nobody knows where: its member is given up, and regenerated as a whole; a
                              LUN that cannot do without keeps what it has
    its member is lost        the kernel takes it back, and regenerates what it missed by its write-intent bitmap; or all of it,
                              where the superblocks do not prove that the bitmap tells all
    it had lost too much      those that served last serve again, if they are here (blkrecov.revival); else it stays failed

The proof is in the superblocks, for dm-raid has no other identity: the freshest one calls the member failed, and the member's own
is older. Without the first the kernel would take the member for whole, on the word of a superblock that anything may have
(drivers/md/dm-raid.c, super_validate()); without the second it is somebody else's.

A fault that was injected is taken away by it. One that loses writes stays until its members are out, in a version of the
document of their own: nobody reads a sector that misses something.

The reconnect is a task that lasts until the recoveries which it has begun are over. What cannot come online does not make it
fail.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import msgspec

from blkrecov import family, revival, tasks
from blkrecov.model import Document, Drive, DriveStatus, Lun, Member, MemberState, Phase, Task, TaskKind
from blkrecov.observed import Observed
from blkrecov.proposal import Proposal, zeroed
from blkrecov.provision import refuse_busy
from blkrecov.revival import Superblocks


@dataclass(frozen=True, slots=True)
class Return:
    """What becomes of one LUN. `why` is for people; a LUN that cannot come online says so there."""

    lun: Lun
    why: str
    comes: bool = True
    regenerates: bool = False
    zeroed: tuple[Member, ...] = ()


def propose(
    document: Document,
    observed: Observed,
    drive: Drive,
    path: str,
    superblocks: Superblocks,
    ids: Iterator[UUID],
    *,
    force: bool = False,
    doubt: str = "",
) -> tuple[Proposal, Task]:
    """The array with the drive online, found at this path, and a task that is complete when all is regenerated.

    `superblocks` has those of all members of the LUNs on the drive, as far as they can be read. Forced, a LUN comes online with
    what there is of it, even if that is not all that was written. `doubt` is why nothing on the drive can be believed.

    Raises: AnotherCallInProgress for a drive that loses writes while a task works on a LUN on it.
    """
    first = None
    if drive.drops_writes:
        doubt = doubt or f"drive {drive.name} lost writes"
    if doubt:
        first = Proposal(document=distrusted(document, drive, doubt), why=f"{doubt}: what can do without it does")
        document = first.document
    online = msgspec.structs.replace(drive, status=DriveStatus.ONLINE, reason="", path=path, fault=None, carried=0)
    wanted = document.with_drive(online)
    number = document.next_task
    children: list[Task] = []
    prepared: list[Member] = []
    said: list[str] = []
    changed: set[UUID] = set()
    for lun in document.luns:
        if drive.uuid not in {member.drive for member in lun.members}:
            continue
        back = returned(wanted, observed, lun, drive, superblocks, ids, force=force, doubt=doubt)
        said.append(f"{lun.name} {back.why}")
        wanted = wanted.with_lun(back.lun)
        prepared += back.zeroed
        changed.add(lun.uuid)
        if back.regenerates:
            children.append(_child(back, drive, number + 1 + len(children)))
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
    word = "is without its fault" if drive.online and drive.fault is not None else "comes back"
    proposal = Proposal(
        document=wanted,
        why=f"drive {drive.name} {word}: {'; '.join(said) or 'nothing is on it'}",
        prepare=zeroed(wanted, tuple(prepared)),
        first=first,
    )
    return proposal, task


def _child(back: Return, drive: Drive, number: int) -> Task:
    """The recovery of one LUN. What the kernel's bitmap tells is no matter for a check of all: that would take longer."""
    phases = [Phase.REBUILD]
    if back.lun.suspect and not back.lun.lost:
        phases.append(Phase.REPAIR)
    if back.zeroed:
        phases.append(Phase.VERIFY)
    objects = (back.lun.name, drive.name)
    return tasks.started(
        Task(id=number, kind=TaskKind.RECOVER, lun=back.lun.uuid, objects=objects, phases=tuple(phases))
    )


def distrusted(document: Document, drive: Drive, doubt: str) -> Document:
    """The array without what such a drive holds, as far as it can do without: nothing tells what is missing there.

    A shadow copy whose store is there has lost its contents, unless that can be regenerated.
    Raises: AnotherCallInProgress.
    """
    for lun in document.luns:
        if drive.uuid not in lun.drives:
            continue
        refuse_busy(document, lun)
        there = frozenset(index for index, member in enumerate(lun.members) if member.drive == drive.uuid)
        without = lun.lost | lun.rebuilding | document.away(lun) | there
        if lun.layout.fault_tolerant and lun.layout.survives(len(lun.members), without):
            for index in there:
                failed = msgspec.structs.replace(lun.members[index], state=MemberState.FAILED, successor=None)
                lun = lun.with_member(index, failed)
        elif there and lun.shadow is not None and lun.differential and not lun.shadow.lost:
            lost = f"its store is lost: {doubt}"
            lun = msgspec.structs.replace(lun, shadow=msgspec.structs.replace(lun.shadow, lost=lost))
        document = document.with_lun(lun)
    return document


def returned(
    document: Document,
    observed: Observed,
    lun: Lun,
    drive: Drive,
    superblocks: Superblocks,
    ids: Iterator[UUID],
    *,
    force: bool = False,
    doubt: str = "",
) -> Return:
    """What becomes of one LUN that has members on the drive. In the document it is online, `drive` is as it was."""
    if not lun.layout.fault_tolerant:
        away = [member for member in lun.members if not document.drive_of(member.drive).online]
        if away:
            names = ", ".join(sorted({document.drive_of(member.drive).name for member in away}))
            return Return(lun, f"stays failed: drive {names} is away", comes=False)
        return Return(lun, f"is online, and may have lost what was written to it: {doubt}" if doubt else "is online")
    everyone = frozenset(range(len(lun.members)))
    here = everyone - document.away(lun)
    on_it = frozenset(index for index in everyone if lun.members[index].drive == drive.uuid)
    # What the kernel, or what it has written down, does without: members of a LUN that is not used are in sync, and no help.
    unusable = (
        lun.lost | lun.rebuilding | observed.given_up(lun) | _disowned(observed, lun, superblocks) | (everyone - here)
    )
    dead = not lun.layout.survives(len(lun.members), unusable)
    was_dead = not lun.layout.survives(len(lun.members), unusable | (frozenset() if drive.online else on_it))
    # Of drives that came back before this one too, when there was nothing to regenerate their members from.
    lost = lun.lost & (here if was_dead else on_it)
    said = "is online again" if was_dead else ""
    if not dead and not lost:
        doubted = f"may have lost what was written to it: {doubt}" if doubt else ""
        return Return(lun, doubted or said or "has lost nothing on it")
    task = document.task_on(lun.uuid)
    if task is not None:
        return Return(lun, f"is busy with task {task.id}, and can be recovered after that", comes=False)
    if dead:
        liars = frozenset(index for index in here if document.drive_of(lun.members[index].drive).drops_writes)
        verdict = revival.judge(lun, superblocks, here - liars - (on_it if doubt else frozenset()), force=force)
        if not verdict.trusted:
            # That nothing there can be believed is known now, and would be forgotten: the drive is as sound as any from here on.
            lun = _failed(lun, on_it) if doubt else lun
            return Return(lun, f"stays failed: {verdict.why}", comes=False)
        said = f"comes online again: {verdict.why}"
        lost = here - verdict.trusted
        lun = _serving_again(lun, verdict)
    elif was_dead:
        # It will be used without them before anybody looks again.
        lun = _failed(lun, unusable - lun.rebuilding)
        lost = lun.lost & here
    fresh: list[Member] = []
    for index in sorted(lost - frozenset(lun.trusted)):
        member = lun.members[index]
        if not doubt and proven(lun, index, superblocks) and _behind(lun, index, superblocks):
            lun = lun.with_member(index, msgspec.structs.replace(member, state=MemberState.RETURNING))
        else:
            # The same place, as a member that nobody knows: nothing of what lies there is believed.
            anew = msgspec.structs.replace(member, uuid=next(ids), state=MemberState.REBUILDING, successor=None)
            fresh.append(anew)
            lun = lun.with_member(index, anew)
    regenerates = bool(lun.rebuilding) or bool(lun.trusted and not lun.lost)
    unknown = f"{doubt}, and nobody knows which" if doubt else "its superblock does not prove what it missed"
    how = f"is regenerated as a whole: {unknown}" if fresh else "regenerates what it missed" if lun.rebuilding else ""
    why = ", and ".join(words for words in (said, how) if words)
    return Return(lun, why, regenerates=regenerates, zeroed=tuple(fresh))


def _disowned(observed: Observed, lun: Lun, superblocks: Superblocks) -> frozenset[int]:
    """Members of a LUN that is not loaded which a load would do without, because the freshest superblock calls them failed."""
    found = [head for member in lun.members if (head := superblocks.get(member.uuid)) is not None]
    if observed.loaded(lun) or not found:
        return frozenset()
    return max(found, key=lambda head: head.events).lost & frozenset(range(len(lun.members)))


def _serving_again(lun: Lun, verdict: revival.Verdict) -> Lun:
    """The LUN with these members in sync. The others have failed, until it is seen what becomes of them.

    What was being written when it failed may be torn. Not each of them has all of the last bits in its bitmap, so it is repaired.
    """
    for index, member in enumerate(lun.members):
        state = MemberState.IN_SYNC if index in verdict.trusted else MemberState.FAILED
        lun = lun.with_member(index, msgspec.structs.replace(member, state=state, successor=None))
    trusted = tuple(sorted(verdict.trusted))
    return msgspec.structs.replace(lun, trusted=trusted, forced=verdict.forced, frozen=False, suspect=True)


def _failed(lun: Lun, members: frozenset[int]) -> Lun:
    for index in members:
        lun = lun.with_member(
            index, msgspec.structs.replace(lun.members[index], state=MemberState.FAILED, successor=None)
        )
    return lun


def _behind(lun: Lun, index: int, superblocks: Superblocks) -> bool:
    """Whether a member is older than all that serve again: between equals the kernel takes the first for the freshest."""
    own = superblocks.get(lun.members[index].uuid)
    others = [head.events for other in lun.trusted if (head := superblocks.get(lun.members[other].uuid)) is not None]
    return own is not None and own.events < min(others, default=own.events + 1)


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


def failed(document: Document) -> frozenset[UUID]:
    """The LUNs that have lost more than they can do without, by the document alone; shadow copies with their origins."""
    lost = set()
    for lun in document.luns:
        away = document.away(lun)
        if not lun.layout.survives(len(lun.members), lun.lost | lun.rebuilding | away):
            lost.add(lun.uuid)
    return frozenset(lost | {lun.uuid for lun in document.luns if lun.shadow is not None and lun.shadow.origin in lost})


def taken_back(lun: Lun, failed: frozenset[int]) -> Lun:
    """The LUN after the kernel was asked to take members back; `failed` are those that it did not take."""
    lun = msgspec.structs.replace(lun, trusted=(), forced=False)
    for index in sorted(lun.returning):
        state = MemberState.FAILED if index in failed else MemberState.REBUILDING
        lun = lun.with_member(index, msgspec.structs.replace(lun.members[index], state=state))
    return lun


def ended(document: Document, task: Task) -> Task | None:
    """The reconnect when all its recoveries are over; None while they are not. One that failed is told, and fails nothing."""
    if family.under_way(document, task):
        return None
    results = family.results(document, task, "recovery")
    return tasks.completed(family.accounted(document, task), "; ".join([task.message, *results]))
