"""blkrecov status"""

import dataclasses
from collections.abc import Iterator
from uuid import UUID

import click

from blkrecov import state
from blkrecov.cli import array, lun
from blkrecov.cli.common import common, daemon, options, reached, say, show_json, table
from blkrecov.errors import BlkrecovError
from blkrecov.state import ArrayState
from blkrecov.units import format_size
from blkrecov.views import Json


@click.command("status")
@click.pass_context
@common
def status(context: click.Context) -> None:
    """Show on one screen how the arrays are, and what to do next. Its first line says it all.

    Exit status: 0 if every drive is online and every LUN healthy, 1 if anything is not well or cannot be told, 2 usage. So it
    serves as a monitoring system's check as it is. With --json an object: healthy, summary, arrays, and for each of them its
    drives, LUNs, tasks and problems, each with its remedy; where there is only one array, its fields stand at the top as well.

    \b
    Examples:
      blkrecov status >/run/array || mail -s "array" root </run/array
      blkrecov status --json | jq -r '.problems[] | .what + ": " + .remedy'
    """
    views = list(_views())
    healthy = all(view["healthy"] for view in views)
    summary = "; ".join(view["summary"] for view in views)
    if options().json:
        alone = views[0] if len(views) == 1 else {}
        show_json({**alone, "healthy": healthy, "summary": summary, "arrays": views})
    else:
        say(summary)
        for view in views:
            _show(view)
    context.exit(0 if healthy else 1)


def _views() -> Iterator[Json]:
    """Each array of this machine, or the one that is asked for; where there are several, one that cannot be opened says why.

    One that was stopped is not brought up for that: this is a monitoring system's check.
    """
    with daemon() as running:
        arrays = running.arrays() if running else array.found()
    asked = options().array
    arrays = [each for each in arrays if asked in (None, each["name"], each["uuid"])]
    for each in arrays:
        known = ArrayState(uuid=UUID(each["uuid"]), name=each["name"], summary=f"array {each['name']} is stopped")
        if each["stopped"]:
            yield state.status(known)
            continue
        options().array = each["uuid"]
        try:
            yield _view()
        except BlkrecovError as error:
            if len(arrays) == 1:
                raise
            yield state.status(dataclasses.replace(known, trouble=error.message, remedy=error.remedy))
    if not arrays:
        yield _view()  # Which says why not.


def _view() -> Json:
    with reached() as access:
        return state.status(access.state())


def _show(view: Json) -> None:
    """An array on one screen: drives are counted, and only those named that are not well."""
    if view["drives"]:
        say(f"\n{view['name']}: {_drives(view['drives'])}")
    if view["luns"]:
        lun.show_table(view["luns"])
    if view["tasks"]:
        table(
            [("task", "right"), ("kind", "left"), ("objects", "left"), ("state", "left"), ("percent", "right")],
            [
                (
                    str(task["id"]),
                    task["kind"],
                    " ".join(task["objects"]),
                    "paused" if task["paused"] else task["state"],
                    f"{task['percent']} %",
                )
                for task in view["tasks"]
            ],
        )
    for problem in view["problems"]:
        say(f"{problem['kind'].replace('lun', 'LUN')} {problem['name']} {problem['what']}")
        say(f"  what to do: {problem['remedy'] or 'wait; it is being seen to'}")


def _drives(drives: list[Json]) -> str:
    counts = {
        word: sum(1 for drive in drives if drive["status"] == word)
        for word in dict.fromkeys(drive["status"] for drive in drives)
    }
    words = [f"{number} {word.replace('_', ' ')}" for word, number in counts.items()]
    spares = sum(1 for drive in drives if drive["hot_spare"])
    free, size = (sum(drive[key] for drive in drives) for key in ("free", "size"))
    spare = f", {spares} of them hot spare" if spares else ""
    return f"drives: {', '.join(words)}{spare}; {format_size(free)} of {format_size(size)} free"
