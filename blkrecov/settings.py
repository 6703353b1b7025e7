"""Where things are on this machine: nothing in here says what an array is, only where to look for it.

/etc/blkrecov/blkrecov.toml, all of it optional:

    directories = ["/var/lib/blkrecov/drives"]    # where drives are looked for by their labels
    metrics = "127.0.0.1:9835"                    # where blkrecovd serves metrics: or "[::1]:9835", or the path of a socket

The state directory remembers where drives were found last, and which version of an array's configuration this machine has written
or met last. It may be lost without harm: drives are known by their labels, and the newest configuration that is found counts.
"""

import json
import os
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Self
from uuid import UUID

from blkrecov.bell import ring
from blkrecov.errors import InvalidArgument, pass_on_exhaustion

CONFIGURATION: Final = Path("/etc/blkrecov/blkrecov.toml")
STATE: Final = Path("/var/lib/blkrecov")
VOLATILE: Final = Path("/run/blkrecov")
DIRECTORIES: Final[tuple[str, ...]] = (str(STATE / "drives"),)


@dataclass(frozen=True, slots=True)
class Address:
    """Of this machine itself, for TCP."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Settings:
    state: Path = STATE
    directories: tuple[str, ...] = DIRECTORIES
    volatile: Path = VOLATILE

    @classmethod
    def load(cls, configuration: Path = CONFIGURATION) -> Self:
        """The settings of this machine. $BLKRECOV_STATE and $BLKRECOV_DIRECTORIES (colons between) go before the file.

        Raises: InvalidArgument for a file that cannot be understood.
        """
        found = _configured(configuration).get("directories", list(DIRECTORIES))
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise InvalidArgument(f"{configuration}: directories is no list of paths", remedy="correct the file")
        directories: tuple[str, ...] = tuple(found)
        if "BLKRECOV_DIRECTORIES" in os.environ:
            directories = tuple(item for item in os.environ["BLKRECOV_DIRECTORIES"].split(":") if item)
        return cls(state=Path(os.environ.get("BLKRECOV_STATE", STATE)), directories=directories)

    @property
    def bell(self) -> Path:
        """Where the daemon listens for arrays that are new on this machine."""
        return self.state / "arrays.bell"

    def bell_of(self, array: UUID) -> Path:
        """Where an array's monitor listens, or who waits to open it. Short, because a socket's path may have 107 bytes."""
        return self.state / f"{array.hex[:8]}.bell"


def metrics_place(configuration: Path = CONFIGURATION) -> Address | Path | None:
    """Where metrics are to be served; None where they are not. Only whoever serves them asks, for no other is a mistake in it.

    Raises: InvalidArgument for anything but a port of this machine's own address, or the path of a socket.
    """
    found = _configured(configuration).get("metrics")
    if found is None:
        return None
    text = found if isinstance(found, str) else ""
    if text.startswith("/"):
        return Path(text)
    host, _, port = text.rpartition(":")
    with suppress(ValueError):
        address = ip_address(host.removeprefix("[").removesuffix("]"))
        if address.is_loopback and port.isdecimal() and 0 < int(port) < 2**16:
            return Address(str(address), int(port))
    raise InvalidArgument(
        f"{configuration}: metrics = {found!r} is no port of this machine's own address, and no path",
        remedy='give it as "127.0.0.1:9835", "[::1]:9835" or "/run/blkrecov/metrics.sock"; for other machines have a proxy',
    )


def _configured(configuration: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(configuration.read_text())
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{configuration}: {error}", remedy="correct the file") from error


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the state directory knows of an array: a hint, except for an array that has no drive to be written on yet."""

    uuid: UUID
    name: str
    paths: tuple[str, ...] = ()


def published(settings: Settings, array: UUID) -> int | None:
    """The version of an array's configuration that this machine knows to be the newest; None where that is not known."""
    try:
        return int(sequence_file(settings, array).read_text())
    except OSError as error:
        pass_on_exhaustion(error)
        return None
    except ValueError:
        return None


def publish(settings: Settings, array: UUID, sequence: int) -> None:
    """Let other processes of this machine, and later ones, know. Where that cannot be written, an earlier version stays."""
    with suppress(OSError):
        write_whole(sequence_file(settings, array), f"{sequence}\n".encode())


def sequence_file(settings: Settings, array: UUID) -> Path:
    return settings.state / f"{array}.sequence"


def is_stopped(settings: Settings, array: UUID) -> bool:
    """Whether somebody has stopped an array, which is to stay so until somebody asks for it, or the machine is booted."""
    return _stopped_file(settings, array).exists()


def note_stopped(settings: Settings, array: UUID, *, stopped: bool) -> None:
    """An array was stopped, or is brought up; the daemon hears of the latter. Raises: OSError."""
    file = _stopped_file(settings, array)
    if stopped:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch()
    elif file.exists():
        file.unlink(missing_ok=True)
        ring(settings.bell)


def _stopped_file(settings: Settings, array: UUID) -> Path:
    return settings.volatile / f"{array}.stopped"


def remembered(settings: Settings) -> tuple[Remembered, ...]:
    """Every array that this machine has seen, by name. A damaged file is passed over: it is a hint."""
    found: dict[UUID, Remembered] = {}
    # What goes by the array's UUID comes last, and counts.
    for file in sorted(settings.state.glob("*.json"), key=lambda file: _is_uuid(file.stem)):
        array = _read(file)
        if array is not None:
            found[array.uuid] = array
    return tuple(sorted(found.values(), key=lambda array: (array.name, array.uuid)))


def _read(file: Path) -> Remembered | None:
    try:
        content = json.loads(file.read_text())
        return Remembered(UUID(content["uuid"]), str(content["name"]), tuple(map(str, content["paths"])))
    except OSError as error:
        pass_on_exhaustion(error)
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def remember(settings: Settings, array: Remembered) -> None:
    """Write the hint; nothing when it is what is there already. The daemon hears of it. Raises: OSError."""
    target = settings.state / f"{array.uuid}.json"
    if _read(target) == array:
        return
    settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = {"uuid": str(array.uuid), "name": array.name, "paths": list(array.paths)}
    write_whole(target, (json.dumps(content, indent=2) + "\n").encode())
    # Version 0.1 named the file after the array, which two may share.
    named = settings.state / f"{array.name}.json"
    before = _read(named)
    if named != target and before is not None and before.uuid == array.uuid:
        named.unlink()
    ring(settings.bell)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file's contents, so that whoever reads it finds the old or the new, whoever dies meanwhile. Not flushed: what is
    in the state directory may be lost without harm, and a flush for every version would take as long as all else that is written.
    Raises: OSError, with the old contents in place.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        with fresh.open("wb") as file:
            file.write(content)
        fresh.replace(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise
