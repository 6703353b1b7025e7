"""How fast the kernel synchronises: md's limits, who else is seen on the drives, and rebuilds that are held."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import msgspec
import pytest

from blkrecov import pressure, provision
from blkrecov.array import Array
from blkrecov.dm import counters, names
from blkrecov.dm.control import Control
from blkrecov.dm.speed import SYSCTLS, SpeedLimits
from blkrecov.dm.status import LegHealth
from blkrecov.dm.table import DelayTable, Segment
from blkrecov.governor import CEILING, NOISE, Governor, Limits, Sample
from blkrecov.proposal import Proposal
from blkrecov.units import KIB, MIB, Bytes, Sectors, in_bytes, sectors
from tests.kernel.lab import Lab, checksum, disagreements, in_sync, lun, read, run, until, write

TICK_S = 1.0


@pytest.fixture(autouse=True)
def stock() -> Iterator[Limits]:
    """The machine's own limits, which are there again for the next test."""
    run("modprobe", "md-mod")
    speed = SpeedLimits()
    speed.restore()
    limits = speed.read()
    assert limits is not None
    yield limits
    speed.restore()
    assert speed.read() == limits


def test_limits_outlive_the_process_that_set_them_and_are_put_back_by_another(stock: Limits) -> None:
    """They are the machine's: every md array on it would go by them for ever."""
    assert stock == Limits(minimum=Bytes(1000 * KIB), maximum=Bytes(200000 * KIB))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        SpeedLimits().apply(Governor(rate_min=3 * MIB).limits)
        os.write(writing, b"!")
        signal.pause()
    assert os.read(reading, 1) == b"!"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # An idle rebuild is not held up by the 200 MB/s that md has by itself.
    assert (SYSCTLS / "speed_limit_max").read_text() == f"{CEILING // KIB}\n"
    assert SpeedLimits().read() == Limits(minimum=Bytes(3 * MIB), maximum=CEILING)
    assert SpeedLimits().usual() == stock
    SpeedLimits().restore()
    assert SpeedLimits().read() == stock


def rated(array: Array, rate_max: int) -> None:
    """What is synchronised from now on keeps to this."""
    array.carry_out(provision.configure(array.document, rate_max=rate_max))


def rebuilding(array: Array, name: str, drive: str, *, rate_max: int) -> tuple[int, str]:
    """A LUN whose member on this drive is being rebuilt on a spare, no faster than that: its task, and the new leg's number."""
    rated(array, rate_max)
    array.fail_drive(drive)
    proposal, task = array.propose_recover(name, None)
    number = array.start(proposal, task).id
    wanted = array.document.lun(name)
    (index,) = wanted.rebuilding
    leg = array.observe().devices[names.dm_uuid(wanted.members[index].uuid, "rimage")]
    return number, leg.number


def written(leg: str) -> int:
    return in_bytes(counters.sectors_written(leg))


def looked(array: Array, name: str) -> Sample:
    return pressure.sample(array.document, array.observed, {array.document.lun(name).uuid})


def through_tops(array: Array) -> int:
    """Bytes that anybody moved on the LUNs themselves, counted where no synchronisation passes."""
    tops = [array.observed.devices[names.dm_uuid(lun.uuid, "lun")].number for lun in array.document.luns]
    return sum(in_bytes(counters.sectors_moved(number)) for number in tops)


def put(disk: str, offset: int, length: int) -> None:
    """Random bytes, at one opening: udev looks at a disk whenever it was open for writing."""
    write(disk, offset, random.Random(offset + length).randbytes(length))


def wait_s(seconds: float) -> None:
    """For what is to be measured over a time."""
    time.sleep(seconds)


def test_a_rebuild_gives_way_to_others_on_its_drives_and_to_nobody_else(lab: Lab) -> None:
    """md sees I/O through the legs of the array that it rebuilds, and no other: the governor has to see the rest."""
    size, speed = 72 * MIB, SpeedLimits()
    lab.create(2, spares=1, size=Bytes(112 * MIB))
    with lab.opened() as array:
        other = lun(array, "other", "linear", 16 * MIB, drives=("d0",), exported=False)
        disk = lun(array, "vol", "raid1", size, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        put(disk, 0, 16 * MIB)
        _, leg = rebuilding(array, "vol", "d1", rate_max=8 * MIB)
        governor = Governor(rate_min=MIB, rate_max=8 * MIB)
        speed.apply(governor.limits)

        # Alone: what the rebuild moves is its own.
        before = looked(array, "vol")
        wait_s(2 * TICK_S)
        alone, used = looked(array, "vol"), through_tops(array)
        elapsed = alone.at_s - before.at_s
        rate = (alone.moved[leg] - before.moved[leg]) / elapsed
        # Once a second md allows 8 MiB more (drivers/md/md.c, md_do_sync(): it divides by whole seconds).
        assert 2 * MIB < rate < 20 * MIB, f"{rate / MIB:.1f} MiB/s"
        assert abs(alone.foreign - before.foreign) <= before.doubt + alone.doubt + NOISE
        governor = governor.after(before).after(alone)
        assert governor.limits.maximum == 8 * MIB

        # Others: 6 MiB to and 3 MiB from another LUN on d0, and 4 MiB to the LUN itself, which cost it 8.
        put(other, 0, 6 * MIB)
        read(other, 0, 3 * MIB)
        put(disk, 0, 4 * MIB)
        run("udevadm", "settle")
        busy = looked(array, "vol")
        moved, used = busy.foreign - alone.foreign, through_tops(array) - used
        # udev looks at whatever was written to, so it is more. But it is not 4 MiB more for the second copy of what was written.
        assert used >= 13 * MIB
        assert abs(moved - used) <= alone.doubt + busy.doubt, f"{moved / MIB:.2f} and {used / MIB:.2f} MiB"
        digest = checksum(disk)

        # It gives way: md stops for its average to fall, which is one of half a minute.
        wait_s(max(0.0, busy.at_s + 0.5 - time.monotonic()))
        busy = looked(array, "vol")
        for _ in range(4):
            governor = governor.after(replace(busy, at_s=busy.at_s, pressure=None))
            busy = replace(busy, at_s=busy.at_s + TICK_S, foreign=busy.foreign + 8 * MIB)
        assert governor.limits == Limits(minimum=Bytes(MIB), maximum=Bytes(MIB))
        speed.apply(governor.limits)
        wait_s(0.5)
        held = written(leg)
        wait_s(1.5)
        assert written(leg) - held <= 2 * MIB

        # Everybody has gone: tick by tick as the engine does it, until the brakes are off.
        governor = replace(governor, rate_max=0, last=None, busy_s=time.monotonic())

        def freed() -> bool:
            nonlocal governor
            governor = governor.after(looked(array, "vol"))
            speed.apply(governor.limits)
            return governor.limits.maximum == CEILING

        until("the end of the brakes", freed, 10)
        held, began_s = written(leg), time.monotonic()
        in_sync(array, "vol")
        assert time.monotonic() - began_s < 2 * TICK_S, f"{(written(leg) - held) / MIB:.0f} MiB were left"
        array.advance_all()
        assert (checksum(disk), disagreements(array, "vol")) == (digest, [])


@contextmanager
def reading(disk: str, offset: int) -> Iterator[None]:
    """Somebody who reads a place of a disk again and again."""
    enough = threading.Event()

    def work() -> None:
        while not enough.is_set():
            read(disk, offset, MIB)

    thread = threading.Thread(target=work, name="reader", daemon=True)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join(10)


def slow_down(array: Array, drive: str, write_ms: int) -> None:
    """Give a drive a long way to its medium: its port becomes a delay. The array's next change undoes it."""
    wanted = array.document.drive(drive)
    device = array.observed.backings[wanted.uuid].device
    source = Segment(device=device, offset=Sectors(0), length=sectors(wanted.size))
    with Control() as control:
        table = DelayTable(source=source, read_ms=0, write_ms=write_ms).render()
        control.replace(names.drive_name(array.document.name, drive), table, visible=False)


def test_md_by_itself_gives_way_to_hosts_of_the_same_array_only(lab: Lab) -> None:
    """is_mddev_idle() looks at the legs' own counters (drivers/md/md.c, Linux 6.1): another LUN on the same drive is not seen.

    With a leg that takes a while for each write it makes a difference whether md waits for all that is under way, or goes on. The
    host reads far from where md is: raid1 keeps the two apart in pieces of 64 MiB (drivers/md/raid1.h, BARRIER_UNIT_SECTOR_SIZE).
    """
    lab.create(2, spares=1, size=Bytes(160 * MIB))
    with lab.opened() as array:
        other = lun(array, "other", "linear", 8 * MIB, drives=("d0",), exported=False)
        disk = lun(array, "vol", "raid1", 130 * MIB, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        _, leg = rebuilding(array, "vol", "d1", rate_max=2 * MIB)
        slow_down(array, "s0", 20)
        SpeedLimits().apply(Governor().limits)

        def rate() -> float:
            # md sleeps for half a second when it is too fast, and what was under way before counts for then.
            wait_s(0.6)
            began, began_s = written(leg), time.monotonic()
            wait_s(0.6)
            return (written(leg) - began) / (time.monotonic() - began_s) / MIB

        alone = rate()
        with reading(other, 0):
            beside_others = rate()
        with reading(disk, 129 * MIB):
            beside_its_host = rate()
        slow_down(array, "s0", 0)
        told = f"{alone:.1f} MiB/s alone, {beside_others:.1f} beside others, {beside_its_host:.1f} beside its host"
        assert beside_others > alone / 2, told
        assert beside_its_host < beside_others / 2, told
        in_sync(array, "vol")


def held_back(array: Array, name: str, frozen: bool) -> None:
    changed = msgspec.structs.replace(array.document.lun(name), frozen=frozen)
    document = array.document.with_lun(changed)
    array.carry_out(Proposal(document=document, why=f"LUN {name} is frozen: {frozen}", lun=changed.uuid))


def test_a_frozen_rebuild_stands_still_keeps_its_leg_and_goes_on_from_there(lab: Lab) -> None:
    """Cancelled or paused: what is rebuilt stays rebuilt, and what a host writes meanwhile is in it."""
    size, leg_size = 48 * MIB, 24 * MIB
    lab.create(3, spares=1, size=Bytes(40 * MIB))
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", size, members=3, exported=False)
        in_sync(array, "vol")
        put(disk, 0, 16 * MIB)
        number, leg = rebuilding(array, "vol", "d1", rate_max=6 * MIB)
        until("half of the rebuild", lambda: written(leg) >= leg_size // 2)
        held_back(array, "vol", True)
        assert "min_recovery_rate 1 max_recovery_rate 1" in plex_words(array)
        begun = written(leg)
        wait_s(3.0)
        assert written(leg) - begun <= 256 * KIB

        # Each of three legs takes half of what the host writes, this one too: where it is rebuilt already and where not.
        raid = array.observe().raid(array.document.lun("vol"))
        assert raid is not None
        assert Counter(raid.legs) == {LegHealth.IN_SYNC: 2, LegHealth.OUT_OF_SYNC: 1}
        begun = written(leg)
        put(disk, 0, 4 * MIB)
        put(disk, size - 4 * MIB, 4 * MIB)
        assert 4 * MIB <= written(leg) - begun <= 5 * MIB
        digest = checksum(disk)
        # A second look finds nothing to do.
        assert array.plan(Proposal(document=array.document, why="nothing"))[1:] == ()

        rated(array, 0)
        held_back(array, "vol", False)
        assert "recovery_rate" not in plex_words(array)
        array.wait(number, timeout_s=30)
        assert states(array) == ["in_sync"] * 3
        assert written(leg) <= leg_size + 4 * MIB + 3 * MIB
        assert (checksum(disk), disagreements(array, "vol")) == (digest, [])


def plex_words(array: Array) -> str:
    live = array.observe().plex(array.document.lun("vol"))
    assert live is not None
    return live.table[0].params


def states(array: Array) -> list[str]:
    return [member.state.value for member in array.document.lun("vol").members]
