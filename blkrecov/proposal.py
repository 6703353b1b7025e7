"""What an operation wants to be true, before anything was done for it.

An operation is a pure function that returns one of these or raises. The engine prepares (which touches free space only),
writes the document, and converges; `--plan` prints the same.
"""

from dataclasses import dataclass
from uuid import UUID

from blkrecov.dm import names
from blkrecov.model import Document, Lun, Member
from blkrecov.stack import node
from blkrecov.steps import Message, Step, ZeroExtent


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """`then` is done when the devices are what the document says."""

    document: Document
    why: str
    prepare: tuple[Step, ...] = ()
    then: tuple[Message, ...] = ()
    lun: UUID | None = None
    others: frozenset[UUID] = frozenset()
    """LUNs beside that one without which it is not true."""


def zeroed(document: Document, members: tuple[Member, ...]) -> tuple[ZeroExtent, ...]:
    """Steps that leave nothing of an earlier life where new members will have their superblocks and bitmaps."""
    return tuple(
        ZeroExtent(node(names.drive_name(document.name, document.drive_of(member.drive).name)), extent)
        for member in members
        for extent in member.meta
    )


def plex_message(document: Document, lun: Lun, text: str) -> Message:
    return Message(names.plex_name(document.name, lun.name), text)
