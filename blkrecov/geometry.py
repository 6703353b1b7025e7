"""Where things lie: the free space of drives, which drives a LUN's members go to, and how long each member is.

What always holds: extents are whole allocation units inside the drive's data area and never overlap; no two members of a LUN
share a drive (a linear LUN, which has nothing to lose by it, may); hot spares are left alone by ordinary allocation; a drive that
is set aside, or is being removed, is given nothing more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec

from blkrecov.errors import AnotherCallInProgress, InvalidArgument, NotEnoughDrives, NotEnoughSpace
from blkrecov.model import UNIT, Document, Drive, Extent, Layout, Lun, Member, MemberState, Role, Successor, TaskKind
from blkrecov.units import KIB, MIB, SECTOR, Bytes, Sectors, format_size, in_bytes, round_up, sectors

CHUNK: Final = Sectors(64 * KIB // SECTOR)
# One write-intent bit per region. dm-raid's own default is 4 MiB; a returned drive is rewritten by whole regions.
REGION: Final = Sectors(1 * MIB // SECTOR)
# Superblock, bitmap header and one bit per region: a unit has room for the kernel's most, 2^21 regions.
META: Final = UNIT
MAX_REGIONS: Final = 2**21
# The dirty log of a member's copy to another drive: one unit has room for the logs of all its parts (stack.parts()).
LOG: Final = UNIT
MIN_LUN: Final = Bytes(1 * MIB)
MAX_MEMBERS: Final = 64


@dataclass(frozen=True, slots=True)
class Region:
    """A used run of a drive. `arriving`: the member is being copied there, and serves from elsewhere still. What is no member's
    is the log of a LUN that is restored.
    """

    extent: Extent
    role: Role
    lun: Lun
    member: int | None
    arriving: bool = False


def used(document: Document, drive: Drive) -> tuple[Region, ...]:
    """What lies on a drive, in the order of its sectors."""
    regions = [
        Region(extent, role, lun, index)
        for lun in document.luns
        for index, member in enumerate(lun.members)
        if member.drive == drive.uuid
        for role, extents in ((Role.META, member.meta), (Role.DATA, member.data))
        for extent in extents
    ]
    regions += [
        Region(extent, role, lun, index, arriving=True)
        for lun in document.luns
        for index, member in enumerate(lun.members)
        if (successor := member.successor) is not None and successor.drive == drive.uuid
        for role, extents in ((Role.META, successor.log + successor.meta), (Role.DATA, successor.data))
        for extent in extents
    ]
    regions += [
        Region(extent, Role.META, lun, None)
        for lun in document.luns
        if lun.restore is not None and lun.restore.drive == drive.uuid
        for extent in lun.restore.log
    ]
    return tuple(sorted(regions, key=lambda region: region.extent.start))


def free(document: Document, drive: Drive) -> tuple[Extent, ...]:
    """The gaps of a drive, in the order of its sectors."""
    gaps, position = [], drive.data_start
    for region in used(document, drive):
        if region.extent.start > position:
            gaps.append(Extent(position, region.extent.start - position))
        position = region.extent.end
    if position < drive.data_start + drive.data_length:
        gaps.append(Extent(position, drive.data_start + drive.data_length - position))
    return tuple(gaps)


def free_length(document: Document, drive: Drive) -> Sectors:
    return Sectors(sum(gap.length for gap in free(document, drive)))


def carve(gaps: Sequence[Extent], length: int) -> tuple[tuple[Extent, ...], tuple[Extent, ...]]:
    """Take `length` sectors out of gaps: (extents taken, gaps left).

    One piece if any gap has room for it, the smallest such gap; else the largest gaps, as few as possible.
    """
    assert length % UNIT == 0, f"{length} sectors are no whole number of allocation units"
    whole = min((gap for gap in gaps if gap.length >= length), key=lambda gap: (gap.length, gap.start), default=None)
    order = [whole] if whole else sorted(gaps, key=lambda gap: (-gap.length, gap.start))
    taken: list[Extent] = []
    left = set(gaps)
    for gap in order:
        if not length:
            break
        piece = min(gap.length, length)
        taken.append(Extent(gap.start, piece))
        left.discard(gap)
        if piece < gap.length:
            left.add(Extent(gap.start + piece, gap.length - piece))
        length -= piece
    assert not length, "the caller checked that there is room"
    return tuple(taken), tuple(sorted(left, key=lambda gap: gap.start))


def member_length(layout: Layout, size: int, members: int) -> Sectors:
    """Sectors of data that each member of a LUN of `size` sectors holds: whole allocation units."""
    if layout is Layout.LINEAR:
        return Sectors(round_up(size, UNIT))
    return Sectors(round_up(-(-size // layout.data_members(members)), UNIT))


def region_size(length: int) -> Sectors:
    """Sectors per write-intent bit for a plex of `length` sectors: a power of two, as small as the kernel's limit allows."""
    region = REGION
    while length > region * MAX_REGIONS:
        region = Sectors(region * 2)
    return region


def plex_length(lun: Lun) -> Sectors:
    """Sectors of the plex: what its members hold together, parity and copies not counted."""
    if lun.layout is Layout.LINEAR:
        return Sectors(sum(member.length for member in lun.members))
    return Sectors(lun.members[0].length * lun.layout.data_members(len(lun.members)))


def lun_size(size: int) -> Sectors:
    """Sectors of a LUN that somebody wants `size` bytes large, in whole allocation units. Refuses what is too small."""
    if size < MIN_LUN:
        raise InvalidArgument(f"{size} bytes are too small for a LUN", remedy=f"use at least {format_size(MIN_LUN)}")
    return sectors(round_up(size, in_bytes(UNIT)))


@dataclass(frozen=True, slots=True)
class Request:
    """A LUN that somebody wants. `drives` names the only ones that may be used; `members` is how many, None for as few as do."""

    name: str
    layout: Layout
    size: Bytes
    drives: tuple[str, ...] = ()
    members: int | None = None
    exported: bool = True


def place(document: Document, request: Request, ids: Iterator[UUID]) -> Lun:
    """A new LUN, its members placed on drives.

    Raises: InvalidArgument for a number of members that the layout cannot have, NotEnoughDrives, NotEnoughSpace.
    """
    size = lun_size(request.size)
    candidates = _candidates(document, request)
    if request.layout is Layout.LINEAR:
        members = _place_linear(document, size, candidates, ids)
    else:
        members = _place_striped(document, request, size, candidates, ids)
    lun = Lun(
        uuid=next(ids),
        name=request.name,
        layout=request.layout,
        size=size,
        members=members,
        exported=request.exported,
        chunk=0 if request.layout in (Layout.LINEAR, Layout.RAID1) else CHUNK,
        # A layout without redundancy has nothing to synchronise.
        initialised=not request.layout.fault_tolerant,
    )
    if not request.layout.fault_tolerant:
        return lun
    return msgspec.structs.replace(lun, region=region_size(plex_length(lun)))


def _candidates(document: Document, request: Request) -> list[Drive]:
    """The drives that may be used, the emptiest first, or in the order in which they were named."""
    if request.drives:
        if len(set(request.drives)) != len(request.drives):
            raise InvalidArgument(
                f"a drive is named twice in {','.join(request.drives)}", remedy="name each drive once"
            )
        named = [document.drive(name) for name in request.drives]
        for drive in named:
            if not drive.online:
                raise NotEnoughDrives(
                    f"drive {drive.name!r} is {drive.status.value}",
                    remedy="name drives that are online: blkrecov drive list",
                )
            _refuse_unwanted(document, drive)
        return named
    usable = [drive for drive in _usable(document) if not drive.hot_spare]
    return sorted(usable, key=lambda drive: (-free_length(document, drive), document.drives.index(drive)))


def _leaving(document: Document) -> frozenset[UUID]:
    """The drives that are being removed."""
    return frozenset(task.lun for task in document.tasks if task.kind is TaskKind.REMOVE and not task.state.ended)


def _usable(document: Document) -> list[Drive]:
    """The drives that may be given something."""
    leaving = _leaving(document)
    return [drive for drive in document.drives if drive.online and not drive.failing and drive.uuid not in leaving]


def _place_linear(
    document: Document, size: int, candidates: Sequence[Drive], ids: Iterator[UUID]
) -> tuple[Member, ...]:
    """Extents one after the other: on one drive if any has room, else on as few as possible."""
    fitting = [drive for drive in candidates if free_length(document, drive) >= size]
    best = min(fitting, key=lambda drive: free_length(document, drive), default=None)
    members: list[Member] = []
    missing = size
    for drive in [best] if best else candidates:
        length = min(missing, free_length(document, drive))
        if length:
            taken, _ = carve(free(document, drive), length)
            members.append(Member(uuid=next(ids), drive=drive.uuid, state=MemberState.IN_SYNC, data=taken))
            missing -= length
    if missing:
        have = in_bytes(Sectors(size - missing))
        raise NotEnoughSpace(
            f"{format_size(in_bytes(Sectors(size)))} do not fit into the {format_size(have)} that are free"
        )
    return tuple(members)


def _place_striped(
    document: Document, request: Request, size: int, candidates: Sequence[Drive], ids: Iterator[UUID]
) -> tuple[Member, ...]:
    layout = request.layout
    count = _count(document, request, size, candidates)
    length = member_length(layout, size, count)
    meta = META if layout.fault_tolerant else 0
    members = []
    for drive in [drive for drive in candidates if free_length(document, drive) >= length + meta][:count]:
        members.append(new_member(document, drive, length, meta=bool(meta), uuid=next(ids)))
    return tuple(members)


def new_member(
    document: Document, drive: Drive, length: int, *, meta: bool, uuid: UUID, state: MemberState = MemberState.IN_SYNC
) -> Member:
    """A member on a drive that has room for it: superblock and bitmap first, data behind."""
    gaps = free(document, drive)
    meta_extents: tuple[Extent, ...] = ()
    if meta:
        meta_extents, gaps = carve(gaps, META)
    data, _ = carve(gaps, length)
    return Member(uuid=uuid, drive=drive.uuid, state=state, meta=meta_extents, data=data)


def new_successor(document: Document, drive: Drive, member: Member, uuid: UUID) -> Successor:
    """A place for a member on a drive that has room for it: superblock and bitmap, the copy's log, then data."""
    gaps = free(document, drive)
    meta: tuple[Extent, ...] = ()
    if member.meta:
        meta, gaps = carve(gaps, sum(extent.length for extent in member.meta))
    log, gaps = carve(gaps, LOG)
    data, _ = carve(gaps, member.length)
    return Successor(uuid=uuid, drive=drive.uuid, data=data, meta=meta, log=log)


def beyond(member: Member, length: int) -> tuple[Extent, ...]:
    """What a member holds after its first `length` sectors."""
    found = []
    for extent in member.data:
        if extent.length > length:
            found.append(Extent(extent.start + max(length, 0), extent.length - max(length, 0)))
        length -= extent.length
    return tuple(found)


def place_log(document: Document, avoid: frozenset[UUID] = frozenset()) -> tuple[Drive, tuple[Extent, ...]]:
    """Where the log of a restore is kept: a drive with room, the emptiest, and its extent.

    Raises: NotEnoughSpace.
    """
    usable = [drive for drive in _usable(document) if drive.uuid not in avoid]
    roomy = [drive for drive in usable if free_length(document, drive) >= LOG]
    if not roomy:
        raise NotEnoughSpace(f"no drive has {format_size(in_bytes(LOG))} free for the log of a copy")
    best = min(roomy, key=lambda drive: (drive.hot_spare, -free_length(document, drive)))
    return best, carve(free(document, best), LOG)[0]


def shrunk(lun: Lun, size: int) -> Lun:
    """The LUN with `size` sectors, and members that hold no more than those need; what they held beyond is free."""
    if lun.layout is Layout.LINEAR:
        members, left = [], round_up(size, UNIT)
        for member in lun.members:
            if left > 0:
                members.append(_cut(member, min(left, member.length)))
            left -= member.length
        return msgspec.structs.replace(lun, size=size, members=tuple(members))
    length = member_length(lun.layout, size, len(lun.members))
    members = [_cut(member, min(length, member.length)) for member in lun.members]
    return msgspec.structs.replace(lun, size=size, members=tuple(members))


def _cut(member: Member, length: int) -> Member:
    data: list[Extent] = []
    for extent in member.data:
        if length > 0:
            data.append(Extent(extent.start, min(extent.length, length)))
        length -= extent.length
    return msgspec.structs.replace(member, data=tuple(data))


def successor_length(member: Member) -> int:
    """Sectors that new_successor() takes."""
    return member.length + sum(extent.length for extent in member.meta) + LOG


def _count(document: Document, request: Request, size: int, candidates: Sequence[Drive]) -> int:
    """How many members: as many as asked for, else the fewest with which the LUN fits on the drives there are."""
    layout = request.layout
    wanted = request.members or (len(request.drives) or None)
    if wanted is not None:
        _refuse_count(layout, wanted)
        counts = [wanted]
    elif layout is Layout.RAID1:
        counts = [layout.minimum]  # More copies make no room.
    else:
        counts = list(range(layout.minimum, min(len(candidates), MAX_MEMBERS) + 1, 2 if layout is Layout.RAID10 else 1))
        counts = counts or [layout.minimum]
    if len(candidates) < counts[0]:
        raise NotEnoughDrives(
            f"{layout.value} with {counts[0]} members needs {counts[0]} drives that are online and no hot spares; "
            f"there are {len(candidates)}{_set_aside(document)}"
        )
    meta = META if layout.fault_tolerant else 0
    for count in counts:
        needed = member_length(layout, size, count) + meta
        if sum(free_length(document, drive) >= needed for drive in candidates) >= count:
            return count
    needed = member_length(layout, size, counts[-1]) + meta
    roomy = sum(free_length(document, drive) >= needed for drive in candidates)
    raise NotEnoughSpace(
        f"{layout.value} of {format_size(in_bytes(Sectors(size)))} on {counts[-1]} drives needs "
        f"{format_size(in_bytes(Sectors(needed)))} free on each; {roomy} of {len(candidates)} have that"
    )


def _refuse_count(layout: Layout, count: int) -> None:
    if count < layout.minimum:
        raise InvalidArgument(
            f"{layout.value} cannot have {count} members", remedy=f"use at least {layout.minimum} drives"
        )
    if layout is Layout.RAID10 and count % 2:
        raise InvalidArgument(
            f"raid10 keeps pairs and cannot have {count} members", remedy="use an even number of drives"
        )
    if count > MAX_MEMBERS:
        raise InvalidArgument(f"{count} members are too many", remedy=f"use at most {MAX_MEMBERS} drives")


def extended(document: Document, lun: Lun, size: Bytes, ids: Iterator[UUID]) -> Lun:
    """The LUN made larger: each member grows on its own drive; a linear LUN goes on wherever there is room.

    Raises: InvalidArgument when it would not grow, AnotherCallInProgress while a member moves, NotEnoughSpace naming the drive
            that has too little.
    """
    wanted = lun_size(size)
    if wanted <= lun.size:
        raise InvalidArgument(
            f"LUN {lun.name!r} has {format_size(lun.bytes)} already; {format_size(size)} would not make it larger",
            remedy="give the new size, larger than the present one",
        )
    if any(member.successor is not None for member in lun.members):
        raise AnotherCallInProgress(
            f"a member of LUN {lun.name!r} is moving to another drive, to a place of its present size"
        )
    if lun.layout is Layout.LINEAR:
        missing = round_up(wanted - plex_length(lun), UNIT)
        members = lun.members
        if missing > 0:
            request = Request(name=lun.name, layout=Layout.LINEAR, size=in_bytes(Sectors(missing)))
            members = (*members, *_place_linear(document, missing, _candidates(document, request), ids))
        return msgspec.structs.replace(lun, size=wanted, members=members)
    length = member_length(lun.layout, wanted, len(lun.members))
    grown = []
    for member in lun.members:
        more = length - member.length
        drive = document.drive_of(member.drive)
        if more > 0:
            _refuse_unwanted(document, drive)
        if free_length(document, drive) < more:
            raise NotEnoughSpace(
                f"LUN {lun.name!r} needs {format_size(in_bytes(Sectors(more)))} more on drive {drive.name!r}, "
                f"which has {format_size(in_bytes(free_length(document, drive)))} free",
                remedy="choose a smaller size, or delete what else is on that drive",
            )
        taken = carve(free(document, drive), more)[0] if more > 0 else ()
        grown.append(msgspec.structs.replace(member, data=joined((*member.data, *taken))))
    return msgspec.structs.replace(lun, size=wanted, members=tuple(grown))


def joined(extents: tuple[Extent, ...]) -> tuple[Extent, ...]:
    """The same sectors in the same order, neighbours made one."""
    result: list[Extent] = []
    for extent in extents:
        if result and result[-1].end == extent.start:
            result[-1] = Extent(result[-1].start, result[-1].length + extent.length)
        else:
            result.append(extent)
    return tuple(result)


def choose_substitute(document: Document, lun: Lun, length: int, spare: Drive | None) -> Drive:
    """The drive that a lost member's substitute goes to. Raises what choose_drive() does."""
    return choose_drive(document, lun, length + META, spare)


def choose_drive(document: Document, lun: Lun, needed: int, spare: Drive | None) -> Drive:
    """A drive with so many free sectors for a member of a LUN, in the place of one that is lost or is to leave its drive.

    In this order: the drive that was asked for; the smallest hot spare with room; free space, on the drive where it leaves
    the least behind. A drive that has failed lately comes after those that have not; the lost member's own, should it be online,
    comes last. Never a drive with another member of this LUN, nor one that is set aside or being removed.

    Raises: NotEnoughDrives, NotEnoughSpace; for an explicit spare, InvalidArgument if it can never serve this LUN.
    """
    moving = {member.successor.drive for member in lun.members if member.successor is not None}
    busy = moving | {member.drive for member in lun.members if member.state is not MemberState.FAILED}
    if spare is not None:
        _refuse_spare(document, lun, spare, needed, busy)
        return spare
    others = [drive for drive in _usable(document) if drive.uuid not in busy]
    fitting = [drive for drive in others if free_length(document, drive) >= needed]

    def order(drive: Drive) -> tuple[bool, int, bool, int, int]:
        failed_once = drive.uuid in lun.drives
        room = free_length(document, drive)
        return failed_once, len(drive.failures), not drive.hot_spare, room, document.drives.index(drive)

    best = min(fitting, key=order, default=None)
    if best is not None:
        return best
    if others:
        raise NotEnoughSpace(
            f"no drive outside LUN {lun.name!r} has the {format_size(in_bytes(Sectors(needed)))} free that a substitute needs"
            f"{_set_aside(document)}"
        )
    aside = [drive.name for drive in document.drives if drive.online and drive.failing and drive.uuid not in busy]
    if aside:
        raise NotEnoughDrives(
            f"the only drives that could serve LUN {lun.name!r} are set aside: {', '.join(aside)}",
            remedy=f"add a drive, or trust one again with: blkrecov drive trust {aside[0]}",
        )
    raise NotEnoughDrives(
        f"every drive that is online serves LUN {lun.name!r} already: there is none to substitute{_set_aside(document)}"
    )


def _refuse_spare(document: Document, lun: Lun, spare: Drive, needed: int, busy: set[UUID]) -> None:
    if spare.uuid in busy:
        raise InvalidArgument(
            f"drive {spare.name!r} serves LUN {lun.name!r} already", remedy="choose a drive that the LUN does not use"
        )
    if not spare.online:
        raise NotEnoughDrives(f"drive {spare.name!r} is {spare.status.value}", remedy="choose a drive that is online")
    _refuse_unwanted(document, spare)
    if free_length(document, spare) < needed:
        raise NotEnoughSpace(
            f"drive {spare.name!r} has {format_size(in_bytes(free_length(document, spare)))} free; "
            f"the substitute needs {format_size(in_bytes(Sectors(needed)))}",
            remedy="choose a drive with more free space",
        )


def _refuse_unwanted(document: Document, drive: Drive) -> None:
    """Raises: InvalidArgument for a drive that is given nothing more."""
    if drive.failing:
        raise InvalidArgument(
            f"drive {drive.name!r} is set aside: {drive.failing}",
            remedy=f"use another drive, or trust it again with: blkrecov drive trust {drive.name}",
        )
    if drive.uuid in _leaving(document):
        raise InvalidArgument(f"drive {drive.name!r} is being removed from the array", remedy="use another drive")


def _set_aside(document: Document) -> str:
    """The rest of a sentence that says that there are too few drives."""
    failing = [drive.name for drive in document.drives if drive.online and drive.failing]
    leaving = [drive.name for drive in document.drives if drive.uuid in _leaving(document)]
    return (f"; set aside for failing too often: {', '.join(failing)}" if failing else "") + (
        f"; being removed: {', '.join(leaving)}" if leaving else ""
    )
