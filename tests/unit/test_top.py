"""The live view: what it shows on a screen of so many columns and lines."""

from io import StringIO

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from blkrecov import provision
from blkrecov.cli.top import render, shares
from blkrecov.model import Document, Layout
from blkrecov.overview import Overview, activity, sample
from tests.unit.arrays import drives, raid_words, seen, with_lun
from tests.unit.overviews import at_work, counted, overview, recovery


def text(now: Overview, before: Overview | None = None, width: int = 80, height: int = 24) -> list[str]:
    """What a terminal without colours shows; spaces at the end left out."""
    console = Console(file=StringIO(), width=width, height=height, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(render(activity(sample(now), sample(before) if before else None), width, height))
    return [line.rstrip() for line in captured.get().splitlines()]


def looks(document: Document) -> tuple[Overview, Overview]:
    """Two, a second apart: d0 is read, d1 written, and LUN v is written and rebuilt."""
    observed = seen(document, raid_words("AA"))
    first, second, lun = document.drive("d0").uuid, document.drive("d1").uuid, document.lun("v").uuid
    task = recovery(document)
    traffic = {first: counted(1, 1), second: counted(1, 1), lun: counted(1, 1)}
    before = overview(document, observed, at_work(task, 1, 61), traffic=traffic)
    traffic = {first: counted(9, 1, 500), second: counted(1, 5, 1000), lun: counted(1, 5)}
    return before, overview(document, observed, at_work(task, 3, 61), at_s=1.0, traffic=traffic)


def mirror(spares: int = 0) -> Document:
    return with_lun(drives(2 + spares), Layout.RAID1, on=("d0", "d1"))[0]


def test_a_screen() -> None:
    """Three tables, and one line above them that says how all of it is."""
    before, now = looks(mirror(spares=1))
    assert text(now, before) == [
        "array lab is healthy: 3 drives, 1 LUN, 1 task under way",
        "",
        "drive               status       busy                          read/s  written/s",
        "d0                  online       ━━━━━━━━╸             50%      8 MiB        0 B",
        "d1                  online       ━━━━━━━━━━━━━━━━━    100%        0 B      4 MiB",
        "d2                  online",
        "",
        "LUN                 layout       health            in sync     read/s  written/s",
        "v                   raid1        healthy              100%        0 B      4 MiB",
        "",
        "task                of                                done    moved/s  time left",
        "7 recover: rebuild  v d2         ━━━━                 25 %      2 MiB    0:00:29",
    ]


def test_the_first_screen_knows_no_rates() -> None:
    """Counters at one moment say nothing."""
    before, _ = looks(mirror())
    assert not any("MiB" in line for line in text(before))


def test_what_is_not_well_stands_in_the_first_line() -> None:
    """And in its row."""
    document = provision.fail_drive(mirror(), "d1").document
    shown = text(overview(document, seen(document, raid_words("AD"))))
    assert shown[0] == "array lab is not healthy: drive d1 failed, LUN v failed redundancy; 2 drives, 1…"
    assert any(line.startswith("d1") and "failed" in line for line in shown)
    assert any(line.startswith("v ") and "failed redundancy" in line for line in shown)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 12), (40, 24), (200, 50), (80, 3)])
def test_it_keeps_to_its_screen(width: int, height: int) -> None:
    """However many drives there are; the last line stays free, or the terminal would scroll."""
    document = drives(100)
    for number in range(20):
        document = with_lun(document, Layout.LINEAR, f"v{number}" if number else "v", on=(f"d{number}",))[0]
    shown = text(overview(document, seen(document, raid_words("AA"))), width=width, height=height)
    assert len(shown) < max(height, 9)
    assert max(map(len, shown)) <= width


def test_rows_that_do_not_fit_are_those_that_are_well_and_idle() -> None:
    """In the order that they have otherwise."""
    document = drives(100)
    document = document.with_drive(msgspec.structs.replace(document.drive("d7"), failing="it failed 3 times"))
    busy = document.drive("d50").uuid
    observed = seen(document)
    before = overview(document, observed, traffic={busy: counted()})
    now = overview(document, observed, at_s=1.0, traffic={busy: counted(8)})
    shown = text(now, before, height=13)
    names = [line.split()[0] for line in shown[3:]]
    assert names == ["d0", "d1", "d7", "d50", "and"]
    assert shown[-1] == "and 96 more"


@given(st.lists(st.integers(0, 50), max_size=4), st.integers(-5, 100))
def test_room_is_shared(wanted: list[int], room: int) -> None:
    """Nobody gets more than is wanted, all of them together no more than there is, and nothing is left that somebody wants."""
    given_ = shares(wanted, room)
    assert all(0 <= had <= want for had, want in zip(given_, wanted, strict=True))
    assert sum(given_) == min(sum(wanted), max(room, 0))
