"""Arrays for the tests, built in a few words. Drive N is called dN; its data area starts at sector 16384."""

from collections.abc import Iterator
from itertools import count
from uuid import UUID

import msgspec

from blkrecov import provision, shadows
from blkrecov.dm import names
from blkrecov.dm.status import RaidStatus, parse_raid
from blkrecov.dm.table import TargetLine
from blkrecov.geometry import Request
from blkrecov.model import UNIT, Document, Drive, Layout, Lun, MemberState, Shadow
from blkrecov.observed import Backing, Exported, Live, Observed
from blkrecov.shadows import ShadowRequest
from blkrecov.units import MIB, Bytes, Sectors

DATA_START = 8 * UNIT
FAULT_TOLERANT = [layout for layout in Layout if layout.fault_tolerant]


def uuids(start: int = 1) -> Iterator[UUID]:
    """UUIDs that are the same in every run. As with random ones, their first eight digits tell them apart."""
    return (UUID(int=number << 96) for number in count(start))


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


def with_shadow(
    document: Document,
    name: str = "s",
    *,
    of: str = "v",
    mib: int = 16,
    on: tuple[str, ...] = (),
    layout: Layout | None = None,
    exported: bool = True,
    taken: int = 1000,
    start: int | None = None,
) -> tuple[Document, Lun]:
    """The array with a differential shadow copy more, taken at that moment, and that LUN. Its store has so many MiB."""
    request = ShadowRequest(origin=of, name=name, size=Bytes(mib * MIB), layout=layout, drives=on, exported=exported)
    ids = uuids(start or 0x1000 * (len(document.luns) + 1))
    document = shadows.propose(document, seen(document), [request], ids)[0].document
    return stamped(document, name, taken)


def with_plex(
    document: Document,
    name: str = "p",
    *,
    of: str = "v",
    layout: Layout = Layout.LINEAR,
    mib: int = 64,
    on: tuple[str, ...] = (),
    taken: int = 1000,
) -> tuple[Document, Lun]:
    """The array with a shadow copy more that is a plex, filled long ago, and that LUN."""
    document, lun = with_lun(document, layout, name, mib=mib, on=on)
    shadow = Shadow(origin=document.lun(of).uuid)
    return stamped(document.with_lun(msgspec.structs.replace(lun, shadow=shadow)), name, taken)


def stamped(document: Document, name: str, taken: int) -> tuple[Document, Lun]:
    """The array when it is known of when a shadow copy is, and that LUN."""
    lun = document.lun(name)
    assert lun.shadow is not None
    lun = msgspec.structs.replace(lun, shadow=msgspec.structs.replace(lun.shadow, taken=taken))
    return document.with_lun(lun), lun


def with_lost(document: Document, name: str = "s", why: str = "its store was full") -> Document:
    """The array when a shadow copy has lost its contents."""
    lun = document.lun(name)
    assert lun.shadow is not None
    return document.with_lun(msgspec.structs.replace(lun, shadow=msgspec.structs.replace(lun.shadow, lost=why)))


def copying(document: Document, name: str = "v", *, region: int = 128, todo: int = 1280) -> Document:
    """The array when what differs is written down, and the kernel copies onto the LUN."""
    lun = document.lun(name)
    assert lun.restore is not None
    source = document.lun_of(lun.restore.source)
    restore = msgspec.structs.replace(lun.restore, length=source.size, region=region, todo=todo)
    return document.with_lun(msgspec.structs.replace(lun, restore=restore))


def with_states(lun: Lun, *states: MemberState) -> Lun:
    """The LUN with its members in these states."""
    for index, state in enumerate(states):
        lun = lun.with_member(index, msgspec.structs.replace(lun.members[index], state=state))
    return lun


def raid_words(legs: str, action: str = "idle", ratio: str = "64/64", *, mismatch: int = 0) -> str:
    """What the kernel says of a plex with these legs."""
    return f"raid1 {len(legs)} {legs} {ratio} {action} {mismatch} 0 -"


def raid(legs: str, action: str = "idle", ratio: str = "64/64", *, mismatch: int = 0) -> RaidStatus:
    """The same, read."""
    return parse_raid(raid_words(legs, action, ratio, mismatch=mismatch))


def seen(
    document: Document, words: str | None = None, *, away: tuple[str, ...] = (), suspended: bool = False
) -> Observed:
    """A machine on which the drives are that are online by the document, but for those that are `away`.

    With `words` the plex of LUN v is loaded and says these; without, nothing is loaded.
    """
    backings = {
        drive.uuid: Backing(device=f"/dev/loop{index}", number=f"7:{index}")
        for index, drive in enumerate(document.drives)
        if drive.online and drive.name not in away
    }
    if words is None:
        return Observed(backings=backings)
    lun = document.lun("v")
    plex = Live(
        name=names.plex_name(document.name, lun.name),
        uuid=names.dm_uuid(lun.uuid, "plex"),
        number="253:40",
        table=(_line(lun, "raid1 0 0"),),
        status=(_line(lun, words),),
        suspended=suspended,
        inactive=False,
        open_count=1,
    )
    exports = {lun.uuid: Exported(disk="/dev/sda", naa="6001405", size=lun.size)} if lun.exported else {}
    return Observed(devices={plex.uuid: plex}, backings=backings, exports=exports)


def _line(lun: Lun, params: str) -> TargetLine:
    return TargetLine(start=Sectors(0), length=Sectors(lun.size), kind="raid", params=params)
