"""The package that is tested, the machine that is started twice for all tests, and the figures that a run ends with."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.machine import ROOT, Json, Machine

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


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="session")
def first(machine: Machine, built: tuple[Path, Path], figure: Callable[[str], None]) -> Json:
    report = _noted(machine.boot(built, "first"), "first")
    figure(f"installed in {report['install_s']:.1f} s; {report['security'].lstrip('→ ')}")
    return report


@pytest.fixture(scope="session")
def booted_again(
    request: pytest.FixtureRequest, machine: Machine, first: Json, built: tuple[Path, Path]
) -> dict[str, Json]:
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    return machine.boot(built, "second", *({"service"} & wanted))


@pytest.fixture(scope="session")
def second(booted_again: dict[str, Json], figure: Callable[[str], None]) -> Json:
    report = _noted(booted_again, "second")
    came, wrote = report["came"], report["written"]
    began = report["began"][report["units"]["outer"]]
    figure(
        f"seconds after the start: drives' file system mounted {came['srv-drives.mount']:.1f}, arrays brought up "
        f"{began:.1f} to {came['blkrecov-arrays.service']:.1f}, LUN mounted {came['data.mount']:.1f}"
    )
    figure(
        f"upgrade, purge and installation beside {wrote['writes']} writes; the longest took {wrote['longest_s']:.2f} s"
    )
    figure(f"an environment of pip's installed, used and uninstalled in {report['environment']['took_s']:.1f} s")
    return report


@pytest.fixture(scope="session")
def started(machine: Machine, second: Json, built: tuple[Path, Path]) -> Json:
    """The machine with an environment of pip's in the place of the package, started again."""
    _noted(machine.boot(built, "enable"), "enable")
    return _noted(machine.boot(built, "started"), "started")


@pytest.fixture(scope="session")
def service(booted_again: dict[str, Json], figure: Callable[[str], None]) -> Json:
    report = _noted(booted_again, "service")
    seconds, wrote = report["seconds"], report["written"]
    figure(
        f"seconds: the story by D-Bus {seconds['bus']}, by commands {seconds['commands']}; the service ended in the midst "
        f"{seconds['ended']}, held up {seconds['slow']}, asked by others {seconds['others']}"
    )
    figure(
        f"beside them {wrote['writes']} writes; the longest took {wrote['longest_s']:.2f} s, "
        f"one to memory {report['unhindered_s']:.2f} s"
    )
    return report


def _noted(reports: dict[str, Json], part: str) -> Json:
    failure = reports[part].get("failure")
    assert failure is None, failure
    return reports[part]
