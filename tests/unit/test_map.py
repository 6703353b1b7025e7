"""The map of a drive: as many cells as asked for, to scale, and no region too small to be seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import views
from blkrecov.cli import map as drive_map
from blkrecov.cli.map import Cells
from blkrecov.model import Document, Layout, MemberState
from tests.unit.arrays import drives, with_lun, with_states


def text(cells: list[Cells]) -> str:
    return "".join(run.text for run in cells)


def drawn(document: Document, width: int, name: str = "d0") -> str:
    rows = views.regions(document, document.drive(name))
    return text(drive_map.drawn(rows, [lun.name for lun in document.luns], width))


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=60), st.integers(0, 200))
def test_shares_are_so_many_cells_and_none_is_empty(lengths: list[int], more: int) -> None:
    """And where none is too small for a cell, each is within one cell of what it ought to have."""
    cells = len(lengths) + more
    given = drive_map.shares(lengths, cells)
    assert (sum(given), min(given) >= 1) == (cells, True)
    exact = [length * cells / sum(lengths) for length in lengths]
    if min(exact) >= 1:
        assert all(abs(share - ought) < 1 + 1e-9 for share, ought in zip(given, exact, strict=True))


@pytest.mark.parametrize(
    ("lengths", "cells", "expected"),
    [
        ([1, 1], 4, [2, 2]),
        ([1, 10**9], 10, [1, 9]),
        ([1, 10**9, 1], 3, [1, 1, 1]),
        ([5], 7, [7]),
        ([1, 2, 1], 8, [2, 4, 2]),
    ],
)
def test_the_smallest_get_a_cell_from_the_largest(lengths: list[int], cells: int, expected: list[int]) -> None:
    assert drive_map.shares(lengths, cells) == expected


def test_a_drive_as_letters() -> None:
    """216 MiB in 36 cells: a label, a mirror's superblock and data, a linear LUN, free space, the label's copy."""
    document, _ = with_lun(drives(2), Layout.RAID1, "mirror", mib=60, on=("d0", "d1"))
    document, _ = with_lun(document, Layout.LINEAR, "plain", mib=30, on=("d0",))
    assert drawn(document, 36) == "▒" + "A" + "a" * 10 + "b" * 5 + "·" * 18 + "▒"
    assert drawn(document, 36, "d1") == "▒" + "A" + "a" * 10 + "·" * 23 + "▒"


def test_what_has_failed_and_what_is_regenerated_can_be_told_without_colours() -> None:
    document, lun = with_lun(drives(2), Layout.RAID1, "v", mib=60, on=("d0", "d1"))
    document = document.with_lun(with_states(lun, MemberState.FAILED, MemberState.REBUILDING))
    assert "A" + "a!a!a!a!a!" + "·" in drawn(document, 36)
    assert "A" + "a~a~a~a~a~" + "·" in drawn(document, 36, "d1")


def test_a_lun_looks_the_same_on_all_drives_and_no_two_look_alike() -> None:
    names = [f"v{number}" for number in range(60)]
    row = {"lun": "", "role": "data", "status": "ok"}
    keys = [drive_map.key({**row, "lun": name}, names) for name in names]
    assert len(set(keys)) == 60
    assert (keys[0].text, keys[26].text) == ("a", "a")
    assert drive_map.key({**row, "lun": "v1", "role": "meta"}, names) == upper(keys[1])


def upper(cells: Cells) -> Cells:
    return Cells(cells.text.upper(), cells.style)


def test_a_map_with_too_few_cells_leaves_out_the_smallest() -> None:
    document = drives(1)
    for number in range(10):
        document, _ = with_lun(document, Layout.LINEAR, f"v{number}", mib=1 + number, on=("d0",))
    assert len(drawn(document, 4)) == 4
    assert "j" in drawn(document, 4)
    assert set("abcdefghij") <= set(drawn(document, 24))


@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=9), st.just("dim")), max_size=9), st.integers(1, 12))
def test_rows_hold_all_cells_in_order(runs: list[tuple[str, str]], width: int) -> None:
    cells = [Cells(*run) for run in runs]
    rows = drive_map.broken(cells, width)
    assert "".join(text(row) for row in rows) == text(cells)
    assert all(len(text(row)) == width for row in rows[:-1])
    assert len(text(rows[-1])) <= width


def test_markup_is_rich_s() -> None:
    assert drive_map.markup([Cells("aa", "black on cyan"), Cells("·", "dim")]) == "[black on cyan]aa[/][dim]·[/]"
