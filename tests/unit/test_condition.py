"""A LUN's condition: every pair of a condition and an event, walked with the functions that make it so.

The LUN is a raid6 of four members, so that one more loss is not at once one too many. What the kernel says is written by
hand; what the array makes of it is its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import count, product

import msgspec
import pytest

from blkrecov import flapping, provision, recover, resync, scrub
from blkrecov.condition import Condition, condition, state_of
from blkrecov.converge import take_note
from blkrecov.errors import AnotherCallInProgress, ObjectFailed, ProviderVeto
from blkrecov.model import Document, Health, Layout, Lun, LunStatus, MemberState, Shadow, Task, TaskKind
from blkrecov.observed import Observed
from blkrecov.resync import Facts, Options, Wish
from tests.unit.arrays import drives, raid_words, seen, uuids, with_lun

C = Condition


@dataclass(frozen=True)
class World:
    """The array's document, and what the kernel says of the plex; None: it is not loaded."""

    document: Document
    legs: str | None = "AAAA"
    action: str = "idle"
    ratio: str = "64/64"

    @property
    def lun(self) -> Lun:
        return self.document.lun("v")

    @property
    def observed(self) -> Observed:
        words = None if self.legs is None else raid_words(self.legs, self.action, self.ratio)
        return seen(self.document, words)

    @property
    def condition(self) -> Condition:
        return condition(self.document, self.observed, self.lun)

    def noted(self) -> "World":
        return msgspec_replace(self, take_note(self.document, self.observed, unclean=False))

    def with_lun(self, **changes: object) -> "World":
        return msgspec_replace(self, self.document.with_lun(msgspec.structs.replace(self.lun, **changes)))


def msgspec_replace(world: World, document: Document) -> World:
    return World(document, world.legs, world.action, world.ratio)


class Event(StrEnum):
    MEMBER_LOST = "a member is lost, and the layout can do without"
    TOO_MANY_LOST = "one member more is lost than the layout can do without"
    RECOVER = "Recover"
    SYNCED = "the kernel has ended what it was at"
    CANCEL = "the recovery is cancelled"
    DISAGREE = "a scrub counts mismatches"
    REPAIRED = "a repair has ended"
    SET_ASIDE = "a drive fails too often"
    TRUST = "the drive is trusted again"
    STOP = "the array is stopped"
    START = "the array is started"
    RESTORE = "a restore onto it begins"
    WRITTEN = "the restore's copy begins"
    RESTORED = "the restore has ended"
    GIVEN_UP = "the restore is cancelled, or fails"


def healthy() -> World:
    """And a shadow copy of it, a plex."""
    document, lun = with_lun(drives(10), Layout.RAID6)
    document, plex = with_lun(document, Layout.LINEAR, "p", on=("d9",))
    document = document.with_lun(msgspec.structs.replace(plex, shadow=Shadow(origin=lun.uuid, taken=1000)))
    return World(document.with_lun(msgspec.structs.replace(lun, initialised=True)))


def lose(world: World, index: int) -> World:
    legs = "".join("D" if other == index else leg for other, leg in enumerate(world.legs or ""))
    return World(world.document, legs, world.action, world.ratio).noted()


def begun(world: World) -> World:
    """Recover is called, and the kernel does what was asked for."""
    proposal, _ = recover.propose(world.document, world.observed, world.lun, None, uuids(0x9000 + next(_START)))
    after = proposal.document.lun("v")
    legs = "".join("a" if index in after.rebuilding else "A" for index in range(4))
    if proposal.then:
        return World(proposal.document, "AAAA", "repair", "3/64")
    return World(
        proposal.document, legs, "recover" if "a" in legs else world.action, "3/64" if "a" in legs else world.ratio
    )


_START = count(0, 0x100)


def synced(world: World) -> World:
    lun = world.lun
    if world.action == "repair":
        lun = scrub.repaired(lun)
    return World(world.document.with_lun(recover.rebuilt(lun)), "AAAA")


def held(world: World) -> World:
    return world.with_lun(frozen=True)


def restoring(world: World) -> World:
    """The plex is to be put on it."""
    wishes, facts = [Wish(world.document.lun("p"), world.lun, "v")], [Facts()]
    resync.refuse_dangerous(world.document, world.observed, wishes, facts, Options())
    ids = uuids(0x9000 + next(_START))
    return msgspec_replace(
        world, resync.propose(world.document, wishes, facts, Options(), ids, frozenset())[0].document
    )


def written(world: World) -> World:
    assert world.lun.restore is not None
    restore = msgspec.structs.replace(world.lun.restore, length=world.lun.size, region=128, todo=128)
    return world.with_lun(restore=restore)


def restore_of(world: World) -> Task:
    task = world.document.task_on(world.lun.uuid)
    assert task is not None
    return task


def restored(world: World) -> World:
    return without_tasks(msgspec_replace(world, resync.finished(world.document, restore_of(world))))


def given_up(world: World) -> World:
    return without_tasks(msgspec_replace(world, resync.abandoned(world.document, restore_of(world), "cancelled")))


def without_tasks(world: World) -> World:
    return msgspec_replace(world, msgspec.structs.replace(world.document, tasks=()))


def failing(world: World, number: int = 3) -> World:
    drive = world.document.drive(f"d{number}")
    return msgspec_replace(world, world.document.with_drive(msgspec.structs.replace(drive, failing="three times")))


def trusted(world: World) -> World:
    document = world.document
    for drive in document.drives:
        document = document.with_drive(flapping.cleared(drive))
    return msgspec_replace(world, document)


IN: dict[Condition, Callable[[], World]] = {
    C.HEALTHY: healthy,
    C.DEGRADED: lambda: lose(healthy(), 0),
    C.REBUILDING: lambda: without_tasks(begun(lose(healthy(), 0))),
    C.HELD: lambda: held(without_tasks(begun(lose(healthy(), 0)))),
    C.SYNCING: lambda: World(healthy().document, "AAAA", "resync", "3/64"),
    C.SUSPECT: lambda: healthy().with_lun(suspect=True),
    C.FAILING: lambda: failing(healthy()),
    C.FAILED: lambda: lose(lose(lose(healthy(), 0), 1), 2),
    C.OFFLINE: lambda: World(healthy().document, None),
    C.FILLING: lambda: written(restoring(healthy())),
    C.INCOMPLETE: lambda: given_up(written(restoring(healthy()))),
}


def too_many(world: World) -> World:
    for index in (1, 2, 3):
        world = lose(world, index)
    return world


HAPPENS: dict[Event, Callable[[World], World]] = {
    Event.MEMBER_LOST: lambda world: lose(world, 1),
    Event.TOO_MANY_LOST: too_many,
    Event.RECOVER: begun,
    Event.SYNCED: synced,
    Event.CANCEL: held,
    Event.DISAGREE: lambda world: world.with_lun(mismatches=8),
    Event.REPAIRED: lambda world: msgspec_replace(world, world.document.with_lun(scrub.repaired(world.lun))),
    Event.SET_ASIDE: failing,
    Event.TRUST: trusted,
    Event.STOP: lambda world: World(world.document, None),
    Event.START: lambda world: World(world.document, "".join("D" if i in world.lun.lost else "A" for i in range(4))),
    Event.RESTORE: restoring,
    Event.WRITTEN: written,
    Event.RESTORED: restored,
    Event.GIVEN_UP: given_up,
}
# Nobody can ask for it, or the kernel cannot do it, in that condition: what is not loaded has no legs to lose and nothing to
# synchronise, what runs cannot be started, and there is nothing to cancel where no substitute is.
IMPOSSIBLE: set[tuple[Condition, Event]] = {
    *((C.OFFLINE, event) for event in (Event.MEMBER_LOST, Event.TOO_MANY_LOST, Event.SYNCED)),
    *((state, Event.START) for state in C if state is not C.OFFLINE),
    *((state, Event.CANCEL) for state in C if state is not C.REBUILDING),
    *product((state for state in C if state is not C.FILLING), (Event.WRITTEN, Event.RESTORED, Event.GIVEN_UP)),
    (C.HELD, Event.SYNCED),
    (C.FAILED, Event.SYNCED),
}
# Nobody who asks for it in that condition gets it, and nothing has changed then.
REFUSED: dict[tuple[Condition, Event], type[Exception]] = {
    (C.FAILED, Event.RECOVER): ObjectFailed,
    (C.FILLING, Event.RECOVER): AnotherCallInProgress,
    (C.FAILED, Event.RESTORE): ProviderVeto,
    (C.FILLING, Event.RESTORE): ProviderVeto,
}
# Where each pair leads. What is not listed leaves the LUN where it is.
NEXT: dict[tuple[Condition, Event], Condition] = {
    **{(state, Event.TOO_MANY_LOST): C.FAILED for state in C if state not in (C.OFFLINE, C.FAILED)},
    **{
        (state, Event.MEMBER_LOST): C.DEGRADED
        for state in C
        if state not in (C.OFFLINE, C.FAILED, C.FILLING, C.INCOMPLETE)
    },
    **{(state, Event.RESTORE): C.FILLING for state in C if state not in (C.OFFLINE, C.FAILED, C.FILLING)},
    **{(state, Event.STOP): C.OFFLINE for state in C if state not in (C.OFFLINE, C.FAILED)},
    # By the document it lacks nothing: that the kernel had given up too much is in the superblocks.
    (C.FAILED, Event.STOP): C.OFFLINE,
    (C.OFFLINE, Event.START): C.HEALTHY,
    # (FAILING, RECOVER) is not here: until the copy has ended, the LUN stands where it stood.
    (C.SUSPECT, Event.RECOVER): C.SYNCING,
    (C.DEGRADED, Event.RECOVER): C.REBUILDING,
    (C.HELD, Event.RECOVER): C.REBUILDING,
    (C.REBUILDING, Event.CANCEL): C.HELD,
    (C.REBUILDING, Event.SYNCED): C.HEALTHY,
    (C.SYNCING, Event.SYNCED): C.HEALTHY,
    (C.HEALTHY, Event.DISAGREE): C.SUSPECT,
    (C.FAILING, Event.DISAGREE): C.SUSPECT,
    (C.SUSPECT, Event.REPAIRED): C.HEALTHY,
    (C.HEALTHY, Event.SET_ASIDE): C.FAILING,
    (C.FAILING, Event.TRUST): C.HEALTHY,
    (C.FILLING, Event.RESTORED): C.HEALTHY,
    (C.FILLING, Event.GIVEN_UP): C.INCOMPLETE,
}


@pytest.mark.parametrize("state", C)
def test_there_is_a_lun_in_every_condition(state: Condition) -> None:
    """The walk begins where it says that it begins."""
    assert IN[state]().condition is state


@pytest.mark.parametrize(("state", "event"), list(product(C, Event)), ids=lambda item: item.name.lower())
def test_a_lun_goes_where_the_table_says(state: Condition, event: Event) -> None:
    """Every pair: it leads somewhere, leaves the LUN where it is, is refused, or cannot be."""
    world = IN[state]()
    if (state, event) in REFUSED:
        with pytest.raises(REFUSED[state, event]):
            HAPPENS[event](world)
    elif (state, event) == (C.OFFLINE, Event.RECOVER):
        proposal, _ = recover.propose(world.document, world.observed, world.lun, None, uuids(0x9000))
        assert proposal.document.luns == world.document.luns
    elif (state, event) not in IMPOSSIBLE:
        assert HAPPENS[event](world).condition is NEXT.get((state, event), state)


def test_what_cannot_be_is_not_in_the_table() -> None:
    """The two lists do not contradict each other."""
    assert not IMPOSSIBLE & NEXT.keys()
    assert not (IMPOSSIBLE | NEXT.keys()) & REFUSED.keys()


@pytest.mark.parametrize("state", C)
def test_every_condition_is_shown(state: Condition) -> None:
    """Status and health go together as VDS says: FAILED with FAILED, and HEALTHY only where redundancy is whole. A LUN whose
    contents are not whole is not ready.
    """
    world = IN[state]()
    status, health = state_of(world.document, world.observed, world.lun)
    assert (status is LunStatus.FAILED) == (state is C.FAILED)
    assert (status is LunStatus.NOT_READY) == (state in (C.FILLING, C.INCOMPLETE))
    assert (health is Health.FAILED) == (state in (C.FAILED, C.INCOMPLETE))
    assert (health is Health.HEALTHY) == (state is C.HEALTHY)


@pytest.mark.parametrize("state", [state for state in C if NEXT.get((state, Event.RESTORE)) is C.FILLING])
def test_a_restore_puts_contents_right_and_nothing_else(state: Condition) -> None:
    """Redundancy, doubts and drives that are set aside are what they were before it."""
    after = restored(written(restoring(IN[state]())))
    assert after.condition is (C.HEALTHY if state is C.INCOMPLETE else state)


@pytest.mark.parametrize("state", [C.HEALTHY, C.DEGRADED, C.INCOMPLETE])
def test_a_restore_given_up_before_it_wrote_leaves_the_lun_as_it_was(state: Condition) -> None:
    """One that was not whole is no better for it."""
    assert given_up(restoring(IN[state]())).condition is state


def test_a_differential_shadow_copy_is_offline_while_the_kernel_does_not_have_it() -> None:
    """Its own plex is a store, and shows nothing by itself; without its origin it has failed."""
    document, origin = with_lun(drives(4), Layout.RAID1, "w", on=("d0", "d1"))
    document, lun = with_lun(document, Layout.RAID1, "v", on=("d2", "d3"))
    document = document.with_lun(
        msgspec.structs.replace(lun, initialised=True, shadow=Shadow(origin=origin.uuid, taken=1000, chunk=128))
    )
    world = World(document, "AA")
    assert world.condition is C.OFFLINE
    for name in ("d0", "d1"):
        document = provision.fail_drive(document, name).document
    assert World(document, "AA").condition is C.FAILED


def test_the_last_copy_on_a_failing_drive_is_told() -> None:
    """One more loss would be the end, and the drive that it hangs on is set aside."""
    world = lose(lose(healthy(), 0), 1)
    assert state_of(world.document, world.observed, world.lun)[1] is Health.FAILED_REDUNDANCY
    weak = failing(world)
    assert state_of(weak.document, weak.observed, weak.lun)[1] is Health.FAILED_REDUNDANCY_FAILING


def test_a_lun_without_redundancy_is_failing_not_degraded() -> None:
    """It has no redundancy that could fail."""
    document, lun = with_lun(drives(2), Layout.RAID0)
    weak = document.with_drive(msgspec.structs.replace(document.drive("d0"), failing="three times"))
    assert state_of(weak, seen(weak, "raid0 2 AA 0/0 idle 0 0 -"), lun)[1] is Health.FAILING
    assert provision.trust(weak, "d0").document.drive("d0").failing == ""


def test_one_task_at_a_time_whatever_the_condition() -> None:
    """Busy comes after what can never be, and before what it would take."""
    world = begun(lose(healthy(), 0))
    task = world.document.task_on(world.lun.uuid)
    assert task is not None
    assert (task.kind, [member.state for member in world.lun.members].count(MemberState.REBUILDING)) == (
        TaskKind.RECOVER,
        1,
    )
    with pytest.raises(AnotherCallInProgress, match="under way"):
        begun(world)
