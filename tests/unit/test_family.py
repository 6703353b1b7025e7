"""Tasks that wait for others: what is left of them, in which order they are cancelled, and what they have moved."""

from uuid import UUID

import msgspec

from blkrecov import family
from blkrecov.model import Document, Phase, Task, TaskKind, TaskState

PARENT = Task(
    id=1,
    kind=TaskKind.REMOVE,
    lun=UUID(int=8),
    objects=("d1",),
    state=TaskState.IN_PROGRESS,
    phases=(Phase.COPY,),
    children=(2, 3, 4),
)


def child(number: int, state: TaskState, **more: object) -> Task:
    task = Task(id=number, kind=TaskKind.REPLACE, lun=UUID(int=7), objects=("v", "d1", "d2"), state=state)
    return msgspec.structs.replace(task, **more)


def holding(*children: Task) -> Document:
    return Document(array=UUID(int=9), name="lab", tasks=(PARENT, *children))


def test_those_that_wait_are_cancelled_before_the_one_that_they_wait_for() -> None:
    """Its end would give the next of them its turn, to be cancelled a moment later."""
    states = (TaskState.IN_PROGRESS, TaskState.QUEUED, TaskState.QUEUED)
    document = holding(*(child(number, state) for number, state in enumerate(states, start=2)))
    assert [task.id for task in family.under_way(document, PARENT)] == [3, 4, 2]


def test_what_has_ended_or_is_forgotten_is_not_under_way() -> None:
    document = holding(child(3, TaskState.FAILED), child(4, TaskState.QUEUED), child(5, TaskState.IN_PROGRESS))
    assert [task.id for task in family.under_way(document, PARENT)] == [4]
    assert [task.id for task in family.children(document, PARENT)] == [3, 4]


def test_bytes_are_those_of_all_children() -> None:
    """The kernel's are theirs alone; a parent's process reads and writes a little by itself."""
    first = child(2, TaskState.COMPLETED, bytes_kernel=300, bytes_process=30)
    second = child(3, TaskState.CANCELLED, bytes_kernel=4, bytes_process=1)
    task = family.accounted(holding(first, second), msgspec.structs.replace(PARENT, bytes_process=5))
    assert (task.bytes_kernel, task.bytes_process) == (304, 36)
