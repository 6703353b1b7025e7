"""What a restore needs of the world: who holds a LUN, what differs, whose signature a disk has; logs and signatures written.

All that is read and written here is metadata: exception tables, logs, partition tables. The contents are moved by the kernel.
"""

import time
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import msgspec

from blkrecov import changes, resync, stack
from blkrecov.changes import Runs
from blkrecov.dm import cow, mirror_log, names
from blkrecov.dm.status import SnapshotUsage
from blkrecov.drives import holes, raw
from blkrecov.engine import Engine
from blkrecov.errors import BlkrecovError, CannotRevertDiskId, ProviderFailure, VolumeNotSupported
from blkrecov.model import Lun, MemberState
from blkrecov.page83 import lun_information, sysfs
from blkrecov.page83.information import NO_SIGNATURE, LunInformation
from blkrecov.resync import Facts, Wish
from blkrecov.signature import Read, Signature, fresh, read_signature, rewritten
from blkrecov.steps import CreateDevice, Message
from blkrecov.units import KIB, Bytes, Sectors, in_bytes

# As long as Windows tries to get hold of a target (windows-semantics 5.7).
HOLD_PATIENCE_S: Final = 5.0
_HOLD_PAUSE_S: Final = 0.25
_PAGE: Final = 4 * KIB
# Runs that a comparison is made of: each is a target of a table, twice.
MANY_SEGMENTS: Final = 2048


class Restoring(Engine):
    """An open array that can say what a restore would do, and do what the kernel cannot."""

    def facts(self, wish: Wish, *, revert: bool) -> Facts:
        """What is to be known of a pair before anything is done for it.

        Raises: CannotRevertDiskId; DriveIoError.
        """
        source, target = wish.source, wish.target
        if target is None:
            return Facts(signature=self._wanted_signature(source, None, revert=revert))
        differs = self.differs(source, target)
        return Facts(
            holders=self._lasting_holders(target),
            strangers=self._strangers(source, target),
            signature=self._wanted_signature(source, target, revert=revert),
            differs=differs,
            saves=self._saves(source, target, differs),
        )

    @property
    def blanking(self) -> frozenset[UUID]:
        """The drives whose space reads as zeros when it is discarded: files behind loop devices, which punch holes."""
        return frozenset(
            drive.uuid
            for drive in self.document.drives
            if drive.uuid in self.observed.backings and Path(drive.path).is_file()
        )

    def _lasting_holders(self, lun: Lun) -> tuple[str, ...]:
        """Who has a LUN open, and does not let go in time."""
        deadline = time.monotonic() + HOLD_PATIENCE_S
        while found := self.holders(lun):
            if time.monotonic() >= deadline:
                break
            time.sleep(_HOLD_PAUSE_S)
        return found

    def _strangers(self, source: Lun, target: Lun) -> tuple[str, ...]:
        """Partitions of a target that its source does not have: volumes that nobody has named. Known of SCSI disks only."""
        disks = [self.observed.exports.get(lun.uuid) for lun in (source, target)]
        if None in disks:
            return ()
        ours, theirs = (sysfs.partitions(disk.disk) for disk in disks if disk is not None)
        return tuple(name for name, place in theirs.items() if place not in ours.values())

    # What differs.

    def differs(self, source: Lun, target: Lun) -> Runs:
        """What of a target may differ from a shadow copy, in sectors. Asked again while the copy runs, it is no less.

        Raises: DriveIoError.
        """
        assert source.shadow is not None
        if source.differential and source.shadow.origin == target.uuid:
            return changes.from_chunks(self._exceptions(source), source.shadow.chunk, source.size)
        if target.restore is not None and target.restore.blank:
            return self._data(source)
        return changes.whole(source.size)

    def _exceptions(self, shadow: Lun) -> tuple[int, ...]:
        """The origin's chunks that a differential shadow copy has saved.

        Read from the store past every cache: the kernel writes an exception down before it lets the origin be written.
        """
        assert shadow.shadow is not None
        node = self._actor.path_of(stack.node(names.plex_name(self.document.name, shadow.name)))

        def read(offset: int, length: int) -> bytes:
            return raw.read(node, offset, length, self.counter)

        header = cow.parse_header(read(0, _PAGE))
        if header is None:
            return ()
        if not header.valid or header.chunk != shadow.shadow.chunk:
            raise ProviderFailure(f"the store of shadow copy {shadow.name!r} is not what it should be")
        usage = self.observed.store(shadow)
        assert isinstance(usage, SnapshotUsage), f"{shadow.name} is not usable"
        return cow.changed(read, header, usage.total)

    def _data(self, source: Lun) -> Runs:
        """What of a shadow copy may hold anything but zeros."""
        assert source.shadow is not None
        if not source.differential:
            return self._allocated(source, source.size)
        origin = self.document.lun_of(source.shadow.origin)
        saved = changes.from_chunks(self._exceptions(source), source.shadow.chunk, source.size)
        return changes.union(saved, self._allocated(origin, source.size))

    def _allocated(self, lun: Lun, length: int) -> Runs:
        """What of a LUN is allocated in its drives' files; all of it where they do not tell."""
        if not lun.initialised:
            return changes.whole(length)  # Members may differ where one has a hole.
        found = {}
        for index, member in enumerate(lun.members):
            path = self.document.drive_of(member.drive).path
            if member.state is MemberState.IN_SYNC and member.drive in self.observed.backings and Path(path).is_file():
                found[index] = holes.data(path, member.data)
        return changes.data_of(lun, found, length)

    def _saves(self, source: Lun, target: Lun, differs: Runs) -> dict[UUID, int]:
        """How many chunks the stores of a target's shadow copies have too few for a copy."""
        lacking: dict[UUID, int] = {}
        for shadow in self.document.shadows_of(target.uuid):
            usage = self.observed.store(shadow)
            if not isinstance(usage, SnapshotUsage) or shadow.shadow is None:
                continue
            chunk = shadow.shadow.chunk
            region = resync.region(self.document, target, differs, source.size)
            written = changes.rounded(differs, max(region, chunk), shadow.size)
            kept = changes.from_chunks(self._exceptions(shadow), chunk, shadow.size)
            new = changes.total(changes.union(written, kept)) - changes.total(kept)
            lacking[shadow.uuid] = resync.lacking(shadow, usage, -(-new // chunk))
        return lacking

    # Logs.

    def seeded(self, lun: Lun) -> Lun:
        """The LUN with its copy about to begin: what differs is in the copy's log, on the drive.

        Raises: DriveIoError.
        """
        restore = lun.restore
        assert restore is not None
        assert restore.drive is not None
        source = self.document.lun_of(restore.source)
        runs = self.differs(source, lun)
        region = resync.region(self.document, lun, runs, source.size)
        drive = self.document.drive_of(restore.drive)
        port = self._actor.path_of(stack.node(names.drive_name(self.document.name, drive.name)))
        for number, part in enumerate(changes.divide(source.size, region)):
            log = mirror_log.seeded(part.regions, changes.dirty_regions(runs, part))
            where = restore.log[0].start + number * stack.COPY_LOG_LENGTH
            raw.write(port, in_bytes(Sectors(where)), log, self.counter)
        todo = changes.total(changes.rounded(runs, region, source.size))
        begun = msgspec.structs.replace(restore, length=source.size, region=region, todo=todo)
        return msgspec.structs.replace(lun, restore=begun)

    # Comparing.

    def compare(self, lun: Lun) -> None:
        """Have the kernel compare what was copied, if it is not at it. Done twice it is asked once more.

        Raises: KernelRefused.
        """
        restore = lun.restore
        assert restore is not None
        source = self.document.lun_of(restore.source)
        runs = changes.rounded(self.differs(source, lun), restore.region, source.size)
        region = restore.region
        while len(runs) > MANY_SEGMENTS:
            region *= 2
            runs = changes.rounded(runs, region, source.size)
        if not runs:
            return
        for device in stack.comparison(self.document, lun, runs):
            if self._control.find(device.name) is None:
                self._actor.act(CreateDevice(device))
        self._actor.act(Message(names.layer_name(self.document.name, lun.name, "compare"), "check"))

    # Signatures.

    def signature(self, lun: Lun) -> Signature | None:
        """The disk signature in a LUN's contents. Raises: DriveIoError."""
        return read_signature(self._reader(lun), lun.bytes)

    def information(self, lun: Lun) -> LunInformation:
        """A LUN's VDS_LUN_INFORMATION. Raises: VolumeNotSupported for one that is no SCSI disk; DriveIoError."""
        exported = self.observed.exports.get(lun.uuid)
        if exported is None:
            raise VolumeNotSupported(
                f"LUN {lun.name!r} is no SCSI disk, so it has no page 83h to be found by",
                remedy="make LUNs without --no-export",
            )
        signature = self.signature(lun) if lun.ready and self._readable(lun) else None
        return lun_information.of_disk(exported.disk, signature.as_guid() if signature else NO_SIGNATURE)

    def _reader(self, lun: Lun) -> Read:
        node = self._actor.path_of(stack.below(self.document, lun))

        def read(offset: int, length: int) -> bytes:
            return raw.read(node, offset, length, self.counter)

        return read

    def _wanted_signature(self, source: Lun, target: Lun | None, *, revert: bool) -> str:
        """What the target's signature is to be, empty for what the source has.

        A target keeps its own; one that has none, or one of another kind, gets a new one, because the original may be there
        still, and the shadow copy is. Raises: CannotRevertDiskId where another LUN has the original's.
        """
        theirs = self.signature(source)
        if theirs is None:
            return ""
        if revert:
            for other in self.document.luns:
                mistaken = other.shadow is not None or (target is not None and other.uuid == target.uuid)
                if not mistaken and self._readable(other) and self.signature(other) == theirs:
                    raise CannotRevertDiskId(
                        f"LUN {other.name!r} has the signature {theirs} of the original, and no two may have one"
                    )
            return ""
        own = self.signature(target) if target is not None and self._readable(target) else None
        if own is not None and own.kind == theirs.kind:
            return str(own)
        return str(fresh(theirs.kind, uuid4()))

    def _readable(self, lun: Lun) -> bool:
        return self.observed.loaded(lun) and self.observed.reachable(self.document, lun)

    def sign(self, lun: Lun) -> None:
        """Give a target whose contents are copied the signature that it is to have. Done twice it changes nothing.

        Raises: CannotRevertDiskId where it cannot be written.
        """
        restore = lun.restore
        assert restore is not None
        if not restore.signature:
            return
        node = self._actor.path_of(stack.below(self.document, lun))
        try:
            wanted = Signature.parse(restore.signature)
            size = Bytes(in_bytes(Sectors(restore.length)))
            for write in rewritten(self._reader(lun), size, wanted):
                raw.write(node, write.offset, write.data, self.counter)
        except BlkrecovError as error:
            raise CannotRevertDiskId(
                f"LUN {lun.name!r} was restored, and cannot be given the signature {restore.signature}: {error.message}",
                remedy="restore it with --revert-identity, or onto another LUN",
            ) from error
