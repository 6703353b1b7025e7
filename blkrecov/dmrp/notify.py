"""What changed in the list of storage objects, numbered and in an order that a client can follow; and its bytes. Pure.

Each change takes the next number of one count for all objects. So an object's number never comes twice, not even when the object
goes and comes back: a client that sends back an old one is found out.

The order: a task that begins, then

    created    disks, regions, volumes, mount points, file systems: each after what it lies on
    modified   the other way round, dependents first
    deleted    dependents first, too (MS-DMRP 3.2.6.2)

and at last what became of tasks: when a client reads that one has completed, it knows of all that the task has done.
"""

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, Final, get_args

import msgspec

from blkrecov.dmrp.information import (
    DiskInfo,
    DriveLetterInfo,
    FileSystemInfo,
    RegionInfo,
    StorageObject,
    TaskInfo,
    VolumeInfo,
)
from blkrecov.dmrp.storage import ObjectList, objects_of
from blkrecov.tasks import RequestStatus


class InformationType(IntEnum):
    """DMNOTIFY_INFO_TYPE"""

    UNKNOWN_INFO = 0
    DISK_INFO = 1
    VOLUME_INFO = 2
    REGION_INFO = 3
    TASK_INFO = 4
    DL_INFO = 5
    FS_INFO = 6
    SYSTEM_INFO = 7


class Action(IntEnum):
    """LDMACTION"""

    UNKNOWN = 0
    CREATED = 1
    DELETED = 2
    MODIFIED = 3
    FAILED = 4


class Notification(msgspec.Struct, frozen=True):
    action: Action
    object: StorageObject | TaskInfo
    """As it is now; as it was last, if it is deleted."""


def modified(before: ObjectList, after: ObjectList, task: int = 0) -> tuple[ObjectList, tuple[Notification, ...]]:
    """(the list with numbers, what to tell). `after` is storage.listed(), `task` the id of the task that caused the changes.

    The tasks that have ended are told once more, and then off the list.
    """
    known = {(type(item), key): item for key, item in objects_of(before)}
    sequence = before.sequence
    present: list[StorageObject] = []
    created: list[StorageObject] = []
    changed: list[StorageObject] = []
    for key, item in objects_of(after):
        earlier = known.pop((type(item), key), None)
        if earlier is not None and _same(earlier, item):
            number, cause = earlier.last_known_state, earlier.task_id
        else:
            sequence += 1
            number, cause = sequence, task
        item = msgspec.structs.replace(item, last_known_state=number, task_id=cause)
        present.append(item)
        if earlier is None:
            created.append(item)
        elif number != earlier.last_known_state:
            changed.append(item)
    begun, told = _task_news(before, after)
    listing = ObjectList(
        objects=tuple(present),
        tasks=tuple(item for item in after.tasks if not _has_ended(item)),
        sequence=sequence,
        newest_task=max(before.newest_task, after.newest_task),
    )
    return listing, (
        *begun,
        *(Notification(Action.CREATED, item) for item in created),
        *(Notification(Action.MODIFIED, item) for item in _dependents_first(changed)),
        *(Notification(Action.DELETED, item) for item in _dependents_first(list(known.values()))),
        *told,
    )


def _same(earlier: StorageObject, item: StorageObject) -> bool:
    """Whether nothing has changed that is worth a number: that a file system is used is not."""
    if isinstance(item, FileSystemInfo) and isinstance(earlier, FileSystemInfo):
        earlier = msgspec.structs.replace(earlier, available_allocation_units=item.available_allocation_units)
    return msgspec.structs.replace(earlier, last_known_state=0, task_id=0) == item


_HEIGHT: Final = {kind: height for height, kind in enumerate(get_args(StorageObject))}


def _dependents_first(objects: list[StorageObject]) -> list[StorageObject]:
    return sorted(objects, key=lambda item: _HEIGHT[type(item)], reverse=True)


def _task_news(before: ObjectList, after: ObjectList) -> tuple[list[Notification], list[Notification]]:
    """(tasks that began, what became of tasks). One that began and ended in between is known to who asked for it."""
    known = {item.id: item for item in before.tasks}
    begun, told = [], []
    for item in after.tasks:
        if item.id in known:
            if item != known[item.id]:
                told.append(Notification(Action.MODIFIED, item))
        elif item.id > before.newest_task:
            if _has_ended(item):
                told.append(Notification(Action.MODIFIED, item))
            else:
                begun.append(Notification(Action.CREATED, item))
    return begun, told


def _has_ended(task: TaskInfo) -> bool:
    return task.status in (RequestStatus.REQ_COMPLETED, RequestStatus.REQ_ABORTED, RequestStatus.REQ_FAILED)


# In bytes.


@dataclass(frozen=True, slots=True)
class _Layout:
    """A C structure as amd64 has it, padding included. `counted`: its strings' lengths stand at its end, in characters."""

    type: InformationType
    format: str
    fields: tuple[str, ...]
    strings: tuple[str, ...] = ()
    counted: bool = True


_LAYOUTS: Final[Mapping[type, _Layout]] = {
    DiskInfo: _Layout(
        InformationType.DISK_INFO,
        "<3q9I?3x3i4x2q5i4x",
        (
            *("id", "length", "free_bytes", "bytes_per_track", "bytes_per_cylinder", "bytes_per_sector"),
            *("region_count", "dflags", "device_type", "device_state", "bus_type", "attributes", "is_upgradeable"),
            *("port_number", "target_number", "lun_number", "last_known_state", "task_id"),
        ),
        ("name", "vendor", "dgid", "adapter_name", "dg_name"),
    ),
    RegionInfo: _Layout(
        InformationType.REGION_INFO,
        "<6q2I?3xI2q2I",
        (
            *("id", "disk_id", "vol_id", "fs_id", "start", "length", "region_type", "partition_type", "is_active"),
            *("status", "last_known_state", "task_id", "rflags", "current_partition_number"),
        ),
    ),
    VolumeInfo: _Layout(
        InformationType.VOLUME_INFO,
        "<q2I2q2I2qI4x",
        (
            *("id", "type", "layout", "length", "fs_id", "member_count", "status", "last_known_state", "task_id"),
            "vflags",
        ),
    ),
    # The letter is 0. The path follows like other structures' strings: who knows of letters only passes over it.
    DriveLetterInfo: _Layout(
        InformationType.DL_INFO,
        "<8xq?7x2qI4x",
        ("storage_id", "is_used", "last_known_state", "task_id", "dlflags"),
        ("path",),
        counted=False,
    ),
    FileSystemInfo: _Layout(
        InformationType.FS_INFO,
        "<4q2I2qIi",
        (
            *("id", "storage_id", "total_allocation_units", "available_allocation_units", "allocation_unit_size"),
            *("fsflags", "last_known_state", "task_id", "fs_type"),
        ),
        ("label",),
    ),
    TaskInfo: _Layout(
        InformationType.TASK_INFO,
        "<4q5I4x",
        (*("id", "storage_id", "create_time", "client_id", "percent_complete", "status", "type", "error", "tflag"),),
    ),
}


def frame(notification: Notification) -> bytes:
    """One frame of IDMNotify::ObjectsChanged's ByteStream (MS-DMRP 3.1.4.4.1.1), as an amd64 server sends it.

    Shape: size of all of it, type, action (each 32 bits, little-endian); the C structure, not packed, without its pointers to
           strings; the strings in their order, terminated by NUL, with no padding: UTF-16, and ASCII for a disk group's id.
    """
    item = notification.object
    layout = _LAYOUTS[type(item)]
    strings = [_string(name, getattr(item, name)) for name in layout.strings]
    counts = [len(text) // (1 if name == "dgid" else 2) for name, text in zip(layout.strings, strings, strict=True)]
    values = [getattr(item, name) for name in layout.fields]
    body = struct.pack(layout.format, *values, *(counts if layout.counted else ())) + b"".join(strings)
    return struct.pack("<3I", 12 + len(body), layout.type, notification.action) + body


def _string(name: str, text: str) -> bytes:
    return f"{text}\0".encode("ascii" if name == "dgid" else "utf-16-le")


# For people and programs.


def view(item: StorageObject | TaskInfo) -> dict[str, Any]:
    """An object for JSON: the specification's fields; enums by their names in lower case, without prefix, bit sets as lists."""
    fields = msgspec.structs.fields(item)
    return {
        "kind": type(item).__struct_config__.tag,
        **{field.encode_name: _plain(getattr(item, field.name)) for field in fields},
    }


def notification_view(notification: Notification) -> dict[str, Any]:
    item = notification.object
    return {
        "type": _LAYOUTS[type(item)].type.name,
        "action": notification.action.name,
        "object": view(item),
    }


def _plain(value: object) -> object:
    match value:
        case IntFlag():
            return [word(flag) for flag in value]
        case IntEnum():
            return word(value)
        case _:
            return value


def word(value: IntEnum | IntFlag) -> str:
    return str(value.name).lower().removeprefix("req_").removeprefix("progress_")


_NOUNS: Final[Mapping[type, tuple[str, str]]] = {
    TaskInfo: ("task", "tasks"),
    FileSystemInfo: ("file system", "file systems"),
    DriveLetterInfo: ("mount point", "mount points"),
    VolumeInfo: ("volume", "volumes"),
    RegionInfo: ("region", "regions"),
    DiskInfo: ("disk", "disks"),
}


def summary(notifications: Sequence[Notification]) -> str:
    """What changed, in one sentence."""
    counts = Counter(type(notification.object) for notification in notifications)
    return "changed: " + ", ".join(
        f"{counts[kind]} {one if counts[kind] == 1 else many}" for kind, (one, many) in _NOUNS.items() if counts[kind]
    )
