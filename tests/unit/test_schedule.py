"""Which LUNs are scrubbed without being asked for it, and when."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import tasks
from blkrecov.model import Document, Layout, MemberState, Schedule, Task, TaskKind
from blkrecov.schedule import DAY, due, next_due
from tests.unit.arrays import FAULT_TOLERANT, drives, with_lun, with_states

NOW = 1_700_000_000
WEEK = 7 * DAY
MONTH = 30 * DAY


def scrubbed(schedule: Schedule, *times: int, layout: Layout = Layout.RAID1) -> Document:
    """An array whose LUNs v0, v1, ... were last scrubbed then."""
    document = msgspec.structs.replace(drives(6, 2000), scrub=schedule)
    for number, time in enumerate(times):
        document, lun = with_lun(document, layout, f"v{number}")
        document = document.with_lun(msgspec.structs.replace(lun, initialised=True, scrubbed=time))
    return document


def names(document: Document, now: int = NOW) -> list[str]:
    return [lun.name for lun in due(document, now)]


def test_nothing_is_due_where_nothing_is_scheduled() -> None:
    """The default."""
    document = scrubbed(Schedule.OFF, 0, 1)
    assert (names(document), next_due(document, NOW)) == ([], None)


@pytest.mark.parametrize(("schedule", "period"), [(Schedule.WEEKLY, WEEK), (Schedule.MONTHLY, MONTH)])
def test_a_lun_is_due_a_period_after_its_last_scrub(schedule: Schedule, period: int) -> None:
    """To the second; a month has thirty days."""
    early, ripe = scrubbed(schedule, NOW - period + 1), scrubbed(schedule, NOW - period)
    assert (names(early), next_due(early, NOW)) == ([], NOW + 1)
    assert (names(ripe), next_due(ripe, NOW)) == (["v0"], NOW)


def test_the_one_that_waits_the_longest_is_the_first() -> None:
    """A LUN that was never scrubbed waits the longest of all."""
    document = scrubbed(Schedule.WEEKLY, NOW - WEEK - 5, NOW - 1, 0, NOW - WEEK - 9)
    assert names(document) == ["v2", "v3", "v0"]


def test_what_is_overdue_is_due_now() -> None:
    """Whoever waits for a moment in the past would wait in vain, or not at all."""
    assert next_due(scrubbed(Schedule.WEEKLY, NOW - 3 * WEEK, NOW - 1), NOW) == NOW
    assert next_due(scrubbed(Schedule.WEEKLY, 0), NOW) == NOW


def test_the_next_is_the_earliest_of_all() -> None:
    """Whichever LUN it is."""
    assert next_due(scrubbed(Schedule.WEEKLY, NOW - 1, NOW - 9, NOW - 5), NOW) == NOW - 9 + WEEK


@pytest.mark.parametrize("layout", Layout)
def test_only_luns_with_redundancy_are_scrubbed(layout: Layout) -> None:
    """The others have nothing to be compared with."""
    document = scrubbed(Schedule.WEEKLY, 0, layout=layout)
    tolerant = layout in FAULT_TOLERANT
    assert names(document) == (["v0"] if tolerant else [])
    assert next_due(document, NOW) == (NOW if tolerant else None)


def test_a_lun_is_not_scrubbed_before_it_was_synchronised() -> None:
    """Where nothing was ever written, members differ by right."""
    document = scrubbed(Schedule.WEEKLY, 0)
    document = document.with_lun(msgspec.structs.replace(document.lun("v0"), initialised=False))
    assert (names(document), next_due(document, NOW)) == ([], None)


@pytest.mark.parametrize("state", [MemberState.FAILED, MemberState.REBUILDING])
def test_a_lun_that_is_not_whole_is_not_scrubbed(state: MemberState) -> None:
    """It has to be recovered first; that compares nothing either."""
    document = scrubbed(Schedule.WEEKLY, 0)
    document = document.with_lun(with_states(document.lun("v0"), state))
    assert (names(document), next_due(document, NOW)) == ([], None)


@pytest.mark.parametrize("ended", [False, True])
def test_a_lun_with_a_task_is_left_alone_until_that_has_ended(ended: bool) -> None:
    """One operation at a time; another LUN's turn comes all the same."""
    document = scrubbed(Schedule.WEEKLY, 0, 0)
    task = Task(id=1, kind=TaskKind.RECOVER, lun=document.lun("v0").uuid, objects=("v0",))
    document = document.with_task(tasks.completed(tasks.started(task)) if ended else task)
    assert names(document) == (["v0", "v1"] if ended else ["v1"])


def test_a_scrub_in_the_future_counts_for_nothing() -> None:
    """The clock was wrong when it was noted; else the LUN would not be scrubbed for years."""
    assert names(scrubbed(Schedule.WEEKLY, NOW + MONTH)) == ["v0"]
    assert names(scrubbed(Schedule.WEEKLY, NOW + 60)) == []


@given(
    st.sampled_from([Schedule.WEEKLY, Schedule.MONTHLY]),
    st.lists(st.integers(NOW - 2 * MONTH, NOW) | st.just(0), min_size=1, max_size=5),
)
def test_something_is_due_when_it_is_said_to_be(schedule: Schedule, times: list[int]) -> None:
    """And not a second before."""
    document = scrubbed(schedule, *times)
    moment = next_due(document, NOW)
    assert moment is not None
    assert due(document, moment)
    assert moment == NOW or not due(document, moment - 1)
