"""Arrays for the tests, built in a few words. Drive N is called dN; its data area starts at sector 16384."""

from collections.abc import Iterator
from itertools import count
from uuid import UUID

import msgspec

from blkrecov import provision
from blkrecov.dm.status import RaidStatus, parse_raid
from blkrecov.geometry import Request
from blkrecov.model import UNIT, Document, Drive, Layout, Lun, MemberState
from blkrecov.units import MIB, Bytes

DATA_START = 8 * UNIT
FAULT_TOLERANT = [layout for layout in Layout if layout.fault_tolerant]


def uuids(start: int = 1) -> Iterator[UUID]:
    """UUIDs that are the same in every run."""
    return (UUID(int=number) for number in count(start))


def drive(number: int, units: int = 200, *, hot_spare: bool = False) -> Drive:
    """A drive with `units` MiB for data."""
    return Drive(
        uuid=UUID(int=0xD0000 + number),
        name=f"d{number}",
        path=f"/srv/d{number}",
        size=(units + 16) * MIB,
        data_start=DATA_START,
        data_length=units * UNIT,
        hot_spare=hot_spare,
    )


def array(*drives: Drive) -> Document:
    return Document(array=UUID(int=0xA0000), name="lab", drives=drives)


def drives(number: int, units: int = 200) -> Document:
    """An array of so many equal drives."""
    return array(*(drive(index, units) for index in range(number)))


def with_lun(
    document: Document,
    layout: Layout,
    name: str = "v",
    *,
    mib: int = 64,
    on: tuple[str, ...] = (),
    members: int | None = None,
    exported: bool = True,
    start: int | None = None,
) -> tuple[Document, Lun]:
    """The array with one LUN more, and that LUN. `start` begins its UUIDs."""
    request = Request(name=name, layout=layout, size=Bytes(mib * MIB), drives=on, members=members, exported=exported)
    document = provision.create(document, request, uuids(start or 0x1000 * (len(document.luns) + 1))).document
    return document, document.lun(name)


def with_states(lun: Lun, *states: MemberState) -> Lun:
    """The LUN with its members in these states."""
    for index, state in enumerate(states):
        lun = lun.with_member(index, msgspec.structs.replace(lun.members[index], state=state))
    return lun


def raid(legs: str, action: str = "idle", ratio: str = "64/64", *, mismatch: int = 0) -> RaidStatus:
    """What the kernel says of a plex with these legs."""
    return parse_raid(f"raid1 {len(legs)} {legs} {ratio} {action} {mismatch} 0 -")
