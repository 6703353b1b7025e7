"""blkrecov task, and how a task's progress is shown."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from blkrecov import views
from blkrecov.array import Array
from blkrecov.cli.common import common, console, opened, options, rates, say, show_json, show_plan, table
from blkrecov.dmrp import notify, storage
from blkrecov.errors import BlkrecovError, Code
from blkrecov.model import Task, TaskState
from blkrecov.proposal import Proposal
from blkrecov.running import Progress
from blkrecov.units import format_size
from blkrecov.views import Json

WINDOW_S = 3.0


_ENDED = {state.value for state in TaskState if state.ended}


class TaskEnded(BlkrecovError):
    """A task ended badly: its own code, message and remedy."""

    def __init__(self, task: Task) -> None:
        super().__init__(task.message, remedy=task.remedy)
        # Callers match codes, and this error has its task's.
        self.__class__ = type("TaskEnded", (TaskEnded,), {"code": Code[task.code]})


@click.group("task")
def group() -> None:
    """Tasks: operations that take their time."""


@group.command("list")
@common
def list_() -> None:
    """Show the tasks that are under way, and the last that have ended."""
    with opened() as array:
        found = [views.task_view(array.progress(item.id).task) for item in array.document.tasks]
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
                item["message"] or (item["code"] if item["state"] in _ENDED else ""),
            )
            for item in found
        ],
    )


@group.command("show")
@click.argument("number", metavar="ID", type=int)
@common
def show(number: int) -> None:
    """Show a task."""
    with opened() as array:
        task = array.progress(number).task
        dmrp = notify.view(storage.task_info(array.document, task))
    tell(task, dmrp=dmrp)


@group.command("wait")
@click.argument("number", metavar="ID", type=int)
@click.option("--timeout", type=float, metavar="S", help="Stop waiting after so many seconds; the task goes on.")
@common
def wait(number: int, timeout: float | None) -> None:
    """Wait until a task has ended. The exit status is the task's."""
    with opened() as array:
        tell(follow(array, number, timeout))


@group.command("cancel")
@click.argument("number", metavar="ID", type=int)
@common
def cancel(number: int) -> None:
    """Stop a task."""
    with opened() as array:
        task = array.cancel(number)
    if options().json:
        show_json(views.task_view(task))
    if task.state.ended:
        say(f"task {task.id} is cancelled")
    else:
        say(f"task {task.id} puts back what was there before; wait for it with: blkrecov task wait {task.id}")


@group.command("pause")
@click.argument("number", metavar="ID", type=int)
@common
def pause(number: int) -> None:
    """Hold a task up until it is resumed, over restarts too."""
    with opened() as array:
        tell(array.pause(number))


@group.command("resume")
@click.argument("number", metavar="ID", type=int)
@common
def resume(number: int) -> None:
    """Let a paused task go on."""
    with opened() as array:
        tell(array.resume(number))


@group.command("rate")
@click.argument("number", metavar="ID", type=int)
@rates
@common
def rate(number: int, rate_min: int | None, rate_max: int | None) -> None:
    """Change how fast a task may go, while it runs."""
    if (rate_min, rate_max) == (None, None):
        raise click.UsageError("nothing to set: give --rate-min or --rate-max")
    with opened() as array:
        tell(array.set_rates(number, rate_min, rate_max))


def run(
    array: Array,
    proposal: Proposal,
    task: Task,
    *,
    plan: bool,
    no_wait: bool,
    start: Callable[[Proposal, Task], Task] | None = None,
) -> None:
    """Start a task and wait for it, as the command's options say. `start` is Array.start, if nothing else is given."""
    if plan:
        show_plan(array.plan(proposal))
        return
    say(proposal.why)
    started = (start or array.start)(proposal, task)
    tell(started if no_wait else follow(array, started.id))


def tell(task: Task, **more: Json) -> None:
    """Print a task, with more in its JSON. Raises TaskEnded for one that failed or was cancelled, so the exit status says so."""
    if options().json:
        show_json({**views.task_view(task), **more})
    _tell([task])


def tell_all(tasks: Sequence[Task]) -> None:
    """Print the tasks of one command. Raises TaskEnded for the first that ended badly."""
    if options().json:
        show_json([views.task_view(task) for task in tasks])
    _tell(tasks)


def _tell(tasks: Sequence[Task]) -> None:
    for task in tasks:
        moved = views.task_view(task)["bytes"]
        say(
            f"task {task.id}: {task.kind.value} of {' '.join(task.objects)}: {task.state.value.replace('_', ' ')}, "
            f"{task.percent} %{', paused' if task.paused else ''}{', ' + task.message if task.message else ''}"
        )
        if task.state.ended:
            say(f"  the kernel moved {format_size(moved['kernel'])}, this program {format_size(moved['process'])}")
    for task in tasks:
        if task.state in (TaskState.FAILED, TaskState.CANCELLED):
            raise TaskEnded(task)


def follow(array: Array, number: int, timeout_s: float | None = None) -> Task:
    """Wait for a task, showing its progress to people. Ctrl-C ends the showing, not the task."""
    if options().json:
        return array.wait(number, timeout_s=timeout_s)
    try:
        with _shown() as on_progress:
            return array.wait(number, on_progress=on_progress, timeout_s=timeout_s)
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


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line now and then."""
    rate = Rate()
    if not sys.stderr.isatty():
        last = -10

        def line(progress: Progress) -> None:
            nonlocal last
            if progress.phase is None:
                return
            rate.note(time.monotonic(), progress.done)
            percent = progress.task.percent
            if percent >= last + 10:
                last = percent
                amount = f"{format_size(progress.done)} of {format_size(progress.total)}"
                words = rate.words(progress.done, progress.total)
                click.echo(f"  {progress.phase.value} {percent:3d} %  {amount}, {words}", err=True)

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

        def draw(progress: Progress) -> None:
            if progress.phase is None:
                finished = progress.task.state is TaskState.COMPLETED
                bar.update(row, completed=100 if finished else None, words=progress.task.state.value.replace("_", " "))
                return
            rate.note(time.monotonic(), progress.done)
            bar.update(
                row,
                description=progress.phase.value,
                completed=progress.task.percent,
                words=f"{format_size(progress.done)} of {format_size(progress.total)}, "
                + rate.words(progress.done, progress.total),
            )

        yield draw
