"""blkrecov task, and how a task's progress is shown."""

import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from blkrecov.bus.interfaces import TASK
from blkrecov.cli.access import Access, Named, OnProgress, Reported, Request, request
from blkrecov.cli.common import common, console, options, rates, reached, say, show_json, show_plan, table
from blkrecov.errors import Code
from blkrecov.model import TaskState
from blkrecov.state import ENDED
from blkrecov.units import format_size
from blkrecov.views import Json

WINDOW_S = 3.0


@click.group("task")
def group() -> None:
    """Tasks: operations that take their time."""


@group.command("list")
@common
def list_() -> None:
    """Show the tasks that are under way, and the last that have ended."""
    with reached() as array:
        found = list(array.tasks())
    if options().json:
        show_json(found)
        return
    table(
        [
            ("task", "right"),
            ("kind", "left"),
            ("objects", "left"),
            ("state", "left"),
            ("percent", "right"),
            ("result", "left"),
        ],
        [
            (
                str(item["id"]),
                item["kind"],
                " ".join(item["objects"]),
                "paused" if item["paused"] else item["state"],
                f"{item['percent']} %",
                item["message"] or (item["code"] if item["state"] in ENDED else ""),
            )
            for item in found
        ],
    )


@group.command("show")
@click.argument("number", metavar="ID", type=int)
@common
def show(number: int) -> None:
    """Show a task."""
    with reached() as array:
        (text,) = array.call(request(TASK, "GetTaskInfo", of=str(number)))
        task = _task(array, number)
    tell(task, dmrp=json.loads(text))


@group.command("wait")
@click.argument("number", metavar="ID", type=int)
@click.option("--timeout", type=float, metavar="S", help="Stop waiting after so many seconds; the task goes on.")
@common
def wait(number: int, timeout: float | None) -> None:
    """Wait until a task has ended. The exit status is the task's."""
    with reached() as array:
        array.path(Named("task", str(number)))
        tell(follow(array, number, timeout))


@group.command("cancel")
@click.argument("number", metavar="ID", type=int)
@common
def cancel(number: int) -> None:
    """Stop a task."""
    with reached() as array:
        array.call(request(TASK, "Cancel", of=str(number)))
        task = _task(array, number)
    if options().json:
        show_json(task)
    if task["state"] in ENDED:
        say(f"task {number} is cancelled")
    else:
        say(f"task {number} puts back what was there before; wait for it with: blkrecov task wait {number}")


@group.command("pause")
@click.argument("number", metavar="ID", type=int)
@common
def pause(number: int) -> None:
    """Hold a task up until it is resumed, over restarts too."""
    with reached() as array:
        array.call(request(TASK, "Pause", of=str(number)))
        tell(_task(array, number))


@group.command("resume")
@click.argument("number", metavar="ID", type=int)
@common
def resume(number: int) -> None:
    """Let a paused task go on."""
    with reached() as array:
        array.call(request(TASK, "Resume", of=str(number)))
        tell(_task(array, number))


@group.command("rate")
@click.argument("number", metavar="ID", type=int)
@rates
@common
def rate(number: int, rate_min: int | None, rate_max: int | None) -> None:
    """Change how fast a task may go, while it runs."""
    if (rate_min, rate_max) == (None, None):
        raise click.UsageError("nothing to set: give --rate-min or --rate-max")
    with reached() as array:
        array.call(request(TASK, "SetRates", of=str(number), rate_min=rate_min, rate_max=rate_max))
        tell(_task(array, number))


def _task(array: Access, number: int) -> Json:
    return array.row(array.path(Named("task", str(number))))


def run(array: Access, wanted: Request, *, plan: bool, no_wait: bool) -> None:
    """Begin what has a task, and wait for it, as the command's options say."""
    if plan:
        show_plan(array.plan(wanted))
        return
    (path,) = array.call(wanted)
    run_begun(array, path, no_wait=no_wait)


def run_begun(array: Access, path: str, *, no_wait: bool) -> None:
    """Wait for the task of this path, unless the command's options say not to."""
    task = array.row(path)
    say(task["why"])
    tell(task if no_wait else follow(array, task["id"]))


def tell(task: Json, **more: Json) -> None:
    """Print a task, with more in its JSON. Raises Reported for one that failed or was cancelled, so the exit status says so."""
    if options().json:
        show_json({**task, **more})
    _tell([task])


def tell_all(tasks: Sequence[Json]) -> None:
    """Print the tasks of one command. Raises Reported for the first that ended badly."""
    if options().json:
        show_json(list(tasks))
    _tell(tasks)


def _tell(tasks: Sequence[Json]) -> None:
    for task in tasks:
        moved = task["bytes"]
        say(
            f"task {task['id']}: {task['kind']} of {' '.join(task['objects'])}: {task['state'].replace('_', ' ')}, "
            f"{task['percent']} %{', paused' if task['paused'] else ''}{', ' + task['message'] if task['message'] else ''}"
        )
        if task["state"] in ENDED:
            say(f"  the kernel moved {format_size(moved['kernel'])}, this program {format_size(moved['process'])}")
    for task in tasks:
        if task["state"] in (TaskState.FAILED, TaskState.CANCELLED):
            raise Reported(Code[task["code"]], task["message"], task["remedy"])


def follow(array: Access, number: int, timeout_s: float | None = None) -> Json:
    """Wait for a task, showing its progress to people. Ctrl-C ends the showing, not the task."""
    if options().json:
        return array.follow(number, None, timeout_s)
    try:
        with _shown() as on_progress:
            return array.follow(number, on_progress, timeout_s)
    except KeyboardInterrupt:
        click.echo(f"\nthe task goes on; wait for it with: blkrecov task wait {number}", err=True)
        raise


class Rate:
    """Bytes per second over a short window, and the time left at that rate."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now_s: float, done: int) -> None:
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # Another phase.
        self._seen.append((now_s, done))
        while now_s - self._seen[0][0] > WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()

    def per_second(self) -> float | None:
        """None while nothing can be said."""
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s and last > first else None

    def words(self, done: int, total: int) -> str:
        rate = self.per_second()
        if rate is None:
            return "time left unknown"
        return f"{format_size(int(rate))}/s, {max(0, total - done) / rate:.0f} s left"


def _is_at_work(task: Json) -> bool:
    return task["state"] == TaskState.IN_PROGRESS and not task["paused"] and bool(task["phase"])


@contextmanager
def _shown() -> Iterator[OnProgress]:
    """A bar on a terminal; elsewhere a line now and then."""
    rate = Rate()
    if not sys.stderr.isatty():
        last = -10

        def line(task: Json) -> None:
            nonlocal last
            if not _is_at_work(task):
                return
            rate.note(time.monotonic(), task["done"])
            percent = task["percent"]
            if percent >= last + 10:
                last = percent
                amount = f"{format_size(task['done'])} of {format_size(task['total'])}"
                words = rate.words(task["done"], task["total"])
                click.echo(f"  {task['phase']} {percent:3d} %  {amount}, {words}", err=True)

        yield line
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description:8}"),
        BarColumn(40),
        TaskProgressColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Bar(*columns, console=console(stderr=True)) as bar:
        row = bar.add_task("", total=100, words="")

        def draw(task: Json) -> None:
            if not _is_at_work(task):
                finished = task["state"] == TaskState.COMPLETED
                bar.update(row, completed=100 if finished else None, words=task["state"].replace("_", " "))
                return
            rate.note(time.monotonic(), task["done"])
            bar.update(
                row,
                description=task["phase"],
                completed=task["percent"],
                words=f"{format_size(task['done'])} of {format_size(task['total'])}, "
                + rate.words(task["done"], task["total"]),
            )

        yield draw
