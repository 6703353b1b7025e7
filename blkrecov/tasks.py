"""The task's state machine, and its faces.

A task is a value in the array's document (model.Task); this module says what may happen to it, and how it looks to the three
specifications, each of which has its own words. No clock, no thread, no device: what the kernel reports arrives as arguments.

Always true: the percentage never falls except to 0 by failure or cancel; it is 100 exactly when the task has completed; a task
that has ended does not change.
"""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Final

import msgspec

from blkrecov import family
from blkrecov.errors import (
    BlkrecovError,
    Cancelled,
    CancelTooLate,
    Code,
    InvalidArgument,
    InvalidOperation,
    RestoreCancelled,
)
from blkrecov.model import Document, Phase, Task, TaskKind, TaskState
from blkrecov.units import KIB, Bytes, format_size

# The kernel counts rates in KiB/s, in an int (drivers/md/md.h, sync_speed_min and sync_speed_max).
MIN_RATE: Final = KIB
MAX_RATE: Final = (2**31 - 1) * KIB
# What a phase counts in the percentage beside the others: a check with a bound is short.
_WEIGHTS: Final[Mapping[Phase, float]] = {Phase.VERIFY: 0.1}
# What a running task may show at most: kernel ratios reach their end before the last superblock and the last table change.
ALMOST: Final = 99
# Where what matters is done, and why a task cannot be cancelled any more.
_TOO_LATE: Final[Mapping[Phase | None, str]] = {
    Phase.VERIFY: "has restored the redundancy already, and only verifies it",
    Phase.COMPARE: "has copied everything already, and only compares it",
    Phase.UNDO: "is putting back what was there before",
}


class Event(StrEnum):
    START = "start"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"


# A pair that is not listed cannot happen: IllegalTransition is our own mistake.
NEXT: Final[Mapping[tuple[TaskState, Event], TaskState]] = {
    (TaskState.QUEUED, Event.START): TaskState.IN_PROGRESS,
    (TaskState.QUEUED, Event.FAIL): TaskState.FAILED,
    (TaskState.QUEUED, Event.CANCEL): TaskState.CANCELLED,
    (TaskState.IN_PROGRESS, Event.SUCCEED): TaskState.COMPLETED,
    (TaskState.IN_PROGRESS, Event.FAIL): TaskState.FAILED,
    (TaskState.IN_PROGRESS, Event.CANCEL): TaskState.CANCELLED,
}


class IllegalTransition(AssertionError):
    """A task was told something that cannot happen in its state."""


def _next(task: Task, event: Event) -> TaskState:
    try:
        return NEXT[task.state, event]
    except KeyError:
        raise IllegalTransition(f"task {task.id} is {task.state.value}: it cannot {event.value}") from None


def started(task: Task) -> Task:
    return msgspec.structs.replace(task, state=_next(task, Event.START))


def completed(task: Task, message: str = "") -> Task:
    return msgspec.structs.replace(
        task, state=_next(task, Event.SUCCEED), percent=100, code=Code.S_OK.name, message=message, remedy=""
    )


def failed(task: Task, error: BlkrecovError) -> Task:
    """Percent 0, as IVdsAsync's data model says of a failure (MS-VDS 3.4.1.5)."""
    return msgspec.structs.replace(
        task,
        state=_next(task, Event.FAIL),
        percent=0,
        code=error.code.name,
        message=error.message,
        remedy=error.remedy,
    )


def cancelled(task: Task) -> Task:
    """Raises Cancelled for a task that is that already, CancelTooLate for one that has ended otherwise, or has done what
    matters: IVdsAsync::Cancel says so without touching it.
    """
    if task.state is TaskState.CANCELLED:
        raise type(cancellation(task))(f"task {task.id} is cancelled already")
    if task.state.ended:
        raise CancelTooLate(f"task {task.id} is {task.state.value} already")
    if task.kind is not TaskKind.SCRUB and phase(task) in _TOO_LATE:
        raise CancelTooLate(
            f"task {task.id} {_TOO_LATE[phase(task)]}", remedy=f"wait for it with: blkrecov task wait {task.id}"
        )
    error = cancellation(task)
    return msgspec.structs.replace(
        task,
        state=_next(task, Event.CANCEL),
        percent=0,
        code=error.code.name,
        message=error.message,
        remedy=error.remedy,
    )


def cancellation(task: Task) -> BlkrecovError:
    """What a cancelled task ends with: each specification has its own code."""
    if task.kind in (TaskKind.RESYNC, TaskKind.SNAPSHOT):
        return RestoreCancelled("the task was cancelled")
    return Cancelled("the task was cancelled")


def turned_back(task: Task, error: BlkrecovError) -> Task:
    """A restore that will end with this error, when what was there before is back."""
    return msgspec.structs.replace(
        task,
        phases=(*task.phases[: task.done], Phase.UNDO),
        code=error.code.name,
        message=error.message,
        remedy=error.remedy,
    )


def gone_back(task: Task) -> Task:
    """A restore that has put back what was there before: it ends with what it was told."""
    event = Event.CANCEL if task.code == cancellation(task).code.name else Event.FAIL
    return msgspec.structs.replace(
        task,
        state=_next(task, event),
        percent=0,
        message=f"{task.message}; what was there before is there again",
        remedy="restore again when it is wanted" if event is Event.CANCEL else task.remedy,
    )


def paused(task: Task) -> Task:
    """Raises InvalidOperation for a task that is not under way, or is paused already."""
    if task.state is not TaskState.IN_PROGRESS or task.paused:
        word = "paused" if task.paused else task.state.value.replace("_", " ")
        raise InvalidOperation(f"task {task.id} is {word}: it cannot be paused", remedy="see: blkrecov task list")
    if phase(task) in (Phase.COPY, Phase.COMPARE) or task.kind in family.PARENTS:
        raise InvalidOperation(
            f"task {task.id} is at what cannot be held up ({phase(task)})",
            remedy=f"let it end, or cancel it with: blkrecov task cancel {task.id}",
        )
    return msgspec.structs.replace(task, paused=True)


def resumed(task: Task) -> Task:
    """Raises InvalidOperation for a task that is not paused."""
    if task.state.ended or not task.paused:
        raise InvalidOperation(f"task {task.id} is not paused", remedy="see: blkrecov task list")
    return msgspec.structs.replace(task, paused=False)


def phase(task: Task) -> Phase | None:
    """What is being done now; None when nothing is left."""
    return task.phases[task.done] if task.done < len(task.phases) else None


def next_phase(task: Task) -> Task:
    assert phase(task) is not None, "there is no phase to end"
    return msgspec.structs.replace(task, done=task.done + 1)


def progressed(task: Task, fraction: float) -> Task:
    """The task with the present phase this far (0 to 1)."""
    if task.state is not TaskState.IN_PROGRESS or not task.phases:
        return task
    weights = [_WEIGHTS.get(item, 1.0) for item in task.phases]
    present = weights[task.done] * min(max(fraction, 0.0), 1.0) if task.done < len(weights) else 0.0
    whole = (sum(weights[: task.done]) + present) / sum(weights)
    return msgspec.structs.replace(task, percent=max(task.percent, min(int(whole * 100), ALMOST)))


def quarter(task: Task) -> int:
    """The last of 0, 25, 50, 75 percent that it has passed: the marks that are told, and kept over a restart."""
    return min(task.percent, ALMOST) // 25 * 25


def rated(task: Task, minimum: int | None, maximum: int | None) -> Task:
    """The task with other rates, in bytes per second and member; None leaves one as it is, 0 makes it the array's.

    Raises: InvalidOperation for a task that has ended; what refuse_rates() does.
    """
    if task.state.ended:
        raise InvalidOperation(f"task {task.id} is {task.state.value} already", remedy="see: blkrecov task list")
    minimum = task.rate_min if minimum is None else minimum
    maximum = task.rate_max if maximum is None else maximum
    refuse_rates(minimum, maximum)
    return msgspec.structs.replace(task, rate_min=minimum, rate_max=maximum)


def refuse_rates(minimum: int | None, maximum: int | None) -> None:
    """Bytes per second; 0 and None are no wish.

    Raises: InvalidArgument for rates that the kernel does not have, and for a minimum above the maximum.
    """
    for rate in (minimum, maximum):
        if rate and not MIN_RATE <= rate <= MAX_RATE:
            raise InvalidArgument(
                f"{rate} bytes per second are no rate that the kernel can keep to",
                remedy=f"give a rate from {format_size(MIN_RATE)} to {format_size(MAX_RATE)}, or 0 for the default",
            )
    if minimum and maximum and minimum > maximum:
        raise InvalidArgument(
            f"the lowest rate ({format_size(Bytes(minimum))}/s) is above the highest ({format_size(Bytes(maximum))}/s)",
            remedy="choose a highest rate that is not below the lowest, or 0 for the default",
        )


def rates(document: Document) -> tuple[int, int]:
    """What is asked of the kernel as a whole, (lowest, highest), 0 for no wish. md has one pair of limits for all arrays without
    rates of their own: so the highest of the lowest rates counts, and the lowest of the highest.
    """
    running = [task for task in document.tasks if task.state is TaskState.IN_PROGRESS and not task.paused]
    lowest = max([task.rate_min or document.rate_min for task in running], default=document.rate_min)
    highest = [rate for task in running if (rate := task.rate_max or document.rate_max)] or [document.rate_max]
    return (min(lowest, min(highest)) if min(highest) else lowest), min(highest)


def vds_status(task: Task) -> tuple[Code, int]:
    """IVdsAsync::QueryStatus: (the operation's result, percent). Pending and cancelled are errors in this family."""
    match task.state:
        case TaskState.QUEUED | TaskState.IN_PROGRESS:
            return Code.VDS_E_OPERATION_PENDING, task.percent
        case TaskState.COMPLETED:
            return Code.S_OK, 100
        case TaskState.CANCELLED:
            return Code.VDS_E_OPERATION_CANCELED, 0
        case TaskState.FAILED:
            return Code[task.code], 0


def vss_status(task: Task) -> Code:
    """IVssAsync::QueryStatus, *pHrResult. Pending, finished and cancelled are successes here, and there is no percentage."""
    match task.state:
        case TaskState.QUEUED | TaskState.IN_PROGRESS:
            return Code.VSS_S_ASYNC_PENDING
        case TaskState.COMPLETED:
            return Code.VSS_S_ASYNC_FINISHED
        case TaskState.CANCELLED:
            return Code.VSS_S_ASYNC_CANCELLED
        case TaskState.FAILED:
            return Code[task.code]


class RequestStatus(IntEnum):
    """MS-DMRP 2.2.17, REQSTATUS."""

    REQ_UNKNOWN = 0
    REQ_STARTED = 1
    REQ_IN_PROGRESS = 2
    REQ_COMPLETED = 3
    REQ_ABORTED = 4
    REQ_FAILED = 5


def dmrp_status(task: Task) -> tuple[RequestStatus, int, Code]:
    """TASK_INFO's status, percentComplete and error."""
    match task.state:
        case TaskState.QUEUED:
            return RequestStatus.REQ_STARTED, 0, Code.S_OK
        case TaskState.IN_PROGRESS:
            return RequestStatus.REQ_IN_PROGRESS, task.percent, Code.S_OK
        case TaskState.COMPLETED:
            return RequestStatus.REQ_COMPLETED, 100, Code.S_OK
        case TaskState.CANCELLED:
            return RequestStatus.REQ_ABORTED, 0, Code[task.code]
        case TaskState.FAILED:
            return RequestStatus.REQ_FAILED, 0, Code[task.code]
