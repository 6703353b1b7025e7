"""Tells this machine of an environment of pip's: units, rules, policies and the rest of what blkrecov.placement names.

What was written is noted before it is, in a manifest, so that a later run, another version's too, knows what is ours: it writes
over that and over nothing else, and takes back exactly that. Cut short at any point it is finished, or taken back, by the next.

Arrays are never touched. Services are started by the administrator, and stopped when their units go.
"""

import grp
import os
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files as resources
from pathlib import Path
from typing import Final

import msgspec

from blkrecov.errors import AccessDenied, InvalidArgument, InvalidOperation, NotSupported, ObjectExists, ProviderFailure
from blkrecov.placement import LOCAL, Changes, File, Programs, Reader, changes, files, writer

MANIFEST: Final = Path("/usr/local/lib/blkrecov/installed.json")
# Of the Debian package (scripts/package).
PACKAGED: Final = Path("/usr/lib/blkrecov/boot")
GROUP: Final = "blkrecov"
SERVICE: Final = "blkrecovd.service"
ARRAYS: Final = "blkrecov-arrays.service"


class Manifest(msgspec.Struct, frozen=True):
    """What is ours on this machine: files, directories that were not there before, and whether the group was."""

    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    group: bool = False


def templates() -> dict[str, str]:
    """The files that came with us, by name."""
    return {entry.name: entry.read_text() for entry in resources("blkrecov").joinpath("data").iterdir()}


def wanted(generated: Mapping[str, str]) -> tuple[File, ...]:
    """The files for the environment that this process runs in; `generated` are manual pages and completions by name.

    Raises: InvalidArgument for an environment in a directory that units cannot name.
    """
    script = Path(sysconfig.get_path("scripts"), "blkrecov")
    on_path = any(
        Path(place, "blkrecov").resolve() == script.resolve() for place in (LOCAL[Reader.PROGRAMS], "/usr/bin")
    )
    programs = Programs.of_environment(sys.executable, str(_library()), on_path=on_path)
    return files(LOCAL, programs, {**templates(), **generated})


def _library() -> Path:
    return Path(__file__).resolve().parents[1]


def refuse_package() -> None:
    """Raises: ObjectExists beside the Debian package."""
    if PACKAGED.exists():
        raise ObjectExists(
            "the Debian package blkrecov is on this machine; ours would hide its units and rules",
            remedy="use the package's program, or apt remove blkrecov first",
        )


def refuse_machine(*, acting: bool) -> None:
    """Raises: NotSupported without systemd, AccessDenied for others than root where anything is to be done."""
    if not Path("/run/systemd/system").is_dir():
        raise NotSupported(
            "this machine was not started by systemd",
            remedy="have whatever starts services here start blkrecov monitor",
        )
    if acting and os.geteuid() != 0:
        raise AccessDenied("units and rules are root's")


def refuse_interpreter() -> None:
    """Raises: InvalidOperation for an environment that works for whoever called, and would not for a service."""
    asked = subprocess.run(
        [sys.executable, "-I", "-c", "import blkrecov.daemon"], cwd="/", capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise InvalidOperation(
            f"{sys.executable} finds blkrecov only with the settings of this session: {_last(asked.stderr)}",
            remedy="install it into an environment of its own: python3 -m venv /opt/blkrecov",
        )


def dangers() -> Iterator[str]:
    """What an administrator should know of the place of this environment."""
    chains = (Path(sys.executable), Path(sys.executable).resolve(), _library())
    for path, owner in dict.fromkeys(found for chain in chains if (found := _writable(chain))):
        yield f"{path} can be written by {owner}, who can become root by the service that is started from there"
    mounts = [path for path in _above(_library()) if os.path.ismount(path) and path not in (Path("/"), Path("/usr"))]
    if mounts:
        yield (
            f"{_library()} is on a file system of its own ({mounts[0]}), which is not there yet when systemd looks for what the "
            "arrays have to wait for: order blkrecov-arrays.service after the mounts that drives lie on by a drop-in"
        )


def _writable(place: Path) -> tuple[Path, str] | None:
    """The first directory or file on the way to a place that is not root's alone, and whose it is."""
    for path in reversed(_above(place)):
        found = path.stat()
        owner = writer(found.st_mode, found.st_uid, found.st_gid)
        if owner:
            return path, owner
    return None


def _above(path: Path) -> tuple[Path, ...]:
    return (path, *path.parents)


def plan(wanted: Iterable[File]) -> Changes:
    """Raises: ObjectExists for a file that is in the way and not ours."""
    wanted = tuple(wanted)
    owned = manifest().files
    found = changes(wanted, _present({*owned, *(file.path for file in wanted)}), owned)
    if found.strange:
        raise ObjectExists(
            f"{', '.join(found.strange)}: there already, and not written by blkrecov install",
            remedy="move it away first",
        )
    return found


def _present(paths: Iterable[str]) -> dict[str, File]:
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            text = Path(path).read_bytes().decode(errors="surrogateescape")
            found[path] = File(path, text, stat.S_IMODE(Path(path).stat().st_mode))
    return found


def manifest() -> Manifest:
    """Raises: InvalidArgument for one that cannot be read."""
    try:
        return msgspec.json.decode(MANIFEST.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return Manifest()
    except msgspec.DecodeError as error:
        raise InvalidArgument(
            f"{MANIFEST}: {error}", remedy="delete it, and the files of blkrecov's that are in the way after that"
        ) from error


def install(wanted: Sequence[File], found: Changes) -> None:
    """Carry out a plan. Raises: ProviderFailure for a program that refuses, or a file that cannot be written."""
    before = manifest()
    paths = {file.path for file in wanted}
    directories = {*before.directories, *_missing({*paths, str(MANIFEST)})}
    group = before.group or not _group_exists()
    _note(Manifest(tuple(sorted({*before.files, *paths})), tuple(sorted(directories)), group))
    for file in found.write:
        write(file)
    for path in found.remove:
        Path(path).unlink(missing_ok=True)
    _note(Manifest(tuple(sorted(paths)), tuple(sorted(directories)), group))
    for command in telling(install=True):
        _run(*command)


def uninstall(ours: Manifest) -> None:
    """Take back what is in the manifest. Arrays stay up; the service ends. Raises: as install()."""
    if not ours.files:
        return
    if f"{LOCAL[Reader.UNITS]}/{SERVICE}" in ours.files and Path(LOCAL[Reader.UNITS], SERVICE).exists():
        _run("systemctl", "disable", "--now", SERVICE)
        _run("systemctl", "disable", ARRAYS)
    for path in ours.files:
        Path(path).unlink(missing_ok=True)
    for command in telling(install=False):
        _run(*command)
    if ours.group and _group_exists() and not grp.getgrnam(GROUP).gr_mem:
        # Somebody's first group stays.
        with suppress(ProviderFailure):
            _run("groupdel", GROUP)
    MANIFEST.unlink(missing_ok=True)
    # The deepest first; what others have put there stays, and its directory with it.
    for directory in sorted(ours.directories, key=len, reverse=True):
        with suppress(OSError):
            Path(directory).rmdir()


def telling(*, install: bool) -> Iterator[tuple[str, ...]]:
    """The commands that have everybody read again what they read."""
    if install:
        yield "systemd-sysusers", f"{LOCAL[Reader.SYSUSERS]}/{GROUP}.conf"
    yield "systemctl", "daemon-reload"
    yield "udevadm", "control", "--reload"
    if Path("/run/dbus/system_bus_socket").exists():
        yield "busctl", "--quiet", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "ReloadConfig"
    yield "journalctl", "--update-catalog"


def write(file: File, root: Path = Path("/")) -> None:
    """Whole or not at all. Raises: ProviderFailure where it cannot be written."""
    target = root / file.path.lstrip("/")
    fresh = target.with_name(f".{target.name}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(file.text, errors="surrogateescape")
        fresh.chmod(file.mode)
        fresh.replace(target)
    except OSError as error:
        raise ProviderFailure(f"{target}: {error.strerror}", remedy="mend that, and run this again") from error


def _missing(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        for directory in Path(path).parents:
            if directory.exists():
                break
            yield str(directory)


def _note(ours: Manifest) -> None:
    write(File(str(MANIFEST), msgspec.json.format(msgspec.json.encode(ours)).decode() + "\n", 0o644))


def _group_exists() -> bool:
    try:
        grp.getgrnam(GROUP)
    except KeyError:
        return False
    return True


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ProviderFailure(f"{words[0]} is not on this machine", remedy="install it, and run this again") from error
    if done.returncode:
        raise ProviderFailure(f"{' '.join(words)}: {_last(done.stderr)}", remedy="mend that, and run this again")


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no word about why"])[-1]
