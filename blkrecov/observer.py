"""Looks at the world and returns it as values. Changes nothing."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from blkrecov import catalog
from blkrecov.dm import names
from blkrecov.dm.control import Control, NoSuchDevice
from blkrecov.dm.superblock import BLOCK, Superblock, parse
from blkrecov.drives import raw
from blkrecov.drives.probe import unescape
from blkrecov.drives.store import DriveIoError, IoCounter
from blkrecov.model import Document, Lun
from blkrecov.observed import Backing, Exported, Live, Observed
from blkrecov.page83 import sysfs
from blkrecov.page83.export import Exporter
from blkrecov.stack import node
from blkrecov.suspensions import Suspensions
from blkrecov.units import Sectors, in_bytes


def devices(control: Control, document: Document, suspensions: Suspensions) -> dict[str, Live]:
    """This array's devices, by device-mapper UUID: those under its name, and its own that somebody has renamed."""
    ours = suspensions.names()
    own = {drive.uuid for drive in document.drives} | {lun.uuid for lun in document.luns}
    own |= {member.uuid for lun in document.luns for member in lun.members}
    found = {}
    for entry in control.devices():
        parsed = names.parse_dm_uuid(entry.uuid)
        parts = names.split_dm_name(entry.name)
        if parsed is None or (parsed.owner not in own and (parts is None or parts[0] != document.name)):
            continue
        try:
            info, table, status = control.look(entry.name)
            live = Live(
                name=entry.name,
                uuid=entry.uuid,
                number=str(info.number),
                table=table,
                status=status,
                suspended=info.suspended,
                inactive=info.inactive,
                open_count=info.open_count,
            )
            if live.suspended and parsed.role == "lun":
                # Asked again, for another process may have begun, or ended, since.
                live = dataclasses.replace(live, held=live.name not in ours | suspensions.names())
        except NoSuchDevice:  # Removed since it was listed.
            continue
        found[entry.uuid] = live
    return found


def exports(exporter: Exporter, array: str) -> tuple[dict[UUID, Exported], frozenset[str]]:
    """(this array's SCSI disks, by LUN; nodes of this array that half-made exports hold)."""
    known, half_made = exporter.survey()
    found = {}
    for export in known:
        parts = names.split_dm_name(f"{names.PREFIX}-{export.name}")
        if parts is not None and parts[0] == array:
            found[UUID(hex=export.serial)] = Exported(
                disk=export.disk, naa=export.naa, size=sysfs.size(export.disk), ready=export.ready
            )
    devices = (f"{names.PREFIX}-{name}" for name in half_made)
    return found, frozenset(node(name) for name in devices if (names.split_dm_name(name) or ("",))[0] == array)


def observe(
    control: Control,
    exporter: Exporter,
    document: Document,
    backings: Mapping[UUID, str],
    counter: IoCounter,
    suspensions: Suspensions,
) -> Observed:
    """All of an array's state in the kernel. `backings` gives the block device of each drive that is there."""
    live = devices(control, document, suspensions)
    exported, remains = exports(exporter, document.name)
    observed = Observed(
        devices=live,
        backings=_present(backings),
        exports=exported,
        remains=remains,
    )
    idle = [lun for lun in document.luns if lun.layout.fault_tolerant and not observed.loaded(lun)]
    return dataclasses.replace(observed, superblocks=superblocks(idle, backings, counter))


def _present(backings: Mapping[UUID, str]) -> dict[UUID, Backing]:
    """Those whose device is there: not so once it was unplugged."""
    found = {}
    for drive, device in backings.items():
        with suppress(OSError):
            found[drive] = Backing(device=device, number=catalog.number_of(device))
    return found


def superblocks(luns: Iterable[Lun], backings: Mapping[UUID, str], counter: IoCounter) -> dict[UUID, Superblock | None]:
    """What the members of LUNs that are not loaded remember. Read from the drive's own device: no leg need be there."""
    found: dict[UUID, Superblock | None] = {}
    for lun in luns:
        for member in lun.members:
            device = backings.get(member.drive)
            if device is None:
                continue
            try:
                offset = in_bytes(Sectors(member.meta[0].start))
                found[member.uuid] = parse(raw.read(device, offset, BLOCK, counter))
            except DriveIoError:
                found[member.uuid] = None
    return found


def mounts(device: str) -> tuple[tuple[str, str], ...]:
    """(mount point, file system type) of everything mounted from a block device or its partitions."""
    try:
        number = Path(device).stat().st_rdev
    except OSError:
        return ()
    wanted = {f"{os.major(number)}:{os.minor(number)}"}
    disk = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    wanted |= set(sysfs.partition_numbers(disk.name).values())
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        words = left.split()
        if words[2] in wanted:
            found.append((unescape(words[4]), right.split()[0]))
    return tuple(found)
