"""An open array as it is shown: the rows of commands' tables and JSON, which are what is told on the bus as well.

Whatever shows something of an array begins here, so that it is the same whoever shows it. Reads; changes nothing.
"""

import time
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from blkrecov import tasks as tasks_
from blkrecov import views
from blkrecov.array import Array
from blkrecov.catalog import Discovered
from blkrecov.condition import suspended
from blkrecov.model import Drive, Lun, Task, TaskState
from blkrecov.overview import Overview, Work, report
from blkrecov.running import Progress
from blkrecov.settings import Settings, is_stopped
from blkrecov.state import ArrayState
from blkrecov.views import Json


def head(array: Array) -> Json:
    """What an array is by itself, without its drives and LUNs."""
    document = array.document
    return {
        "name": document.name,
        "uuid": str(document.array),
        "sequence": document.sequence,
        "auto_recover": document.auto_recover,
        "scrub": document.scrub.value,
        "rate_min": document.rate_min,
        "rate_max": document.rate_max,
    }


def drive(array: Array, drive: Drive) -> Json:
    return views.drive_view(array.document, drive)


def lun(array: Array, lun: Lun) -> Json:
    """With "trouble": why it could not be brought up, or empty."""
    live = array.observed.holding(lun)
    trouble = suspended(lun, live) if live else array.trouble.get(lun.uuid)
    return {**array.lun_json(lun), "trouble": trouble.message if trouble else ""}


def task(array: Array, task: Task) -> Json:
    """A task as far as it is now."""
    return under_way(array.progress(task.id))


def under_way(progress: Progress | Work, least: int = 0) -> Json:
    """A task with its phase, and how much of that is done; at least at this percentage."""
    task = progress.task
    if task.state is TaskState.IN_PROGRESS:
        task = msgspec.structs.replace(task, percent=max(task.percent, least))
    phase = None if task.state.ended else progress.phase or tasks_.phase(task)
    return {
        **views.task_view(task),
        "phase": phase.value if phase else "",
        "done": progress.done,
        "total": progress.total,
        "rate_min": task.rate_min,
        "rate_max": task.rate_max,
    }


def tasks(seen: Overview, least: Mapping[int, int]) -> tuple[Json, ...]:
    """All tasks. `least` has percentages that were told already."""
    work = {each.task.id: each for each in seen.work}
    return tuple(under_way(work.get(task.id, Work(task=task)), least.get(task.id, 0)) for task in seen.document.tasks)


def overview(array: Array, *, running: bool = True) -> Overview:
    """As the array was observed last. Of one that is stopped the kernel is not asked how far tasks are."""
    live = [task for task in array.document.tasks if running and not task.state.ended]
    progress = [array.progress(task.id) for task in live]
    return Overview(
        document=array.document,
        observed=array.observed,
        work=tuple(Work(task=item.task, phase=item.phase, done=item.done, total=item.total) for item in progress),
        trouble=dict(array.trouble),
        stalled=array.stalled(),
        at_s=time.monotonic(),
    )


def state(
    array: Array,
    seen: Overview,
    *,
    running: bool = True,
    trouble: str = "",
    least: Mapping[int, int] = MappingProxyType({}),
) -> ArrayState:
    """All of an array, of which this was seen. `running` is false for one that is stopped."""
    document = array.document
    told: Json = {"summary": f"array {document.name} is stopped", "problems": []}
    if running:
        told = report(seen)
    return ArrayState(
        **{**head(array), "uuid": document.array},
        running=running,
        trouble=trouble,
        summary=told["summary"],
        problems=tuple(told["problems"]),
        drives=tuple(drive(array, item) for item in document.drives),
        luns=tuple(lun(array, item) for item in document.luns),
        tasks=tasks(seen, least),
    )


def found(settings: Settings, array: Discovered) -> Json:
    """An array of this machine, open or not; "stopped" if somebody has stopped it since the machine was booted."""
    document = array.document
    return {
        "name": array.name,
        "uuid": str(array.uuid),
        "drives": len(document.drives) if document else 0,
        "found": len(array.drives),
        "luns": len(document.luns) if document else 0,
        "stopped": is_stopped(settings, array.uuid),
        "trouble": array.trouble[0].message if array.trouble else None,
    }
