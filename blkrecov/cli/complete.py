"""What the shell may put in the place of half a word: the names of arrays, drives and LUNs.

They come from device-mapper's names in sysfs, which everybody may read: so no right is needed, no lock is taken and no drive is
asked. What is not loaded has no name there and is not completed; of shadow copies that is so for plexes, whose devices are those
of any LUN. Nothing here ever fails: a shell that waits for a word is no place for errors.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

from blkrecov.dm.names import split_dm_name

BLOCK = Path("/sys/block")


def arrays(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return _fitting(incomplete, (parts[0] for parts in _devices(None)))


def drives(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return _fitting(incomplete, _drives(context))


def several_drives(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """The last of those that have commas between them."""
    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [before + comma + name for name in _fitting(last, _drives(context)) if name not in taken]


def luns(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return _fitting(incomplete, _luns(context))


def shadows(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return _fitting(incomplete, _shadows(context))


def pairs(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """SHADOW, or SHADOW:LUN."""
    shadow, colon, lun = incomplete.partition(":")
    if not colon:
        return _fitting(incomplete, _shadows(context))
    return [f"{shadow}:{name}" for name in _fitting(lun, _luns(context))]


def _drives(context: click.Context) -> Iterator[str]:
    return (parts[2] for parts in _devices(context) if len(parts) == 3 and parts[1] == "drive")


def _luns(context: click.Context) -> Iterator[str]:
    return (parts[1] for parts in _devices(context) if len(parts) == 2)


def _shadows(context: click.Context) -> Iterator[str]:
    return (parts[1] for parts in _devices(context) if len(parts) == 3 and parts[2] == "shadow")


def _devices(context: click.Context | None) -> Iterator[tuple[str, ...]]:
    """The parts of our devices' names: of the array that the line names, or of all."""
    array = None
    while context is not None and array is None:
        array, context = context.params.get("array"), context.parent
    for file in BLOCK.glob("dm-*/dm/name"):
        with suppress(OSError):
            parts = split_dm_name(file.read_text().strip())
            if parts is not None and array in (None, parts[0]):
                yield parts


def _fitting(incomplete: str, names: Iterator[str]) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})
