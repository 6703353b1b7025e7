"""Progress: between two of the kernel's steps the counters decide, and nothing else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.progress import STEP, Meter

TOTAL = 1600


@pytest.mark.parametrize(
    ("ratio", "count", "shown"),
    [
        (0.0, 40, 0.025),  # The kernel has told of nothing yet; the counter moves.
        (0.0, 800, STEP),  # The host's own writes do not pass for progress.
        (0.5, 810, 0.50625),
        (0.5, 700, 0.5),  # What the kernel says is done is done.
        (1.0, 1600, 1.0),
    ],
)
def test_counters_fill_the_steps_and_no_more(ratio: float, count: int, shown: float) -> None:
    """A step is a sixteenth of the member, on an 8 TB drive half a terabyte."""
    assert Meter.begun(0.0, 0).moved(ratio, count, TOTAL).fraction == pytest.approx(shown)


def test_what_was_moved_before_the_first_look_counts_nothing_twice() -> None:
    """Another process began the rebuild: its ratio says where we join, the counter only what comes."""
    meter = Meter.begun(0.5, 5000)
    assert meter.fraction == 0.5
    assert meter.moved(0.5, 5016, TOTAL).fraction == pytest.approx(0.51)


@pytest.mark.parametrize(("ratio", "count", "shown"), [(0.5, 850, 0.53125), (0.5, 40, 0.5), (0.5, 1600, 0.5 + STEP)])
def test_another_process_sees_no_less(ratio: float, count: int, shown: float) -> None:
    """A substitute's device has counted from the beginning; or from the last boot, or with the host's writes."""
    assert Meter.begun(ratio, count, TOTAL).fraction == pytest.approx(shown)


def test_a_phase_without_length_follows_the_ratio() -> None:
    """Nothing to divide by."""
    assert Meter.begun(0.0, 0).moved(0.25, 10, 0).fraction == 0.25


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10 * TOTAL)), min_size=1))
def test_it_never_falls_and_never_leaves_its_bounds(looks: list[tuple[float, int]]) -> None:
    """md reports a lower ratio when it begins again, and counters begin again with their device."""
    meter, before = Meter.begun(0.0, 0), 0.0
    for ratio, count in looks:
        meter = meter.moved(ratio, count, TOTAL)
        assert before <= meter.fraction <= 1.0
        assert meter.fraction >= ratio
        before = meter.fraction
