"""Metrics that blkrecovd serves, asked for over HTTP: while a recovery runs, and while an array is stuck."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import pytest
from dbus_fast import Variant
from prometheus_client.parser import text_string_to_metric_families

from blkrecov.bus.interfaces import ARRAY, DRIVE, LUN, TASK
from blkrecov.settings import CONFIGURATION
from blkrecov.units import MIB
from tests.kernel.buslab import HERE, LUN_SIZE, Client, made, running, size, slowly
from tests.kernel.lab import DEADLINE_S, Lab, Slow, fill
from tests.kernel.lab import DRIVE as DRIVE_SIZE

PORT: Final = 9835
SOCKET: Final = Path("/run/blkrecov/metrics.sock")
BIG: Final = 24 * MIB
WORK: Final = frozenset({"lab", "1", "recover", "vol"})
Found = dict[tuple[str, frozenset[str]], float]


@pytest.fixture(params=[f"127.0.0.1:{PORT}", str(SOCKET)], ids=["port", "socket"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from configured(request.param)


@pytest.fixture
def on_port() -> Iterator[str]:
    yield from configured(f"[::1]:{PORT}")


def configured(place: str) -> Iterator[str]:
    CONFIGURATION.parent.mkdir(exist_ok=True)
    CONFIGURATION.write_text(f'metrics = "{place}"\n')
    yield place
    CONFIGURATION.unlink()


class _OnSocket(HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(SOCKET))


def scraped(place: str) -> Found:
    """Every sample by its name and its labels' values."""
    connection = _OnSocket("localhost") if place.startswith("/") else HTTPConnection(place, timeout=DEADLINE_S)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    assert answer.status == 200
    families = text_string_to_metric_families(answer.read().decode())
    connection.close()
    return {
        (sample.name.removeprefix("blkrecov_"), frozenset(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_recovery_is_seen_to_move(lab: Lab, client: Client, place: str) -> None:
    """How far the task is, how much is equal and what was written grow, by what the kernel says at each scrape."""
    with running(lab):
        array, vol = made(client, lab)
        fill(client.get(vol, LUN, "Device"), LUN_SIZE, seed=1)
        client.call(vol, LUN, "Extend", "ta{sv}", BIG, {})
        client.until("its members to be equal", lambda: client.get(vol, LUN, "Health") == "healthy")
        slowly(array, client, 8 * MIB)
        client.call(client.named(DRIVE, "d0"), DRIVE, "Fail", "a{sv}", {})
        task = client.call(vol, LUN, "Recover", "a{sv}", {})
        looks = []
        while client.get(task, TASK, "State") == "in_progress":
            looks.append(scraped(place))
            time.sleep(0.1)
        looks.append(scraped(place))
    lun = frozenset({"lab", "vol"})
    ratios = [look["lun_sync_ratio", lun] for look in looks]
    done = [look["task_progress_ratio", WORK] for look in looks if ("task_progress_ratio", WORK) in look]
    print(
        f"metrics: {place}: {len(looks)} scrapes of a recovery, {len(set(done))} percentages, {len(set(ratios))} ratios"
    )
    assert (done == sorted(done), len(set(done)) >= 3) == (True, True)
    assert (min(ratios) < 1, ratios[-1], len(set(ratios)) >= 3) == (True, 1, True)
    written = [look["drive_written_bytes_total", frozenset({"lab", "d2"})] for look in looks]
    assert (written == sorted(written), written[-1] >= BIG) == (True, True)
    assert looks[0]["drive_status", frozenset({"lab", "d0", "failed"})] == 1
    ends = {state: looks[-1]["tasks", frozenset({"lab", "recover", state})] for state in ("in_progress", "completed")}
    assert ends == {"in_progress": 0, "completed": 1}
    assert looks[-1]["array_up", frozenset({"lab"})] == 1


def test_a_stuck_array_holds_up_no_scrape(slow: Slow, lab: Lab, client: Client, on_port: str) -> None:
    """What is known is told, counters count, and how long the array has been busy says that it is stuck."""
    with running(lab):
        array, vol = made(client, lab)
        path = str(slow.directory / "far")
        options = {"size": size(DRIVE_SIZE), "name": Variant("s", "far")}
        client.call(array, ARRAY, "AddDrive", "sa{sv}", path, options)
        lab.drives.append("far")
        before = scraped(on_port)
        slow.delay(300_000)
        try:
            wanted = ("away", "linear", MIB, {"drives": Variant("as", ["far"])})
            stuck = client.begin(array, ARRAY, "CreateLun", "ssta{sv}", *wanted)
            client.until(
                "the kernel to hold it", lambda: scraped(on_port)["array_busy_seconds", frozenset({"lab"})] > 2
            )
            fill(client.get(vol, LUN, "Device"), MIB, seed=2)
            began = time.monotonic()
            now = scraped(on_port)
            took_s = time.monotonic() - began
        finally:
            slow.delay(0)  # What waits is let go.
        print(f"metrics: a scrape beside a stuck array took {1000 * took_s:.0f} ms")
        assert took_s < 2
        lun = frozenset({"lab", "vol"})
        assert now["lun_sync_ratio", lun] == 1
        assert now["lun_written_bytes_total", lun] >= before["lun_written_bytes_total", lun] + MIB
        stuck.result(DEADLINE_S)
        client.until("leisure", lambda: scraped(on_port)["array_busy_seconds", frozenset({"lab"})] == 0)


def test_a_place_that_is_no_place_of_this_machine_s_own_is_refused(lab: Lab, bus: None) -> None:
    """It says so, and what may be given, and does not begin."""
    for _ in configured("0.0.0.0:9835"):
        done = subprocess.run(
            [sys.executable, "-m", "blkrecov.daemon"], cwd=HERE, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert "metrics = '0.0.0.0:9835'" in done.stderr
    assert "127.0.0.1:9835" in done.stderr


def test_arrays_are_looked_after_where_metrics_cannot_be_served(lab: Lab, client: Client, on_port: str) -> None:
    """Somebody else may have the port."""
    with socket.create_server(("::1", PORT), family=socket.AF_INET6), running(lab) as daemon:
        array, _vol = made(client, lab, drives=2)
        assert client.get(array, ARRAY, "Healthy")
        assert "metrics cannot be served" in daemon.log.read_text()
