"""Whose turn it is: recoveries that share a drive are not run at the same time, and the most endangered LUN goes first. Pure.

md serialises arrays that share a disk (drivers/md/md.c, md_do_sync()), but compares gendisks, and each leg of a dm-raid
array is a device of its own: two rebuilds on one drive would make its heads, or its latency, serve both, and neither LUN
would be safe sooner.
"""

from typing import Final
from uuid import UUID

from blkrecov import views
from blkrecov.model import Document, Lun, Task, TaskKind, TaskState
from blkrecov.observed import Observed

_MOVING: Final = (TaskKind.RECOVER, TaskKind.REPLACE)


def taken(document: Document) -> frozenset[UUID]:
    """The drives of all LUNs that are being recovered or moved now. What is paused takes nothing."""
    drives: frozenset[UUID] = frozenset()
    for task in document.tasks:
        if task.state is TaskState.IN_PROGRESS and task.kind in _MOVING and not task.paused:
            drives |= document.lun_of(task.lun).drives
    return drives


def must_wait(document: Document, wanted: Lun) -> bool:
    """Whether a LUN, as it would be while it is recovered, shares a drive with one that is being recovered."""
    return bool(taken(document) & wanted.drives)


class Standstill:
    """Whether what is due comes to nothing: it was due at the look before, and the document is still the one it was then.

    So it is with a task whose turn has come but for the spare that it would take, or while the kernel is between two of its own
    steps. Who looks waits a little then, instead of trying again at once.
    """

    def __init__(self) -> None:
        self._due_at: int | None = None

    def seen(self, due: bool, sequence: int) -> bool:
        """To be told of each look: whether something is due, and the document's sequence."""
        before, self._due_at = self._due_at, sequence if due else None
        return due and before == sequence


def queued(document: Document, observed: Observed) -> tuple[Task, ...]:
    """The tasks that wait, in the order in which they are to be tried."""
    waiting = (task for task in document.tasks if task.state is TaskState.QUEUED)
    return tuple(sorted(waiting, key=lambda task: (endangered(document, observed, document.lun_of(task.lun)), task.id)))


def endangered(document: Document, observed: Observed, lun: Lun) -> int:
    """How many more members a LUN can lose, whichever they are: the fewer, the sooner it has to be recovered."""
    return views.tolerance(document, observed, lun)
