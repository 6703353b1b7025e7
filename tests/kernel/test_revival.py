"""LUNs that had lost more than they can do without, and whose drives come back, on a real kernel."""

import hashlib
import random
import time
from itertools import count, product

import pytest

from blkrecov.array import Array
from blkrecov.errors import ObjectFailed
from blkrecov.model import Task, TaskState
from blkrecov.units import MIB
from tests.kernel.lab import (
    Lab,
    checksum,
    disagreements,
    disk_of,
    fill,
    in_sync,
    lun,
    scrub,
    show,
    states,
)
from tests.kernel.test_reconnect import forget_tables, killed

SIZE = 8 * MIB
KEPT = SIZE - MIB
# The drives that fail, one after the other; with the last of them the LUN has lost too much.
LOSSES = {
    "raid1": ("d0", "d1"),
    "raid4": ("d0", "d1"),
    "raid5": ("d2", "d0"),
    "raid6": ("d0", "d2", "d3"),
    "raid10": ("d0", "d1"),
}
MEMBERS = {"raid1": 2, "raid4": 3, "raid5": 3, "raid6": 4, "raid10": 4}


def reconnect(array: Array, drive: str, *, force: bool = False) -> Task:
    task = array.wait(array.reconnect(*array.propose_reconnect(drive, force=force)).id, timeout_s=60)
    assert task.state is TaskState.COMPLETED, task
    return task


def failed(array: Array, layout: str, number: int = 0) -> str:
    """LUN vol, written to after each loss but the last; its drives are away as LOSSES says. The checksum of its contents."""
    disk = lun(array, "vol", layout, SIZE, members=MEMBERS[layout], drives=drives_of(layout), exported=False)
    in_sync(array, "vol")
    fill(disk, SIZE, seed=number)
    digest = ""
    for seed, name in enumerate(LOSSES[layout]):
        fill(disk, MIB, seed=100 + seed, offset=seed * MIB)
        digest = kept(disk)
        array.fail_drive(name)
    assert show(array, "vol")["status"] == "failed"
    # What was not acknowledged may be there or not, or be torn: only the last part of the LUN is written to then.
    with pytest.raises(OSError, match="Input/output error"):
        fill(disk, MIB, seed=99, offset=KEPT)
    return digest


def kept(disk: str) -> str:
    """The checksum of what was never written to without an acknowledgement."""
    return checksum(disk, KEPT)


def drives_of(layout: str) -> tuple[str, ...]:
    return ("d0", "d1", "d2", "d3")[: MEMBERS[layout]]


def restarted(lab: Lab, how: str) -> None:
    if how == "stop":
        lab.stop()
    elif how == "power cut":
        lab.power_cut()


def whole(array: Array, digest: str) -> None:
    assert kept(disk_of(array, "vol")) == digest
    assert set(states(array, "vol")) == {"in_sync"}
    assert show(array, "vol")["health"] == "healthy"
    assert disagreements(array, "vol") == []


@pytest.mark.parametrize(
    ("layout", "how"),
    [*product(LOSSES, ["goes on"]), ("raid5", "stop"), ("raid6", "power cut"), ("raid1", "power cut")],
)
def test_a_lun_comes_back_with_those_that_served_last(lab: Lab, layout: str, how: str) -> None:
    """The last that failed brings it online; the others regenerate what they had missed."""
    lab.create(4)
    with lab.opened() as array:
        digest = failed(array, layout)
    restarted(lab, how)
    last, *earlier = reversed(LOSSES[layout])
    with lab.opened() as array:
        task = reconnect(array, last)
        assert show(array, "vol")["status"] == "online", task
        assert kept(disk_of(array, "vol")) == digest
        for name in earlier:
            reconnect(array, name)
        in_sync(array, "vol")
        whole(array, digest)
        fill(disk_of(array, "vol"), SIZE, seed=7)
        assert disagreements(array, "vol") == []


@pytest.mark.parametrize("layout", LOSSES)
def test_a_lun_does_not_come_back_with_one_that_missed_writes(lab: Lab, layout: str) -> None:
    """It waits for the one that served last, and says so; then all of it is there."""
    lab.create(4)
    with lab.opened() as array:
        digest = failed(array, layout)
        *earlier, last = LOSSES[layout]
        for name in earlier:
            task = reconnect(array, name)
            assert "stays failed" in task.message
            assert "served last" in task.message
            assert show(array, "vol")["status"] == "failed"
        with pytest.raises(ObjectFailed):
            array.propose_recover("vol", None)
        reconnect(array, last)
        in_sync(array, "vol")
        whole(array, digest)


@pytest.mark.parametrize("layout", ["raid4", "raid5", "raid6"])
def test_what_fails_at_one_blow_misses_nothing(lab: Lab, layout: str) -> None:
    """All drives but one are unplugged between two looks: nothing was written in between, so nothing is regenerated."""
    lab.create(4)
    with lab.opened() as array:
        disk = lun(array, "vol", layout, SIZE, members=MEMBERS[layout], drives=drives_of(layout), exported=False)
        in_sync(array, "vol")
        fill(disk, SIZE, seed=1)
        digest = kept(disk)
        for name in drives_of(layout)[1:]:
            array.fail_drive(name)
        for name in drives_of(layout)[1:]:
            reconnect(array, name)
        in_sync(array, "vol")
        whole(array, digest)


def test_force_brings_a_lun_online_with_what_there_is(lab: Lab) -> None:
    """What only the drive that is gone for good was written is lost; all else is there, and the LUN can be used."""
    lab.create(4)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", SIZE, drives=("d0", "d1", "d2"), exported=False)
        in_sync(array, "vol")
        fill(disk, SIZE, seed=1)
        digest = checksum(disk)
        array.fail_drive("d0")
        fill(disk, 4096, seed=2)
        array.fail_drive("d1")
        lab.path("d1").unlink()
        assert "stays failed" in reconnect(array, "d0").message
        proposal, _, _ = array.propose_reconnect("d0", force=True)
        assert any("agree" in line for step in array.plan(proposal) for line in step.lines())
        task = reconnect(array, "d0", force=True)
        assert "what they missed is lost" in task.message
        assert show(array, "vol")["status"] == "online"
        time.sleep(0.1)
        fill(disk, 4096, seed=3)
        fill(disk, SIZE, seed=1)
        assert checksum(disk) == digest
        array.start(*array.propose_recover("vol", "d3"))
        in_sync(array, "vol")
        assert disagreements(array, "vol") == []
        assert checksum(disk) == digest


@pytest.mark.long
@pytest.mark.parametrize(("then", "first"), [("the process", 1), ("the machine", 2)])
def test_a_lun_that_comes_back_may_be_cut_short_anywhere(lab: Lab, then: str, first: int) -> None:
    """Before an effect: nothing that was acknowledged is lost, and the same command brings back what is not."""
    lab.create(4)
    earlier, last = LOSSES["raid5"]
    with lab.opened() as array:
        lun(array, "vol", "raid5", SIZE, drives=drives_of("raid5"), exported=False)
        in_sync(array, "vol")
    for at in count(first, 3):
        with lab.opened() as array:
            disk = disk_of(array, "vol")
            fill(disk, SIZE, seed=at)
            for name in LOSSES["raid5"]:
                fill(disk, MIB, seed=1000 + at)
                array.fail_drive(name)
            with pytest.raises(OSError, match="Input/output error"):
                fill(disk, MIB, seed=99, offset=KEPT)
        point = killed(lab, at, lambda array: reconnect(array, last))
        if then == "the machine":
            forget_tables()
            lab.power_cut()
        with lab.opened() as array:
            where = f"at {at}: {point}"
            if show(array, "vol")["status"] != "online":
                assert "online again" in reconnect(array, last).message, where
            whole_of = filled_twice(at)
            assert kept(disk_of(array, "vol")) == whole_of, where
            reconnect(array, earlier)
            for task in array.document.tasks:
                if not task.state.ended:
                    array.wait(task.id, timeout_s=60)
            assert set(states(array, "vol")) == {"in_sync"}, where
            scrub(array, "vol", repair=True)
            assert kept(disk_of(array, "vol")) == whole_of, where
            assert disagreements(array, "vol") == [], where
        if not point:
            break


def filled_twice(at: int) -> str:
    """The checksum of what is kept of the LUN in the test above."""
    digest = hashlib.sha256(random.Random(1000 + at).randbytes(MIB))
    source = random.Random(at)
    pieces = [source.randbytes(MIB) for _ in range(SIZE // MIB)]
    for piece in pieces[1 : KEPT // MIB]:
        digest.update(piece)
    return digest.hexdigest()
