"""LUNs made, grown and deleted; drives' words and the array's settings changed. Pure: each function says what is wanted, or
why not.
"""

from collections.abc import Iterator
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from blkrecov import flapping, geometry, tasks
from blkrecov.dm.names import NameKind, check_name
from blkrecov.errors import (
    AnotherCallInProgress,
    DeviceInUse,
    InvalidOperation,
    NotSupported,
    ObjectExists,
    ObjectFailed,
)
from blkrecov.geometry import Request
from blkrecov.model import Document, Drive, DriveStatus, Lun, MemberState, Schedule
from blkrecov.proposal import Proposal, evened, zeroed
from blkrecov.units import Bytes, format_size


def create(document: Document, request: Request, ids: Iterator[UUID]) -> Proposal:
    """A new LUN. Raises what geometry.place() does, and ObjectExists for a name that is taken."""
    check_name(NameKind.LUN, request.name)
    refuse_taken(document, request.name)
    lun = geometry.place(document, request, ids)
    return Proposal(
        document=document.with_lun(lun),
        why=f"LUN {lun.name}, {lun.layout.value}, {format_size(lun.bytes)}, {len(lun.members)} members",
        prepare=zeroed(document, lun.members),
        lun=lun.uuid,
    )


def refuse_taken(document: Document, name: str) -> None:
    """Raises: ObjectExists for a name that a LUN has."""
    if any(lun.name == name for lun in document.luns):
        raise ObjectExists(f"array {document.name!r} has a LUN {name!r} already")


def extend(document: Document, lun: Lun, size: Bytes, ids: Iterator[UUID]) -> Proposal:
    """The LUN at a larger size. Not a shadow copy: it shows a moment of its origin's, and that had another size.

    A LUN that has lost a member is refused: dm-raid would grow it, but its write-intent bitmap would not cover the new part,
    and what is written there would be lost for the member when it comes back (Linux 6.1 and 6.12, drivers/md/dm-raid.c).
    """
    if lun.shadow is not None:
        raise InvalidOperation(
            f"LUN {lun.name!r} is a shadow copy, which never is altered",
            remedy="restore it onto a new LUN, which can grow; its store's size is changed with: blkrecov snapshot extend",
        )
    refuse_busy(document, lun)
    if lun.lost:
        raise ObjectFailed(
            f"LUN {lun.name!r} has lost a member and cannot grow before it has recovered",
            remedy=f"run: blkrecov recover {lun.name}",
        )
    if any(member.state is not MemberState.IN_SYNC for member in lun.members):
        raise AnotherCallInProgress(f"LUN {lun.name!r} is being rebuilt")
    grown = geometry.extended(document, lun, size, ids)
    refuse_bitmap(lun, grown)
    return Proposal(
        document=document.with_lun(grown),
        why=f"LUN {lun.name} grows to {format_size(grown.bytes)}",
        prepare=evened(document, lun, grown),
        lun=lun.uuid,
    )


def refuse_bitmap(before: Lun, after: Lun) -> None:
    """Raises: NotSupported for a LUN that has grown past what its write-intent bitmap can name."""
    if after.region and geometry.region_size(geometry.plex_length(after)) > after.region:
        raise NotSupported(
            f"LUN {before.name!r} cannot grow to {format_size(after.bytes)}: its write-intent bitmap has too few bits for that",
            remedy="make a new LUN of that size",
        )


def delete(document: Document, lun: Lun, holders: tuple[str, ...]) -> Proposal:
    """The array without the LUN. `holders` are those that have it open, which is a reason not to."""
    refuse_busy(document, lun)
    if lun.shadow is not None and lun.differential:
        task = document.task_on(lun.shadow.origin)
        if task is not None and task.pairs:
            # It goes through the device that this shadow copy is the reason for.
            refuse_busy(document, document.lun_of(lun.shadow.origin))
    shadows = document.shadows_of(lun.uuid)
    if shadows:
        raise InvalidOperation(
            f"LUN {lun.name!r} has shadow copies that show its contents: {', '.join(each.name for each in shadows)}",
            remedy="delete those first, with: blkrecov snapshot delete NAME",
        )
    if holders:
        raise DeviceInUse(
            f"LUN {lun.name!r} is in use by {', '.join(holders)}",
            remedy="end what uses it (umount, swapoff), then try again",
        )
    return Proposal(document=document.without_lun(lun), why=f"LUN {lun.name} is deleted", lun=lun.uuid)


def refuse_busy(document: Document, lun: Lun) -> None:
    """One operation at a time on a LUN."""
    task = document.task_on(lun.uuid)
    if task is not None:
        raise AnotherCallInProgress(
            f"task {task.id} ({task.kind.value}) is under way on LUN {lun.name!r}",
            remedy=f"wait for it with: blkrecov task wait {task.id}",
        )


def fail_drive(document: Document, name: str) -> Proposal:
    """A drive taken for failed, with all members on it. Its port fails all I/O from then on."""
    drive = document.drive(name)
    if not drive.online:
        raise InvalidOperation(
            f"drive {drive.name!r} is {drive.status.value} already", remedy="see: blkrecov drive list"
        )
    failed = msgspec.structs.replace(drive, status=DriveStatus.FAILED, reason=flapping.BY_REQUEST)
    document = document.with_drive(failed)
    for lun in document.luns:
        gone = frozenset(index for index, member in enumerate(lun.members) if member.drive == drive.uuid)
        if lun.layout.fault_tolerant:
            lost = lun.lost | lun.rebuilding | document.away(lun)
            for index in lun.layout.misses(len(lun.members), lost - gone, gone):
                lun = lun.with_member(index, msgspec.structs.replace(lun.members[index], state=MemberState.FAILED))
            document = document.with_lun(lun)
    for lun in document.luns:
        document = document.with_lun(_without_copies(lun, drive))
    return Proposal(document=document, why=f"drive {drive.name} has failed")


def _without_copies(lun: Lun, drive: Drive) -> Lun:
    """Members that were moving to a drive, or from it, stay where they are: no log tells what the copy misses from now on."""
    for index, member in enumerate(lun.members):
        if member.successor is not None and drive.uuid in (member.drive, member.successor.drive):
            lun = lun.with_member(index, msgspec.structs.replace(member, successor=None))
    return lun


def refuse_needed(document: Document, drive: Drive) -> None:
    """Raises: AnotherCallInProgress for a drive that a task is about, or that it moves something to or from."""
    for task in document.tasks:
        if not task.state.ended and drive.uuid in (task.lun, task.spare, task.leaving):
            raise AnotherCallInProgress(
                f"task {task.id} ({task.kind.value} of {', '.join(task.objects)}) needs drive {drive.name!r}",
                remedy=f"wait for it with: blkrecov task wait {task.id}",
            )


def remove_drive(document: Document, name: str) -> Proposal:
    """The array without a drive that nothing lies on, and no task needs."""
    drive = document.drive(name)
    refuse_needed(document, drive)
    users = [lun.name for lun in document.luns if drive.uuid in lun.drives]
    if users:
        raise DeviceInUse(
            f"drive {drive.name!r} serves LUN {', '.join(repr(user) for user in users)}",
            remedy=f"move what is on it with: blkrecov drive remove {drive.name}; or delete those LUNs first",
        )
    return Proposal(document=document.without_drive(drive), why=f"drive {drive.name} is removed")


def set_hot_spare(document: Document, name: str, spare: bool) -> Proposal:
    drive = document.drive(name)
    word = "is" if spare else "is no longer"
    return Proposal(
        document=document.with_drive(msgspec.structs.replace(drive, hot_spare=spare)),
        why=f"drive {drive.name} {word} a hot spare",
    )


def trust(document: Document, name: str) -> Proposal:
    """A drive that was set aside is one like all others again; what it did before is forgotten."""
    drive = document.drive(name)
    return Proposal(document=document.with_drive(flapping.cleared(drive)), why=f"drive {drive.name} is trusted again")


def configure(
    document: Document,
    *,
    auto_recover: bool | UnsetType | None = UNSET,
    scrub: Schedule | UnsetType = UNSET,
    rate_min: int | UnsetType = UNSET,
    rate_max: int | UnsetType = UNSET,
) -> Proposal:
    """The array with other settings (see model.Document); what is not given stays as it is. Rates are bytes per second.

    Raises: what tasks.refuse_rates() does; InvalidOperation for an array that has no drive to be written on yet.
    """
    if not document.drives:
        raise InvalidOperation(
            f"array {document.name!r} has no drive that its settings could be written on",
            remedy="add a drive first, with: blkrecov drive add PATH --size SIZE",
        )
    given = {"auto_recover": auto_recover, "scrub": scrub, "rate_min": rate_min, "rate_max": rate_max}
    wanted = msgspec.structs.replace(document, **{name: value for name, value in given.items() if value is not UNSET})
    tasks.refuse_rates(wanted.rate_min, wanted.rate_max)
    return Proposal(document=wanted, why=f"array {document.name} has new settings")
