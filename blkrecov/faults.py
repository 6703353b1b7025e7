"""Faults that are injected at a drive's port: what each is made of, and when it is refused. Pure.

    after         dm-flakey    works for some seconds, and fails all I/O from then on
    error rate    dm-dust      some blocks cannot be read until they are written, as of a medium that wears out
    slow          dm-delay     each I/O takes longer
    drop writes   dm-flakey    writes are acknowledged and lost; reads give what was there before

The drive stays online: what the array makes of it, it has to find out as it would of a real drive. The labels and metadata slots
on it are read and written past its port. A member's superblock is not: dm-raid does not read it again for as long as the LUN is
loaded, and loads the LUN without a member whose superblock cannot be read. One way leads out, and that is a reconnect
(blkrecov.reconnect).
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

import msgspec

from blkrecov.errors import InvalidArgument, InvalidOperation
from blkrecov.model import Document, Drive, Fault, FaultKind
from blkrecov.proposal import Proposal
from blkrecov.stack import BAD_BLOCK
from blkrecov.units import SECTOR

TARGETS: Final[Mapping[FaultKind, str]] = {
    FaultKind.AFTER: "flakey",
    FaultKind.ERROR_RATE: "dust",
    FaultKind.SLOW: "delay",
    FaultKind.DROP_WRITES: "flakey",
}
"""The kernel's target that each needs."""

# Each is one message to the kernel: this many take it a second at most.
MOST_BLOCKS: Final = 8192
MOST_SECONDS: Final = 365 * 24 * 60 * 60
# Longer than a host waits for a SCSI disk (drivers/scsi/sd.h, SD_TIMEOUT).
MOST_MS: Final = 60_000
_BLOCK: Final = BAD_BLOCK // SECTOR


def propose(document: Document, name: str, fault: Fault) -> Proposal:
    """A drive with a fault. Raises: InvalidOperation for a drive that is not online, or has one; InvalidArgument for a number
    that is out of range.
    """
    drive = document.drive(name)
    if not drive.online:
        raise InvalidOperation(f"drive {drive.name!r} is {drive.status.value}", remedy="see: blkrecov drive list")
    if drive.fault is not None:
        raise InvalidOperation(
            f"drive {drive.name!r} has a fault already: {drive.fault.words}",
            remedy=f"take that away first, with: blkrecov drive reconnect {drive.name}",
        )
    faulty = msgspec.structs.replace(drive, fault=fault)
    _refuse_range(faulty, fault)
    return Proposal(document=document.with_drive(faulty), why=f"drive {drive.name}: {fault.words}")


def _refuse_range(drive: Drive, fault: Fault) -> None:
    match fault.kind:
        case FaultKind.AFTER:
            if not 0 <= fault.value <= MOST_SECONDS:
                raise InvalidArgument(
                    f"a drive cannot fail after {fault.value} s", remedy=f"give 0 to {MOST_SECONDS} s"
                )
        case FaultKind.SLOW:
            if not 1 <= fault.value <= MOST_MS:
                raise InvalidArgument(f"no I/O takes {fault.value} ms longer", remedy=f"give 1 to {MOST_MS} ms")
        case FaultKind.ERROR_RATE:
            # Said in this way, it refuses what is no number too.
            if not 0 < fault.value <= 100:
                raise InvalidArgument(
                    f"{fault.value} % is no share of a drive", remedy="give more than 0 and up to 100"
                )
            if _count(drive, fault) > MOST_BLOCKS:
                most = MOST_BLOCKS * 1_000_000 // _blocks(drive) / 10_000
                raise InvalidArgument(
                    f"{fault.value} % of drive {drive.name!r} are {_count(drive, fault)} blocks; the kernel is told of "
                    f"{MOST_BLOCKS} at most, one by one",
                    remedy=f"give up to {most:.4f}",
                )
        case FaultKind.DROP_WRITES:
            pass


def unreadable(drive: Drive) -> tuple[int, ...]:
    """The blocks of a drive with an error rate that cannot be read, in ascending order: always the same ones of the same drive.

    In blocks of BAD_BLOCK bytes from the drive's start on, all of them in its data area: one in each of so many equal parts of
    that, so they are spread evenly, and none is chosen twice.
    """
    assert drive.fault is not None, "a drive without fault can be read"
    first, blocks, count = _first(drive), _blocks(drive), _count(drive, drive.fault)
    chosen = []
    for number in range(count):
        start, end = number * blocks // count, (number + 1) * blocks // count
        digest = blake2b(number.to_bytes(8, "little"), key=drive.uuid.bytes, digest_size=8).digest()
        chosen.append(first + start + int.from_bytes(digest, "little") % (end - start))
    return tuple(chosen)


def _first(drive: Drive) -> int:
    return -(-drive.data_start // _BLOCK)


def _blocks(drive: Drive) -> int:
    """Whole blocks in the drive's data area."""
    return (drive.data_start + drive.data_length) // _BLOCK - _first(drive)


def _count(drive: Drive, fault: Fault) -> int:
    return max(int(_blocks(drive) * fault.value / 100), 1)
