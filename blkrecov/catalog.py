"""The array's document on its drives: found, read, compared, written.

Every drive has a label; at most CARRIERS of them carry the document, so that a change costs the same number of writes however
many drives there are. The newest valid copy wins, if the others are earlier versions of it (blkrecov.lineage). Two histories of
one array are not chosen between: one of them holds writes that somebody was told are safe.

All of a drive's metadata goes through one door: its block device (the loop device, once there is one), with direct I/O. The
page cache of the file below a loop device does not hear of what goes through the device.
"""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import msgspec

from blkrecov import blockdev, model
from blkrecov.dm import names
from blkrecov.dm.stalled import Stalled
from blkrecov.drives import label as format_
from blkrecov.drives.scan import Found, scan, serves
from blkrecov.drives.store import DriveStore, IoCounter
from blkrecov.drives.trust import Untrusted
from blkrecov.errors import (
    BlkrecovError,
    ConfigurationLimit,
    InvalidDisk,
    MetadataCorrupt,
    MetadataNotWritten,
    PathNotFound,
)
from blkrecov.lineage import judge
from blkrecov.model import Document, DriveStatus
from blkrecov.settings import Remembered, Settings, published, remembered, sequence_file

CARRIERS: Final = 5
_BLOCK: Final = Path("/sys/block")


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovered:
    """One array, as far as it was found."""

    uuid: UUID
    name: str
    document: Document | None
    """None: no drive of it was found, or it has none yet."""
    drives: Mapping[UUID, Found]
    """By drive. What has two candidates, or belongs to nobody, is not in here."""
    trouble: tuple[BlkrecovError, ...]
    """Why the document cannot be told; raised when the array is opened."""
    reasons: Mapping[UUID, str]
    """Why a drive that was met cannot be used."""
    carried: Mapping[UUID, int] = field(default_factory=dict)
    """The version of the document that a drive has, of those that have one."""
    doubles: frozenset[UUID] = frozenset()
    """Those of them that more than one thing says it is: nothing is wrong with any."""
    stalled: frozenset[UUID] = frozenset()
    """Those of them that would not have answered, and were not asked."""
    strangers: frozenset[UUID] = frozenset()
    """Those of them that something says it is which is not believed (drives.trust)."""

    def status_of(self, drive: UUID) -> DriveStatus:
        """What to call a drive that cannot be used."""
        if drive not in self.reasons:
            return DriveStatus.REMOVED
        return DriveStatus.OFFLINE if drive in self.doubles | self.stalled | self.strangers else DriveStatus.FAILED


def discover(
    settings: Settings, counter: IoCounter, *, passing: frozenset[Remembered] = frozenset()
) -> tuple[Discovered, ...]:
    """Every array of this machine, by name. Looks at more and more places while known arrays have drives missing.

    Of the arrays `passing`, which this machine knows, the names are all that is to be told: those of their drives that serve are
    not looked at, since others may wait for them in vain.
    """
    known = remembered(settings)
    others = {array.uuid for array in passing}
    # Before their documents are read: another process may write a version meanwhile.
    newest = _published(settings)
    for deep in (False, True):
        hints = [path for array in known if array.uuid not in others for path in array.paths]
        found = _discover(settings, counter, known, hints, passing, deep=deep)
        # Drives that the documents name in other places than the state directory does.
        more = [drive.path for array in found if array.document for drive in array.document.drives]
        if set(more) - set(hints):
            found = _discover(settings, counter, known, [*hints, *more], passing, deep=deep)
        found = tuple(_unless_stale(settings, array, newest.get(array.uuid)) for array in found)
        if found and all(_complete(array) for array in found if array.uuid not in others):
            break
    return found


def _published(settings: Settings) -> dict[UUID, int]:
    """The newest version of each array's document that this machine knows of."""
    found = {}
    for file in settings.state.glob("*.sequence"):
        with suppress(ValueError):
            array = UUID(file.stem)
            if (sequence := published(settings, array)) is not None:
                found[array] = sequence
    return found


def serving(arrays: frozenset[Remembered]) -> frozenset[int]:
    """The device numbers of the drives that serve these arrays, by their ports; those of version 0.1 are told by their names.

    Asks sysfs, and no drive.
    """
    found: set[int] = set()
    uuids, called = {array.uuid for array in arrays}, {array.name for array in arrays}
    for file in _BLOCK.glob("dm-*/dm/uuid") if arrays else ():
        port = names.parse_dm_uuid(blockdev.text(file))
        if port is None or port.role != "drive":
            continue
        name = names.array_of(blockdev.text(file.with_name("name")))
        if port.array in uuids or (port.array is None and name in called):
            found.update(blockdev.slaves(file.parents[1]))
    return frozenset(found)


def _unless_stale(settings: Settings, array: Discovered, newest: int | None) -> Discovered:
    """With trouble, if this machine knows of a newer configuration than was found: a drive that failed has an old one, in which
    it is well, and LUNs brought up by that would show what was overwritten since.
    """
    document = array.document
    if document is None or not document.drives or newest is None or newest <= document.sequence:
        return array
    away = [drive.path for drive in document.drives if drive.uuid not in array.drives]
    missing = f": {', '.join(away)}" if away else ""
    stale = MetadataCorrupt(
        f"the drives of array {array.name!r} that were found carry version {document.sequence} of its configuration; "
        f"version {newest} was written later, to drives that are missing or damaged{missing}",
        remedy=f"bring those drives back; to go on with the older version, delete {sequence_file(settings, array.uuid)}",
    )
    return dataclasses.replace(array, trouble=(stale, *array.trouble))


def _complete(array: Discovered) -> bool:
    if array.document is None:
        return not array.trouble
    # What does not answer is where it was.
    told = array.drives.keys() | array.stalled
    return not array.trouble and all(drive.uuid in told or not drive.online for drive in array.document.drives)


def _discover(
    settings: Settings,
    counter: IoCounter,
    known: Iterable[Remembered],
    hints: list[str],
    passing: frozenset[Remembered],
    *,
    deep: bool,
) -> tuple[Discovered, ...]:
    result = scan(list(dict.fromkeys(hints)), settings.directories, counter, deep=deep, passing=serving(passing))
    by_array: defaultdict[UUID, list[Found]] = defaultdict(list)
    for found in result.found:
        by_array[found.label.array_uuid].append(found)
    refused = dict(result.refused)
    strangers = {label.drive_uuid: error for label, error in result.strangers}
    unwritten = {array.uuid for array in known if not array.paths}
    arrays = [
        _array(uuid, found, refused, strangers, counter, published(settings, uuid), new=uuid in unwritten)
        for uuid, found in by_array.items()
    ]
    arrays += [
        Discovered(
            uuid=array.uuid,
            name=array.name,
            document=None if array.paths else Document(array=array.uuid, name=array.name),
            drives={},
            trouble=_lost(array, refused) if array.paths else (),
            reasons={},
        )
        for array in known
        if array.uuid not in by_array
    ]
    return tuple(sorted(arrays, key=lambda array: (array.name, array.uuid)))


def _lost(array: Remembered, refused: Mapping[str, BlkrecovError]) -> tuple[BlkrecovError, ...]:
    errors = [refused[path] for path in array.paths if path in refused]
    said = "; ".join(error.message for error in errors)
    remedies = [error.remedy for error in errors if isinstance(error, Untrusted)]
    return (
        MetadataCorrupt(
            f"no drive of array {array.name!r} was found" + (f": {said}" if said else ""),
            remedy="; ".join(remedies)
            or "put its drives where they were, or name their directory in /etc/blkrecov/blkrecov.toml",
        ),
    )


def _array(
    uuid: UUID,
    found: list[Found],
    refused: Mapping[str, BlkrecovError],
    strangers: Mapping[UUID, Untrusted],
    counter: IoCounter,
    known: int | None,
    *,
    new: bool,
) -> Discovered:
    """As far as this machine knows, `known` is the newest version; or the array is `new`, and has no drive yet: its first one may
    have been left half-made.
    """
    drives: dict[UUID, Found] = {}
    reasons: dict[UUID, str] = {}
    candidates: defaultdict[UUID, list[Found]] = defaultdict(list)
    for item in found:
        candidates[item.label.drive_uuid].append(item)
    for drive, found_items in candidates.items():
        items = _without_partitions(found_items)
        attached = [item for item in items if item.device is not None]
        if len(items) == 1:
            drives[drive] = items[0]
        elif len(attached) == 1:
            drives[drive] = attached[0]  # If it serves, the others are copies that nobody wrote to since.
        else:
            reasons[drive] = _both(items)
    doubles = set(reasons)
    documents: dict[UUID, Document] = {}
    trouble: list[BlkrecovError] = []
    for drive, item in drives.items():
        try:
            document = read(item, counter)
        except BlkrecovError as error:
            reasons[drive] = error.message
            trouble.append(error)
            continue
        if document is not None:
            documents[drive] = document
    lineage = judge(documents, known) if documents else None
    newest = lineage.newest if lineage else None
    if newest is None and new and not trouble:
        newest = Document(array=uuid, name=found[0].label.array_name)
    if newest is None:
        unreadable = MetadataCorrupt(f"no copy of the configuration of array {found[0].label.array_name!r} can be read")
        return Discovered(
            uuid=uuid,
            name=found[0].label.array_name,
            document=None,
            drives=drives,
            trouble=(*trouble, unreadable),
            reasons=reasons,
        )
    for record in newest.drives:
        items = candidates[record.uuid]
        if record.online and record.uuid in drives and _is_borrowed(drives[record.uuid], record.path, items):
            reasons[record.uuid] = _both(items)
            doubles.add(record.uuid)
            del drives[record.uuid]
    stalled = set()
    trouble = []
    if lineage is not None and lineage.others:
        trouble.append(_split(newest, lineage.others, drives))
    if lineage is not None and lineage.unproven:
        trouble.append(_unproven(newest, lineage.unproven, documents, drives))
    for record in newest.drives:
        named = [item for item in candidates[record.uuid] if item.path != item.device]
        # A drive that does not serve was moved to another file system: copied there, and deleted here while it was attached.
        if not record.online and record.uuid in drives and drives[record.uuid] not in named and len(named) == 1:
            drives[record.uuid] = named[0]
        said = strangers.get(record.uuid) or refused.get(record.path)
        # That it is not where it was says nothing about it.
        if record.uuid not in drives and said is not None and not isinstance(said, PathNotFound):
            reasons.setdefault(record.uuid, said.message)
            if isinstance(said, Stalled):
                stalled.add(record.uuid)
    return Discovered(
        uuid=uuid,
        name=newest.name,
        document=newest,
        drives=drives,
        trouble=tuple(trouble),
        reasons=reasons,
        carried={drive: document.sequence for drive, document in documents.items()},
        doubles=frozenset(doubles),
        stalled=frozenset(stalled),
        strangers=frozenset(strangers),
    )


def _both(items: Iterable[Found]) -> str:
    return f"{' and '.join(item.path for item in items)} both say that they are this drive"


def _is_borrowed(taken: Found, path: str, items: Iterable[Found]) -> bool:
    """Whether what is attached is a copy that somebody else looks at, while the drive itself is where it was, unattached."""
    if taken.device is None or taken.path == path or not any(item.path == path for item in items):
        return False
    return not serves(Path("/sys/class/block") / Path(taken.device).name)


def _without_partitions(items: list[Found]) -> list[Found]:
    """A disk's label may look like a partition table by chance: the kernel knows many, and some are recognised by next to nothing
    (block/partitions/atari.c, ultrix.c). Such a partition begins where the disk does, and is no second drive.
    """
    if len(items) == 1:
        return items
    disks = {Path(item.path).name for item in items}
    return [item for item in items if Path("/sys/class/block", Path(item.path).name).resolve().parent.name not in disks]


def _split(newest: Document, conflict: Iterable[UUID], drives: Mapping[UUID, Found]) -> BlkrecovError:
    paths = ", ".join(sorted(drives[drive].path for drive in conflict))
    return InvalidDisk(
        f"array {newest.name!r} has two histories: what {paths} carry is no earlier version of what the other drives carry",
        remedy="the array ran on one part of its drives, and then on the other; take away the drives whose contents "
        "you do not want",
    )


def _unproven(
    newest: Document, older: Iterable[UUID], documents: Mapping[UUID, Document], drives: Mapping[UUID, Found]
) -> BlkrecovError:
    carry = ", ".join(sorted(drives[drive].path for drive in documents if documents[drive] == newest))
    paths = ", ".join(sorted(drives[drive].path for drive in older))
    return InvalidDisk(
        f"array {newest.name!r}: {carry} says that its configuration is version {newest.sequence}, and nothing proves that what "
        f"{paths} carries, version {max(documents[drive].sequence for drive in older)} at most, is an earlier one",
        remedy="take away the drives that you do not believe; earlier versions may come back once the array was open without",
    )


def read(found: Found, counter: IoCounter) -> Document | None:
    """The newest document that a drive carries; None if it carries none, which most drives of a large array do.

    Raises: MetadataCorrupt, NotSupported, DriveIoError.
    """
    with DriveStore(found.device or found.path, counter, writable=False) as store:
        slot = format_.newest(store.read_slots(found.label))
    return None if slot is None else model.decode(slot.payload)


def carriers(document: Document, available: Iterable[UUID]) -> tuple[UUID, ...]:
    """The drives that the next version is written to: those that carried the last one, as long as they are there."""
    usable = [drive.uuid for drive in document.drives if drive.online and drive.uuid in set(available)]
    sticky = [drive for drive in usable if drive in document.carriers]
    return tuple([*sticky, *(drive for drive in usable if drive not in sticky)][:CARRIERS])


def next_version(document: Document, available: Iterable[UUID]) -> Document:
    """The document as it is to be written next: numbered, named, and told which drives carry it."""
    return document.after(uuid4().hex[:12], carriers(document, available))


def write(version: Document, devices: Mapping[UUID, tuple[str, format_.Label]], counter: IoCounter) -> frozenset[UUID]:
    """Write what next_version() made. `devices` gives the block device and label of drives. The drives that have it now.

    Raises: MetadataNotWritten when no drive took it, or fewer than half of those that should: then it may or may not be what
            the next reader finds, so the next version to be written has to descend from it all the same.
            ConfigurationLimit when it does not fit, before anything was written.
    """
    payload = model.encode(version)
    failures: list[BlkrecovError] = []
    written: set[UUID] = set()
    for drive in version.carriers:
        device, label = devices[drive]
        try:
            with DriveStore(device, counter) as store:
                store.write_slot(label, version.sequence, payload)
            written.add(drive)
        except ConfigurationLimit:
            raise
        except BlkrecovError as error:
            failures.append(error)
    if not version.carriers or 2 * len(failures) > len(version.carriers):
        said = "; ".join(error.message for error in failures) or "no drive is online"
        raise MetadataNotWritten(f"the configuration of array {version.name!r} could not be written: {said}")
    return frozenset(written)


def boot_id() -> str:
    """What the kernel calls this boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def number_of(device: str) -> str:
    """major:minor of a block device's node."""
    number = Path(device).stat().st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def with_place(document: Document, drive: UUID, path: str) -> Document:
    """The document knowing where a drive was found."""
    record = document.drive_of(drive)
    return document.with_drive(msgspec.structs.replace(record, path=path)) if record.path != path else document
