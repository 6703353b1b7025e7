"""blkrecov lun"""

from collections.abc import Sequence

import click

from blkrecov.bus.interfaces import ARRAY, LUN
from blkrecov.cli import access, complete
from blkrecov.cli.access import Access, request
from blkrecov.cli.common import common, listed, options, reached, say, show_json, show_plan, table
from blkrecov.errors import InvalidArgument, ObjectNotFound
from blkrecov.model import Layout
from blkrecov.units import format_size, parse_size
from blkrecov.views import Json


@click.group("lun")
def group() -> None:
    """LUNs: the disks that the array shows to this machine."""


@group.command("create")
@click.argument("name")
@click.option("--layout", type=click.Choice([layout.value for layout in Layout]), required=True)
@click.option("--size", metavar="SIZE", required=True, help="What the host sees (4G).")
@click.option(
    "--drives", metavar="D0,D1", shell_complete=complete.several_drives, help="The drives to use, and no others."
)
@click.option(
    "--members", type=click.IntRange(1), help="How many drives to use (default: the fewest on which it fits)."
)
@click.option("--no-export", is_flag=True, help="No SCSI disk: only the /dev/mapper node.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def create(
    name: str, layout: str, size: str, drives: str | None, members: int | None, no_export: bool, plan: bool
) -> None:
    """Make a LUN. It can be used at once; its members are synchronised meanwhile."""
    named = listed(drives)
    if members is not None and named and members != len(named):
        raise InvalidArgument(
            f"{members} members, but {len(named)} drives are named", remedy="give --members or --drives, not both"
        )
    wanted = request(
        ARRAY,
        "CreateLun",
        name,
        layout,
        parse_size(size),
        drives=named,
        members=members,
        export=not no_export,
    )
    with reached() as array:
        if plan:
            show_plan(array.plan(wanted))
            return
        lun = array.row(*array.call(wanted))
    if options().json:
        show_json(lun)
    say(f"LUN {name} made: {layout}, {format_size(lun['size'])}, {lun['device'] or lun['node']}")


@group.command("list")
@common
def list_() -> None:
    """Show the LUNs."""
    with reached() as array:
        luns = list(array.luns())
    if options().json:
        show_json(luns)
    else:
        show_table(luns)


@group.command("show")
@click.argument("name", required=False, shell_complete=complete.luns)
@click.option("--information", is_flag=True, help="Print its VDS_LUN_INFORMATION, by which resync finds it (JSON).")
@common
def show(name: str | None, information: bool) -> None:
    """Show a LUN; the name may be left out where there is only one."""
    with reached() as array:
        view = access.lun(array, name) if name is not None else _only(array)
        if information:
            click.echo(*array.call(request(LUN, "GetInformation", of=view["uuid"])))
            return
    if options().json:
        show_json(view)
        return
    show_table([view])
    page83 = view["page83"]
    say(f"  node             {view['node']}")
    said = "agreed by configuration, sysfs and udev" if page83["verified"] else "not verified"
    say(f"  page 83          naa.{page83['naa']} ({said})")
    say(f"  fault tolerance  {_tolerance(view['fault_tolerance'])}")
    for mount in view["mounts"]:
        say(f"  mounted          {mount['path']} ({mount['fstype']})")
    table(
        [("member", "right"), ("drive", "left"), ("state", "left"), ("size", "right")],
        [
            (str(member["index"]), member["drive"], member["state"], format_size(member["size"]))
            for member in view["members"]
        ],
    )


def _only(array: Access) -> Json:
    luns = array.luns()
    if not luns:
        raise ObjectNotFound(
            f"array {array.head()['name']!r} has no LUN",
            remedy="make one with: blkrecov lun create NAME --layout L --size S",
        )
    if len(luns) > 1:
        names = ", ".join(lun["name"] for lun in luns)
        raise InvalidArgument(f"there are several LUNs: {names}", remedy="say which: blkrecov lun show NAME")
    return luns[0]


@group.command("extend")
@click.argument("name", shell_complete=complete.luns)
@click.option("--size", metavar="SIZE", required=True, help="The new size, not the difference.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def extend(name: str, size: str, plan: bool) -> None:
    """Make a LUN larger, while it is used."""
    wanted = request(LUN, "Extend", parse_size(size), of=name)
    with reached() as array:
        if plan:
            show_plan(array.plan(wanted))
            return
        array.call(wanted)
        lun = access.lun(array, name)
    if options().json:
        show_json(lun)
    more = f"grow what is on it, for example: resize2fs {lun['device'] or ''}"
    say(f"LUN {lun['name']} has {format_size(lun['size'])} now; {more}")


@group.command("delete")
@click.argument("name", shell_complete=complete.luns)
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def delete(name: str, plan: bool) -> None:
    """Delete a LUN with all that is on it. Refused while anything uses it."""
    with reached() as array:
        remove(array, access.lun(array, name), "LUN", plan=plan)


def remove(array: Access, lun: Json, noun: str, *, plan: bool) -> None:
    """Delete a LUN, which the command calls by this noun, or show how."""
    wanted = request(LUN, "Delete", of=lun["uuid"])
    if plan:
        show_plan(array.plan(wanted))
        return
    array.call(wanted)
    if options().json:
        show_json(lun)
    say(f"{noun} {lun['name']} deleted")


def _tolerance(more: int) -> str:
    words = {0: "no member may be lost", 1: "one more member may be lost"}
    return words.get(more, f"{more} more members may be lost")


def show_table(luns: Sequence[Json]) -> None:
    table(
        [
            ("LUN", "left"),
            ("layout", "left"),
            ("size", "right"),
            ("status", "left"),
            ("health", "left"),
            ("device", "left"),
            ("drives", "left"),
        ],
        [
            (
                lun["name"],
                lun["layout"],
                format_size(lun["size"]),
                lun["status"],
                lun["health"] + _sync(lun),
                lun["device"] or lun["node"],
                " ".join(member["drive"] for member in lun["members"]),
            )
            for lun in luns
        ],
    )


def _sync(lun: Json) -> str:
    sync = lun["sync"]
    return f" ({sync['action']} {100 * sync['done'] // sync['total']} %)" if sync and sync["total"] else ""
