"""blkrecov top"""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from blkrecov.cli.access import Access
from blkrecov.cli.common import common, console, options, reached, show_json
from blkrecov.overview import activity
from blkrecov.units import format_size
from blkrecov.views import Json

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

# A terminal's, where nobody says otherwise.
HEIGHT: Final = 24
# The first line, and for each of three tables its head and the empty line before it; the last line stays free.
_FIXED: Final = 8
_COLUMNS: Final = {
    "drives": ("drive", "status", "busy", "", "read/s", "written/s"),
    "luns": ("LUN", "layout", "health", "in sync", "read/s", "written/s"),
    "tasks": ("task", "of", "", "done", "moved/s", "time left"),
}


@click.command("top")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=1.0, metavar="S", help="Seconds between two looks."
)
@common
def top(interval: float) -> None:
    """Show drives, LUNs and tasks as they work; q or Ctrl-C ends it.

    It looks at the kernel's counters and asks no drive. Where its output is no terminal, and with --json, it looks twice and
    shows once. Rates are bytes per second.
    """
    with reached() as array:
        if options().json or not sys.stdout.isatty():
            before, now = array.samples(partial(_counted(2), interval))
            if options().json:
                show_json(activity(now, before))
            else:
                console().print(render(activity(now, before)))
            return
        _watch(array, interval)


def _watch(array: Access, interval: float) -> None:
    from rich.live import Live

    screen = console()
    before = None
    with _keys() as pressed, Live(console=screen, screen=True, auto_refresh=False) as live:
        try:
            for now in array.samples(lambda: pressed(interval)):
                live.update(render(activity(now, before), screen.width, screen.height), refresh=True)
                before = now
        except KeyboardInterrupt:
            return


def _counted(number: int) -> Callable[[float], bool]:
    """Gives what waits so many seconds, and answers whether there were enough looks."""
    left = number

    def ended(seconds: float) -> bool:
        nonlocal left
        left -= 1
        if left:
            time.sleep(seconds)
        return not left

    return ended


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Gives what waits so many seconds, and answers whether q was pressed. Other keys only make it look sooner."""
    descriptor = sys.stdin.fileno()
    if not sys.stdin.isatty():
        yield _counted(sys.maxsize)
        return
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)

    def pressed(seconds: float) -> bool:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return bool(ready) and os.read(descriptor, 64)[:1] in (b"q", b"Q", b"")

    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def render(view: Json, width: int = 80, height: int = HEIGHT) -> "RenderableType":
    """An activity() on a screen of so many columns and lines. Where not all rows fit, those stay that are not well or busiest."""
    from rich.console import Group
    from rich.text import Text

    rows = {"drives": [_drive(row) for row in view["drives"]], "luns": [_lun(row) for row in view["luns"]]}
    rows["tasks"] = [_task(row) for row in view["tasks"]]
    order: dict[str, Callable[[Json], Any]] = {
        "drives": lambda row: (row["status"] == "online", -_sum(row)),
        "luns": lambda row: (row["health"] == "healthy", -_sum(row)),
        "tasks": lambda row: (row["state"] != "in_progress", row["id"]),
    }
    head = Text(view["summary"], style="bold" if view["healthy"] else "bold red", no_wrap=True, overflow="ellipsis")
    parts: list[RenderableType] = [head]
    rooms = shares([len(found) for found in rows.values()], height - _FIXED)
    for (noun, found), room in zip(rows.items(), rooms, strict=True):
        if not found:
            continue
        kept = list(range(len(found)))
        if room < len(found):
            kept.sort(key=lambda index: order[noun](view[noun][index]))
            kept = sorted(kept[: max(room - 1, 0)])
        table = _table(_COLUMNS[noun], [found[index] for index in kept], width)
        if len(kept) < len(found):
            table.add_row(f"and {len(found) - len(kept)} more", style="dim")
        parts += [Text(""), table]
    return Group(*parts)


def shares(wanted: Sequence[int], room: int) -> list[int]:
    """How many of `room` lines each of several gets that want so many: none more than it wants, the least demanding first."""
    given = [0] * len(wanted)
    left = max(room, 0)
    by_need = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for position, index in enumerate(by_need):
        given[index] = min(wanted[index], left // (len(wanted) - position))
        left -= given[index]
    return given


def _sum(row: Json) -> float:
    return (row["read"] or 0.0) + (row["written"] or 0.0)


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]], width: int) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="reverse", width=width, padding=(0, 1, 0, 0))
    for title, ratio in zip(titles[:3], (3, 2, 3), strict=True):
        table.add_column(title, ratio=ratio, no_wrap=True, overflow="ellipsis")
    for title, size in zip(titles[3:], (7, 10, 10), strict=True):
        table.add_column(title, width=size, justify="right", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*row)
    return table


def _drive(row: Json) -> Sequence[Any]:
    busy = row["busy"]
    colour = "" if row["status"] == "online" else "red"
    words = "" if busy is None else f"{busy:4.0%}"
    return row["name"], _coloured(row["status"], colour), _bar(busy), words, _rate(row["read"]), _rate(row["written"])


def _lun(row: Json) -> Sequence[Any]:
    colour = {"healthy": "", "rebuilding": "yellow"}.get(row["health"], "red")
    health = _coloured(row["health"], colour)
    sync = "" if row["sync"] is None else f"{row['sync']:4.0%}"
    return row["name"], row["layout"], health, sync, _rate(row["read"]), _rate(row["written"])


def _task(row: Json) -> Sequence[Any]:
    state = "paused" if row["paused"] else row["phase"] or row["state"]
    name = f"{row['id']} {row['kind']}: {state.replace('_', ' ')}"
    return name, " ".join(row["objects"]), _bar(row["percent"] / 100), f"{row['percent']:3} %", *_left(row)


def _left(row: Json) -> tuple[str, str]:
    if row["left_s"] is None:
        return "", ""
    minutes, seconds = divmod(round(row["left_s"]), 60)
    hours, minutes = divmod(minutes, 60)
    return _rate(row["rate"]), f"{hours}:{minutes:02}:{seconds:02}"


def _rate(rate: float | None) -> str:
    return "" if rate is None else format_size(int(rate))


def _bar(part: float | None) -> Any:
    from rich.progress_bar import ProgressBar

    return "" if part is None else ProgressBar(total=1.0, completed=part, complete_style="cyan", finished_style="cyan")


def _coloured(word: str, colour: str) -> Any:
    from rich.text import Text

    return Text(word.replace("_", " "), style=colour)
