"""Members that return: when the kernel is asked to take legs back, and what observation may say of them meanwhile."""

from copy import deepcopy
from dataclasses import dataclass, replace

import msgspec
import pytest

from blkrecov import provision, reconnect
from blkrecov.converge import converge, take_note
from blkrecov.model import Document, DriveStatus, Layout, MemberState
from blkrecov.observed import Observed
from blkrecov.steps import ReplaceTable, Revive, SettleFailures, Step
from tests.unit.arrays import FAULT_TOLERANT, drives, raid_words, seen, uuids, with_lun, with_states
from tests.unit.machine import Machine, kinds

LOST = MemberState.FAILED
GOOD = MemberState.IN_SYNC
REBUILDING = MemberState.REBUILDING
RETURNING = MemberState.RETURNING
PLEX = "blkrecov-lab-v-plex"


@dataclass
class Reviving(Machine):
    """A machine whose md takes failed legs back: when it looks at them again, or reads superblocks that call them failed."""

    def act(self, step: Step) -> None:
        if isinstance(step, Revive):
            plex = self.plexes[step.name]
            metas = self.devices[step.name].table[0].params.split()
            for index, meta in enumerate(metas[3 + int(metas[1]) :: 2]):
                if plex.letters[index] == "D" and self._place(meta) is not None:
                    plex.letters[index] = "a"
                    place = plex.places[index] = self._place(meta)
                    assert place is not None
                    self.superblocks[place] = replace(self.superblocks[place], recovery_offset=0)
            self._write_down(step.name)
            self.change(step.name, suspended=False)
        else:
            super().act(step)

    def _load_raid(self, name: str, words: list[str]) -> None:
        cold = name not in self.plexes
        super()._load_raid(name, words)
        plex = self.plexes[name]
        if not cold or plex.places[0] is None:
            return
        found = {index: self.superblocks[place] for index, place in enumerate(plex.places) if place is not None}
        failed = max(found.values(), key=lambda superblock: superblock.events).failed
        for index, superblock in found.items():
            if failed >> index & 1 or superblock.recovery_offset is not None:
                plex.letters[index] = "a"
        self._write_down(name)


def whole(layout: Layout) -> Document:
    on = tuple(f"d{index}" for index in range(layout.minimum))
    return with_lun(drives(6), layout, on=on, exported=False)[0]


def without(machine: Machine, document: Document, name: str = "d1") -> Document:
    """The array after a drive failed, on this machine."""
    document = provision.fail_drive(document, name).document
    machine.run(document)
    return document


def running(document: Document) -> Machine:
    machine = Reviving.with_drives(document)
    machine.run(document)
    return machine


def running_with(words: str, document: Document, *away: str) -> Observed:
    """A machine on which the array runs; its kernel says this of the legs, and these drives have gone."""
    machine = running(document)
    machine.plexes[PLEX].letters = list(words)
    for name in away:
        del machine.backings[document.drive(name).uuid]
    return machine.observe(document)


def back(machine: Machine, document: Document, name: str = "d1") -> Document:
    """The document of a reconnect, with the superblocks that this machine's drives have."""
    lun = document.lun("v")
    known = {
        member.uuid: machine.superblocks.get(machine.place(lun, index))
        for index, member in enumerate(lun.members)
        if member.meta
    }
    return reconnect.propose(document, Observed(), document.drive(name), f"/srv/{name}", known, uuids(0x9000))[
        0
    ].document


def rebuilding(document: Document) -> Document:
    """When the engine has noted that the kernel took the members back."""
    return document.with_lun(reconnect.taken_back(document.lun("v"), frozenset()))


def returning(layout: Layout = Layout.RAID5, *states: MemberState) -> Document:
    document = whole(layout)
    return document.with_lun(with_states(document.lun("v"), *(states or (GOOD, RETURNING))))


def letters(machine: Machine) -> str:
    return "".join(machine.plexes[PLEX].letters)


def revived(document: Document, observed: Observed) -> list[Step]:
    return [
        step
        for group in converge(document, observed)
        for step in group.steps
        if isinstance(step, Revive | SettleFailures)
    ]


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_reconnect_gives_the_leg_back_and_then_asks_the_kernel(layout: Layout) -> None:
    """Its legs stand on its port still; then one suspend and resume. Nothing is made anew, and the plex is not loaded."""
    document = whole(layout)
    machine = running(document)
    document = without(machine, document)
    assert letters(machine)[1] == "D"
    document = back(machine, document)
    plan = machine.run(document)
    assert kinds(plan) == ["ReplaceTable", "Revive"]
    assert [step.name for step in plan if isinstance(step, ReplaceTable)] == ["blkrecov-lab-drive-d1"]
    assert plan[-1] == Revive(PLEX, (1,))
    assert letters(machine)[1] == "a"


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_what_the_kernel_has_taken_back_is_not_asked_again(layout: Layout) -> None:
    """Whether or not that was written down; nor when it is in sync."""
    document = whole(layout)
    machine = running(document)
    document = back(machine, without(machine, document))
    machine.run(document)
    for wanted in (document, rebuilding(document)):
        assert machine.plan(wanted) == []
    machine.rebuilt()
    assert machine.plan(rebuilding(document)) == []


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_an_array_that_returned_is_as_if_nothing_had_been(layout: Layout) -> None:
    document = whole(layout)
    machine = running(document)
    wanted = deepcopy(machine.state())
    document = back(machine, without(machine, document))
    machine.run(document)
    machine.rebuilt()
    assert machine.state() == wanted


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
@pytest.mark.parametrize("how", ["the process", "the machine"])
def test_a_reconnect_cut_short_between_any_two_steps_is_done_by_the_next(layout: Layout, how: str) -> None:
    """With the kernel's memory or with the superblocks alone; the member is never taken for whole, nor for lost."""

    def begun() -> tuple[Machine, Document]:
        document = whole(layout)
        machine = running(document)
        return machine, back(machine, without(machine, document))

    machine, document = begun()
    steps = len(machine.run(document))
    for done in range(steps + 1):
        machine, document = begun()
        machine.run(document, limit=done)
        unclean = how == "the machine"
        if unclean:
            machine.power_cut()
        noted = take_note(document, machine.observe(document), unclean=unclean)
        assert noted.lun("v").members == document.lun("v").members
        machine.run(noted, unclean=unclean)
        assert letters(machine)[1] == "a", f"after {done} of {steps} steps"
        assert machine.plan(noted) == []


def test_a_lun_whose_return_a_power_cut_interrupts_is_suspect() -> None:
    """Its superblocks cannot be told to resynchronise while a member is not in sync: it is repaired when it is whole."""
    document = returning()
    assert take_note(document, seen(document), unclean=True).lun("v").suspect


@pytest.mark.parametrize(
    ("states", "words", "legs"),
    [
        ((GOOD, RETURNING, GOOD, GOOD), "ADAA", (1,)),
        ((RETURNING, RETURNING, GOOD, GOOD), "DDAA", (0, 1)),
        ((RETURNING, RETURNING, GOOD, GOOD), "aDAA", (1,)),
        ((REBUILDING, RETURNING, GOOD, GOOD), "aDAA", (1,)),
        ((GOOD, RETURNING, GOOD, GOOD), "AaAA", ()),
        ((GOOD, RETURNING, GOOD, GOOD), "AAAA", ()),
        ((GOOD, REBUILDING, GOOD, GOOD), "ADAA", ()),
        ((GOOD, GOOD, GOOD, GOOD), "ADAA", ()),
        ((LOST, RETURNING, GOOD, GOOD), "DAAA", ()),
    ],
    ids=[
        "failed",
        "two failed",
        "one is back",
        "a substitute beside it",
        "back",
        "in sync",
        "a substitute that failed",
        "a member that failed",
        "another is lost",
    ],
)
def test_the_kernel_is_asked_for_legs_that_return_and_are_failed(
    states: tuple[MemberState, ...], words: str, legs: tuple[int, ...]
) -> None:
    """Not for legs that nobody has brought back: they would be read although they have missed writes."""
    document = returning(Layout.RAID6, *states)
    found = revived(document, running_with(words, document))
    assert [step for step in found if isinstance(step, Revive)] == ([Revive(PLEX, legs)] if legs else [])


def test_a_loss_is_settled_before_a_leg_is_taken_back() -> None:
    """The kernel regenerates from what it takes for good: that must not be the member which is lost."""
    document = returning(Layout.RAID6, LOST, RETURNING, GOOD, GOOD)
    found = revived(document, running_with("ADAA", document))
    assert found == [SettleFailures(PLEX, (0,)), Revive(PLEX, (1,))]


@pytest.mark.parametrize("suspended", [True, False])
def test_nothing_is_asked_of_a_plex_that_says_nothing(suspended: bool) -> None:
    document = returning()
    observed = seen(document, raid_words("ADA"), suspended=True) if suspended else seen(document)
    assert revived(document, observed) == []


@pytest.mark.parametrize(("layout", "states"), [(Layout.RAID1, "AD"), (Layout.RAID5, "ADA"), (Layout.RAID10, "ADAA")])
def test_a_lun_that_is_dead_is_asked_for_nothing(layout: Layout, states: str) -> None:
    """Another drive is away: with nothing to regenerate from, md would take the leg as it is, or refuse the next one."""
    document = returning(layout)
    assert revived(document, running_with(states, document, "d0")) == []


# What observation says.


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_returning_member_is_not_lost_before_the_kernel_was_asked(layout: Layout) -> None:
    """The kernel calls it failed still, and its superblock is older than all others: both are why it returns."""
    document = returning(layout)
    words = raid_words("AD" + "A" * (layout.minimum - 2))
    observed = seen(document, words)
    lun = document.lun("v")
    assert observed.lost(document, lun) == frozenset()
    assert observed.failed_legs(lun) == frozenset()
    assert observed.survives(document, lun)
    assert take_note(document, observed, unclean=False) == document


def test_a_returning_member_holds_no_data_yet() -> None:
    """What is left without it has to be enough."""
    document = returning(Layout.RAID5, LOST, RETURNING, GOOD)
    assert not seen(document, raid_words("DDA")).survives(document, document.lun("v"))


@pytest.mark.parametrize("how", ["away", "failed"])
def test_a_returning_member_whose_drive_goes_again_is_lost(how: str) -> None:
    document = returning()
    if how == "failed":
        drive = msgspec.structs.replace(document.drive("d1"), status=DriveStatus.FAILED)
        document = document.with_drive(drive)
    observed = seen(document, raid_words("ADA"), away=("d1",))
    assert take_note(document, observed, unclean=False).lun("v").lost == {1}


def test_a_member_that_returns_and_fails_when_it_was_taken_back_is_lost() -> None:
    """From then on it is regenerated as any other."""
    document = rebuilding(returning())
    assert take_note(document, seen(document, raid_words("ADA")), unclean=False).lun("v").lost == {1}


def test_members_beside_a_returning_one_are_lost_as_ever() -> None:
    document = returning(Layout.RAID6)
    assert take_note(document, seen(document, raid_words("DDAA")), unclean=False).lun("v").lost == {0}


# Without redundancy.


@pytest.mark.parametrize("layout", [Layout.LINEAR, Layout.RAID0])
def test_a_lun_without_redundancy_needs_its_port_and_nothing_else(layout: Layout) -> None:
    """There is nothing to regenerate, and md gives no leg of a stripe up."""
    document = with_lun(drives(3), layout, on=("d1", "d2")[: layout.minimum], exported=False)[0]
    machine = running(document)
    wanted = deepcopy(machine.state())
    document = back(machine, without(machine, document))
    assert [step.name for step in machine.run(document) if isinstance(step, ReplaceTable)] == ["blkrecov-lab-drive-d1"]
    assert (machine.plan(document), machine.state()) == ([], wanted)
