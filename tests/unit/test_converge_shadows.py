"""From what is wanted and what is there to the steps between, where LUNs have shadow copies and are restored; on a machine in
memory (machine.py), which refuses what would let an origin's host write past its shadow copies.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import msgspec
import pytest

from blkrecov import provision, resync, shadows, stack, tasks
from blkrecov.changes import whole
from blkrecov.converge import converge, take_note
from blkrecov.dm import names
from blkrecov.errors import ProviderVeto, RestoreCancelled
from blkrecov.model import Document, Extent, Layout, Task
from blkrecov.resync import Facts, Options, Wish
from blkrecov.shadows import ShadowRequest
from blkrecov.steps import (
    CreateDevice,
    Export,
    FreezeFilesystems,
    RemoveDevice,
    ReplaceTable,
    Rescan,
    SetReady,
    Step,
    Suspend,
    ThawFilesystems,
    Unexport,
)
from blkrecov.units import MIB, Bytes
from tests.unit.arrays import copying, drives, stamped, uuids, with_lost, with_lun, with_plex, with_shadow
from tests.unit.machine import Machine, running

DRIVES = 14


def origin(layout: Layout = Layout.RAID1) -> Document:
    """A LUN v on the first drives."""
    on = tuple(f"d{number}" for number in range(layout.minimum))
    return with_lun(drives(DRIVES), layout, on=on)[0]


def shadowed(layout: Layout = Layout.RAID1) -> Document:
    """v and its shadow copy s."""
    return with_shadow(origin(layout))[0]


def beside(mib: int = 64, layout: Layout = Layout.RAID1) -> Document:
    """v, its shadow copy s, and another LUN w of so many MiB."""
    return with_lun(shadowed(), layout, "w", mib=mib)[0]


def told(plan: list[Step]) -> list[str]:
    """What a plan does to which device, legs left out; with the kind of the new table."""
    words = []
    for step in plan:
        match step:
            case CreateDevice():
                words.append(f"create {step.device.name} {step.device.table[0].kind}")
            case ReplaceTable():
                words.append(f"load {step.name} {step.table[0].kind}")
            case SetReady():
                words.append(f"{step.lun} {'ready' if step.ready else 'not ready'}")
            case Rescan():
                words.append(f"rescan {step.lun}")
            case Unexport():
                words.append(f"unexport {step.lun}")
            case Export():
                words.append(f"export {step.lun}")
            case FreezeFilesystems():
                words.append("freeze")
            case ThawFilesystems():
                words.append("thaw")
            case _:
                words.append(step.lines()[0])
    return [
        word.replace("blkrecov-lab-", "").replace("--", "-")
        for word in words
        if "-rimage" not in word and "-rmeta" not in word
    ]


def taking(document: Document, *requests: ShadowRequest) -> Callable[[Machine], Document]:
    def taken(machine: Machine) -> Document:
        proposal, _ = shadows.propose(document, machine.observe(document), requests, uuids(0x8000))
        return machine.prepare(proposal)

    return taken


def of(lun: str, name: str, *, plex: bool = False) -> ShadowRequest:
    return ShadowRequest(origin=lun, name=name, plex=plex, size=Bytes(16 * MIB))


def asked(
    machine: Machine, document: Document, target: str = "v", *, source: str = "s", undo: bool = False
) -> Document:
    """A restore was asked for; no device is changed. A target that is not there is made."""
    there = next((lun for lun in document.luns if lun.name == target), None)
    wishes = [Wish(document.lun(source), there, target)]
    facts = [Facts(differs=(Extent(0, 1280),))]
    proposal, _ = resync.propose(document, wishes, facts, Options(undo=undo), uuids(0x9000), frozenset())
    return machine.prepare(proposal)


def running_task(document: Document) -> Task:
    return next(task for task in document.tasks if not task.state.ended)


def with_restore(document: Document, name: str = "v", **changes: object) -> Document:
    lun = document.lun(name)
    assert lun.restore is not None
    return document.with_lun(msgspec.structs.replace(lun, restore=msgspec.structs.replace(lun.restore, **changes)))


def compared(machine: Machine, document: Document, name: str = "v") -> Document:
    """All is copied, and the kernel compares: the devices for that are the restore's own affair."""
    document = with_restore(document, name, comparing=True)
    machine.run(document)
    for device in stack.comparison(document, document.lun(name), whole(1280)):
        machine.act(CreateDevice(device))
    return document


def ended(document: Document) -> Document:
    task = running_task(document)
    return resync.finished(document, task).with_task(tasks.completed(task))


def given_up(document: Document) -> Document:
    task = running_task(document)
    return resync.abandoned(document, task, "it failed").with_task(tasks.failed(task, ProviderVeto("it failed")))


def turned_back(document: Document) -> Document:
    document, _ = stamped(document, "undo-1-0", 2000)
    undone = resync.undone(document, running_task(document), RestoreCancelled("cancelled"), uuids(0xB000))
    assert undone is not None
    return undone


def gone_back(document: Document) -> Document:
    task = running_task(document)
    return resync.finished(document, task).with_task(tasks.gone_back(task))


def ends(machine: Machine, name: str) -> list[str]:
    """What a copy reads from, and what it writes to."""
    numbers = {live.number: live.name.removeprefix("blkrecov-lab-") for live in machine.devices.values()}
    words = machine.devices[f"blkrecov-lab-{name}"].table[0].params.split()
    legs = words[3 + int(words[1]) :]
    return [numbers[legs[0]], numbers[legs[2]]]


# Shadow copies are made.


def test_a_first_shadow_copy_step_by_step() -> None:
    """All that can be made before is. Then nobody writes until what saves old contents stands between. The host sees it last."""
    document = origin()
    machine = running(document)
    document = taking(document, of("v", "s"))(machine)
    assert told(machine.run(document)) == [
        "create s-plex raid",
        "freeze",
        "suspend v",
        "create s-shadow snapshot",
        "create v-origin snapshot-origin",
        "load v linear",
        "thaw",
        "create s linear",
        "export s",
    ]
    assert machine.plan(document) == []
    assert machine.read_only == {"blkrecov-lab-s"}


def test_a_second_shadow_copy_holds_the_origin_device_too() -> None:
    """It is resumed after the shadow copy: only then does it look at the chunks that are to be saved."""
    document = shadowed()
    machine = running(document)
    document = taking(document, of("v", "t"))(machine)
    assert told(machine.run(document)) == [
        "create t-plex raid",
        "freeze",
        "suspend v",
        "suspend v-origin",
        "create t-shadow snapshot",
        "resume v-origin",
        "resume v",
        "thaw",
        "create t linear",
        "export t",
    ]
    assert machine.plan(document) == []


def test_a_set_is_of_one_moment() -> None:
    """Every LUN is held before the first shadow copy is made, and until the last one is."""
    document, _ = with_lun(origin(), Layout.LINEAR, "w")
    machine = running(document)
    document = taking(document, of("v", "s"), of("w", "t"))(machine)
    plan = told(machine.run(document))
    assert plan[plan.index("freeze") : plan.index("thaw") + 1] == [
        "freeze",
        "suspend v",
        "suspend w",
        "create s-shadow snapshot",
        "create v-origin snapshot-origin",
        "create t-shadow snapshot",
        "create w-origin snapshot-origin",
        "load v linear",
        "load w linear",
        "thaw",
    ]
    assert machine.plan(document) == []


def test_what_is_frozen_is_what_hosts_have_mounted() -> None:
    """The SCSI disk where there is one, else the LUN's own node."""
    document, _ = with_lun(origin(), Layout.LINEAR, "w", exported=False)
    machine = running(document)
    document = taking(document, of("v", "s"), of("w", "t"))(machine)
    frozen = [step.devices for step in machine.plan(document) if isinstance(step, FreezeFilesystems)]
    assert frozen == [("/dev/sda", "/dev/mapper/blkrecov-lab-w")]


def test_luns_without_new_shadow_copies_are_not_held() -> None:
    """They have nothing to wait for."""
    document = beside()
    machine = running(document)
    plan = machine.run(taking(document, of("w", "t"))(machine))
    assert [step.name for step in plan if isinstance(step, Suspend)] == ["blkrecov-lab-w"]


def test_after_a_restart_shadow_copies_are_there_before_anybody_writes() -> None:
    """The store, what reads it, what writes through it, and only then the LUN; nobody is there yet to be held."""
    document = shadowed()
    plan = told(Machine.with_drives(document).run(document))
    assert [word for word in plan if "drive" not in word] == [
        "create s-plex raid",
        "create v-plex raid",
        "create s-shadow snapshot",
        "create v-origin snapshot-origin",
        "create v linear",
        "export v",
        "create s linear",
        "export s",
    ]


@pytest.mark.parametrize("layout", Layout)
def test_what_is_done_for_shadow_copies_is_not_done_again(layout: Layout) -> None:
    """Taken while the LUN was used, or found after a restart: the same devices."""
    document = origin(layout)
    machine = running(document)
    document = taking(document, of("v", "s"), of("v", "t"))(machine)
    machine.run(document)
    assert machine.plan(document) == []
    assert converge(document, machine.observe(document), unclean=True) == ()
    fresh = running(document)
    assert fresh.state() == machine.state()
    assert fresh.plan(document) == []


def test_a_store_grows_under_what_uses_it() -> None:
    """The store's own plex, and nothing else: the kernel looks at its size when it needs room."""
    document, shadow = with_shadow(origin(), layout=Layout.LINEAR)
    machine = running(document)
    document = shadows.extend(document, shadow, Bytes(32 * MIB), uuids(0x9000)).document
    assert told(machine.run(document)) == ["load s-plex linear"]
    assert machine.plan(document) == []


def test_an_origin_grows_with_what_it_is_written_through() -> None:
    """Shadow copies stay as long as they were."""
    document = shadowed()
    machine = running(document)
    document = provision.extend(document, document.lun("v"), Bytes(100 * MIB), uuids(0x9000)).document
    assert told(machine.run(document)) == [
        "load v-plex raid",
        "load v-origin snapshot-origin",
        "load v linear",
        "rescan v",
    ]
    assert machine.plan(document) == []


# Shadow copies go.


def test_one_of_several_is_deleted_beside_the_others() -> None:
    """The origin goes on as it is."""
    document, shadow = with_shadow(shadowed(), "t")
    machine = running(document)
    document = provision.delete(document, shadow, ()).document
    assert told(machine.run(document)) == [
        f"unexport {shadow.uuid}",
        "remove t",
        "remove t-shadow",
        "remove t-plex",
    ]
    assert machine.plan(document) == []


def test_with_the_last_one_goes_what_its_origin_was_written_through() -> None:
    """First the host's way past it."""
    document = shadowed()
    machine = running(document)
    document = provision.delete(document, document.lun("s"), ()).document
    assert told(machine.run(document))[1:] == [
        "remove s",
        "remove s-shadow",
        "remove s-plex",
        "load v linear",
        "remove v-origin",
    ]
    assert machine.plan(document) == []
    assert machine.state() == running(document).state()


def test_a_lost_shadow_copy_fails_and_is_let_go() -> None:
    """Its host gets errors from a disk that is there; the origin is not held up by it any longer. It never comes back: a store
    that missed a write would be taken for a good one.
    """
    document = shadowed()
    machine = running(document)
    machine.invalid.add("blkrecov-lab-s-shadow")
    document = take_note(document, machine.observe(document), unclean=False)
    assert document.lun("s").shadow is not None
    assert told(machine.run(document)) == ["load v linear", "load s error", "remove v-origin", "remove s-shadow"]
    assert machine.plan(document) == []
    machine.power_cut()
    assert "create s-shadow snapshot" not in told(machine.run(document))
    assert [line.kind for line in machine.devices["blkrecov-lab-s"].table] == ["error"]
    assert machine.plan(document) == []


def test_a_lost_shadow_copy_does_not_take_others_along() -> None:
    """They have stores of their own."""
    document, _ = with_shadow(shadowed(), "t")
    machine = running(document)
    document = with_lost(document, "s")
    assert told(machine.run(document)) == ["load s error", "remove s-shadow"]
    assert machine.plan(document) == []


@pytest.mark.parametrize("layout", [Layout.RAID1, Layout.RAID5])
def test_with_its_origin_a_shadow_copy_is_an_error(layout: Layout) -> None:
    """What has not changed is only there. Neither has a disk, and nothing is asked again and again."""
    document = shadowed(layout)
    machine = running(document)
    machine.power_cut()
    for member in document.lun("v").members:
        del machine.backings[member.drive]
    document = take_note(document, machine.observe(document), unclean=False)
    machine.run(document)
    for name in ("v", "s"):
        assert [line.kind for line in machine.devices[f"blkrecov-lab-{name}"].table] == ["error"]
    assert machine.exports == {}
    assert machine.plan(document) == []


def test_an_origin_that_is_back_comes_up_with_its_shadow_copies() -> None:
    """Nothing was written meanwhile, so nothing was missed."""
    document = shadowed()
    machine = running(document)
    there = dict(machine.backings)
    machine.power_cut()
    for member in document.lun("v").members:
        del machine.backings[member.drive]
    away = take_note(document, machine.observe(document), unclean=False)
    machine.run(away)
    machine.backings = there
    back = take_note(away, machine.observe(away), unclean=False)
    assert "freeze" not in told(machine.run(back))
    assert machine.plan(back) == []
    assert machine.devices["blkrecov-lab-v"].table[0].kind == "linear"
    assert machine.devices["blkrecov-lab-s"].table[0].kind == "linear"


def test_a_shadow_copy_whose_store_was_away_while_its_origin_was_used_is_lost() -> None:
    """Nobody has saved what was overwritten."""
    document = shadowed()
    machine = running(document)
    machine.power_cut()
    for member in document.lun("s").members:
        del machine.backings[member.drive]
    noted = take_note(document, machine.observe(document), unclean=False)
    shadow = noted.lun("s").shadow
    assert shadow is not None
    assert shadow.lost == "its store was away while LUN v was used"
    machine.run(noted)
    assert machine.plan(noted) == []
    assert "blkrecov-lab-v-origin" not in machine.devices


def test_a_shadow_copy_that_was_never_made_is_forgotten() -> None:
    """The process died before the kernel had it: it would be of another moment than anybody asked for."""
    document = origin()
    machine = running(document)
    unmade = taking(document, of("v", "s"))(machine)
    noted = take_note(unmade, machine.observe(unmade), unclean=False)
    assert [lun.name for lun in noted.luns] == ["v"]
    assert noted.tombstones == ()
    machine.run(unmade)
    assert [lun.name for lun in take_note(unmade, machine.observe(unmade), unclean=False).luns] == ["v", "s"]


def test_half_a_set_is_none() -> None:
    """The one that is there would be of another moment than the one that is not. What was taken before stays."""
    document = beside()
    machine = running(document)
    set_of_two = taking(document, of("w", "t"), of("v", "u"))(machine)
    plan = told(machine.plan(set_of_two))
    machine.run(set_of_two, limit=0)
    made_one = next(
        number
        for number, step in enumerate(machine.plan(set_of_two))
        if isinstance(step, CreateDevice) and step.device.name.endswith("-shadow")
    )
    machine.run(set_of_two, limit=made_one + 1)
    assert sum(name.endswith("-shadow") for name in machine.devices) == 2
    assert plan.count("create t-shadow snapshot") == plan.count("create u-shadow snapshot") == 1
    noted = take_note(set_of_two, machine.observe(set_of_two), unclean=False)
    assert [lun.name for lun in noted.luns] == ["v", "s", "w"]
    machine.run(noted)
    assert machine.plan(noted) == []
    assert machine.state() == running(document).state()


def test_a_shadow_copy_that_is_away_with_its_origin_has_missed_nothing() -> None:
    """Nobody could write to that."""
    document = shadowed()
    machine = running(document)
    machine.power_cut()
    for name in ("v", "s"):
        for member in document.lun(name).members:
            del machine.backings[member.drive]
    noted = take_note(document, machine.observe(document), unclean=False)
    assert noted.lun("s").shadow == document.lun("s").shadow


# LUNs are restored.


def test_a_revert_step_by_step() -> None:
    """The disk is not ready before its node fails; the copy reads the shadow copy and writes through what saves for it."""
    document = shadowed()
    machine = running(document)
    document = asked(machine, document)
    assert told(machine.run(document)) == ["v not ready", "load v error"]
    assert machine.plan(document) == []
    document = copying(document)
    logs = [f"create v-copy_log_{number} linear" for number in range(4)]
    assert told(machine.run(document)) == [*logs, "create v-copy mirror"]
    assert ends(machine, "v-copy") == ["s-shadow", "v-origin"]
    assert machine.plan(document) == []
    document = ended(document)
    assert told(machine.run(document)) == [
        "remove v-copy",
        *(f"remove v-copy_log_{number}" for number in range(4)),
        "load v linear",
        "v ready",
    ]
    assert machine.plan(document) == []
    assert machine.state() == running(document).state()


def test_a_restore_with_undo_takes_its_shadow_copy_when_the_disk_is_not_ready() -> None:
    """Nobody is told of an error: first not ready, then the moment, then the node fails. File systems are not frozen for it."""
    document = shadowed()
    machine = running(document)
    document = asked(machine, document, undo=True)
    assert told(machine.run(document)) == [
        "create undo-1-0-plex raid",
        "v not ready",
        "suspend v",
        "suspend v-origin",
        "create undo-1-0-shadow snapshot",
        "resume v-origin",
        "load v error",
        "create undo-1-0 linear",
    ]
    assert machine.plan(document) == []


def test_a_held_copy_is_no_copy() -> None:
    """Its log knows how far it is."""
    document = shadowed()
    machine = running(document)
    document = copying(asked(machine, document))
    machine.run(document)
    before = machine.state()
    held = with_restore(document, held=True)
    assert {type(step) for step in machine.run(held)} == {RemoveDevice}
    assert machine.plan(held) == []
    machine.run(document)
    assert machine.state() == before


def test_a_copy_with_another_log_is_another_copy() -> None:
    """The devices of the one whose log was lost go before those of the new one come, which have the same names."""
    document = shadowed()
    machine = running(document)
    document = copying(asked(machine, document))
    machine.run(document)
    document = resync.restarted(document, document.lun("v"), uuids(0xB000))
    assert {type(step) for step in machine.run(document)} == {RemoveDevice}
    document = copying(document)
    plan = told(machine.run(document))
    assert plan[-1] == "create v-copy mirror"
    assert machine.plan(document) == []


def test_what_compares_is_let_be_while_it_is_wanted() -> None:
    """It is made of what differed, which no document knows. Then it goes before what is below it changes."""
    document = shadowed()
    machine = running(document)
    document = compared(machine, copying(asked(machine, document)))
    assert machine.plan(document) == []
    plan = told(machine.run(ended(document)))
    assert plan[:3] == ["remove v-compare", "remove v-compare_from", "remove v-compare_to"]
    assert machine.plan(ended(document)) == []


def test_a_lost_source_ends_the_copy_before_it_goes_itself() -> None:
    """The LUN stays not ready until somebody says what becomes of it."""
    document = shadowed()
    machine = running(document)
    document = copying(asked(machine, document))
    machine.run(document)
    document = with_lost(document)
    plan = told(machine.run(document))
    assert plan.index("remove v-copy") < plan.index("remove s-shadow")
    assert "v ready" not in plan
    assert machine.plan(document) == []


def test_a_lost_source_ends_the_comparison_before_it_goes_itself() -> None:
    """What compares holds it."""
    document = shadowed()
    machine = running(document)
    document = with_lost(compared(machine, copying(asked(machine, document))))
    plan = told(machine.run(document))
    assert plan.index("remove v-compare_from") < plan.index("remove s-shadow")
    assert machine.plan(document) == []


def test_a_smaller_source_shrinks_its_target_from_the_top_down() -> None:
    """A plex whose legs are shorter than it is would lose what lies there; md is told first (dm-raid accepts that in place)."""
    document = beside(mib=96)
    machine = running(document)
    document = asked(machine, document, "w")
    machine.run(document)
    document = copying(document, "w")
    machine.run(document)
    document = ended(document)
    plan = [step for step in machine.run(document) if isinstance(step, ReplaceTable | SetReady)]
    assert [step.name if isinstance(step, ReplaceTable) else step.lun for step in plan] == [
        "blkrecov-lab-w-plex",
        "blkrecov-lab-w-rimage_0",
        "blkrecov-lab-w-rimage_1",
        "blkrecov-lab-w",
        "w",
    ]
    assert machine.exports[document.lun("w").uuid][1] == 64 * 2048
    assert machine.plan(document) == []
    assert machine.state() == running(document).state()


@pytest.mark.parametrize("layout", Layout)
def test_every_layout_shrinks_to_what_its_source_has(layout: Layout) -> None:
    """And is as if it had always been so long."""
    document = beside(mib=150, layout=layout)
    machine = running(document)
    document = asked(machine, document, "w")
    machine.run(document)
    document = copying(document, "w")
    machine.run(document)
    document = ended(document)
    machine.run(document)
    assert machine.plan(document) == []
    assert machine.state() == running(document).state()


def test_a_larger_source_grows_its_target_before_anything_is_copied() -> None:
    """The legs, the plex, the node; the disk learns of it when it is ready."""
    document = beside(mib=32)
    machine = running(document)
    document = asked(machine, document, "w")
    plan = [step for step in machine.run(document) if isinstance(step, ReplaceTable | SetReady | Rescan)]
    assert [step.name if isinstance(step, ReplaceTable) else step.lun for step in plan] == [
        "blkrecov-lab-w-rimage_0",
        "blkrecov-lab-w-rimage_1",
        "blkrecov-lab-w-plex",
        "w",
        "blkrecov-lab-w",
    ]
    document = copying(document, "w")
    machine.run(document)
    document = ended(document)
    machine.run(document)
    assert machine.exports[document.lun("w").uuid][1] == 64 * 2048
    assert machine.plan(document) == []


def test_a_new_target_has_a_disk_that_is_not_ready() -> None:
    """It has its identity from the beginning."""
    document = shadowed()
    machine = running(document)
    document = asked(machine, document, "n")
    assert told(machine.run(document)) == ["create n-plex raid", "create n error", "export n"]
    assert machine.unready == {document.lun("n").uuid}
    assert machine.plan(document) == []
    assert told(machine.run(ended(copying(document, "n")))) == ["load n linear", "n ready"]


def test_a_new_target_that_came_to_nothing_goes() -> None:
    """With its copy, and before its name is used again."""
    document = shadowed()
    before = running(document)
    machine = running(document)
    document = copying(asked(machine, document, "n"), "n")
    machine.run(document)
    document = given_up(document)
    machine.run(document)
    assert machine.plan(document) == []
    assert machine.state() == before.state()


def test_a_plex_is_filled_from_a_shadow_copy_that_goes_afterwards() -> None:
    """It is independent then: nothing of its origin is held for it."""
    document = origin()
    machine = running(document)
    document = taking(document, of("v", "p", plex=True))(machine)
    machine.run(document)
    assert machine.plan(document) == []
    assert "blkrecov-lab-base--1--0-shadow" in machine.devices
    document = shadows.stamped(document, machine.observe(document), 1000)
    document = copying(document, "p")
    machine.run(document)
    assert machine.plan(document) == []
    document = ended(document)
    machine.run(document)
    assert machine.plan(document) == []
    assert sorted(name for name in machine.devices if "-r" not in name and "drive" not in name) == [
        "blkrecov-lab-p",
        "blkrecov-lab-p-plex",
        "blkrecov-lab-v",
        "blkrecov-lab-v-plex",
    ]
    assert machine.read_only == {"blkrecov-lab-p"}


# Each stage, and what a crash leaves of it.


@dataclass(frozen=True)
class Stage:
    """The array before, as it runs, and what makes it the array after."""

    before: Callable[[], tuple[Machine, Document]]
    then: Callable[[Machine, Document], Document]


def _run(document: Document) -> tuple[Machine, Document]:
    return running(document), document


def _asked() -> tuple[Machine, Document]:
    machine = running(shadowed())
    document = asked(machine, shadowed())
    machine.run(document)
    return machine, document


def _restoring(document: Document, target: str = "v", *, undo: bool = False) -> tuple[Machine, Document]:
    """A machine on which the kernel copies onto the target."""
    machine = running(document)
    document = asked(machine, document, target, undo=undo)
    machine.run(document)
    if undo:
        document, _ = stamped(document, "undo-1-0", 2000)
    document = copying(document, target)
    machine.run(document)
    return machine, document


def _losing(document: Document) -> tuple[Machine, Document]:
    machine = running(document)
    machine.invalid.add("blkrecov-lab-s-shadow")
    return machine, document


def _comparing() -> tuple[Machine, Document]:
    machine, document = _restoring(shadowed())
    return machine, compared(machine, document)


def _going_back() -> tuple[Machine, Document]:
    machine, document = _restoring(shadowed(), undo=True)
    document = copying(turned_back(document))
    machine.run(document)
    return machine, document


def _stages() -> Iterator[tuple[str, Stage]]:
    def take(*requests: ShadowRequest) -> Callable[[Machine, Document], Document]:
        return lambda machine, document: taking(document, *requests)(machine)

    def delete(name: str) -> Callable[[Machine, Document], Document]:
        return lambda _, document: provision.delete(document, document.lun(name), ()).document

    def to(target: str, *, undo: bool = False) -> Callable[[Machine, Document], Document]:
        return lambda machine, document: asked(machine, document, target, undo=undo)

    def plain(change: Callable[[Document], Document]) -> Callable[[Machine, Document], Document]:
        return lambda _, document: change(document)

    def restarted(document: Document) -> Document:
        return resync.restarted(document, document.lun("v"), uuids(0xB000))

    def held(document: Document) -> Document:
        return with_restore(document, held=True)

    def comparing(document: Document) -> Document:
        return with_restore(document, comparing=True)

    two, _ = with_lun(origin(), Layout.LINEAR, "w")
    yield "a-first-shadow-copy", Stage(partial(_run, origin()), take(of("v", "s")))
    yield "a-second-shadow-copy", Stage(partial(_run, shadowed()), take(of("v", "t")))
    yield "a-set", Stage(partial(_run, two), take(of("v", "s"), of("w", "t")))
    yield "a-set-with-a-second-one", Stage(partial(_run, beside()), take(of("w", "t"), of("v", "u")))
    yield "a-plex", Stage(partial(_run, origin()), take(of("v", "p", plex=True)))
    yield "delete-the-last", Stage(partial(_run, shadowed()), delete("s"))
    yield "delete-one", Stage(partial(_run, with_shadow(shadowed(), "t")[0]), delete("s"))
    yield "lose-the-last", Stage(partial(_losing, shadowed()), plain(with_lost))
    yield "lose-one", Stage(partial(_losing, with_shadow(shadowed(), "t")[0]), plain(with_lost))
    for layout in (Layout.LINEAR, Layout.RAID1, Layout.RAID5, Layout.RAID10):
        yield f"revert-{layout}", Stage(partial(_run, shadowed(layout)), to("v"))
        yield f"shrink-{layout}", Stage(partial(_restoring, beside(96, layout), "w"), plain(ended))
        yield f"grow-{layout}", Stage(partial(_run, beside(32, layout)), to("w"))
    yield "revert-with-undo", Stage(partial(_run, shadowed()), to("v", undo=True))
    yield "restore-another", Stage(partial(_run, beside()), to("w"))
    yield "restore-another-with-undo", Stage(partial(_run, beside()), to("w", undo=True))
    yield "restore-a-new-one", Stage(partial(_run, shadowed()), to("n"))
    yield "copy", Stage(_asked, plain(copying))
    yield "hold", Stage(partial(_restoring, shadowed()), plain(held))
    yield "lose-the-log", Stage(partial(_restoring, shadowed()), plain(restarted))
    yield "lose-the-source", Stage(partial(_restoring, shadowed()), plain(with_lost))
    yield "compare", Stage(partial(_restoring, shadowed()), plain(comparing))
    yield "finish", Stage(partial(_restoring, shadowed()), plain(ended))
    yield "finish-with-undo", Stage(partial(_restoring, shadowed(), undo=True), plain(ended))
    yield "finish-another-with-undo", Stage(partial(_restoring, beside(), "w", undo=True), plain(ended))
    yield "finish-comparing", Stage(_comparing, plain(ended))
    yield "finish-a-new-one", Stage(partial(_restoring, shadowed(), "n"), plain(ended))
    yield "give-up", Stage(partial(_restoring, shadowed()), plain(given_up))
    yield "give-up-comparing", Stage(_comparing, plain(given_up))
    yield "give-up-a-new-one", Stage(partial(_restoring, shadowed(), "n"), plain(given_up))
    yield "turn-back", Stage(partial(_restoring, shadowed(), undo=True), plain(turned_back))
    yield "turn-back-another", Stage(partial(_restoring, beside(), "w", undo=True), plain(turned_back))
    yield "go-back", Stage(_going_back, plain(gone_back))
    yield "give-up-going-back", Stage(_going_back, plain(given_up))


STAGES = dict(_stages())


def begun(stage: Stage) -> tuple[Machine, Document]:
    machine, document = stage.before()
    return machine, stage.then(machine, document)


def as_if_always(machine: Machine, document: Document) -> None:
    """Nothing is left to do, and the devices are those of a machine that finds the array like this."""
    assert machine.plan(document) == []
    machine.rebuilt()
    fresh = Machine.with_drives(document)
    fresh.superblocks = dict(machine.superblocks)
    fresh.run(document)
    for lun in document.luns:
        if lun.shadow is not None and lun.shadow.lost:
            machine.exports.pop(lun.uuid, None)  # The disk that it had stays, and none is made of it.
    assert machine.state() == fresh.state()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_reached_once(name: str) -> None:
    """A second look finds nothing to do."""
    machine, document = begun(STAGES[name])
    assert machine.run(document) != []
    as_if_always(machine, document)


@pytest.mark.parametrize("name", STAGES)
def test_a_process_killed_between_any_two_steps_leaves_nothing_undone(name: str) -> None:
    """The next one looks, and ends where the first would have, or without the shadow copies that were being made. At no step can
    an origin be written past the others.
    """
    machine, document = begun(STAGES[name])
    for done, looks in product(range(len(machine.plan(document))), (False, True)):
        machine, document = begun(STAGES[name])
        machine.run(document, limit=done)
        noted = take_note(document, machine.observe(document), unclean=True) if looks else document
        machine.run(noted)
        as_if_always(machine, noted)


@pytest.mark.parametrize("name", STAGES)
def test_a_power_cut_between_any_two_steps_leaves_nothing_undone(name: str) -> None:
    """Only the drives remember. Shadow copies that were being made are forgotten; a plex that was to be filled by one is not
    whole, and its task says so.
    """
    machine, document = begun(STAGES[name])
    for done in range(len(machine.plan(document))):
        machine, document = begun(STAGES[name])
        machine.run(document, limit=done)
        machine.power_cut()
        noted = take_note(document, machine.observe(document), unclean=True)
        assert {lun.uuid for lun in document.luns} - {lun.uuid for lun in noted.luns} == {
            lun.uuid for lun in document.luns if lun.differential and lun.shadow is not None and not lun.shadow.taken
        }
        machine.run(noted, unclean=True)
        as_if_always(machine, noted)


@pytest.mark.parametrize("name", [name for name in STAGES if "restore" in name or "revert" in name or "grow" in name])
def test_a_target_is_written_by_nobody_once_its_disk_is_not_ready(name: str) -> None:
    """Its node fails, and stays so at every step of every later stage until it is whole."""
    machine, document = begun(STAGES[name])
    machine.run(document)
    target = next(lun for lun in document.luns if lun.restore is not None)
    for stage in (document, copying(document, target.name), given_up(copying(document, target.name))):
        for step in machine.plan(stage):
            machine.act(step)
            top = machine.devices.get(names.lun_name("lab", target.name))
            assert top is None or [line.kind for line in top.table] == ["error"]


def test_a_lun_that_is_not_whole_is_restored_again() -> None:
    """It stays not ready between the two."""
    machine, document = _restoring(shadowed())
    document = given_up(document)
    machine.run(document)
    assert machine.unready == {document.lun("v").uuid}
    as_if_always(machine, document)
    document = msgspec.structs.replace(document, tasks=())
    document = asked(machine, document)
    assert machine.plan(document) == []
    document = ended(copying(document))
    assert told(machine.run(document)) == ["load v linear", "v ready"]


def test_a_source_that_is_a_plex_is_read_past_nothing() -> None:
    """It has contents of its own; the target's shadow copies still see what is written."""
    document, _ = with_plex(shadowed())
    machine = running(document)
    document = copying(asked(machine, document, source="p"))
    machine.run(document)
    assert ends(machine, "v-copy") == ["p-plex", "v-origin"]
    assert machine.plan(document) == []
