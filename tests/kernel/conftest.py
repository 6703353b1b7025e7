"""Fixtures of the tests that need an array: an ext4 for its drives, and an array that is gone when the test has ended."""

import ctypes
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.kernel.buslab import Client, system_bus
from tests.kernel.lab import Lab, Slow, made, run

DISK: Final = Path("/dev/ubda")
_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3


# Of the cases in these files one of so many is taken.
SHARES: Final = {
    "test_matrix_": 8,
    "test_layouts": 6,
    "test_snapshots": 4,
    "test_reconnect": 3,
    "test_replace": 2,
    "test_revival": 2,
    "test_bad_input": 4,
    "test_luns": 3,
    "test_restart": 3,
    "test_remove": 2,
}
_told: Final[list[str]] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A whole run stays below twenty minutes: it takes every eighth cell of the fault matrix, some of the cases of tables
    like it, and nothing that is marked long.

    BLKRECOV_LONG=1 takes all: scripts/vm --mem 3G --disk 6G -- env BLKRECOV_LONG=1 python -m pytest tests/kernel/...
    """
    if os.environ.get("BLKRECOV_LONG"):
        return
    left_out = {item for item in items if item.get_closest_marker("long")}
    for prefix, share in SHARES.items():
        cases = [item for item in items if item.path.name.startswith(prefix) and hasattr(item, "callspec")]
        left_out |= set(cases) - set(cases[::share])
    if left_out:
        config.hook.pytest_deselected(items=sorted(left_out, key=items.index))
        items[:] = [item for item in items if item not in left_out]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Figures that tests print are results: they are shown when all is done, whatever pytest captures."""
    if report.when == "teardown":  # Its output is that of all three phases.
        _told.extend(line for line in report.capstdout.splitlines() if line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _told:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def keep_memory() -> None:
    """Have malloc keep what is freed: a page that is new takes the guest 90 microseconds, and contents are compared a lot."""
    libc = ctypes.CDLL(None)
    for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        assert libc.mallopt(option, 2**30) == 1


@pytest.fixture(scope="session")
def ext4() -> Iterator[Path]:
    """A file system on which direct I/O can be had; the guest's own is an overlay in memory, which has none.

    Not below /tmp: what lies there may be anybody's, and is not looked for.
    """
    if not DISK.is_block_device():
        pytest.fail("these tests want a disk for their drives: scripts/vm --mem 3G --disk 6G -- python -m pytest ...")
    point = Path(tempfile.mkdtemp(prefix="ext4-", dir="/mnt"))
    run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", str(DISK))
    run("mount", str(DISK), str(point))
    yield point
    run("umount", str(point))


@pytest.fixture
def slow(ext4: Path) -> Iterator[Slow]:
    """Ask for it before `lab`, so that it is there for longer."""
    with Slow.made(ext4) as slow:
        yield slow


@pytest.fixture
def lab(ext4: Path) -> Iterator[Lab]:
    with made(ext4) as lab:
        yield lab


@pytest.fixture(scope="session")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with system_bus(tmp_path_factory.mktemp("bus")):
        yield


@pytest.fixture
def client(bus: None) -> Iterator[Client]:
    with Client.connected() as client:
        yield client
