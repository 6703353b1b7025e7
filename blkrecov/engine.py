"""The live array: observes, plans, acts; owns the document.

Every change goes one way (`carry_out`): an operation proposes a document; what the proposal needs is prepared on free space;
the document is written to the drives; the kernel is made to agree (blkrecov.converge). When a step is refused, the steps
before it are taken back and the old document is written again. When the process dies instead, the next one to open the
array converges, and finds just the steps that are missing.

An array is opened under its lock (blkrecov.locks), which is let go while a task is waited for, since the kernel works by
itself; whoever takes it again looks first whether another process was there (`reload`).
"""

import dataclasses
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Self
from uuid import UUID, uuid4

import msgspec

from blkrecov import blockdev, catalog, faults, flapping, locks, observer, provision, reconnect, shadows, stack, views
from blkrecov.actor import Actor
from blkrecov.bell import ring
from blkrecov.blockdev import plain
from blkrecov.catalog import Discovered
from blkrecov.condition import state_of, suspended
from blkrecov.converge import Group, converge, converge_ports, take_note
from blkrecov.dm import names
from blkrecov.dm.control import Control, NoSuchDevice
from blkrecov.dm.names import NameKind, check_name
from blkrecov.dm.stalled import Stalled, below_is_suspended, refuse_stalled
from blkrecov.drives import beneath, health, loop, probe, scan, store, trust
from blkrecov.drives import label as label_format
from blkrecov.drives.label import Label
from blkrecov.drives.scan import Found
from blkrecov.drives.store import DriveStore, IoCounter
from blkrecov.errors import (
    AccessDenied,
    BlkrecovError,
    CacheCorrupt,
    DeviceInUse,
    IdentityMismatch,
    InvalidArgument,
    InvalidDisk,
    MetadataCorrupt,
    NotInitialized,
    ObjectExists,
    ObjectFailed,
    ObjectNotFound,
    PathNotFound,
    ProviderFailure,
    TimedOut,
    resources,
)
from blkrecov.freeze import Freezer
from blkrecov.geometry import Request
from blkrecov.holders import claimed, holders
from blkrecov.locks import Lock, being_made, naming
from blkrecov.model import Document, Drive, DriveStatus, Fault, Lun, Task
from blkrecov.observed import Live, Observed
from blkrecov.page83 import identity, sysfs, udev
from blkrecov.page83.export import Exporter
from blkrecov.page83.identity import Witness, naa_of_serial, serial_of
from blkrecov.proposal import Proposal
from blkrecov.settings import Remembered, Settings, note_stopped, publish, published, remember, remembered
from blkrecov.stack import node
from blkrecov.steps import DetachLoop, ReplaceTable, Step, Store
from blkrecov.suspensions import Suspensions
from blkrecov.units import Bytes, sectors

log = logging.getLogger(__name__)

UDEV_PATIENCE_S: Final = 5.0
_SEE_TO_IT: Final = "see to what it lies on (journalctl -k), then: blkrecov refresh"
Ids = Iterator[UUID]


def fresh_ids() -> Ids:
    while True:
        yield uuid4()


def create_array(settings: Settings, name: str) -> Remembered:
    """A new array without drives. It is written onto the first drive that is added.

    Raises: InvalidArgument, ObjectExists.
    """
    check_name(NameKind.ARRAY, name)
    _refuse_others()
    known = frozenset(remembered(settings))
    taken = {array.name for array in known}
    taken |= {array.name for array in catalog.discover(settings, IoCounter(), passing=known)}
    with naming(settings):
        if name in taken or any(array.name == name for array in remembered(settings)):
            raise ObjectExists(f"there is an array {name!r} already")
        array = Remembered(uuid4(), name)
        try:
            remember(settings, array)
        except OSError as error:
            raise ProviderFailure(
                f"{settings.state} cannot be written: {error.strerror}",
                remedy="an array without drives is known by that directory alone: see to its file system",
            ) from error
        return array


def list_arrays(settings: Settings) -> tuple[Discovered, ...]:
    _refuse_others()
    return catalog.discover(settings, IoCounter())


def _refuse_others() -> None:
    if os.geteuid() != 0:
        raise AccessDenied("device-mapper, loop devices and LIO are root's")


@contextmanager
def locked(settings: Settings, name: str | None = None, patience_s: float = locks.PATIENCE_S) -> Iterator[Lock]:
    """The lock of an array (of the only one, if no name is given), held.

    The state directory knows which one is meant, as a rule; else drives are looked at, and again when it is held.

    Raises: AccessDenied, ObjectNotFound, InvalidArgument when several arrays could be meant, DeviceInUse.
    """
    _refuse_others()
    likely = [array for array in remembered(settings) if name in (None, array.name, str(array.uuid))]
    if len(likely) > 1:
        raise _several([(array.name, str(array.uuid)) for array in likely])
    meant = likely[0] if likely else _choose(catalog.discover(settings, IoCounter()), name)
    lock = Lock(settings, meant.uuid, meant.name)
    lock.take(patience_s)
    try:
        yield lock
    finally:
        lock.release()


def discovered(settings: Settings, lock: Lock, name: str | None = None) -> Discovered:
    """The array whose lock is held, found on its drives. Those that serve other arrays are not looked at.

    Raises: ObjectNotFound; InvalidArgument when `name`, or none, could mean another one as well.
    """
    return _choose(catalog.discover(settings, IoCounter(), passing=_others(settings, lock.array)), name)


def _others(settings: Settings, array: UUID) -> frozenset[Remembered]:
    """The other arrays that this machine has seen."""
    return frozenset(known for known in remembered(settings) if known.uuid != array)


class Engine:
    """An open array, brought up: its drives, LUNs and devices. Made by opened()."""

    def __init__(self, settings: Settings, found: Discovered, lock: Lock, owned: ExitStack) -> None:
        if found.trouble:
            raise found.trouble[0]
        assert found.document is not None, "an array without trouble has a document"
        self.counter: Final = IoCounter()
        self._settings = settings
        self._lock = lock
        self._control = owned.enter_context(Control())
        self._exporter = Exporter()
        self._freezer = Freezer(settings.volatile / f"{found.document.array.hex[:8]}.frozen")
        self.suspensions: Final = Suspensions.of(settings.volatile, found.document.array)
        self._actor = Actor(
            found.document.array, self._control, self._exporter, self.counter, self._freezer, self.suspensions
        )
        self.document: Document = found.document
        self.labels: dict[UUID, Label] = {uuid: item.label for uuid, item in found.drives.items()}
        self._found = found
        self._backings: dict[UUID, str] = {}
        self._carried = dict(found.carried)
        self._unsaved = False
        self._closed = False
        self._mistake = ""
        self._enumerated: Discovered | None = None
        self.trouble: dict[UUID, BlkrecovError] = {}
        """LUNs that could not be brought up, and why."""
        self.observed = Observed()

    @classmethod
    @contextmanager
    def opened(
        cls, settings: Settings, name: str | None = None, *, patience_s: float = locks.PATIENCE_S
    ) -> Iterator[Self]:
        """Find the array (the only one, if no name is given), bring up what of it is down, and hold it.

        Raises: AccessDenied, ObjectNotFound, InvalidArgument when several arrays could be meant, DeviceInUse,
                MetadataCorrupt and InvalidDisk for configurations that cannot be told; OutOfResources.
        """
        with locked(settings, name, patience_s) as lock, ExitStack() as owned:
            with resources(), loop.held(catalog.serving(_others(settings, lock.array))):
                array = cls(settings, discovered(settings, lock, name), lock, owned)
                array.assemble()
            try:
                yield array
            finally:
                array._leave()
                array._closed = True

    def _leave(self) -> None:
        """What is due when the array is let go of, while it is held still."""

    # Bringing up.

    def assemble(self) -> None:
        """Make the kernel's devices what the document says; for all LUNs that can be, whatever the others do."""
        observer.refuse_taken_name(self._control, self.document)
        note_stopped(self._settings, self.document.array, stopped=False)
        before = self.document
        self._clear_up()
        self._attach()
        self._look_at_drives()
        self.observe()
        self._bring_up_ports()
        unclean = bool(self.document.running)
        noted = take_note(self.document, self.observed, unclean=unclean)
        if self._look_at_drives(failed_on(self.document, noted)):
            noted = take_note(self.document, self.observe(), unclean=unclean)
        noted = flapping.noted(before, noted, int(time.time()))
        boot = catalog.boot_id()
        if noted.luns and noted.running != boot:
            noted = msgspec.structs.replace(noted, running=boot)
        if noted != self.document or self._stale_carriers():
            self.store(noted)
        self._run(converge(self.document, self.observed, unclean=unclean))
        # Not before: what is frozen may be on a LUN that is suspended still, and to thaw it is to write to it.
        self._freezer.thaw()
        self._stamp()
        self._note_returns()
        self._remember()
        self._publish()

    def _bring_up_ports(self) -> None:
        """A drive whose port the kernel refuses has failed: with the fault that is injected there, perhaps, which this kernel has
        not. The others come up.
        """
        for drive, steps in converge_ports(self.document, self.observed).items():
            try:
                self._act_on(steps)
            except BlkrecovError as error:
                # Another array may have taken the name since: the drive has nothing to do with that.
                observer.refuse_taken_name(self._control, self.document)
                log.warning("drive %s: %s", self.document.drive_of(drive).name, error.message)
                self._set_status(self.document.drive_of(drive), DriveStatus.FAILED, error.message)
                self._backings.pop(drive, None)
        self.observe()
        for steps in converge_ports(self.document, self.observed).values():
            self._act_on(steps)
            self.observe()

    def _clear_up(self) -> None:
        """Finish with drives whose adding was cut short, and with those whose removing was: neither is a drive of the array.

        Safe to be cut short itself: a half-made drive is in the document until this is written down, and what was removed
        has a tombstone for as long as it has a label.
        """
        half_made = [drive for drive in self.document.drives if drive.status is DriveStatus.NOT_READY]
        removed = {stone.uuid for stone in self.document.tombstones if stone.kind == "drive"}
        for uuid, found in self._found.drives.items():
            # An array that was never written has no drives: what bears its name was to be the first.
            if not self.document.sequence or any(drive.uuid == uuid for drive in half_made):
                self._wipe(found.device or found.path, found.label)
                self._detach(found.path, found.label.drive_name)
            elif uuid in removed:
                self._give_back(found.path, found.label)
        for drive in half_made:
            self._detach(drive.path, drive.name)
            self.document = self.document.forgetting(drive)
            self._unsaved = True

    def _give_back(self, path: str, label: Label, device: str | None = None) -> None:
        """Take a removed drive's file off its loop device, then our label away; while udev looks at it, the next to open does.

        `device` is where the drive was last. What has come to its path since, another drive perhaps, is left alone.
        """
        attached = None
        with suppress(PathNotFound):
            attached = loop.find(path)
        node = attached.path if attached else path
        if node != device and not self._is_at(node, label):
            return
        if attached is not None:
            self._actor.act(DetachLoop(label.drive_name, attached.path))
        with suppress(TimedOut):
            udev.settle(UDEV_PATIENCE_S)
        self._wipe(path, label)

    def _detach(self, path: str, name: str) -> None:
        with suppress(PathNotFound):
            attached = loop.find(path)
            if attached is not None:
                self._actor.act(DetachLoop(name, attached.path))

    def _attach(self) -> None:
        """Find each drive's block device, attaching files to loop devices; note which drives are away, and which are back."""
        for drive in self.document.drives:
            found = self._found.drives.get(drive.uuid)
            reason = self._found.reasons.get(drive.uuid, f"not found, last seen at {drive.path}")
            if found is None or drive.uuid in self._found.reasons:
                if drive.online and drive.uuid in self._found.stalled and (device := self._port_stands_on(drive)):
                    # It serves: who uses its LUNs waits, and that may end. Nobody is to wait here.
                    log.warning("drive %s: %s", drive.name, reason)
                    self._backings[drive.uuid] = device
                elif drive.online:
                    self._set_status(drive, self._found.status_of(drive.uuid), reason)
                continue
            if not drive.online and self._carried.get(drive.uuid, 0) < drive.carried:
                if drive.status is not DriveStatus.FAILED:
                    self._set_status(drive, DriveStatus.FAILED, f"what is at {found.path} is an older copy of it")
                continue
            if self._is_older_copy(drive, found):
                self._set_status(drive, DriveStatus.FAILED, f"what is at {found.path} is an older copy of it")
                self.document = self.document.with_drive(
                    msgspec.structs.replace(self.document.drive_of(drive.uuid), carried=self.document.sequence)
                )
                continue
            if drive.status in (DriveStatus.REMOVED, DriveStatus.OFFLINE):
                drive = self._set_status(drive, DriveStatus.ONLINE, "")
            if not drive.online:
                continue
            try:
                # It was found as a file, perhaps, and attached by ourselves since.
                attached = loop.backed_by(found.inode) if found.inode is not None else None
                device = _kept(attached.path if attached else found.device) or _attached(found).path
            except BlkrecovError as error:
                self._set_status(drive, DriveStatus.OFFLINE, error.message)
                continue
            self._backings[drive.uuid] = device
            if found.reading.cut:
                self._set_status(drive, DriveStatus.FAILED, "nothing stands at its end: its file was cut")
                self._backings.pop(drive.uuid)
                continue
            if found.reading.damage is not None:
                self._mend(drive, device, found.reading.damage)
            self.document = catalog.with_place(self.document, drive.uuid, _place(drive, found))

    def _port_stands_on(self, drive: Drive) -> str | None:
        """The block device that a drive's port, if there is one, leads to."""
        try:
            below = self._control.deps(names.drive_name(self.document.name, drive.name))
        except NoSuchDevice:
            return None
        return f"/dev/{Path(f'/sys/dev/block/{below[0]}').resolve().name}" if below else None

    def _is_older_copy(self, drive: Drive, found: Found) -> bool:
        """Whether what is in another place than the drive was cannot be what had the newest configuration, or the one before it,
        which is what a drive has that was cut off while the newest was written.
        """
        carried = self._carried.get(drive.uuid, 0)
        moved = _place(drive, found) != drive.path
        return drive.online and moved and drive.uuid in self.document.carriers and carried < self.document.sequence - 1

    def _mend(self, drive: Drive, device: str, damage: str) -> None:
        """Make a label and its copy equal again. A drive whose label cannot be written is of use for what it holds still."""
        try:
            with DriveStore(device, self.counter) as medium:
                medium.repair_label()
        except BlkrecovError as error:
            log.warning("drive %s: %s; it could not be repaired: %s", drive.name, damage, error.message)
        else:
            log.warning("drive %s: %s; repaired", drive.name, damage)

    def _set_status(self, drive: Drive, status: DriveStatus, reason: str) -> Drive:
        changed = msgspec.structs.replace(
            drive, status=status, reason=reason, carried=0 if status is DriveStatus.ONLINE else drive.carried
        )
        self.document = self.document.with_drive(changed)
        self._unsaved = True
        return changed

    def _look_at_drives(self, suspects: frozenset[UUID] = frozenset()) -> bool:
        """Note what has become of drives that are said to be online; suspects are tried. Whether any has gone."""
        gone = False
        for drive in self.document.drives:
            device = self._backings.get(drive.uuid)
            if not drive.online or device is None:
                continue
            below = health.below(device)
            if below is not None and below.released and _kept(device):
                log.warning("drive %s: somebody has told %s to let go of it; it stays", drive.name, device)
            if place := self._moved(drive, device):
                self._unsaved = True
                self.document = catalog.with_place(self.document, drive.uuid, place)
                drive = self.document.drive_of(drive.uuid)
            if drive.uuid in suspects:
                port = self._actor.path_of(stack.port_node(self.document, drive.uuid))
                found = health.examine(drive, device, port, self.counter)
            else:
                found = health.look(drive, device)
            if found.status is not DriveStatus.ONLINE:
                self._set_status(drive, found.status, found.reason)
                self._backings.pop(drive.uuid)
                gone = True
            elif health.is_outdated(drive, found) or (found.reason and not drive.failing):
                self.document = self.document.with_drive(msgspec.structs.replace(drive, failing=found.reason))
                self._unsaved = True
        return gone

    def _moved(self, drive: Drive, device: str) -> str | None:
        """Where a drive's file is now. That a file has the name says little: the kernel tells it as the process had it that
        attached the file, which may have had mounts of its own.
        """
        place = health.moved_to(drive, device)
        attached = loop.find(place) if place else None
        return place if attached is not None and attached.path == device else None

    def unease(self) -> frozenset[tuple[UUID, str]]:
        """What about drives looks otherwise than it should. Asks sysfs and the names of files; needs no lock."""
        found = set()
        for drive in self.document.drives:
            device = self._backings.get(drive.uuid)
            if drive.online and device is not None:
                below = health.below(device)
                said = health.look(drive, device).reason or health.moved_to(drive, device) or ""
                if below is not None and below.released:
                    said += " released"
                if said:
                    found.add((drive.uuid, said))
        return frozenset(found)

    def drives_behind(self, devices: frozenset[str]) -> frozenset[UUID]:
        """The drives online that failed requests to these block devices were for: their own, or those of a LUN's SCSI disk."""
        found = {uuid for uuid, device in self._backings.items() if device.removeprefix("/dev/") in devices}
        for lun in self.document.luns:
            exported = self.observed.exports.get(lun.uuid)
            if exported is not None and exported.disk.removeprefix("/dev/") in devices:
                found |= lun.drives & self._backings.keys()
        return frozenset(found)

    def watched(self) -> tuple[str, ...]:
        """The block devices of the drives that are online."""
        return tuple(self._backings.values())

    def _stale_carriers(self) -> bool:
        """Whether the document has to be written although nothing in it was decided anew."""
        wanted = catalog.carriers(self.document, self._backings.keys() & self.labels.keys())
        return bool(self.document.drives) and (self._unsaved or set(wanted) != set(self.document.carriers))

    def observe(self) -> Observed:
        self.observed = observer.observe(
            self._control, self._exporter, self.document, self._backings, self.counter, self.suspensions
        )
        return self.observed

    def _look(self) -> None:
        """Observe the kernel's devices anew, and nothing that would have to be read from a drive."""
        self.observed = dataclasses.replace(self.observed, devices=self._live())

    def _live(self) -> dict[str, Live]:
        return observer.devices(self._control, self.document, self.suspensions)

    def reload(self) -> None:
        """After the lock was let go: whatever another process has changed meanwhile, and what the kernel has now."""
        self.catch_up()
        self.observe()

    def catch_up(self) -> None:
        """After the lock was let go: whatever another process has changed meanwhile. What the kernel has is not looked at."""
        if self.outdated() or self._answers_again():
            self._adopt(self._discovered())

    def _answers_again(self) -> bool:
        """Whether a drive that was not asked when the array was found would answer now."""
        for uuid in self._found.stalled & self._backings.keys():
            with suppress(Stalled):
                refuse_stalled(self._backings[uuid])
                return True
        return False

    def outdated(self) -> bool:
        """Whether another process of this machine has written a version of the document since. Asks a file, and no drive."""
        known = published(self._settings, self.document.array)
        return self._superseded() if known is None else known != self.document.sequence

    def down(self) -> bool:
        """Whether nothing of the array is in the kernel, as after stop(): its drives would have their ports at least."""
        return bool(self.document.drives) and not self._live()

    def _publish(self) -> None:
        publish(self._settings, self.document.array, self.document.sequence)
        self.ring()

    @property
    def bell(self) -> Path:
        """Where the monitor listens."""
        return self._settings.bell_of(self.document.array)

    def ring(self) -> None:
        """Wake the monitor, if there is one."""
        ring(self.bell)

    def _discovered(self) -> Discovered:
        """The array, found anew."""
        uuid = self.document.array
        every = catalog.discover(self._settings, self.counter, passing=_others(self._settings, uuid))
        return _choose(every, str(uuid))

    def _superseded(self) -> bool:
        """Whether the drives carry another version of the document than ours. Reads slots of those that carry it, no more."""
        sequences = []
        for uuid in self.document.carriers:
            device = self._backings.get(uuid)
            if device is not None and uuid in self.labels:
                with suppress(BlkrecovError), DriveStore(device, self.counter, writable=False) as medium:
                    newest = label_format.newest(medium.read_slots(self.labels[uuid]))
                    sequences.append(newest.sequence if newest else 0)
        return bool(self.document.drives) and max(sequences, default=-1) != self.document.sequence

    def _adopt(self, found: Discovered) -> None:
        if found.document is None or found.trouble:
            raise found.trouble[0] if found.trouble else ObjectNotFound("the array is gone")
        self._found, self.document = found, found.document
        self._carried = dict(found.carried)
        self.labels = {uuid: item.label for uuid, item in found.drives.items()}
        self._backings = {
            uuid: item.device
            for uuid, item in found.drives.items()
            if item.device is not None and any(drive.uuid == uuid and drive.online for drive in self.document.drives)
        }
        for drive in self.document.drives:
            if drive.online and drive.uuid in found.stalled and (device := self._port_stands_on(drive)):
                self._backings[drive.uuid] = device

    @contextmanager
    def unlocked(self, patience_s: float = locks.PATIENCE_S) -> Iterator[None]:
        """Let other processes work on the array meanwhile. What is known of it may be old afterwards: reload()."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.take(patience_s)

    def stalled(self) -> dict[UUID, Stalled]:
        """The drives that would not answer, as far as that can be told without waiting."""
        found = {uuid: below_is_suspended(device) for uuid, device in self._backings.items()}
        return {
            uuid: why or Stalled(self._found.reasons[uuid], remedy=_SEE_TO_IT)
            for uuid, why in found.items()
            if why is not None or uuid in self._found.stalled
        }

    def without_stalled(self, wanted: frozenset[UUID]) -> Document:
        """The document to choose drives by: those that would not answer are set aside in it, but for what is wanted as it is."""
        document = self.document
        for uuid, why in self.stalled().items():
            if uuid not in wanted:
                aside = msgspec.structs.replace(document.drive_of(uuid), failing=why.message)
                document = document.with_drive(aside)
        return document

    def as_they_are(self, proposal: Proposal) -> Proposal:
        """What was proposed by such a document, with its drives as they are known."""
        document = proposal.document
        for known in self.document.drives:
            drive = document.drive_of(known.uuid)
            if drive.failing != known.failing:
                document = document.with_drive(msgspec.structs.replace(drive, failing=known.failing))
        return dataclasses.replace(proposal, document=document)

    # What is known, and whether it is so.

    def refuse_mistaken(self) -> None:
        """What an operation asks before all else: whether what we know of the array is what is there.

        Once it is not, nothing is done until reenumerate() and refresh() were called, in this order.

        Raises: NotInitialized, CacheCorrupt.
        """
        if self._closed:
            raise NotInitialized(f"array {self.document.name!r} is not open any more")
        self._mistake = self._mistake or self._contradiction()
        if self._mistake:
            raise CacheCorrupt(f"what is known of array {self.document.name!r} is not what is there: {self._mistake}")

    def _contradiction(self) -> str:
        if self._superseded():
            return "its drives carry another version of the configuration"
        live = self._live()
        for uuid, known in self.observed.devices.items():
            now = live.get(uuid)
            if now is None:
                return f"the device {known.name} has gone"
            if (now.name, now.number) != (known.name, known.number):
                return f"the device {known.name} ({known.number}) is {now.name} ({now.number}) now"
        return ""

    def reenumerate(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """IVdsHwProvider::Reenumerate: look for the array's drives anew: (names of those that came, of those that went).

        What is known of them is refresh()'s business.
        """
        before = {drive.name for drive in self.document.drives if drive.uuid in self._found.drives}
        found = self._discovered()
        if found.document is None or found.trouble:
            raise found.trouble[0] if found.trouble else ObjectNotFound("the array is gone")
        after = {drive.name for drive in found.document.drives if drive.uuid in found.drives}
        self._enumerated = found
        return tuple(sorted(after - before)), tuple(sorted(before - after))

    def refresh(self) -> None:
        """IVdsHwProvider::Refresh: read the properties of all that is known, and bring up what is down.

        Raises: CacheCorrupt while reenumerate() is due; and what bringing up the array does.
        """
        if self._mistake and self._enumerated is None:
            raise CacheCorrupt(f"what is known of array {self.document.name!r} is not what is there: {self._mistake}")
        if self._enumerated is not None:
            self._adopt(self._enumerated)
        else:
            self.reload()
        self._mistake, self._enumerated = "", None
        with loop.held(catalog.serving(_others(self._settings, self.document.array))):
            self.assemble()

    def store(self, document: Document) -> None:
        """Write a document to the drives and make it this array's. An array without drives has it in memory only."""
        if document.drives:
            # One that did not answer when the array was opened has no label here, and need not carry this version.
            devices = {
                uuid: (device, self.labels[uuid]) for uuid, device in self._backings.items() if uuid in self.labels
            }
            document = catalog.next_version(self._with_carried(document), devices)
            # Some drives may have it even if the write fails, so what is written next descends from it.
            self.document = _descending(self.document, document)
            written = catalog.write(document, devices, self.counter)
            self._carried |= dict.fromkeys(written, document.sequence)
        self.document = document
        self._unsaved = False
        self._publish()

    def _with_carried(self, document: Document) -> Document:
        """The document that knows of drives which are gone what they had last: a copy made before that is told by it."""
        for drive in document.drives:
            last = max(drive.carried, self._carried.get(drive.uuid, 0))
            if not drive.online and drive.carried != last:
                document = document.with_drive(msgspec.structs.replace(drive, carried=last))
        return document

    def _remember(self) -> None:
        paths = tuple(drive.path for drive in self.document.drives)
        try:
            remember(self._settings, Remembered(self.document.array, self.document.name, paths))
        except OSError as error:
            log.warning("%s cannot be written: %s", self._settings.state, error.strerror)

    # The one way of a change.

    def plan(self, proposal: Proposal) -> tuple[Step, ...]:
        """The steps that carry_out() would take."""
        first = self.plan(proposal.first) if proposal.first is not None else ()
        groups = converge(proposal.document, self.observe())
        return (
            *first,
            *proposal.prepare,
            Store(proposal.document, proposal.why),
            *(step for group in groups for step in group.steps if step not in proposal.prepare),
            *proposal.then,
        )

    def carry_out(self, proposal: Proposal) -> None:
        """Make a proposal true, or leave everything as it was.

        Raises: Stalled, with nothing done, where something is to be put on a drive that does not answer; what its steps do.
        """
        log.debug("%s", proposal.why)
        before = self.document
        known = {lun.uuid: lun.drives for lun in before.luns}
        for lun in proposal.document.luns:
            self.refuse_stalled(lun.drives - known.get(lun.uuid, frozenset()))
        with ExitStack() as undo:
            self._act_on(proposal.prepare, undo)
            # Should this fail halfway, some drives may have the new document: so the old one is written again as well.
            undo.callback(self._go_back, before)
            document = proposal.document
            if document.luns and not document.running:
                document = msgspec.structs.replace(document, running=catalog.boot_id())
            self.store(document)
            wanted = proposal.others | ({proposal.lun} if proposal.lun else frozenset())
            self._run(converge(self.document, self.observe()), wanted=wanted, undo=undo)
            self._act_on(proposal.then, undo)
            undo.pop_all()
        if proposal.then:
            self.observe()
        self._stamp()
        self._note_returns()

    def _note_returns(self) -> None:
        """Write down which returning members the kernel has taken back, and which it has not."""
        document = self.document
        for lun in document.luns:
            asked = lun.returning or lun.trusted
            if asked and (self.observed.raid(lun) is not None or lun.uuid in self.trouble):
                failed = self.observed.given_up(lun) if self.observed.loaded(lun) else lun.returning
                document = document.with_lun(reconnect.taken_back(lun, failed))
        if document != self.document:
            self.store(document)

    def _stamp(self) -> None:
        """Write down of when shadow copies are that were made just now: from here on they count."""
        stamped = shadows.stamped(self.document, self.observed, int(time.time()))
        if stamped != self.document:
            self.store(stamped)

    def _go_back(self, before: Document) -> None:
        self.store(_descending(before, self.document))
        self._run(converge(self.document, self.observe()))

    def _run(
        self, groups: tuple[Group, ...], *, wanted: frozenset[UUID] = frozenset(), undo: ExitStack | None = None
    ) -> None:
        """Carry out groups. One LUN's failure does not stop the others, unless it is the LUN that this is about."""
        stop = undo is not None
        for group in groups:
            try:
                self._act_on(group.steps, undo)
            except BlkrecovError as error:
                if stop and (group.lun is None or group.lun in wanted):
                    raise
                if group.lun is None:
                    log.warning("%s", error.message)
                    continue
                self.trouble[group.lun] = error
                log.info("LUN %s: %s", self.document.lun_of(group.lun).name, error.message)
        if groups:
            self.observe()

    def _act_on(self, steps: tuple[Step, ...], undo: ExitStack | None = None) -> None:
        for step in steps:
            log.debug("%s", step.lines()[0])
            back = self._actor.act(step)
            if back is not None and undo is not None:
                undo.callback(back)

    # Drives.

    def add_drive(
        self, path: str, *, size: Bytes | None, name: str | None, spare: bool, force: bool, dry: bool = False
    ) -> tuple[Drive | None, tuple[str, ...]]:
        """Make a drive of a new file (with a size), an existing file, or a block device: (drive, what would be done).

        Raises: what probe.refuse_if_unfit() does, Untrusted, ObjectExists, InvalidArgument for sizes, NotEnoughSpace; DeviceInUse
                while another array is about to have it.
        """
        self.refuse_mistaken()
        with being_made(self._settings, path):
            return self._add_drive(path, size=size, name=name, spare=spare, force=force, dry=dry)

    def _add_drive(
        self, path: str, *, size: Bytes | None, name: str | None, spare: bool, force: bool, dry: bool
    ) -> tuple[Drive | None, tuple[str, ...]]:
        name = name or _free_name(self.document)
        check_name(NameKind.DRIVE, name)
        if any(drive.name == name for drive in self.document.drives):
            raise ObjectExists(f"array {self.document.name!r} has a drive {name!r} already")
        path = str(Path(path).absolute())
        is_new = not os.path.lexists(path)
        if is_new and size is None:
            raise PathNotFound(f"{path} does not exist", remedy="give --size to have it created")
        expected = None
        if not is_new:
            size, expected = self._fit(path, size, force=force)
        self._refuse_own(path)
        assert size is not None
        label = Label.new(
            size=size,
            drive_uuid=uuid4(),
            array_uuid=self.document.array,
            drive_name=name,
            array_name=self.document.name,
            created_s=int(time.time()),
        )
        drive = Drive(
            uuid=label.drive_uuid,
            name=name,
            path=path,
            size=size,
            data_start=sectors(label.layout.data_start),
            data_length=sectors(label.layout.data_length),
            hot_spare=spare,
        )
        proposal = Proposal(document=self.document.with_drive(drive), why=f"drive {name} is added")
        if dry:
            lines = [f"create {path}"] if is_new else []
            lines += [f"write a label to {path}", f"attach {path} to a loop device"]
            return None, (*lines, *(line for step in self.plan(proposal) for line in step.lines()))
        with ExitStack() as undo:
            if is_new:
                expected = store.create_file(path, size)
                undo.callback(store.remove_file, path, expected)
            if self.document.drives:
                # Known before it has a label: should we die, the next to open the array knows whose that is.
                before = self.document
                half_made = msgspec.structs.replace(drive, status=DriveStatus.NOT_READY)
                self.store(self.document.with_drive(half_made))
                undo.callback(self._go_back, before)
            store.format_drive(path, label, self.counter, expected=expected)
            undo.callback(self._wipe, path, label)
            device = path
            if not _is_block(path):
                attached = loop.attach(path, expected=expected)
                undo.callback(loop.detach, attached)
                device = attached.path
            self._backings[drive.uuid], self.labels[drive.uuid] = device, label
            undo.callback(self._backings.pop, drive.uuid, None)
            self.carry_out(dataclasses.replace(proposal, document=_descending(proposal.document, self.document)))
            undo.pop_all()
        self._remember()
        return drive, ()

    def _fit(self, path: str, size: Bytes | None, *, force: bool) -> tuple[Bytes, loop.Inode | None]:
        """The size of something that exists and may become a drive, and which file it is. Raises: Untrusted too."""
        contents = probe.inspect(path)
        real = Path(path).resolve()
        if real.name.startswith("dm-") or any(
            f"/dev/{real.name}" == export.disk for export in self.observed.exports.values()
        ):
            raise InvalidArgument(f"{path} stands on drives itself", remedy="give a file, a disk or a partition")
        probe.refuse_if_unfit(contents, force=force)
        trust.refuse(path)
        if size is not None and size != contents.size:
            raise ObjectExists(
                f"{path} exists already, with {contents.size} bytes", remedy="leave --size out, or give another path"
            )
        if contents.size % 4096:
            raise InvalidArgument(
                f"{path} has {contents.size} bytes, no multiple of 4096", remedy=f"truncate --size=%4096 {path}"
            )
        return contents.size, contents.inode

    def _refuse_own(self, path: str) -> None:
        """What stands on a LUN of the array, be it by way of another array's, can be no drive of it: neither could be taken down,
        for each would wait for the other. Raises: InvalidArgument.
        """
        luns = {lun.uuid: lun.name for lun in self.document.luns}
        exported = {export.disk: export.device for export in self._exporter.exports()}
        for device in beneath.devices(path, exported):
            owner = names.parse_dm_uuid(blockdev.text(device / "dm/uuid"))
            if owner is not None and owner.owner in luns:
                raise InvalidArgument(
                    f"{path} stands on LUN {luns[owner.owner]!r} of array {self.document.name!r} itself",
                    remedy="choose a path that lies on none of the array's own LUNs",
                )

    def _wipe(self, path: str, label: Label) -> None:
        """Names of disks change hands: what does not say that it is this drive is not touched."""
        with suppress(BlkrecovError), DriveStore(path, self.counter) as drive:
            if _is_of(drive, label):
                drive.wipe(label.layout)

    def _is_at(self, path: str, label: Label) -> bool:
        """Whether a label says so; not where there is none that can be read."""
        with suppress(BlkrecovError), DriveStore(path, self.counter, writable=False) as drive:
            return _is_of(drive, label)
        return False

    def propose_fail(self, name: str) -> Proposal:
        self.refuse_mistaken()
        # What the kernel lost before is lost before this one.
        return provision.fail_drive(take_note(self.document, self.observe(), unclean=False), name)

    def fail_drive(self, name: str) -> Drive:
        """Take a drive for failed: all I/O to it fails from now on, and LUNs do without it."""
        proposal = self.propose_fail(name)
        uuid = self.document.drive(name).uuid
        self.carry_out(proposal)
        self._backings.pop(uuid, None)
        return self.document.drive_of(uuid)

    def propose_fault(self, name: str, fault: Fault) -> Proposal:
        """Raises: what faults.propose() does; TargetMissing where the kernel has not what the fault is made of."""
        self.refuse_mistaken()
        proposal = faults.propose(self.document, name, fault)
        self._control.require(faults.TARGETS[fault.kind])
        return proposal

    def inject_fault(self, name: str, fault: Fault) -> Drive:
        """Have a drive misbehave from now on, until it is reconnected."""
        self.carry_out(self.propose_fault(name, fault))
        return self.document.drive(name)

    def propose_reconnect(
        self, name: str, path: str | None = None, *, force: bool = False
    ) -> tuple[Proposal, Task, Found]:
        """IVolumeClient::ReConnectDisk: the drive, found where it was, where it is now, or at `path`.

        Raises: ObjectNotFound, ObjectDeleted; PathNotFound; InvalidDisk for what is not this drive, or no longer as it was;
                DeviceInUse for a clone of a drive that is online; MetadataCorrupt for a drive that somebody else has used.
        """
        self.refuse_mistaken()
        drive = self.document.drive(name)
        found = self._found_again(drive, path)
        self._refuse_own(found.device or found.path)
        newest = self._refuse_changed(drive, found)
        # What the kernel alone knows to be lost is known no more once the drive is back, and the machine restarts.
        observed = self.observe()
        document = take_note(self.document, observed, unclean=False)
        members = [lun for lun in document.luns if lun.layout.fault_tolerant and drive.uuid in lun.drives]
        backings = {**self._backings, drive.uuid: found.device or found.path}
        superblocks = observer.superblocks(members, backings, self.counter)
        doubt = f"drive {drive.name} was cut at its end" if found.reading.cut else ""
        if not drive.online and newest < drive.carried:
            # What its bitmap tells was missed by the drive; the copy has missed more.
            doubt = f"{found.path} is an older copy of drive {drive.name}"
        proposal, task = reconnect.propose(
            document, observed, drive, _place(drive, found, path), superblocks, fresh_ids(), force=force, doubt=doubt
        )
        if drive.fault is not None and drive.uuid in self._backings:
            # Superblocks of new members are zeroed through the port: not while that loses writes.
            sound = self._port_of(proposal.document, drive, self._backings[drive.uuid])
            proposal = dataclasses.replace(proposal, prepare=(sound, *proposal.prepare))
        return proposal, task, found

    def _port_of(self, document: Document, drive: Drive, device: str) -> ReplaceTable:
        """What makes a drive's port, which is there, that of a drive on this device."""
        port = stack.port(document, document.drive_of(drive.uuid), device)
        return ReplaceTable(name=port.name, table=port.table, visible=False, flush=False)

    def _found_again(self, drive: Drive, path: str | None) -> Found:
        online = self._backings.get(drive.uuid) if drive.online else None
        if path is None:
            if online is not None and drive.uuid in self._found.drives:
                # Found as a file, perhaps, and attached since.
                return dataclasses.replace(self._found.drives[drive.uuid], device=online)
            self._found = self._discovered()
            found = self._found.drives.get(drive.uuid)
            if found is not None and drive.uuid not in self._found.reasons:
                return found
            reason = self._found.reasons.get(drive.uuid)
            if reason is not None:
                raise InvalidDisk(f"drive {drive.name!r}: {reason}", remedy="say which is meant, with --path")
            raise PathNotFound(
                f"drive {drive.name!r} is nowhere to be found; it was last at {drive.path}",
                remedy="put it back, or say where it is with --path",
            )
        found = scan.look(str(Path(path).absolute()), self.counter)
        is_copy = found.device is None or online is None or not Path(found.device).samefile(online)
        if online is not None and is_copy and found.label.drive_uuid == drive.uuid:
            raise DeviceInUse(
                f"drive {drive.name!r} is online at {drive.path}: what is at {path} is a copy of it",
                remedy="take the copy away; two drives with one identity must not be in one machine",
            )
        return found

    def _refuse_changed(self, drive: Drive, found: Found) -> int:
        """The version of the document that the drive has, 0 for none. Raises: InvalidDisk, MetadataCorrupt."""
        label = found.label
        if label.array_uuid != self.document.array:
            raise InvalidDisk(f"{found.path} belongs to array {label.array_name!r} ({label.array_uuid})")
        if label.drive_uuid != drive.uuid:
            raise InvalidDisk(f"{found.path} is drive {label.drive_name!r} ({label.drive_uuid}), not {drive.name!r}")
        with DriveStore(found.device or found.path, self.counter, writable=False) as medium:
            size = medium.size
        below = health.below(found.device) if found.device is not None else None
        if below is not None and not below.deleted:
            with suppress(OSError):
                size = Bytes(
                    Path(below.file).stat().st_size
                )  # The device has the size that the file had when it was attached.
        if (size, label.layout.size) != (drive.size, drive.size):
            raise InvalidDisk(f"{found.path} has {size} bytes; drive {drive.name!r} had {drive.size}")
        newest = catalog.read(found, self.counter)
        if newest is not None and not self.document.descends_from(newest):
            raise MetadataCorrupt(
                f"drive {drive.name!r} carries a configuration that this array never had: it was used elsewhere",
                remedy="what is on it is another history; remove the drive, and add it as a new one",
            )
        return newest.sequence if newest is not None else 0

    def reconnect_drive(self, proposal: Proposal, found: Found) -> None:
        """Bring a drive back as proposed just now; its LUNs begin to regenerate."""
        drive = self.document.drive_of(found.label.drive_uuid)
        if proposal.first is not None:
            self.carry_out(proposal.first)
            proposal = dataclasses.replace(proposal, document=_descending(proposal.document, self.document))
        with ExitStack() as undo:
            if drive.uuid not in self._backings:
                device = found.device
                if device is None:
                    attached = _attached(found)
                    undo.callback(loop.detach, attached)
                    device = attached.path
                self._backings[drive.uuid], self.labels[drive.uuid] = device, found.label
                undo.callback(self._backings.pop, drive.uuid, None)
                # Superblocks of new members are zeroed through the port, which is there from here on.
                self._act_on((self._port_of(proposal.document, drive, device),), undo)
            self.carry_out(proposal)
            undo.pop_all()
        if found.reading.damage is not None:
            # Not before: that its end was cut is told by nothing else.
            self._mend(drive, self._backings[drive.uuid], found.reading.damage)
        self._let_go_of_others(drive)
        self._remember()

    def _let_go_of_others(self, drive: Drive) -> None:
        """Detach what else says that it is this drive: what it was before it was moved. Both attached, neither would be taken."""
        for other in loop.attached():
            if other.path != self._backings[drive.uuid]:
                with suppress(BlkrecovError), DriveStore(other.path, self.counter, writable=False) as medium:
                    if medium.read_label().label.drive_uuid == drive.uuid:
                        log.info("drive %s: %s is let go of", drive.name, other.backing_file)
                        loop.detach(other)

    def take_out(self, proposal: Proposal, drive: Drive) -> None:
        """Have an unused drive leave the array as proposed: its label goes, its file stays."""
        self.carry_out(proposal)
        found = self._found.drives.get(drive.uuid)
        device = self._backings.pop(drive.uuid, None) or self._device_of(drive)
        if drive.uuid in self.labels:
            # The document has the path where it served last.
            self._give_back(found.path if found else drive.path, self.labels[drive.uuid], device)
        self._remember()

    def _device_of(self, drive: Drive) -> str | None:
        """The block device of a drive that is not in use, but may be attached still."""
        found = self._found.drives.get(drive.uuid)
        return found.device if found else None

    def set_hot_spare(self, name: str, spare: bool) -> Drive:
        self.refuse_mistaken()
        self.carry_out(provision.set_hot_spare(self.document, name, spare))
        return self.document.drive(name)

    # LUNs.

    def propose_lun(self, request: Request) -> Proposal:
        self.refuse_mistaken()
        named = (drive.uuid for drive in self.document.drives if {drive.name, str(drive.uuid)} & {*request.drives})
        usable = self.without_stalled(frozenset(named))
        return self.as_they_are(provision.create(usable, request, fresh_ids()))

    def create_lun(self, proposal: Proposal) -> Lun:
        self.carry_out(proposal)
        assert proposal.lun is not None
        return self.document.lun_of(proposal.lun)

    def propose_extend(self, name: str, size: Bytes) -> Proposal:
        self.refuse_mistaken()
        lun = self.document.lun(name)
        self.refuse_failed(lun)
        self.refuse_held(lun)
        self.verify(lun)
        return provision.extend(self.document, lun, size, fresh_ids())

    def propose_delete(self, name: str) -> Proposal:
        self.refuse_mistaken()
        lun = self.document.lun(name)
        self.refuse_held(lun)
        self.refuse_stalled(lun.drives)
        return provision.delete(self.document, lun, self.holders(lun))

    def propose_extend_store(self, name: str, size: Bytes) -> Proposal:
        self.refuse_mistaken()
        lun = self.document.lun(name)
        self.verify(lun)
        return shadows.extend(self.document, lun, size, fresh_ids())

    def holders(self, lun: Lun) -> tuple[str, ...]:
        """Who has the LUN open, seen from outside: not the export that is ours."""
        shown = self.shown(lun)
        return holders(shown) if shown else ()

    def shown(self, lun: Lun) -> str | None:
        """The device that a LUN's users have: its SCSI disk, else its node; None while it is not there."""
        exported = self.observed.exports.get(lun.uuid)
        if exported is not None:
            return exported.disk
        live = self.observed.devices.get(names.dm_uuid(lun.uuid, "lun"))
        return f"/dev/dm-{live.number.partition(':')[2]}" if live else None

    @contextmanager
    def claimed(self, lun: Lun) -> Iterator[None]:
        """Keep a LUN from everybody else, as a mount would. Raises: DeviceInUse, naming the holders."""
        shown = self.shown(lun)
        if shown is None:
            yield
        else:
            with claimed(shown):
                yield

    def refuse_failed(self, lun: Lun) -> None:
        status, _health = state_of(self.document, self.observed, lun)
        if status.value == "failed":
            raise ObjectFailed(f"LUN {lun.name!r} has failed: it has lost more than its layout can do without")

    def refuse_stalled(self, drives: Iterable[UUID]) -> None:
        """What is to be put on a drive, or taken from it, would wait for one that does not answer. Raises: Stalled."""
        for uuid in drives:
            if (device := self._backings.get(uuid)) is not None:
                refuse_stalled(device)

    def refuse_held(self, lun: Lun) -> None:
        """What asks a LUN, or takes it from its host, would wait for whoever has suspended it."""
        live = self.observed.holding(lun)
        if live is not None:
            raise suspended(lun, live)

    # Identity.

    def witnesses(self, lun: Lun) -> tuple[Witness, ...]:
        recorded = Witness("metadata", naa_of_serial(serial_of(lun.uuid)), f"unit serial {serial_of(lun.uuid)}")
        exported = self.observed.exports.get(lun.uuid)
        if exported is None:
            return (recorded,)
        return recorded, sysfs.witness(exported.disk), udev.witness(exported.disk)

    def verify(self, lun: Lun) -> bool:
        """The page-83 gate: whether identity was verified. False for a LUN without SCSI disk, which has no page to show.

        `lun` may be as it is proposed, so that the drives that it is to get are looked at as well.

        Raises: IdentityMismatch, naming all parties.
        """
        exported = self.observed.exports.get(lun.uuid)
        self._verify_drives(lun)
        if exported is None:
            return False
        verified = identity.verify(f"LUN {lun.name}", self.witnesses(lun))
        claims = {
            disk.disk: disk.naa for disk in sysfs.scsi_disks() if disk.naa is not None and disk.naa == verified.naa
        }
        identity.refuse_duplicates(claims)
        return True

    def _verify_drives(self, lun: Lun) -> None:
        """A loop-backed drive's witnesses: the label on the medium, the file that the loop device has, our record.

        Not asked of members that are lost: their drives may answer nothing at all.
        """
        known = self.document.lun_of(lun.uuid)
        lost = {known.members[index].uuid for index in self.observed.lost(self.document, known)}
        of_use = [member for member in lun.members if member.uuid not in lost]
        uuids = [member.drive for member in of_use]
        uuids += [member.successor.drive for member in of_use if member.successor is not None]
        for uuid in uuids:
            device = self._backings.get(uuid)
            if device is None:
                continue
            drive = self.document.drive_of(uuid)
            with DriveStore(device, self.counter, writable=False) as medium:
                label = medium.read_label().label
            if (label.drive_uuid, label.array_uuid) != (drive.uuid, self.document.array):
                raise IdentityMismatch(
                    f"drive {drive.name!r} ({device}) is not itself: its label says drive {label.drive_uuid} "
                    f"of array {label.array_uuid}, the configuration says {drive.uuid} of {self.document.array}"
                )

    # Stopping.

    def stop(self) -> None:
        """Take all of the array out of the kernel, and write down that this was in good order.

        Raises: DeviceInUse, naming what uses which LUN, or has it suspended, before anything is taken down.
        """
        self.observe()
        self.refuse_stalled(self._backings)
        for lun in self.document.luns:
            self.refuse_held(lun)
            if by := self.holders(lun):
                raise DeviceInUse(
                    f"LUN {lun.name!r} is in use by {', '.join(by)}", remedy="end what uses it, then try again"
                )
        nothing = Document(array=self.document.array, name=self.document.name)
        self._run(converge(nothing, self.observe()))
        if any(self.observe().devices):
            left = ", ".join(live.name for live in self.observed.devices.values())
            raise DeviceInUse(f"these devices could not be removed: {left}")
        # What the kernel was asked for went with the devices: whoever takes up a task asks anew, in the same boot too.
        asked = (msgspec.structs.replace(task, boot="") for task in self.document.tasks if not task.state.ended)
        document = self.document
        for task in asked:
            document = document.with_task(task)
        self.store(msgspec.structs.replace(document, running=""))
        note_stopped(self._settings, self.document.array, stopped=True)
        devices = []
        for drive in self.document.drives:
            device = self._backings.get(drive.uuid) or self._device_of(drive)
            if device is not None:
                self._actor.act(DetachLoop(drive.name, device))
                devices.append(device)
        # udev looks at what was opened for writing just now; a device is detached when nobody has it open. It may look in vain at
        # something else of this machine, which is no matter of ours.
        with suppress(TimedOut):
            udev.settle(UDEV_PATIENCE_S)
        # So may another of our processes, which looks for its own drives. Until then the file system below cannot be unmounted.
        deadline = time.monotonic() + UDEV_PATIENCE_S
        while any(loop.is_attached(device) for device in devices) and time.monotonic() < deadline:
            time.sleep(0.02)

    # Views.

    def lun_json(self, lun: Lun) -> views.Json:
        exported = self.observed.exports.get(lun.uuid)
        path = node(names.lun_name(self.document.name, lun.name))
        verified = False
        mounts = observer.mounts(exported.disk if exported else path)
        with suppress(BlkrecovError):
            verified = exported is not None and bool(identity.verify(lun.name, self.witnesses(lun)))
        return views.lun_view(
            self.document,
            self.observed,
            lun,
            node=path,
            verified=verified,
            mounts=tuple((plain(point), plain(fstype)) for point, fstype in mounts),
        )


def failed_on(before: Document, after: Document) -> frozenset[UUID]:
    """The drives that members were lost on between two versions, and that are online all the same."""
    lost = {lun.uuid: lun.lost for lun in before.luns}
    return frozenset(
        lun.members[index].drive
        for lun in after.luns
        for index in lun.lost - lost.get(lun.uuid, frozenset())
        if after.drive_of(lun.members[index].drive).online
    )


def _descending(document: Document, version: Document) -> Document:
    """A document's contents, as what comes after a version."""
    return msgspec.structs.replace(
        document, sequence=version.sequence, commit=version.commit, history=version.history, carriers=version.carriers
    )


def _kept(device: str | None) -> str | None:
    """A drive's device as it is, if it is there to stay."""
    for attached in loop.attached():
        if attached.path == device:
            return device if loop.keep(attached) else None
    return device


def _attached(found: Found) -> loop.LoopDevice:
    """The file that was found, and no other that was moved there since, as a block device."""
    return loop.attach(found.path, expected=found.inode)


def _is_of(drive: DriveStore, label: Label) -> bool:
    """Raises: what reading a label does."""
    found = drive.read_label().label
    return (found.array_uuid, found.drive_uuid) == (label.array_uuid, label.drive_uuid)


def _place(drive: Drive, found: Found, said: str | None = None) -> str:
    """Where a drive is; `said` is where somebody says that it is.

    A file without a name is found by its loop device, whose number may be another file's tomorrow.
    """
    below = health.below(found.device) if found.device is not None else None
    if below is None or not below.deleted:
        return found.path
    return str(Path(said).absolute()) if said is not None and not _is_block(said) else drive.path


def _is_block(path: str) -> bool:
    return Path(path).is_block_device()


def _free_name(document: Document) -> str:
    taken = {drive.name for drive in document.drives}
    return next(name for number in range(len(taken) + 1) if (name := f"d{number}") not in taken)


def _choose(found: tuple[Discovered, ...], name: str | None) -> Discovered:
    known = {(array.name, str(array.uuid)): array for array in found}
    return known[choose(tuple(known), name)]


def choose(found: Sequence[tuple[str, str]], name: str | None) -> tuple[str, str]:
    """The array that is meant, of several as (name, UUID). Raises: ObjectNotFound, InvalidArgument where several could be."""
    if name is not None:
        chosen = [array for array in found if name in array]
        if not chosen:
            raise ObjectNotFound(f"there is no array {name!r}", remedy="list what there is with: blkrecov array list")
    else:
        chosen = list(found)
        if not chosen:
            raise ObjectNotFound("this machine has no array", remedy="make one with: blkrecov array create NAME")
    if len(chosen) > 1:
        raise _several(chosen)
    return chosen[0]


def _several(arrays: Sequence[tuple[str, str]]) -> InvalidArgument:
    many = ", ".join(f"{name} ({uuid})" for name, uuid in arrays)
    return InvalidArgument(f"there are several arrays: {many}", remedy="say which with --array NAME")
