"""The package that is tested, and the figures that a run ends with."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.machine import ROOT

_FIGURES: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long is left out, unless BLKRECOV_LONG=1."""
    if not os.environ.get("BLKRECOV_LONG"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for figure in _FIGURES:
        terminalreporter.write_line(figure)


@pytest.fixture(scope="session")
def figure() -> Callable[[str], None]:
    """Note a line for the end of the run."""
    return _FIGURES.append


@pytest.fixture(scope="session")
def built() -> tuple[Path, Path]:
    """The wheel and the Debian package, as scripts/package has just made them."""
    done = subprocess.run([ROOT / "scripts/package"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel, package = done.stdout.split()[-2:]
    return ROOT / wheel, ROOT / package
