"""The metrics: names by Prometheus' conventions, values, what there is none of; the dashboard that draws them; who may ask."""

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from blkrecov import provision
from blkrecov.metrics import Care, exposition
from blkrecov.metrics_server import CONNECTIONS, serve
from blkrecov.model import Document, Layout
from blkrecov.overview import Overview
from blkrecov.settings import Address
from blkrecov.units import MIB
from tests.unit.arrays import drives, raid_words, seen, with_lun, with_shadow
from tests.unit.overviews import at_work, counted, overview, recovery

PORT = Address("127.0.0.1", 0)
DASHBOARD = Path(__file__).resolve().parents[2] / "docs/grafana.json"
# Prometheus' base units, and what else a name may end with (prometheus.io/docs/practices/naming).
UNITS = ("_bytes", "_seconds", "_ratio", "_info", "_members", "_total")
PLAIN = {
    *("blkrecov_array_problems", "blkrecov_drive_hot_spare", "blkrecov_drive_recent_failures", "blkrecov_lun_members"),
    *("blkrecov_drive_status", "blkrecov_drive_health", "blkrecov_lun_status", "blkrecov_lun_health", "blkrecov_tasks"),
}


def mirror() -> Document:
    return with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))[0]


def values(*arrays: Overview) -> dict[tuple[str, frozenset[str]], float]:
    """Every sample by its name and its labels' values, without the array's."""
    found = {}
    for family in text_string_to_metric_families(exposition(arrays)):
        for sample in family.samples:
            assert sample.labels.get("array", "lab") == "lab"
            words = {value for label, value in sample.labels.items() if label != "array"}
            found[sample.name, frozenset(words)] = sample.value
    return found


def value(found: Mapping[tuple[str, frozenset[str]], float], name: str, *labels: str) -> float | None:
    return found.get((f"blkrecov_{name}", frozenset(labels)))


def rich() -> Overview:
    """An array that has something to tell of everything."""
    document = provision.fail_drive(with_shadow(mirror(), on=("d2",), layout=Layout.LINEAR)[0], "d1").document
    lun = msgspec.structs.replace(document.lun("v"), mismatches=8, scrubbed=1700000000)
    document = document.with_lun(lun)
    task = recovery(document)
    document = document.with_task(task)
    traffic = {document.drive("d0").uuid: counted(3, 5, 1500), lun.uuid: counted(2, 1, 250)}
    return overview(
        document, seen(document, raid_words("AD")), at_work(task, 1, 2), traffic=traffic, errors={lun.uuid: 4}
    )


def test_a_status_is_one_of_its_words() -> None:
    """1 for the one that it is, 0 for all others: so a sum over them is the number of objects."""
    found = values(rich())
    assert value(found, "drive_status", "d1", "failed") == 1
    assert value(found, "drive_status", "d1", "online") == 0
    assert value(found, "drive_status", "d0", "online") == 1
    assert value(found, "lun_health", "v", "failed_redundancy") == 1
    assert value(found, "lun_health", "v", "healthy") == 0
    for name in ("drive_status", "drive_health"):
        assert sum(found[key] for key in found if key[0] == f"blkrecov_{name}") == 3
    for name in ("lun_status", "lun_health"):
        assert sum(found[key] for key in found if key[0] == f"blkrecov_{name}") == 2


def test_counters_are_the_kernel_s() -> None:
    """In bytes and seconds; rates are Prometheus' business."""
    found = values(rich())
    assert value(found, "drive_read_bytes_total", "d0") == 3 * MIB
    assert value(found, "drive_written_bytes_total", "d0") == 5 * MIB
    assert value(found, "drive_reads_completed_total", "d0") == 3
    assert value(found, "drive_io_time_seconds_total", "d0") == 1.5
    assert value(found, "lun_written_bytes_total", "v") == MIB
    assert value(found, "lun_io_errors_total", "v") == 4
    assert value(found, "drive_read_bytes_total", "d2") is None


def test_how_the_daemon_looks_after_an_array() -> None:
    """One that cannot be opened has nothing else. A long time at the same thing says that it is stuck."""
    text = exposition([rich()], [Care("lab", up=True, busy_s=12.5), Care("other", up=False, busy_s=0)])
    for line in (
        'blkrecov_array_up{array="lab"} 1.0',
        'blkrecov_array_up{array="other"} 0.0',
        'blkrecov_array_busy_seconds{array="lab"} 12.5',
    ):
        assert line in text.splitlines()


def test_numbers() -> None:
    """Sizes, how much more may be lost, when the last scrub was, and what it counted."""
    found = values(rich())
    assert value(found, "lun_size_bytes", "v") == 64 * MIB
    assert value(found, "lun_members", "v") == 2
    assert value(found, "lun_fault_tolerance_members", "v") == 0
    assert value(found, "lun_last_scrub_timestamp_seconds", "v") == 1700000000
    assert value(found, "lun_mismatch_bytes", "v") == 4096
    assert value(found, "lun_shadow_copy_store_size_bytes", "s") == 16 * MIB
    assert value(found, "array_problems") == 3
    assert value(found, "task_progress_ratio", "7", "recover", "v") == 0.25
    assert value(found, "tasks", "recover", "in_progress") == 1
    assert value(found, "tasks", "scrub", "failed") == 0


def test_what_is_not_known_is_not_told() -> None:
    """No scrub yet is no scrub in 1970; a LUN that has lost a member is in sync with nobody."""
    document = mirror()
    found = values(overview(document, seen(document, raid_words("AD"))))
    for name in ("last_scrub_timestamp_seconds", "mismatch_bytes", "shadow_copy_store_size_bytes", "sync_ratio"):
        assert value(found, f"lun_{name}", "v") is None
    whole = values(overview(document, seen(document, raid_words("aa", "resync", "16/64"))))
    assert value(whole, "lun_sync_ratio", "v") == 0.25


def test_names_follow_the_conventions() -> None:
    """The project's prefix, small letters, a base unit at the end, `_total` for counters and for them only."""
    for family in text_string_to_metric_families(exposition([rich()])):
        for sample in family.samples:
            assert re.fullmatch(r"blkrecov_[a-z][a-z_]*", sample.name)
            assert sample.name.endswith(UNITS) or sample.name in PLAIN, sample.name
            assert sample.name.endswith("_total") == (family.type == "counter")
        assert family.documentation.endswith(".")


def test_without_an_array_every_metric_is_there_still() -> None:
    """A dashboard, or an alert for what is absent, needs the names."""
    declared = {line.split()[2] for line in exposition([]).splitlines() if line.startswith("# TYPE")}
    assert declared == {line.split()[2] for line in exposition([rich()]).splitlines() if line.startswith("# TYPE")}


def test_the_dashboard_draws_what_there_is() -> None:
    """Every metric that it names is one of ours, and every panel asks for something."""
    dashboard = json.loads(DASHBOARD.read_text())
    declared = {line.split()[2] for line in exposition([]).splitlines() if line.startswith("# TYPE")}
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert all(panel["targets"] for panel in panels)
    used = {name for expression in expressions for name in re.findall(r"\bblkrecov_\w+", expression)}
    assert used <= declared
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


# Who may ask.


async def asked(words: bytes, at: Address | Path) -> bytes:
    server = await serve(at, text)
    async with server:
        if isinstance(at, Path):
            reader, writer = await asyncio.open_unix_connection(at)
        else:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(words)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


async def text() -> str:
    return exposition([rich()])


@pytest.mark.parametrize("unix", [False, True])
def test_metrics_are_served(unix: bool, tmp_path: Path) -> None:
    """On 127.0.0.1 or on a Unix socket, a name that a killed process has left included."""
    at = tmp_path / "metrics.socket" if unix else PORT
    for _ in range(2):
        answer = asyncio.run(asked(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", at))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
        assert body.decode() == exposition([rich()])


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"HEAD /metrics?x=1 HTTP/1.0\r\n\r\n", b"200"),
        (b"\x16\x03\x01 nonsense\r\n\r\n", b"404"),
    ],
)
def test_nothing_else_is_answered(words: bytes, status: bytes) -> None:
    """And only GET has a body that counts."""
    head, _, body = asyncio.run(asked(words, PORT)).partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert (body == b"") == (status == b"200")


def test_too_much_is_not_listened_to() -> None:
    """The connection is closed without an answer."""
    assert asyncio.run(asked(b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 10000 + b"\r\n", PORT)) == b""


def test_connections_without_number_are_closed() -> None:
    """What is too many is closed at once; when others have gone there is room again."""

    async def crowded() -> tuple[bytes, bytes]:
        async with await serve(PORT, text) as server:
            place = server.sockets[0].getsockname()
            crowd = [(await asyncio.open_connection(*place))[1] for _ in range(CONNECTIONS)]
            reader, writer = await asyncio.open_connection(*place)
            refused = await reader.read()
            for each in (*crowd, writer):
                each.close()
                await each.wait_closed()
            reader, writer = await asyncio.open_connection(*place)
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return refused, answer

    refused, answer = asyncio.run(crowded())
    assert refused == b""
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
