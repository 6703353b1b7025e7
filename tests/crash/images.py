"""What lies on the disks of a machine that is off, read by the host: the document, and the members' contents.

It leans on nothing that the guest said. Of the product it uses the decoding of labels and of the document.
"""

import hashlib
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from blkrecov import model
from blkrecov.dm.superblock import BLOCK as SUPERBLOCK
from blkrecov.dm.superblock import Superblock, parse
from blkrecov.drives.label import newest
from blkrecov.drives.store import DriveStore, IoCounter
from blkrecov.model import Document, Extent, Layout, Lun
from blkrecov.units import SECTOR
from tests.crash.pattern import BLOCK


class Disks:
    """The disks with the newest document that is on them."""

    def __init__(self, images: Sequence[Path]) -> None:
        self._image: dict[str, Path] = {}
        documents: list[Document] = []
        for image in images:
            with DriveStore(str(image), IoCounter(), writable=False) as store:
                label = store.read_label().label
                slot = newest(store.read_slots(label))
            self._image[str(label.drive_uuid)] = image
            if slot is not None:
                documents.append(model.decode(slot.payload))
        self.document = max(documents, key=lambda document: document.sequence)

    def members(self, lun: Lun) -> tuple[bytes, ...]:
        """The data of each member."""
        return tuple(self._read(str(member.drive), member.data) for member in lun.members)

    def superblocks(self, lun: Lun) -> tuple[Superblock | None, ...]:
        return tuple(
            parse(self._read(str(member.drive), member.meta)[:SUPERBLOCK]) if member.meta else None
            for member in lun.members
        )

    def _read(self, drive: str, extents: tuple[Extent, ...]) -> bytes:
        data = b""
        with open(self._image[drive], "rb") as image:
            for extent in extents:
                image.seek(extent.start * SECTOR)
                data += image.read(extent.length * SECTOR)
        return data


def disagreements(layout: Layout, members: Sequence[bytes]) -> int:
    """Blocks of 4 KiB in which the members contradict each other; for raid6 not computed here."""
    match layout:
        case Layout.RAID1:
            return sum(_differing(members[0], other) for other in members[1:])
        case Layout.RAID10:
            # The near format with two copies: 0 and 1 are one pair, 2 and 3 the next.
            return sum(_differing(one, other) for one, other in zip(members[::2], members[1::2], strict=True))
        case Layout.RAID4 | Layout.RAID5:
            # Wherever the parity is: all members together are zero.
            whole = reduce(lambda one, other: one ^ other, (int.from_bytes(data, "little") for data in members))
            return _differing(whole.to_bytes(len(members[0]), "little"), bytes(len(members[0])))
        case _:
            raise NotImplementedError(f"{layout.value}: the second parity is the kernel's to check")


def _differing(one: bytes, other: bytes) -> int:
    return sum(one[at : at + BLOCK] != other[at : at + BLOCK] for at in range(0, len(one), BLOCK))


def fingerprint(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
