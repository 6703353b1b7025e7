"""blkrecovd as systemd runs it: the demo's story by D-Bus and by commands, and the service's own ends.

The second start of the machine goes on with it (tests/system/service.py); what the tests look at is what the guest has noted.
"""

import pytest

from tests.system.machine import Json

# What the group may call of what there is: what it reads by, and what answers and changes nothing.
READING = {
    "org.freedesktop.DBus.Introspectable.Introspect",
    "org.freedesktop.DBus.ObjectManager.GetManagedObjects",
    "org.freedesktop.DBus.Peer.GetMachineId",
    "org.freedesktop.DBus.Peer.Ping",
    "org.freedesktop.DBus.Properties.Get",
    "org.freedesktop.DBus.Properties.GetAll",
}
ANSWERING = {
    *(f"org.blkrecov1.Array.{name}" for name in ("Find", "GetActivity", "GetEvents", "GetObjects", "GetState")),
    *(f"org.blkrecov1.Lun.{name}" for name in ("GetInformation", "Verify")),
    *(f"org.blkrecov1.Task.{name}" for name in ("GetTaskInfo", "Wait")),
    "org.blkrecov1.Manager.GetArrays",
}
GAP_S = 2


@pytest.mark.parametrize("way", ["bus", "commands"])
def test_every_file_is_what_it_was_after_each_chapter(service: Json, way: str) -> None:
    """Read from the drives: after a drive failed while files were written, after a restore, after a drive came back."""
    told = service[way]
    assert [told[chapter] for chapter in ("recovered", "ruined", "restored", "reconnected")] == [True] * 4
    assert told["degraded"] == "failed_redundancy"


def test_a_file_system_of_a_lun_that_had_failed_is_mounted_again(service: Json) -> None:
    """By the service, whose sandbox has to let it."""
    told = service["commands"]
    assert (told["failed"], told["mounted"]) == ("failed", [True, True])


@pytest.mark.parametrize("way", ["bus", "commands"])
def test_a_disk_says_of_itself_what_the_array_says(service: Json, way: str) -> None:
    """Before and after all that, in the words of sg_vpd."""
    before, known, after, verified = service[way]["identity"]
    assert (before, after, verified) == (known, known, True)


@pytest.mark.parametrize("way", ["bus", "commands"])
def test_the_journal_says_what_the_service_did(service: Json, way: str) -> None:
    """Nobody else recovered the LUN."""
    lun, spare = {"bus": ("vol", "d2"), "commands": ("data", "d3")}[way]
    journal = service[way]["journal"]
    assert f"recover of LUN {lun} onto drive {spare} has begun" in journal
    assert any(line.startswith(f"recover of LUN {lun} is done: verified: ") for line in journal)


def test_the_bus_tells_what_happens(service: Json) -> None:
    """busctl introspect shows all that a LUN has; signals tell each change, and of each task that it has ended, however short."""
    told = service["bus"]
    assert sorted(told["shown"]) == sorted(told["there"])
    assert told["meanwhile"] > 0
    assert told["recovery"] == ["completed", "Completed", 100]
    # In between it may have been seen rebuilding.
    assert (told["health"][0], told["health"][-1]) == ("failed_redundancy", "healthy")
    assert told["drives"] == ["d0", "d2"]
    assert (told["restore"], told["reconnect"]) == (["completed", "S_OK"], ["completed", "S_OK"])
    assert told["completed"] == ["completed"] * len(told["tasks"])
    assert told["gone"]


def test_commands_work_beside_the_service(service: Json) -> None:
    told = service["commands"]
    assert told["recovery"] == ["healthy", ["d0", "d3", "d2"]]
    assert told["tasks"] == {"recover": "completed", "resync": "completed", "reconnect": "completed"}
    assert told["end"] == ["online", "healthy"]


@pytest.mark.parametrize("task", ["rebuild", "restore"])
def test_a_task_goes_on_whatever_becomes_of_the_service(service: Json, task: str) -> None:
    """Killed, restarted, stopped and started, ended by the watchdog: each time it is there again, and the task where it was."""
    told = service["ended"]
    wanted = {"rebuild": ["kill", "restart", "stop_answering"], "restore": ["kill", "stop_and_start"]}[task]
    assert [row["way"] for row in told[task]][: len(wanted)] == wanted
    for row in told[task]:
        before, after = row["percent"]
        # Who looks again after a restart may see a little less at first.
        assert (row["state"], after >= before - 5) == ("in_progress", True), row
    assert told[{"rebuild": "rebuilt", "restore": "restored"}[task]] == ["completed", "S_OK", "healthy", True]


def test_the_watchdog_spares_a_service_that_the_kernel_holds_up(service: Json) -> None:
    """An array waits for a disk that does not answer, for twice as long as the watchdog does; the loop turns all the same."""
    assert service["slow"]["lived"]


def test_no_write_waits_for_the_service(service: Json) -> None:
    """LUNs are the kernel's: one beside those that were worked on was written to all the time."""
    written = service["written"]
    assert (written["trouble"], written["writes"] > 100) == (None, True)
    assert written["longest_s"] < GAP_S + service["unhindered_s"]


def test_the_group_reads_everything_and_changes_nothing(service: Json) -> None:
    """Every property of every object; and what it may call besides changes nothing, however it is called."""
    told = service["others"]
    assert set(told["kinds"]) == {
        f"org.blkrecov1.{name}" for name in ("Manager", "Array", "Drive", "Lun", "ShadowCopy", "Task", "RestoreSession")
    }
    assert (told["read"]["reader"], told["same"]) == (told["asked"][0], True)
    assert READING <= set(told["not_denied"]["reader"]) <= READING | ANSWERING
    assert told["heard"]["reader"] == told["heard"]["root"] == {"InterfacesRemoved": 1}
    assert told["unchanged"]


def test_a_stranger_reads_hears_and_changes_nothing(service: Json) -> None:
    told = service["others"]
    assert told["read"]["stranger"] == 0
    assert (told["not_denied"]["stranger"], told["heard"]["stranger"]) == ([], {})
