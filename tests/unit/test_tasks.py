"""The task's state machine: every pair walked, the percentage, and the faces."""

from itertools import product
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import tasks
from blkrecov.errors import (
    BlkrecovError,
    Cancelled,
    CancelTooLate,
    Code,
    InvalidArgument,
    InvalidOperation,
    ObjectFailed,
    ProviderVeto,
    RestoreCancelled,
)
from blkrecov.model import Document, Phase, Task, TaskKind, TaskState
from blkrecov.tasks import NEXT, Event, IllegalTransition, RequestStatus
from blkrecov.units import MIB

TASK = Task(id=3, kind=TaskKind.RECOVER, lun=UUID(int=7), objects=("v",), phases=(Phase.REBUILD, Phase.REPAIR))
RESTORE = Task(id=4, kind=TaskKind.RESYNC, lun=UUID(int=7), objects=("s:v",), phases=(Phase.RESTORE, Phase.COMPARE))
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


@pytest.mark.parametrize("kind", TaskKind)
@pytest.mark.parametrize(("state", "event"), list(product(TaskState, Event)))
def test_a_task_goes_where_the_table_says_and_nowhere_else(state: TaskState, event: Event, kind: TaskKind) -> None:
    """Every pair; what an ended task is told is our own mistake, except a cancel, which people send too late, or twice."""
    task = msgspec.structs.replace(in_state(state), kind=kind)
    to = LEGAL.get((state.value, event.value))
    if to is not None:
        assert told(task, event).state == TaskState(to)
        return
    twice = RestoreCancelled if kind in (TaskKind.RESYNC, TaskKind.SNAPSHOT) else Cancelled
    refusal = {TaskState.CANCELLED: twice}.get(state, CancelTooLate) if event is Event.CANCEL else IllegalTransition
    with pytest.raises(refusal):
        told(task, event)


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


@pytest.mark.parametrize("kind", TaskKind)
def test_each_specification_has_its_own_code_for_a_cancel(kind: TaskKind) -> None:
    """A failure in VDS, a success in VSS."""
    task = tasks.cancelled(msgspec.structs.replace(in_state(TaskState.IN_PROGRESS, 42), kind=kind))
    vss = kind in (TaskKind.RESYNC, TaskKind.SNAPSHOT)
    assert task.code == ("VSS_S_ASYNC_CANCELLED" if vss else "VDS_E_OPERATION_CANCELED")
    assert task.percent == 0


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


def test_the_check_at_the_end_counts_little() -> None:
    """It has a bound; what it follows has none."""
    task = msgspec.structs.replace(tasks.started(TASK), phases=(Phase.REBUILD, Phase.VERIFY))
    assert tasks.progressed(task, 1.0).percent == 90
    assert tasks.progressed(tasks.next_phase(task), 1.0).percent == 99


@pytest.mark.parametrize(("percent", "quarter"), [(0, 0), (24, 0), (25, 25), (74, 50), (75, 75), (99, 75)])
def test_quarters_are_what_is_told(percent: int, quarter: int) -> None:
    """And kept over a restart; the last one is the end, which is told by itself."""
    assert tasks.quarter(in_state(TaskState.IN_PROGRESS, percent)) == quarter


@pytest.mark.parametrize(("state", "paused"), list(product(TaskState, (False, True))))
def test_pause_and_resume(state: TaskState, paused: bool) -> None:
    """Every pair: only what runs can be paused, only what is paused goes on, and neither changes the state."""
    task = msgspec.structs.replace(in_state(state, 42), paused=paused)
    if state is TaskState.IN_PROGRESS and not paused:
        assert tasks.paused(task) == msgspec.structs.replace(task, paused=True)
    else:
        with pytest.raises(InvalidOperation):
            tasks.paused(task)
    if not state.ended and paused:
        assert tasks.resumed(task) == msgspec.structs.replace(task, paused=False)
    else:
        with pytest.raises(InvalidOperation):
            tasks.resumed(task)


def test_a_copy_below_a_lun_in_use_is_not_paused() -> None:
    """dm-mirror has no way to hold a copy up and serve I/O."""
    task = msgspec.structs.replace(in_state(TaskState.IN_PROGRESS), phases=(Phase.COPY,))
    with pytest.raises(InvalidOperation, match="cannot be held up"):
        tasks.paused(task)


def test_a_reconnect_is_not_paused_but_its_recoveries_are() -> None:
    """It does nothing by itself that could be held up."""
    reconnect = msgspec.structs.replace(TASK, kind=TaskKind.RECONNECT, state=TaskState.IN_PROGRESS, children=(4,))
    with pytest.raises(InvalidOperation) as refused:
        tasks.paused(reconnect)
    assert refused.value.remedy == "let it end, or cancel it with: blkrecov task cancel 3"


def test_a_reconnect_is_cancelled_as_a_recovery_is() -> None:
    """IVdsAsync and DMRP have a word for that, and it is not completion."""
    task = tasks.cancelled(msgspec.structs.replace(TASK, kind=TaskKind.RECONNECT, state=TaskState.IN_PROGRESS))
    assert tasks.vds_status(task) == (Code.VDS_E_OPERATION_CANCELED, 0)
    assert tasks.dmrp_status(task) == (RequestStatus.REQ_ABORTED, 0, Code.VDS_E_OPERATION_CANCELED)


def test_a_cancel_that_comes_when_redundancy_is_back_is_too_late() -> None:
    """Only the check at the end is left; a scrub is nothing but its check, and can be cancelled."""
    recovering = msgspec.structs.replace(in_state(TaskState.IN_PROGRESS), phases=(Phase.REBUILD, Phase.VERIFY), done=1)
    with pytest.raises(CancelTooLate, match="restored the redundancy"):
        tasks.cancelled(recovering)
    scrubbing = msgspec.structs.replace(recovering, kind=TaskKind.SCRUB, phases=(Phase.CHECK,), done=0)
    assert tasks.cancelled(scrubbing).state is TaskState.CANCELLED


def at(phase: Phase, state: TaskState = TaskState.IN_PROGRESS) -> Task:
    """A restore that is there."""
    return msgspec.structs.replace(RESTORE, state=state, phases=(Phase.RESTORE, phase), done=1)


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        (Phase.COMPARE, "task 4 has copied everything already, and only compares it"),
        (Phase.UNDO, "task 4 is putting back what was there before"),
    ],
)
def test_a_restore_is_cancelled_while_it_copies_and_not_after(phase: Phase, text: str) -> None:
    """There is nothing left to stop, or it is stopped already. Of one that has ended that is what is said."""
    assert tasks.cancelled(tasks.started(RESTORE)).state is TaskState.CANCELLED
    with pytest.raises(CancelTooLate, match=text):
        tasks.cancelled(at(phase))
    for state in (TaskState.COMPLETED, TaskState.FAILED):
        with pytest.raises(CancelTooLate, match=f"is {state.value} already"):
            tasks.cancelled(at(phase, state))


@pytest.mark.parametrize(("phase", "held"), [(Phase.RESTORE, True), (Phase.UNDO, True), (Phase.COMPARE, False)])
def test_a_restore_is_paused_while_it_copies(phase: Phase, held: bool) -> None:
    """Its target is not ready anyway; a comparison cannot go on where it was."""
    if held:
        assert tasks.paused(at(phase)).paused
    else:
        with pytest.raises(InvalidOperation, match="cannot be held up"):
            tasks.paused(at(phase))


VETO = ProviderVeto("the shadow copy was lost", remedy="choose another")


@pytest.mark.parametrize(("done", "phases"), [(0, (Phase.UNDO,)), (1, (Phase.RESTORE, Phase.UNDO))])
def test_a_restore_that_goes_back_does_that_next_and_nothing_after(done: int, phases: tuple[Phase, ...]) -> None:
    """From its copy, or from its comparison. It runs, and knows what it will end with; the percentage does not fall."""
    task = msgspec.structs.replace(tasks.started(RESTORE), done=done, percent=42)
    back = tasks.turned_back(task, VETO)
    assert (back.phases, tasks.phase(back)) == (phases, Phase.UNDO)
    assert (back.state, back.percent, back.code, back.message) == (
        TaskState.IN_PROGRESS,
        42,
        "VSS_E_PROVIDER_VETO",
        "the shadow copy was lost",
    )
    assert tasks.progressed(back, 0.1).percent >= 42
    assert tasks.vss_status(back) is Code.VSS_S_ASYNC_PENDING


@pytest.mark.parametrize(
    ("error", "state", "code", "remedy"),
    [
        (VETO, TaskState.FAILED, Code.VSS_E_PROVIDER_VETO, "choose another"),
        (
            RestoreCancelled("the task was cancelled"),
            TaskState.CANCELLED,
            Code.VSS_S_ASYNC_CANCELLED,
            "restore again when it is wanted",
        ),
    ],
)
def test_a_restore_that_has_gone_back_ends_with_what_it_was_told(
    error: BlkrecovError, state: TaskState, code: Code, remedy: str
) -> None:
    """Not completed, though all that was to be done is done."""
    ended = tasks.gone_back(tasks.turned_back(tasks.started(RESTORE), error))
    assert (ended.state, ended.percent, tasks.vss_status(ended)) == (state, 0, code)
    assert ended.message == f"{error.message}; what was there before is there again"
    assert ended.remedy == remedy
    with pytest.raises(IllegalTransition):
        tasks.gone_back(ended)


DOCUMENT = Document(array=UUID(int=1), name="lab", rate_min=3 * MIB, rate_max=70 * MIB)


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [
        ([], (3, 70)),  # The first synchronisation of a LUN is no task; the array's rates are its.
        ([(0, 0)], (3, 70)),
        ([(5, 0), (4, 60)], (5, 60)),
        ([(50, 0), (0, 20)], (20, 20)),  # What must never be exceeded goes before what would be nice.
        ([(0, 100)], (3, 100)),  # A task may be given more than the array gives.
    ],
)
def test_all_running_tasks_share_one_pair_of_limits(rates: list[tuple[int, int]], wanted: tuple[int, int]) -> None:
    """md has one for the machine. What is paused or has ended asks for nothing. The numbers are MiB/s."""
    document = DOCUMENT
    for number, (minimum, maximum) in enumerate(rates, start=1):
        task = msgspec.structs.replace(in_state(TaskState.IN_PROGRESS), id=number)
        document = document.with_task(tasks.rated(task, minimum * MIB, maximum * MIB))
    paused = msgspec.structs.replace(in_state(TaskState.IN_PROGRESS), id=98, paused=True, rate_max=1)
    ended = msgspec.structs.replace(in_state(TaskState.COMPLETED), id=99, rate_max=1)
    lowest, highest = tasks.rates(document.with_task(paused).with_task(ended))
    assert (lowest, highest) == (wanted[0] * MIB, wanted[1] * MIB)


def test_rates_that_contradict_each_other_are_refused() -> None:
    """Also the new one with the one that is there."""
    task = tasks.rated(in_state(TaskState.IN_PROGRESS), None, 20 * MIB)
    with pytest.raises(InvalidArgument, match="is above the highest"):
        tasks.rated(task, 30 * MIB, None)
    assert tasks.rated(task, 30 * MIB, 0).rate_min == 30 * MIB
    with pytest.raises(InvalidOperation):
        tasks.rated(in_state(TaskState.COMPLETED), MIB, 2 * MIB)


@pytest.mark.parametrize("rate", [-1, 1, 1023, 2**31 * 1024, 2**70])
def test_a_task_has_no_rate_that_the_kernel_does_not_have(rate: int) -> None:
    """The bus could not tell of the largest of them, nor of the task, ever after."""
    with pytest.raises(InvalidArgument, match="no rate that the kernel can keep to"):
        tasks.rated(in_state(TaskState.IN_PROGRESS), rate, None)
    with pytest.raises(InvalidArgument, match="no rate that the kernel can keep to"):
        tasks.refuse_rates(None, rate)


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


VETOED = tasks.failed(tasks.started(RESTORE), VETO)
CALLED_OFF = tasks.cancelled(tasks.started(RESTORE))


@pytest.mark.parametrize(
    ("task", "code"),
    [
        (RESTORE, Code.VSS_S_ASYNC_PENDING),
        (tasks.started(RESTORE), Code.VSS_S_ASYNC_PENDING),
        (tasks.completed(tasks.started(RESTORE)), Code.VSS_S_ASYNC_FINISHED),
        (CALLED_OFF, Code.VSS_S_ASYNC_CANCELLED),
        (VETOED, Code.VSS_E_PROVIDER_VETO),
    ],
)
def test_the_vss_face(task: Task, code: Code) -> None:
    """IVssAsync::QueryStatus: all but a failure are successes there."""
    assert tasks.vss_status(task) is code


def test_the_vds_face_of_a_restore() -> None:
    """The family's own words where it has some."""
    assert tasks.vds_status(CALLED_OFF) == (Code.VDS_E_OPERATION_CANCELED, 0)
    assert tasks.vds_status(VETOED) == (Code.VSS_E_PROVIDER_VETO, 0)
    assert tasks.dmrp_status(CALLED_OFF) == (RequestStatus.REQ_ABORTED, 0, Code.VSS_S_ASYNC_CANCELLED)


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
