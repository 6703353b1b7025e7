"""blkrecov objects"""

import click

from blkrecov.cli.common import common, opened, options, show_json, table
from blkrecov.dmrp.information import (
    DiskInfo,
    DriveLetterInfo,
    FileSystemInfo,
    RegionInfo,
    StorageObject,
    TaskInfo,
    VolumeInfo,
)
from blkrecov.dmrp.notify import view, word
from blkrecov.dmrp.storage import ObjectList
from blkrecov.units import format_size


@click.command("objects")
@common
def objects() -> None:
    """Show the array's storage objects, as a client of MS-DMRP knows them.

    The sequence is the number of an object's last change (lastKnownState). What changes is told by events of the kind
    objects_changed.
    """
    with opened() as array:
        found = array.objects()
    if options().json:
        show_json([view(item) for item in (*found.objects, *found.tasks)])
        return
    table(
        [
            ("object", "left"),
            ("id", "right"),
            ("name", "left"),
            ("on", "left"),
            ("size", "right"),
            ("status", "left"),
            ("sequence", "right"),
        ],
        [_row(found, item) for item in (*found.objects, *found.tasks)],
    )


def _row(listing: ObjectList, item: StorageObject | TaskInfo) -> tuple[str, ...]:
    names = {
        other.id: other.name for other in listing.objects if isinstance(other, DiskInfo | VolumeInfo | FileSystemInfo)
    }
    match item:
        case DiskInfo():
            status = ", ".join(word(flag) for flag in item.device_state) or "unknown"
            return (
                "disk",
                f"{item.id:016x}",
                item.name,
                "",
                format_size(item.length),
                status,
                str(item.last_known_state),
            )
        case RegionInfo():
            place = f"{names[item.disk_id]} at {format_size(item.start)}"
            shown = names.get(item.vol_id, word(item.region_type)), place, format_size(item.length), word(item.status)
            return "region", f"{item.id:016x}", *shown, str(item.last_known_state)
        case VolumeInfo():
            name = f"{item.name} ({word(item.layout)})"
            shown = name, "", format_size(item.length), word(item.status)
            return "volume", f"{item.id:016x}", *shown, str(item.last_known_state)
        case DriveLetterInfo():
            status = "used" if item.is_used else "free"
            return "mount point", "", item.path, names[item.storage_id], "", status, str(item.last_known_state)
        case FileSystemInfo():
            size = format_size(item.total_allocation_units * item.allocation_unit_size)
            return (
                "file system",
                f"{item.id:016x}",
                item.name,
                names[item.storage_id],
                size,
                "",
                str(item.last_known_state),
            )
        case TaskInfo():
            on = names.get(item.storage_id, "")
            return "task", f"{item.id:016x}", str(item.id & 0xFFFFFFFF), on, "", word(item.status), ""
