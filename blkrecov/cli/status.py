"""blkrecov status"""

from collections.abc import Iterator, Sequence
from uuid import UUID

import click

from blkrecov import rows, state
from blkrecov.cli import lun
from blkrecov.cli.common import common, daemon, options, reached, say, show_json, table
from blkrecov.engine import list_arrays
from blkrecov.errors import BlkrecovError
from blkrecov.settings import Settings
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
    """Each array of this machine, or the one that is asked for; where there are several, one that cannot be opened says why."""
    with daemon() as running:
        found: Sequence[Json] = ()
        if options().array is None:
            found = running.arrays() if running else [rows.found(array) for array in list_arrays(Settings.load())]
    if len(found) < 2:
        yield _view()
        return
    for array in found:
        options().array = array["uuid"]
        try:
            yield _view()
        except BlkrecovError as error:
            uuid = UUID(array["uuid"])
            yield state.status(ArrayState(uuid=uuid, name=array["name"], trouble=error.message, remedy=error.remedy))


def _view() -> Json:
    with reached() as array:
        return state.status(array.state())


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
