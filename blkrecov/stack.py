"""The device stack: which device-mapper devices an array's document asks for, bottom to top.

    LUN           blkrecov-<array>-<lun>             linear on what is below; error when it has failed, or is not ready
    copy          ...-copy, ...-copy_log_K           mirror from a shadow copy to a LUN that is being restored, beside the LUN
    origin        ...-origin                         snapshot-origin on the plex of a LUN that has shadow copies
    shadow        ...-shadow                         snapshot on the origin's plex and the shadow copy's own, which is the store
    plex          ...-plex                           raid on the legs; for a linear LUN, linear on the ports
    legs          ...-rmeta_N, ...-rimage_N          linear on a port; error while the member is failed; mirror while it moves
    sides         ...-rimage_N_from, _to, _log_K     linear on a port; only below a leg that moves to another drive
    drive port    blkrecov-<array>-drive-<drive>     linear on the backing device; error while the drive is not online; flakey,
                                                     dust or delay where a fault is injected

A LUN's node and a leg's device number stay the same while what is below changes. A leg that is replaced is a new device, with
the new member's UUID: the kernel never sees another drive's contents under a leg that it knows (dm-raid would revive it on
the word of a superblock that has no identity).

A member that moves to another drive (model.Successor) is copied below its leg, by dm-mirror: the plex above waits for two swaps
of the leg's table and sees nothing else. The leg of the data is a mirror of several parts, each with a log on the drive that the
member moves to, so that a copy goes on after a crash. The log of the superblock's leg is kept in memory: that leg is a unit long,
and is copied anew from the member's own place, which all writes go to, whenever the mirror is loaded. A linear LUN has legs for
members that move, and only for those.

A shadow copy is right as long as every write to its origin goes through the device `origin`: so that stands above the plex
before anything else does, for as long as the LUN has shadow copies, and a restore writes through it too. What is read from
a shadow copy, by its host or by a restore, comes from the device `shadow`. Its own LUN is read-only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final
from uuid import UUID

from blkrecov import changes
from blkrecov.changes import Part, Runs, divide
from blkrecov.dm import names
from blkrecov.dm.table import (
    FLAKEY_LIMIT_S,
    CoreLog,
    DelayTable,
    DiskLog,
    DropWrites,
    DustTable,
    ErrorTable,
    ErrorWrites,
    FlakeyTable,
    Leg,
    LinearTable,
    MirrorLeg,
    MirrorPart,
    MirrorTable,
    RaidKind,
    RaidTable,
    Segment,
    SnapshotOriginTable,
    SnapshotTable,
    Table,
)
from blkrecov.geometry import plex_length
from blkrecov.model import (
    UNIT,
    Document,
    Drive,
    Extent,
    Fault,
    FaultKind,
    Layout,
    Lun,
    Member,
    MemberState,
    Restore,
    Successor,
)
from blkrecov.units import KIB, MIB, SECTOR, Sectors, sectors

# KiB/s per leg: as little as md takes. A synchronisation then does its first 128 KiB (drivers/md/md.c, md_do_sync(): the speed
# is looked at after so much) and next to nothing after that. The message "frozen" would stop it dead, but not on every kernel:
# from Linux 6.9 on it is refused, and interrupts all the same. Other LUNs have no rates, and keep to md's limits (dm/speed.py).
FROZEN_RATE: Final = 1

# How a member is copied. A mirror target copies one region at a time, in pieces of 512 KiB of which eight are under way, so
# regions of 4 MiB are as fast as any, and four targets side by side are faster still (drivers/md/dm-raid1.c, dm-kcopyd.c). A
# write to the region that is being copied waits for it. Each region rewrites all of its log: that is kept short.
PARTS: Final = 4
PART: Final = Sectors(16 * MIB // SECTOR)
COPY_REGION: Final = Sectors(4 * MIB // SECTOR)
LEAST_COPY_REGION: Final = Sectors(MIB // SECTOR // 4)
FEW_REGIONS: Final = 8
MANY_REGIONS: Final = 2**17
# Header and bits of one part's log, 2^17 bits and more; the parts' logs lie one behind the other.
LOG_LENGTH: Final = Sectors(UNIT // PARTS)
# As above, for each of the parts of a restore: of these there may be more (changes.divide()).
COPY_LOG_LENGTH: Final = Sectors(UNIT // 32)
META_COPY_REGION: Final = Sectors(MIB // SECTOR // 8)

# What a medium with unreadable sectors cannot read at a time, in bytes.
BAD_BLOCK: Final = 4 * KIB

# What compares a restored LUN with its source, bottom to top.
COMPARISON: Final = ("compare_from", "compare_to", "compare")

_KINDS: Final = {
    Layout.RAID0: RaidKind.RAID0,
    Layout.RAID1: RaidKind.RAID1,
    Layout.RAID4: RaidKind.RAID4,
    Layout.RAID5: RaidKind.RAID5,
    Layout.RAID6: RaidKind.RAID6,
    Layout.RAID10: RaidKind.RAID10,
}


class Layer(IntEnum):
    """Devices of a lower layer are made first and removed last."""

    PORT = 0
    SIDE = 1
    LEG = 2
    PLEX = 3
    SHADOW = 4
    ORIGIN = 5
    COPY = 6
    LUN = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that is wanted. `owner` is the UUID of the drive or LUN that it belongs to."""

    name: str
    uuid: str
    layer: Layer
    owner: UUID
    table: Table
    read_only: bool = False

    @property
    def visible(self) -> bool:
        """Whether udev may look inside and make links: only LUNs are anybody's business."""
        return self.layer is Layer.LUN


def node(name: str) -> str:
    return f"/dev/mapper/{name}"


def own_node(device: Device) -> str:
    """Where a device is found that has the name it should have."""
    return node(device.name)


def port_node(document: Document, drive: UUID) -> str:
    """Where a drive's port is found."""
    return node(names.drive_name(document.name, document.drive_of(drive).name))


def port(document: Document, drive: Drive, backing: str | None) -> Device:
    """The drive port. `backing` is the device that holds the drive's sectors, None while there is none."""
    length = sectors(drive.size)
    if drive.online and backing is not None:
        table = _served(Segment(device=backing, offset=Sectors(0), length=length), drive.fault)
    else:
        table = ErrorTable(length=length).render()
    name = names.drive_name(document.name, drive.name)
    return Device(name=name, uuid=names.dm_uuid(drive.uuid, "drive"), layer=Layer.PORT, owner=drive.uuid, table=table)


def _served(segment: Segment, fault: Fault | None) -> Table:
    """A drive's sectors, as well as its fault lets them be had."""
    match fault:
        case None:
            return LinearTable(segments=(segment,)).render()
        case Fault(kind=FaultKind.AFTER, value=value):
            return FlakeyTable(source=segment, up_s=int(value), down_s=FLAKEY_LIMIT_S - int(value)).render()
        case Fault(kind=FaultKind.ERROR_RATE):
            return DustTable(source=segment, block=BAD_BLOCK).render()
        case Fault(kind=FaultKind.SLOW, value=value):
            return DelayTable(source=segment, read_ms=int(value), write_ms=int(value)).render()
        case Fault(kind=FaultKind.DROP_WRITES):
            return FlakeyTable(source=segment, up_s=0, down_s=1, features=(DropWrites(),)).render()
    raise AssertionError(fault)


def parts(length: int) -> tuple[Part, ...]:
    """How a member of so many sectors is copied. This is part of the on-drive format: a log tells of regions by their number."""
    count = min(max(length // PART, 1), PARTS)
    each = length // count // UNIT * UNIT
    last = length - each * (count - 1)
    region = COPY_REGION
    while each < region * FEW_REGIONS and region > LEAST_COPY_REGION:
        region = Sectors(region // 2)
    while last > region * MANY_REGIONS:
        region = Sectors(region * 2)
    starts = [Sectors(number * each) for number in range(count)]
    return tuple(Part(start, Sectors(last if start == starts[-1] else each), region) for start in starts)


def moving(document: Document, member: Member) -> Successor | None:
    """Where a member is being copied to. Not while either drive is away, nor once the member itself has missed writes."""
    successor = member.successor
    if successor is None or member.state is not MemberState.IN_SYNC:
        return None
    online = document.drive_of(member.drive).online and document.drive_of(successor.drive).online
    return successor if online else None


def legs(document: Document, lun: Lun, place: Callable[[Device], str] = own_node) -> tuple[Device, ...]:
    """Superblock and data device of every member, each behind what is below it; for a linear LUN, those of members that move.

    `place` gives the node under which a device is to be found.
    """
    devices: list[Device] = []
    for index, member in enumerate(lun.members):
        successor = moving(document, member)
        roles = ("rmeta", "rimage") if member.meta else ("rimage",)
        if successor is not None:
            for role in roles:
                devices += _copied_leg(document, lun, index, role, successor, place)
        elif lun.layout is not Layout.LINEAR:
            devices += [leg(document, lun, index, role) for role in roles]
    return tuple(devices)


def _copied_leg(
    document: Document, lun: Lun, index: int, role: str, successor: Successor, place: Callable[[Device], str]
) -> list[Device]:
    """A leg that is a mirror from a member's place to its successor's, behind the devices of both, and of its logs.

    Read-ahead that comes through fails where nothing was copied yet (drivers/md/dm-raid1.c, mirror_map(), REQ_RAHEAD). The page
    cache then reads page by page: right, but slow for who uses the node of a linear or raid0 LUN. SCSI disks send no read-ahead.
    """
    member = lun.members[index]
    extents, new = {"rmeta": (member.meta, successor.meta), "rimage": (member.data, successor.data)}[role]
    length = sum(extent.length for extent in extents)
    source = _side(document, lun, index, f"{role}_from", successor.uuid, member.drive, extents)
    target = _side(document, lun, index, f"{role}_to", successor.uuid, successor.drive, new)
    sides = [source, target]
    mirrors = []
    for number, part in enumerate(
        (Part(Sectors(0), Sectors(length), META_COPY_REGION),) if role == "rmeta" else parts(length)
    ):
        log: CoreLog | DiskLog = CoreLog(region=part.region)
        if role == "rimage":
            where = (Extent(successor.log[0].start + number * LOG_LENGTH, LOG_LENGTH),)
            sides.append(_side(document, lun, index, f"{role}_log_{number}", successor.uuid, successor.drive, where))
            log = DiskLog(device=place(sides[-1]), region=part.region)
        ends = tuple(MirrorLeg(device=place(side), offset=part.start) for side in (source, target))
        mirrors.append(MirrorPart(length=part.length, log=log, legs=ends))
    table = MirrorTable(parts=tuple(mirrors)).render()
    return [*sides, replace(leg(document, lun, index, role), table=table)]


def _side(
    document: Document, lun: Lun, index: int, role: str, uuid: UUID, drive: UUID, extents: tuple[Extent, ...]
) -> Device:
    return Device(
        name=names.side_name(document.name, lun.name, index, role),
        uuid=names.dm_uuid(uuid, role),
        layer=Layer.SIDE,
        owner=lun.uuid,
        table=LinearTable(segments=_segments(document, drive, extents)).render(),
    )


def leg(document: Document, lun: Lun, index: int, role: str) -> Device:
    """A leg on a member's own place. The role is "rmeta" or "rimage"."""
    member = lun.members[index]
    extents = {"rmeta": member.meta, "rimage": member.data}[role]
    drive = document.drive_of(member.drive)
    # On a drive that is away the port's error table says it all, and the leg has nothing to change when the drive is back.
    if member.state is MemberState.FAILED and drive.online:
        table = ErrorTable(length=Sectors(sum(extent.length for extent in extents))).render()
    else:
        table = LinearTable(segments=_segments(document, member.drive, extents)).render()
    name = {"rmeta": names.meta_name, "rimage": names.data_name}[role](document.name, lun.name, index)
    return Device(name=name, uuid=names.dm_uuid(member.uuid, role), layer=Layer.LEG, owner=lun.uuid, table=table)


def _segments(document: Document, drive: UUID, extents: tuple[Extent, ...]) -> tuple[Segment, ...]:
    device = port_node(document, drive)
    return tuple(
        Segment(device=device, offset=Sectors(extent.start), length=Sectors(extent.length)) for extent in extents
    )


def plex(document: Document, lun: Lun, leg_nodes: Mapping[str, str], rebuild: tuple[int, ...] = ()) -> Device:
    """The plex. `leg_nodes` gives the node under which a leg's dm UUID is to be found.

    `rebuild` holds the members to regenerate from the start. It is for one load only: a table that keeps the word would
    start the rebuild again at every later load.
    """
    name, uuid = names.plex_name(document.name, lun.name), names.dm_uuid(lun.uuid, "plex")
    frozen = lun.frozen and lun.layout.fault_tolerant
    if lun.layout is Layout.LINEAR:
        segments: list[Segment] = []
        for member in lun.members:
            if moving(document, member) is not None:
                below = leg_nodes[names.dm_uuid(member.uuid, "rimage")]
                segments.append(Segment(device=below, offset=Sectors(0), length=member.length))
            else:
                segments += _segments(document, member.drive, member.data)
        table = LinearTable(segments=tuple(segments)).render()
    else:
        table = RaidTable(
            kind=_KINDS[lun.layout],
            length=plex_length(lun),
            chunk=Sectors(lun.chunk),
            region=Sectors(lun.region) if lun.region else None,
            rebuild=rebuild,
            min_recovery_rate=FROZEN_RATE if frozen else None,
            max_recovery_rate=FROZEN_RATE if frozen else None,
            legs=tuple(
                Leg(
                    meta=leg_nodes[names.dm_uuid(member.uuid, "rmeta")] if member.meta else None,
                    data=leg_nodes[names.dm_uuid(member.uuid, "rimage")],
                )
                for member in lun.members
            ),
        ).render()
    return Device(name=name, uuid=uuid, layer=Layer.PLEX, owner=lun.uuid, table=table)


def below(document: Document, lun: Lun) -> str:
    """The node of what a LUN's contents are read from and written to."""
    if lun.differential:
        return node(names.layer_name(document.name, lun.name, "shadow"))
    if document.shadows_of(lun.uuid):
        return node(names.layer_name(document.name, lun.name, "origin"))
    return node(names.plex_name(document.name, lun.name))


def origin(document: Document, lun: Lun) -> Device:
    """What a LUN that has shadow copies is written through."""
    plex_node = node(names.plex_name(document.name, lun.name))
    table = SnapshotOriginTable(length=plex_length(lun), origin=plex_node).render()
    return _layer(document, lun, "origin", Layer.ORIGIN, table)


def shadow(document: Document, lun: Lun) -> Device:
    """A differential shadow copy's contents."""
    assert lun.shadow is not None
    of = document.lun_of(lun.shadow.origin)
    table = SnapshotTable(
        length=Sectors(lun.size),
        origin=node(names.plex_name(document.name, of.name)),
        cow=node(names.plex_name(document.name, lun.name)),
        chunk=Sectors(lun.shadow.chunk),
    ).render()
    return _layer(document, lun, "shadow", Layer.SHADOW, table)


def copying(document: Document, lun: Lun) -> bool:
    """Whether the kernel is to copy a shadow copy onto a LUN now."""
    restore = lun.restore
    if restore is None or not restore.length or restore.held or restore.comparing:
        return False
    return _can_be_read(document, restore)


def comparing(document: Document, lun: Lun) -> bool:
    """Whether the kernel is to compare a LUN with what was copied onto it."""
    return lun.restore is not None and lun.restore.comparing and _can_be_read(document, lun.restore)


def _can_be_read(document: Document, restore: Restore) -> bool:
    return any(other.uuid == restore.source and not _is_lost(other) for other in document.luns)


def copy(document: Document, lun: Lun) -> tuple[Device, ...]:
    """What restores a LUN: a mirror from the shadow copy to it, of several parts, each behind its log; the logs come first."""
    restore = lun.restore
    assert restore is not None
    assert restore.drive is not None
    source = below(document, document.lun_of(restore.source))
    devices, mirrors = [], []
    for number, part in enumerate(divide(restore.length, restore.region, restore.parts)):
        where = (Extent(restore.log[0].start + number * COPY_LOG_LENGTH, COPY_LOG_LENGTH),)
        role = f"copy_log_{number}"
        log = Device(
            name=names.layer_name(document.name, lun.name, role),
            uuid=names.dm_uuid(restore.uuid, role),
            layer=Layer.SIDE,
            owner=lun.uuid,
            table=LinearTable(segments=_segments(document, restore.drive, where)).render(),
        )
        devices.append(log)
        ends = tuple(MirrorLeg(device=end, offset=Sectors(part.start)) for end in (source, below(document, lun)))
        disk = DiskLog(device=own_node(log), region=Sectors(part.region))
        mirrors.append(MirrorPart(length=Sectors(part.length), log=disk, legs=ends))
    device = _layer(document, lun, "copy", Layer.COPY, MirrorTable(parts=tuple(mirrors)).render())
    return (*devices, replace(device, uuid=names.dm_uuid(restore.uuid, "copy")))


def comparison(document: Document, lun: Lun, runs: Runs) -> tuple[Device, ...]:
    """What has the kernel compare runs of a restored LUN with its source: a mirror that is never written to, asked for a check.

    md writes what it could read over what it could not (drivers/md/raid1.c, fix_sync_read_error()): it would alter the source,
    even one that is loaded read-only. So its legs fail all writes, and a leg that cannot be read is one that has failed.
    """
    restore = lun.restore
    assert restore is not None
    length = Sectors(changes.total(runs))
    legs = []
    for role, end in zip(
        COMPARISON, (below(document, document.lun_of(restore.source)), below(document, lun)), strict=False
    ):
        segments, offset = [], 0
        for run in runs:
            source = Segment(device=end, offset=Sectors(run.start), length=Sectors(run.length))
            flakey = FlakeyTable(source=source, up_s=0, down_s=1, features=(ErrorWrites(),))
            segments += [replace(line, start=Sectors(offset)) for line in flakey.render()]
            offset += run.length
        legs.append(_layer(document, lun, role, Layer.SIDE, tuple(segments)))
    raid = RaidTable(
        kind=RaidKind.RAID1,
        length=length,
        chunk=Sectors(0),
        nosync=True,
        legs=tuple(Leg(meta=None, data=own_node(device)) for device in legs),
    )
    devices = (*legs, _layer(document, lun, "compare", Layer.COPY, raid.render()))
    return tuple(
        replace(device, uuid=names.dm_uuid(restore.uuid, role))
        for device, role in zip(devices, COMPARISON, strict=True)
    )


def _layer(document: Document, lun: Lun, role: str, layer: Layer, table: Table) -> Device:
    name = names.layer_name(document.name, lun.name, role)
    return Device(name=name, uuid=names.dm_uuid(lun.uuid, role), layer=layer, owner=lun.uuid, table=table)


def top(document: Document, lun: Lun, *, failed: bool) -> Device:
    """What the host sees."""
    length = Sectors(lun.size)
    if failed or not lun.ready or _is_lost(lun):
        table = ErrorTable(length=length).render()
    else:
        table = LinearTable(segments=(Segment(device=below(document, lun), offset=Sectors(0), length=length),)).render()
    return Device(
        name=names.lun_name(document.name, lun.name),
        uuid=names.dm_uuid(lun.uuid, "lun"),
        layer=Layer.LUN,
        owner=lun.uuid,
        table=table,
        read_only=lun.shadow is not None,
    )


def _is_lost(lun: Lun) -> bool:
    return lun.shadow is not None and bool(lun.shadow.lost)
