"""Overviews for the tests: an array, what is observed, and counters that were looked at a second apart."""

from collections.abc import Mapping
from uuid import UUID

from blkrecov.model import Document, Phase, Task, TaskKind, TaskState
from blkrecov.observed import Observed
from blkrecov.overview import Overview, Work
from blkrecov.traffic import Counters
from blkrecov.units import MIB


def counted(read: int = 0, written: int = 0, busy_ms: int = 0) -> Counters:
    """So many MiB, in requests of 1 MiB."""
    return Counters(reads=read, read=read * MIB, writes=written, written=written * MIB, busy_ms=busy_ms)


def overview(
    document: Document,
    observed: Observed,
    *work: Work,
    at_s: float = 0.0,
    traffic: Mapping[UUID, Counters] | None = None,
    errors: Mapping[UUID, int] | None = None,
) -> Overview:
    return Overview(
        document=document, observed=observed, work=work, at_s=at_s, traffic=traffic or {}, errors=errors or {}
    )


def recovery(document: Document, name: str = "v", *, percent: int = 25, paused: bool = False) -> Task:
    """A task that regenerates a LUN."""
    lun = document.lun(name)
    return Task(
        id=7,
        kind=TaskKind.RECOVER,
        lun=lun.uuid,
        objects=(name, "d2"),
        state=TaskState.IN_PROGRESS,
        phases=(Phase.REBUILD, Phase.VERIFY),
        percent=percent,
        paused=paused,
    )


def at_work(task: Task, done: int, total: int) -> Work:
    """In its first phase, so many MiB far."""
    return Work(task=task, phase=Phase.REBUILD, done=done * MIB, total=total * MIB)
