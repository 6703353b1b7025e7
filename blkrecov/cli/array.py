"""blkrecov array"""

import click

from blkrecov import engine
from blkrecov.catalog import Discovered
from blkrecov.cli import drive, lun
from blkrecov.cli.common import common, opened, options, say, show_json, table
from blkrecov.engine import Array
from blkrecov.settings import Settings
from blkrecov.views import Json


@click.group("array")
def group() -> None:
    """Arrays: sets of drives that know each other."""


@group.command("create")
@click.argument("name")
@common
def create(name: str) -> None:
    """Make an array. It is written onto its drives, from the first one on that is added."""
    array = engine.create_array(Settings.load(), name)
    if options().json:
        show_json({"name": array.name, "uuid": str(array.uuid), "drives": [], "luns": []})
    say(f"array {array.name} made; add drives with: blkrecov drive add PATH --size SIZE")


@group.command("list")
@common
def list_() -> None:
    """Show the arrays of this machine."""
    found = engine.list_arrays(Settings.load())
    if options().json:
        show_json([_row(array) for array in found])
        return
    rows = [_row(array) for array in found]
    table(
        [
            ("array", "left"),
            ("uuid", "left"),
            ("drives", "right"),
            ("found", "right"),
            ("LUNs", "right"),
            ("trouble", "left"),
        ],
        [
            (row["name"], row["uuid"], str(row["drives"]), str(row["found"]), str(row["luns"]), row["trouble"] or "")
            for row in rows
        ],
    )


def _row(array: Discovered) -> Json:
    document = array.document
    return {
        "name": array.name,
        "uuid": str(array.uuid),
        "drives": len(document.drives) if document else 0,
        "found": len(array.drives),
        "luns": len(document.luns) if document else 0,
        "trouble": array.trouble[0].message if array.trouble else None,
    }


@group.command("show")
@common
def show() -> None:
    """Show an array with its drives and LUNs. Brings up what is down."""
    with opened() as array:
        view = array_view(array)
    if options().json:
        show_json(view)
        return
    say(f"array {view['name']}  {view['uuid']}  configuration {view['sequence']}")
    drive.show_table(view["drives"])
    lun.show_table(view["luns"])


def array_view(array: Array) -> Json:
    document = array.document
    return {
        "name": document.name,
        "uuid": str(document.array),
        "sequence": document.sequence,
        "drives": [drive.view(array, item) for item in document.drives],
        "luns": [array.lun_json(item) for item in document.luns],
    }


@group.command("stop")
@common
def stop() -> None:
    """Take an array out of the kernel in good order. The next command that needs it brings it up again."""
    with opened() as array:
        array.stop()
        if options().json:
            show_json({"name": array.document.name, "uuid": str(array.document.array)})
        say(f"array {array.document.name} stopped")
