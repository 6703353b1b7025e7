"""The fault matrix of Recover on raid4, raid5 and raid6. The stories are in matrix.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.matrix import Bench, Cell, bench, cells

CELLS = cells(
    {
        "raid4": {
            "runs": "last",
            "errors_then_recover": "last",
            "beyond_during": "last",
            "beyond_and_back": "first",
            "spare_fails": "first",
            "lost_drive_returns": "first",
            "another_after": "last",
            "cancelled_stop": "last",
            "paused_power_cut": "first",
            "stop": "last",
            "power_cut": "last",
            "too_many": "first",
        },
        "raid5": {
            "runs": "first",
            "errors": "last",
            "errors_power_cut": "first",
            "spare_fails_by_errors": "last",
            "substitute_after": "first",
            "cancelled": "first",
            "cancelled_power_cut": "last",
            "cancelled_beyond": "last",
            "paused": "first",
            "paused_spare_fails_by_errors": "last",
            "process_dies": "first",
            "power_cut_twice": "first",
            "too_many_by_errors": "last",
            "too_many_away_and_back": "first",
        },
        "raid6": {
            "runs": "two",
            "errors": "two",
            "second_lost": "first",
            "second_lost_by_errors": "last",
            "second_lost_without_spare": "first",
            "second_lost_power_cut": "first",
            "process_dies_second_lost": "last",
            "dies_substituting": "first",
            "beyond_during": "two",
            "spare_fails_without_another": "two",
            "cancelled": "two",
            "cancelled_second_lost": "last",
            "paused_stop": "two",
            "power_cut": "two",
            "too_many": "two",
        },
    }
)


@pytest.fixture(scope="module")
def arrays(ext4: Path, pytestconfig: pytest.Config) -> Iterator[Bench]:
    with bench(ext4, pytestconfig) as made:
        yield made


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_recover_keeps_its_word(arrays: Bench, cell: Cell) -> None:
    """Contents, redundancy, states, codes and percentages are right, whatever fails and whoever gives up meanwhile."""
    arrays.run(cell)
