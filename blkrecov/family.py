"""Tasks that wait for others: a reconnect for the recoveries that it has begun, a removal for the replacements. Pure.

A parent does no work of its own on LUNs; its `lun` is a drive. Its children are tasks like all others, each of which may be
watched and cancelled by itself. The oldest of many tasks that have ended are forgotten: a child that is not there is over.
"""

from typing import Final

import msgspec

from blkrecov.model import Document, Task, TaskKind, TaskState

PARENTS: Final = (TaskKind.RECONNECT, TaskKind.REMOVE)


def children(document: Document, task: Task) -> tuple[Task, ...]:
    """What a task has begun, as far as it is remembered."""
    return tuple(child for child in document.tasks if child.id in task.children)


def under_way(document: Document, task: Task) -> tuple[Task, ...]:
    """The children that have not ended. Those that wait come first: cancelled in this order, none gets another's turn."""
    found = (child for child in children(document, task) if not child.state.ended)
    return tuple(sorted(found, key=lambda child: (child.state is not TaskState.QUEUED, child.id)))


def percent(document: Document, task: Task) -> float:
    """How much of a task is done, 0 to 1: all of its children count the same."""
    if not task.children:
        return 1.0
    left = sum(1.0 - child.percent / 100 for child in under_way(document, task))
    return 1.0 - left / len(task.children)


def accounted(document: Document, task: Task) -> Task:
    """The task with the bytes that its children have moved."""
    found = children(document, task)
    return msgspec.structs.replace(
        task,
        bytes_kernel=sum(child.bytes_kernel for child in found),
        bytes_process=task.bytes_process + sum(child.bytes_process for child in found),
    )


def results(document: Document, task: Task, noun: str) -> list[str]:
    """What became of each child, for people."""
    names = {lun.uuid: lun.name for lun in document.luns}
    return [
        f"{noun} of {names.get(child.lun, 'a deleted LUN')} {child.state.value}: {child.message or child.code}"
        for child in children(document, task)
    ]
