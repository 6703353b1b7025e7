"""The list of storage objects between processes, and what of it only the machine knows: what is mounted.

The list is a file in a directory that does not outlive a boot: what a client has learnt of an earlier boot counts no more. It is
kept under the array's lock. Changes that nobody was told of yet stand beside it, because a list changes before an operation is
answered, and is told of after that: should the process die in between, the next one tells. So each is told at least once.
"""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from blkrecov import mountinfo
from blkrecov.blockdev import plain
from blkrecov.dm import names
from blkrecov.dmrp.notify import Notification, modified
from blkrecov.dmrp.storage import Mounted, ObjectList
from blkrecov.errors import BlkrecovError
from blkrecov.model import Document
from blkrecov.observed import Observed
from blkrecov.page83 import udev

log = logging.getLogger(__name__)


class Kept(msgspec.Struct, frozen=True):
    """What the file holds."""

    listing: ObjectList = ObjectList()
    untold: tuple[Notification, ...] = ()


class ObjectFile:
    """An array's list. What cannot be written is lost, and stops no operation."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def refresh(self, after: ObjectList, task: int = 0) -> ObjectList:
        """The list as it is now (storage.listed()), with numbers; kept, with what is to be told of it.

        There is nobody to tell of a list that begins.
        """
        kept = self._read()
        if kept is None:
            # Later than any number of an earlier list, which somebody may remember.
            listing, _ = modified(ObjectList(sequence=time.time_ns() // 1000, newest_task=after.newest_task), after)
            self._write(Kept(listing))
            return listing
        listing, news = modified(kept.listing, after, task)
        fresh = Kept(listing, (*kept.untold, *news))
        if fresh != kept:
            self._write(fresh)
        return listing

    def untold(self) -> tuple[Notification, ...]:
        """What is to be told, oldest first."""
        kept = self._read()
        return kept.untold if kept else ()

    def told(self) -> None:
        """All of that was."""
        if kept := self._read():
            self._write(Kept(kept.listing))

    def _read(self) -> Kept | None:
        """None where there is no list, or one that another version has written."""
        with suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return msgspec.json.decode(self._path.read_bytes(), type=Kept)
        return None

    def _write(self, kept: Kept) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh.write_bytes(msgspec.json.encode(kept))
            fresh.replace(self._path)
        except OSError as error:
            log.info("%s cannot be written: %s", self._path, error.strerror or error)


def mounted(document: Document, observed: Observed) -> tuple[Mounted, ...]:
    """What is mounted from the array's LUNs and their partitions, in the order in which it was mounted.

    Kernel: proc_pid_mountinfo(5). The source is looked at as well as the number, because btrfs shows a number of its own there.
    """
    devices = _devices(document, observed)
    found = []
    for mount in mountinfo.read():
        number = mount.number if mount.number in devices else _number(mount.source)
        if number in devices:
            lun, part = devices[number]
            found.append(_looked_at(lun, part, mount.point, mount.fstype, number))
    return tuple(found)


def _devices(document: Document, observed: Observed) -> dict[str, tuple[UUID, str]]:
    """(LUN, partition) by device number: a LUN's SCSI disk with its partitions, and its node."""
    found = {}
    for lun in document.luns:
        live = observed.devices.get(names.dm_uuid(lun.uuid, "lun"))
        if live is not None:
            found[live.number] = (lun.uuid, "")
        exported = observed.exports.get(lun.uuid)
        if exported is not None:
            disk = Path("/sys/class/block") / Path(exported.disk).name
            with suppress(OSError):
                found[(disk / "dev").read_text().strip()] = (lun.uuid, "")
                for part in disk.glob(f"{disk.name}*/partition"):
                    found[(part.parent / "dev").read_text().strip()] = (lun.uuid, part.read_text().strip())
    return found


def _number(source: str) -> str:
    """The device number of a mount's source; empty where it is no device."""
    if source.startswith("/dev/"):
        with suppress(OSError, ValueError):
            number = Path(source).stat().st_rdev
            return f"{os.major(number)}:{os.minor(number)}" if number else ""
    return ""


def _looked_at(lun: UUID, part: str, path: str, kind: str, number: str) -> Mounted:
    """Nothing in here reads a drive: a file system's counts are in memory, and its label is in udev's database."""
    label, total, available, unit = "", 0, 0, 0
    with suppress(OSError):
        counts = os.statvfs(path)
        total, available, unit = counts.f_blocks, counts.f_bavail, counts.f_frsize
    with suppress(OSError, BlkrecovError):
        device = Path(f"/sys/dev/block/{number}").resolve().name
        label = udev.properties(device).get("ID_FS_LABEL", "")
    return Mounted(
        lun=lun,
        part=part,
        path=plain(path),
        fstype=plain(kind),
        label=plain(label),
        total=total,
        available=available,
        unit=unit,
    )
