"""blkrecov events"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

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
    told = _told(without) if os.geteuid() else None
    if follow:
        first = _LAST if last is None else last
        for event in _following(log, first, without) if told is None else _more(told, first):
            click.echo(json.dumps(_view(event)) if options().json else _text(event))
        return
    found = log.read(last, array=array, without=without) if told is None else _last(next(told), last)
    if options().json:
        show_json([_view(event) for event in found])
    for event in found:
        say(_text(event))


def _following(log: EventLog, last: int, without: frozenset[EventKind]) -> Iterator[Event]:
    with Watch(log.path) as watch:
        yield from log.follow(last, array=options().array, without=without, pause=lambda _: watch.wait(_output()))


def _told(without: frozenset[EventKind]) -> Iterator[list[Event]]:
    """What the daemon tells those who may not read the file, again whenever there is more. Raises: AccessDenied."""
    with daemon() as running:
        if running is None:
            raise AccessDenied("the file of events is root's, and no blkrecovd runs that would tell them")
        for found in running.array(options().array).events():
            yield [event for event in found if event.kind not in without]


def _more(told: Iterator[list[Event]], last: int) -> Iterator[Event]:
    """The last so many of the first lists' events, and those that are new in the others."""
    known = next(told)
    yield from _last(known, last)
    for found in told:
        begin = found.index(known[-1]) + 1 if known and known[-1] in found else 0
        yield from found[begin:]
        known = found


def _last(events: Sequence[Event], last: int | None) -> Sequence[Event]:
    return events if last is None else events[max(0, len(events) - last) :]


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
