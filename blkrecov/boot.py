"""The arrays' place in the machine's start and end, as its service manager runs them (blkrecov/data/blkrecov-arrays.service).

    start [UUID]    brings up every array that this machine has had to do with, or one
    stop [UUID]     takes every array that is up out of the kernel in good order, each as soon as nobody uses its LUNs any more
    stop-idle       takes those out of the kernel whose LUNs nobody uses
    generator       gives each array a unit of its own, which waits for the file systems that its drives lie on; these may lie on
                    LUNs of another array, so no array waits for what it does not need

At the machine's end an array is stopped by its own unit, before those file systems are unmounted; one that has come since the
last reload has none, and is stopped by the unit of all.

What is wrong with one array is told, and keeps no other. A start never fails, for what has failed to start systemd does not stop.
An array that is only found, on a drive that was just put in, is not brought up by a start: it may be another machine's.
"""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Final
from uuid import UUID

from blkrecov import journal
from blkrecov.errors import BlkrecovError, DeviceInUse, InvalidArgument
from blkrecov.settings import Remembered, Settings, is_stopped, remembered

log = logging.getLogger(__name__)

UNIT: Final = "blkrecov-arrays.service"
AGAIN_S: Final = 0.5
# How long those who use a LUN are waited for: less than the units' TimeoutStopSec=, so that it is told whom we have waited for.
PATIENCE_S: Final = 100.0
# Arrays that come up beside each other wait for each other's lock.
ATTEMPTS: Final = 3
# What systemd.unit(5), "String escaping for inclusion in unit names", leaves as it is.
_ESCAPED: Final = re.compile(r"[^A-Za-z0-9:_.]")


def unit_of(array: UUID) -> str:
    return f"blkrecov-array@{array}.service"


def start(settings: Settings, array: str | None = None) -> None:
    """Bring up an array, or all that are not up. What is wrong with one is logged.

    One that somebody has stopped stays so when its unit is started for the sake of another's start; who starts all means it too.
    """
    up = set(arrays_up().values())
    for known in remembered(settings):
        if array is None:
            wanted = not {str(known.uuid), known.name} & up
        else:
            wanted = array == str(known.uuid) and not is_stopped(settings, known.uuid)
        if wanted:
            _bring_up(settings, known)


def _bring_up(settings: Settings, array: Remembered) -> None:
    from blkrecov.array import Array

    for attempt in range(1, ATTEMPTS + 1):
        try:
            with Array.opened(settings, str(array.uuid)) as opened:
                for uuid, error in opened.trouble.items():
                    log.error("array %s: LUN %s: %s", array.name, opened.document.lun_of(uuid).name, error.message)
            return
        except DeviceInUse as error:
            log.log(logging.INFO if attempt < ATTEMPTS else logging.ERROR, "array %s: %s", array.name, error.message)
        except (BlkrecovError, OSError) as error:
            log.error("array %s: %s", array.name, error)
            return
        except Exception:  # A mistake of ours, which one array has met.
            log.exception("array %s", array.name)
            return


def stop(settings: Settings, array: str | None = None, patience_s: float = PATIENCE_S) -> bool:
    """Take an array, or all that are up, out of the kernel, each when nobody uses its LUNs any more. Whether all are down now.

    Each is opened once: to find its drives is to look at others' too, which are in use for that long, and so is what they lie on.
    """
    from blkrecov.array import Array

    pending = {key: name for name, key in arrays_up().items() if array in (None, key, name)}
    if array is None and _system_stops():
        pending = {key: name for key, name in pending.items() if not _has_unit(key)}
    told: dict[str, str] = {}
    failed: dict[str, str] = {}
    end = time.monotonic() + patience_s
    opened: dict[str, Array] = {}
    with ExitStack() as closing:
        while pending:
            for key, name in list(pending.items()):
                try:
                    if key in opened:
                        opened[key].catch_up()
                    else:
                        opened[key] = closing.enter_context(Array.opened(settings, key))
                    opened[key].stop()
                    del pending[key]
                except DeviceInUse as error:
                    if told.get(key) != error.message and patience_s:
                        log.warning("array %s is waited for: %s", name, error.message)
                    told[key] = error.message
                except (BlkrecovError, OSError) as error:
                    failed[name] = str(error)
                    del pending[key]
                except Exception as error:  # A mistake of ours, which one array has met.
                    log.exception("array %s", name)
                    failed[name] = repr(error)
                    del pending[key]
            if not pending or time.monotonic() >= end:
                break
            with ExitStack() as waiting:
                for each in opened.values():
                    waiting.enter_context(each.unlocked())
                time.sleep(AGAIN_S)
    failed |= {name: told[key] for key, name in pending.items()}
    for name, why in failed.items():
        log.error("array %s stays up: %s", name, why)
    return not failed


def arrays_up() -> dict[str, str]:
    """The arrays that have devices in the kernel, by name: their UUIDs; of what version 0.1 has brought up, their names."""
    from blkrecov.dm.control import Control
    from blkrecov.dm.names import array_of, parse_dm_uuid

    found: dict[str, str] = {}
    with Control() as control:
        for entry in control.devices():
            parsed, name = parse_dm_uuid(entry.uuid), array_of(entry.name)
            if parsed is not None and name is not None:
                found[name] = str(parsed.array) if parsed.array else found.get(name, name)
    return dict(sorted(found.items()))


def _system_stops() -> bool:
    return _systemctl("is-system-running") == "stopping"


def _has_unit(array: str) -> bool:
    """Whether an array has a unit of its own that will stop it."""
    unit = f"blkrecov-array@{array}.service"
    return _systemctl("show", "--property=ActiveState", "--value", unit) in ("active", "activating", "deactivating")


def _systemctl(*words: str) -> str:
    """What it answers; nothing where there is none."""
    try:
        return subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def ordering(paths: Iterable[str]) -> str:
    """What goes into a unit's section [Unit]: after the mounts of all directories above these paths, files or directories.

    After, and no more: a file system that cannot be mounted costs its drives, not the array. A block device has no mount, and
    its name may be another's at the next start: where there is one, all devices are waited for that are there at the start.
    """
    mounts, devices = set(), False
    for path in map(PurePosixPath, paths):
        if path.is_relative_to("/dev"):
            devices = True
        else:
            mounts |= {mount_unit(above) for above in (path, *path.parents) if above != PurePosixPath("/")}
    lines = [f"After={' '.join(sorted(mounts))}"] if mounts else []
    if devices:
        lines += ["Wants=systemd-udev-settle.service", "After=systemd-udev-settle.service"]
    return "".join(f"{line}\n" for line in lines)


def mount_unit(path: PurePosixPath) -> str:
    """The name of the unit that mounts something there: systemd-escape --path --suffix=mount."""
    escaped = "-".join(
        _ESCAPED.sub(lambda match: "".join(f"\\x{byte:02x}" for byte in os.fsencode(match[0])), part)
        for part in path.parts[1:]
    )
    return (f"\\x2e{escaped[1:]}" if escaped.startswith(".") else escaped) + ".mount"


def generate(settings: Settings, directory: Path) -> None:
    """systemd.generator(7): runs before anything is mounted but the root, and before every reload."""
    units = []
    for known in remembered(settings):
        if known.paths:
            units.append(unit_of(known.uuid))
            _drop_in(directory, units[-1], _described(known) + ordering(known.paths))
    wanted = f"Wants={' '.join(units)}\nAfter={' '.join(units)}\n" if units else ""
    _drop_in(directory, UNIT, wanted + ordering(settings.directories))


def _described(array: Remembered) -> str:
    return f"Description=Array {array.name} of blkrecov\n"


def _drop_in(directory: Path, unit: str, lines: str) -> None:
    file = directory / f"{unit}.d/drives.conf"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"[Unit]\n{lines}")


def _settings() -> Settings:
    """Those of this machine, but the machine's start and end must not wait for a mistake in a file to be mended."""
    try:
        return Settings.load()
    except InvalidArgument as error:
        log.error("%s", error.message)
        return Settings()


def main() -> None:
    """start [UUID] | stop [UUID] | stop-idle | generator NORMAL EARLY LATE"""
    journal.log_as("blkrecov", logging.INFO)
    journal.show_events()
    settings = _settings()
    well = True
    try:
        match sys.argv[1:]:
            case ["start", *array] if len(array) <= 1:
                start(settings, next(iter(array), None))
            case ["stop", *array] if len(array) <= 1:
                well = stop(settings, next(iter(array), None))
            case ["stop-idle"]:
                well = stop(settings, patience_s=0)
            case ["generator", directory, *_]:
                generate(settings, Path(directory))
            case _:
                sys.exit("usage: start [UUID] | stop [UUID] | stop-idle | generator DIRECTORY...")
    except (BlkrecovError, OSError) as error:
        log.error("%s", error)
        well = sys.argv[1] == "start"
    except Exception:
        log.exception("a mistake in this program")
        well = sys.argv[1] == "start"
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
