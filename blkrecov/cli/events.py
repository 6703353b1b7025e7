"""blkrecov events"""

import json
import sys
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from blkrecov.bus.interfaces import ARRAY
from blkrecov.cli.access import request
from blkrecov.cli.common import common, daemon, options, say, show_json
from blkrecov.errors import AccessDenied
from blkrecov.events import FOR_PROGRAMS, Event, EventKind, EventLog
from blkrecov.settings import Settings
from blkrecov.watch import Watch

_LAST = 10


@click.command("events")
@click.option(
    "--last", "-n", type=click.IntRange(min=0), metavar="N", help=f"Only the last N (all; with --follow: {_LAST})."
)
@click.option("--follow", "-f", is_flag=True, help="Go on, and show what happens when it happens. Ctrl-C ends it.")
@common
def events(last: int | None, follow: bool) -> None:
    """Show what happened: failures, recoveries, scrubs. With --array only to that array.

    With --json an array of objects, or with --follow an object on each line; these have the changes of MS-DMRP's storage objects
    among them. Following ends with Ctrl-C, or when whoever reads has gone.

    \b
    Examples:
      blkrecov events -f
      blkrecov events --json -n 100 | jq 'map(select(.kind == "drive_failed"))'
    """
    log = EventLog(Settings.load().state)
    array = options().array
    without = frozenset() if options().json else FOR_PROGRAMS
    if follow:
        with Watch(log.path) as watch:
            for event in log.follow(
                _LAST if last is None else last, array=array, without=without, pause=lambda _: watch.wait(_output())
            ):
                click.echo(json.dumps(_view(event)) if options().json else _text(event))
        return
    try:
        found = log.read(last, array=array, without=without)
    except AccessDenied:
        found = _told(last, without)
    if options().json:
        show_json([_view(event) for event in found])
    for event in found:
        say(_text(event))


def _told(last: int | None, without: frozenset[EventKind]) -> tuple[Event, ...]:
    """What the daemon tells those who may not read the file. Raises: AccessDenied."""
    with daemon() as running:
        if running is None:
            raise AccessDenied("the file of events is root's, and no blkrecovd runs that would tell them")
        (text,) = running.array(options().array).call(request(ARRAY, "GetEvents"))
    found = [event for event in msgspec.json.decode(text, type=tuple[Event, ...]) if event.kind not in without]
    return tuple(found if last is None else found[len(found) - last :])


def _output() -> int | None:
    """The descriptor that is written to, where there is one."""
    try:
        return sys.stdout.fileno()
    except OSError:
        return None


def _view(event: Event) -> Any:
    return msgspec.to_builtins(event)


def _text(event: Event) -> str:
    when = datetime.fromtimestamp(event.time, UTC).astimezone()
    text = f"{when:%Y-%m-%d %H:%M:%S}  {event.array}  {event.kind.value}: {event.message}"
    return f"{text}\n  what to do: {event.remedy}" if event.remedy else text
