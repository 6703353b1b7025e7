"""Arrays as metrics, for Prometheus and what understands its formats. Pure.

Names follow Prometheus' conventions: base units, `_total` for what only grows, a timestamp for "when last". A status is a gauge
for each word that it may have, of which one is 1: so a graph shows how long it was what. Counters are the kernel's, and begin
anew with the devices; rate() knows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, TypeAlias, TypeVar

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from blkrecov import views
from blkrecov.condition import state_of
from blkrecov.model import Drive, DriveStatus, Health, Lun, LunStatus, Task, TaskKind, TaskState
from blkrecov.overview import Overview, problems, sync_ratio
from blkrecov.traffic import Counters
from blkrecov.units import in_bytes

_Object = TypeVar("_Object", Drive, Lun)
Value: TypeAlias = float | None
"""None where there is nothing to tell."""
_Rows: TypeAlias = Mapping[str, tuple[str, Callable[[Overview, _Object], Value]]]

DRIVE_HEALTH: Final = ("healthy", "pending_failure", "failed", "unknown")

_DRIVE: Final[_Rows[Drive]] = {
    "size_bytes": ("Size of the drive.", lambda _, drive: drive.size),
    "free_bytes": (
        "Space that no LUN uses.",
        lambda now, drive: float(views.drive_view(now.document, drive)["free"]),
    ),
    "hot_spare": ("Whether it is kept free for lost members.", lambda _, drive: drive.hot_spare),
    "recent_failures": ("How often it failed or went away lately.", lambda _, drive: len(drive.failures)),
}
_LUN: Final[_Rows[Lun]] = {
    "size_bytes": ("Size that the host sees.", lambda _, lun: lun.bytes),
    "members": ("Members that it has.", lambda _, lun: len(lun.members)),
    "fault_tolerance_members": (
        "How many more members may be lost, whichever they are.",
        lambda now, lun: views.tolerance(now.document, now.observed, lun),
    ),
    "sync_ratio": ("How much of its members is equal, 0 to 1.", sync_ratio),
    "mismatch_bytes": (
        "Where members disagreed at the last scrub.",
        lambda _, lun: None if lun.mismatches is None else in_bytes(lun.mismatches),
    ),
    "last_scrub_timestamp_seconds": ("When its last scrub ended.", lambda _, lun: lun.scrubbed or None),
    "shadow_copy_taken_timestamp_seconds": (
        "Of when a shadow copy is.",
        lambda _, lun: (lun.shadow.taken or None) if lun.shadow else None,
    ),
    "shadow_copy_store_size_bytes": (
        "Room for what a shadow copy's origin changes.",
        lambda now, lun: _store(now, lun, "size"),
    ),
    "shadow_copy_store_used_bytes": (
        "How much of that room is used.",
        lambda now, lun: _store(now, lun, "used"),
    ),
}
_TRAFFIC: Final[Mapping[str, tuple[str, Callable[[Counters], float]]]] = {
    "read_bytes": ("Bytes read.", lambda counters: counters.read),
    "written_bytes": ("Bytes written.", lambda counters: counters.written),
    "reads_completed": ("Reads completed.", lambda counters: counters.reads),
    "writes_completed": ("Writes completed.", lambda counters: counters.writes),
    "io_time_seconds": ("Time in which there was I/O.", lambda counters: counters.busy_ms / 1000),
}


def _store(now: Overview, lun: Lun, key: str) -> Value:
    store = views.shadow_view(now.observed, lun)["store"] if lun.differential else None
    found: Value = store[key] if store else None
    return found


@dataclass(frozen=True, slots=True)
class Care:
    """How an array is looked after by the daemon."""

    array: str
    up: bool
    """False when it cannot be opened, or looked after."""
    busy_s: float
    """For how long the daemon has been at the same thing with it."""


def families(arrays: Sequence[Overview], care: Iterable[Care] = ()) -> Iterator[Metric]:
    """All metrics of these arrays. Each is there whether or not there is anything that it could tell of."""
    build = InfoMetricFamily("blkrecov_build", "Which blkrecov this is.")
    build.add_metric((), {"version": version("blkrecov")})
    yield build
    up = GaugeMetricFamily("blkrecov_array_up", "Whether it is being looked after.", labels=("array",))
    busy = GaugeMetricFamily(
        "blkrecov_array_busy_seconds",
        "For how long the same thing has been done to it. While that grows, all else is as it was last known.",
        labels=("array",),
    )
    for each in care:
        up.add_metric((each.array,), each.up)
        busy.add_metric((each.array,), each.busy_s)
    yield from (up, busy)
    wrong = GaugeMetricFamily(
        "blkrecov_array_problems", "What is not well, drives and LUNs together.", labels=("array",)
    )
    for now in arrays:
        wrong.add_metric((now.document.name,), len(problems(now)))
    yield wrong
    drives = [(now, drive) for now in arrays for drive in now.document.drives]
    luns = [(now, lun) for now in arrays for lun in now.document.luns]
    yield _states("drive", "status", DriveStatus, [(*item, item[1].status.value) for item in drives])
    yield _states("drive", "health", DRIVE_HEALTH, [(*item, views.drive_health(item[1])) for item in drives])
    shown = [(now, lun, *state_of(now.document, now.observed, lun)) for now, lun in luns]
    yield _states("lun", "status", LunStatus, [(now, lun, status.value) for now, lun, status, _ in shown])
    yield _states("lun", "health", Health, [(now, lun, health.value) for now, lun, _, health in shown])
    yield from _gauges("drive", _DRIVE, drives)
    yield from _gauges("lun", _LUN, luns)
    yield from _traffic("drive", drives)
    yield from _traffic("lun", luns)
    errors = CounterMetricFamily(
        "blkrecov_lun_io_errors",
        "Commands that the LUN's SCSI disk ended with an error; one or two are from when it was made.",
        labels=("array", "lun"),
    )
    for now, lun in luns:
        if lun.uuid in now.errors:
            errors.add_metric((now.document.name, lun.name), now.errors[lun.uuid])
    yield errors
    yield from _tasks(arrays)


def _states(
    noun: str, what: str, words: Iterable[str], rows: Iterable[tuple[Overview, Drive | Lun, str]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        f"blkrecov_{noun}_{what}", f"1 for the {what} that it has, 0 for all others.", labels=("array", noun, what)
    )
    known = tuple(str(word) for word in words)
    for now, item, present in rows:
        for word in known:
            family.add_metric((now.document.name, item.name, word), word == present)
    return family


def _gauges(noun: str, rows: _Rows[_Object], items: Sequence[tuple[Overview, _Object]]) -> Iterator[GaugeMetricFamily]:
    for name, (documentation, ask) in rows.items():
        family = GaugeMetricFamily(f"blkrecov_{noun}_{name}", documentation, labels=("array", noun))
        for now, item in items:
            value = ask(now, item)
            if value is not None:
                family.add_metric((now.document.name, item.name), value)
        yield family


def _traffic(noun: str, items: Sequence[tuple[Overview, _Object]]) -> Iterator[CounterMetricFamily]:
    for name, (documentation, ask) in _TRAFFIC.items():
        family = CounterMetricFamily(f"blkrecov_{noun}_{name}", documentation, labels=("array", noun))
        for now, item in items:
            if item.uuid in now.traffic:
                family.add_metric((now.document.name, item.name), ask(now.traffic[item.uuid]))
        yield family


def _tasks(arrays: Sequence[Overview]) -> Iterator[Metric]:
    counts = GaugeMetricFamily(
        "blkrecov_tasks",
        "Tasks that are remembered; of those that have ended, the newest.",
        labels=("array", "kind", "state"),
    )
    done = GaugeMetricFamily(
        "blkrecov_task_progress_ratio",
        "How far a task that has not ended is, 0 to 1.",
        labels=("array", "task", "kind", "object"),
    )
    moved = CounterMetricFamily(
        "blkrecov_task_kernel_bytes", "What the kernel has moved for it.", labels=("array", "task", "kind", "object")
    )
    for now in arrays:
        array = now.document.name
        for kind in TaskKind:
            for state in TaskState:
                found = sum(1 for task in now.document.tasks if (task.kind, task.state) == (kind, state))
                counts.add_metric((array, kind.value, state.value), found)
        for work in now.work:
            labels = (array, *_labels(work.task))
            done.add_metric(labels, work.task.percent / 100)
            moved.add_metric(labels, work.task.bytes_kernel)
    yield from (counts, done, moved)


def _labels(task: Task) -> tuple[str, str, str]:
    return str(task.id), task.kind.value, task.objects[0] if task.objects else ""


class ArrayCollector(Collector):
    """For a registry of one's own: looks whenever it is asked."""

    def __init__(self, look: Callable[[], Sequence[Overview]], care: Iterable[Care] = ()) -> None:
        self._look = look
        self._care = care

    def collect(self) -> Iterator[Metric]:
        return families(self._look(), self._care)


def exposition(arrays: Sequence[Overview], care: Iterable[Care] = ()) -> str:
    """The text that Prometheus reads (text format 0.0.4), for node_exporter's directory of text files as well."""
    return generate_latest(ArrayCollector(lambda: arrays, care)).decode()
