"""The power goes while LUNs are written to. Afterwards their members agree again, and nothing that was flushed is lost.

One machine carries a LUN of every layout; each round cuts its power once, so one cut is a case for every layout. The disks as
the cut left them are also assembled without our repair: that shows how often there was something to repair.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pytest

from blkrecov.model import Layout
from blkrecov.units import MIB
from tests.crash.images import Disks, disagreements
from tests.crash.pattern import History
from tests.crash.power import Json, Machine

DISK_MIB: Final = 32
LUN_MIB: Final = 6
LUNS: Final = (
    ("m", "raid1", LUN_MIB, 2),
    ("p", "raid5", LUN_MIB, 3),
    ("q", "raid6", LUN_MIB, 4),
    ("t", "raid10", LUN_MIB, 4),
)
NAMES: Final = tuple(lun[0] for lun in LUNS)
NUMBER: Final = {name: number for number, name in enumerate(NAMES)}
BY_LAYOUT: Final = [pytest.param(name, id=layout) for name, layout, *_ in LUNS]
COMPARED: Final = [pytest.param(name, id=layout) for name, layout, *_ in LUNS if layout != "raid6"]
SLOW_MS: Final = 8


@dataclass(frozen=True, slots=True)
class Cut:
    """One power cut, and what was found after it. Dictionaries are by LUN."""

    slow: str | None
    """The drive that was slow. None: all were as fast as the machine is."""
    wrote: Json
    flushes: int
    """How many writes had been flushed when the power went."""
    at_once: dict[str, int]
    """Blocks in which members disagree as the cut left them."""
    unrepaired: Json
    unrepaired_after: dict[str, int]
    reopened: Json
    repaired_after: dict[str, int]
    losses: dict[str, list[tuple[int, str]]]


def counted(machine: Machine) -> dict[str, int]:
    """Blocks in which members disagree; a raid6's are the kernel's to count."""
    disks = Disks(machine.images)
    return {
        lun.name: disagreements(lun.layout, disks.members(lun))
        for lun in disks.document.luns
        if lun.layout is not Layout.RAID6
    }


def one_round(machine: Machine, number: int, chance: random.Random, history: History) -> Cut:
    # The window in which one member has a write and another has not is as wide as their difference in speed.
    slow = None if number % 4 == 3 else chance.choice(("d0", "d1"))
    log = machine.out / f"log-{number}"
    order: Json = {
        "make": number == 0,
        "luns": LUNS,
        "drives": 4,
        "fail": None,
        "slow": slow,
        "write_ms": SLOW_MS,
        "seed": chance.random(),
        "first": 1 + number * 1_000_000,
        "log": log.name,
    }
    enough = chance.randrange(200, 600)
    with machine.running("guest_writer", order) as guest:
        guest.until(lambda: log.exists() and log.read_bytes().count(b"\nf ") >= enough, f"{enough} flushed writes")
        guest.cut()
    before = history.flushes
    history.read(log.read_text())
    wrote, at_once = machine.report(), counted(machine)

    copy = machine.copied(machine.home.with_name(f"{machine.home.name}-unrepaired"))
    unrepaired = copy.run("guest_unrepaired", {"luns": NAMES})
    unrepaired_after = counted(copy)
    copy.discard()

    order = {"luns": NAMES, "drives": 4, "tasks": [], "recover": [], "scrub": NAMES, "stop": True}
    reopened = machine.run("guest_reopen", order)
    losses = {
        name: list(history.losses(NUMBER[name], (machine.out / f"lun-{name}.img").read_bytes())) for name in NAMES
    }
    return Cut(
        slow=slow,
        wrote=wrote,
        flushes=history.flushes - before,
        at_once=at_once,
        unrepaired=unrepaired,
        unrepaired_after=unrepaired_after,
        reopened=reopened,
        repaired_after=counted(machine),
        losses=losses,
    )


@pytest.fixture(scope="module")
def cuts(
    tmp_path_factory: pytest.TempPathFactory,
    chance: Callable[[str], random.Random],
    rounds: int,
    figure: Callable[[str], None],
) -> tuple[Cut, ...]:
    machine = Machine(tmp_path_factory.mktemp("cuts") / "machine", (DISK_MIB,) * 4)
    history = History()
    found = tuple(one_round(machine, number, chance(f"power cut {number}"), history) for number in range(rounds))
    machine.discard()
    for number, cut in enumerate(found):
        figure(
            f"power cut {number}, {f'{cut.slow} slow by {SLOW_MS} ms' if cut.slow else 'no drive slowed'}: "
            f"{cut.flushes} writes flushed; blocks that disagreed at once {cut.at_once}; mismatched sectors without our repair "
            f"{cut.unrepaired['mismatches']}, with it {cut.reopened['scrubbed']}; opened in {cut.reopened['took_s']:.1f} s; "
            f"bytes written to members by the repair {cut.reopened['written']}"
        )
    for name, layout, *_ in LUNS:
        differed = sum(cut.unrepaired["mismatches"][name] > 0 for cut in found)
        figure(
            f"{layout}: members differed in {differed} of {len(found)} cuts where nobody asked for a resynchronisation"
        )
    return found


@pytest.mark.parametrize("name", BY_LAYOUT)
def test_every_flushed_write_is_there_after_a_power_cut(cuts: tuple[Cut, ...], name: str) -> None:
    """A flush that was acknowledged is the only promise that a disk makes, and all that file systems build on."""
    for cut in cuts:
        assert cut.losses[name] == []


@pytest.mark.parametrize("name", COMPARED)
def test_members_agree_after_a_power_cut(cuts: tuple[Cut, ...], name: str) -> None:
    """Compared on the disks themselves: copies of mirrors are equal, all members of a raid5 together are zero."""
    for cut in cuts:
        assert cut.repaired_after[name] == 0


@pytest.mark.parametrize("name", BY_LAYOUT)
def test_a_scrub_finds_nothing_after_a_power_cut(cuts: tuple[Cut, ...], name: str) -> None:
    """The kernel's own comparison, which knows a raid6's second parity too."""
    for cut in cuts:
        assert cut.reopened["scrubbed"][name] == 0


def test_opening_the_array_makes_the_kernel_resynchronise(cuts: tuple[Cut, ...]) -> None:
    """One command opens it; the kernel is asked through every member's superblock, and does it once for every LUN."""
    for cut in cuts:
        assert all(block is None for blocks in cut.reopened["superblocks"].values() for block in blocks), (
            "the kernel itself remembers nothing of the writes that were under way"
        )
        assert cut.reopened["forced"] == sum(drives for *_, drives in LUNS)
        assert cut.reopened["resyncs"] == len(LUNS)
        assert cut.reopened["left"] == []


def test_a_resynchronisation_after_a_power_cut_leaves_clean_regions_alone(cuts: tuple[Cut, ...]) -> None:
    """Half of each LUN is never written to, so no repair may write more than half of a member, or nearly.

    From the second round on: after the first synchronisation the kernel takes all regions for dirty for some seconds.
    """
    for cut in cuts[1:]:
        for name, layout, mib, members in LUNS:
            length = mib * MIB // Layout(layout).data_members(members)
            assert max(cut.reopened["written"][name]) <= length // 2 + MIB


def test_an_array_that_was_stopped_is_not_resynchronised(cuts: tuple[Cut, ...]) -> None:
    """A clean stop is written down, and costs nothing at the next start."""
    for cut in cuts[1:]:
        assert cut.wrote["resyncs"] == 0


def test_without_our_repair_members_stay_different(cuts: tuple[Cut, ...]) -> None:
    """The control: the same disks, opened as if the array had been stopped. The kernel says that all is in sync; it is not.

    If this fails, either no cut came at a moment that matters, or the kernel has learnt to repair by itself.
    """
    for cut in cuts:
        assert cut.unrepaired["resyncs"] == 0
        for said in cut.unrepaired["first"].values():
            kind, legs, health, ratio, action, *_ = said.split()
            done, total = ratio.split("/")
            assert (health, done, action) == ("A" * int(legs), total, "idle"), f"{kind}: {said}"
    assert any(sum(cut.unrepaired["mismatches"].values()) > 0 for cut in cuts if cut.slow)
    assert any(sum(cut.unrepaired_after.values()) > 0 for cut in cuts if cut.slow)
