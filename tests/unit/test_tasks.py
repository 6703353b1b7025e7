"""The task's state machine: every pair walked, the percentage, and the faces."""

from itertools import product
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import tasks
from blkrecov.errors import Cancelled, CancelTooLate, Code, ObjectFailed
from blkrecov.model import Phase, Task, TaskKind, TaskState
from blkrecov.tasks import NEXT, Event, IllegalTransition, RequestStatus

TASK = Task(id=3, kind=TaskKind.RECOVER, lun=UUID(int=7), objects=("v",), phases=(Phase.REBUILD, Phase.REPAIR))
LEGAL = {
    ("queued", "start"): "in_progress",
    ("queued", "fail"): "failed",
    ("queued", "cancel"): "cancelled",
    ("in_progress", "succeed"): "completed",
    ("in_progress", "fail"): "failed",
    ("in_progress", "cancel"): "cancelled",
}


def told(task: Task, event: Event) -> Task:
    match event:
        case Event.START:
            return tasks.started(task)
        case Event.SUCCEED:
            return tasks.completed(task)
        case Event.FAIL:
            return tasks.failed(task, ObjectFailed("LUN 'v' is gone", remedy="bring it back"))
        case Event.CANCEL:
            return tasks.cancelled(task)


def in_state(state: TaskState, percent: int = 0) -> Task:
    return msgspec.structs.replace(TASK, state=state, percent=percent)


@pytest.mark.parametrize(("state", "event"), list(product(TaskState, Event)))
def test_a_task_goes_where_the_table_says_and_nowhere_else(state: TaskState, event: Event) -> None:
    """Every pair; what an ended task is told is our own mistake, except a cancel, which people send too late, or twice."""
    to = LEGAL.get((state.value, event.value))
    if to is not None:
        assert told(in_state(state), event).state == TaskState(to)
        return
    refusal = {TaskState.CANCELLED: Cancelled}.get(state, CancelTooLate) if event is Event.CANCEL else IllegalTransition
    with pytest.raises(refusal):
        told(in_state(state), event)


def test_the_table_has_no_other_pairs() -> None:
    """The walk above goes through functions; the table itself says no more than they do."""
    assert {(state.value, event.value): after.value for (state, event), after in NEXT.items()} == LEGAL


def test_a_failure_carries_the_error_and_no_percentage() -> None:
    """MS-VDS 3.4.1.5: 0 on failure."""
    task = tasks.failed(in_state(TaskState.IN_PROGRESS, 42), ObjectFailed("LUN 'v' is gone", remedy="bring it back"))
    assert (task.percent, task.code) == (0, "VDS_E_OBJECT_STATUS_FAILED")
    assert (task.message, task.remedy) == ("LUN 'v' is gone", "bring it back")


def test_a_cancelled_task_has_the_code_that_says_so() -> None:
    """QueryStatus gives it as the operation's result."""
    task = tasks.cancelled(in_state(TaskState.IN_PROGRESS, 42))
    assert (task.percent, task.code) == (0, "VDS_E_OPERATION_CANCELED")


def test_completion_is_100_percent() -> None:
    """Only at the very end, and always then."""
    task = tasks.completed(in_state(TaskState.IN_PROGRESS, 42), "there was nothing to do")
    assert (task.percent, task.code, task.message) == (100, "S_OK", "there was nothing to do")


@given(st.lists(st.one_of(st.floats(allow_nan=False), st.none()), max_size=30))
def test_the_percentage_never_falls_and_never_says_100_early(reports: list[float | None]) -> None:
    """None ends a phase. The kernel's ratio goes back to 0 with every new phase, and past its end sometimes."""
    task, shown = tasks.started(TASK), 0
    for report in reports:
        if report is not None:
            task = tasks.progressed(task, report)
        elif tasks.phase(task) is not None:
            task = tasks.next_phase(task)
        assert shown <= task.percent <= 99
        shown = task.percent


@pytest.mark.parametrize(("done", "fraction", "percent"), [(0, 0.5, 25), (0, 1.0, 50), (1, 0.5, 75), (1, 1.0, 99)])
def test_each_phase_has_an_equal_share(done: int, fraction: float, percent: int) -> None:
    """How long a phase takes is not known before; that there are two of them is."""
    task = msgspec.structs.replace(tasks.started(TASK), done=done)
    assert tasks.progressed(task, fraction).percent == percent


@pytest.mark.parametrize("state", [state for state in TaskState if state is not TaskState.IN_PROGRESS])
def test_only_a_running_task_progresses(state: TaskState) -> None:
    """A late report of the kernel changes nothing of what was told."""
    assert tasks.progressed(in_state(state, 7), 0.9) == in_state(state, 7)


def test_phases_come_one_after_the_other() -> None:
    """None: nothing is left but to complete."""
    task = tasks.started(TASK)
    assert tasks.phase(task) is Phase.REBUILD
    task = tasks.next_phase(task)
    assert tasks.phase(task) is Phase.REPAIR
    task = tasks.next_phase(task)
    assert tasks.phase(task) is None
    with pytest.raises(AssertionError, match="no phase"):
        tasks.next_phase(task)


FAILED = tasks.failed(in_state(TaskState.IN_PROGRESS, 42), ObjectFailed("gone"))
CANCELLED = tasks.cancelled(in_state(TaskState.IN_PROGRESS, 42))
COMPLETED = tasks.completed(in_state(TaskState.IN_PROGRESS, 42))


@pytest.mark.parametrize(
    ("task", "code", "percent"),
    [
        (TASK, Code.VDS_E_OPERATION_PENDING, 0),
        (in_state(TaskState.IN_PROGRESS, 42), Code.VDS_E_OPERATION_PENDING, 42),
        (COMPLETED, Code.S_OK, 100),
        (CANCELLED, Code.VDS_E_OPERATION_CANCELED, 0),
        (FAILED, Code.VDS_E_OBJECT_STATUS_FAILED, 0),
    ],
)
def test_the_vds_face(task: Task, code: Code, percent: int) -> None:
    """IVdsAsync::QueryStatus: pending is an error code there."""
    assert tasks.vds_status(task) == (code, percent)


@pytest.mark.parametrize(
    ("task", "status", "percent", "code"),
    [
        (TASK, 1, 0, Code.S_OK),
        (in_state(TaskState.IN_PROGRESS, 42), 2, 42, Code.S_OK),
        (COMPLETED, 3, 100, Code.S_OK),
        (CANCELLED, 4, 0, Code.VDS_E_OPERATION_CANCELED),
        (FAILED, 5, 0, Code.VDS_E_OBJECT_STATUS_FAILED),
    ],
)
def test_the_dmrp_face(task: Task, status: int, percent: int, code: Code) -> None:
    """MS-DMRP 2.2.17: REQSTATUS as numbers on the wire."""
    assert tasks.dmrp_status(task) == (RequestStatus(status), percent, code)
