"""blkrecov drive"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from blkrecov.bus.interfaces import ARRAY, DRIVE
from blkrecov.cli import access, complete
from blkrecov.cli import map as drive_map
from blkrecov.cli.access import Named, request
from blkrecov.cli.common import common, console, options, reached, say, show_json, show_plan, table
from blkrecov.cli.task import follow, run, tell, tell_all
from blkrecov.model import Fault
from blkrecov.state import ENDED
from blkrecov.units import format_size, parse_size
from blkrecov.views import Json

# A wider row is hard to follow from its end to the next one's beginning.
MAP_WIDTH: Final = 132
MAP_CELLS: Final = 4
SMALL_MAP: Final = 24
# A narrower screen has no room for a map beside the words.
MAPPED_WIDTH: Final = 100
_WORDS: Final = {
    ("label", False): "label and configuration",
    ("free", False): "free",
    ("data", True): "data",
    ("meta", True): "superblock, bitmap or log",
    ("meta", False): "log of a copy",
}


@click.group("drive")
def group() -> None:
    """Drives: files or block devices that LUNs are made of."""


@group.command("add")
@click.argument("path")
@click.option("--size", metavar="SIZE", help="Create the file, sparse, with this size (10G).")
@click.option("--name", metavar="NAME", help="The drive's name (default: the first free of d0, d1, ...).")
@click.option("--spare", is_flag=True, help="Make it a hot spare: kept free until a member of a LUN is lost.")
@click.option("--force", is_flag=True, help="Destroy what the file or device holds.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def add(path: str, size: str | None, name: str | None, spare: bool, force: bool, plan: bool) -> None:
    """Make a drive of PATH: a new file, an existing one, or a block device."""
    wanted = request(
        ARRAY,
        "AddDrive",
        str(Path(path).absolute()),
        size=parse_size(size) if size else None,
        name=name,
        spare=spare,
        force=force,
    )
    with reached() as array:
        if plan:
            show_plan(array.plan(wanted))
            return
        drive = array.row(*array.call(wanted))
    if options().json:
        show_json(drive)
    word = ", a hot spare" if spare else ""
    say(f"drive {drive['name']} added: {format_size(drive['size'])} at {drive['path']}{word}")


@group.command("list")
@common
def list_() -> None:
    """Show the drives."""
    with reached() as array:
        drives = list(array.drives())
        luns = [lun["name"] for lun in array.luns()]
    if options().json:
        show_json(drives)
    else:
        show_table(drives, luns if console().width >= MAPPED_WIDTH else None)


@group.command("show")
@click.argument("name", shell_complete=complete.drives)
@common
def show(name: str) -> None:
    """Show a drive, with a map of what lies on it."""
    with reached() as array:
        drive = access.drive(array, name)
        luns = [lun["name"] for lun in array.luns()]
    if options().json:
        show_json(drive)
        return
    show_table([drive])
    if drive["failing"]:
        say(f"  set aside; trust it again with: blkrecov drive trust {drive['name']}")
    elif drive["failures"]:
        say(f"  failures lately: {drive['failures']}")
    show_map(drive, luns)
    table(
        [
            ("", "left"),
            ("start", "right"),
            ("length", "right"),
            ("LUN", "left"),
            ("layout", "left"),
            ("member", "right"),
            ("role", "left"),
            ("status", "left"),
        ],
        [
            (
                drive_map.markup([drive_map.legend(row, luns)]),
                format_size(row["start"]),
                format_size(row["length"]),
                row["lun"] or "",
                row["layout"] or "",
                "" if row["member"] is None else str(row["member"]),
                _WORDS[row["role"], row["member"] is not None],
                row["status"] if row["lun"] else "",
            )
            for row in drive["regions"]
        ],
    )


@group.command("fail")
@click.argument("name", shell_complete=complete.drives)
@click.option("--after", type=int, metavar="SECONDS", help="It works for so long, and fails all I/O from then on.")
@click.option(
    "--error-rate", type=float, metavar="PERCENT", help="So much of it cannot be read until it is written again."
)
@click.option("--slow", type=int, metavar="MS", help="Each I/O takes so many milliseconds longer.")
@click.option("--drop-writes", is_flag=True, help="Writes are acknowledged and lost; reads go on.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def fail(
    name: str, after: int | None, error_rate: float | None, slow: int | None, drop_writes: bool, plan: bool
) -> None:
    """Let a drive fail: from now on all I/O to it ends in an error, and LUNs go on without it.

    With one of --after, --error-rate, --slow and --drop-writes it stays online and misbehaves, for the array to find out. In
    every case the way back is: blkrecov drive reconnect NAME
    """
    if sum(given is not None for given in (after, error_rate, slow, drop_writes or None)) > 1:
        raise click.UsageError("give one of --after, --error-rate, --slow and --drop-writes")
    wanted = request(DRIVE, "Fail", of=name, after=after, error_rate=error_rate, slow=slow, drop_writes=drop_writes)
    with reached() as array:
        if plan:
            show_plan(array.plan(wanted))
            return
        array.call(wanted)
        drive = access.drive(array, name)
    if options().json:
        show_json(drive)
    words = _words(drive)
    say(f"drive {drive['name']}: {words}" if words else f"drive {drive['name']} has failed")


@group.command("replace")
@click.argument("old", metavar="OLD", shell_complete=complete.drives)
@click.argument("new", metavar="[NEW]", required=False, shell_complete=complete.drives)
@click.option("--no-wait", is_flag=True, help="Print the tasks and return; the kernel goes on.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def replace(old: str, new: str | None, no_wait: bool, plan: bool) -> None:
    """Move all that is on a drive to another, while it is in use and with no loss of redundancy.

    The kernel copies each LUN's part underneath the LUN, one LUN after the other, then swaps. Without NEW each goes where a
    substitute would go: to a hot spare, else to free space. OLD stays in the array, empty.
    """
    wanted = request(DRIVE, "Replace", of=old, onto=Named("drive", new) if new else None)
    with reached() as array:
        if plan:
            show_plan(array.plan(wanted))
            return
        (paths,) = array.call(wanted)
        begun = [array.row(path) for path in paths]
        for task in begun:
            say(task["why"])
        if not begun:
            say(f"nothing lies on drive {old}")
        ended = begun if no_wait else [follow(array, task["id"]) for task in begun]
    tell_all(ended)


@group.command("reconnect")
@click.argument("name", shell_complete=complete.drives)
@click.option("--path", metavar="PATH", help="Where it is now, if it is not to be looked for.")
@click.option("--force", is_flag=True, help="Bring LUNs online with what there is of them: writes may be lost.")
@click.option("--no-wait", is_flag=True, help="Print the task and return; the kernel goes on.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def reconnect(name: str, path: str | None, force: bool, no_wait: bool, plan: bool) -> None:
    """Bring back a drive that failed or was away, with all that lives on it.

    Its LUNs come online, as far as they can; members regenerate what they missed, by the kernel's bitmap where that tells all. A
    LUN that had lost too much comes online when those members are back that served last. With --force it does without them:
    what only they were written is lost, and what lies beside that may not fit. Look at its file systems then.

    A fault that was injected with drive fail is taken away.
    """
    where = str(Path(path).absolute()) if path else None
    with reached() as array:
        run(array, request(DRIVE, "Reconnect", of=name, path=where, force=force), plan=plan, no_wait=no_wait)


@group.command("remove")
@click.argument("name", shell_complete=complete.drives)
@click.option("--no-wait", is_flag=True, help="Print the task and return; the kernel goes on.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def remove(name: str, no_wait: bool, plan: bool) -> None:
    """Take a drive out of the array, after moving all that is on it to others. Its label goes, its file stays.

    The kernel copies each LUN's part underneath the LUN, which is in use all the while and loses no redundancy. Nothing is begun
    unless there is room for all of it.
    """
    wanted = request(DRIVE, "Remove", of=name)
    with reached() as array:
        drive = access.drive(array, name)
        if plan:
            show_plan(array.plan(wanted))
            return
        task = array.row(*array.call(wanted))
        if task["why"]:
            say(task["why"])
        if not no_wait and task["state"] not in ENDED:
            task = follow(array, task["id"])
        left = {each["name"]: each for each in array.drives()}.get(drive["name"])
        drive = left or drive
    if left is None:
        say(f"drive {drive['name']} removed from the array; {drive['path']} is left where it is")
    tell(task, drive=drive)


@group.command("spare")
@click.argument("name", shell_complete=complete.drives)
@click.option("--off", is_flag=True, help="Make it an ordinary drive again.")
@common
def spare(name: str, off: bool) -> None:
    """Make a drive a hot spare."""
    with reached() as array:
        array.call(request(DRIVE, "SetHotSpare", not off, of=name))
        drive = access.drive(array, name)
    if options().json:
        show_json(drive)
    say(f"drive {drive['name']} is {'an ordinary drive' if off else 'a hot spare'}")


@group.command("trust")
@click.argument("name", shell_complete=complete.drives)
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def trust(name: str, plan: bool) -> None:
    """Give a drive that was set aside another chance.

    A drive that fails three times within a day is given nothing more until then.
    """
    wanted = request(DRIVE, "Trust", of=name)
    with reached() as array:
        if plan:
            show_plan(array.plan(wanted))
            return
        array.call(wanted)
        drive = access.drive(array, name)
    if options().json:
        show_json(drive)
    say(f"drive {drive['name']} is trusted again")


def show_table(drives: Sequence[Json], luns: Sequence[str] | None = None) -> None:
    """Drives, one in a row; with the names of all LUNs each has a small map."""
    table(
        [
            ("drive", "left"),
            ("status", "left"),
            ("size", "right"),
            ("free", "right"),
            *([("map", "whole")] if luns is not None else []),
            ("LUNs", "left"),
            ("path", "left"),
        ],
        [
            (
                drive["name"],
                ", ".join(
                    [
                        drive["status"],
                        *(["hot spare"] if drive["hot_spare"] else []),
                        *(["set aside"] if drive["failing"] else []),
                        *([f"task {drive['task']}"] if drive["task"] else []),
                    ]
                ),
                format_size(drive["size"]),
                format_size(drive["free"]),
                *([drive_map.markup(drive_map.drawn(drive["regions"], luns, SMALL_MAP))] if luns is not None else []),
                " ".join(_lettered(drive, luns)),
                "\n".join(line for line in (drive["path"], drive["reason"], drive["failing"], _words(drive)) if line),
            )
            for drive in drives
        ],
    )


def _words(drive: Json) -> str:
    return msgspec.convert(drive["fault"], Fault).words if drive["fault"] else ""


def _lettered(drive: Json, luns: Sequence[str] | None) -> list[str]:
    """The names of a drive's LUNs, with the letters that its map has for them."""
    data = {row["lun"]: row for row in drive["regions"] if row["role"] == "data"}
    names = dict.fromkeys(row["lun"] for row in drive["regions"] if row["lun"])
    if luns is None:
        return list(names)
    return [f"{drive_map.key(data[name], luns).text}={name}" if name in data else name for name in names]


def show_map(drive: Json, luns: Sequence[str]) -> None:
    """The drive to scale: in two rows, or in as many as give each of its regions a few cells."""
    screen = console()
    width = min(screen.width, MAP_WIDTH) - 4
    rows = max(2, -(-MAP_CELLS * len(drive["regions"]) // width))
    for row in drive_map.broken(drive_map.drawn(drive["regions"], luns, rows * width), width):
        screen.print(f"  {drive_map.markup(row)}")
