"""blkrecov snapshot"""

from collections.abc import Sequence
from datetime import UTC, datetime

import click

from blkrecov.bus.interfaces import ARRAY, SHADOW
from blkrecov.bus.objects import NONE
from blkrecov.cli import access, complete
from blkrecov.cli.access import Access, Named, request
from blkrecov.cli.common import common, listed, options, reached, say, show_json, show_plan, table
from blkrecov.cli.lun import remove
from blkrecov.cli.task import run_begun
from blkrecov.errors import InvalidArgument, ShadowNotFound
from blkrecov.model import Layout
from blkrecov.shadows import CHUNK
from blkrecov.units import Bytes, format_size, parse_size
from blkrecov.views import Json


@click.group("snapshot")
def group() -> None:
    """Shadow copies: what a LUN held at a moment, as a LUN of its own."""


@group.command("create")
@click.argument("words", metavar="LUN NAME [LUN NAME]...", nargs=-1, required=True, shell_complete=complete.luns)
@click.option("--plex", is_flag=True, help="A full copy, which needs its origin no more once it is made.")
@click.option("--store", metavar="SIZE", help="Room for what the origin changes (default: a fifth of it).")
@click.option("--chunk", metavar="SIZE", default=format_size(CHUNK), help="What a first change copies (64K).")
@click.option("--layout", type=click.Choice([layout.value for layout in Layout]), help="Of the store, or of the plex.")
@click.option(
    "--drives", metavar="D0,D1", shell_complete=complete.several_drives, help="The drives to use, and no others."
)
@click.option("--no-export", is_flag=True, help="No SCSI disk: only the /dev/mapper node.")
@click.option("--no-wait", is_flag=True, help="Print the task that fills a plex and return; the kernel goes on.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def create(
    words: Sequence[str],
    plex: bool,
    store: str | None,
    chunk: str,
    layout: str | None,
    drives: str | None,
    no_export: bool,
    no_wait: bool,
    plan: bool,
) -> None:
    """Take a shadow copy of a LUN; of several LUNs, all of the same moment.

    What is mounted from the LUN is frozen for that moment, so that the shadow copy can be mounted (read-only) as it is.
    """
    if len(words) % 2:
        raise InvalidArgument(f"{words[-1]!r} stands alone", remedy="name each LUN, and after it its shadow copy")
    wanted = request(
        ARRAY,
        "CreateShadowCopies",
        [(Named("lun", origin), name) for origin, name in zip(words[::2], words[1::2], strict=True)],
        plex=plex,
        store=parse_size(store) if store else None,
        chunk=parse_size(chunk),
        layout=layout,
        drives=listed(drives),
        export=not no_export,
    )
    with reached() as array:
        if plan:
            show_plan(array.plan(wanted))
            return
        made, task = array.call(wanted)
        if task != NONE:
            run_begun(array, task, no_wait=no_wait)
            return
        views = [array.row(path) for path in made]
    if options().json:
        show_json(views if len(views) > 1 else views[0])
    for view in views:
        room = format_size(view["shadow"]["store"]["size"])
        where = view["device"] or view["node"]
        say(f"shadow copy {view['name']} of LUN {view['shadow_copy_of']} taken: {where}, room for {room} of changes")


@group.command("list")
@common
def list_() -> None:
    """Show the shadow copies."""
    with reached() as array:
        views = [lun for lun in array.luns() if lun["shadow"] is not None]
    if options().json:
        show_json(views)
    else:
        show_table(views)


@group.command("extend")
@click.argument("name", shell_complete=complete.shadows)
@click.option("--store", metavar="SIZE", required=True, help="The store's new size, not the difference.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def extend(name: str, store: str, plan: bool) -> None:
    """Give a shadow copy more room for what its origin changes, while it is used."""
    with reached() as array:
        shadow_copy(array, name)
        wanted = request(SHADOW, "Extend", parse_size(store), of=name)
        if plan:
            show_plan(array.plan(wanted))
            return
        array.call(wanted)
        view = access.lun(array, name)
    if options().json:
        show_json(view)
    say(f"shadow copy {name} has room for {format_size(view['shadow']['store']['size'])} of changes now")


@group.command("delete")
@click.argument("name", shell_complete=complete.shadows)
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def delete(name: str, plan: bool) -> None:
    """Delete a shadow copy. Refused while anything uses it; its origin stays as it is."""
    with reached() as array:
        remove(array, shadow_copy(array, name), "shadow copy", plan=plan)


def shadow_copy(array: Access, name: str) -> Json:
    """The shadow copy of this name. Raises: ObjectNotFound, ObjectDeleted; ShadowNotFound for a LUN that is none."""
    lun = access.lun(array, name)
    if lun["shadow"] is None:
        raise ShadowNotFound(f"LUN {name!r} is no shadow copy", remedy="list them with: blkrecov snapshot list")
    return lun


def show_table(views: Sequence[Json]) -> None:
    table(
        [
            ("shadow copy", "left"),
            ("of", "left"),
            ("taken", "left"),
            ("kind", "left"),
            ("size", "right"),
            ("store", "right"),
            ("status", "left"),
            ("device", "left"),
        ],
        [
            (
                view["name"],
                view["shadow_copy_of"],
                moment(view["shadow"]["taken"]),
                view["shadow"]["kind"],
                format_size(view["size"]),
                _use(view["shadow"]["store"]),
                view["shadow"]["lost"] or view["status"],
                view["device"] or view["node"],
            )
            for view in views
        ],
    )


def moment(taken: int) -> str:
    """A moment, in this machine's time."""
    return datetime.fromtimestamp(taken, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if taken else ""


def _use(store: Json | None) -> str:
    if store is None:
        return ""
    size = Bytes(store["size"])
    return format_size(size) if store["used"] is None else f"{100 * store['used'] // size} % of {format_size(size)}"
