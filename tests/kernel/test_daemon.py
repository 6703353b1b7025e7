"""blkrecovd as a process on a real kernel: it sleeps, it may be stuck, stopped and killed, and the arrays do not mind."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from dbus_fast import Variant

from blkrecov.bus.interfaces import ARRAY, DRIVE, LUN, MANAGER, TASK
from blkrecov.bus.objects import ROOT
from blkrecov.dm.control import Control
from blkrecov.units import MIB
from tests.kernel.buslab import HERE, LUN_SIZE, Client, Daemon, Refused, made, running, size, slowly
from tests.kernel.lab import DEADLINE_S, Lab, Slow, blkrecov, checksum, fill, run, tables
from tests.kernel.lab import DRIVE as DRIVE_SIZE


def test_a_stuck_worker_holds_up_no_answer(slow: Slow, lab: Lab, client: Client) -> None:
    """A drive stands on a disk that takes minutes for a write, which cannot be told beforehand, and the kernel holds whoever
    writes to it. All that is known is answered at once all the same, and a call that has to wait says for what.
    """
    with running(lab, WATCHDOG_USEC="1000000") as daemon:
        array, vol = made(client, lab)
        path = str(slow.directory / "far")
        far = client.call(
            array, ARRAY, "AddDrive", "sa{sv}", path, {"size": size(DRIVE_SIZE), "name": Variant("s", "far")}
        )
        lab.drives.append("far")
        slow.delay(300_000)
        try:
            options = {"drives": Variant("as", ["far"])}
            stuck = client.begin(array, ARRAY, "CreateLun", "ssta{sv}", "away", "linear", MIB, options)
            time.sleep(1)
            began = time.monotonic()
            assert (client.get(vol, LUN, "Status"), client.get(far, DRIVE, "Status")) == ("online", "online")
            assert len(client.objects()) == 6
            took_s = time.monotonic() - began
            with pytest.raises(Refused) as refused:
                client.call(vol, LUN, "Extend", "ta{sv}", LUN_SIZE + MIB, {})
            daemon.told("; array lab is b")
        finally:
            slow.delay(0)  # What waits is let go.
        print(f"daemon: three questions beside a worker that the kernel holds took {1000 * took_s:.0f} ms")
        assert refused.value.name == "org.blkrecov1.Error.VDS_E_TIMEOUT"
        assert re.search("is (busy with CreateLun|being looked after)", refused.value.body[0])
        with suppress(Refused):  # It was not begun if the array was just being looked after.
            stuck.result(DEADLINE_S)
        assert client.get(vol, LUN, "Size") == LUN_SIZE

        run("dmsetup", "suspend", "--nolockfs", "blkrecov-lab-vol")
        client.call(far, DRIVE, "SetHotSpare", "ba{sv}", True, {})
        assert client.call(array, ARRAY, "CreateLun", "ssta{sv}", "more", "linear", MIB, {})
        assert Control().info("blkrecov-lab-vol").suspended
        assert client.get(vol, LUN, "Trouble").endswith("not by the array: all that is asked of it waits")
        run("dmsetup", "resume", "blkrecov-lab-vol")


def test_a_daemon_that_is_killed_is_followed_by_one_that_goes_on(lab: Lab, client: Client) -> None:
    """Its objects have the same paths; the task goes on where it was, and ends."""
    with running(lab) as first:
        array, vol = made(client, lab)
        disk = client.get(vol, LUN, "Device")
        digest = fill(disk, LUN_SIZE, seed=3)
        client.call(client.named(DRIVE, "d0"), DRIVE, "Fail", "a{sv}", {})
        slowly(array, client)
        task = client.call(vol, LUN, "Recover", "a{sv}", {})
        client.until("a third", lambda: client.get(task, TASK, "Percent") >= 33)
        waiting = client.begin(task, TASK, "Wait", "a{sv}", {})
        assert client.get(task, TASK, "State") == "in_progress"  # Asked after that, so it waits by now.
        first.kill()
        with pytest.raises(Refused) as refused:
            waiting.result(DEADLINE_S)
        assert refused.value.name == "org.freedesktop.DBus.Error.NoReply"
        assert checksum(disk) == digest
    with running(lab):
        assert client.get(task, TASK, "Percent") >= 25
        assert client.call(task, TASK, "Wait", "a{sv}", {})[:2] == ["completed", "S_OK"]
        assert (client.get(vol, LUN, "Health"), client.get(vol, LUN, "Device")) == ("healthy", disk)
        assert checksum(disk) == digest


def well_again(client: Client, array: str) -> None:
    """All drives are back, and all LUNs whole."""
    for path, known in client.objects().items():
        if DRIVE in known and known[DRIVE]["Status"] != "online":
            client.call(path, DRIVE, "Reconnect", "a{sv}", {})
    client.until("health", lambda: client.get(array, ARRAY, "Healthy"))


@pytest.mark.long
def test_a_daemon_may_be_killed_at_any_moment(lab: Lab, client: Client) -> None:
    """Whatever it was at: the next one has an array in order, with all of a LUN or nothing, and every task ends."""
    seed = random.randrange(2**32)
    print(f"daemon: killed at the moments of seed {seed}")
    moments = random.Random(seed)
    with running(lab):
        array, vol = made(client, lab)
        digest = fill(client.get(vol, LUN, "Device"), LUN_SIZE, seed=5)
    for number in range(8):
        with running(lab) as daemon:
            well_again(client, array)
            wanted = [
                client.begin(array, ARRAY, "CreateLun", "ssta{sv}", f"n{number}", "linear", MIB, {}),
                client.begin(client.named(DRIVE, moments.choice(("d0", "d1"))), DRIVE, "Fail", "a{sv}", {}),
                client.begin(vol, LUN, "Recover", "a{sv}", {}),
            ]
            time.sleep(moments.uniform(0, 4))
            daemon.kill()
            for each in wanted:
                with suppress(Refused):
                    each.result(DEADLINE_S)
    with running(lab):
        well_again(client, array)
        for path, known in client.objects().items():
            if TASK in known:
                client.call(path, TASK, "Wait", "a{sv}", {})
            if LUN in known:
                assert (client.get(path, LUN, "Status"), client.get(path, LUN, "Verified")) == ("online", True)
        assert checksum(client.get(vol, LUN, "Device")) == digest


def test_a_daemon_sleeps_feeds_the_watchdog_and_leaves_luns_as_they_are(lab: Lab, client: Client) -> None:
    with running(lab) as daemon:
        _array, vol = made(client, lab, drives=2)
        disk = client.get(vol, LUN, "Device")
        digest = fill(disk, LUN_SIZE, seed=4)
        run("udevadm", "settle")
        time.sleep(1)
        before = daemon.switches()
        time.sleep(3)
        woken = daemon.switches() - before
        print(f"daemon: idle for 3 s it has gone to sleep {woken} times")
        assert woken <= 2

        second = subprocess.run(
            [sys.executable, "-m", "blkrecov.daemon"],
            cwd=HERE,
            env={**os.environ, **lab.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (second.returncode, "VDS_E_DEVICE_IN_USE" in second.stderr) == (1, True)

        live = tables()
        assert daemon.terminate() == 0
        daemon.told("STOPPING=1")
        assert (tables(), checksum(disk)) == (live, digest)
    with running(lab, WATCHDOG_USEC="400000") as daemon:
        assert tables() == live
        for _ in range(3):
            daemon.told("WATCHDOG=1")


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.long)])
def test_a_daemon_with_many_luns_sleeps(lab: Lab, client: Client, seconds: int) -> None:
    """None of its threads wakes but the loop's, for the watchdog; next to no processor time passes; and it stays small."""
    watchdog_s = 8
    with running(lab, WATCHDOG_USEC=f"{watchdog_s}000000") as daemon:
        array, _vol = made(client, lab, drives=4)
        for number in range(19 if seconds > 10 else 5):
            options = {
                "drives": Variant("as", ["d2", "d3"] if number % 2 else ["d0", "d1"]),
                "export": Variant("b", seconds > 10),  # It takes half a second each.
            }
            client.call(array, ARRAY, "CreateLun", "ssta{sv}", f"l{number}", "raid1", MIB, options)
        client.until("health", lambda: client.get(array, ARRAY, "Healthy"))
        run("udevadm", "settle")
        time.sleep(2)
        before, ticks = daemon.threads(), daemon.ticks()
        time.sleep(seconds)
        after, used = daemon.threads(), daemon.ticks() - ticks
        memory = daemon.memory()
    woken = {thread: after[thread] - before[thread] for thread in after}
    loop = woken.pop(daemon.process.pid)
    print(
        f"daemon: {number + 2} LUNs, idle for {seconds} s: the loop woke {loop} times, other threads {sorted(woken.values())}, "
        f"{10 * used} ms of processor time; {memory} KiB"
    )
    assert loop <= seconds // (watchdog_s / 2) + 1
    # A tick is counted to whoever runs when it comes, so one that only wakes is given some.
    assert (len(woken) >= 2, set(woken.values()), used <= loop + 1) == (True, {0}, True)
    assert memory["Pss"] < 80 * 1024


def test_what_was_stopped_stays_so(lab: Lab, client: Client) -> None:
    """Over restarts of the daemon and looks at the status; until somebody asks for the array."""
    with running(lab):
        made(client, lab)
        assert blkrecov(lab, "array", "stop").status == 0
    with running(lab):
        array = client.named(ARRAY, "lab")
        assert not client.get(array, ARRAY, "Running")
        answer = blkrecov(lab, "status")
        assert (answer.status, answer.out.splitlines()[0]) == (1, "array lab is stopped")
        assert "what to do: blkrecov refresh --array lab" in answer.out
        assert blkrecov(lab, "array", "list", "--json").json[0]["stopped"]
        assert tables() == "No devices found"
        assert blkrecov(lab, "refresh").status == 0
        assert client.get(array, ARRAY, "Running")
        assert blkrecov(lab, "status").status == 0


def test_an_array_that_is_new_on_this_machine_is_left_alone_until_it_is_asked_for(lab: Lab, client: Client) -> None:
    """It may be another machine's, whose disks this one only holds."""
    lab.create(2)
    lab.stop()
    for mark in Path("/run/blkrecov").glob("*.stopped"):
        mark.unlink()  # The other machine has none.
    with running(lab, BLKRECOV_STATE=str(lab.directory / "other")):
        assert client.get(ROOT, MANAGER, "Arrays") == []
        (row,) = json.loads(client.call(ROOT, MANAGER, "GetArrays", "a{sv}", {}))
        assert (row["name"], tables()) == ("lab", "No devices found")
        array = client.call(ROOT, MANAGER, "OpenArray", "sa{sv}", row["uuid"], {})
        assert client.get(array, ARRAY, "Running")
        assert client.get(ROOT, MANAGER, "Arrays") == [array]


def test_a_disk_that_does_not_answer_at_the_start_holds_up_nothing_else(slow: Slow, lab: Lab, client: Client) -> None:
    """The daemon is ready, answers, and ends its loop when it is told to. The process has to wait for a thread that the kernel
    holds in the middle of a read: no signal ends that.
    """
    lab.create(2)
    with lab.opened() as array:
        array.add_drive(str(slow.directory / "far"), size=DRIVE_SIZE, name="far", spare=False, force=False)
    lab.stop()
    assert blkrecov(lab, "array", "create", "second").status == 0
    with suppress(OSError):
        next(Path("/run/blkrecov").glob("*.stopped")).unlink()
    run("dmsetup", "suspend", "--noflush", "--nolockfs", "lab-slow")
    try:
        began = time.monotonic()
        daemon = Daemon(lab)
        started_s = time.monotonic() - began
        assert len(client.get(ROOT, MANAGER, "Arrays")) == 2
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        daemon.told("STOPPING=1")
        ended_s = time.monotonic() - began
    finally:
        run("dmsetup", "resume", "lab-slow")
    assert daemon.process.wait(DEADLINE_S) == 0
    daemon.close()
    print(
        f"daemon: beside a disk that does not answer it was ready after {started_s:.1f} s, ending after {ended_s:.1f} s"
    )
    assert ended_s < 5
