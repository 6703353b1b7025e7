"""The arrays' place in the machine's start and end, as its service manager runs them (blkrecov/data/blkrecov-arrays.service).

    start        brings up every array that this machine has had to do with; one that cannot come up stops no other
    stop         takes every array that is up out of the kernel in good order, each as soon as nobody uses its LUNs any more
    generator    has `start` wait for the file systems that drives lie on; of no others can it wait, for these may lie on LUNs

An array that is only found, on a drive that was just put in, is not brought up by a start: it may be another machine's.
"""

import logging
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

from blkrecov import journal
from blkrecov.errors import BlkrecovError, DeviceInUse
from blkrecov.settings import Settings, remembered

log = logging.getLogger(__name__)

UNIT: Final = "blkrecov-arrays.service"
AGAIN_S: Final = 0.5
# What systemd.unit(5), "String escaping for inclusion in unit names", leaves as it is.
_ESCAPED: Final = re.compile(r"[^A-Za-z0-9:_.]")


def start(settings: Settings) -> bool:
    """Whether all of all arrays came up."""
    from blkrecov.array import Array

    well = True
    for known in remembered(settings):
        try:
            with Array.opened(settings, known.name) as array:
                trouble = [
                    f"LUN {array.document.lun_of(uuid).name}: {error.message}" for uuid, error in array.trouble.items()
                ]
        except BlkrecovError as error:
            trouble = [error.message]
        for line in trouble:
            log.error("array %s: %s", known.name, line)
        well = well and not trouble
    return well


def stop(settings: Settings) -> bool:
    """Waits for those who use a LUN without limit: the service manager has one. Whether all arrays are down now."""
    from blkrecov.array import Array

    well = True
    waited_for: dict[str, str] = {}
    pending = arrays_up()
    while pending:
        for name in list(pending):
            try:
                with Array.opened(settings, name) as array:
                    array.stop()
                pending.remove(name)
            except DeviceInUse as error:
                if waited_for.get(name) != error.message:
                    log.warning("array %s is waited for: %s", name, error.message)
                waited_for[name] = error.message
            except BlkrecovError as error:
                log.error("array %s: %s", name, error.message)
                pending.remove(name)
                well = False
        if pending:
            time.sleep(AGAIN_S)
    return well


def arrays_up() -> list[str]:
    """The arrays that have devices in the kernel."""
    from blkrecov.dm.control import Control
    from blkrecov.dm.names import split_dm_name

    with Control() as control:
        split = (split_dm_name(entry.name) for entry in control.devices())
        return sorted({parts[0] for parts in split if parts})


def ordering(paths: Iterable[str]) -> str:
    """A drop-in for the unit: after the mounts of all directories above these paths, files or directories.

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
    return "\n".join(["[Unit]", *lines, ""])


def mount_unit(path: PurePosixPath) -> str:
    """The name of the unit that mounts something there: systemd-escape --path --suffix=mount."""
    escaped = "-".join(
        _ESCAPED.sub(lambda match: "".join(f"\\x{byte:02x}" for byte in match[0].encode()), part)
        for part in path.parts[1:]
    )
    return (f"\\x2e{escaped[1:]}" if escaped.startswith(".") else escaped) + ".mount"


def generate(settings: Settings, directory: Path) -> None:
    """systemd.generator(7): runs before anything is mounted but the root, and before every reload."""
    paths = [*settings.directories, *(path for known in remembered(settings) for path in known.paths)]
    drop_in = directory / f"{UNIT}.d/drives.conf"
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(ordering(paths))


def main() -> None:
    """start | stop | generator NORMAL EARLY LATE"""
    journal.log_as("blkrecov", logging.INFO)
    journal.show_events()
    try:
        settings = Settings.load()
        match sys.argv[1:]:
            case ["start"]:
                well = start(settings)
            case ["stop"]:
                well = stop(settings)
            case ["generator", directory, *_]:
                generate(settings, Path(directory))
                well = True
            case _:
                sys.exit("usage: start | stop | generator DIRECTORY...")
    except BlkrecovError as error:
        sys.exit(error.message)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
