"""What people and programs are shown: the shapes of the command line's JSON, computed from document and observation. Pure.

Sizes are bytes. Status and health are the names of VDS's enums in lower case without prefix.
"""

from typing import Any

from blkrecov import geometry
from blkrecov.condition import state_of
from blkrecov.dm.status import LegHealth, SnapshotUsage, SyncAction
from blkrecov.errors import Code
from blkrecov.geometry import Region
from blkrecov.model import Document, Drive, DriveStatus, Layout, Lun, Member, MemberState, Task
from blkrecov.observed import Observed
from blkrecov.page83.identity import naa_of_serial, serial_of
from blkrecov.units import Sectors, in_bytes, sectors

Json = dict[str, Any]


def tolerance(document: Document, observed: Observed, lun: Lun) -> int:
    """How many more members may be lost, whichever they are, without losing data."""
    if lun.shadow is not None and lun.differential:
        origin = tolerance(document, observed, document.lun_of(lun.shadow.origin))
        return min(origin, _own_tolerance(document, observed, lun))
    return _own_tolerance(document, observed, lun)


def _own_tolerance(document: Document, observed: Observed, lun: Lun) -> int:
    unusable = observed.lost(document, lun) | lun.rebuilding
    count = len(lun.members)
    match lun.layout:
        case Layout.LINEAR | Layout.RAID0:
            return 0
        case Layout.RAID1:
            return max(count - 1 - len(unusable), 0)
        case Layout.RAID10:
            return 0 if unusable else 1
        case _:
            return max(lun.layout.parity - len(unusable), 0)


def member_state(document: Document, observed: Observed, lun: Lun, index: int) -> str:
    """in_sync, out_of_sync, rebuilding, failed or missing."""
    member = lun.members[index]
    if document.drive_of(member.drive).status in (DriveStatus.REMOVED, DriveStatus.OFFLINE):
        return "missing"
    if index in observed.lost(document, lun):
        return MemberState.FAILED.value
    if index in lun.rebuilding:
        return MemberState.REBUILDING.value
    raid = observed.raid(lun)
    out_of_sync = raid is not None and raid.legs[index] is LegHealth.OUT_OF_SYNC
    return "out_of_sync" if out_of_sync else MemberState.IN_SYNC.value


def lun_view(
    document: Document, observed: Observed, lun: Lun, *, node: str, verified: bool, mounts: tuple[tuple[str, str], ...]
) -> Json:
    status, health = state_of(document, observed, lun)
    exported = observed.exports.get(lun.uuid)
    task = document.task_on(lun.uuid)
    raid = observed.raid(lun)
    sync = None
    if raid is not None and raid.action is not SyncAction.IDLE:
        sync = {"action": raid.action.value, "done": in_bytes(raid.done), "total": in_bytes(raid.total)}
    return {
        "name": lun.name,
        "uuid": str(lun.uuid),
        "layout": lun.layout.value,
        "size": lun.bytes,
        "status": status.value,
        "health": health.value,
        "exported": lun.exported,
        "device": exported.disk if exported else None,
        "node": node,
        "page83": {"naa": naa_of_serial(serial_of(lun.uuid)), "verified": verified},
        "fault_tolerant": lun.layout.fault_tolerant,
        "fault_tolerance": tolerance(document, observed, lun),
        "members": [
            {
                "index": index,
                "drive": document.drive_of(member.drive).name,
                "state": member_state(document, observed, lun, index),
                "size": in_bytes(member.length),
            }
            for index, member in enumerate(lun.members)
        ],
        "chunk": in_bytes(Sectors(lun.chunk)),
        "region": in_bytes(Sectors(lun.region)),
        "mismatches": lun.mismatches,
        "sync": sync,
        "shadow_copy_of": _origin_name(document, lun),
        "shadow": shadow_view(observed, lun) if lun.shadow is not None else None,
        "incomplete": lun.incomplete or None,
        "mounts": [{"path": path, "fstype": kind} for path, kind in mounts],
        "task": task.id if task else None,
    }


def _origin_name(document: Document, lun: Lun) -> str | None:
    """The name of the LUN that a shadow copy was taken of; its UUID where that is gone."""
    if lun.shadow is None:
        return None
    uuid = lun.shadow.origin
    return next((other.name for other in document.luns if other.uuid == uuid), str(uuid))


def shadow_view(observed: Observed, lun: Lun) -> Json:
    """What is to be known of a shadow copy. The store is null for a plex, and its use while nothing is loaded."""
    assert lun.shadow is not None
    usage = observed.store(lun)
    used = in_bytes(usage.allocated) if isinstance(usage, SnapshotUsage) else None
    size = in_bytes(geometry.plex_length(lun))
    store = {"size": size, "used": used, "chunk": in_bytes(Sectors(lun.shadow.chunk))} if lun.differential else None
    return {
        "kind": "differential" if lun.differential else "plex",
        "taken": lun.shadow.taken,
        "store": store,
        "lost": lun.shadow.lost or None,
    }


def drive_view(document: Document, drive: Drive) -> Json:
    task = document.task_on(drive.uuid)
    return {
        "name": drive.name,
        "uuid": str(drive.uuid),
        "path": drive.path,
        "size": drive.size,
        "free": in_bytes(geometry.free_length(document, drive)) if drive.online else 0,
        "status": drive.status.value,
        "health": drive_health(drive),
        "reason": drive.reason or None,
        "failing": drive.failing or None,
        "failures": len(drive.failures),
        "hot_spare": drive.hot_spare,
        "fault": {"kind": drive.fault.kind.value, "value": drive.fault.value} if drive.fault is not None else None,
        "task": task.id if task else None,
        "regions": regions(document, drive),
    }


def drive_health(drive: Drive) -> str:
    """VDS_HEALTH, of the values that a drive may have. Pending failure is that of a drive which works and is set aside."""
    match drive.status:
        case DriveStatus.FAILED:
            return "failed"
        case DriveStatus.ONLINE:
            return "pending_failure" if drive.failing else "healthy"
        case _:
            return "unknown"


def regions(document: Document, drive: Drive) -> list[Json]:
    """The whole drive from its first byte to its last, in order: what is ours, what LUNs use, what is free."""
    end = drive.data_start + drive.data_length
    rows: list[tuple[int, int, str, Region | None, str]] = [
        (0, drive.data_start, "label", None, "ok"),
        (end, sectors(drive.size) - end, "label", None, "ok"),
    ]
    rows += [(gap.start, gap.length, "free", None, "ok") for gap in geometry.free(document, drive)]
    rows += [
        (
            used.extent.start,
            used.extent.length,
            used.role.value,
            used,
            _region_status(drive, used),
        )
        for used in geometry.used(document, drive)
    ]
    return [
        {
            "id": f"{drive.name}:{start}",
            "start": in_bytes(Sectors(start)),
            "length": in_bytes(Sectors(length)),
            "role": role,
            "lun": used.lun.name if used else None,
            "layout": used.lun.layout.value if used else None,
            "member": used.member if used else None,
            "status": status,
        }
        for start, length, role, used, status in sorted(rows, key=lambda row: row[0])
        if length
    ]


def _region_status(drive: Drive, region: Region) -> str:
    """MS-DMRP's REGIONSTATUS, in lower case without prefix."""
    if region.member is None:
        return "ok" if drive.online else "failed"
    member: Member = region.lun.members[region.member]
    if not drive.online or member.state is MemberState.FAILED:
        return "failed"
    return "regenerating" if region.arriving or region.member in region.lun.rebuilding else "ok"


def task_view(task: Task) -> Json:
    code = Code[task.code]
    return {
        "id": task.id,
        "kind": task.kind.value,
        "objects": list(task.objects),
        "state": task.state.value,
        "paused": task.paused,
        "percent": task.percent,
        "hresult": code.hresult_text,
        "code": code.name,
        "message": task.message,
        "remedy": task.remedy,
        "why": task.why,
        "bytes": {"kernel": task.bytes_kernel, "process": task.bytes_process},
    }
