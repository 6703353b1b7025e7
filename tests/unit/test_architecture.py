"""The map holds: imports point one way, pure modules stay pure, importing does nothing, and no path of ours is in a file."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "blkrecov"


class Layer(IntEnum):
    """A module imports from its own layer and from those below. The two faces know nothing of each other's innards."""

    PURE = 0
    ACTS = 1
    ENGINE = 2
    BUS = 3
    DAEMON = 4
    CLI = 5


_PURE = """
    units errors model geometry governor stack steps observed converge proposal faults provision recover replace scrub tasks views
    condition family flapping progress remove schedule turns shadows resync reconnect revival lineage changes signature
    dm.table dm.status dm.names dm.abi dm.superblock dm.cow dm.mirror_log drives.label page83.designator page83.identity
    page83.information dmrp.information dmrp.storage dmrp.notify
    overview traffic metrics
    state bus.interfaces bus.objects placement
"""
_ACTS = """
    actor bell blockdev catalog events freeze holders installing locks mounting mountinfo objects observer pressure settings
    journal suspensions surroundings systemd dm.stalled
    dm.control dm.events dm.kmsg dm.speed dm.sync dm.counters drives.arrivals drives.beneath drives.loop drives.probe drives.raw
    drives.scan drives.store drives.health drives.holes drives.trust drives.watch watch metrics_server page83.export page83.sysfs
    page83.udev page83.lun_information
"""
# A new module has to be put in its place here. `cli.` is one place for all of its files.
PLACES = {
    **dict.fromkeys(_PURE.split(), Layer.PURE),
    **dict.fromkeys(_ACTS.split(), Layer.ACTS),
    **dict.fromkeys(
        (
            "engine",
            "running",
            "restoring",
            "array",
            "monitor",
            "session",
            "rows",
            "survey",
            "methods",
            "boot",
            "worker",
            "scrape",
        ),
        Layer.ENGINE,
    ),
    "bus.service": Layer.BUS,
    "daemon": Layer.DAEMON,
    "manual": Layer.CLI,
}
# A face talks to the daemon through D-Bus, never by importing it.
FORBIDDEN = {(Layer.CLI, Layer.DAEMON), (Layer.CLI, Layer.BUS)}
IMPURE = {"os", "fcntl", "subprocess", "asyncio", "time", "random", "socket"}


def modules() -> dict[str, Path]:
    """Every module by its name inside the package; packages' own files are theirs."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def place(name: str) -> Layer | None:
    if name == "cli" or name.startswith("cli."):
        return Layer.CLI
    return Layer.PURE if name in PACKAGES else PLACES.get(name)


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a module imports, wherever in it: "os.path", "blkrecov.dm.names"."""
    for part in ast.walk(ast.parse(path.read_text())):
        if isinstance(part, ast.Import):
            yield from (alias.name for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            assert not part.level, f"{path} imports relatively"
            assert part.module is not None
            yield part.module
            # "from blkrecov.dm import names" imports a module, "from blkrecov.model import Lun" does not.
            for alias in part.names:
                full = f"{part.module}.{alias.name}"
                if full.removeprefix(f"{PACKAGE}.") in MODULES:
                    yield full


def ours(path: Path) -> list[str]:
    return [name.removeprefix(f"{PACKAGE}.") for name in imported(path) if name.startswith(f"{PACKAGE}.")]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_its_place(name: str) -> None:
    """A module that nobody placed could import anything."""
    assert place(name) is not None, f"put {name} into the table"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    """cli -> engine; daemon -> bus -> engine; engine -> acts -> pure."""
    here = place(name)
    assert here is not None
    for other in ours(MODULES[name]):
        there = place(other)
        assert there is not None, f"{name} imports {other}, which has no place"
        assert there <= here, f"{name} ({here.name}) imports {other} ({there.name})"
        assert (here, there) not in FORBIDDEN, f"{name} imports {other}"


@pytest.mark.parametrize("name", [name for name in MODULES if place(name) is Layer.PURE])
def test_a_pure_module_cannot_touch_the_world(name: str) -> None:
    """Without these it has no way to a file, a process, a clock or a die, so a test needs none either."""
    assert {full.partition(".")[0] for full in imported(MODULES[name])} & IMPURE == set()


@pytest.mark.parametrize("name", [name for name in PACKAGES if name])
def test_a_package_s_own_file_imports_nothing(name: str) -> None:
    """Else to import one pure module of it would be to import them all."""
    assert list(imported(MODULES[name])) == []


WATCH = """
import importlib, os, sys

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ACTS = ("subprocess.", "socket.", "os.exec", "os.fork", "os.posix_spawn", "os.system", "os.mkdir", "os.remove", "os.rename",
        "os.rmdir", "os.link", "os.symlink", "os.truncate", "fcntl.", "signal.", "shutil.")
seen = []


def hook(event, arguments):
    if event == "open":
        if arguments[2] & WRITING:
            seen.append(f"open {arguments[0]!r} for writing")
    elif event.startswith(ACTS):
        seen.append(f"{event} {arguments!r}")


sys.addaudithook(hook)
for name in sys.argv[1:]:
    importlib.import_module(name)
    if seen:
        sys.exit(f"importing {name} does: {'; '.join(seen)}")
"""


def test_importing_a_module_does_nothing() -> None:
    """No file written, no process started, no socket opened, no signal taken; so tools and tests may import anything."""
    names = [f"{PACKAGE}.{name}" if name else PACKAGE for name in MODULES if not name.endswith("__main__")]
    # -B: Python's own bytecode files are not what this is about.
    run = subprocess.run([sys.executable, "-B", "-c", WATCH, *names], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def repository_files() -> list[Path]:
    """What is in the repository, or would be after `git add`."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    listed = subprocess.run([*git, "--exclude-standard"], capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_place_of_one_machine() -> None:
    """Whoever clones it has other directories, and perhaps another package index."""
    # Written in pieces, for this file is looked at as well.
    places = ["/" + "work/", "/" + "root/", "pypi" + ".org", "pypi" + ".python", "python" + "hosted"]
    pattern = re.compile(rb"(?<![\w.])(" + "|".join(map(re.escape, places)).encode() + rb")")
    found = []
    for path in repository_files():
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.decode(errors='replace').strip()}")
    assert found == []
