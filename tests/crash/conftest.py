"""The seed of a run, how long it is to be, and the figures it ends with.

BLKRECOV_CRASH_SEED      repeats a run's choices: what is written, when the power goes
BLKRECOV_CRASH_ROUNDS    how many power cuts; from 3 on also all points of the control plane, not a sample
"""

import os
import random
import secrets
from collections.abc import Callable

import pytest

_FIGURES: list[str] = []
SEED = os.environ.get("BLKRECOV_CRASH_SEED") or secrets.token_hex(4)
ROUNDS = int(os.environ.get("BLKRECOV_CRASH_ROUNDS", "2"))


def pytest_report_header() -> str:
    return f"crash tests: BLKRECOV_CRASH_SEED={SEED} BLKRECOV_CRASH_ROUNDS={ROUNDS}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _FIGURES:
        terminalreporter.section(f"figures (BLKRECOV_CRASH_SEED={SEED})")
    for figure in _FIGURES:
        terminalreporter.write_line(figure)


@pytest.fixture(scope="session")
def figure() -> Callable[[str], None]:
    """Note a line for the end of the run."""
    return _FIGURES.append


@pytest.fixture(scope="session")
def chance() -> Callable[[str], random.Random]:
    """Random numbers of a name's own: adding a test does not change another's."""
    return lambda name: random.Random(f"{SEED} {name}")


@pytest.fixture(scope="session")
def rounds() -> int:
    return ROUNDS
