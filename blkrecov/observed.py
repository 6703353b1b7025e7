"""What is there: the kernel's devices, the drives' places, the exports, the superblocks. Values, taken at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from blkrecov.dm import names, status
from blkrecov.dm.status import LegHealth, LogHealth, MirrorHealth, MirrorStatus, RaidStatus, SnapshotStatus
from blkrecov.dm.superblock import Superblock
from blkrecov.dm.table import Table
from blkrecov.model import Document, Lun, Member, MemberState, Restore
from blkrecov.units import Sectors


def canonical(uuid: str) -> str:
    """names.dm_uuid() of a device of ours, of whose UUID the kernel has it with the array or, from version 0.1, without."""
    parsed = names.parse_dm_uuid(uuid)
    assert parsed is not None, f"{uuid!r} is not ours"
    return names.dm_uuid(parsed.owner, parsed.role)


def own_and_strangers(document: Document, listed: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names of an array's own devices, of another array's under the same array's name) among the kernel's, UUIDs by name.

    The UUID tells. One of version 0.1 has only the owner in it, who may be gone from the document, so what has the array's name
    is its own too; unless that is another's, as seen by drives' ports that no drive of this one ever had: what is up has ports.
    """
    known = {drive.uuid for drive in document.drives} | {stone.uuid for stone in document.tombstones}
    known |= {lun.uuid for lun in document.luns} | {member.uuid for lun in document.luns for member in lun.members}
    own: list[str] = []
    strangers: list[str] = []
    unknown: list[str] = []
    shared = False
    for name, uuid in listed.items():
        parsed = names.parse_dm_uuid(uuid)
        if parsed is None:
            continue
        if parsed.array == document.array or (parsed.array is None and parsed.owner in known):
            own.append(name)
        elif names.array_of(name) == document.name:
            shared = shared or parsed.array is not None or parsed.role == "drive"
            (unknown if parsed.array is None else strangers).append(name)
    (strangers if shared else own).extend(unknown)
    return tuple(own), tuple(strangers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A device of ours that the kernel has. `number` is major:minor, as tables name it."""

    name: str
    uuid: str
    number: str
    table: Table
    status: Table
    suspended: bool
    inactive: bool
    open_count: int
    held: bool = False
    """A LUN's device that somebody else has suspended: it is theirs to resume, and until then all that asks it waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backing:
    """Where a drive's sectors are."""

    device: str
    number: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A LUN's SCSI disk."""

    disk: str
    naa: str
    size: int
    """In sectors, as the SCSI disk believes."""
    ready: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """A part of what is being copied: of a member that moves to another drive, or of a LUN that is restored."""

    role: str
    """Of the device that it is a part of: "rmeta", "rimage" or "copy"."""
    length: Sectors
    status: MirrorStatus

    @property
    def done(self) -> Sectors:
        return Sectors(self.length * self.status.done // self.status.total)

    @property
    def source_failed(self) -> bool:
        return self.status.legs[0] is not MirrorHealth.ALIVE

    @property
    def destination_failed(self) -> bool:
        return self.status.legs[1] is not MirrorHealth.ALIVE

    @property
    def log_failed(self) -> bool:
        return self.status.log.health is not LogHealth.ALIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    devices: Mapping[str, Live] = field(default_factory=dict)
    """By device-mapper UUID; only this array's."""
    backings: Mapping[UUID, Backing] = field(default_factory=dict)
    """By drive; a drive without one is away."""
    exports: Mapping[UUID, Exported] = field(default_factory=dict)
    """By LUN."""
    remains: frozenset[str] = frozenset()
    """Nodes of LUNs whose export was cut short while it was made or removed: something of it still holds them."""
    superblocks: Mapping[UUID, Superblock | None] = field(default_factory=dict)
    """By member, of LUNs whose plex is not loaded; None for a member that has none, or whose drive cannot be read."""

    def holding(self, lun: Lun) -> Live | None:
        """A LUN's own device, while somebody else has it suspended."""
        live = self.devices.get(names.dm_uuid(lun.uuid, "lun"))
        return live if live is not None and live.held else None

    def plex(self, lun: Lun) -> Live | None:
        return self.devices.get(names.dm_uuid(lun.uuid, "plex"))

    def loaded(self, lun: Lun) -> bool:
        """Whether the LUN's plex has a table; a device whose making was cut short has none, and one that is to be loaded anew
        fails everything until it is (converge).
        """
        live = self.plex(lun)
        return live is not None and bool(live.table) and live.table[0].kind != "error"

    def raid(self, lun: Lun) -> RaidStatus | None:
        """What the kernel says of a LUN's plex; None while it is not loaded, suspended, or no raid with redundancy."""
        live = self.plex(lun)
        if live is None or live.suspended or not live.status or live.status[0].kind != "raid":
            return None
        return status.parse_raid(live.status[0].params)

    def mirrors(self, member: Member) -> tuple[Mirror, ...]:
        """What the kernel says of a member's copy to another drive; nothing while there is none."""
        return (*self._mirrors(member.uuid, "rmeta"), *self._mirrors(member.uuid, "rimage"))

    def copy(self, restore: Restore) -> tuple[Mirror, ...]:
        """What the kernel says of a restore's copy; nothing while there is none."""
        return self._mirrors(restore.uuid, "copy")

    def _mirrors(self, owner: UUID, role: str) -> tuple[Mirror, ...]:
        live = self.devices.get(names.dm_uuid(owner, role))
        return tuple(
            Mirror(role=role, length=line.length, status=status.parse_mirror(line.params))
            for line in (live.status if live is not None else ())
            if line.kind == "mirror"
        )

    def comparison(self, restore: Restore) -> RaidStatus | None:
        """What the kernel says of a restore's comparison; None while there is none."""
        live = self.devices.get(names.dm_uuid(restore.uuid, "compare"))
        if live is None or live.suspended or not live.status:
            return None
        return status.parse_raid(live.status[0].params)

    def store(self, lun: Lun) -> SnapshotStatus | None:
        """What the kernel says of a differential shadow copy; None while it is not loaded."""
        live = self.devices.get(names.dm_uuid(lun.uuid, "shadow"))
        if live is None or not live.status or live.status[0].kind != "snapshot":
            return None
        return status.parse_snapshot(live.status[0].params)

    def reachable(self, document: Document, lun: Lun) -> bool:
        """Whether a LUN's contents are there: of a differential shadow copy, its origin's too. What is not whole is no matter."""
        if not self.survives(document, lun):
            return False
        if lun.shadow is None or not lun.differential:
            return True
        return not lun.shadow.lost and self.survives(document, document.lun_of(lun.shadow.origin))

    def lost(self, document: Document, lun: Lun) -> frozenset[int]:
        """Members that hold nothing usable now: by the document, the kernel, their superblocks, or as their drive is away."""
        away = frozenset(
            index
            for index, member in enumerate(lun.members)
            if not document.drive_of(member.drive).online or member.drive not in self.backings
        )
        return lun.lost | self.failed_legs(lun) | self.disowned(lun) | away

    def survives(self, document: Document, lun: Lun) -> bool:
        """Whether all of a LUN's data is there. A member that is being rebuilt is no copy of anything yet."""
        unusable = self.lost(document, lun) | lun.rebuilding
        return lun.layout.survives(len(lun.members), unusable)

    def disowned(self, lun: Lun) -> frozenset[int]:
        """Members of a LUN that is not loaded whose superblocks say, or let it be seen, that they have missed something.

        Those that the freshest superblock calls failed: the kernel lost them, and nobody looked before the machine stopped. And
        those without a superblock, where there must be one: another member has one, or the LUN has been whole before.
        """
        if not lun.layout.fault_tolerant or self.loaded(lun):
            return frozenset()
        found = [superblock for member in lun.members if (superblock := self.superblocks.get(member.uuid)) is not None]
        failed = max(found, key=lambda superblock: superblock.events).failed if found else 0
        heads = [self.superblocks.get(member.uuid) for member in lun.members]
        fatal = _is_fatal(
            lun,
            frozenset(
                index
                for index, head in enumerate(heads)
                if failed >> index & 1
                or (head.recovery_offset is not None if head is not None else index in lun.rebuilding)
            ),
        )
        used = bool(found) or lun.initialised
        return frozenset(
            index
            for index, member in enumerate(lun.members)
            if member.state is MemberState.IN_SYNC
            and member.uuid in self.superblocks
            and not (index in lun.trusted and fatal)
            and (failed >> index & 1 or (used and self.superblocks[member.uuid] is None))
        )

    def failed_legs(self, lun: Lun) -> frozenset[int]:
        """Members that the kernel has given up."""
        # One that returns is failed until the kernel has been asked to take it back; those that are to serve again until the LUN
        # is loaded anew. After that they can fail as all others.
        overruled = frozenset(lun.trusted) if lun.trusted and self.collapsed(lun) else frozenset()
        return self.given_up(lun) - lun.returning - overruled

    def collapsed(self, lun: Lun) -> bool:
        """Whether the kernel has lost too much of a LUN: if some are trusted, it waits to be loaded by them."""
        raid = self.raid(lun)
        if raid is None:
            return False
        # While all are made equal none is in sync, and each is good.
        regenerated = (
            frozenset(index for index, leg in enumerate(raid.legs) if leg is LegHealth.OUT_OF_SYNC)
            if LegHealth.IN_SYNC in raid.legs
            else frozenset()
        )
        return _is_fatal(lun, self.given_up(lun) | regenerated)

    def given_up(self, lun: Lun) -> frozenset[int]:
        """Legs that the kernel does without at this moment, whatever is to become of them."""
        raid = self.raid(lun)
        return frozenset(raid.lost) if raid is not None else frozenset()


def _is_fatal(lun: Lun, failed: frozenset[int]) -> bool:
    """Whether a LUN cannot do without these, beside what it has lost."""
    return not lun.layout.survives(len(lun.members), lun.lost | failed)
