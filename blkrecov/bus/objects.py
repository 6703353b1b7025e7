"""The objects on the bus, computed from what is known of the arrays; and what differs between two moments. Pure.

    /org/blkrecov1                              the manager
    /org/blkrecov1/array/<uuid>                 an array; its UUID as 32 hexadecimal digits, as everywhere below
    /org/blkrecov1/array/<uuid>/drive/<uuid>
    /org/blkrecov1/array/<uuid>/lun/<uuid>      shadow copies among them, which have one more interface
    /org/blkrecov1/array/<uuid>/task/<number>
    /org/blkrecov1/session/<number>             a restore session

Paths hold UUIDs, because names change hands. "/" stands for no object.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from uuid import UUID

from blkrecov.bus.interfaces import ARRAY, DRIVE, LUN, SESSION, SHADOW, TASK
from blkrecov.state import ArrayState
from blkrecov.views import Json

ROOT: Final = "/org/blkrecov1"
NONE: Final = "/"

Properties: TypeAlias = Mapping[str, Any]
Interfaces: TypeAlias = Mapping[str, Properties]
Objects: TypeAlias = Mapping[str, Interfaces]

_AUTO: Final = {None: "default", True: "on", False: "off"}


def plain(value: Any) -> Any:
    """A value without what D-Bus's strings cannot hold: a path may have bytes that are no UTF-8, which show as \\udcXX."""
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode().replace("\0", "\\0")
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return value


def array_path(array: UUID) -> str:
    return f"{ROOT}/array/{array.hex}"


def drive_path(array: UUID, drive: UUID) -> str:
    return f"{array_path(array)}/drive/{drive.hex}"


def lun_path(array: UUID, lun: UUID) -> str:
    return f"{array_path(array)}/lun/{lun.hex}"


def task_path(array: UUID, number: int) -> str:
    return f"{array_path(array)}/task/{number}"


def session_path(number: int) -> str:
    return f"{ROOT}/session/{number}"


def array_of(path: str) -> UUID | None:
    """The array that an object belongs to, by its path."""
    words = path.removeprefix(f"{ROOT}/array/").split("/")
    return _uuid(words[0]) if path.startswith(f"{ROOT}/array/") else None


def uuid_of(path: str) -> UUID | None:
    """The UUID that a path of an array, a drive or a LUN ends with."""
    return _uuid(path.rpartition("/")[2])


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(hex=text)
    except ValueError:
        return None


def children(objects: Iterable[str], path: str) -> tuple[str, ...]:
    """The names of what is right below a path, whether it is an object itself or only on the way to some."""
    prefix = path if path.endswith("/") else f"{path}/"
    return tuple(dict.fromkeys(item[len(prefix) :].partition("/")[0] for item in objects if item.startswith(prefix)))


def array_objects(state: ArrayState) -> Objects:
    """An array with all that it consists of."""
    uuid = state.uuid
    drives = {row["name"]: drive_path(uuid, UUID(row["uuid"])) for row in state.drives}
    luns = {row["name"]: lun_path(uuid, UUID(row["uuid"])) for row in state.luns}
    tasks = {row["id"]: task_path(uuid, row["id"]) for row in state.tasks}
    found: dict[str, Interfaces] = {
        array_path(uuid): {
            ARRAY: {
                "Name": state.name,
                "Uuid": str(uuid),
                "Sequence": state.sequence,
                "Running": state.running,
                "Healthy": state.healthy,
                "Trouble": state.trouble,
                "AutoRecover": _AUTO[state.auto_recover],
                "Scrub": state.scrub,
                "RateMin": state.rate_min,
                "RateMax": state.rate_max,
                "Drives": list(drives.values()),
                "Luns": list(luns.values()),
                "ShadowCopies": [luns[row["name"]] for row in state.luns if row["shadow"]],
                "Tasks": list(tasks.values()),
            }
        }
    }
    for row in state.drives:
        found[drives[row["name"]]] = {DRIVE: _drive(row, uuid, luns)}
    for row in state.luns:
        found[luns[row["name"]]] = {LUN: _lun(row, uuid, drives, tasks)}
        if row["shadow"]:
            found[luns[row["name"]]] = {**found[luns[row["name"]]], SHADOW: _shadow(row, luns)}
    for row in state.tasks:
        found[tasks[row["id"]]] = {TASK: _task(row, uuid)}
    return found


def concerned(known: Objects, lun: str | None, drive: str | None, task: int | None) -> list[str]:
    """The paths of what an event names, as far as these are known objects."""
    names = {LUN: ("Name", lun), DRIVE: ("Name", drive), TASK: ("Id", task)}
    return [
        path
        for wanted, (key, value) in names.items()
        for path, interfaces in known.items()
        if value is not None and wanted in interfaces and interfaces[wanted][key] == value
    ]


def _drive(row: Json, array: UUID, luns: Mapping[str, str]) -> Properties:
    fault = row["fault"] or {"kind": "", "value": 0}
    names = dict.fromkeys(region["lun"] for region in row["regions"] if region["lun"])
    return {
        "Name": row["name"],
        "Uuid": row["uuid"],
        "Array": array_path(array),
        "Path": row["path"],
        "Size": row["size"],
        "Free": row["free"],
        "Status": row["status"],
        "Health": row["health"],
        "Reason": row["reason"] or "",
        "Failing": row["failing"] or "",
        "Failures": row["failures"],
        "HotSpare": row["hot_spare"],
        "Fault": [fault["kind"], float(fault["value"])],
        "Luns": [luns[name] for name in names],
        "Regions": [
            [each["id"], each["start"], each["length"], each["role"], each["lun"] or "", each["status"]]
            for each in row["regions"]
        ],
    }


def _lun(row: Json, array: UUID, drives: Mapping[str, str], tasks: Mapping[int, str]) -> Properties:
    return {
        "Name": row["name"],
        "Uuid": row["uuid"],
        "Array": array_path(array),
        "Layout": row["layout"],
        "Size": row["size"],
        "Status": row["status"],
        "Health": row["health"],
        "Trouble": row["trouble"],
        "Incomplete": row["incomplete"] or "",
        "Device": row["device"] or "",
        "Node": row["node"],
        "Naa": row["page83"]["naa"],
        "Verified": row["page83"]["verified"],
        "FaultTolerant": row["fault_tolerant"],
        "FaultTolerance": row["fault_tolerance"],
        "Members": [[each["index"], drives[each["drive"]], each["state"], each["size"]] for each in row["members"]],
        "Chunk": row["chunk"],
        "Region": row["region"],
        "Mismatches": -1 if row["mismatches"] is None else row["mismatches"],
        "SyncAction": row["sync"]["action"] if row["sync"] else "",
        "Mounts": [[each["path"], each["fstype"]] for each in row["mounts"]],
        "Task": tasks.get(row["task"], NONE),
    }


def _shadow(row: Json, luns: Mapping[str, str]) -> Properties:
    shadow = row["shadow"]
    store = shadow["store"] or {"size": 0, "used": 0, "chunk": 0}
    return {
        "Origin": luns.get(row["shadow_copy_of"], NONE),
        "OriginName": row["shadow_copy_of"],
        "Kind": shadow["kind"],
        "Taken": shadow["taken"],
        "StoreSize": store["size"],
        "StoreUsed": store["used"] or 0,
        "StoreChunk": store["chunk"],
        "Lost": shadow["lost"] or "",
    }


def _task(row: Json, array: UUID) -> Properties:
    return {
        "Id": row["id"],
        "Array": array_path(array),
        "Kind": row["kind"],
        "Objects": row["objects"],
        "State": row["state"],
        "Phase": row["phase"],
        "Paused": row["paused"],
        "Percent": row["percent"],
        "Done": row["done"],
        "Total": row["total"],
        "Why": row["why"],
        "Result": row["code"],
        "HResult": int(row["hresult"], 16),
        "Message": row["message"],
        "Remedy": row["remedy"],
        "BytesKernel": row["bytes"]["kernel"],
        "BytesProcess": row["bytes"]["process"],
        "RateMin": row["rate_min"],
        "RateMax": row["rate_max"],
    }


def task_row(known: Properties) -> Json:
    """The row that a task's properties were made of."""
    return {
        "id": known["Id"],
        "kind": known["Kind"],
        "objects": list(known["Objects"]),
        "state": known["State"],
        "paused": known["Paused"],
        "percent": known["Percent"],
        "hresult": f"0x{known['HResult']:08X}",
        "code": known["Result"],
        "message": known["Message"],
        "remedy": known["Remedy"],
        "why": known["Why"],
        "bytes": {"kernel": known["BytesKernel"], "process": known["BytesProcess"]},
        "phase": known["Phase"],
        "done": known["Done"],
        "total": known["Total"],
        "rate_min": known["RateMin"],
        "rate_max": known["RateMax"],
    }


def session_object(owner: str, array: UUID, task: int | None) -> Interfaces:
    return {
        SESSION: {
            "Owner": owner,
            "Array": array_path(array),
            "Task": NONE if task is None else task_path(array, task),
        }
    }


@dataclass(frozen=True, slots=True)
class Removed:
    path: str
    interfaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Added:
    path: str
    interfaces: Interfaces


@dataclass(frozen=True, slots=True)
class Changed:
    path: str
    interface: str
    properties: Properties


Change: TypeAlias = Removed | Added | Changed


def changes(before: Objects, after: Objects) -> tuple[Change, ...]:
    """What a client has to hear to know the second of these, if it knew the first.

    What goes is told first and what comes next, so that no property refers to an object that nobody was told of.
    """
    removed: list[Change] = []
    added: list[Change] = []
    changed: list[Change] = []
    for path, interfaces in before.items():
        if gone := tuple(name for name in interfaces if name not in after.get(path, {})):
            removed.append(Removed(path, gone))
    for path, interfaces in after.items():
        known = before.get(path, {})
        if new := {name: properties for name, properties in interfaces.items() if name not in known}:
            added.append(Added(path, new))
        for name, properties in interfaces.items():
            if name in known:
                differing = {key: value for key, value in properties.items() if known[name].get(key) != value}
                if differing:
                    changed.append(Changed(path, name, differing))
    return (*removed, *added, *changed)
