"""blkrecovd as a process on a real kernel: it sleeps, it may be stuck, stopped and killed, and the arrays do not mind."""

import os
import random
import re
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from dbus_fast import Variant

from blkrecov.bus.interfaces import ARRAY, DRIVE, LUN, TASK
from blkrecov.dm.control import Control
from blkrecov.units import MIB
from tests.kernel.buslab import HERE, LUN_SIZE, Client, Refused, made, running, size, slowly
from tests.kernel.lab import DEADLINE_S, Lab, Slow, checksum, fill, run, tables
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
