"""What an operation wants to be true, before anything was done for it.

An operation is a pure function that returns one of these or raises. The engine prepares (which touches free space only),
writes the document, and converges; `--plan` prints the same.
"""

import dataclasses
from dataclasses import dataclass
from typing import Self
from uuid import UUID

import msgspec

from blkrecov.dm import names
from blkrecov.geometry import beyond
from blkrecov.model import Document, Layout, Lun, Member, Task
from blkrecov.stack import port_node
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
    first: "Proposal | None" = None
    """What has to be true before this is begun; it stays true should this fail."""

    def explaining(self, task: Task) -> Self:
        """With this task saying why it is there."""
        task = self.document.task(task.id)
        task = msgspec.structs.replace(task, why=task.why or self.why)
        return dataclasses.replace(self, document=self.document.with_task(task))


def zeroed(document: Document, members: tuple[Member, ...]) -> tuple[ZeroExtent, ...]:
    """Steps that leave nothing of an earlier life where new members will have their superblocks and bitmaps."""
    return tuple(ZeroExtent(port_node(document, member.drive), extent) for member in members for extent in member.meta)


def evened(document: Document, before: Lun, after: Lun) -> tuple[ZeroExtent, ...]:
    """What makes the members of a raid10 that grows equal in their new part: they are zeroed before they are used.

    Linux 6.1 grows a live raid10 by the wrong length, and so synchronises nothing of the new part (drivers/md/dm-raid.c,
    raid_preresume(), goes by the members' length, not the array's). Other layouts it does right.
    """
    if after.layout is not Layout.RAID10:
        return ()
    return tuple(
        ZeroExtent(port_node(document, new.drive), extent)
        for old, new in zip(before.members, after.members, strict=True)
        for extent in beyond(new, old.length)
    )


def plex_message(document: Document, lun: Lun, text: str) -> Message:
    return Message(names.plex_name(document.name, lun.name), text)
