"""The fault matrix of Recover on raid1 of two and of three members, and on raid10. The stories are in matrix.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.matrix import Bench, Cell, bench, cells

CELLS = cells(
    {
        "raid1": {
            "runs": "first",
            "errors": "last",
            "errors_power_cut": "first",
            "beyond_during": "first",
            "spare_fails": "last",
            "spare_fails_by_errors": "first",
            "lost_drive_returns": "first",
            "another_after": "first",
            "cancelled": "first",
            "cancelled_power_cut": "last",
            "cancelled_beyond": "first",
            "paused": "last",
            "process_dies": "first",
            "power_cut": "first",
            "too_many_away_and_back": "last",
        },
        "raid1of3": {
            "runs": "two",
            "errors": "two",
            "second_lost": "first",
            "second_lost_by_errors": "last",
            "second_lost_without_spare": "first",
            "second_lost_power_cut": "first",
            "dies_substituting": "last",
            "beyond_during": "two",
            "cancelled_second_lost": "first",
            "paused_power_cut": "two",
            "stop": "two",
            "too_many": "two",
        },
        "raid10": {
            "runs": "two",
            "errors": "last",
            "away_and_back": "two",
            "second_lost": "first",
            "second_lost_without_spare": "last",
            "process_dies_second_lost": "first",
            "beyond_power_cut_and_back": "first",
            "spare_fails_without_another": "two",
            "spare_away_power_cut": "last",
            "cancelled_stop": "two",
            "cancelled_spare_fails": "first",
            "paused_second_lost": "last",
            "power_cut": "two",
            "errors_of_the_last_copy": "first",
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
