"""Carries out steps, and undoes them. The acting half of "observe, plan, act"; it decides nothing.

`act` returns what takes the step back, or None where nothing is to be taken back. Paths in tables are resolved to device
numbers here: a number is there as soon as the device is, its node in /dev only when udev came by.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias
from uuid import UUID

from blkrecov import catalog
from blkrecov.dm import names
from blkrecov.dm.control import Control
from blkrecov.dm.status import parse_dust, parse_raid
from blkrecov.dm.superblock import BLOCK, agreed, parse, with_resync_from_start
from blkrecov.dm.sync import SyncStart, data_legs, let_failures_settle
from blkrecov.dm.table import Table, TargetLine, length_of
from blkrecov.drives import loop, raw
from blkrecov.drives.store import IoCounter
from blkrecov.errors import ProviderFailure
from blkrecov.freeze import Freezer
from blkrecov.page83 import sysfs
from blkrecov.page83.export import Exporter
from blkrecov.page83.identity import serial_of
from blkrecov.steps import (
    AgreeSuperblocks,
    AttachLoop,
    ClearExport,
    ClearInactive,
    CreateDevice,
    DetachLoop,
    DiscardExtent,
    Export,
    Flush,
    ForceResync,
    FreezeFilesystems,
    MarkUnreadable,
    Message,
    RemoveDevice,
    RenameDevice,
    ReplaceTable,
    Rescan,
    Resume,
    Revive,
    SetReady,
    SettleFailures,
    Step,
    Store,
    Suspend,
    ThawFilesystems,
    Unexport,
    ZeroExtent,
)
from blkrecov.suspensions import Suspensions
from blkrecov.units import Sectors, in_bytes

Undo: TypeAlias = Callable[[], object]
_NODES: Final = "/dev/mapper/"


class Actor:
    def __init__(
        self,
        array: UUID,
        control: Control,
        exporter: Exporter,
        counter: IoCounter,
        freezer: Freezer,
        suspensions: Suspensions,
    ) -> None:
        self._array = array
        self._control = control
        self._freezer = freezer
        self._suspensions = suspensions
        self._exporter = exporter
        self._counter = counter

    def act(self, step: Step) -> Undo | None:
        """Raises whatever the kernel, LIO or a drive refuses with."""
        match step:
            case AttachLoop():
                device = loop.attach(step.path)
                return partial(loop.detach, device)
            case DetachLoop():
                for attached in loop.attached():
                    if attached.path == step.device:
                        loop.detach(attached)
            case CreateDevice():
                return self._create(step)
            case ReplaceTable():
                return self._replace(step)
            case ClearInactive():
                self._control.clear(step.name)
            case Resume():
                start = self._sync_start(self._control.table(step.name))
                self._resume(step.name, visible=step.visible)
                start.wait(step.name)
                self._show(step.name, visible=step.visible)
            case Suspend():
                if step.visible:
                    self._suspensions.begin(step.name)
                try:
                    # Whoever wants what is mounted from it frozen has done so, and the kernel freezes nothing twice.
                    self._control.suspend(step.name, freeze=False)
                except BaseException:
                    if step.visible:
                        self._note_suspension(step.name)
                    raise
                return partial(self._resume, step.name, visible=step.visible)
            case FreezeFilesystems():
                self._freezer.freeze(step.devices)
                return self._freezer.thaw
            case ThawFilesystems():
                self._freezer.thaw()
            case SettleFailures():
                let_failures_settle(self._control, step.name, step.lost)
                start = self._sync_start(self._control.table(step.name))
                self._control.suspend(step.name)
                self._control.resume(step.name, visible=False)
                start.wait(step.name)
            case Revive():
                self._revive(step)
            case MarkUnreadable():
                self._mark_unreadable(step)
            case RemoveDevice():
                self._control.remove(step.name, visible=step.visible)
            case RenameDevice():
                self._control.rename(step.name, step.new, visible=step.visible)
                self._show(step.new, visible=step.visible)
            case ZeroExtent():
                offset, length = step.extent.start, step.extent.length
                raw.zero(self.path_of(step.port), in_bytes(Sectors(offset)), in_bytes(Sectors(length)))
            case DiscardExtent():
                offset, length = step.extent.start, step.extent.length
                raw.discard(self.path_of(step.port), in_bytes(Sectors(offset)), in_bytes(Sectors(length)))
            case Flush():
                raw.flush(self.path_of(step.port))
            case ForceResync():
                self._force_resync(step)
            case AgreeSuperblocks():
                self._agree(step)
            case Export():
                return self._export(step)
            case SetReady():
                self._set_ready(step)
            case Unexport():
                self._exporter.unexport(serial_of(step.uuid))
            case ClearExport():
                self._exporter.unexport(_export_name(step.node))
            case Rescan():
                export = self._exporter.find(serial_of(step.uuid))
                if export is not None:
                    self._exporter.rescan(export)
            case Message():
                start = self._sync_start(self._control.table(step.name))
                self._control.message(step.name, Sectors(0), step.text)
                start.wait(step.name)
            case Store():
                raise AssertionError("the document is the engine's to write")
        return None

    def path_of(self, node: str) -> str:
        """A node that is there now: the kernel's own for a device-mapper device, which waits for no udev."""
        if not node.startswith(_NODES):
            return node
        return f"/dev/dm-{self._control.info(node.removeprefix(_NODES)).number.minor}"

    def resolved(self, table: Table) -> Table:
        """The same table with devices named by number."""
        return tuple(
            TargetLine(
                start=line.start,
                length=line.length,
                kind=line.kind,
                params=" ".join(self._resolve(word) for word in line.params.split()),
            )
            for line in table
        )

    def _resolve(self, word: str) -> str:
        if word.startswith(_NODES):
            return str(self._control.info(word.removeprefix(_NODES)).number)
        return catalog.number_of(word) if word.startswith("/dev/") else word

    def _create(self, step: CreateDevice) -> Undo:
        device = step.device
        self._control.create(device.name, names.dm_uuid_in(self._array, device.uuid))
        remove = partial(self._control.remove, device.name, visible=device.visible)
        try:
            table = self.resolved(device.table)
            self._begin(device.name, table, visible=device.visible, read_only=device.read_only)
        except BaseException:
            remove()
            raise
        return remove

    def _begin(self, name: str, table: Table, *, visible: bool, read_only: bool) -> None:
        """Give a device that has none its first table."""
        self._control.load(name, table, read_only=read_only)
        start = self._sync_start(table)
        self._control.resume(name, visible=visible)
        start.wait(name)
        self._show(name, visible=visible)

    def _resume(self, name: str, *, visible: bool) -> None:
        self._control.resume(name, visible=visible)
        if visible:
            self._suspensions.end(name)

    def _show(self, name: str, *, visible: bool) -> None:
        """What people use has its node when we say that it is there; layers are found by number."""
        if visible:
            self._control.ensure_node(name)

    def _replace(self, step: ReplaceTable) -> Undo | None:
        before = self._control.table(step.name)
        table = self.resolved(step.table)
        if not self._control.info(step.name).live:
            # Its making was cut short: there is nothing to suspend, and nothing to go back to.
            self._begin(step.name, table, visible=step.visible, read_only=step.read_only)
            return None
        if any(line.kind == "raid" for line in before):
            self._let_last_failures_settle(step.name)
        start = self._sync_start(table)
        self._swap(
            step.name,
            table,
            visible=step.visible,
            flush=step.flush,
            freeze=step.flush,
            read_only=step.read_only,
        )
        start.wait(step.name)
        if _grows_raid10(before, table):
            # It has the wrong length inside until it is loaded once more, and its bitmap ends there (proposal.evened()).
            start = self._sync_start(table)
            self._control.replace(step.name, table, visible=step.visible)
            start.wait(step.name)
        if any(line.kind == "error" for line in before) and step.visible:
            # What was read before its contents were others may be in the page cache still.
            raw.forget(self.path_of(_NODES + step.name))
        if any(line.kind in ("raid", "mirror") for line in before):
            # Not taken back: an old raid table would find superblocks that the new one has written; an old mirror would not know
            # what was written without it.
            return None
        return partial(self._swap, step.name, before, visible=step.visible, flush=False, freeze=False)

    def _swap(
        self, name: str, table: Table, *, visible: bool, flush: bool, freeze: bool, read_only: bool = False
    ) -> None:
        replace = partial(self._control.replace, name, table, flush=flush, freeze=freeze, read_only=read_only)
        if not visible:
            replace(visible=False)
            return
        self._suspensions.begin(name)
        try:
            replace(visible=True)
        finally:
            self._note_suspension(name)

    def _note_suspension(self, name: str) -> None:
        """What is not suspended after all may be so by others later, and is theirs then."""
        if not self._control.info(name).suspended:
            self._suspensions.end(name)

    def _revive(self, step: Revive) -> None:
        table = self._control.table(step.name)
        start = self._sync_start(table)
        self._control.suspend(step.name)
        self._control.resume(step.name, visible=False)
        start.wait(step.name)
        lost = parse_raid(self._control.status(step.name)[0].params).lost
        if set(lost) & set(step.legs):
            # Its superblock could not be read at the resume, or its last leg had failed (drivers/md/dm-raid.c,
            # attempt_restore_of_faulty_devices()). A load reads all of them.
            start = self._sync_start(table)
            self._control.replace(step.name, table, visible=False)
            start.wait(step.name)

    def _mark_unreadable(self, step: MarkUnreadable) -> None:
        tell = partial(self._control.message, step.name, Sectors(0))
        # What was cut short has left some: the kernel refuses a block that it knows (drivers/md/dm-dust.c, dust_add_block()).
        tell("clearbadblocks")
        if not parse_dust(self._control.status(step.name)[0].params).quiet:
            tell("quiet")  # A switch to and fro; without it each block is a line in the kernel's log.
        for block in step.blocks:
            tell(f"addbadblock {block}")
        tell("enable")

    def _let_last_failures_settle(self, name: str) -> None:
        lines = self._control.status(name)
        lost = parse_raid(lines[0].params).lost if lines and lines[0].kind == "raid" else ()
        if lost:
            let_failures_settle(self._control, name, lost)

    def _sync_start(self, table: Table) -> SyncStart:
        """For what is about to be resumed with this table, or asked to do something."""
        legs = [leg for line in table if line.kind == "raid" for leg in data_legs(line.params)]
        return SyncStart(self._control, tuple(legs))

    def _force_resync(self, step: ForceResync) -> None:
        path, offset = self.path_of(step.port), in_bytes(Sectors(step.sector))
        block = raw.read(path, offset, BLOCK, self._counter)
        if parse(block) is None:
            raise ProviderFailure(f"there is no superblock at sector {step.sector} of {step.port}")
        raw.write(path, offset, with_resync_from_start(block), self._counter)

    def _agree(self, step: AgreeSuperblocks) -> None:
        places = {position: (self.path_of(port), in_bytes(Sectors(sector))) for position, port, sector in step.places}
        blocks = {position: raw.read(*place, BLOCK, self._counter) for position, place in places.items()}
        try:
            made = agreed(blocks, step.failed, incremental=step.incremental)
        except ValueError as error:
            raise ProviderFailure(f"{step.name} cannot be loaded again: {error}") from error
        for position, (path, offset) in places.items():
            raw.write(path, offset, made[position], self._counter)

    def _export(self, step: Export) -> Undo:
        self._exporter.export(
            _export_name(step.node), step.node, serial_of(step.uuid), read_only=step.read_only, ready=step.ready
        )
        return partial(self._exporter.unexport, serial_of(step.uuid))

    def _set_ready(self, step: SetReady) -> None:
        export = self._exporter.find(serial_of(step.uuid))
        if export is None:
            return
        self._exporter.set_ready(export, step.ready)
        if step.ready:
            self._exporter.rescan(export)
            # The disk and each partition have page caches of their own.
            for node in (export.disk, *(f"/dev/{name}" for name in sysfs.partitions(export.disk))):
                raw.forget(node)
            raw.reread_partitions(export.disk)


def _grows_raid10(before: Table, after: Table) -> bool:
    raid10 = any(line.kind == "raid" and line.params.startswith("raid10") for line in before)
    return raid10 and length_of(after) > length_of(before)


def _export_name(node: str) -> str:
    """An export is called as its LUN's device, without the word that all of ours begin with."""
    return node.removeprefix(_NODES).removeprefix(f"{names.PREFIX}-")
