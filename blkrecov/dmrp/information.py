"""The storage objects of MS-DMRP as values: what a client of Windows' disk management knows of disks and what lies on them. Pure.

Names, numbers and fields are the specification's (MS-DMRP 2.2.17, 2.3.1, 2.5.1); so are the JSON's, but for the tag `kind`.
Lengths and offsets are bytes. An object's id is unique among all objects of all arrays; 0 in a reference is none.

Linux has no drive letters: a mount point takes the letter's place, and its path is its identity.
"""

from enum import IntEnum, IntFlag
from typing import Final

import msgspec

from blkrecov.tasks import RequestStatus

# What Windows says of every disk that has no tracks and cylinders.
TRACK: Final = 63 * 512
CYLINDER: Final = 255 * TRACK


class DeviceType(IntEnum):
    """DEVICETYPE_"""

    UNKNOWN = 0
    VM = 1
    """A dynamic disk: one whose volumes may lie on several, as all of an array's."""
    REMOVABLE = 2
    CDROM = 3
    FDISK = 4
    DVD = 5


class DeviceState(IntFlag):
    """DEVICESTATE_"""

    UNKNOWN = 0x0
    HEALTHY = 0x1
    NO_MEDIA = 0x2
    NOSIG = 0x4
    BAD = 0x8
    NOT_READY = 0x10
    MISSING = 0x20
    OFFLINE = 0x40
    FAILING = 0x80
    IMPORT_FAILED = 0x100
    UNCLAIMED = 0x200


class RegionType(IntEnum):
    """REGIONTYPE"""

    UNKNOWN = 0
    FREE = 1
    EXTENDED_FREE = 2
    PRIMARY = 3
    LOGICAL = 4
    EXTENDED = 5
    SUBDISK = 6
    """A part of a dynamic volume."""
    CDROM = 7
    REMOVABLE = 8


class RegionStatus(IntEnum):
    """REGIONSTATUS_"""

    UNKNOWN = 0
    OK = 1
    FAILED = 2
    FAILING = 3
    REGENERATING = 4
    NEEDSRESYNC = 5


class VolumeType(IntEnum):
    """VOLUMETYPE"""

    UNKNOWN = 0
    PRIMARY_PARTITION = 1
    LOGICAL_DRIVE = 2
    FT = 3
    VM = 4
    """A dynamic volume."""
    CDROM = 5
    REMOVABLE = 6


class VolumeLayout(IntEnum):
    """VOLUMELAYOUT"""

    UNKNOWN = 0
    PARTITION = 1
    SIMPLE = 2
    SPANNED = 3
    MIRROR = 4
    STRIPE = 5
    RAID5 = 6


class VolumeStatus(IntEnum):
    """VOLUME_STATUS_"""

    UNKNOWN = 0
    HEALTHY = 1
    FAILED = 2
    FAILED_REDUNDANCY = 3
    FAILING = 4
    FAILING_REDUNDANCY = 5
    FAILED_REDUNDANCY_FAILING = 6
    SYNCHING = 7
    REGENERATING = 8
    INITIALIZING = 9
    FORMATTING = 10


class FileSystemType(IntEnum):
    """FSTYPE_"""

    UNKNOWN = 0
    NTFS = 1
    FAT = 2
    FAT32 = 3
    CDFS = 4
    UDF = 5
    OTHER = 0x80000000


class ProgressType(IntEnum):
    """DMPROGRESS_TYPE: what a task's percentage measures."""

    PROGRESS_UNKNOWN = 0
    PROGRESS_FORMAT = 1
    PROGRESS_SYNCHING = 2


class _Object(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag_field="kind"):
    """What is numbered. `last_known_state` is the number of its last change, `task_id` the task that caused it, 0 for none."""

    last_known_state: int = 0
    task_id: int = 0


class DiskInfo(_Object, frozen=True, kw_only=True, tag="disk"):
    """DISK_INFO: a drive."""

    id: int
    length: int
    free_bytes: int
    region_count: int
    device_state: DeviceState
    name: str
    dgid: str
    dg_name: str
    device_type: DeviceType = DeviceType.VM
    bytes_per_track: int = TRACK
    bytes_per_cylinder: int = CYLINDER
    bytes_per_sector: int = 512
    dflags: int = 0
    bus_type: int = 0
    attributes: int = 0
    is_upgradeable: bool = False
    port_number: int = 0
    target_number: int = 0
    lun_number: int = 0
    vendor: str = ""
    adapter_name: str = ""


class RegionInfo(_Object, frozen=True, kw_only=True, tag="region"):
    """REGION_INFO: an extent of a drive that a LUN uses, or none."""

    id: int
    disk_id: int
    start: int
    length: int
    region_type: RegionType
    status: RegionStatus
    vol_id: int = 0
    fs_id: int = 0
    partition_type: int = 0
    is_active: bool = False
    rflags: int = 0
    current_partition_number: int = 0


class VolumeInfo(_Object, frozen=True, kw_only=True, tag="volume"):
    """VOLUME_INFO: a LUN. `name` is ours, and not in what the specification transmits; `member_count` counts regions."""

    id: int
    name: str
    layout: VolumeLayout
    length: int
    member_count: int
    status: VolumeStatus
    fs_id: int = 0
    type: VolumeType = VolumeType.VM
    vflags: int = 0


class DriveLetterInfo(_Object, frozen=True, kw_only=True, tag="mountPoint"):
    """DRIVE_LETTER_INFO: a mount point. `storage_id` is the volume's."""

    path: str
    storage_id: int
    is_used: bool = True
    dlflags: int = 0


class FileSystemInfo(_Object, frozen=True, kw_only=True, tag="fileSystem"):
    """FILE_SYSTEM_INFO: a mounted file system. `name` is the kernel's word for its type, and not transmitted."""

    id: int
    storage_id: int
    total_allocation_units: int
    available_allocation_units: int
    """As of its last change, or of when somebody asked: that it is used is no change."""
    allocation_unit_size: int
    fs_type: FileSystemType
    name: str
    label: str = ""
    fsflags: int = 0


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag_field="kind", tag="task"):
    """TASK_INFO. `create_time`, `client_id` and `tflag` are 0 from servers."""

    id: int
    storage_id: int
    percent_complete: int
    status: RequestStatus
    type: ProgressType
    error: int
    create_time: int = 0
    client_id: int = msgspec.field(default=0, name="clientID")
    tflag: int = 0


StorageObject = DiskInfo | RegionInfo | VolumeInfo | DriveLetterInfo | FileSystemInfo
