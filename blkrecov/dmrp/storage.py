"""An array as MS-DMRP's list of storage objects, computed from document and observation. Pure.

    drive                      disk
    extent of a drive          region; what is free as well
    LUN                        volume
    mount point                drive letter
    mounted file system        file system
    task that is under way     task

Ids are made of our UUIDs, so they are the same in every process and after every restart. A region's is made of its member's UUID
and of where it begins: a substitute's region is another one, in the same place too.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec

from blkrecov import family, geometry, tasks
from blkrecov.condition import Condition, condition, state_of
from blkrecov.dm.status import SyncAction
from blkrecov.dmrp.information import (
    DeviceState,
    DiskInfo,
    DriveLetterInfo,
    FileSystemInfo,
    FileSystemType,
    ProgressType,
    RegionInfo,
    RegionStatus,
    RegionType,
    StorageObject,
    TaskInfo,
    VolumeInfo,
    VolumeLayout,
    VolumeStatus,
)
from blkrecov.errors import ObjectNotFound
from blkrecov.geometry import Region
from blkrecov.model import Document, Drive, DriveStatus, Health, Layout, Lun, LunStatus, Task, TaskKind
from blkrecov.observed import Observed
from blkrecov.units import Sectors, in_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """A mount point of a LUN, and the file system that is mounted there. Sizes in its allocation units, of `unit` bytes."""

    lun: UUID
    part: str
    """The partition, by its number; empty for all of the LUN."""
    path: str
    fstype: str
    label: str = ""
    total: int = 0
    available: int = 0
    unit: int = 0


class ObjectList(msgspec.Struct, frozen=True):
    """The list. `sequence` is the highest number that a change was given, and `newest_task` the highest id that a task had."""

    objects: tuple[StorageObject, ...] = ()
    """Each after what it lies on: disks, regions, volumes, mount points, file systems."""
    tasks: tuple[TaskInfo, ...] = ()
    """EnumTasks: those that have not ended."""
    sequence: int = 0
    newest_task: int = 0

    def task(self, number: int) -> TaskInfo:
        """GetTaskDetail. Raises: ObjectNotFound for a task that has ended, or never was."""
        for task in self.tasks:
            if task.id == number:
                return task
        raise ObjectNotFound(f"no task {number:#x} is under way", remedy="see: blkrecov task list")


def listed(document: Document, observed: Observed, mounts: Sequence[Mounted]) -> ObjectList:
    """All there is, for notify.modified(): with no numbers yet, and with tasks that have ended and are remembered still."""
    regions = {drive.uuid: _regions(document, observed, drive) for drive in document.drives}
    members = [region.vol_id for each in regions.values() for region in each]
    systems = {(mount.lun, mount.part): mount for mount in reversed(mounts)}
    objects: list[StorageObject] = [_disk(document, drive, len(regions[drive.uuid])) for drive in document.drives]
    objects += [region for each in regions.values() for region in each]
    objects += [
        _volume(document, observed, lun, members.count(oid(lun.uuid)), [part for of, part in systems if of == lun.uuid])
        for lun in document.luns
    ]
    objects += [
        DriveLetterInfo(path=path, storage_id=oid(lun)) for path, lun in {m.path: m.lun for m in mounts}.items()
    ]
    objects += [_file_system(mount) for mount in systems.values()]
    found = tuple(task_info(document, task) for task in document.tasks)
    newest = task_oid(document, document.next_task - 1)
    return ObjectList(objects=tuple(objects), tasks=found, newest_task=newest)


def oid(*parts: object) -> int:
    """An object's id, made of what is unique to it: positive, of 63 bits, since LdmObjectId is signed."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1 or 1


def task_oid(document: Document, number: int) -> int:
    """A task's id among those of all arrays: the array's in the upper half, the task's number in the lower."""
    return oid(document.array) >> 32 << 32 | number


def task_info(document: Document, task: Task) -> TaskInfo:
    """TASK_INFO of a task, whether it has ended or not. `error` is an unsigned HRESULT."""
    if task.children and not task.state.ended:
        task = tasks.progressed(task, min(family.percent(document, task), 0.999))
    status, percent, code = tasks.dmrp_status(task)
    # A scrub that only compares makes nothing equal.
    compares = task.kind is TaskKind.SCRUB
    return TaskInfo(
        id=task_oid(document, task.id),
        storage_id=oid(task.lun),
        percent_complete=percent,
        status=status,
        type=ProgressType.PROGRESS_UNKNOWN if compares else ProgressType.PROGRESS_SYNCHING,
        error=code.hresult,
    )


# Disks.

_DEVICE_STATE: Final[Mapping[DriveStatus, DeviceState]] = {
    DriveStatus.UNKNOWN: DeviceState.UNKNOWN,
    DriveStatus.ONLINE: DeviceState.HEALTHY,
    DriveStatus.NOT_READY: DeviceState.NOT_READY,
    DriveStatus.OFFLINE: DeviceState.OFFLINE,
    DriveStatus.FAILED: DeviceState.BAD,
    DriveStatus.REMOVED: DeviceState.MISSING,
}


def device_state(drive: Drive) -> DeviceState:
    """A drive that is set aside is failing, and not healthy too, although it serves."""
    state = _DEVICE_STATE[drive.status]
    return state & ~DeviceState.HEALTHY | DeviceState.FAILING if drive.failing else state


def _disk(document: Document, drive: Drive, regions: int) -> DiskInfo:
    return DiskInfo(
        id=oid(drive.uuid),
        length=drive.size,
        free_bytes=in_bytes(geometry.free_length(document, drive)),
        region_count=regions,
        device_state=device_state(drive),
        name=drive.name,
        dgid=str(document.array),
        dg_name=document.name,
    )


# Regions.


def _regions(document: Document, observed: Observed, drive: Drive) -> tuple[RegionInfo, ...]:
    """What lies on a drive, and what is free, in the order of its bytes. Labels are no region."""
    found = [_used(document, observed, drive, region) for region in geometry.used(document, drive)]
    found += [
        RegionInfo(
            id=oid(drive.uuid, gap.start),
            disk_id=oid(drive.uuid),
            start=in_bytes(Sectors(gap.start)),
            length=in_bytes(Sectors(gap.length)),
            region_type=RegionType.FREE,
            status=RegionStatus.OK if drive.online else RegionStatus.FAILED,
        )
        for gap in geometry.free(document, drive)
    ]
    return tuple(sorted(found, key=lambda region: region.start))


def _used(document: Document, observed: Observed, drive: Drive, region: Region) -> RegionInfo:
    return RegionInfo(
        id=oid(_owner(region), region.extent.start),
        disk_id=oid(drive.uuid),
        vol_id=oid(region.lun.uuid),
        start=in_bytes(Sectors(region.extent.start)),
        length=in_bytes(Sectors(region.extent.length)),
        region_type=RegionType.SUBDISK,
        status=region_status(document, observed, drive, region),
    )


def _owner(region: Region) -> UUID:
    if region.member is None:
        assert region.lun.restore is not None, "what is no member's is a restore's log"
        return region.lun.restore.uuid
    member = region.lun.members[region.member]
    if region.arriving:
        assert member.successor is not None, "what arrives is a successor's"
        return member.successor.uuid
    return member.uuid


def region_status(document: Document, observed: Observed, drive: Drive, region: Region) -> RegionStatus:
    """Of a region that a LUN uses."""
    if not drive.online:
        return RegionStatus.FAILED
    if region.arriving:
        return RegionStatus.REGENERATING
    if region.member is not None:
        lun = region.lun
        if region.member in observed.lost(document, lun):
            return RegionStatus.FAILED
        if region.member in lun.rebuilding:
            return RegionStatus.NEEDSRESYNC if lun.frozen else RegionStatus.REGENERATING
        found = condition(document, observed, lun)
        if found is Condition.SYNCING:
            raid = observed.raid(lun)
            waits = raid is None or raid.action in (SyncAction.IDLE, SyncAction.FROZEN)
            return RegionStatus.NEEDSRESYNC if waits else RegionStatus.REGENERATING
        if found is Condition.SUSPECT:
            return RegionStatus.NEEDSRESYNC
    return RegionStatus.FAILING if drive.failing else RegionStatus.OK


# Volumes.

_PARITY: Final = (Layout.RAID4, Layout.RAID5, Layout.RAID6)
_VOLUME_STATUS: Final[Mapping[Health, VolumeStatus]] = {
    Health.UNKNOWN: VolumeStatus.UNKNOWN,
    Health.HEALTHY: VolumeStatus.HEALTHY,
    Health.REBUILDING: VolumeStatus.SYNCHING,
    Health.FAILING: VolumeStatus.FAILING,
    Health.FAILING_REDUNDANCY: VolumeStatus.FAILING_REDUNDANCY,
    Health.FAILED_REDUNDANCY: VolumeStatus.FAILED_REDUNDANCY,
    Health.FAILED_REDUNDANCY_FAILING: VolumeStatus.FAILED_REDUNDANCY_FAILING,
    Health.FAILED: VolumeStatus.FAILED,
}


def volume_status(layout: Layout, status: LunStatus, health: Health) -> VolumeStatus:
    """Mirrors are synchronised, parity is regenerated: the specification has a word for each."""
    if health is Health.REBUILDING:
        if status is LunStatus.NOT_READY:
            return VolumeStatus.INITIALIZING
        if layout in _PARITY:
            return VolumeStatus.REGENERATING
    return _VOLUME_STATUS[health]


def volume_layout(lun: Lun) -> VolumeLayout:
    """What the specification has no word for is called what behaves like it when a drive is lost."""
    match lun.layout:
        case Layout.LINEAR:
            return VolumeLayout.SPANNED if len({member.drive for member in lun.members}) > 1 else VolumeLayout.SIMPLE
        case Layout.RAID0:
            return VolumeLayout.STRIPE
        case Layout.RAID1 | Layout.RAID10:
            return VolumeLayout.MIRROR
        case _:
            return VolumeLayout.RAID5


def _volume(document: Document, observed: Observed, lun: Lun, regions: int, parts: list[str]) -> VolumeInfo:
    status, health = state_of(document, observed, lun)
    return VolumeInfo(
        id=oid(lun.uuid),
        name=lun.name,
        layout=volume_layout(lun),
        length=lun.bytes,
        member_count=regions,
        status=volume_status(lun.layout, status, health),
        # A volume has one at most: a LUN with partitions has that of the first.
        fs_id=_file_system_oid(lun.uuid, min(parts)) if parts else 0,
    )


# File systems.

_FILE_SYSTEM_TYPE: Final[Mapping[str, FileSystemType]] = {
    "ntfs": FileSystemType.NTFS,
    "ntfs3": FileSystemType.NTFS,
    "msdos": FileSystemType.FAT,
    "vfat": FileSystemType.FAT,
    "iso9660": FileSystemType.CDFS,
    "udf": FileSystemType.UDF,
}


def _file_system_oid(lun: UUID, part: str) -> int:
    return oid(lun, "file system", part)


def _file_system(mount: Mounted) -> FileSystemInfo:
    return FileSystemInfo(
        id=_file_system_oid(mount.lun, mount.part),
        storage_id=oid(mount.lun),
        total_allocation_units=mount.total,
        available_allocation_units=mount.available,
        allocation_unit_size=mount.unit,
        fs_type=_FILE_SYSTEM_TYPE.get(mount.fstype, FileSystemType.OTHER),
        name=mount.fstype,
        label=mount.label,
    )


def objects_of(listing: ObjectList) -> Iterator[tuple[str | int, StorageObject]]:
    """Each object with what it is known by: its id, or a mount point's path."""
    for item in listing.objects:
        yield (item.path if isinstance(item, DriveLetterInfo) else item.id), item
