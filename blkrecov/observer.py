"""Looks at the world and returns it as values. Changes nothing."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from blkrecov import catalog, mountinfo
from blkrecov.dm import names
from blkrecov.dm.control import Control, NoSuchDevice
from blkrecov.dm.superblock import BLOCK, Superblock, parse
from blkrecov.drives import raw
from blkrecov.drives.store import DriveIoError, IoCounter
from blkrecov.errors import ObjectExists
from blkrecov.model import Document, Lun
from blkrecov.observed import Backing, Exported, Live, Observed, canonical, own_and_strangers
from blkrecov.page83 import sysfs
from blkrecov.page83.export import Exporter
from blkrecov.stack import node
from blkrecov.suspensions import Suspensions
from blkrecov.units import Sectors, in_bytes


def devices(control: Control, document: Document, suspensions: Suspensions) -> dict[str, Live]:
    """This array's devices, by names.dm_uuid()."""
    ours = suspensions.names()
    found = {}
    listed = {entry.name: entry.uuid for entry in control.devices()}
    for name in own_and_strangers(document, listed)[0]:
        try:
            info, table, status = control.look(name)
            live = Live(
                name=name,
                uuid=canonical(listed[name]),
                number=str(info.number),
                table=table,
                status=status,
                suspended=info.suspended,
                inactive=info.inactive,
                open_count=info.open_count,
            )
            if live.suspended and live.uuid.endswith("-lun"):
                # Asked again, for another process may have begun, or ended, since.
                live = dataclasses.replace(live, held=live.name not in ours | suspensions.names())
        except NoSuchDevice:  # Removed since it was listed.
            continue
        found[live.uuid] = live
    return found


def refuse_taken_name(control: Control, document: Document) -> None:
    """Raises: ObjectExists while another array has devices under this one's name: one path would be two arrays' devices."""
    listed = {entry.name: entry.uuid for entry in control.devices()}
    strangers = own_and_strangers(document, listed)[1]
    if strangers:
        told = {names.parse_dm_uuid(listed[name]) for name in strangers}
        other = next((str(each.array) for each in told if each is not None and each.array is not None), "UUID")
        raise ObjectExists(
            f"array {document.name!r} ({document.array}) cannot be brought up: the kernel has devices of another array of that "
            f"name, such as {strangers[0]}",
            remedy=f"take that one down first: blkrecov array stop --array {other}",
        )


def exports(
    exporter: Exporter, document: Document, live: Iterable[Live]
) -> tuple[dict[UUID, Exported], frozenset[str]]:
    """(this array's SCSI disks, by LUN; nodes of this array that half-made exports hold): those that stand on its devices.

    What is so little made that it stands on nothing yet is told by its name.
    """
    known, half_made = exporter.survey()
    numbers = {device.number for device in live}
    found = {
        UUID(hex=export.serial): Exported(
            disk=export.disk, naa=export.naa, size=sysfs.size(export.disk), ready=export.ready
        )
        for export in known
        if _number(export.device) in numbers
    }
    devices = {f"{names.PREFIX}-{left.name}": left.device for left in half_made}
    return found, frozenset(
        node(name)
        for name, device in devices.items()
        if (_number(device) in numbers if device is not None else names.array_of(name) == document.name)
    )


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


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
    exported, remains = exports(exporter, document, live.values())
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
    """(mount point, file system type) of everything mounted from a block device or its partitions.

    These are to be used: what is told of them goes through blockdev.plain().
    """
    try:
        number = Path(device).stat().st_rdev
    except OSError:
        return ()
    wanted = {f"{os.major(number)}:{os.minor(number)}"}
    disk = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    wanted |= set(sysfs.partition_numbers(disk.name).values())
    return tuple((mount.point, mount.fstype) for mount in mountinfo.read() if mount.number in wanted)
