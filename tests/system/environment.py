"""In the guest: an environment of pip's in the place of the Debian package, put into the machine by `blkrecov install`."""

import grp
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.system.guest import DATA, devices, is_mounted, run, states, unit
from tests.system.machine import Json

HOME: Final = Path("/opt/blkrecov")
PROGRAM: Final = HOME / "bin/blkrecov"
# Where an installation could leave something.
TREES: Final = ("/etc", "/usr/local")


def make(wheel: str) -> str:
    """What `python3 -m venv` and `pip install blkrecov` make; the libraries are the package's, for here is no network. What is
    said to an installation beside that package.
    """
    run("/usr/bin/python3", "-m", "venv", "--without-pip", HOME)
    (library,) = HOME.glob("lib/python*/site-packages")
    shutil.copytree(
        "/usr/lib/blkrecov", library, dirs_exist_ok=True, ignore=shutil.ignore_patterns("blkrecov*", "boot")
    )
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--python",
        HOME / "bin/python",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
    )
    run(*pip, "--no-compile", "--ignore-installed", wheel)
    return refusal(PROGRAM, "install")


def swap(package: str) -> Json:
    """The package has gone; the environment comes, and goes again, while an array is up."""
    began = time.monotonic()
    # The package leaves it behind, as Debian's packages do.
    run("groupdel", "blkrecov")
    before, up = files(), devices()
    report: Json = {"written": json.loads(run(PROGRAM, "install", "--json"))["written"]}
    report["again"] = json.loads(run("/usr/local/bin/blkrecov", "install", "--json"))["written"]
    report["group"] = has_group()
    report["refused_package"] = refusal("dpkg", "--install", "--force-unsafe-io", package)

    run("systemctl", "enable", "--now", "blkrecovd.service")
    report["states"] = states()
    report["generated"] = Path("/run/systemd/generator/blkrecov-arrays.service.d/drives.conf").exists()
    link = Path("/dev/blkrecov/la-b/da-ta")
    link.unlink()
    run("udevadm", "trigger", "--settle", "--subsystem-match=block", "--sysname-match=sd*")
    report["link"] = os.path.realpath(link).startswith("/dev/sd")

    report["removed"] = json.loads(run(PROGRAM, "uninstall", "--json"))["removed"]
    report["left"] = {
        "files": sorted(files() ^ before),
        "group": has_group(),
        "service": unit("blkrecovd.service", "ActiveState"),
        "devices": devices() == up,
    }
    report["took_s"] = time.monotonic() - began
    return report


def enable(wheel: str, _package: str) -> Json:
    """In the place of the package, for the next start of the machine."""
    make(wheel)
    run("dpkg", "--purge", "blkrecov")
    run(PROGRAM, "install")
    run("systemctl", "enable", "--now", "blkrecovd.service")
    return {"states": states()}


def started(_wheel: str, _package: str) -> Json:
    """After that start."""
    return {
        "states": states(),
        "mounted": is_mounted(DATA),
        "resyncs": run("dmesg").count("resync of RAID array"),
        "arrays_began": int(unit("blkrecov-arrays.service", "InactiveExitTimestampMonotonic")) / 1e6,
        "came": {
            name: int(unit(name, "ActiveEnterTimestampMonotonic")) / 1e6 for name in ("srv-drives.mount", "data.mount")
        },
        "failed": run("systemctl", "list-units", "--failed", "--plain", "--no-legend").splitlines(),
    }


def refusal(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode, f"{words} was to be refused\n{done.stdout}"
    return done.stderr


def files() -> set[str]:
    """All paths, but what other programs keep for themselves there."""
    own = ("/etc/ld.so.cache", "/etc/group", "/etc/gshadow", "/etc/.pwd.lock", "/etc/target")
    found = (str(path) for tree in TREES for path in Path(tree).rglob("*"))
    return {path for path in found if not path.startswith(own)}


def has_group() -> bool:
    return any(group.gr_name == "blkrecov" for group in grp.getgrall())
