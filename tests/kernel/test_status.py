"""What watches an array, on a real kernel: status, the live view, metrics, events that are followed, names for the shell."""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from blkrecov.cli.top import render
from blkrecov.dm.control import Control
from blkrecov.engine import create_array
from blkrecov.metrics import exposition
from blkrecov.overview import activity, sample
from blkrecov.survey import survey
from blkrecov.units import MIB
from tests.kernel.lab import Lab, Slow, blkrecov, fill, in_sync, lun, read, run, until

SIZE = 16 * MIB


def test_status_is_a_monitoring_system_s_check(lab: Lab) -> None:
    """0 while all is well; 1 with what is wrong and what to do, until it has been done."""
    lab.create(3)
    with lab.opened() as array:
        lun(array, "data", "raid1", SIZE, drives=("d0", "d1"))
        in_sync(array, "data")
    well = blkrecov(lab, "status")
    assert (well.status, well.out.splitlines()[0]) == (0, "array lab is healthy: 3 drives, 1 LUN")
    assert "lab: drives: 3 online; " in well.out

    blkrecov(lab, "drive", "fail", "d1")
    failed = blkrecov(lab, "status")
    assert failed.status == 1
    summary = "array lab is not healthy: drive d1 failed, LUN data failed redundancy; 3 drives, 1 LUN"
    assert failed.out.splitlines()[0] == summary
    assert "LUN data has lost 1 member of 2 (d1)\n  what to do: blkrecov recover data\n" in failed.out
    assert "drive d1 has failed" in failed.out
    told = blkrecov(lab, "status", "--json")
    assert (told.status, told.json["healthy"], told.json["summary"]) == (1, False, summary)
    assert [(problem["kind"], problem["name"]) for problem in told.json["problems"]] == [
        ("drive", "d1"),
        ("lun", "data"),
    ]
    assert told.json["luns"][0]["health"] == "failed_redundancy"
    assert told.json["arrays"][0]["luns"] == told.json["luns"]

    # What it says is to be done makes it well.
    assert blkrecov(lab, *told.json["problems"][1]["remedy"].split()[1:]).status == 0
    assert blkrecov(lab, "drive", "reconnect", "d1").status == 0
    assert blkrecov(lab, "status").status == 0


def test_status_shows_all_arrays(lab: Lab) -> None:
    """Where there are several, and nobody says which; one that is not well is enough."""
    lab.create(2)
    create_array(lab.settings, "other")
    shown = blkrecov(lab, "status")
    assert (shown.status, shown.out.splitlines()[0]) == (
        0,
        "array lab is healthy: 2 drives, 0 LUNs; array other is healthy: 0 drives, 0 LUNs",
    )
    assert blkrecov(lab, "drive", "fail", "d0", "--array", "lab").status == 0
    told = blkrecov(lab, "status", "--json")
    assert told.status == 1
    assert {view["name"]: view["healthy"] for view in told.json["arrays"]} == {"lab": False, "other": True}
    assert blkrecov(lab, "status", "--array", "other").status == 0
    lab.forget("other")
    blkrecov(lab, "drive", "reconnect", "d0")


def test_a_look_sees_what_was_moved(lab: Lab) -> None:
    """Bytes that a host has written to a LUN, on the LUN and on the drives below; who else asks takes no drive's time."""
    lab.create(2)
    with lab.opened() as array, Control() as control:
        disk = lun(array, "data", "raid1", SIZE, drives=("d0", "d1"))
        in_sync(array, "data")
        array.observe()
        with array.unlocked():
            before = survey(array, control)
            between = survey(array, control)
            assert all(between.traffic[uuid].read == before.traffic[uuid].read for uuid in before.traffic)
            fill(disk, 4 * MIB, seed=1)
            read(disk, 0, 2 * MIB)
            now = survey(array, control)
        moved = {uuid: now.traffic[uuid].written - before.traffic[uuid].written for uuid in now.traffic}
        data = array.document.lun("data").uuid
        assert moved[data] == 4 * MIB
        assert now.traffic[data].read - before.traffic[data].read >= 2 * MIB

        def busy() -> bool:
            fill(disk, 4 * MIB, seed=1)
            return survey(array, control).traffic[data].busy_ms > before.traffic[data].busy_ms

        # Counted in the kernel's ticks, of 10 ms here: so little may have met none (block/blk-core.c, update_io_ticks()).
        until("a tick at work", busy)
        for name in ("d0", "d1"):
            # Superblocks and bitmaps as well.
            assert 4 * MIB <= moved[array.document.drive(name).uuid] < 6 * MIB
        shown = activity(sample(now), sample(before))["luns"][0]
        assert shown["written"] == pytest.approx(4 * MIB / (now.at_s - before.at_s))
        console = Console(width=80, height=24)
        with console.capture() as captured:
            console.print(render(activity(sample(now), sample(before))))
        lines = captured.get().splitlines()
        assert lines[0].startswith("array lab is healthy: 2 drives, 1 LUN")
        assert any(line.startswith("data") and "raid1" in line for line in lines)
        assert max(map(len, lines)) <= 80


def test_a_recovery_is_seen_at_work(slow: Slow, lab: Lab) -> None:
    """Its task with a rate and the time left; the LUN's sync ratio, in the metrics too."""
    lab.create(2)
    with lab.opened() as array, Control() as control:
        lun(array, "data", "raid1", SIZE, drives=("d0", "d1"))
        in_sync(array, "data")
        array.add_drive(str(slow.directory / "d2"), size=slow.drive, name="d2", spare=False, force=False)
        array.fail_drive("d1")
        slow.delay(30)
        proposal, task = array.propose_recover("data", None)
        number = array.start(proposal, task).id
        try:
            looks = [survey(array, control)]

            def moved() -> bool:
                array.advance(number)
                looks.append(survey(array, control))
                return looks[-1].work[0].done > looks[-2].work[0].done

            until("some progress", moved)
            shown = activity(sample(looks[-1]), sample(looks[-2]))
            assert [(row["kind"], row["phase"]) for row in shown["tasks"]] == [("recover", "rebuild")]
            assert shown["tasks"][0]["rate"] > 0
            assert shown["tasks"][0]["left_s"] > 0
            assert 0 <= shown["luns"][0]["sync"] < 1
            found = {family.name: family.samples for family in text_string_to_metric_families(exposition([looks[-1]]))}
            assert 0 <= found["blkrecov_lun_sync_ratio"][0].value < 1
            assert found["blkrecov_task_progress_ratio"][0].labels["kind"] == "recover"
        finally:
            slow.delay(0)
        array.wait(number, timeout_s=60)
        blkrecov_errors = survey(array, control).errors
        assert set(blkrecov_errors) == {array.document.lun("data").uuid}
        proposal, task, _ = array.propose_remove("d1")
        array.remove(proposal, task)


def test_metrics_count_the_errors_of_a_lun(lab: Lab) -> None:
    """As its SCSI disk has: a LUN whose drive has failed answers every read with an error."""
    lab.create(2)
    with lab.opened() as array, Control() as control:
        disk = lun(array, "data", "linear", SIZE, drives=("d0",))
        uuid = array.document.lun("data").uuid
        before = survey(array, control)
        assert uuid in before.errors
        array.fail_drive("d0")
        with pytest.raises(OSError, match="Input/output"):
            read(disk, 0, 4096)
        now = survey(array, control)
        assert now.errors[uuid] > before.errors[uuid]
        (line,) = [line for line in exposition([now]).splitlines() if line.startswith("blkrecov_lun_io_errors_total{")]
        assert line == f'blkrecov_lun_io_errors_total{{array="lab",lun="data"}} {now.errors[uuid]:.1f}'
    with lab.opened() as array:
        proposal, task, found = array.propose_reconnect("d0")
        array.wait(array.reconnect(proposal, task, found).id, timeout_s=60)


def test_top_without_a_terminal_looks_twice(lab: Lab) -> None:
    """And with --json gives the figures."""
    lab.create(1)
    with lab.opened() as array:
        lun(array, "data", "linear", SIZE)
    shown = blkrecov(lab, "top", "--interval", "0.2")
    assert (shown.status, shown.out.splitlines()[0]) == (0, "array lab is healthy: 1 drive, 1 LUN")
    told = blkrecov(lab, "top", "--interval", "0.2", "--json")
    assert told.json["luns"][0]["written"] is not None
    assert told.json["drives"][0]["busy"] is not None


def test_top_on_a_terminal_ends_with_q(lab: Lab) -> None:
    """It draws itself again and again, lets others work on the array, and leaves the terminal as it was."""
    lab.create(1)
    main, terminal = os.openpty()
    command = [sys.executable, "-m", "blkrecov.cli.main", "top", "--interval", "0.2"]
    environment = {**os.environ, **lab.environment, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with (
        subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as process,
        ExitStack() as undo,
    ):
        undo.callback(process.kill)
        os.close(terminal)
        shown = b""

        def has(word: bytes) -> bool:
            nonlocal shown
            ready, _, _ = select.select([main], [], [], 0)
            if ready:
                shown += os.read(main, 65536)
            return word in shown

        until("the first screen", lambda: has(b"1 drive, 0 LUNs"))
        with lab.opened() as array:
            lun(array, "data", "linear", SIZE)
        until("a LUN that another process has made", lambda: has(b"1 drive, 1 LUN"))
        os.write(main, b"q")
        while process.poll() is None:
            has(b"")
            time.sleep(0.05)
        assert process.returncode == 0
    os.close(main)


def test_events_are_followed(lab: Lab) -> None:
    """By another process, as soon as they happen."""
    lab.create(2)
    command = [sys.executable, "-m", "blkrecov.cli.main", "events", "-f"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **lab.environment}) as process,
        ExitStack() as undo,
    ):
        undo.callback(process.kill)
        assert process.stdout is not None
        assert blkrecov(lab, "drive", "fail", "d0").status == 0
        assert b"  drive_failed: " in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    blkrecov(lab, "drive", "reconnect", "d0")


def test_the_shell_completes_names_for_everybody(lab: Lab) -> None:
    """Of what is loaded, and without being root; where that is nothing, it says nothing."""
    lab.create(3)
    with lab.opened() as array:
        lun(array, "data", "raid1", SIZE, drives=("d0", "d1"))
        lun(array, "dump", "linear", SIZE, drives=("d2",))
    words = ("snapshot", "create", "data", "monday", "--drives", "d2", "--store", "4M", "--layout", "linear")
    assert blkrecov(lab, *words).status == 0
    assert _completed("lun show ") == ["data", "dump", "monday"]
    assert _completed("drive fail ") == ["d0", "d1", "d2"]
    assert _completed("snapshot delete ") == ["monday"]
    blkrecov(lab, "array", "stop")
    assert _completed("lun show ") == []


def _completed(words: str) -> list[str]:
    """What bash would offer to nobody at the end of this line."""
    line = f"blkrecov {words}"
    environment = {
        "_BLKRECOV_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    options = [f"{name}={value}" for name, value in environment.items()]
    out = run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", *options, *_PROGRAM)
    return sorted(word.removeprefix("plain,") for word in out.split())


_PROGRAM = (sys.executable, "-m", "blkrecov.cli.main")
