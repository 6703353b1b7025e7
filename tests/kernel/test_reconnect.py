"""Drives that come back on a real kernel: contents, what was rewritten, what was refused."""

import dataclasses
import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from blkrecov import stack
from blkrecov.array import Array
from blkrecov.converge import converge
from blkrecov.dm import names
from blkrecov.dm.control import Control
from blkrecov.dm.table import DelayTable, Segment
from blkrecov.drives import loop, raw
from blkrecov.drives.label import NoLabel, plan_layout
from blkrecov.drives.store import DriveIoError, DriveStore, IoCounter
from blkrecov.engine import create_array
from blkrecov.errors import (
    BlkrecovError,
    DeviceInUse,
    InvalidDisk,
    MetadataCorrupt,
    ObjectNotFound,
    PathNotFound,
)
from blkrecov.model import Document, Drive, Layout, Task, TaskState
from blkrecov.proposal import Proposal
from blkrecov.session import RestoreSession
from blkrecov.shadows import ShadowRequest
from blkrecov.units import GIB, KIB, MIB, Bytes, Sectors, sectors
from tests.kernel.lab import (
    Lab,
    Writer,
    blkrecov,
    checksum,
    copy,
    disagreements,
    disk_of,
    fill,
    filled,
    flip,
    in_sync,
    lun,
    our_devices,
    recover,
    regions_of,
    show,
    states,
    tables,
)

SIZE = 24 * MIB
MEMBERS = {"raid1": 2, "raid4": 3, "raid5": 3, "raid6": 4, "raid10": 4}
# md clears the bitmap's bits in two passes of its daemon, five seconds apart (drivers/md/md-bitmap.c): until then all that was
# ever written counts as changed.
BITMAP_S = 11.0


def reconnect(array: Array, drive: str, path: str | None = None) -> Task:
    proposal, task, found = array.propose_reconnect(drive, path)
    return array.wait(array.reconnect(proposal, task, found).id, timeout_s=60)


def begun(array: Array, drive: str) -> Task:
    """A reconnect whose recoveries are under way."""
    task = array.reconnect(*array.propose_reconnect(drive))
    assert task.state is TaskState.IN_PROGRESS, task
    assert [array.document.task(number).state for number in task.children] == [TaskState.IN_PROGRESS] * len(
        task.children
    )
    return task


def ended(array: Array, task: Task, state: TaskState = TaskState.COMPLETED) -> Task:
    task = array.wait(task.id, timeout_s=60)
    assert task.state is state, task
    return task


def slowed(array: Array, rate: int) -> None:
    """What the kernel synchronises from now on keeps to so many bytes per second and member; 0: to no limit."""
    array.carry_out(Proposal(document=msgspec.structs.replace(array.document, rate_max=rate), why="for the test"))


def failed(array: Array, layout: str, *drives: str) -> str:
    """LUN vol with random contents, all of which d1 has missed: its disk."""
    disk = lun(array, "vol", layout, SIZE, members=MEMBERS[layout], drives=drives, exported=False)
    in_sync(array, "vol")
    array.fail_drive("d1")
    fill(disk, SIZE, seed=2)
    return disk


def whole(array: Array, digest: str, name: str = "vol") -> None:
    """All members are in sync and agree, and the contents are right."""
    assert set(states(array, name)) == {"in_sync"}
    assert show(array, name)["health"] == "healthy"
    assert disagreements(array, name) == []
    assert checksum(disk_of(array, name)) == digest


def written(array: Array, name: str, index: int) -> int:
    """What a leg's device was written to, by the kernel's own count."""
    number = array.observe().devices[names.dm_uuid(array.document.lun(name).members[index].uuid, "rimage")].number
    return int(Path(f"/sys/dev/block/{number}/stat").read_text().split()[6]) * 512


def test_members_regenerate_what_they_missed_and_no_more(lab: Lab) -> None:
    """Of every layout with redundancy, all on one drive: one call, and what it says is what the kernel counted."""
    lab.create(4, size=Bytes(100 * MIB))
    with lab.opened() as array:
        disks = {}
        for layout, count in MEMBERS.items():
            drives = ("d0", "d1", "d2", "d3")[:count]
            disks[layout] = lun(array, layout, layout, 12 * MIB, drives=drives, exported=False)
        for layout, disk in disks.items():
            in_sync(array, layout)
            fill(disk, 12 * MIB, seed=1)
        time.sleep(BITMAP_S)
        array.fail_drive("d1")
        for disk in disks.values():
            fill(disk, 2 * MIB, seed=2, offset=4 * MIB)
        digests = {layout: checksum(disk) for layout, disk in disks.items()}
        before = {layout: written(array, layout, 1) for layout in disks}
        task = reconnect(array, "d1")
        assert task.state is TaskState.COMPLETED, task
        again = {layout: written(array, layout, 1) - before[layout] for layout in disks}
        assert all(0 < each <= 3 * MIB for each in again.values()), again
        assert task.bytes_kernel == sum(again.values())
        for layout, digest in digests.items():
            whole(array, digest, layout)


def test_one_call_brings_back_all_that_lives_on_a_drive(lab: Lab) -> None:
    """Three LUNs come, each as its layout has it; a fourth cannot, and fails nothing."""
    lab.create(5)
    with lab.opened() as array:
        disks = {
            "mirror": lun(array, "mirror", "raid1", 8 * MIB, drives=("d0", "d1"), exported=False),
            "parity": lun(array, "parity", "raid5", 8 * MIB, drives=("d1", "d2", "d3"), exported=False),
            "plain": lun(array, "plain", "linear", 4 * MIB, drives=("d1",), exported=False),
            "striped": lun(array, "striped", "raid0", 4 * MIB, drives=("d1", "d4"), exported=False),
        }
        for name in ("mirror", "parity"):
            in_sync(array, name)
        for seed, disk in enumerate(disks.values()):
            fill(disk, 4 * MIB, seed=seed)
        array.fail_drive("d4")
        array.fail_drive("d1")
        assert [show(array, name)["status"] for name in disks] == ["online", "online", "failed", "failed"]
        for name in ("mirror", "parity"):
            fill(disks[name], MIB, seed=9, offset=2 * MIB)
        digests = {name: checksum(disks[name]) for name in ("mirror", "parity")}
        task = reconnect(array, "d1")
        assert task.state is TaskState.COMPLETED
        assert "striped stays failed: drive d4 is away" in task.message
        assert [show(array, name)["status"] for name in disks] == ["online", "online", "online", "failed"]
        assert [show(array, name)["health"] for name in ("mirror", "parity", "plain")] == ["healthy"] * 3
        assert {name: checksum(disks[name]) for name in digests} == digests
        assert checksum(disks["plain"]) == filled(4 * MIB, seed=2)
        reconnect(array, "d4")
        assert show(array, "striped")["status"] == "online"
        assert checksum(disks["striped"]) == filled(4 * MIB, seed=3)
        assert [disagreements(array, name) for name in ("mirror", "parity")] == [[], []]


def test_a_member_that_was_replaced_meanwhile_is_not_touched(lab: Lab) -> None:
    lab.create(4)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", SIZE, drives=("d0", "d1", "d2"), exported=False)
        in_sync(array, "vol")
        fill(disk, SIZE, seed=1)
        array.fail_drive("d1")
        recover(array, "vol", "d3")
        digest = checksum(disk)
        task = reconnect(array, "d1")
        assert task.state is TaskState.COMPLETED
        assert array.document.drive("d1").online
        assert not regions_of(array, "d1")
        assert checksum(disk) == digest


@pytest.mark.parametrize("how", ["power cut", "stop"])
def test_a_drive_returns_after_a_restart_without_it(lab: Lab, how: str) -> None:
    """It was away while the array was started, and written to, without it; its file has moved meanwhile."""
    lab.create(3)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", SIZE, exported=False)
        in_sync(array, "vol")
        fill(disk, SIZE, seed=1)
        time.sleep(BITMAP_S)
        array.fail_drive("d1")
    lab.power_cut() if how == "power cut" else lab.stop()
    hidden = lab.directory / "elsewhere"
    lab.path("d1").rename(hidden)
    with lab.opened() as array:
        disk = disk_of(array, "vol")
        fill(disk, MIB, seed=2, offset=4 * MIB)
        digest = checksum(disk)
        task = reconnect(array, "d1")
        assert task.state is TaskState.COMPLETED
        assert states(array, "vol") == ["in_sync"] * 3
        assert disagreements(array, "vol") == []
        assert checksum(disk) == digest
        assert array.document.drive("d1").path == str(hidden)


def test_what_is_not_the_drive_is_refused(lab: Lab) -> None:
    """Each with its own error, and nothing is changed."""
    lab.create(3)
    with lab.opened() as array:
        lun(array, "vol", "raid1", 8 * MIB, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        clone = lab.directory / "clone"
        copy(lab.path("d1"), clone)
        sequence = array.document.sequence
        with pytest.raises(DeviceInUse, match="a copy of it"):
            array.propose_reconnect("d1", str(clone))
        array.fail_drive("d1")
        with pytest.raises(InvalidDisk, match="is drive 'd2'"):
            array.propose_reconnect("d1", str(lab.path("d2")))
        with pytest.raises(ObjectNotFound):
            array.propose_reconnect("d9")
        with pytest.raises(PathNotFound):
            array.propose_reconnect("d1", str(lab.directory / "nowhere"))
        empty = lab.directory / "empty"
        empty.write_bytes(bytes(40 * MIB))
        with pytest.raises(BlkrecovError):
            array.propose_reconnect("d1", str(empty))
        assert array.document.sequence == sequence + 1


def test_a_healthy_drive_is_no_failure(lab: Lab) -> None:
    lab.create(2)
    with lab.opened() as array:
        lun(array, "vol", "raid1", 8 * MIB, exported=False)
        in_sync(array, "vol")
        assert reconnect(array, "d1").state is TaskState.COMPLETED


def test_a_member_without_proof_is_regenerated_as_a_whole(lab: Lab) -> None:
    """Somebody has wiped its superblock: it is not believed, and none of it is."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", 8 * MIB, exported=False)
        in_sync(array, "vol")
        fill(disk, 8 * MIB, seed=1)
        array.fail_drive("d1")
        member = array.document.lun("vol").members[1]
        with lab.path("d1").open("r+b") as file:
            file.seek(member.meta[0].start * 512)
            file.write(bytes(4096))
        task = reconnect(array, "d1")
        assert "as a whole" in task.message
        assert states(array, "vol") == ["in_sync"] * 2
        assert disagreements(array, "vol") == []


# Interrupted.


CHANGING = ("DEV_CREATE", "TABLE_LOAD", "DEV_SUSPEND", "DEV_REMOVE", "DEV_RENAME", "TABLE_CLEAR")


def killed(lab: Lab, at: int, work: Callable[[Array], object]) -> str:
    """A process that opens the array, and dies right before its effect of this number: which. Nothing if it had fewer."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with suppress(BaseException):
            _dying(lab, at, work, writing)
            os._exit(0)
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as told:
        where = told.read()
    _, status = os.waitpid(child, 0)
    assert status == (signal.SIGKILL if where else 0)
    return where


def _dying(lab: Lab, at: int, work: Callable[[Array], object], news: int) -> None:
    numbers = count(1)

    def before(owner: Any, name: str, *only: str) -> None:
        original = getattr(owner, name)

        def counted(*words: Any, **more: Any) -> Any:
            if (not only or words[1] in only) and next(numbers) == at:
                os.write(news, f"{name} {' '.join(word for word in words if isinstance(word, str))}".encode())
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*words, **more)

        setattr(owner, name, counted)

    with lab.opened() as array:
        before(Control, "_ioctl", *CHANGING)
        before(DriveStore, "write_slot")
        before(raw, "zero")
        before(loop, "attach")
        work(array)


def forget_tables() -> None:
    """Tables that were loaded and not resumed: what takes devices away resumes them, and md refuses that without its drives."""
    with Control() as control:
        for name in our_devices():
            if control.info(name).inactive:
                control.clear(name)


def wiped(lab: Lab, array: Array) -> None:
    """The superblock of vol's member on d1 is gone."""
    with lab.path("d1").open("r+b") as file:
        file.seek(array.document.lun("vol").members[1].meta[0].start * 512)
        file.write(bytes(4096))


# Each of the four takes some of the effects, beginning with another one; with STEP 1 they take all, which takes minutes.
STEP = 5


@pytest.mark.long
@pytest.mark.parametrize(
    ("proof", "then", "first"),
    [
        (True, "the process", 1),
        (True, "the machine", 2),
        (False, "the process", 3),
        (False, "the machine", 4),
    ],
)
def test_a_reconnect_that_dies_anywhere_leaves_nothing_stale(lab: Lab, proof: bool, then: str, first: int) -> None:
    """Before an effect, and whether or not the machine went with the process: the contents are right at once, the member is
    regenerated, or lost still and can be brought back.
    """
    lab.create(3)
    with lab.opened() as array:
        lun(array, "vol", "raid5", 4 * MIB, exported=False)
        in_sync(array, "vol")
    where = []
    for at in count(first, STEP):
        with lab.opened() as array:
            disk = disk_of(array, "vol")
            fill(disk, 4 * MIB, seed=at)
            array.fail_drive("d1")
            fill(disk, MIB, seed=1000 + at, offset=MIB)
            digest = checksum(disk)
            if not proof:
                wiped(lab, array)
        point = killed(lab, at, lambda array: reconnect(array, "d1"))
        where.append(point)
        if then == "the machine":
            forget_tables()
            lab.power_cut()
        with lab.opened() as array:
            assert checksum(disk_of(array, "vol")) == digest, f"at {at}: {point}"
            for task in array.document.tasks:
                if not task.state.ended:
                    assert array.wait(task.id, timeout_s=60).state is TaskState.COMPLETED, f"at {at}: {point}"
            if "failed" in states(array, "vol") or not array.document.drive("d1").online:
                assert reconnect(array, "d1").state is TaskState.COMPLETED, f"at {at}: {point}"
            assert states(array, "vol") == ["in_sync"] * 3, f"at {at}: {point}"
            assert disagreements(array, "vol") == [], f"at {at}: {point}"
            assert checksum(disk_of(array, "vol")) == digest, f"at {at}: {point}"
            assert array.trouble == {}
        if not point:
            break
    assert len(where) > 1
    print(f"a reconnect dies at {len(where) - 1} points ({'proven' if proof else 'not proven'}, with {then})")


@pytest.mark.parametrize("what", ["zero", "store"])
def test_a_reconnect_that_is_refused_leaves_everything_as_it_was(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The drive fails again at the first thing that is asked of it, or the configuration cannot be written."""
    lab.create(3)
    with lab.opened() as array:
        digest = checksum(failed(array, "raid5"))
        wiped(lab, array)
        array.stop()
    with lab.opened() as array:
        loaded, attached = tables(), loop.attached()

        def refused(*_words: object) -> None:
            raise DriveIoError("write", "/dev/loop0", errno.EIO)

        with monkeypatch.context() as patch:
            patch.setattr(raw if what == "zero" else array, what, refused)
            with pytest.raises(DriveIoError):
                reconnect(array, "d1")
        assert not array.document.drive("d1").online
        assert (tables(), loop.attached()) == (loaded, attached)
        assert states(array, "vol")[1] == "failed"
        assert reconnect(array, "d1").state is TaskState.COMPLETED
        whole(array, digest)


@pytest.mark.parametrize("how", ["power cut", "stop"])
@pytest.mark.parametrize("layout", ["raid10"])
def test_a_reconnect_that_has_just_begun_goes_on_after_a_restart(lab: Lab, layout: str, how: str) -> None:
    """dm-raid forgets at a load what was incremental about it, and copies the rest of the member: more, never less."""
    lab.create(MEMBERS[layout])
    with lab.opened() as array:
        digest = checksum(failed(array, layout))
        slowed(array, MIB)
        number = begun(array, "d1").id
    lab.power_cut() if how == "power cut" else lab.stop()
    with lab.opened() as array:
        assert checksum(disk_of(array, "vol")) == digest
        assert states(array, "vol")[1] == "rebuilding"
        slowed(array, 0)
        ended(array, array.document.task(number))
        whole(array, digest)


@pytest.mark.parametrize("layout", ["linear", "raid0"])
def test_a_lun_without_redundancy_that_was_used_meanwhile_is_as_it_was(lab: Lab, layout: str) -> None:
    """Reads and writes failed, and nobody was told otherwise; what was written elsewhere on it is there."""
    lab.create(3)
    with lab.opened() as array:
        disk = lun(array, "vol", layout, 8 * MIB, drives=("d1", "d0")[: Layout(layout).minimum], exported=False)
        digest = fill(disk, 8 * MIB, seed=1)
        array.fail_drive("d1")
        with pytest.raises(OSError, match="Input/output error"):
            checksum(disk)
        with pytest.raises(OSError, match="Input/output error"):
            fill(disk, 8 * MIB, seed=1)
        array.attend()
        assert show(array, "vol")["status"] == "failed"
        assert reconnect(array, "d1").state is TaskState.COMPLETED
        assert show(array, "vol")["status"] == "online"
        assert checksum(disk) == digest


# While others are at work.


@pytest.mark.parametrize("layout", ["raid1", "raid5"])
def test_a_drive_returns_under_writes(lab: Lab, layout: str) -> None:
    lab.create(MEMBERS[layout])
    with lab.opened() as array:
        disk = lun(array, "vol", layout, SIZE, members=MEMBERS[layout], exported=False)
        in_sync(array, "vol")
        with Writer(disk, SIZE) as writer:
            writer.wait_for(20)
            array.fail_drive("d1")
            writer.wait_for(20)
            slowed(array, 4 * MIB)
            task = begun(array, "d1")
            writer.wait_for(20)
            slowed(array, 0)
            ended(array, task)
            writer.wait_for(20)
        assert writer.wrong() == []
        whole(array, checksum(disk))


@pytest.mark.parametrize("layout", ["raid1", "raid6"])
def test_a_drive_that_fails_again_while_it_returns_can_return_again(lab: Lab, layout: str) -> None:
    """The task tells that, and has done what it was asked for: the drive was there."""
    lab.create(MEMBERS[layout])
    with lab.opened() as array:
        disk = failed(array, layout)
        slowed(array, MIB)
        task = begun(array, "d1")
        array.fail_drive("d1")
        assert "recovery of vol failed" in ended(array, task).message
        assert states(array, "vol")[1] == "failed"
        fill(disk, MIB, seed=3, offset=4 * MIB)
        digest = checksum(disk)
        slowed(array, 0)
        assert reconnect(array, "d1").state is TaskState.COMPLETED
        whole(array, digest)


def test_a_spare_takes_the_place_of_a_drive_that_fails_again(lab: Lab) -> None:
    """The task goes on with it, and counts what it wrote there."""
    lab.create(3, spares=1)
    with lab.opened() as array:
        disk = failed(array, "raid5", "d0", "d1", "d2")
        digest = checksum(disk)
        slowed(array, MIB)
        task = begun(array, "d1")
        array.fail_drive("d1")
        slowed(array, 0)
        task = ended(array, task)
        assert task.bytes_kernel >= array.document.lun("vol").members[1].length * 512
        assert regions_of(array, "s0") == {"vol"}
        whole(array, digest)


def test_a_second_drive_that_fails_meanwhile_ends_a_raid5_and_not_a_raid6(lab: Lab) -> None:
    """Contents are right, or not there."""
    lab.create(4)
    with lab.opened() as array:
        disks = {
            "double": lun(array, "double", "raid6", 8 * MIB, members=4, exported=False),
            "single": lun(array, "single", "raid5", 8 * MIB, members=4, exported=False),
        }
        for name, disk in disks.items():
            in_sync(array, name)
            fill(disk, 8 * MIB, seed=1)
        array.fail_drive("d1")
        for disk in disks.values():
            fill(disk, MIB, seed=2, offset=MIB)
        digest, other = checksum(disks["double"]), checksum(disks["single"])
        slowed(array, 512 * KIB)
        task = begun(array, "d1")
        array.fail_drive("d2")
        assert checksum(disks["double"]) == digest
        slowed(array, 0)
        task = ended(array, task)
        assert "recovery of single failed" in task.message
        assert show(array, "single")["status"] == "failed"
        assert states(array, "double") == ["in_sync", "in_sync", "failed", "in_sync"]
        assert checksum(disks["double"]) == digest
        task = reconnect(array, "d2")
        assert "single comes online again" in task.message
        whole(array, digest, "double")
        whole(array, other, "single")


def test_a_reconnect_can_be_cancelled(lab: Lab) -> None:
    """The drive stays, its member is held where it is, and a Recover goes on from there."""
    lab.create(3)
    with lab.opened() as array:
        digest = checksum(failed(array, "raid5"))
        slowed(array, MIB)
        task = begun(array, "d1")
    answer = blkrecov(lab, "task", "cancel", str(task.id), "--json")
    assert (answer.status, answer.json["state"]) == (0, "cancelled")
    assert blkrecov(lab, "task", "cancel", str(task.id), "--json").status != 0
    with lab.opened() as array:
        assert [array.document.task(number).state for number in task.children] == [TaskState.CANCELLED]
        assert array.document.drive("d1").online
        assert states(array, "vol")[1] == "rebuilding"
        assert checksum(disk_of(array, "vol")) == digest
        slowed(array, 0)
        assert recover(array, "vol").state is TaskState.COMPLETED
        whole(array, digest)


def test_a_lun_with_shadow_copies_returns(lab: Lab) -> None:
    """They show what they showed; the store of one is on the drive itself, and missed a write of the origin."""
    lab.create(4)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", SIZE, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        old = fill(disk, SIZE, seed=1)
        array.carry_out(array.propose_shadows([shadow("s", "d2"), shadow("t", "d1"), shadow("u", "d1", "d3")])[0])
        array.fail_drive("d1")
        fill(disk, MIB, seed=2, offset=8 * MIB)
        digest = checksum(disk)
        task = reconnect(array, "d1")
        assert task.state is TaskState.COMPLETED
        whole(array, digest)
        assert [checksum(disk_of(array, name)) for name in ("s", "u")] == [old, old]
        assert (show(array, "t")["status"], show(array, "s")["status"]) == ("failed", "online")
        kinds = [event.kind.value for event in array.events.read()]
        assert {"drive_returned", "snapshot_lost", "reconnect_started", "reconnect_done"} <= set(kinds)
    lab.power_cut()
    with lab.opened() as array:
        assert show(array, "t")["status"] == "failed"
        in_sync(array, "u")
        assert states(array, "u") == ["in_sync"] * 2
        assert disagreements(array, "u") == []
        assert checksum(disk_of(array, "u")) == old


def shadow(name: str, *drives: str, mib: int = 2) -> ShadowRequest:
    """A differential shadow copy of vol, its store on one drive or mirrored on two."""
    layout = Layout.RAID1 if len(drives) > 1 else Layout.LINEAR
    return ShadowRequest(origin="vol", name=name, size=Bytes(mib * MIB), layout=layout, drives=drives, exported=False)


def test_a_drive_of_a_lun_that_is_being_restored_returns_after_that(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drive comes back at once; the LUN is told to be busy, and regenerates when it is asked again."""
    lab.create(3)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", SIZE, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        old = fill(disk, SIZE, seed=1)
        array.carry_out(array.propose_shadows([shadow("s", "d2", mib=8)])[0])
        fill(disk, 6 * MIB, seed=2)
        array.fail_drive("d1")
        with monkeypatch.context() as patch:
            delayed(patch, "d0", 60)
            array._run(converge(array.document, array.observe()), wanted=frozenset())
            session = RestoreSession(array)
            session.begin()
            session.add("s")
            restore = session.resync()
            assert not restore.state.ended
            task = reconnect(array, "d1")
            assert f"vol is busy with task {restore.id}" in task.message
            assert array.document.drive("d1").online
            assert not array.document.task(restore.id).state.ended
        array._run(converge(array.document, array.observe()), wanted=frozenset())
        ended(array, restore)
        assert states(array, "vol") == ["in_sync", "failed"]
        assert reconnect(array, "d1").state is TaskState.COMPLETED
        whole(array, old)


def delayed(patch: pytest.MonkeyPatch, name: str, write_ms: int) -> None:
    """Give a drive a long way to its medium."""
    port = stack.port

    def slow(document: Document, drive: Drive, backing: str | None) -> stack.Device:
        device = port(document, drive, backing)
        if drive.name != name or backing is None:
            return device
        source = Segment(device=backing, offset=Sectors(0), length=sectors(drive.size))
        return dataclasses.replace(device, table=DelayTable(source=source, read_ms=0, write_ms=write_ms).render())

    patch.setattr(stack, "port", slow)


# Which drive is it?


def away(lab: Lab, name: str) -> Path:
    """A place that no search comes to."""
    hidden = lab.directory / "away/and/out"
    hidden.mkdir(parents=True, exist_ok=True)
    return hidden / name


def test_a_file_elsewhere_is_found_by_its_path_only(lab: Lab) -> None:
    lab.create(3)
    with lab.opened() as array:
        digest = checksum(failed(array, "raid5"))
        array.stop()
    hidden = Path(shutil.move(lab.path("d1"), away(lab, "d1")))
    with lab.opened() as array, pytest.raises(PathNotFound, match=r"was last at .*/d1"):
        array.propose_reconnect("d1")
    answer = blkrecov(lab, "drive", "reconnect", "d1", "--json")
    assert answer.status != 0
    assert "--path" in answer.error["remedy"]
    answer = blkrecov(lab, "drive", "reconnect", "d1", "--path", str(hidden), "--json")
    assert (answer.status, answer.json["state"], answer.json["objects"]) == (0, "completed", ["d1"])
    with lab.opened() as array:
        assert array.document.drive("d1").path == str(hidden)
        whole(array, digest)


def test_of_two_candidates_the_one_that_is_named_is_taken(lab: Lab) -> None:
    """Neither is guessed at."""
    lab.create(3)
    with lab.opened() as array:
        digest = checksum(failed(array, "raid5"))
        array.stop()
    copy(lab.path("d1"), lab.directory / "clone")
    with lab.opened() as array:
        with pytest.raises(InvalidDisk, match="both say that they are this drive") as refused:
            array.propose_reconnect("d1")
        assert "--path" in refused.value.remedy
        assert reconnect(array, "d1", str(lab.path("d1"))).state is TaskState.COMPLETED
        whole(array, digest)
    (lab.directory / "clone").unlink()


def test_a_path_is_written_down_whole(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next command may be given in another directory; and a drive that is online may have been renamed."""
    lab.create(2)
    with lab.opened() as array:
        array.fail_drive("d1")
    monkeypatch.chdir(lab.directory)
    assert blkrecov(lab, "drive", "reconnect", "d1", "--path", "d1", "--json").status == 0
    with lab.opened() as array:
        assert array.document.drive("d1").path == str(lab.path("d1"))
        lab.path("d1").rename("renamed")
        assert reconnect(array, "d1", "renamed").state is TaskState.COMPLETED
        assert array.document.drive("d1").path == str(lab.directory / "renamed")


@pytest.mark.parametrize("which", ["label", "copy"])
def test_a_damaged_label_is_mended_when_its_drive_returns(lab: Lab, which: str) -> None:
    lab.create(3)
    with lab.opened() as array:
        digest = checksum(failed(array, "raid5"))
        array.stop()
    path = lab.path("d1")
    flip(path, 100 if which == "label" else path.stat().st_size - 4096 + 100)
    with lab.opened() as array:
        assert reconnect(array, "d1").state is TaskState.COMPLETED
        whole(array, digest)
        array.stop()
    with DriveStore(str(path), IoCounter(), writable=False) as store:
        assert store.read_label().damage is None


@pytest.mark.parametrize("change", [-4 * MIB, 4 * MIB], ids=["truncated", "grown"])
@pytest.mark.parametrize("named", [False, True], ids=["searched", "named"])
def test_a_drive_of_another_size_is_refused(lab: Lab, change: int, named: bool) -> None:
    """And nothing is changed: neither the configuration nor a table nor the file."""
    lab.create(3)
    with lab.opened() as array:
        failed(array, "raid5")
        array.stop()
    path = lab.path("d1")
    size = path.stat().st_size
    os.truncate(path, size + change)
    before = checksum(str(path))
    with lab.opened() as array:
        sequence, loaded = array.document.sequence, tables()
        with pytest.raises(InvalidDisk, match=f"has {size + change} bytes"):
            array.propose_reconnect("d1", str(path) if named else None)
        assert (array.document.sequence, tables()) == (sequence, loaded)
        assert not array.document.drive("d1").online
    assert checksum(str(path)) == before


def test_a_drive_that_was_used_by_another_machine_is_refused(lab: Lab) -> None:
    """A copy of all drives was brought up there, and written to: its contents are another history."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", 8 * MIB, exported=False)
        in_sync(array, "vol")
        fill(disk, 8 * MIB, seed=1)
        array.stop()
    for name in lab.drives:
        copy(lab.path(name), away(lab, name))
    with lab.opened() as array:  # The other machine.
        fill(disk_of(array, "vol"), 8 * MIB, seed=2)
        array.stop()
    elsewhere = Path(shutil.move(lab.path("d1"), away(lab, "elsewhere")))
    for name in lab.drives:
        shutil.move(away(lab, name), lab.path(name))
    for file in lab.state.glob("*.sequence"):
        file.unlink()
    with lab.opened() as array:
        array.fail_drive("d1")
        digest = checksum(disk_of(array, "vol"))
        with pytest.raises(MetadataCorrupt, match="used elsewhere"):
            array.propose_reconnect("d1", str(elsewhere))
        assert reconnect(array, "d1", str(lab.path("d1"))).state is TaskState.COMPLETED
        whole(array, digest)


def test_another_array_s_drive_is_refused(lab: Lab) -> None:
    lab.create(2)
    other = Lab(lab.directory, "other")
    create_array(other.settings, other.name)
    with other.opened() as array:
        other.add(array, "o0")
        array.stop()
    with lab.opened() as array:
        array.fail_drive("d1")
        with pytest.raises(InvalidDisk, match="belongs to array 'other'"):
            array.propose_reconnect("d1", str(other.path("o0")))


def test_what_is_no_drive_is_refused(lab: Lab) -> None:
    """A directory, a device, a file with both labels overwritten: each with an error of its own, none with a traceback."""
    lab.create(2)
    with lab.opened() as array:
        array.fail_drive("d1")
        array.stop()
    broken = lab.directory / "broken"
    copy(lab.path("d1"), broken)
    with broken.open("r+b") as file:
        for offset in (0, plan_layout(broken.stat().st_size).copy_at):
            file.seek(offset)
            file.write(bytes(4096))
    with lab.opened() as array:
        with pytest.raises(NoLabel):
            array.propose_reconnect("d1", str(broken))
        for path in (str(lab.directory), "/dev/null"):
            with pytest.raises(BlkrecovError):
                array.propose_reconnect("d1", path)


def test_a_drive_that_was_just_added_may_be_reconnected(lab: Lab) -> None:
    """There is nothing to do, and nothing to fail either."""
    lab.create(1)
    with lab.opened() as array:
        lab.add(array, "d1")
        assert reconnect(array, "d1").state is TaskState.COMPLETED


@pytest.mark.long
def test_an_older_copy_of_a_drive_is_regenerated_as_a_whole(lab: Lab) -> None:
    """Its bitmap has forgotten what was written between the copy and the failure."""
    lab.create(3)
    with lab.opened() as array:
        lun(array, "vol", "raid5", SIZE, exported=False)
        in_sync(array, "vol")
        array.stop()
    older = lab.directory / "older"
    copy(lab.path("d1"), older)
    older.rename(lab.directory.parent / "older")
    with lab.opened() as array:
        fill(disk_of(array, "vol"), SIZE, seed=1)
        time.sleep(BITMAP_S)
        array.fail_drive("d1")
        fill(disk_of(array, "vol"), MIB, seed=2)
        digest = checksum(disk_of(array, "vol"))
        lab.path("d1").unlink()
        task = reconnect(array, "d1", str(lab.directory.parent / "older"))
        assert "older copy of drive d1" in task.message
        whole(array, digest)
    (lab.directory.parent / "older").unlink()


# The command.


def test_the_command_plans_starts_and_is_waited_for(lab: Lab) -> None:
    """Three processes, as far as the array knows; the bytes are those that the kernel counts for the leg."""
    lab.create(3)
    with lab.opened() as array:
        digest = checksum(failed(array, "raid5"))
        sequence, loaded, before = array.document.sequence, tables(), written(array, "vol", 1)
    answer = blkrecov(lab, "drive", "reconnect", "d1", "--plan")
    assert answer.status == 0
    assert "suspend and resume blkrecov-lab-vol-plex, so that it takes leg 1 back" in answer.out
    with lab.opened() as array:
        assert (array.document.sequence, tables()) == (sequence, loaded)
        slowed(array, 2 * MIB)
    answer = blkrecov(lab, "drive", "reconnect", "d1", "--no-wait", "--json")
    assert (answer.status, answer.json["state"], answer.json["kind"]) == (0, "in_progress", "reconnect")
    number = answer.json["id"]
    shown = blkrecov(lab, "task", "show", str(number), "--json")
    assert (shown.status, shown.json["state"]) == (0, "in_progress")
    with lab.opened() as array:
        slowed(array, 0)
    answer = blkrecov(lab, "task", "wait", str(number), "--json")
    assert (answer.status, answer.json["state"], answer.json["percent"]) == (0, "completed", 100)
    with lab.opened() as array:
        assert answer.json["bytes"]["kernel"] == written(array, "vol", 1) - before > 0
        whole(array, digest)
    answer = blkrecov(lab, "drive", "reconnect", "d1", "--json")
    assert (answer.status, answer.json["state"]) == (0, "completed")


# The figure.

DRIVE = Bytes(GIB)
LARGE = 3000 * MIB
PIECES = 20


@pytest.mark.long
def test_twenty_mebibytes_cost_their_regions_and_no_more(lab: Lab) -> None:
    """A raid5 over four drives of 1 GiB, full; each of the pieces written while a drive was away lies in other regions. The full
    rebuild beside it is that of the same member, whose superblock somebody has wiped.
    """
    lab.create(4, size=DRIVE)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", LARGE, drives=("d0", "d1", "d2", "d3"), exported=False)
        in_sync(array, "vol")
        region = array.document.lun("vol").region * 512
        fill(disk, LARGE, seed=1)
        time.sleep(BITMAP_S)
        array.fail_drive("d1")
        places = [piece * 150 * MIB for piece in range(PIECES)]
        for seed, offset in enumerate(places):
            fill(disk, MIB, seed=100 + seed, offset=offset)
        regions = {at // (3 * region) for offset in places for at in (offset, offset + MIB - 1)}
        digest = checksum(disk)

        before, began_s = written(array, "vol", 1), time.monotonic()
        task = reconnect(array, "d1")
        reconnect_s = time.monotonic() - began_s
        again = written(array, "vol", 1) - before
        assert task.state is TaskState.COMPLETED
        assert 0 < again <= len(regions) * region
        assert task.bytes_kernel == again
        assert checksum(disk) == digest

        array.fail_drive("d1")
        wiped(lab, array)
        before, began_s = written(array, "vol", 1), time.monotonic()
        full = reconnect(array, "d1")
        full_s = time.monotonic() - began_s
        assert full.state is TaskState.COMPLETED
        assert checksum(disk) == digest
        print(
            f"reconnect after {PIECES} MiB in {len(regions)} regions of {region / MIB:g} MiB: {again / MIB:.1f} MiB in "
            f"{reconnect_s:.2f} s, {task.bytes_process / KIB:.0f} KiB by the process; full rebuild and its check "
            f"{full_s:.2f} s, {full_s / reconnect_s:.1f} times as long"
        )
        assert 10 * reconnect_s <= full_s
