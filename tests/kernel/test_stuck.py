"""What is stuck holds up itself and nothing else: a LUN that somebody has suspended, a drive that does not answer, an array whose
process the kernel holds. The others work beside it, and every question is answered.
"""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from dbus_fast import Variant

from blkrecov import locks
from blkrecov.array import Array
from blkrecov.bus.interfaces import ARRAY, DRIVE, LUN
from blkrecov.dm import stalled
from blkrecov.dm.control import Control
from blkrecov.dm.stalled import Stalled
from blkrecov.engine import create_array, list_arrays
from blkrecov.errors import DeviceInUse
from blkrecov.model import TaskState
from blkrecov.shadows import ShadowRequest
from blkrecov.units import MIB, Bytes
from tests.kernel.buslab import LUN_SIZE, Client, Refused, made, running
from tests.kernel.lab import (
    Lab,
    Slow,
    blkrecov,
    checksum,
    disk_of,
    fill,
    in_sync,
    lun,
    recover,
    run,
    scrub,
    states,
    until,
    write,
)

BLOCK: Final = 4096


@contextmanager
def suspended(name: str, *, awaited: str | None = None) -> Iterator[None]:
    """A device on which everything waits, with a write to `awaited` under way."""
    run("dmsetup", "suspend", "--noflush", "--nolockfs", name)
    writer = threading.Thread(target=write, args=(awaited, 0, bytes(BLOCK)))
    try:
        if awaited is not None:
            writer.start()
            time.sleep(0.2)
        yield
    finally:
        run("dmsetup", "resume", name)
        if awaited is not None:
            writer.join()


def problems(lab: Lab) -> list[tuple[str, str, str]]:
    """What `blkrecov status` says."""
    shown = blkrecov(lab, "status", "--json", "--array", lab.name).json
    return [(problem["name"], problem["state"], problem["remedy"]) for problem in shown["problems"]]


# A LUN.


def test_luns_beside_a_suspended_one_do_all_that_luns_do(lab: Lab) -> None:
    """It is left to whoever has suspended it; what would wait for it is refused, and the remedy works."""
    lab.create(4)
    with lab.opened() as array:
        a = lun(array, "a", "raid1", LUN_SIZE, drives=("d0", "d1"))
        lun(array, "b", "raid1", LUN_SIZE, drives=("d1", "d2"))
        in_sync(array, "a")
        in_sync(array, "b")
    began = time.monotonic()
    with suspended("blkrecov-lab-a", awaited=a):
        assert problems(lab) == [("a", "suspended", "let it go on with: dmsetup resume blkrecov-lab-a")]
        with lab.opened() as array:
            digest = fill(disk_of(array, "b"), LUN_SIZE, seed=1)
            lun(array, "c", "linear", 4 * MIB, drives=("d3",))
            array.carry_out(array.propose_shadows([ShadowRequest(origin="b", name="s")])[0])
            assert checksum(disk_of(array, "s")) == digest
            array.carry_out(array.propose_delete("s"))
            array.carry_out(array.propose_extend("b", Bytes(LUN_SIZE + 4 * MIB)))
            array.carry_out(array.propose_delete("c"))
            assert scrub(array, "b").state is TaskState.COMPLETED
            # Both have lost it, and both get another: what is below the suspended one is not.
            array.fail_drive("d1")
            for name in ("a", "b"):
                recover(array, name, "d3")
                assert states(array, name) == ["in_sync", "in_sync"]
            for propose in (
                lambda: array.propose_delete("a"),
                lambda: array.propose_extend("a", Bytes(2 * LUN_SIZE)),
                lambda: array.propose_shadows([ShadowRequest(origin="a", name="s")]),
                array.stop,
            ):
                with pytest.raises(DeviceInUse, match="LUN 'a' is suspended, and not by the array") as refused:
                    propose()
                assert refused.value.remedy.endswith("dmsetup resume blkrecov-lab-a")
        assert Control().info("blkrecov-lab-a").suspended
    print(f"stuck: a LUN's array did everything else in {time.monotonic() - began:.0f} s")
    assert [name for name, _, _ in problems(lab)] == ["d1"]


def test_a_lun_that_we_left_suspended_is_resumed(lab: Lab) -> None:
    """A process that was killed had written down that it would suspend it."""
    lab.create(1)
    with lab.opened() as array:
        lun(array, "a", "linear", LUN_SIZE, exported=False)
        array.suspensions.begin("blkrecov-lab-a")
        run("dmsetup", "suspend", "blkrecov-lab-a")
    with lab.opened() as array:
        assert not Control().info("blkrecov-lab-a").suspended
        assert array.suspensions.names() == frozenset()


def test_a_daemon_serves_the_others_beside_a_suspended_lun(lab: Lab, client: Client) -> None:
    """And one that is killed and followed by another does so too."""
    with running(lab) as first:
        array, vol = made(client, lab)
        disk = client.get(vol, LUN, "Device")
        with suspended("blkrecov-lab-vol", awaited=disk):
            options = {"drives": Variant("as", ["d2"])}
            more = client.call(array, ARRAY, "CreateLun", "ssta{sv}", "more", "linear", MIB, options)
            assert client.get(vol, LUN, "Trouble").startswith("LUN 'vol' is suspended")
            assert client.get(more, LUN, "Trouble") == ""
            with pytest.raises(Refused) as refused:
                client.call(vol, LUN, "Delete", "a{sv}", {})
            assert refused.value.name == "org.blkrecov1.Error.VDS_E_DEVICE_IN_USE"
            first.kill()
            with running(lab):
                assert client.get(vol, LUN, "Trouble").startswith("LUN 'vol' is suspended")
                client.call(client.named(LUN, "more"), LUN, "Delete", "a{sv}", {})
    with lab.opened() as opened:
        assert "lun_suspended" in [event.kind.value for event in opened.events.read()]


# A drive.


def test_a_drive_that_does_not_answer_holds_up_what_is_on_it(slow: Slow, lab: Lab) -> None:
    """It stands on a suspended disk. Whoever opens the array does not ask it; what needs it is refused."""
    lab.create(4)
    with lab.opened() as array:
        array.add_drive(str(slow.directory / "far"), size=slow.drive, name="far", spare=False, force=False)
        lab.drives.append("far")
        lun(array, "a", "raid1", LUN_SIZE, drives=("far", "d0"))
        lun(array, "b", "raid1", LUN_SIZE, drives=("d1", "d2"))
        in_sync(array, "a")
        in_sync(array, "b")
    began = time.monotonic()
    with suspended("lab-slow"):
        assert problems(lab) == [("far", "stalled", "let it go on with: dmsetup resume lab-slow")]
        with lab.opened() as array:
            sequence = array.document.sequence
            lun(array, "c", "linear", 4 * MIB, drives=("d3",))
            assert array.document.sequence > sequence
            # Of itself the array chooses others: the largest free space is on this one.
            array.fail_drive("d1")
            recover(array, "b")
            assert all(array.document.drive("far").uuid not in array.document.lun(name).drives for name in ("b", "c"))
            for refused in (
                lambda: lun(array, "d", "linear", MIB, drives=("far",)),
                lambda: array.propose_delete("a"),
                lambda: array.propose_extend("a", Bytes(2 * LUN_SIZE)),
                array.stop,
            ):
                with pytest.raises(Stalled, match="lab-slow is suspended"):
                    refused()
            assert [item.name for item in array.document.luns] == ["a", "b", "c"]
        run("dmsetup", "resume", "lab-slow")
        with lab.opened() as array:
            array.catch_up()
            assert array.document.drive("far").online
            assert states(array, "a") == ["in_sync", "in_sync"]
    print(f"stuck: an array did without a drive that did not answer in {time.monotonic() - began:.0f} s")


def test_a_suspend_gives_up_when_nothing_ends(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would wait for ever. What was begun is taken back, and the device goes on as before."""
    monkeypatch.setattr(stalled, "PATIENCE_S", 0.5)
    lab.create(1)
    with lab.opened() as array, Control() as control:
        node = lun(array, "a", "linear", LUN_SIZE, exported=False)
        run("dmsetup", "create", "lab-upper", "--table", f"0 2048 linear {node} 0")
        with suspended("blkrecov-lab-a", awaited="/dev/mapper/lab-upper"):
            with pytest.raises(Stalled, match="DEV_SUSPEND lab-upper: no request to it has come back"):
                control.suspend("lab-upper")
            assert not control.info("lab-upper").suspended
        control.suspend("lab-upper")
        control.resume("lab-upper", visible=True)
        run("dmsetup", "remove", "--retry", "lab-upper")


# An array.


def test_arrays_beside_a_stuck_one_are_opened_changed_and_made(slow: Slow, lab: Lab) -> None:
    """Its drive does not answer, and somebody has it open."""
    far = Lab(lab.directory, "far")
    lab.create(2)
    create_array(lab.settings, "far")
    with far.opened() as array:
        array.add_drive(str(slow.directory / "d0"), size=slow.drive, name="d0", spare=False, force=False)
        device = lun(array, "a", "linear", LUN_SIZE, exported=False)
        with suspended("lab-slow", awaited=device):
            began = time.monotonic()
            with lab.opened() as other:
                lun(other, "b", "raid1", LUN_SIZE, drives=("d0", "d1"))
            create_array(lab.settings, "third")
            assert [found.name for found in list_arrays(lab.settings)] == ["far", "lab", "third"]
            lab.stop()
            with (
                pytest.raises(DeviceInUse, match=f"process {os.getpid()} is working on array far"),
                Array.opened(far.settings, "far", patience_s=0.1),
            ):
                pass
            print(f"stuck: three other things beside a stuck array took {time.monotonic() - began:.1f} s")
        array.stop()
    lab.forget("third")


def test_whom_the_kernel_holds_is_not_waited_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wants the array is told in seconds where that process is."""
    monkeypatch.setattr(locks, "HELD_S", 0.5)
    lab.create(1)
    with lab.opened() as array:
        node = lun(array, "a", "linear", LUN_SIZE, exported=False)

    def work() -> None:
        with lab.opened():
            write(node, 0, bytes(BLOCK))

    held = threading.Thread(target=work)
    with suspended("blkrecov-lab-a"):
        held.start()
        until("a write that waits", lambda: locks.held_at(str(held.native_id)))
        began = time.monotonic()
        with (
            pytest.raises(DeviceInUse, match=r"the kernel holds it in \w+: something below the array does not answer"),
            lab.opened(),
        ):
            pass
        assert time.monotonic() - began < 10
    held.join()


def test_one_file_becomes_a_drive_of_one_array(lab: Lab) -> None:
    """Though each has a lock of its own."""
    other = Lab(lab.directory, "other")
    lab.create(1)
    create_array(lab.settings, "other")
    run("truncate", "--size=36M", str(lab.path("wanted")))

    def add(which: Lab) -> str:
        with which.opened() as array:
            try:
                array.add_drive(str(lab.path("wanted")), size=None, name="wanted", spare=False, force=False)
            except DeviceInUse:
                return "refused"
        return which.name

    with ThreadPoolExecutor(2) as threads:
        answers = sorted(threads.map(add, (lab, other)))
    assert answers in (["lab", "refused"], ["other", "refused"])
    with other.opened() as array:
        array.stop()
    lab.forget("other")


# What wakes a daemon.


def test_an_array_without_drives_is_not_polled_and_opens_when_they_come(lab: Lab, client: Client) -> None:
    with running(lab):
        made(client, lab)
    lab.stop()
    for mark in Path("/run/blkrecov").glob("*.stopped"):
        mark.unlink()  # As after a boot.
    # As deep as nobody looks.
    away = lab.directory / "away" / "far"
    away.mkdir(parents=True)
    for name in lab.drives:
        lab.path(name).rename(away / name)
    with running(lab) as daemon:
        array = client.named(ARRAY, "lab")
        assert client.get(array, ARRAY, "Trouble").startswith("no drive of array 'lab' was found")
        time.sleep(1)
        before = daemon.switches()
        time.sleep(3)
        assert daemon.switches() - before <= 2
        began = time.monotonic()
        for name in lab.drives:
            (away / name).rename(lab.path(name))
        client.until("the array", lambda: client.get(array, ARRAY, "Trouble") == "")
        print(f"stuck: an array whose drives came back was open {time.monotonic() - began:.1f} s later")
        assert all(client.get(client.named(DRIVE, name), DRIVE, "Status") == "online" for name in lab.drives)
