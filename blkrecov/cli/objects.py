"""blkrecov objects"""

import json
from collections.abc import Mapping

import click

from blkrecov.bus.interfaces import ARRAY
from blkrecov.cli.access import request
from blkrecov.cli.common import common, options, reached, show_json, table
from blkrecov.units import format_size
from blkrecov.views import Json


@click.command("objects")
@common
def objects() -> None:
    """Show the array's storage objects, as a client of MS-DMRP knows them.

    The sequence is the number of an object's last change (lastKnownState). What changes is told by events of the kind
    objects_changed.
    """
    with reached() as array:
        (text,) = array.call(request(ARRAY, "GetObjects"))
    found = json.loads(text)
    if options().json:
        show_json(found)
        return
    names = {item["id"]: item["name"] for item in found if "name" in item}
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
        [_row(names, item) for item in found],
    )


def _row(names: Mapping[int, str], item: Json) -> tuple[str, ...]:
    """Numbers are those of MS-DMRP; what an object is called is told by `names`."""
    number = f"{item['id']:016x}" if "id" in item else ""
    sequence = str(item["lastKnownState"]) if "lastKnownState" in item else ""
    match item["kind"]:
        case "disk":
            status = ", ".join(item["deviceState"]) or "unknown"
            return "disk", number, item["name"], "", format_size(item["length"]), status, sequence
        case "region":
            place = f"{names[item['diskId']]} at {format_size(item['start'])}"
            name = names.get(item["volId"], item["regionType"])
            return "region", number, name, place, format_size(item["length"]), item["status"], sequence
        case "volume":
            name = f"{item['name']} ({item['layout']})"
            return "volume", number, name, "", format_size(item["length"]), item["status"], sequence
        case "mountPoint":
            status = "used" if item["isUsed"] else "free"
            return "mount point", "", item["path"], names[item["storageId"]], "", status, sequence
        case "fileSystem":
            size = format_size(item["totalAllocationUnits"] * item["allocationUnitSize"])
            return "file system", number, item["name"], names[item["storageId"]], size, "", sequence
        case _:
            on = names.get(item["storageId"], "")
            return "task", number, str(item["id"] & 0xFFFFFFFF), on, "", item["status"], ""
