"""What can be done to the kernel and the drives, as values: a plan is a tuple of these.

Each step is one act that can be told to a person (--plan prints `lines()`), carried out (blkrecov.actor) and, where it made
something, undone. A step holds all that it needs; none looks anything up in the array's document.
"""

from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from blkrecov.dm.table import Table
from blkrecov.model import Document, Extent
from blkrecov.stack import BAD_BLOCK, Device
from blkrecov.units import Sectors, format_size, in_bytes


@dataclass(frozen=True, slots=True)
class AttachLoop:
    """Put a loop device on a drive's file."""

    drive: str
    path: str

    def lines(self) -> tuple[str, ...]:
        return (f"attach {self.path} (drive {self.drive}) to a loop device",)


@dataclass(frozen=True, slots=True)
class DetachLoop:
    """Take a drive's file off its loop device; nothing is done to a drive that is a block device of its own."""

    drive: str
    device: str

    def lines(self) -> tuple[str, ...]:
        return (f"detach {self.device} (drive {self.drive})",)


@dataclass(frozen=True, slots=True)
class CreateDevice:
    device: Device

    def lines(self) -> tuple[str, ...]:
        return (f"create {self.device.name}", *_table_lines(self.device.table))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceTable:
    """Suspend, load, resume. `flush` waits for the I/O under way; without it, a target that holds I/O gives it back."""

    name: str
    table: Table
    visible: bool
    flush: bool = True
    read_only: bool = False

    def lines(self) -> tuple[str, ...]:
        return (f"suspend {self.name}, load this table, resume", *_table_lines(self.table))


@dataclass(frozen=True, slots=True)
class ClearInactive:
    """Forget a table that was loaded and never made live."""

    name: str

    def lines(self) -> tuple[str, ...]:
        return (f"clear the inactive table of {self.name}",)


@dataclass(frozen=True, slots=True)
class Resume:
    name: str
    visible: bool

    def lines(self) -> tuple[str, ...]:
        return (f"resume {self.name}",)


@dataclass(frozen=True, slots=True)
class Suspend:
    """Hold what is written and read from now on, when all that was before has ended. Resume, or ReplaceTable, lets it go on."""

    name: str
    visible: bool

    def lines(self) -> tuple[str, ...]:
        return (f"suspend {self.name}",)


@dataclass(frozen=True, slots=True)
class FreezeFilesystems:
    """Have the file systems that are mounted from these devices write out what they hold, and wait: so that a shadow copy of
    that moment is clean.
    """

    devices: tuple[str, ...]

    def lines(self) -> tuple[str, ...]:
        return (f"freeze what is mounted from {', '.join(self.devices)}",)


@dataclass(frozen=True, slots=True)
class ThawFilesystems:
    """Let those go on that FreezeFilesystems has frozen."""

    def lines(self) -> tuple[str, ...]:
        return ("thaw what was frozen",)


@dataclass(frozen=True, slots=True)
class SettleFailures:
    """Suspend and resume a plex, so that md meets its failed legs and writes them down in the others' superblocks.

    An idle array does not notice a lost leg; on Linux 6.1 one that was loaded without it has not recorded that either. Until
    it has, the leg would be taken for in sync when it comes back.
    """

    name: str
    lost: tuple[int, ...]
    """The legs' indexes."""

    def lines(self) -> tuple[str, ...]:
        return (f"suspend and resume {self.name}, so that its superblocks record the failed legs",)


@dataclass(frozen=True, slots=True)
class Revive:
    """Have md look at legs again that it has given up, and that can be read again: by a suspend and a resume, and if it does not
    take them back then, by loading the same table anew.
    """

    name: str
    legs: tuple[int, ...]
    """Their indexes."""

    def lines(self) -> tuple[str, ...]:
        legs = ", ".join(map(str, self.legs))
        return (f"suspend and resume {self.name}, so that it takes leg {legs} back",)


@dataclass(frozen=True, slots=True)
class MarkUnreadable:
    """Have a drive's port, which is a dust target, fail reads of these blocks until they are written."""

    name: str
    blocks: tuple[int, ...]
    """Their numbers, in blocks of stack.BAD_BLOCK bytes from the drive's start on."""

    def lines(self) -> tuple[str, ...]:
        return (f"have {self.name} fail reads of {len(self.blocks)} blocks of {format_size(BAD_BLOCK)}",)


@dataclass(frozen=True, slots=True)
class RemoveDevice:
    name: str
    visible: bool

    def lines(self) -> tuple[str, ...]:
        return (f"remove {self.name}",)


@dataclass(frozen=True, slots=True)
class RenameDevice:
    name: str
    new: str
    visible: bool = False

    def lines(self) -> tuple[str, ...]:
        return (f"rename {self.name} to {self.new}",)


@dataclass(frozen=True, slots=True)
class ZeroExtent:
    """Zero a new member's superblock and bitmap, before anything refers to them: what an earlier LUN left there would pass
    for this one's.
    """

    port: str
    extent: Extent

    def lines(self) -> tuple[str, ...]:
        size = format_size(in_bytes(Sectors(self.extent.length)))
        return (f"zero {size} at sector {self.extent.start} of {self.port}",)


@dataclass(frozen=True, slots=True)
class DiscardExtent:
    """Give the space of a drive's extent back to the file below, so that it reads as zeros and copies have nothing to do."""

    port: str
    extent: Extent

    def lines(self) -> tuple[str, ...]:
        size = format_size(in_bytes(Sectors(self.extent.length)))
        return (f"discard {size} at sector {self.extent.start} of {self.port}",)


@dataclass(frozen=True, slots=True)
class Flush:
    """Wait until a drive has on its medium what it has acknowledged."""

    port: str

    def lines(self) -> tuple[str, ...]:
        return (f"flush {self.port}",)


@dataclass(frozen=True, slots=True)
class ForceResync:
    """After an unclean stop: set array_resync_offset to 0 in a member's superblock, with no table loaded on it.

    The kernel then resynchronises the regions that the bitmap calls dirty, and only those.
    """

    port: str
    sector: int

    def lines(self) -> tuple[str, ...]:
        return (f"set array_resync_offset to 0 in the superblock at sector {self.sector} of {self.port}",)


@dataclass(frozen=True, slots=True)
class AgreeSuperblocks:
    """Have the superblocks of the legs that are to serve again call just those failed that are not among them, with no table
    loaded on any.
    """

    name: str
    """The plex."""
    places: tuple[tuple[int, str, int], ...]
    """(position of the leg, drive port, sector)"""
    failed: frozenset[int]
    incremental: bool
    """Whether the bitmap tells what the others lack."""

    def lines(self) -> tuple[str, ...]:
        legs = ", ".join(str(position) for position, _, _ in self.places)
        failed = ", ".join(map(str, sorted(self.failed))) or "none"
        return (f"have the superblocks of legs {legs} of {self.name} agree: failed is {failed}",)


@dataclass(frozen=True, slots=True)
class Export:
    """Show a LUN as a SCSI disk."""

    lun: str
    uuid: UUID
    node: str
    read_only: bool = False
    ready: bool = True

    def lines(self) -> tuple[str, ...]:
        words = ("" if self.ready else ", not ready") + (", read-only" if self.read_only else "")
        return (f"export {self.node} as a SCSI disk with unit serial {self.uuid.hex}{words}",)


@dataclass(frozen=True, slots=True)
class SetReady:
    """Have the SCSI disk refuse everything with NOT READY, or serve again: then its size and partitions are read anew."""

    lun: str
    uuid: UUID
    ready: bool

    def lines(self) -> tuple[str, ...]:
        return (f"the SCSI disk of LUN {self.lun} is {'ready' if self.ready else 'not ready'} from now on",)


@dataclass(frozen=True, slots=True)
class Unexport:
    lun: str
    uuid: UUID

    def lines(self) -> tuple[str, ...]:
        return (f"take away the SCSI disk of LUN {self.lun}",)


@dataclass(frozen=True, slots=True)
class ClearExport:
    """Take away what is left of an export whose removal was cut short, and that holds a LUN's device."""

    node: str

    def lines(self) -> tuple[str, ...]:
        return (f"take away the rest of the export of {self.node}",)


@dataclass(frozen=True, slots=True)
class Rescan:
    """Let the SCSI disk learn the LUN's new size."""

    lun: str
    uuid: UUID

    def lines(self) -> tuple[str, ...]:
        return (f"rescan the SCSI disk of LUN {self.lun}",)


@dataclass(frozen=True, slots=True)
class Message:
    """Ask a plex to check or repair itself."""

    name: str
    text: str

    def lines(self) -> tuple[str, ...]:
        return (f"send {self.name} the message {self.text!r}",)


@dataclass(frozen=True, slots=True)
class Store:
    """Write the array's configuration to the drives."""

    document: Document
    why: str

    def lines(self) -> tuple[str, ...]:
        return (f"write the array's configuration: {self.why}",)


Step: TypeAlias = (
    AttachLoop
    | DetachLoop
    | CreateDevice
    | ReplaceTable
    | ClearInactive
    | Resume
    | Suspend
    | FreezeFilesystems
    | ThawFilesystems
    | SettleFailures
    | Revive
    | MarkUnreadable
    | RemoveDevice
    | RenameDevice
    | ZeroExtent
    | DiscardExtent
    | Flush
    | ForceResync
    | AgreeSuperblocks
    | Export
    | SetReady
    | Unexport
    | ClearExport
    | Rescan
    | Message
    | Store
)


def _table_lines(table: Table) -> tuple[str, ...]:
    return tuple(f"    {line}" for line in table)
