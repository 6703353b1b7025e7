"""The monitor on a real kernel: what it does by itself, how soon, in which order, and what it leaves alone.

It runs in a thread with an array of its own, as its command would in a process; what a test does meanwhile it does as any other
process on the machine: by commands, and behind the array's back. What the kernel is at is looked at past both.
"""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import pytest

from blkrecov import tasks
from blkrecov.array import Array
from blkrecov.dm import counters, names
from blkrecov.dm.control import Control, NoSuchDevice
from blkrecov.dm.status import RaidStatus, SyncAction, parse_raid
from blkrecov.dm.table import ErrorTable
from blkrecov.events import Event, EventLog
from blkrecov.model import Phase, Schedule, Task
from blkrecov.monitor import Monitor
from blkrecov.proposal import Proposal
from blkrecov.units import MIB, SECTOR, Bytes, Sectors
from tests.kernel.lab import (
    BLOCK,
    DEADLINE_S,
    Lab,
    Slow,
    Writer,
    backing,
    blkrecov,
    checksum,
    disagreements,
    fill,
    in_sync,
    lun,
    our_devices,
    read,
    regions_of,
    run,
    states,
    until,
    write,
)

LOOK_S: Final = 0.01


@dataclass
class Watch:
    """A monitor that runs, and the thread that it runs in."""

    lab: Lab
    monitor: Monitor
    thread: int

    def switches(self) -> int:
        """How often the monitor has gone to sleep so far."""
        text = Path(f"/proc/self/task/{self.thread}/status").read_text()
        found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)$", text, re.MULTILINE)
        assert found is not None
        return int(found[1])


@contextmanager
def watched(lab: Lab) -> Iterator[Watch]:
    begun, running = threading.Event(), []

    def work() -> None:
        with lab.opened() as array:
            running.append(Watch(lab, Monitor(array), threading.get_native_id()))
            begun.set()
            running[0].monitor.run()

    thread = threading.Thread(target=work, name="monitor")
    thread.start()
    assert begun.wait(DEADLINE_S)
    try:
        yield running[0]
    finally:
        running[0].monitor.end()
        thread.join(DEADLINE_S)
    assert not thread.is_alive()


def told(lab: Lab, *kinds: str, of: str | None = None) -> list[Event]:
    """The events of these kinds so far; of one LUN, if so asked."""
    found = EventLog(lab.state).read()
    return [event for event in found if event.kind.value in kinds and of in (None, event.lun)]


def heard(lab: Lab, kind: str, count: int = 1, of: str | None = None) -> Event:
    """Wait for so many events of a kind, and return the last."""

    def enough() -> list[Event] | None:
        found = told(lab, kind, of=of)
        return found if len(found) >= count else None

    return until(f"{kind} of {of}", enough)[count - 1]


def command(lab: Lab, *words: str) -> None:
    answer = blkrecov(lab, *words, "--json")
    assert answer.status == 0, answer


def fail_port(lab: Lab, *drives: str) -> float:
    """All I/O to these drives fails from now on, and nobody is told; when that was."""
    with Control() as control:
        for drive in drives:
            name = names.drive_name(lab.name, drive)
            length = Sectors(sum(line.length for line in control.table(name)))
            control.replace(name, ErrorTable(length=length).render(), visible=False, flush=False, freeze=False)
    return time.monotonic()


def status(control: Control, lab: Lab, name: str = "vol") -> RaidStatus | None:
    """What the kernel says, without the array. None while the plex is between two tables."""
    plex = names.plex_name(lab.name, name)
    try:
        lines = control.status(plex)
        if control.info(plex).suspended or not lines:
            return None
    except NoSuchDevice:
        return None
    return parse_raid(lines[0].params)


def settings(array: Array, **values: object) -> None:
    document = msgspec.structs.replace(array.document, **values)
    array.carry_out(Proposal(document=document, why="for the test"))


def quarters(lab: Lab) -> list[int]:
    """The marks that recoveries have told that they passed."""
    return [event.percent // 25 * 25 for event in told(lab, "recovery_progress") if event.percent is not None]


def task_of(lab: Lab, number: int) -> Task:
    with lab.opened() as array:
        return array.document.task(number)


def test_a_failure_is_answered_within_a_second_and_its_end_is_told_at_once(lab: Lab) -> None:
    """A hot spare takes over without anybody's word, under writes; nobody polls before, and nobody waits for a poll after."""
    lab.create(3, spares=1)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", 48 * MIB, drives=("d0", "d1", "d2"), exported=False)
        in_sync(array, "vol")
        fill(disk, 48 * MIB, seed=1)
        settings(array, rate_max=4 * MIB)
    with watched(lab) as watch:
        time.sleep(1.0)
        before = watch.switches()
        time.sleep(3.0)
        idle = watch.switches() - before
        assert idle <= 3, f"{idle} wakeups in three seconds in which nothing happened"
        seen: dict[SyncAction, tuple[float, float]] = {}
        with Control() as control, Writer(disk, MIB) as writer:
            writer.wait_for(5)
            failed = fail_port(lab, "d1")

            def look(*actions: SyncAction) -> bool:
                raid, now = status(control, lab), time.monotonic()
                # md shows that action for a moment too when it has lost a leg, and finds that there is nothing to rebuild on.
                if raid is None or (raid.action is SyncAction.RECOVER and raid.lost):
                    return False
                seen[raid.action] = (seen.get(raid.action, (now, now))[0], now)
                return raid.action in actions

            def wait(*actions: SyncAction) -> None:
                while not look(*actions):
                    assert time.monotonic() < failed + DEADLINE_S, seen
                    time.sleep(LOOK_S)

            wait(SyncAction.RECOVER)
            answered = seen[SyncAction.RECOVER][0] - failed
            assert writer.error is None
            writer.wait_for(5)
            wait(SyncAction.CHECK)
            writer.wait_for(5)
            command(lab, "array", "set", "--rate-max", "0")
            wait(SyncAction.IDLE)
        ended = seen[SyncAction.CHECK][1]
        done = heard(lab, "recovery_done")
        late = done.time - time.time() + time.monotonic() - ended
        print(f"\nauto_recover: rebuild on the hot spare {answered:.2f} s after the first failed I/O")
        between = seen[SyncAction.CHECK][0] - seen[SyncAction.RECOVER][1]
        print(f"the end of the rebuild is seen after {between:.2f} s, that of the recovery is told after {late:.2f} s")
        assert answered < 2.0  # A second, and as much again for whoever shares the machine.
        assert between < 1.5
        assert late < 1.5
        assert (writer.error, writer.wrong()) == (None, [])
        assert [event.kind.value for event in told(lab, *KINDS)] == [
            "member_failed",
            "recovery_started",
            "recovery_progress",
            "recovery_progress",
            "recovery_progress",
            "recovery_done",
        ]
        assert quarters(lab) == [25, 50, 75]
        assert done.percent == 100
    with lab.opened() as array:
        assert (states(array, "vol"), disagreements(array, "vol")) == (["in_sync"] * 3, [])
        assert regions_of(array, "s0") == {"vol"}
        assert not array.document.drive("s0").hot_spare


KINDS: Final = (
    "member_failed",
    "recovery_queued",
    "recovery_started",
    "recovery_progress",
    "recovery_done",
    "recovery_failed",
    "recovery_impossible",
)


@pytest.mark.long
def test_recoveries_that_share_a_drive_take_turns_and_others_run_beside_them(lab: Lab) -> None:
    """The LUN that can lose nothing more goes first, although it was made later; a drive serves one rebuild at a time."""
    lab.create(7, spares=3)
    with lab.opened() as array:
        shares = {
            "six": lun(array, "six", "raid6", 24 * MIB, drives=("d0", "d1", "d2", "d3"), exported=False),
            "five": lun(array, "five", "raid5", 24 * MIB, drives=("d2", "d3", "d4"), exported=False),
            "mirror": lun(array, "mirror", "raid1", 16 * MIB, drives=("d5", "d6"), exported=False),
        }
        for name in shares:
            in_sync(array, name)
        digests = {name: fill(disk, 8 * MIB, seed=1) for name, disk in shares.items()}
        settings(array, auto_recover=True, rate_max=8 * MIB)
    with watched(lab), Control() as control:
        with lab.opened():
            fail_port(lab, "d3", "d6")
            for disk in shares.values():
                write(disk, 0, read(disk, 0, MIB))

            def noticed() -> bool:
                return all((raid := status(control, lab, name)) and raid.lost for name in shares)

            until("the kernel's notice of all failures", noticed)
        looks: list[frozenset[str]] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(told(lab, "recovery_done")) < 3:
            assert time.monotonic() < deadline, [event.message for event in told(lab, *KINDS)]
            found = {name: status(control, lab, name) for name in shares}
            looks.append(frozenset(name for name, raid in found.items() if raid and raid.action is SyncAction.RECOVER))
            time.sleep(LOOK_S)
    assert not any({"six", "five"} <= look for look in looks)
    assert any({"five", "mirror"} <= look for look in looks)
    assert any("six" in look for look in looks)
    assert [event.lun for event in told(lab, "recovery_started") if event.lun != "mirror"] == ["five", "six"]
    assert [event.lun for event in told(lab, "recovery_queued")] == ["six"]
    assert [event.lun for event in told(lab, "recovery_done") if event.lun != "mirror"] == ["five", "six"]
    with lab.opened() as array:
        for name, disk in shares.items():
            assert (checksum(disk, 8 * MIB), disagreements(array, name)) == (digests[name], []), name


@pytest.mark.long
def test_nothing_is_done_unless_wanted_and_what_cannot_be_is_told_once(lab: Lab) -> None:
    """Off, or by default without a hot spare, a failure is told with what to do about it. A drive that fits is all it takes."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", 24 * MIB, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        digest = fill(disk, 24 * MIB, seed=1)
        lab.add(array, "small", size=Bytes(16 * MIB), spare=True)
        settings(array, auto_recover=False)
    with watched(lab) as watch:
        fail_port(lab, "d1")
        write(disk, 0, read(disk, 0, MIB))
        event = heard(lab, "member_failed")
        assert (event.lun, event.drive, event.remedy) == ("vol", "d1", "run: blkrecov recover vol")
        # By default: there is a hot spare, so it is tried.
        assert told(lab, *KINDS) == [event]
        command(lab, "array", "set", "--auto-recover", "default")
        # The drive itself fits, last of all; so it is made to look away.
        heard(lab, "recovery_done")
    del watch
    with lab.opened() as array:
        assert (states(array, "vol"), checksum(disk)) == (["in_sync"] * 2, digest)
        array.fail_drive("d1")
    with watched(lab) as watch:
        event = heard(lab, "recovery_impossible")
        assert (event.lun, "free that a substitute needs" in event.message) == ("vol", True), event.message
        assert "blkrecov drive add" in event.remedy
        # Each of these wakes it, and changes nothing.
        for _ in range(2):
            command(lab, "array", "set", "--scrub", "off")
        command(lab, "drive", "spare", "d0")
        assert told(lab, "recovery_impossible") == [event]
        # Without a hot spare nobody has asked for it.
        command(lab, "drive", "spare", "small", "--off")
        command(lab, "drive", "spare", "d0", "--off")
        command(lab, "drive", "add", str(lab.path("big")), "--size", "36M", "--name", "big")
        quiet(watch)
        assert len(told(lab, "recovery_started")) == 1
        command(lab, "array", "set", "--auto-recover", "on")
        heard(lab, "recovery_done", 2)
        assert told(lab, "recovery_impossible") == [event]
        # The other way round: it is wanted and cannot be, and a drive that fits comes.
        command(lab, "drive", "fail", "d0")
        assert "drive" in heard(lab, "recovery_impossible", 2).message
        command(lab, "drive", "add", str(lab.path("next")), "--size", "36M", "--name", "next")
        heard(lab, "recovery_done", 3)
        # It leaves alone what was stopped, and looks after it again as soon as somebody has brought it up.
        command(lab, "array", "stop")
        quiet(watch)
        assert our_devices() == []
        command(lab, "lun", "show", "vol")
        fail_port(lab, "big")
        write(disk, 0, read(disk, 0, MIB))
        until("the loss", lambda: [event for event in told(lab, "member_failed") if event.drive == "big"])
        heard(lab, "recovery_done", 4)
    with lab.opened() as array:
        assert (regions_of(array, "big"), regions_of(array, "next")) == ({"vol"}, {"vol"})
        assert (checksum(disk), disagreements(array, "vol")) == (digest, [])


def quiet(watch: Watch) -> None:
    """Wait until the monitor sleeps, and goes on sleeping."""
    before = -1
    deadline = time.monotonic() + DEADLINE_S
    while before != watch.switches():
        assert time.monotonic() < deadline
        before = watch.switches()
        time.sleep(0.6)


@contextmanager
def dead(device: str, point: Path) -> Iterator[None]:
    """A device below the drives' file system answers nothing; whoever has it mounted is not asked."""

    def has(table: str) -> None:
        run("dmsetup", "reload", device, "--table", table)
        run("dmsetup", "suspend", "--nolockfs", "--noflush", device)
        run("dmsetup", "resume", device)

    before = run("dmsetup", "table", device)
    has(f"0 {before.split()[1]} error")
    try:
        yield
    finally:
        has(before)
        # What could not be written meanwhile is told to whoever asks first.
        subprocess.run(["sync", "--file-system", str(point)], check=False, capture_output=True)


def test_a_drive_that_answers_nothing_is_left(slow: Slow, lab: Lab) -> None:
    """The medium fails, with the label and the configuration on it: nothing of that is needed to leave it."""
    lab.create(2, spares=1)
    with lab.opened() as array:
        array.add_drive(str(slow.directory / "dead"), size=slow.drive, name="dead", spare=False, force=False)
        disk = lun(array, "vol", "raid5", 24 * MIB, drives=("d0", "d1", "dead"), exported=False)
        in_sync(array, "vol")
        digest = fill(disk, 24 * MIB, seed=1)
    with watched(lab), dead("lab-slow", slow.directory):
        write(disk, 0, read(disk, 0, MIB))
        assert heard(lab, "member_failed").drive == "dead"
        assert heard(lab, "recovery_done").lun == "vol"
    with lab.opened() as array:
        assert (states(array, "vol"), regions_of(array, "s0"), regions_of(array, "dead")) == (
            ["in_sync"] * 3,
            {"vol"},
            set(),
        )
        assert (checksum(disk), disagreements(array, "vol")) == (digest, [])


@pytest.mark.long
def test_a_flapping_drive_is_set_aside_until_it_is_trusted(lab: Lab) -> None:
    """Three failures within a day: it is given nothing more, what lies on it leaves in good order, an operator may trust it."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", 8 * MIB, drives=("d0", "d1"), exported=False)
        lab.add(array, "d2", size=Bytes(20 * MIB))
        other = lun(array, "other", "raid1", 6 * MIB, drives=("d0", "d2"), exported=False)
        lun(array, "full", "linear", 5 * MIB, drives=("d2",), exported=False)
        for name in ("vol", "other"):
            in_sync(array, name)
        digests = [fill(each, 6 * MIB, seed=1) for each in (disk, other)]
        settings(array, auto_recover=True)
        # Bitmaps are clean after that: else md would write to the other LUN's some seconds later, and meet the failure there.
        array.stop()
    with watched(lab):
        for count in (1, 2, 3):
            fail_port(lab, "d0")
            write(disk, 0, read(disk, 0, MIB))
            heard(lab, "member_failed", count)
            if count < 3:
                heard(lab, "recovery_done", count)
        event = heard(lab, "drive_set_aside")
        assert (event.drive, event.remedy.split(": ")[-1]) == ("d0", "blkrecov drive trust d0")
        assert "failed or went away 3 times within 24 hours" in event.message
        event = heard(lab, "recovery_impossible")
        assert "set aside for failing too often: d0" in event.message
        assert blkrecov(lab, "lun", "create", "new", "--layout", "linear", "--size", "1M", "--drives", "d0").status == 1
        command(lab, "drive", "add", str(lab.path("d3")), "--size", "36M", "--name", "d3")
        heard(lab, "recovery_done", 3, of="vol")
        # The other LUN's member is good still: it moves away underneath.
        answer = blkrecov(lab, "recover", "other", "--rate-max", "0", "--no-wait", "--json")
        assert (answer.status, answer.json["objects"]) == (0, ["other", "d0", "d1"])
        number = answer.json["id"]
        with Control() as control:

            def moved() -> bool:
                raid = status(control, lab, "other")
                assert raid is None or not raid.lost
                return bool(told(lab, "recovery_done", of="other"))

            until("the end of the move", moved)
        task = task_of(lab, number)
        assert (task.phases, task.code) == ((Phase.COPY, Phase.VERIFY), "S_OK")
        command(lab, "drive", "trust", "d0")
        assert blkrecov(lab, "drive", "show", "d0", "--json").json["failing"] is None
        command(lab, "lun", "create", "new", "--layout", "linear", "--size", "1M", "--drives", "d0", "--no-export")
    with lab.opened() as array:
        assert (regions_of(array, "d0"), regions_of(array, "d3")) == ({"new"}, {"vol"})
        assert [checksum(each, 6 * MIB) for each in (disk, other)] == digests
        assert [disagreements(array, name) for name in ("vol", "other")] == [[], []]


def plant(array: Array, name: str, *offsets: int) -> None:
    """Make the second copy of a raid1 another than the first, at some of its bytes."""
    member = array.document.lun(name).members[1]
    for offset in offsets:
        write(backing(array, member), member.data[0].start * SECTOR + offset, random.Random(offset).randbytes(4096))


def counted(array: Array, number: int) -> int | None:
    task = array.wait(number, timeout_s=DEADLINE_S)
    assert task.code == "S_OK", task
    return array.document.lun("vol").mismatches


def paused_halfway(array: Array, rate: int) -> int:
    """A scrub that was paused somewhere in its middle."""
    settings(array, rate_max=rate)
    number = array.start(*array.propose_scrub("vol", repair=False)).id
    until("half of the scrub", lambda: array.progress(number).fraction > 0.4)
    assert array.pause(number).paused
    settings(array, rate_max=0)
    return number


def test_scrubs_come_by_themselves_and_a_pause_miscounts_nothing(lab: Lab) -> None:
    """One mismatch lies before the place where a scrub is paused and one behind it; both are counted, and neither twice."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", 24 * MIB, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        fill(disk, 24 * MIB, seed=1)
        array.advance_all()
        settings(array, scrub=Schedule.WEEKLY)
        assert array.document.lun("vol").scrubbed == 0
    began = int(time.time())
    with watched(lab) as watch:
        assert heard(lab, "scrub_done").time >= began
        quiet(watch)
        assert len(told(lab, "scrub_started")) == 1
    with lab.opened() as array:
        assert (array.document.lun("vol").scrubbed >= began, array.document.lun("vol").mismatches) == (True, 0)
        settings(array, scrub=Schedule.OFF)
        plant(array, "vol", MIB, 22 * MIB)
        whole = counted(array, array.start(*array.propose_scrub("vol", repair=False)).id)
        assert whole == 2 * 64 * 1024 // SECTOR
        number = paused_halfway(array, 6 * MIB)
        assert array.resume(number).paused is False
        assert counted(array, number) == whole
        number = paused_halfway(array, 6 * MIB)
        array.stop()
    with lab.opened() as array:
        assert array.document.task(number).paused
        array.resume(number)
        assert counted(array, number) == whole
        number = paused_halfway(array, 6 * MIB)
    lab.power_cut()
    with lab.opened() as array:
        assert array.document.task(number).paused
        in_sync(array, "vol")
        # The kernel may have put right what it resynchronised after the cut.
        plant(array, "vol", MIB, 22 * MIB)
        array.resume(number)
        assert counted(array, number) == whole
        # Not paused, but under way when the machine stops: it begins anew, and counts anew.
        settings(array, rate_max=6 * MIB)
        number = array.start(*array.propose_scrub("vol", repair=False)).id
        until("half of the scrub", lambda: array.progress(number).fraction > 0.4)
        settings(array, rate_max=0)
        array.stop()
    with lab.opened() as array:
        assert counted(array, number) == whole
        assert array.start(*array.propose_scrub("vol", repair=True)).id == number + 1
        assert counted(array, number + 1) == 0


@contextmanager
def process(lab: Lab) -> Iterator[subprocess.Popen[str]]:
    """`blkrecov monitor` as a process of its own, when it has said that it looks after the array."""
    child = subprocess.Popen(
        [sys.executable, "-m", "blkrecov.cli.main", "monitor"],
        env={**os.environ, **lab.environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "looking after array lab\n"
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        assert child.wait(DEADLINE_S) in (0, -signal.SIGKILL)
        child.stdout.close()


def test_a_monitor_that_is_killed_is_replaced_and_there_is_only_one(lab: Lab) -> None:
    """It keeps nothing in its memory: whoever comes next goes on, and a second one beside the first would do everything twice."""
    lab.create(3, spares=1)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", 48 * MIB, drives=("d0", "d1", "d2"), exported=False)
        in_sync(array, "vol")
        digest = fill(disk, 48 * MIB, seed=1)
        settings(array, rate_max=4 * MIB)
    with process(lab) as first:
        fail_port(lab, "d1")
        write(disk, 0, read(disk, 0, MIB))
        heard(lab, "recovery_progress")
        answer = blkrecov(lab, "monitor", "--json")
        assert (answer.status, answer.error["code"]) == (1, "VDS_E_DEVICE_IN_USE")
        assert "monitor already" in answer.error["message"]
        assert "end that one first" in answer.error["remedy"]
        first.kill()
    with process(lab):
        command(lab, "array", "set", "--rate-max", "0")
        heard(lab, "recovery_done")
    assert len(told(lab, "recovery_started")) == 1
    # As far as its speed let them be seen; none twice.
    assert quarters(lab) == sorted(set(quarters(lab)))
    with lab.opened() as array:
        assert (states(array, "vol"), checksum(disk), disagreements(array, "vol")) == (["in_sync"] * 3, digest, [])


def frontier(array: Array, name: str) -> int:
    """How far a substitute's contents are regenerated: there are no zeros before that, and behind it are those of a new drive."""
    wanted = array.document.lun(name)
    (index,) = wanted.rebuilding
    (extent,) = wanted.members[index].data
    device, low, high = backing(array, wanted.members[index]), 0, extent.length * SECTOR
    while low < high:
        middle = (low + high) // 2 // BLOCK * BLOCK
        if any(read(device, extent.start * SECTOR + middle, BLOCK)):
            low = middle + BLOCK
        else:
            high = middle
    return low


def test_progress_is_true_while_a_host_writes(lab: Lab) -> None:
    """What is shown is within a sixteenth of a member of what is on the drive; it never falls, and is 100 at the end only."""
    lab.create(6, spares=2)
    member = 24 * MIB
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", 2 * member, drives=("d0", "d1", "d2"), exported=False)
        idle = lun(array, "idle", "raid5", 2 * member, drives=("d3", "d4", "d5"), exported=False)
        for name, each in (("vol", disk), ("idle", idle)):
            in_sync(array, name)
            fill(each, 2 * member, seed=1)
        settings(array, rate_max=4 * MIB)
        numbers = []
        for name, drive in (("vol", "d0"), ("idle", "d3")):
            array.fail_drive(drive)
            proposal, task = array.propose_recover(name, None)
            numbers.append(array.start(proposal, task).id)
        (index,) = array.document.lun("idle").rebuilding
        leg = array.observed.devices[names.dm_uuid(array.document.lun("idle").members[index].uuid, "rimage")].number
        percents: list[int] = []
        errors: list[int] = []
        step = member // 16
        with Writer(disk, 2 * MIB) as writer:
            while True:
                before = frontier(array, "vol")
                shown = array.progress(numbers[0])
                after = frontier(array, "vol")
                percents.append(shown.task.percent)
                if shown.phase is not Phase.REBUILD or tasks.phase(array.advance(numbers[0])) is not Phase.REBUILD:
                    break
                assert shown.total == member
                errors.append(max(before - shown.done, shown.done - after))
                assert before - step <= shown.done <= after + step, (before, shown.done, after)
                low = counters.sectors_written(leg) * SECTOR
                there = array.progress(numbers[1])
                high = counters.sectors_written(leg) * SECTOR
                if there.phase is Phase.REBUILD and array.document.lun("idle").rebuilding:
                    assert low - step <= there.done <= high + step, (low, there.done, high)
            settings(array, rate_max=0)
            ended = array.wait(
                numbers[0], on_progress=lambda shown: percents.append(shown.task.percent), timeout_s=DEADLINE_S
            )
            writer.wait_for(1)
        array.wait(numbers[1], timeout_s=DEADLINE_S)
        print(f"\nprogress: {len(errors)} looks, at most {max(errors) / member:.1%} of a member from the truth")
        assert len(errors) > 4
        assert percents == sorted(percents)
        assert (percents[-1], ended.percent) == (100, 100)
        assert all(percent <= 99 for percent in percents[:-1])
        assert writer.wrong() == []
        assert disagreements(array, "vol") == []
