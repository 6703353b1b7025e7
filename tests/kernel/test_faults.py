"""Faults at the drive port on a real kernel: each does what it says, the array notices what it can, a reconnect ends it."""

import random
import time
from pathlib import Path

import pytest

from blkrecov import faults
from blkrecov.array import Array
from blkrecov.converge import converge
from blkrecov.dm import names
from blkrecov.errors import AnotherCallInProgress, InvalidOperation
from blkrecov.model import DriveStatus, Fault, FaultKind, Task, TaskState
from blkrecov.stack import BAD_BLOCK
from blkrecov.units import MIB, SECTOR, Bytes
from tests.kernel.lab import (
    Lab,
    blkrecov,
    checksum,
    disagreements,
    fill,
    in_sync,
    lun,
    member_bytes,
    read,
    scrub,
    states,
    write,
)

SIZE = 8 * MIB
DRIVE = Bytes(40 * MIB)
# md clears the bitmap's bits in two passes of its daemon, five seconds apart: until then all that was ever written counts.
BITMAP_S = 11.0
FAULTS = (
    Fault(FaultKind.AFTER, 3600),
    Fault(FaultKind.ERROR_RATE, 0.5),
    Fault(FaultKind.SLOW, 20),
    Fault(FaultKind.DROP_WRITES),
)


def reconnect(array: Array, drive: str) -> Task:
    proposal, task, found = array.propose_reconnect(drive)
    ended = array.wait(array.reconnect(proposal, task, found).id, timeout_s=60)
    assert ended.state is TaskState.COMPLETED, ended
    return ended


def number_of(array: Array, uuid: str) -> str:
    return array.observe().devices[uuid].number


def port(array: Array, drive: str) -> str:
    number = number_of(array, names.dm_uuid(array.document.drive(drive).uuid, "drive"))
    return f"/dev/dm-{number.partition(':')[2]}"


def kind(array: Array, drive: str) -> str:
    """What a drive's port is made of."""
    return array.observe().devices[names.dm_uuid(array.document.drive(drive).uuid, "drive")].table[0].kind


def count(node: str, field: int) -> int:
    """One of a device's counters (Documentation/block/stat.rst, from 0)."""
    return int(Path(f"/sys/block/{Path(node).name}/stat").read_text().split()[field])


def readable(node: str, block: int) -> bool:
    try:
        read(node, block * BAD_BLOCK, BAD_BLOCK)
    except OSError:
        return False
    return True


def bad_blocks(array: Array, name: str, index: int) -> list[int]:
    """Blocks of a LUN's member that its drive cannot read, counted from the drive's start."""
    member = array.document.lun(name).members[index]
    (extent,) = member.data
    first, last = extent.start * SECTOR // BAD_BLOCK, extent.end * SECTOR // BAD_BLOCK
    return [block for block in faults.unreadable(array.document.drive_of(member.drive)) if first <= block < last]


def test_a_drive_that_fails_after_a_while_returns_by_its_bitmap(lab: Lab) -> None:
    lab.create(2, size=DRIVE)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", SIZE, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        fill(disk, SIZE, seed=1)
        time.sleep(BITMAP_S)
        array.inject_fault("d1", Fault(FaultKind.AFTER, 2))
        begun = time.monotonic()
        node = port(array, "d1")
        while readable(node, 1024):
            assert time.monotonic() < begun + 10
            time.sleep(0.1)
        assert time.monotonic() > begun + 1
        # Nobody has met it so far.
        assert states(array, "vol") == ["in_sync", "in_sync"]
        fill(disk, MIB, seed=2, offset=4 * MIB)
        digest = checksum(disk)
        assert states(array, "vol") == ["in_sync", "failed"]
        assert array.document.drive("d1").status is DriveStatus.ONLINE
        leg = names.dm_uuid(array.document.lun("vol").members[1].uuid, "rimage")
        before = count(f"/dev/dm-{number_of(array, leg).partition(':')[2]}", 6)
        reconnect(array, "d1")
        again = count(f"/dev/dm-{number_of(array, leg).partition(':')[2]}", 6) - before
        assert 0 < again * SECTOR <= 3 * MIB
        assert kind(array, "d1") == "linear"
        assert array.document.drive("d1").fault is None
        assert states(array, "vol") == ["in_sync", "in_sync"]
        assert disagreements(array, "vol") == []
        assert checksum(disk) == digest
        told = [event.kind.value for event in array.events.read()]
        assert [word for word in told if word.startswith("fault_")] == ["fault_injected", "fault_removed"]


def test_a_mirror_writes_what_it_cannot_read_anew(lab: Lab) -> None:
    """A check reads everything, and md writes what one leg cannot give from the other: no member is lost."""
    lab.create(2, size=DRIVE)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", SIZE, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        digest = fill(disk, SIZE, seed=1)
        array.inject_fault("d1", Fault(FaultKind.ERROR_RATE, 0.5))
        node, (extent,) = port(array, "d1"), array.document.lun("vol").members[1].data
        first = extent.start * SECTOR // BAD_BLOCK
        bad = [block for block in range(first, first + SIZE // BAD_BLOCK) if not readable(node, block)]
        assert bad == [block for block in bad_blocks(array, "vol", 1) if block < first + SIZE // BAD_BLOCK]
        assert 5 <= len(bad) <= 15
        assert checksum(disk) == digest
        assert scrub(array, "vol").state is TaskState.COMPLETED
        assert all(readable(node, block) for block in bad)
        assert states(array, "vol") == ["in_sync", "in_sync"]
        assert kind(array, "d1") == "dust"
        reconnect(array, "d1")
        assert kind(array, "d1") == "linear"
        assert disagreements(array, "vol") == []
        assert checksum(disk) == digest


def test_a_member_whose_superblock_cannot_be_read_is_lost_at_the_next_start(lab: Lab) -> None:
    lab.create(2, size=Bytes(24 * MIB))
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", SIZE, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        digest = fill(disk, SIZE, seed=1)
        array.inject_fault("d1", Fault(FaultKind.ERROR_RATE, 100))
        assert checksum(disk) == digest
        assert states(array, "vol") == ["in_sync", "in_sync"]
    lab.stop()
    with lab.opened() as array:
        assert states(array, "vol") == ["in_sync", "failed"]
        assert checksum(disk) == digest
        reconnect(array, "d1")
        assert states(array, "vol") == ["in_sync", "in_sync"]
        assert disagreements(array, "vol") == []
        assert checksum(disk) == digest


def test_a_linear_lun_cannot_read_bad_blocks_until_they_are_written(lab: Lab) -> None:
    """The port is made anew after a power cut, and with it the blocks are unreadable again."""
    lab.create(1, size=DRIVE)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", SIZE, drives=("d0",), exported=False)
        digest = fill(disk, SIZE, seed=1)
        array.inject_fault("d0", Fault(FaultKind.ERROR_RATE, 1))
        first = array.document.lun("vol").members[0].data[0].start * SECTOR // BAD_BLOCK
        bad = [block - first for block in bad_blocks(array, "vol", 0)]
        assert [block for block in range(SIZE // BAD_BLOCK) if not readable(disk, block)] == bad
        assert bad
        contents = random.Random(1).randbytes(MIB)
        within = [block for block in bad if (block + 1) * BAD_BLOCK <= MIB]
        for block in within:
            write(disk, block * BAD_BLOCK, contents[block * BAD_BLOCK : (block + 1) * BAD_BLOCK])
        assert all(readable(disk, block) for block in within)
        assert [block for block in bad if not readable(disk, block)] == bad[len(within) :]
    lab.power_cut()
    with lab.opened() as array:
        assert [block for block in bad if not readable(disk, block)] == bad
        assert reconnect(array, "d0").message == "vol is online"
        assert checksum(disk) == digest


def test_each_io_of_a_slow_drive_takes_longer(lab: Lab) -> None:
    lab.create(1, size=DRIVE)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", SIZE, drives=("d0",), exported=False)
        digest = fill(disk, SIZE, seed=1)

        def least() -> float:
            times = []
            for block in range(5):
                begun = time.monotonic()
                assert readable(disk, block)
                times.append(time.monotonic() - begun)
            return min(times)

        array.inject_fault("d0", Fault(FaultKind.SLOW, 100))
        node = port(array, "d0")
        ticks, reads = count(node, 3), count(node, 0)
        assert least() >= 0.09  # The timer of 10 ms may have run for a while.
        # Whatever udev reads of a LUN that was written counts as well.
        assert count(node, 0) - reads >= 5
        assert count(node, 3) - ticks >= 500
        begun = time.monotonic()
        write(disk, 0, random.Random(1).randbytes(BAD_BLOCK))
        assert time.monotonic() - begun >= 0.2  # The write, and the flush after it.
        reconnect(array, "d0")
        assert least() < 0.1
        assert checksum(disk) == digest


def test_lost_writes_are_regenerated_and_never_read_afterwards(lab: Lab) -> None:
    """md takes what a drive acknowledges for written: the members differ, and nothing tells, until the reconnect."""
    lab.create(4, size=DRIVE)
    with lab.opened() as array:
        disks = {
            "mirror": lun(array, "mirror", "raid1", SIZE, drives=("d0", "d1"), exported=False),
            "parity": lun(array, "parity", "raid5", SIZE, drives=("d0", "d1", "d2"), exported=False),
            "plain": lun(array, "plain", "linear", MIB, drives=("d1",), exported=False),
        }
        for name, disk in disks.items():
            in_sync(array, name)
            fill(disk, MIB, seed=1)
        members = {name: array.document.lun(name).members[1].uuid for name in ("mirror", "parity")}
        held = member_bytes(array, array.document.lun("mirror").members[1])
        array.inject_fault("d1", Fault(FaultKind.DROP_WRITES))
        node = port(array, "d1")
        before = count(node, 6)
        wanted = {name: fill(disk, MIB, seed=2) for name, disk in disks.items()}
        assert count(node, 6) > before
        assert member_bytes(array, array.document.lun("mirror").members[1]) == held
        for name in members:
            assert set(states(array, name)) == {"in_sync"}
            assert disagreements(array, name)

        proposal, task, found = array.propose_reconnect("d1")
        lines = [line for step in array.plan(proposal) for line in step.lines()]
        out = next(index for index, line in enumerate(lines) if "mirror-rimage_1" in line)
        assert lines[out + 1].endswith("error")
        sound = [index for index, line in enumerate(lines) if "drive-d1, load this table" in line]
        assert [out, *sound] == sorted([out, *sound])
        assert len(sound) == 1
        assert sound[0] < next(index for index, line in enumerate(lines) if line.startswith("zero"))
        ended = array.wait(array.reconnect(proposal, task, found).id, timeout_s=60)
        assert ended.state is TaskState.COMPLETED, ended
        assert "plain is online, and may have lost what was written to it" in ended.message
        assert "mirror is regenerated as a whole: drive d1 lost writes, and nobody knows which" in ended.message
        assert kind(array, "d1") == "linear"
        for name, uuid in members.items():
            assert array.document.lun(name).members[1].uuid != uuid
            assert set(states(array, name)) == {"in_sync"}
            assert disagreements(array, name) == []
            assert checksum(disks[name], MIB) == wanted[name]
        assert checksum(disks["plain"], MIB) != wanted["plain"]


def test_a_reconnect_that_is_cut_short_leaves_the_members_out(lab: Lab) -> None:
    """Between its two versions of the document: the fault is there still, and nothing is read from the drive."""
    lab.create(2, size=DRIVE)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", SIZE, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        fill(disk, SIZE, seed=1)
        array.inject_fault("d1", Fault(FaultKind.DROP_WRITES))
        digest = fill(disk, SIZE, seed=2)
        proposal, _, _ = array.propose_reconnect("d1")
        assert proposal.first is not None
        array.carry_out(proposal.first)
        assert states(array, "vol") == ["in_sync", "failed"]
        assert checksum(disk) == digest
    lab.power_cut()
    with lab.opened() as array:
        assert kind(array, "d1") == "flakey"
        assert states(array, "vol") == ["in_sync", "failed"]
        assert checksum(disk) == digest
        reconnect(array, "d1")
        assert states(array, "vol") == ["in_sync", "in_sync"]
        assert disagreements(array, "vol") == []
        assert checksum(disk) == digest


def test_the_last_copy_stays_though_it_may_have_lost_writes(lab: Lab) -> None:
    lab.create(2, size=DRIVE)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", SIZE, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        digest = fill(disk, SIZE, seed=1)
        array.inject_fault("d1", Fault(FaultKind.DROP_WRITES))
        array.fail_drive("d0")
        fill(disk, MIB, seed=2)
        assert reconnect(array, "d1").message == "vol may have lost what was written to it: drive d1 lost writes"
        assert states(array, "vol") == ["failed", "in_sync"]
        assert checksum(disk) == digest


def test_a_drive_that_lost_writes_before_it_failed_is_not_believed(lab: Lab) -> None:
    """Its superblock proves that it missed something, and the bitmap tells only what came after that."""
    lab.create(2, size=DRIVE)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", SIZE, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        fill(disk, SIZE, seed=1)
        array.inject_fault("d1", Fault(FaultKind.DROP_WRITES))
        fill(disk, SIZE, seed=2)
        array.fail_drive("d1")
        fill(disk, MIB, seed=3, offset=MIB)
        digest = checksum(disk)
        assert "vol is regenerated as a whole" in reconnect(array, "d1").message
        assert array.document.drive("d1").fault is None
        assert disagreements(array, "vol") == []
        assert checksum(disk) == digest


def test_faults_outlive_the_array_and_are_put_in_once(lab: Lab) -> None:
    """What is loaded is what is wanted, however the kernel prints it: a second look finds nothing to do."""
    lab.create(len(FAULTS), size=DRIVE)
    with lab.opened() as array:
        for number, fault in enumerate(FAULTS):
            array.inject_fault(f"d{number}", fault)
        assert converge(array.document, array.observe()) == ()
    lab.stop()
    with lab.opened() as array:
        assert tuple(drive.fault for drive in array.document.drives) == FAULTS
        assert converge(array.document, array.observe()) == ()
        assert [kind(array, f"d{number}") for number in range(4)] == ["flakey", "dust", "delay", "flakey"]
        block = faults.unreadable(array.document.drive("d1"))[0]
        assert not readable(port(array, "d1"), block)
        assert readable(port(array, "d1"), block + 1)
        for number in range(len(FAULTS)):
            reconnect(array, f"d{number}")
        assert [kind(array, f"d{number}") for number in range(4)] == ["linear"] * 4


def test_lost_writes_stay_while_a_task_works_on_them(lab: Lab) -> None:
    lab.create(3, size=DRIVE)
    with lab.opened() as array:
        lun(array, "vol", "raid1", SIZE, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        array.inject_fault("d1", Fault(FaultKind.DROP_WRITES))
        proposal, task = array.propose_scrub("vol", repair=False)
        assert array.start(proposal, task).state is TaskState.IN_PROGRESS
        with pytest.raises(AnotherCallInProgress):
            array.propose_reconnect("d1")
        array.wait(task.id, timeout_s=60)


def test_the_command_line_takes_one_fault_and_tells_it(lab: Lab) -> None:
    lab.create(2, size=DRIVE)
    sequence = lab.sequence()
    assert blkrecov(lab, "drive", "fail", "d0", "--after", "3", "--slow", "5").status == 2
    for option, number in (("--error-rate", "0"), ("--error-rate", "101"), ("--error-rate", "nan"), ("--slow", "0")):
        assert blkrecov(lab, "--json", "drive", "fail", "d0", option, number).error["code"] == "E_INVALIDARG"
    planned = blkrecov(lab, "drive", "fail", "d0", "--error-rate", "1", "--plan")
    assert planned.status == 0
    assert "dust" in planned.out
    assert "unreadable" in planned.out or "fail reads of" in planned.out
    assert lab.sequence() == sequence
    failed = blkrecov(lab, "--json", "drive", "fail", "d0", "--after", "3600")
    assert (failed.status, failed.json["fault"]) == (0, {"kind": "after", "value": 3600})
    assert failed.json["status"] == "online"
    assert blkrecov(lab, "drive", "fail", "d0", "--slow", "5").status == 1
    assert "fails after 3600 s" in blkrecov(lab, "drive", "list").out
    assert blkrecov(lab, "drive", "reconnect", "d0").status == 0
    assert blkrecov(lab, "--json", "drive", "show", "d0").json["fault"] is None
    assert blkrecov(lab, "drive", "fail", "d0").status == 0
    with lab.opened() as array, pytest.raises(InvalidOperation):
        array.inject_fault("d0", Fault(FaultKind.SLOW, 5))
