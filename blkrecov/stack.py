"""The device stack: which device-mapper devices an array's document asks for, bottom to top.

    LUN           blkrecov-<array>-<lun>             linear on the plex; error when the LUN has failed
    plex          ...-plex                           raid on the legs; for a linear LUN, linear on the ports
    legs          ...-rmeta_N, ...-rimage_N          linear on a port; error while the member is failed
    drive port    blkrecov-<array>-drive-<drive>     linear on the backing device; error while the drive is not online

A LUN's node and a leg's device number stay the same while what is below changes. A leg that is replaced is a new device, with
the new member's UUID: the kernel never sees another drive's contents under a leg that it knows (dm-raid would revive it on
the word of a superblock that has no identity).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final
from uuid import UUID

from blkrecov.dm import names
from blkrecov.dm.table import ErrorTable, Leg, LinearTable, RaidKind, RaidTable, Segment, Table
from blkrecov.geometry import plex_length
from blkrecov.model import Document, Drive, Extent, Layout, Lun, Member, MemberState
from blkrecov.units import Sectors, sectors

# KiB/s per leg. md's own ceiling of 200 MB/s makes an idle machine wait six times as long as its kernel needs; md's floor
# stays, so a resynchronisation still gives way to other I/O (drivers/md/md.c, is_mddev_idle()).
RECOVERY_CEILING: Final = 16 * 2**20

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
    LEG = 1
    PLEX = 2
    LUN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that is wanted. `owner` is the UUID of the drive or LUN that it belongs to."""

    name: str
    uuid: str
    layer: Layer
    owner: UUID
    table: Table

    @property
    def visible(self) -> bool:
        """Whether udev may look inside and make links: only LUNs are anybody's business."""
        return self.layer is Layer.LUN


def node(name: str) -> str:
    return f"/dev/mapper/{name}"


def port(document: Document, drive: Drive, backing: str | None) -> Device:
    """The drive port. `backing` is the device that holds the drive's sectors, None while there is none."""
    length = sectors(drive.size)
    if drive.online and backing is not None:
        table = LinearTable(segments=(Segment(device=backing, offset=Sectors(0), length=length),)).render()
    else:
        table = ErrorTable(length=length).render()
    name = names.drive_name(document.name, drive.name)
    return Device(name=name, uuid=names.dm_uuid(drive.uuid, "drive"), layer=Layer.PORT, owner=drive.uuid, table=table)


def legs(document: Document, lun: Lun) -> tuple[Device, ...]:
    """Superblock and data device of every member; nothing for a linear LUN."""
    if lun.layout is Layout.LINEAR:
        return ()
    devices = []
    for index, member in enumerate(lun.members):
        if member.meta:
            devices.append(_leg(document, lun, index, "rmeta", member.meta))
        devices.append(_leg(document, lun, index, "rimage", member.data))
    return tuple(devices)


def _leg(document: Document, lun: Lun, index: int, role: str, extents: tuple[Extent, ...]) -> Device:
    member = lun.members[index]
    drive = document.drive_of(member.drive)
    # On a drive that is away the port's error table says it all, and the leg has nothing to change when the drive is back.
    if member.state is MemberState.FAILED and drive.online:
        table = ErrorTable(length=Sectors(sum(extent.length for extent in extents))).render()
    else:
        table = LinearTable(segments=_segments(document, member, extents)).render()
    name = {"rmeta": names.meta_name, "rimage": names.data_name}[role](document.name, lun.name, index)
    return Device(name=name, uuid=names.dm_uuid(member.uuid, role), layer=Layer.LEG, owner=lun.uuid, table=table)


def _segments(document: Document, member: Member, extents: tuple[Extent, ...]) -> tuple[Segment, ...]:
    device = node(names.drive_name(document.name, document.drive_of(member.drive).name))
    return tuple(
        Segment(device=device, offset=Sectors(extent.start), length=Sectors(extent.length)) for extent in extents
    )


def plex(document: Document, lun: Lun, leg_nodes: Mapping[str, str], rebuild: tuple[int, ...] = ()) -> Device:
    """The plex. `leg_nodes` gives the node under which a leg's dm UUID is to be found.

    `rebuild` holds the members to regenerate from the start. It is for one load only: a table that keeps the word would
    start the rebuild again at every later load.
    """
    name, uuid = names.plex_name(document.name, lun.name), names.dm_uuid(lun.uuid, "plex")
    if lun.layout is Layout.LINEAR:
        segments = tuple(segment for member in lun.members for segment in _segments(document, member, member.data))
        table = LinearTable(segments=segments).render()
    else:
        table = RaidTable(
            kind=_KINDS[lun.layout],
            length=plex_length(lun),
            chunk=Sectors(lun.chunk),
            region=Sectors(lun.region) if lun.region else None,
            rebuild=rebuild,
            max_recovery_rate=RECOVERY_CEILING if lun.layout.fault_tolerant else None,
            legs=tuple(
                Leg(
                    meta=leg_nodes[names.dm_uuid(member.uuid, "rmeta")] if member.meta else None,
                    data=leg_nodes[names.dm_uuid(member.uuid, "rimage")],
                )
                for member in lun.members
            ),
        ).render()
    return Device(name=name, uuid=uuid, layer=Layer.PLEX, owner=lun.uuid, table=table)


def top(document: Document, lun: Lun, *, failed: bool) -> Device:
    """What the host sees."""
    below = node(names.plex_name(document.name, lun.name))
    length = Sectors(lun.size)
    if failed:
        table = ErrorTable(length=length).render()
    else:
        table = LinearTable(segments=(Segment(device=below, offset=Sectors(0), length=length),)).render()
    name = names.lun_name(document.name, lun.name)
    return Device(name=name, uuid=names.dm_uuid(lun.uuid, "lun"), layer=Layer.LUN, owner=lun.uuid, table=table)
