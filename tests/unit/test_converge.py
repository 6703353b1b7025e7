"""From what is wanted and what is there to the steps between, on a machine in memory (machine.py)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from uuid import UUID

import msgspec
import pytest

from blkrecov import provision, recover
from blkrecov import replace as moves
from blkrecov.converge import Group, converge, converge_ports, take_note
from blkrecov.dm import names
from blkrecov.dm.table import TargetLine
from blkrecov.geometry import Request
from blkrecov.model import Document, DriveStatus, Layout, Lun, MemberState
from blkrecov.observed import Backing, Observed
from blkrecov.stack import Layer
from blkrecov.steps import (
    ClearInactive,
    CreateDevice,
    Export,
    ForceResync,
    RemoveDevice,
    RenameDevice,
    ReplaceTable,
    Rescan,
    Resume,
    SettleFailures,
    Step,
    ZeroExtent,
)
from blkrecov.units import MIB, Bytes, Sectors
from tests.unit.arrays import FAULT_TOLERANT, array, drive, drives, uuids, with_lun, with_states
from tests.unit.machine import Machine, kinds, running

LOST = MemberState.FAILED
REBUILDING = MemberState.REBUILDING


def made(
    machine: Machine, document: Document, layout: Layout, *on: str, name: str = "v", start: int = 0x9000
) -> Document:
    """With another LUN, its space prepared, no device of it made."""
    request = Request(name=name, layout=layout, size=Bytes(64 * MIB), drives=on)
    return machine.prepare(provision.create(document, request, uuids(start)))


def whole(layout: Layout = Layout.RAID1, number: int = 6) -> Document:
    """An array of so many drives with one LUN, v; a mirror lies on d0 and d1."""
    return with_lun(drives(number), layout)[0]


def loads(steps: list[Step]) -> list[str]:
    """The devices that a plan makes."""
    return [step.device.name for step in steps if isinstance(step, CreateDevice)]


# From nothing to everything.


@pytest.mark.parametrize("layout", Layout)
def test_devices_are_made_from_the_bottom_up(layout: Layout) -> None:
    """Ports for all first, then each LUN from its legs to the SCSI disk."""
    document = whole(layout)
    ports, lun = converge(document, Machine.with_drives(document).observe(document))
    assert (ports.lun, lun.lun) == (None, document.lun("v").uuid)
    layers = [[step.device.layer for step in group.steps if isinstance(step, CreateDevice)] for group in (ports, lun)]
    assert layers[0] == [Layer.PORT] * 6
    assert layers[1] == sorted(layers[1])
    assert layers[1][-2:] == [Layer.PLEX, Layer.LUN]
    assert isinstance(lun.steps[-1], Export)


def test_a_mirror_from_nothing() -> None:
    """The names, in the order of their making."""
    document, _ = with_lun(drives(2), Layout.RAID1)
    plan = Machine.with_drives(document).plan(document)
    assert [step.device.name for step in plan if isinstance(step, CreateDevice)] == [
        "blkrecov-lab-drive-d0",
        "blkrecov-lab-drive-d1",
        "blkrecov-lab-v-rmeta_0",
        "blkrecov-lab-v-rimage_0",
        "blkrecov-lab-v-rmeta_1",
        "blkrecov-lab-v-rimage_1",
        "blkrecov-lab-v-plex",
        "blkrecov-lab-v",
    ]
    assert plan[-1] == Export("v", document.lun("v").uuid, "/dev/mapper/blkrecov-lab-v")


def test_a_lun_that_is_not_exported_has_no_disk() -> None:
    """--no-export: its node is what the host uses."""
    document, _ = with_lun(drives(2), Layout.RAID1, exported=False)
    assert "Export" not in kinds(Machine.with_drives(document).plan(document))


def test_ports_alone_can_be_had() -> None:
    """Superblocks are read through them, before anything is decided about LUNs."""
    document = whole()
    ports = converge_ports(document, Machine.with_drives(document).observe(document))
    steps = [step for steps in ports.values() for step in steps]
    assert kinds(list(steps)) == ["CreateDevice"] * 6


@pytest.mark.parametrize("layout", Layout)
def test_what_is_done_is_not_done_again(layout: Layout) -> None:
    """No groups: nothing that a crash could interrupt."""
    document = whole(layout)
    machine = running(document)
    assert converge(document, machine.observe(document)) == ()
    assert converge(document, machine.observe(document), unclean=True) == ()


def test_each_lun_is_a_group() -> None:
    """One that cannot be brought up does not hold up the others."""
    document, v = with_lun(drives(4), Layout.RAID1, "v")
    document, w = with_lun(document, Layout.RAID0, "w")
    groups: tuple[Group, ...] = converge(document, Machine.with_drives(document).observe(document))
    assert [group.lun for group in groups] == [None, v.uuid, w.uuid]


# Growing.


@pytest.mark.parametrize("layout", Layout)
def test_a_lun_grows_from_the_bottom_up(layout: Layout) -> None:
    """A table never names sectors that are not there yet; the host hears of it last."""
    document = whole(layout)
    machine = running(document)
    document = provision.extend(document, document.lun("v"), Bytes(100 * MIB), uuids(0x9000)).document
    plan = machine.run(document)
    replaced = [step.name for step in plan if isinstance(step, ReplaceTable)]
    assert replaced[-2:] == ["blkrecov-lab-v-plex", "blkrecov-lab-v"]
    assert kinds(plan) == ["ReplaceTable"] * (len(plan) - 1) + ["Rescan"]
    assert machine.exports[document.lun("v").uuid][1] == 100 * 2048
    assert machine.plan(document) == []


@pytest.mark.parametrize("layout", Layout)
def test_a_disk_that_missed_its_rescan_gets_it(layout: Layout) -> None:
    """The process was killed after the last table: nothing but the disk's own size tells that it believes the old one."""
    document = whole(layout)
    machine = running(document)
    lun = document.lun("v")
    document = provision.extend(document, lun, Bytes(100 * MIB), uuids(0x9000)).document
    steps = len(machine.plan(document))
    machine.run(document, limit=steps - 1)
    assert machine.observe(document).exports[lun.uuid].size == 64 * 2048
    assert machine.run(document) == [Rescan("v", lun.uuid)]
    assert machine.exports[lun.uuid][1] == 100 * 2048
    assert machine.plan(document) == []


def test_a_disk_is_rescanned_after_the_lun_under_it_has_grown() -> None:
    """Before that it would learn the old size again, and keep it."""
    document = whole()
    machine = running(document)
    document = provision.extend(document, document.lun("v"), Bytes(100 * MIB), uuids(0x9000)).document
    plan = machine.plan(document)
    tops = [at for at, step in enumerate(plan) if isinstance(step, ReplaceTable) and step.name == "blkrecov-lab-v"]
    assert tops == [plan.index(Rescan("v", document.lun("v").uuid)) - 1]


# Failures.


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_failed_drive_replaces_one_table(layout: Layout) -> None:
    """The port's; the kernel is made to notice and to write it down. No flush: what is under way may never end."""
    document, _ = with_lun(drives(6), layout, on=tuple(f"d{number}" for number in range(layout.minimum)))
    machine = running(document)
    document = provision.fail_drive(document, "d0").document
    port, settle = machine.run(document)
    assert isinstance(port, ReplaceTable)
    assert (port.name, port.table[0].kind, port.flush) == ("blkrecov-lab-drive-d0", "error", False)
    assert settle == SettleFailures("blkrecov-lab-v-plex", (0,))
    assert machine.plan(document) == []


def test_a_failed_drive_changes_nothing_for_luns_elsewhere() -> None:
    """Only those that lie on it."""
    document, _ = with_lun(drives(4), Layout.RAID1, "v", on=("d0", "d1"))
    document, _ = with_lun(document, Layout.RAID1, "w", on=("d2", "d3"))
    machine = running(document)
    plan = machine.plan(provision.fail_drive(document, "d0").document)
    assert [step.name for step in plan if isinstance(step, ReplaceTable | SettleFailures)] == [
        "blkrecov-lab-drive-d0",
        "blkrecov-lab-v-plex",
    ]
    assert len(plan) == 2


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_degraded_lun_is_brought_up_without_the_lost_member(layout: Layout) -> None:
    """All its devices are there, and its superblocks record the loss before anybody writes."""
    document, _ = with_lun(drives(6), layout, on=tuple(f"d{number}" for number in range(layout.minimum)))
    machine = running(document)
    machine.power_cut()
    document = provision.fail_drive(document, "d0").document
    plan = machine.run(document)
    assert kinds(plan)[-4:] == ["CreateDevice", "SettleFailures", "CreateDevice", "Export"]
    assert machine.plan(document) == []


def test_a_lost_member_on_a_drive_that_works_is_cut_off() -> None:
    """md gave the leg up after a write error; the drive answers, and what the leg holds is stale."""
    document = whole()
    machine = running(document)
    document = document.with_lun(with_states(document.lun("v"), LOST))
    replaced = [step for step in machine.run(document) if isinstance(step, ReplaceTable)]
    assert [(step.name, step.table[0].kind) for step in replaced] == [
        ("blkrecov-lab-v-rmeta_0", "error"),
        ("blkrecov-lab-v-rimage_0", "error"),
    ]
    assert machine.plan(document) == []


def test_a_lun_that_lost_too_much_is_an_error_device() -> None:
    """Its plex is not loaded: the kernel would refuse, or worse. Its node is there and says EIO; there is no disk to export."""
    document, _ = with_lun(drives(4), Layout.RAID5, on=("d0", "d1", "d2"))
    document = provision.fail_drive(provision.fail_drive(document, "d0").document, "d1").document
    machine = Machine.with_drives(document)
    plan = machine.run(document)
    assert "blkrecov-lab-v-plex" not in machine.devices
    assert [line.kind for line in machine.devices["blkrecov-lab-v"].table] == ["error"]
    assert "Export" not in kinds(plan)
    assert machine.plan(document) == []


def test_a_lun_that_dies_while_it_runs_is_left_to_the_kernel() -> None:
    """What is left of it keeps answering, and nothing is asked again and again: md never gives up a mirror's last leg."""
    document, _ = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    for name in ("d0", "d1"):
        document = provision.fail_drive(document, name).document
        machine.run(document)
    assert "blkrecov-lab-v-plex" in machine.devices
    assert machine.plan(document) == []


def test_a_rebuilding_member_does_not_keep_a_lun_alive() -> None:
    """The only whole member is lost: what the other one holds is half of the data."""
    document, lun = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    document = provision.fail_drive(
        document.with_lun(with_states(lun, lun.members[0].state, REBUILDING)), "d0"
    ).document
    machine = Machine.with_drives(document)
    machine.run(document)
    assert "blkrecov-lab-v-plex" not in machine.devices


def test_a_drive_that_is_away_has_a_port_that_fails() -> None:
    """The document does not know yet; the port is made all the same, and waits."""
    document = whole()
    machine = Machine.with_drives(document)
    del machine.backings[document.drives[0].uuid]
    document = take_note(document, machine.observe(document), unclean=False)
    machine.run(document)
    assert machine.devices["blkrecov-lab-drive-d0"].table[0].kind == "error"
    assert document.lun("v").lost == {0}
    assert machine.plan(document) == []


# Substitution.


def substituted(machine: Machine, document: Document, name: str = "d0", start: int = 0x9000) -> Document:
    """After d0 failed and Recover was asked for: the document and the prepared drive, no device changed."""
    document = provision.fail_drive(document, name).document
    machine.run(document)
    return recovered(machine, document, start)


def recovered(machine: Machine, document: Document, start: int) -> Document:
    """After Recover was asked for: the document with the substitute, whose UUID begins with `start`; its drive is prepared."""
    proposal, _ = recover.propose(document, machine.observe(document), document.lun("v"), None, uuids(start))
    return machine.prepare(proposal)


def test_a_substitution_step_by_step() -> None:
    """New legs beside the old ones, one load that asks for the rebuild, the old legs gone, the names in order."""
    document, _ = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    document = substituted(machine, document)
    plan = machine.run(document)
    told = [
        (type(step).__name__, step.device.name if isinstance(step, CreateDevice) else step.lines()[0]) for step in plan
    ]
    assert told == [
        ("CreateDevice", "blkrecov-lab-v-rmeta_0_00009000"),
        ("CreateDevice", "blkrecov-lab-v-rimage_0_00009000"),
        ("ReplaceTable", "suspend blkrecov-lab-v-plex, load this table, resume"),
        ("RemoveDevice", "remove blkrecov-lab-v-rimage_0"),
        ("RemoveDevice", "remove blkrecov-lab-v-rmeta_0"),
        ("RenameDevice", "rename blkrecov-lab-v-rmeta_0_00009000 to blkrecov-lab-v-rmeta_0"),
        ("RenameDevice", "rename blkrecov-lab-v-rimage_0_00009000 to blkrecov-lab-v-rimage_0"),
    ]
    load = plan[2]
    assert isinstance(load, ReplaceTable)
    assert load.table[0].params == (
        "raid1 5 0 rebuild 0 region_size 2048 2 "
        "/dev/mapper/blkrecov-lab-v-rmeta_0_00009000 /dev/mapper/blkrecov-lab-v-rimage_0_00009000 "
        "/dev/mapper/blkrecov-lab-v-rmeta_1 /dev/mapper/blkrecov-lab-v-rimage_1"
    )
    assert machine.plan(document) == []


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_substituted_lun_is_as_if_it_had_always_been_so(layout: Layout) -> None:
    """Also when the rebuild has ended and the document calls the member in sync."""
    document, _ = with_lun(drives(6), layout, on=tuple(f"d{number}" for number in range(layout.minimum)))
    machine = running(document)
    document = substituted(machine, document)
    machine.run(document)
    assert machine.plexes["blkrecov-lab-v-plex"].letters == ["a", *"A" * (layout.minimum - 1)]
    machine.rebuilt()
    document = document.with_lun(recover.rebuilt(document.lun("v")))
    assert machine.plan(document) == []
    fresh = Machine.with_drives(document)
    fresh.superblocks = machine.superblocks
    fresh.run(document)
    assert fresh.state() == machine.state()


def test_a_rebuild_goes_on_after_a_power_cut() -> None:
    """The new member has a superblock that knows how far it is: `rebuild` would start again at sector 0."""
    document, _ = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    document = substituted(machine, document)
    machine.run(document)
    machine.power_cut()
    loads = [step.device.table[0].params for step in machine.plan(document) if isinstance(step, CreateDevice)]
    assert [text for text in loads if "rebuild" in text] == []


def test_a_substitution_that_never_began_begins_after_a_power_cut() -> None:
    """The document has the new member and its metadata is zeros: it has to be regenerated from the start."""
    document, _ = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    document = substituted(machine, document)
    machine.power_cut()
    machine.run(document)
    assert machine.plexes["blkrecov-lab-v-plex"].letters == ["a", "A"]


@pytest.mark.parametrize("done", range(7))
def test_a_substitute_that_fails_is_substituted_too(done: int) -> None:
    """However far its own substitution had come: no name is asked for twice."""
    document, _ = with_lun(drives(4), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    document = substituted(machine, document)
    machine.run(document, limit=done)
    second = document.drive_of(document.lun("v").members[0].drive).name
    document = msgspec.structs.replace(document, tasks=())
    document = provision.fail_drive(document, second).document
    document = recovered(machine, document, 0xA000)
    machine.run(document)
    assert machine.plan(document) == []
    assert machine.plexes["blkrecov-lab-v-plex"].letters == ["a", "A"]


def renamed(plan: list[Step]) -> int:
    """How many steps of a plan come before the first new name."""
    return next(at for at, step in enumerate(plan) if isinstance(step, RenameDevice))


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_substitute_that_fails_before_its_rename_leaves_nothing_behind(layout: Layout) -> None:
    """Its legs are in the plex under the names that they were made with, and the legs before them are gone already. The next
    substitute's are made beside them, under names of their own, and end under the member's.
    """
    document, _ = with_lun(drives(8), layout, on=tuple(f"d{number}" for number in range(layout.minimum)))
    machine = running(document)
    document = substituted(machine, document)
    machine.run(document, limit=renamed(machine.plan(document)))
    assert "blkrecov-lab-v-rimage_0_00009000" in machine.devices
    assert "blkrecov-lab-v-rimage_0" not in machine.devices
    second = document.drive_of(document.lun("v").members[0].drive).name
    document = provision.fail_drive(msgspec.structs.replace(document, tasks=()), second).document
    machine.run(document)
    document = recovered(machine, document, 0xA000)
    machine.run(document)
    assert machine.plan(document) == []
    member = document.lun("v").members[0]
    assert machine.devices["blkrecov-lab-v-rimage_0"].uuid == names.dm_uuid(member.uuid, "rimage")
    assert machine.devices["blkrecov-lab-v-rmeta_0"].uuid == names.dm_uuid(member.uuid, "rmeta")
    assert [name for name in machine.devices if name.endswith(("_00009000", "_0000a000"))] == []
    assert machine.plexes["blkrecov-lab-v-plex"].letters == ["a", *"A" * (layout.minimum - 1)]


def test_two_substitutes_in_a_row_never_share_a_name() -> None:
    """The second is made while the first still has the name that it was made under: both are told by their members' UUIDs."""
    document, _ = with_lun(drives(4), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    document = substituted(machine, document)
    machine.run(document, limit=renamed(machine.plan(document)) - 2)
    document = provision.fail_drive(msgspec.structs.replace(document, tasks=()), "d2").document
    document = recovered(machine, document, 0xA000)
    plan = machine.plan(document)
    assert [step.device.name for step in plan if isinstance(step, CreateDevice)] == [
        "blkrecov-lab-v-rmeta_0_0000a000",
        "blkrecov-lab-v-rimage_0_0000a000",
    ]
    assert sorted(step.name for step in plan if isinstance(step, RemoveDevice)) == [
        "blkrecov-lab-v-rimage_0",
        "blkrecov-lab-v-rimage_0_00009000",
        "blkrecov-lab-v-rmeta_0",
        "blkrecov-lab-v-rmeta_0_00009000",
    ]


# A member that moves to another drive.


def moving(machine: Machine, document: Document, new: str = "d5", start: int = 0x9000) -> Document:
    """After the member on d0 was asked to move: the document without the task, and the prepared drive; no device is changed."""
    proposal, _ = moves.propose(
        document, machine.observe(document), document.lun("v"), document.drive("d0"), document.drive(new), uuids(start)
    )
    return msgspec.structs.replace(machine.prepare(proposal), tasks=())


def moved(plan: list[Step]) -> list[str]:
    """What a plan does to which device, by the kind of the new table."""
    told = []
    for step in plan:
        match step:
            case CreateDevice():
                told.append(f"create {step.device.name.removeprefix('blkrecov-lab-v-')} {step.device.table[0].kind}")
            case ReplaceTable():
                flush = "" if step.flush else " at once"
                told.append(f"{step.name.removeprefix('blkrecov-lab-v-')} {step.table[0].kind}{flush}")
            case ZeroExtent():
                told.append(f"zero {step.extent.start} of {step.port.removeprefix('/dev/mapper/blkrecov-lab-')}")
            case RemoveDevice():
                told.append(f"remove {step.name.removeprefix('blkrecov-lab-v-')}")
            case _:
                told.append(step.lines()[0])
    return told


SIDES = ["rimage_0_from", "rimage_0_log_0", "rimage_0_log_1", "rimage_0_log_2", "rimage_0_log_3", "rimage_0_to"]
META_SIDES = ["rmeta_0_from", "rmeta_0_to"]


def test_a_move_step_by_step() -> None:
    """What is below the legs, then the legs one after the other; the plex is not touched. The logs are blank."""
    document, _ = with_lun(drives(6), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    document = moving(machine, document)
    assert moved(machine.run(document)) == [
        "create rmeta_0_from linear",
        "create rmeta_0_to linear",
        "create rimage_0_from linear",
        "create rimage_0_to linear",
        "create rimage_0_log_0 linear",
        "create rimage_0_log_1 linear",
        "create rimage_0_log_2 linear",
        "create rimage_0_log_3 linear",
        "rmeta_0 mirror",
        "zero 18432 of drive-d5",
        "rimage_0 mirror",
    ]
    assert machine.plan(document) == []


@pytest.mark.parametrize("end", [moves.finished, moves.abandoned])
def test_the_end_of_a_move_step_by_step(end: Callable[[Document, Lun], Document]) -> None:
    """Without a flush: a mirror that has lost a side would never come to an end of what it holds."""
    document, _ = with_lun(drives(6), Layout.RAID1, on=("d0", "d1"))
    document = moving(running(document), document)
    machine = running(document)
    document = end(document, document.lun("v"))
    removed = [f"remove {name}" for name in (*SIDES, *META_SIDES)]
    assert moved(machine.run(document)) == ["rmeta_0 linear at once", "rimage_0 linear at once", *removed]
    drive = "d5" if end is moves.finished else "d0"
    for leg in ("rmeta_0", "rimage_0"):
        number = machine.devices[f"blkrecov-lab-v-{leg}"].table[0].params.split()[0]
        assert number == machine.devices[f"blkrecov-lab-drive-{drive}"].number
    assert machine.plan(document) == []


def test_a_linear_lun_goes_through_the_leg_before_that_copies() -> None:
    """What its plex wrote past the leg while that is a mirror would be missing on the other drive."""
    document, _ = with_lun(drives(6), Layout.LINEAR, on=("d0",))
    machine = running(document)
    document = moving(machine, document)
    assert moved(machine.run(document)) == [
        "create rimage_0 linear",
        "create rimage_0_from linear",
        "create rimage_0_to linear",
        "create rimage_0_log_0 linear",
        "create rimage_0_log_1 linear",
        "create rimage_0_log_2 linear",
        "create rimage_0_log_3 linear",
        "plex linear",
        "zero 16384 of drive-d5",
        "rimage_0 mirror",
    ]
    leg, plex = machine.devices["blkrecov-lab-v-rimage_0"], machine.devices["blkrecov-lab-v-plex"]
    assert plex.table[0].params == f"{leg.number} 0"
    document = moves.finished(document, document.lun("v"))
    assert moved(machine.run(document)) == [
        "rimage_0 linear at once",
        "plex linear",
        "remove rimage_0",
        *(f"remove {name}" for name in SIDES),
    ]
    assert plex.number == machine.devices["blkrecov-lab-v-plex"].number
    assert machine.plan(document) == []


@pytest.mark.parametrize("layout", Layout)
def test_a_copy_goes_on_after_a_power_cut_by_its_log(layout: Layout) -> None:
    """The leg is a mirror from the start, nothing is zeroed, and a superblock is changed through the leg, not past it."""
    document, _ = with_lun(drives(6), layout, on=tuple(f"d{number}" for number in range(layout.minimum)))
    machine = running(moving(running(document), document))
    document = moving(running(document), document)
    machine.power_cut()
    plan = machine.run(document, unclean=True)
    assert [step for step in plan if isinstance(step, ZeroExtent | ReplaceTable)] == []
    forced = [step for step in plan if isinstance(step, ForceResync)]
    if layout.fault_tolerant:
        assert forced[0] == ForceResync("/dev/mapper/blkrecov-lab-v-rmeta_0", 0)
        assert len(forced) == layout.minimum
    assert machine.plan(document) == []


def test_a_leg_that_served_without_its_mirror_forgets_the_log() -> None:
    """The drive that it moves to was away for a moment, by the document: what was written then is in no log."""
    document, _ = with_lun(drives(6), Layout.RAID1, on=("d0", "d1"))
    document = moving(running(document), document)
    machine = running(document)
    away = document.with_drive(msgspec.structs.replace(document.drive("d5"), status=DriveStatus.OFFLINE))
    machine.run(away)
    assert machine.devices["blkrecov-lab-v-rimage_0"].table[0].kind == "linear"
    assert moved(machine.run(document))[-3:] == ["rmeta_0 mirror", "zero 18432 of drive-d5", "rimage_0 mirror"]


def test_a_second_move_never_stands_on_what_the_first_has_left() -> None:
    """A process was killed before the first one's devices were removed: they have the names, not the UUIDs."""
    document, _ = with_lun(drives(6), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    first = moving(machine, document)
    machine.run(first)
    stayed = moves.abandoned(first, first.lun("v"))
    machine.run(stayed, limit=2)
    assert "blkrecov-lab-v-rimage_0_to" in machine.devices
    second = moving(machine, stayed, "d4", start=0xA000)
    machine.run(second)
    port = machine.devices["blkrecov-lab-drive-d4"].number
    assert machine.devices["blkrecov-lab-v-rimage_0_to"].table[0].params.split()[0] == port
    assert machine.plan(second) == []
    assert machine.state() == running(second).state()


def mirror_words(legs: str, log: str = "A") -> str:
    return f"2 253:1 253:2 3/8 1 {legs} 3 disk 253:3 {log}"


@pytest.mark.parametrize(("legs", "log"), [("AD", "A"), ("AS", "A"), ("AF", "A"), ("AA", "D")])
def test_a_copy_that_cannot_be_written_is_given_up(legs: str, log: str) -> None:
    """Whoever looks next takes it away, for until then the mirror holds the LUN's writes."""
    document, lun = with_lun(drives(6), Layout.RAID1, on=("d0", "d1"))
    document = moving(running(document), document)
    machine = running(document)
    observed = machine.observe(document)
    uuid = names.dm_uuid(lun.members[0].uuid, "rimage")
    live = observed.devices[uuid]

    def said(words: str) -> Observed:
        line = TargetLine(start=Sectors(0), length=Sectors(131072), kind="mirror", params=words)
        return replace(observed, devices={**observed.devices, uuid: replace(live, status=(line,))})

    assert take_note(document, said(mirror_words("AA")), unclean=False).lun("v").members[0].successor is not None
    # What cannot be read has to come from elsewhere: an operation's business.
    assert take_note(document, said(mirror_words("SA")), unclean=False).lun("v").members[0].successor is not None
    noted = take_note(document, said(mirror_words(legs, log)), unclean=False)
    assert noted.lun("v").members == lun.members


@pytest.mark.parametrize("layout", Layout)
def test_a_copy_to_a_drive_that_is_away_is_given_up_before_the_lun_is_used(layout: Layout) -> None:
    """When the drive is back, its log would call clean what was written meanwhile."""
    document, lun = with_lun(drives(6), layout, on=tuple(f"d{number}" for number in range(layout.minimum)))
    document = moving(running(document), document)
    machine = running(document)
    machine.power_cut()
    del machine.backings[document.drive("d5").uuid]
    assert take_note(document, machine.observe(document), unclean=False).lun("v").members == lun.members


def test_a_copy_of_a_member_that_has_missed_writes_is_given_up() -> None:
    """It would be a copy of something stale."""
    document, _ = with_lun(drives(6), Layout.RAID1, on=("d0", "d1"))
    document = moving(running(document), document)
    machine = running(document)
    machine.plexes["blkrecov-lab-v-plex"].letters[0] = "D"
    noted = take_note(document, machine.observe(document), unclean=False)
    assert noted.lun("v").lost == {0}
    assert noted.lun("v").members[0].successor is None


@pytest.mark.parametrize("name", ["d0", "d5"])
def test_a_drive_that_is_failed_ends_the_copies_to_it_and_from_it(name: str) -> None:
    """And the LUN goes on with what it has."""
    document, _ = with_lun(drives(6), Layout.RAID1, on=("d0", "d1"))
    document = moving(running(document), document)
    machine = running(document)
    document = provision.fail_drive(document, name).document
    assert document.lun("v").members[0].successor is None
    assert document.lun("v").lost == ({0} if name == "d0" else frozenset())
    machine.run(document)
    assert [name for name in machine.devices if "_from" in name or "_to" in name or "_log" in name] == []
    assert machine.plan(document) == []


# Deletion.


@pytest.mark.parametrize("layout", Layout)
def test_a_deleted_lun_goes_from_the_top_down(layout: Layout) -> None:
    """The SCSI disk, the LUN, the plex, the legs; the ports stay. The LUN's removal is for udev to see."""
    document = whole(layout)
    machine = running(document)
    document = provision.delete(document, document.lun("v"), ()).document
    plan = machine.run(document)
    assert kinds(plan) == ["Unexport"] + ["RemoveDevice"] * (len(plan) - 1)
    removed = [(step.name, step.visible) for step in plan if isinstance(step, RemoveDevice)]
    assert removed[:2] == [("blkrecov-lab-v", True), ("blkrecov-lab-v-plex", False)]
    assert sorted(machine.devices) == [f"blkrecov-lab-drive-d{number}" for number in range(6)]


def test_a_removed_drive_loses_its_port() -> None:
    """And nothing else changes."""
    document, _ = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    document = provision.remove_drive(document, "d2").document
    assert machine.plan(document) == [RemoveDevice("blkrecov-lab-drive-d2", False)]


def test_a_new_lun_never_lies_on_a_deleted_one_s_plex() -> None:
    """The old LUN's devices are there still (its process was killed, or something held them) when its name is used again."""
    document = whole()
    machine = running(document)
    document = provision.delete(document, document.lun("v"), ()).document
    document, lun = with_lun(document, Layout.RAID0, "v", start=0x9000)
    machine.run(document)
    top, plex = machine.devices["blkrecov-lab-v"], machine.devices["blkrecov-lab-v-plex"]
    assert top.uuid == names.dm_uuid(lun.uuid, "lun")
    assert top.table[0].params == f"{plex.number} 0"
    assert machine.plan(document) == []


@pytest.mark.parametrize("after", Layout)
@pytest.mark.parametrize("before", [Layout.LINEAR, Layout.RAID1, Layout.RAID6])
def test_a_name_is_free_for_another_lun_at_once(before: Layout, after: Layout) -> None:
    """The deleted LUN goes first, all of it and its disk: no device of the new one is made under a name for the time being, and
    none of the old one's is left under it.
    """
    document = whole(before)
    machine = running(document)
    old = set(machine.devices)
    document = provision.delete(document, document.lun("v"), ()).document
    document = made(machine, document, after)
    plan = machine.run(document)
    gone = [step.name for step in plan if isinstance(step, RemoveDevice)]
    assert set(gone) == {name for name in old if "-drive-" not in name}
    assert kinds(plan)[: len(gone) + 1] == ["Unexport"] + ["RemoveDevice"] * len(gone)
    assert "RenameDevice" not in kinds(plan)
    assert list(machine.exports) == [document.lun("v").uuid]
    assert machine.state() == running(document).state()
    assert machine.plan(document) == []


def test_a_name_reused_while_legs_are_left_of_the_deleted_lun() -> None:
    """A process was killed between the plex and the legs: what is left has no top or plex that would tell whose it was."""
    document = whole()
    machine = running(document)
    document = provision.delete(document, document.lun("v"), ()).document
    machine.run(document, limit=3)
    assert "blkrecov-lab-v-plex" not in machine.devices
    assert "blkrecov-lab-v-rimage_0" in machine.devices
    document = made(machine, document, Layout.RAID1)
    machine.run(document)
    assert machine.state() == running(document).state()
    assert machine.plan(document) == []


def test_two_luns_that_exchange_their_names_lie_on_their_own_members() -> None:
    """Deleted both, made again the other way round, before any process looked."""
    document, _ = with_lun(drives(6), Layout.RAID1, "v", on=("d0", "d1"))
    document, _ = with_lun(document, Layout.RAID5, "w", on=("d2", "d3", "d4"))
    machine = running(document)
    for name in ("v", "w"):
        document = provision.delete(document, document.lun(name), ()).document
    document = made(machine, document, Layout.RAID5, "d2", "d3", "d4")
    document = made(machine, document, Layout.RAID1, "d0", "d1", name="w", start=0xA000)
    machine.run(document)
    assert machine.state() == running(document).state()
    assert machine.plan(document) == []


# What a crash leaves.


@dataclass(frozen=True)
class Change:
    """One operation: the array before, and what makes it the array after."""

    before: Document
    then: Callable[[Machine, Document], Document]


def _changes() -> Iterator[tuple[str, Change]]:
    def deleted(_machine: Machine, document: Document) -> Document:
        return provision.delete(document, document.lun("v"), ()).document

    def grown(_machine: Machine, document: Document) -> Document:
        return provision.extend(document, document.lun("v"), Bytes(100 * MIB), uuids(0x9000)).document

    def replaced(machine: Machine, document: Document) -> Document:
        return made(machine, provision.delete(document, document.lun("v"), ()).document, Layout.RAID6)

    def failed(_machine: Machine, document: Document) -> Document:
        return provision.fail_drive(document, "d0").document

    def twice(machine: Machine, document: Document) -> Document:
        document = substituted(machine, document)
        machine.run(document, limit=renamed(machine.plan(document)))
        second = document.drive_of(document.lun("v").members[0].drive).name
        document = provision.fail_drive(msgspec.structs.replace(document, tasks=()), second).document
        return recovered(machine, document, 0xA000)

    def arrived(machine: Machine, document: Document) -> Document:
        machine.copied(document)
        return moves.finished(document, document.lun("v"))

    def stayed(_machine: Machine, document: Document) -> Document:
        return moves.abandoned(document, document.lun("v"))

    def created(machine: Machine, document: Document) -> Document:
        document, _ = with_lun(document, Layout.RAID6, "w")
        return document

    for layout in Layout:
        on = tuple(f"d{number}" for number in range(layout.minimum))
        before, _ = with_lun(drives(6), layout, on=on)
        yield f"delete-{layout}", Change(before, deleted)
        yield f"reuse-the-name-of-{layout}", Change(before, replaced)
        yield f"grow-{layout}", Change(before, grown)
        yield f"create-beside-{layout}", Change(before, created)
        yield f"move-{layout}", Change(before, moving)
        yield f"arrive-{layout}", Change(moving(running(before), before), arrived)
        yield f"stay-{layout}", Change(moving(running(before), before), stayed)
        if layout.fault_tolerant:
            yield f"fail-{layout}", Change(before, failed)
            yield f"substitute-{layout}", Change(before, substituted)
            yield f"substitute-the-substitute-{layout}", Change(before, twice)


CHANGES = dict(_changes())


@pytest.mark.parametrize("name", CHANGES)
def test_a_process_killed_between_any_two_steps_leaves_nothing_undone(name: str) -> None:
    """The next one looks, and ends where the first would have."""
    change = CHANGES[name]

    def begun() -> tuple[Machine, Document]:
        machine = running(change.before)
        return machine, change.then(machine, change.before)

    machine, document = begun()
    steps = len(machine.run(document))
    wanted = machine.state()
    for done in range(steps):
        machine, document = begun()
        machine.run(document, limit=done)
        machine.run(document)
        assert machine.state() == wanted, f"after {done} of {steps} steps"
        assert machine.plan(document) == []


@pytest.mark.parametrize("name", CHANGES)
def test_a_power_cut_between_any_two_steps_leaves_nothing_undone(name: str) -> None:
    """Only the drives remember."""
    change = CHANGES[name]

    def begun() -> tuple[Machine, Document]:
        machine = running(change.before)
        return machine, change.then(machine, change.before)

    machine, document = begun()
    steps = len(machine.run(document))
    machine.rebuilt()
    wanted = machine.state()
    for done in range(steps):
        machine, document = begun()
        machine.run(document, limit=done)
        machine.power_cut()
        noted = take_note(document, machine.observe(document), unclean=True)
        assert [lun.lost for lun in noted.luns] == [lun.lost for lun in document.luns]
        machine.run(noted, unclean=True)
        machine.rebuilt()
        assert machine.state() == wanted, f"after {done} of {steps} steps"
        assert machine.plan(noted) == []


# What somebody else left.


def test_a_suspended_device_is_resumed() -> None:
    """A process was killed between suspend and resume: all I/O to it waits."""
    document = whole()
    machine = running(document)
    machine.change("blkrecov-lab-v-rimage_0", suspended=True)
    assert machine.plan(document) == [Resume("blkrecov-lab-v-rimage_0", False)]
    machine.change("blkrecov-lab-v-rimage_0", suspended=False)
    machine.change("blkrecov-lab-v", suspended=True)
    assert machine.plan(document) == [Resume("blkrecov-lab-v", True)]


def test_a_lun_that_somebody_else_has_suspended_is_left_alone() -> None:
    """It is theirs to resume. What is below it changes all the same, and what is above it waits."""
    document = whole()
    machine = running(document)
    name = "blkrecov-lab-v"
    machine.devices[name] = replace(machine.devices[name], suspended=True, held=True)
    assert machine.plan(document) == []
    machine.exports.clear()
    assert machine.plan(document) == []
    machine.change("blkrecov-lab-v-plex", suspended=True)
    assert machine.plan(document) == [Resume("blkrecov-lab-v-plex", False)]


def test_a_table_that_nobody_made_live_is_cleared() -> None:
    """The next resume would make it live, whatever it says."""
    document = whole()
    machine = running(document)
    machine.change("blkrecov-lab-v-plex", suspended=True, inactive=True)
    assert machine.run(document) == [
        ClearInactive("blkrecov-lab-v-plex"),
        Resume("blkrecov-lab-v-plex", False),
    ]
    assert machine.plan(document) == []


def test_a_device_without_a_table_gets_one() -> None:
    """Its making was cut short between create and load."""
    document = whole()
    machine = running(document)
    for name in ("blkrecov-lab-v", "blkrecov-lab-v-plex"):
        machine.devices[name] = replace(machine.devices[name], table=())
    assert [step.name for step in machine.plan(document) if isinstance(step, ReplaceTable)] == [
        "blkrecov-lab-v-plex",
        "blkrecov-lab-v",
    ]


def test_a_table_that_maps_elsewhere_is_put_right() -> None:
    """A drive came back as another loop device: the port is all that changes."""
    document = whole()
    machine = running(document)
    machine.backings[document.drives[2].uuid] = Backing(device="/dev/loop9", number="7:9")
    plan = machine.run(document)
    assert [(step.name, str(step.table[0])) for step in plan if isinstance(step, ReplaceTable)] == [
        ("blkrecov-lab-drive-d2", "0 442368 linear /dev/loop9 0")
    ]
    assert len(plan) == 1


def test_a_raid_s_other_options_are_no_difference() -> None:
    """But for its rates. The kernel prints more of them than it was given, and keeps "rebuild" for as long as the table lives."""
    document = whole()
    machine = running(document)
    plex = machine.devices["blkrecov-lab-v-plex"]
    words = plex.table[0].params.split()
    text = " ".join((words[0], "4", "0", "rebuild", "0", "nosync", *words[2 + int(words[1]) :]))
    machine.devices[plex.name] = replace(plex, table=(replace(plex.table[0], params=text),))
    assert machine.plan(document) == []


# Rebuilds that are held.


def frozen(document: Document, held: bool = True) -> Document:
    return document.with_lun(msgspec.structs.replace(document.lun("v"), frozen=held))


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_rebuild_is_held_and_let_go_by_one_load_each(layout: Layout) -> None:
    """Neither tells the kernel to rebuild: it has the checkpoint, and would begin again at sector 0."""
    document, _ = with_lun(drives(6), layout, on=tuple(f"d{number}" for number in range(layout.minimum)))
    machine = running(document)
    document = substituted(machine, document)
    machine.run(document)
    for held, words in ((True, "min_recovery_rate 1 max_recovery_rate 1 region_size"), (False, "region_size")):
        document = frozen(document, held)
        (load,) = machine.run(document)
        assert isinstance(load, ReplaceTable)
        options = load.table[0].params.split(" ", 3)[3]
        assert options.startswith(words)
        assert machine.plan(document) == []


def test_a_held_rebuild_is_held_after_a_power_cut() -> None:
    """From its first load on."""
    document, _ = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    document = substituted(machine, document)
    machine.run(document)
    machine.power_cut()
    plan = machine.plan(frozen(document))
    (load,) = (
        step.device.table[0].params
        for step in plan
        if isinstance(step, CreateDevice) and step.device.layer is Layer.PLEX
    )
    assert load.startswith("raid1 7 0 min_recovery_rate 1 max_recovery_rate 1 region_size 2048 2 ")


def test_a_dead_lun_is_not_loaded_to_hold_it_back() -> None:
    """It could not be loaded at all, and what is left of it would answer no longer."""
    document, _ = with_lun(drives(2), Layout.RAID1)
    machine = running(document)
    for name in ("d0", "d1"):
        document = provision.fail_drive(document, name).document
    machine.run(document)
    assert "ReplaceTable" not in kinds(machine.plan(frozen(document)))


def test_a_second_substitute_leaves_the_first_rebuild_where_it_is() -> None:
    """Linux 6.1 takes `rebuild` for one of them and lets the other go on from its checkpoint: of 32 MiB that were half done
    16 are written, with `rebuild` for both all 32."""
    document, _ = with_lun(drives(6), Layout.RAID6, on=("d0", "d1", "d2", "d3"))
    machine = running(document)
    document = substituted(machine, document)
    machine.run(document)
    document = provision.fail_drive(document, "d1").document
    machine.run(document)
    lun = document.lun("v")
    spare, lost = document.drive("d5"), lun.members[1]
    second = msgspec.structs.replace(lost, uuid=UUID(int=0xA000 << 96), drive=spare.uuid, state=REBUILDING)
    document = document.with_lun(lun.with_member(1, second))
    loads = [step.table[0].params for step in machine.plan(document) if isinstance(step, ReplaceTable)]
    assert [load.split(" ", 3)[3].split(" region_size")[0] for load in loads] == ["rebuild 1"]


# Unclean stops.


def test_after_an_unclean_stop_whole_luns_are_resynchronised() -> None:
    """Every superblock is told before the table is loaded: dm-raid would call the dirty regions clean."""
    document, _ = with_lun(drives(2), Layout.RAID1)
    machine = running(document)
    machine.power_cut()
    plan = machine.run(document, unclean=True)
    at = [index for index, step in enumerate(plan) if isinstance(step, ForceResync)]
    assert [plan[index] for index in at] == [
        ForceResync("/dev/mapper/blkrecov-lab-drive-d0", 16384),
        ForceResync("/dev/mapper/blkrecov-lab-drive-d1", 16384),
    ]
    load = plan[at[-1] + 1]
    assert isinstance(load, CreateDevice)
    assert load.device.name == "blkrecov-lab-v-plex"
    assert all(superblock.resync_offset == 0 for superblock in machine.superblocks.values())


@pytest.mark.parametrize("layout", Layout)
def test_a_clean_stop_asks_for_nothing(layout: Layout) -> None:
    """A resynchronisation of nothing still costs a read of every bitmap."""
    document = whole(layout)
    machine = running(document)
    machine.power_cut()
    assert "ForceResync" not in kinds(machine.plan(document, unclean=False))


def test_a_lun_that_was_never_loaded_has_nothing_to_resynchronise() -> None:
    """It has no superblocks; its initial synchronisation covers everything."""
    document = whole()
    assert "ForceResync" not in kinds(Machine.with_drives(document).plan(document, unclean=True))


@pytest.mark.parametrize("state", [LOST, REBUILDING])
def test_a_lun_that_is_not_whole_is_suspect_instead(state: MemberState) -> None:
    """The kernel has a rebuild to do first, and would forget about the dirty regions; a repair comes after it."""
    document, lun = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    machine.power_cut()
    document = document.with_lun(with_states(lun, state))
    noted = take_note(document, machine.observe(document), unclean=True)
    assert noted.lun("v").suspect
    assert "ForceResync" not in kinds(machine.plan(noted, unclean=True))


@pytest.mark.parametrize("done", range(8))
@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_lun_whose_rebuild_a_power_cut_interrupts_is_suspect(layout: Layout, done: int) -> None:
    """However far its substitution had come. The rebuild goes on and makes it whole, not right: the regions that were written to
    when the power went are known to nobody afterwards.
    """
    document, _ = with_lun(drives(6), layout, on=tuple(f"d{number}" for number in range(layout.minimum)))
    machine = running(document)
    document = substituted(machine, document)
    machine.run(document, limit=done)
    machine.power_cut()
    noted = take_note(document, machine.observe(document), unclean=True)
    assert noted.lun("v").suspect
    assert noted.lun("v").members == document.lun("v").members
    assert "ForceResync" not in kinds(machine.plan(noted, unclean=True))


def test_a_rebuild_that_a_clean_stop_interrupts_is_no_reason_for_doubt() -> None:
    """Nothing was in flight."""
    document, _ = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    document = substituted(machine, document)
    machine.run(document)
    machine.power_cut()
    assert take_note(document, machine.observe(document), unclean=False) == document


def test_a_suspect_lun_stays_suspect_when_its_rebuild_has_ended() -> None:
    """Only a repair takes the doubt away: recover.rebuilt() and a look at a plex in sync do not."""
    document, _ = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    document = substituted(machine, document)
    machine.run(document)
    machine.power_cut()
    document = take_note(document, machine.observe(document), unclean=True)
    machine.run(document, unclean=True)
    machine.rebuilt()
    document = document.with_lun(recover.rebuilt(document.lun("v")))
    noted = take_note(document, machine.observe(document), unclean=False)
    assert noted.lun("v").suspect
    assert recover.examine(noted, machine.observe(noted), noted.lun("v")).disagree


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_leg_that_the_kernel_is_still_regenerating_makes_a_lun_suspect(layout: Layout) -> None:
    """In sync by the document, not by its own superblock: no resynchronisation is asked for (the kernel has that leg to do
    first), so the doubt has to be remembered.
    """
    document = whole(layout)
    machine = running(document)
    machine.power_cut()
    place = machine.place(document.lun("v"), 0)
    machine.superblocks[place] = replace(machine.superblocks[place], recovery_offset=4096)
    noted = take_note(document, machine.observe(document), unclean=True)
    assert "ForceResync" not in kinds(machine.plan(noted, unclean=True))
    assert noted.lun("v").suspect


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_an_unclean_stop_is_remembered_of_a_lun_that_cannot_be_used_yet(layout: Layout) -> None:
    """Its drives are away when the array is brought up. Once that is stopped in good order nothing else would tell that this LUN
    was not: when the drives are back, its members may disagree and no resynchronisation is asked for.
    """
    on = tuple(f"d{number}" for number in range(layout.minimum))
    document, _ = with_lun(drives(6), layout, on=on)
    machine = running(document)
    machine.power_cut()
    backings = dict(machine.backings)
    for name in on:
        del machine.backings[document.drive(name).uuid]
    noted = take_note(document, machine.observe(document), unclean=True)
    assert noted.lun("v").members == document.lun("v").members
    machine.backings = backings
    again = take_note(noted, machine.observe(noted), unclean=False)
    assert again.lun("v").suspect or "ForceResync" in kinds(machine.plan(again, unclean=False))


def test_a_whole_lun_is_not_suspect() -> None:
    """The resynchronisation covers all that was in flight."""
    document = whole()
    machine = running(document)
    machine.power_cut()
    assert take_note(document, machine.observe(document), unclean=True) == document


def test_a_loaded_lun_is_not_suspect_although_the_stop_was_unclean() -> None:
    """An earlier process of this boot has seen to it; the kernel ran on."""
    document = whole()
    machine = running(document)
    document = provision.fail_drive(document, "d0").document
    machine.run(document)
    assert not take_note(document, machine.observe(document), unclean=True).lun("v").suspect


# What observation teaches.


def test_a_leg_that_the_kernel_gave_up_is_lost() -> None:
    """It has to be on the drives: after a restart nothing else would tell that it is stale."""
    document = whole()
    machine = running(document)
    machine.plexes["blkrecov-lab-v-plex"].letters[1] = "D"
    noted = take_note(document, machine.observe(document), unclean=False)
    assert noted.lun("v").lost == {1}
    assert noted.lun("v").members[0] == document.lun("v").members[0]


@pytest.mark.parametrize("status", [DriveStatus.FAILED, DriveStatus.OFFLINE, DriveStatus.REMOVED])
def test_a_member_on_a_drive_that_is_not_online_is_lost(status: DriveStatus) -> None:
    """Whatever the reason, writes go on without it."""
    document = whole()
    away = msgspec.structs.replace(document.drives[0], status=status)
    document = document.with_drive(away)
    observed = Machine.with_drives(document).observe(document)
    assert take_note(document, observed, unclean=False).lun("v").lost == {0}


def test_a_member_whose_superblock_is_gone_is_lost() -> None:
    """The others have theirs: something wrote over it, or this is another drive's contents."""
    document = whole()
    machine = running(document)
    machine.power_cut()
    member = document.lun("v").members[1]
    del machine.superblocks[machine.backings[member.drive].number, member.meta[0].start]
    assert take_note(document, machine.observe(document), unclean=False).lun("v").lost == {1}


def written(machine: Machine, lun: Lun, *words: tuple[int, int]) -> None:
    """Superblocks with these (events, failed) on the members in their order. The machine is off."""
    machine.power_cut()
    for index, (events, failed) in enumerate(words):
        place = machine.place(lun, index)
        machine.superblocks[place] = replace(machine.superblocks[place], events=events, failed=failed)


def test_a_member_that_the_freshest_superblock_calls_failed_is_lost() -> None:
    """The kernel gave it up and the machine stopped before anybody looked. The member's own superblock is from before that and
    knows nothing: it would be taken for in sync.
    """
    document = whole()
    machine = running(document)
    written(machine, document.lun("v"), (9, 0b10), (7, 0))
    assert take_note(document, machine.observe(document), unclean=False).lun("v").lost == {1}


def test_a_stale_superblock_calls_nobody_failed() -> None:
    """What it says was true once: of a member that was regenerated since, or on a leg that went on alone, and lost."""
    document = whole()
    machine = running(document)
    written(machine, document.lun("v"), (9, 0), (7, 0b01))
    assert take_note(document, machine.observe(document), unclean=False) == document


@pytest.mark.parametrize(
    ("words", "lost"),
    [(((9, 0b010), (7, 0b001), (9, 0b010)), {1}), (((7, 0b010), (9, 0b001), (9, 0b001)), {0})],
)
def test_of_two_that_call_each_other_failed_the_freshest_is_right(
    words: tuple[tuple[int, int], ...], lost: set[int]
) -> None:
    """Wherever it stands among the members."""
    document = whole(Layout.RAID5)
    machine = running(document)
    written(machine, document.lun("v"), *words)
    assert take_note(document, machine.observe(document), unclean=False).lun("v").lost == lost


def test_every_failed_bit_is_a_member() -> None:
    """Bit N is leg N; a raid6 may have lost two."""
    document = whole(Layout.RAID6)
    machine = running(document)
    written(machine, document.lun("v"), (9, 0b1010), (3, 0), (9, 0b1010), (7, 0b0010))
    assert take_note(document, machine.observe(document), unclean=False).lun("v").lost == {1, 3}


def test_the_failed_word_of_a_drive_that_is_away_is_not_waited_for() -> None:
    """The freshest of those that can be read counts; the member that cannot be is lost for being away."""
    document = whole(Layout.RAID6)
    machine = running(document)
    written(machine, document.lun("v"), (9, 0b1000), (9, 0b1000), (8, 0b0100), (7, 0))
    del machine.backings[document.lun("v").members[0].drive]
    assert take_note(document, machine.observe(document), unclean=False).lun("v").lost == {0, 3}


def test_a_failed_word_says_nothing_of_a_substitute() -> None:
    """It is about the member that had the place before; the substitute is to be regenerated anyway."""
    document, _ = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    document = substituted(machine, document)
    machine.power_cut()
    assert machine.superblocks[machine.place(document.lun("v"), 1)].failed == 0b01
    noted = take_note(document, machine.observe(document), unclean=False)
    assert [member.state for member in noted.lun("v").members] == [REBUILDING, MemberState.IN_SYNC]


def test_a_leg_given_up_just_before_a_power_cut_is_lost_afterwards() -> None:
    """From end to end: the drive failed and md wrote it down, and nothing was stored by us."""
    document = whole()
    machine = running(document)
    machine.run(provision.fail_drive(document, "d0").document)
    machine.power_cut()
    noted = take_note(document, machine.observe(document), unclean=True)
    assert noted.lun("v").lost == {0}
    assert noted.lun("v").suspect


@pytest.mark.parametrize("layout", [layout for layout in FAULT_TOLERANT if layout is not Layout.RAID1])
def test_superblocks_that_call_too_many_failed_lose_no_members(layout: Layout) -> None:
    """The LUN is not used with what is left, so nothing more is missed: what there is stays for a person to judge."""
    document = whole(layout)
    machine = running(document)
    lun = document.lun("v")
    last = len(lun.members) - 1
    written(machine, lun, *[(7, 0)] * last, (9, (1 << last) - 1))
    assert take_note(document, machine.observe(document), unclean=False) == document


def test_one_leg_of_a_mirror_is_enough_to_call_the_others_failed() -> None:
    """It went on alone, and holds all there is."""
    document, _ = with_lun(drives(3), Layout.RAID1, members=3)
    machine = running(document)
    written(machine, document.lun("v"), (7, 0), (9, 0b101), (8, 0b001))
    assert take_note(document, machine.observe(document), unclean=False).lun("v").lost == {0, 2}


def untrusted(machine: Machine, document: Document, how: str) -> None:
    """d0 is away; the member on d1 has no superblock, or the others' call it failed."""
    lun = document.lun("v")
    written(machine, lun, (9, 0b010), (7, 0), (9, 0b010))
    del machine.backings[lun.members[0].drive]
    if how == "blank":
        del machine.superblocks[machine.place(lun, 1)]


@pytest.mark.parametrize("how", ["blank", "given up"])
def test_a_lun_is_not_loaded_with_members_that_its_superblocks_disown(how: str) -> None:
    """Only one of three is good: too few, whether the others are away, wiped or stale. Its node says EIO until they are back."""
    document, _ = with_lun(drives(3), Layout.RAID5)
    machine = running(document)
    untrusted(machine, document, how)
    noted = take_note(document, machine.observe(document), unclean=False)
    assert noted.lun("v").lost == frozenset()
    assert "blkrecov-lab-v-plex" not in loads(machine.plan(noted))


def test_a_mirror_that_held_data_is_not_begun_anew_on_a_blank_leg() -> None:
    """The other one is away. Without any superblock the LUN would be a new one, were it not known to have been in sync once."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    machine = running(document)
    document = take_note(document, machine.observe(document), unclean=False)
    assert document.lun("v").initialised
    machine.power_cut()
    del machine.superblocks[machine.place(lun, 0)]
    del machine.backings[lun.members[1].drive]
    noted = take_note(document, machine.observe(document), unclean=False)
    assert noted.lun("v").lost == frozenset()
    assert "blkrecov-lab-v-plex" not in loads(machine.plan(noted))


def test_a_lun_without_any_superblock_is_new() -> None:
    """Nothing was ever written to it."""
    document = whole()
    observed = Machine.with_drives(document).observe(document)
    assert take_note(document, observed, unclean=False) == document


def test_a_substitute_without_superblock_is_not_lost() -> None:
    """It is to be regenerated anyway."""
    document, _ = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    machine = running(document)
    document = substituted(machine, document)
    machine.power_cut()
    assert take_note(document, machine.observe(document), unclean=False).lun("v").lost == frozenset()


@pytest.mark.parametrize("layout", [Layout.LINEAR, Layout.RAID0])
def test_a_lun_without_redundancy_has_no_lost_members(layout: Layout) -> None:
    """Nothing goes on without them, so none misses a write: when the drive is back, so is the LUN."""
    document = whole(layout)
    assert take_note(document, Observed(), unclean=True) == document


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_lun_that_cannot_be_used_loses_no_members(layout: Layout) -> None:
    """Too few drives are attached yet for any write to be missed. If the members away were taken for stale now, the LUN would
    stay failed when its drives are back, all of them whole.
    """
    on = tuple(f"d{number}" for number in range(layout.minimum))
    document, lun = with_lun(drives(6), layout, on=on)
    machine = running(document)
    machine.power_cut()
    for name in on:
        del machine.backings[document.drive(name).uuid]
    noted = take_note(document, machine.observe(document), unclean=False)
    assert noted.lun("v").lost == lun.lost == frozenset()


def test_an_initial_synchronisation_ends_once() -> None:
    """From then on a rebuilt member is good without a repair."""
    document = whole()
    machine = running(document)
    assert take_note(document, machine.observe(document), unclean=False).lun("v").initialised
    machine.plexes["blkrecov-lab-v-plex"].letters[1] = "a"
    assert not take_note(document, machine.observe(document), unclean=False).lun("v").initialised


def test_a_suspended_plex_teaches_nothing() -> None:
    """Its status words are the same whatever the truth is."""
    document = whole()
    machine = running(document)
    machine.plexes["blkrecov-lab-v-plex"].letters[1] = "D"
    machine.change("blkrecov-lab-v-plex", suspended=True)
    assert take_note(document, machine.observe(document), unclean=False) == document


def test_noting_twice_notes_nothing_more() -> None:
    """The document is written when it has changed, and only then."""
    document = array(*(drive(number) for number in range(4)))
    document, lun = with_lun(document, Layout.RAID6)
    machine = running(document)
    machine.power_cut()
    del machine.backings[lun.members[0].drive]
    once: Document = take_note(document, machine.observe(document), unclean=True)
    again: Lun = take_note(once, machine.observe(once), unclean=True).lun("v")
    assert again == once.lun("v")
