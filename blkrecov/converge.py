"""From what is wanted and what is there to the steps between. Pure; the heart of "observe, plan, act".

Every operation writes down what it wants (the document) and lets this module find the steps. So what a crash leaves undone is
done by the next process that looks, without a log of half-finished steps: a step that was carried out is not found again.

The order: ports, then LUN by LUN from the legs up, then what is no longer wanted from the top down, then names. A leg's device
is made before the plex that needs it is loaded; a device goes only when nothing above it is left.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import msgspec

from blkrecov import faults, stack
from blkrecov.dm import names
from blkrecov.dm.status import LegHealth, SnapshotTrouble, parse_dust
from blkrecov.dm.table import ErrorTable, Table, length_of, raid_devices, raid_rates
from blkrecov.geometry import plex_length
from blkrecov.model import Document, Drive, Layout, Lun, MemberState
from blkrecov.observed import Live, Observed
from blkrecov.stack import Device, Layer
from blkrecov.steps import (
    AgreeSuperblocks,
    ClearExport,
    ClearInactive,
    CreateDevice,
    Export,
    ForceResync,
    FreezeFilesystems,
    MarkUnreadable,
    RemoveDevice,
    RenameDevice,
    ReplaceTable,
    Rescan,
    Resume,
    Revive,
    SetReady,
    SettleFailures,
    Step,
    Suspend,
    ThawFilesystems,
    Unexport,
    ZeroExtent,
)

_NODE: Final = "/dev/mapper/"
LEGS: Final = ("rmeta", "rimage")
_LAYERS: Final = {
    "drive": Layer.PORT,
    "plex": Layer.PLEX,
    "shadow": Layer.SHADOW,
    "origin": Layer.ORIGIN,
    "copy": Layer.COPY,
    "compare": Layer.COPY,
    "lun": Layer.LUN,
}


def take_note(document: Document, observed: Observed, *, unclean: bool) -> Document:
    """The document with what observation teaches: members that missed writes, initial synchronisations that have ended.

    A member is lost when its drive is not online or nowhere to be found, when the kernel gave its leg up, and when its
    superblock is gone while others have theirs. It must be on the drives before the LUN is used without it. A LUN that is not
    used, because too much of it is away, loses nothing by that: when its drives are back, so is the LUN.
    """
    for lun in document.luns:
        if lun.layout.fault_tolerant:
            document = document.with_lun(_noted(document, observed, lun, unclean=unclean))
        document = document.with_lun(_without_vain_copies(document, observed, document.lun_of(lun.uuid)))
    document = _without_half_sets(document, observed)
    for lun in document.luns:
        document = _with_shadow_noted(document, observed, lun)
    return document


def _without_half_sets(document: Document, observed: Observed) -> Document:
    """The document without shadow copies whose making was cut short: some of them would show a moment that others do not."""
    unmade = [lun for lun in document.luns if lun.shadow is not None and lun.differential and not lun.shadow.taken]
    if all(observed.store(lun) is not None for lun in unmade):
        return document
    for lun in unmade:
        document = document.without_unmade(lun)
    return document


def _with_shadow_noted(document: Document, observed: Observed, lun: Lun) -> Document:
    """The document with a shadow copy that has lost its contents known as such.

    One that missed a write of its origin shows nothing that ever was. The kernel says so where it saw it; where the store was
    away it does not know, and takes it for good when it is back.
    """
    shadow = lun.shadow
    if shadow is None or not lun.differential or shadow.lost:
        return document
    said = observed.store(lun)
    lost = ""
    if isinstance(said, SnapshotTrouble):
        lost = "its store was full, or could not be written"
    elif said is None and not observed.survives(document, lun):
        origin = document.lun_of(shadow.origin)
        if observed.survives(document, origin):
            lost = f"its store was away while LUN {origin.name} was used"
    if not lost:
        return document
    return document.with_lun(msgspec.structs.replace(lun, shadow=msgspec.structs.replace(shadow, lost=lost)))


def _without_vain_copies(document: Document, observed: Observed, lun: Lun) -> Lun:
    """The LUN without copies that have come to nothing: what is written from now on would miss them, and no log would tell.

    The drive that the member moves to is away, or failed the copy, which holds the LUN's writes until it is taken away; or the
    member itself has missed writes. A drive that cannot be read is another matter: what to do about it an operation decides.
    """
    for index, member in enumerate(lun.members):
        if member.successor is None:
            continue
        drive = document.drive_of(member.successor.drive)
        there = drive.online and drive.uuid in observed.backings
        failed = any(mirror.destination_failed or mirror.log_failed for mirror in observed.mirrors(member))
        if member.state is not MemberState.IN_SYNC or not there or failed:
            lun = lun.with_member(index, msgspec.structs.replace(member, successor=None))
    return lun


def _noted(document: Document, observed: Observed, lun: Lun, *, unclean: bool) -> Lun:
    loaded = observed.loaded(lun)
    cut = unclean and not loaded
    if not loaded and not observed.survives(document, lun):
        return msgspec.structs.replace(lun, suspect=lun.suspect or cut)
    noted = lun
    for index in _missing_writes(document, observed, lun):
        noted = noted.with_member(index, msgspec.structs.replace(lun.members[index], state=MemberState.FAILED))
    raid = observed.raid(lun)
    if raid is not None and raid.in_sync and not noted.lost:
        noted = msgspec.structs.replace(noted, initialised=True)
    if cut and not resettable(noted, observed):
        noted = msgspec.structs.replace(noted, suspect=True)
    return noted


def _missing_writes(document: Document, observed: Observed, lun: Lun) -> frozenset[int]:
    """Members that a LUN in use goes on without. Those with which it lost too much miss nothing: it is written to no more."""
    gone = observed.lost(document, lun) - lun.lost
    before = lun.lost | (lun.rebuilding - gone)
    missing = lun.layout.misses(len(lun.members), before, gone)
    # What the kernel has given up was lost before that with which it lost too much.
    return missing | lun.layout.misses(len(lun.members), before, gone & observed.failed_legs(lun))


def resettable(lun: Lun, observed: Observed) -> bool:
    """Whether a LUN that is not loaded can be made to resynchronise its dirty regions: every member is there and in sync.

    A LUN that has never been loaded has no superblocks; the kernel will synchronise all of it.
    """
    superblocks = [observed.superblocks.get(member.uuid) for member in lun.members]
    whole = all(member.state is MemberState.IN_SYNC for member in lun.members)
    return whole and all(superblock is None or superblock.recovery_offset is None for superblock in superblocks)


@dataclass(frozen=True, slots=True)
class Group:
    """Steps that belong together: a LUN's, so that one which cannot be brought up does not hold up the others."""

    lun: UUID | None
    steps: tuple[Step, ...]


def converge(document: Document, observed: Observed, *, unclean: bool = False) -> tuple[Group, ...]:
    """The steps that make the kernel's devices what the document says. No groups when they are that already.

    `unclean`: the array was running when the machine stopped; LUNs that are loaded now get their dirty regions resynchronised.
    """
    plan = _Plan(document, observed, unclean)
    groups = [Group(None, tuple(steps)) for steps in (plan.ports(), plan.ended(), plan.deleted())]
    groups += [Group(lun.uuid, tuple(plan.base(lun))) for lun in document.luns if lun.differential]
    groups += [Group(None, tuple(plan.moment()))]
    groups += [Group(lun.uuid, tuple(plan.lun(lun))) for lun in document.luns]
    groups += [Group(lun.uuid, tuple(plan.copy(lun))) for lun in document.luns]
    groups += [Group(None, tuple(plan.replaced())), Group(None, tuple(plan.renamed()))]
    return tuple(group for group in groups if group.steps)


def converge_ports(document: Document, observed: Observed) -> dict[UUID, tuple[Step, ...]]:
    """The part of it that makes drives readable, which is needed before superblocks can be looked at; by drive."""
    plan = _Plan(document, observed, unclean=False)
    found = {drive.uuid: tuple(plan.port(drive)) for drive in document.drives}
    return {drive: steps for drive, steps in found.items() if steps}


class _Plan:
    def __init__(self, document: Document, observed: Observed, unclean: bool) -> None:
        self.document = document
        self.observed = observed
        self.unclean = unclean
        self.wanted: dict[str, Device] = {}
        # Legs that serve, and become mirrors.
        self.copies: list[tuple[Lun, Device]] = []
        # What was planned for already, for the sake of another LUN.
        self.based: set[UUID] = set()
        self.familiar: set[UUID] = set()
        self.settled: set[str] = set()
        self.quieted: set[UUID] = set()
        self.gone: frozenset[str] = frozenset()
        self.compared: set[str] = set()
        # LUNs that are deleted go first, with all that is under them: their names may be another LUN's by now.
        self.goners = _goners(document, observed)
        self.taken = {live.name: uuid for uuid, live in observed.devices.items() if uuid not in self.goners}
        # What a path in a wanted table is in a live one: the number of the device that has the name now.
        self.numbers = {_NODE + live.name: live.number for live in observed.devices.values()}
        self.numbers |= {backing.device: backing.number for backing in observed.backings.values()}

    def ports(self) -> Iterator[Step]:
        for drive in self.document.drives:
            yield from self.port(drive)

    def port(self, drive: Drive) -> Iterator[Step]:
        backing = self.observed.backings.get(drive.uuid)
        port = stack.port(self.document, drive, backing.device if backing else None)
        yield from self.ensure(port)
        if port.table[0].kind == "dust" and not self.marked(port):
            yield MarkUnreadable(self.name_of(port), faults.unreadable(drive))

    def marked(self, port: Device) -> bool:
        """Whether a port that is wanted as dust is that, and was told which blocks are bad: that is never in a table."""
        live = self.observed.devices.get(port.uuid)
        return live is not None and self.same(port.table, live.table) and parse_dust(live.status[0].params).fails

    def lun(self, lun: Lun) -> Iterator[Step]:
        yield from self.base(lun)
        exported = self.observed.exports.get(lun.uuid)
        yield from self.quiet(lun)
        yield from self.family(lun)
        top = stack.top(self.document, lun, failed=self.unreachable(lun))
        yield from self.ensure(top)
        if self.observed.holding(lun):
            return  # The kernel reads a new disk's partitions, and whatever takes a disk away waits for what it was asked.
        if lun.exported and exported is None and self.presentable(lun):
            node = stack.node(top.name)
            yield Export(lun.name, lun.uuid, node, read_only=top.read_only, ready=lun.ready)
        elif exported is not None and lun.ready and not exported.ready:
            yield SetReady(lun.name, lun.uuid, ready=True)
        elif exported is not None and lun.ready and exported.size != lun.size:
            yield Rescan(lun.name, lun.uuid)

    def quiet(self, lun: Lun) -> Iterator[Step]:
        """A disk that is to be not ready says so before its node fails."""
        exported = self.observed.exports.get(lun.uuid)
        if exported is not None and exported.ready and not lun.ready and lun.uuid not in self.quieted:
            self.quieted.add(lun.uuid)
            yield SetReady(lun.name, lun.uuid, ready=False)

    def base(self, lun: Lun) -> Iterator[Step]:
        """A LUN's own legs and plex."""
        if lun.uuid in self.based:
            return
        self.based.add(lun.uuid)
        live = self.observed.plex(lun)
        shrinks = live is not None and bool(live.table) and length_of(live.table) > plex_length(lun)
        steps = [self.legs(lun)] if not shrinks else []
        # A plex that has lost too much keeps answering for what is left of it. It is never loaded anew in that state.
        if not self.dead(lun) or self.observed.loaded(lun):
            steps.append(self.plex(lun))
        if shrinks:
            steps.append(self.legs(lun))  # What the plex does not use any more goes when it knows.
        for some in steps:
            yield from some
        yield from self.copied()

    def unreachable(self, lun: Lun) -> bool:
        """Whether there is nothing that a LUN's contents could be read from."""
        if lun.shadow is not None and lun.differential and self.unreachable(self.document.lun_of(lun.shadow.origin)):
            return True
        if self.unmade(lun) and not self.observed.survives(self.document, lun):
            # What is there of it could be written to, and its shadow copies, on the same drives perhaps, would not see that.
            return True
        return self.dead(lun) and not self.observed.loaded(lun)

    def presentable(self, lun: Lun) -> bool:
        """Whether a SCSI disk is made of a LUN that has none yet."""
        if lun.shadow is None or not lun.differential:
            return not self.dead(lun)
        return not lun.shadow.lost and not self.dead(lun) and not self.dead(self.document.lun_of(lun.shadow.origin))

    def family(self, lun: Lun) -> Iterator[Step]:
        """A LUN's shadow copies, and what it is written through as long as it has some.

        The origin's device is resumed after they are: it looks at its snapshots' chunks then, and never again. One that was
        running before saves the first chunk of each write and nothing of the rest (drivers/md/dm-snap.c, origin_resume()).
        """
        shadows = self.document.shadows_of(lun.uuid)
        if lun.uuid in self.familiar or not shadows or self.unreachable(lun):
            return
        self.familiar.add(lun.uuid)
        origin = stack.origin(self.document, lun)
        live = self.observed.devices.get(origin.uuid)
        unmade = self.unmade(lun)
        if unmade and live is not None and live.table:
            yield Suspend(live.name, visible=False)
        for each in shadows:
            yield from self.ensure(stack.shadow(self.document, each))
        steps = tuple(self.ensure(origin))
        yield from steps
        if unmade and live is not None and not steps:
            yield Resume(live.name, visible=False)

    def unmade(self, lun: Lun) -> bool:
        """Whether shadow copies of a LUN are to be made."""
        for each in self.document.shadows_of(lun.uuid):
            live = self.observed.devices.get(names.dm_uuid(each.uuid, "shadow"))
            if live is None or not live.table:
                return True
        return False

    def moment(self) -> Iterator[Step]:
        """New shadow copies of LUNs that are in use: all of one moment, in which nobody writes to any of them. A node that fails
        is in nobody's use.
        """
        held = []
        for lun in self.document.luns:
            live = self.observed.devices.get(names.dm_uuid(lun.uuid, "lun"))
            if live is not None and any(line.kind != "error" for line in live.table) and self.unmade(lun):
                held.append((lun, live))
        for lun, _ in held:
            yield from self.base(lun)
            yield from self.quiet(lun)
        used = [(lun, live) for lun, live in held if lun.ready and not live.suspended]
        if used:
            yield FreezeFilesystems(tuple(self.shown(lun, live) for lun, live in used))
        for _, live in held:
            yield Suspend(live.name, visible=True)
        for lun, _ in held:
            yield from self.family(lun)
        for lun, live in held:
            top = stack.top(self.document, lun, failed=False)
            steps = tuple(self.ensure(top))
            yield from steps or (Resume(live.name, visible=True),)
            self.settled.add(top.uuid)
        if used:
            yield ThawFilesystems()

    def shown(self, lun: Lun, live: Live) -> str:
        exported = self.observed.exports.get(lun.uuid)
        return exported.disk if exported is not None else _NODE + live.name

    def copy(self, lun: Lun) -> Iterator[Step]:
        """What restores a LUN, while it is at that."""
        if stack.copying(self.document, lun):
            for device in stack.copy(self.document, lun):
                yield from self.ensure(device)

    def ended(self) -> Iterator[Step]:
        """Take away copies that are wanted no more, before what is below them changes."""
        wanted = {
            device.uuid
            for lun in self.document.luns
            if stack.copying(self.document, lun)
            for device in stack.copy(self.document, lun)
        }
        # A comparison is made of what differed, which is not in the document. It is let be for as long as it is wanted.
        comparing = {
            names.dm_uuid(lun.restore.uuid, role)
            for lun in self.document.luns
            if lun.restore is not None and stack.comparing(self.document, lun)
            for role in stack.COMPARISON
        }
        self.compared = comparing
        copies = {
            uuid: live
            for uuid, live in self.observed.devices.items()
            if names.is_copy(_role(live)) and uuid not in wanted | comparing and uuid not in self.goners
        }
        self.gone = frozenset(copies)
        # A copy with another log has the names of the one before it.
        self.taken = {name: uuid for name, uuid in self.taken.items() if uuid not in self.gone}
        yield from _removed(copies.values())

    def legs(self, lun: Lun) -> Iterator[Step]:
        sides: list[Device] = []
        for device in stack.legs(self.document, lun, self.place_of):
            if device.layer is Layer.SIDE:
                sides.append(device)
            elif not sides or self.mirrored(lun, device):
                for each in (*sides, device):
                    yield from self.ensure(each)
                sides = []
            else:
                # It serves without the mirror until the plex goes through it.
                for each in (self.resting(lun, device), *sides):
                    yield from self.ensure(each)
                self.copies.append((lun, device))
                sides = []
        if lun.layout is Layout.LINEAR:
            yield from self.retired(lun)

    def mirrored(self, lun: Lun, leg: Device) -> bool:
        """Whether a leg may be the mirror that it should be from the start, or is just that already, so that its log is true.

        A log tells of what went through its mirror. So it counts if the leg has not served without.
        """
        live = self.observed.devices.get(leg.uuid)
        if live is None or not live.table:
            # The plex of a linear LUN goes past a leg that is not there: what it writes would miss the copy.
            return lun.layout is not Layout.LINEAR or not self.observed.loaded(lun)
        return self.same(leg.table, live.table)

    def copied(self) -> Iterator[Step]:
        """Turn legs that serve into mirrors. The log begins anew: it knows nothing of what was written before."""
        for lun, leg in self.copies:
            for member in lun.members:
                if leg.uuid == names.dm_uuid(member.uuid, "rimage") and member.successor is not None:
                    port = stack.port_node(self.document, member.successor.drive)
                    for extent in member.successor.log:
                        yield ZeroExtent(port, extent)
            self.wanted[leg.uuid] = leg
            yield ReplaceTable(name=self.name_of(leg), table=leg.table, visible=False)
        self.copies = []

    def resting(self, lun: Lun, leg: Device) -> Device:
        """The same leg on its member's own place."""
        roles = {
            names.dm_uuid(member.uuid, role): (index, role) for index, member in enumerate(lun.members) for role in LEGS
        }
        index, role = roles[leg.uuid]
        return stack.leg(self.document, lun, index, role)

    def retired(self, lun: Lun) -> Iterator[Step]:
        """Legs of a linear LUN whose members move no more, before its plex goes past them again.

        A mirror with a failed side holds writes, and the plex's suspend would wait for those.
        """
        for index, member in enumerate(lun.members):
            live = self.observed.devices.get(names.dm_uuid(member.uuid, "rimage"))
            if live is not None and live.table and live.uuid not in self.wanted:
                yield from self.retabled(stack.leg(self.document, lun, index, "rimage"), live)

    def dead(self, lun: Lun) -> bool:
        """Whether a LUN with redundancy has lost more than that. One without is mapped as far as its drives are there."""
        return lun.layout.fault_tolerant and not self.observed.survives(self.document, lun)

    def plex(self, lun: Lun) -> Iterator[Step]:
        nodes = {leg.uuid: self.place_of(leg) for leg in stack.legs(self.document, lun)}
        live = self.observed.plex(lun)
        if self.dead(lun):
            # Not for its rates either.
            lun = msgspec.structs.replace(lun, frozen=any(any(raid_rates(line.params)) for line in _raids(live)))
        device = stack.plex(self.document, lun, nodes, self.rebuild(lun))
        if lun.trusted and not self.trusts(lun):
            yield from self.reloaded(lun, device, live)
            return
        if live is not None and live.table and self.same(device.table, live.table):
            yield from self.ensure(stack.plex(self.document, lun, nodes))
            if self.unnoticed(lun):
                yield SettleFailures(live.name, tuple(sorted(lun.lost)))
            yield from self.revived(lun, live)
            return
        if self.unclean and not self.observed.loaded(lun):
            yield from self.force_resync(lun)
        yield from self.ensure(device)
        if lun.lost:
            yield SettleFailures(device.name, tuple(sorted(lun.lost)))

    def trusts(self, lun: Lun) -> bool:
        """Whether the kernel has a LUN loaded, and has not lost too much of it."""
        return self.observed.raid(lun) is not None and not self.observed.collapsed(lun)

    def reloaded(self, lun: Lun, device: Device, live: Live | None) -> Iterator[Step]:
        """A plex that had lost too much. The kernel never takes back what it has given up then, neither by a suspend and a
        resume nor by a load: what the superblocks call failed is too much. They are made to agree while no table is loaded.
        """
        self.wanted[device.uuid] = device
        if live is not None and self.observed.loaded(lun):
            nothing = ErrorTable(length=length_of(live.table)).render()
            yield ReplaceTable(name=live.name, table=nothing, visible=False, flush=False)
        places = [
            (index, stack.port_node(self.document, member.drive), member.meta[0].start)
            for index, member in enumerate(lun.members)
            if index in lun.trusted
        ]
        failed = frozenset(range(len(lun.members))) - frozenset(lun.trusted)
        # What one pair of a raid10 had lost is no reason for the others to have written nothing: no bitmap has all.
        incremental = not lun.forced and lun.layout is not Layout.RAID10
        yield AgreeSuperblocks(device.name, tuple(places), failed, incremental)
        if live is None:
            yield CreateDevice(replace(device, name=self.name_of(device)))
        else:
            yield ReplaceTable(name=live.name, table=device.table, visible=False, flush=False)

    def revived(self, lun: Lun, live: Live) -> Iterator[Step]:
        """Legs that the kernel has given up, and that are back. Without redundancy it gives none up: their I/O fails while the
        drive is away, and then does not.
        """
        raid = self.observed.raid(lun)
        if raid is None or self.dead(lun):
            return
        failed = frozenset(index for index, leg in enumerate(raid.legs) if leg is LegHealth.FAILED)
        if failed & lun.returning:
            yield Revive(live.name, tuple(sorted(failed & lun.returning)))

    def rebuild(self, lun: Lun) -> tuple[int, ...]:
        """Substitutes that have no superblock yet: these the kernel must be told to regenerate from the start.

        One whose leg is in the plex has the superblock that the kernel gave it when that was loaded. Superblocks of such a
        LUN are not looked at; being told again, the kernel would begin again, also when it is told for the sake of another leg.
        """
        live = self.observed.plex(lun)
        known = {leg for line in _raids(live) for leg in raid_devices(line.params)}
        return tuple(
            index
            for index, member in enumerate(lun.members)
            if member.state is MemberState.REBUILDING
            and self.observed.superblocks.get(member.uuid) is None
            and self.number_of(names.dm_uuid(member.uuid, "rimage")) not in known
        )

    def number_of(self, uuid: str) -> str | None:
        live = self.observed.devices.get(uuid)
        return live.number if live is not None else None

    def unnoticed(self, lun: Lun) -> bool:
        """Whether the kernel takes a lost member for a good one still. It never gives up the last copy."""
        raid = self.observed.raid(lun)
        return (
            raid is not None
            and not self.dead(lun)
            and any(raid.legs[index] in (LegHealth.IN_SYNC, LegHealth.OUT_OF_SYNC) for index in lun.lost)
        )

    def force_resync(self, lun: Lun) -> Iterator[Step]:
        """Only where that can be done; else the LUN is suspect until it has been repaired."""
        if not lun.layout.fault_tolerant or not resettable(lun, self.observed):
            return
        for index, member in enumerate(lun.members):
            if self.observed.superblocks.get(member.uuid) is None:
                continue
            if stack.moving(self.document, member) is not None:
                # Through the leg: past it, the copy would miss the change.
                yield ForceResync(self.place_of(stack.leg(self.document, lun, index, "rmeta")), 0)
            else:
                yield ForceResync(stack.port_node(self.document, member.drive), member.meta[0].start)

    def ensure(self, device: Device) -> Iterator[Step]:
        """Make a device be there, with this table, and running."""
        if device.uuid in self.settled:
            return
        self.wanted[device.uuid] = device
        live = self.observed.devices.get(device.uuid)
        if live is None:
            # udev makes the links of a name once: a device that will be renamed is born private, and legs are.
            yield CreateDevice(replace(device, name=self.name_of(device)))
        else:
            yield from self.retabled(device, live)

    def retabled(self, device: Device, live: Live) -> Iterator[Step]:
        if live.held:
            return  # A new table would end it.
        if live.inactive:
            yield ClearInactive(live.name)
        if not self.same(device.table, live.table):
            # A port is replaced because it fails, or comes back: what is under way there may never end. Nor does what a mirror
            # holds that has lost a side; without a flush it is given to the next table (drivers/md/dm-raid1.c, hold_bio()).
            flush = device.layer is not Layer.PORT and not any(line.kind == "mirror" for line in live.table)
            yield ReplaceTable(
                name=live.name, table=device.table, visible=device.visible, flush=flush, read_only=device.read_only
            )
        elif live.suspended:
            yield Resume(live.name, device.visible)

    def name_of(self, device: Device) -> str:
        """The name under which a device is, or is made: its own, unless the device that it replaces still has that.

        Only legs, and what is below them, are replaced: a LUN's own devices keep their UUIDs.
        """
        live = self.observed.devices.get(device.uuid)
        if live is not None:
            return live.name
        return device.name if device.name not in self.taken else f"{device.name}_{_short(device)}"

    def place_of(self, device: Device) -> str:
        return _NODE + self.name_of(device)

    def same(self, wanted: Table, live: Table) -> bool:
        """Whether two tables map the same, as far as that is ours to decide."""
        if len(wanted) != len(live):
            return False
        for ours, theirs in zip(wanted, live, strict=True):
            words = [self.numbers.get(word, word) for word in ours.params.split()]
            if (ours.start, ours.length, ours.kind) != (theirs.start, theirs.length, theirs.kind):
                return False
            if _essence(ours.kind, " ".join(words)) != _essence(theirs.kind, theirs.params):
                return False
        return True

    def deleted(self) -> Iterator[Step]:
        """Take away LUNs that the document does not have, from the top down."""
        present = {lun.uuid for lun in self.document.luns}
        for uuid in self.observed.exports:
            if uuid not in present:
                yield Unexport(str(uuid), uuid)
        tops = {stack.node(names.lun_name(self.document.name, lun.name)) for lun in self.document.luns}
        for left in sorted(self.observed.remains - tops):
            yield ClearExport(left)
        yield from _removed(self.goners.values())

    def replaced(self) -> Iterator[Step]:
        """Take away what nothing refers to any more: legs of members that were substituted, ports of removed drives."""
        devices = self.observed.devices
        yield from _removed(
            live
            for uuid, live in devices.items()
            if uuid not in self.wanted
            and uuid not in self.goners
            and uuid not in self.compared
            and uuid not in self.gone
        )

    def renamed(self) -> Iterator[Step]:
        """Give new legs the names of those that they have replaced, and what somebody has renamed the name that it had."""
        for device in self.wanted.values():
            name = self.name_of(device)
            if name != device.name and self.taken.get(device.name) not in self.wanted:
                yield RenameDevice(name, device.name, device.visible)


def _raids(live: Live | None) -> Table:
    """The raid target of a plex: none while it is not loaded, and for a linear LUN."""
    return tuple(line for line in live.table if line.kind == "raid") if live is not None else ()


def _essence(kind: str, params: str) -> tuple[object, ...]:
    """What of a target's words is ours to decide.

    Of a raid's its kind, its rates and its legs: the kernel adds options, and keeps `rebuild`. Of a flakey's all but the words
    that later kernels print for one without features, where all I/O fails (drivers/md/dm-flakey.c, "error_reads").
    """
    words = params.split()
    match kind:
        case "raid":
            return words[0], raid_rates(params), raid_devices(params)
        case "flakey":
            return *words[:4], frozenset(words[5:]) - {"error_reads", "error_writes"}
        case _:
            return (params,)


def _goners(document: Document, observed: Observed) -> dict[str, Live]:
    """Devices of LUNs that the document does not have: those under the name of a top or plex that is not wanted."""
    wanted = {names.dm_uuid(lun.uuid, role) for lun in document.luns for role in ("lun", "plex")}
    luns = {
        _lun_part(live)
        for uuid, live in observed.devices.items()
        if _layer(live) in (Layer.LUN, Layer.PLEX) and uuid not in wanted
    }
    kept = {leg.uuid for lun in document.luns for leg in stack.legs(document, lun)} | wanted
    return {
        uuid: live
        for uuid, live in observed.devices.items()
        if _layer(live) is not Layer.PORT and _lun_part(live) in luns and uuid not in kept
    }


def _lun_part(live: Live) -> str:
    """The LUN in a device's name; none where somebody has given it another."""
    parts = names.split_dm_name(live.name)
    return parts[1] if parts is not None else ""


def _removed(devices: Iterable[Live]) -> Iterator[Step]:
    for live in sorted(devices, key=lambda live: (-_layer(live), live.name)):
        yield RemoveDevice(live.name, _layer(live) is Layer.LUN)


def _short(device: Device) -> str:
    """Part of the device's UUID, to tell it from the one whose name it will have."""
    return device.uuid.split("-")[1][:8]


def _role(live: Live) -> str:
    parsed = names.parse_dm_uuid(live.uuid)
    return parsed.role if parsed else ""


def _layer(live: Live) -> Layer:
    role = _role(live)
    return Layer.SIDE if names.is_side(role) else _LAYERS.get(role, Layer.LEG)
