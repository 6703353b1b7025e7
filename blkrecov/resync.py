"""Resynchronisation (IVssHardwareSnapshotProviderEx::ResyncLuns): shadow copies put back onto LUNs, all pairs or none. Pure.

Each check is a function of its own, because between them the world has to be asked; who calls them keeps their order, which is
the precedence of codes (windows-semantics 7.2):

    refuse_arguments     E_INVALIDARG                  no pair, a LUN twice, a LUN in both roles
    refuse_unsuitable    VSS_E_VOLUME_NOT_SUPPORTED    what can never be a source or a target
    refuse_another       VSS_E_BAD_STATE               one at a time
    propose              VSS_E_INSUFFICIENT_STORAGE    sizes, logs, stores
    refuse_dangerous     VSS_E_PROVIDER_VETO           what is in use, would be lost, or goes the wrong way

A restore in the document (model.Restore) has two stages. Without a length the LUN is being made quiet: its disk answers NOT
READY, its node fails everything. Then whoever looks seeds the copy's log with what differs, writes down length and region, and
the kernel copies (stack.copy()). A log that is lost begins at the first stage again: what a copy has written already is equal,
so what differed at first is all that can differ still.

What differs between a shadow copy and its own origin stands in the shadow copy's store, for each write goes through
the device `origin`. So does the copy itself: other shadow copies of the target see it as any other write. Its regions are the
stores' chunks then: a larger one would save chunks in the source's own store that did not change.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec

from blkrecov import changes, geometry, provision, shadows, tasks
from blkrecov.changes import Runs
from blkrecov.dm import cow, names
from blkrecov.dm.names import NameKind
from blkrecov.dm.status import LegHealth, SnapshotTrouble, SnapshotUsage, SyncAction
from blkrecov.errors import (
    BadState,
    BlkrecovError,
    InsufficientStorage,
    InvalidArgument,
    NotEnoughDrives,
    NotEnoughSpace,
    ProviderVeto,
    VolumeNotSupported,
)
from blkrecov.geometry import Request
from blkrecov.model import (
    UNIT,
    Document,
    Lun,
    MemberState,
    Pair,
    Phase,
    Task,
    TaskKind,
)
from blkrecov.observed import Mirror, Observed
from blkrecov.page83.identity import naa_of_serial, serial_of
from blkrecov.proposal import Proposal, evened
from blkrecov.stack import port_node
from blkrecov.steps import Flush, Step
from blkrecov.units import KIB, SECTOR, Bytes, Sectors, format_size, in_bytes, round_up

# The least that a mirror's region may be here: smaller ones cost more than they hold.
LEAST_REGION: Final = Sectors(64 * KIB // SECTOR)
COPIES: Final = (TaskKind.RESYNC, TaskKind.SNAPSHOT)


@dataclass(frozen=True, slots=True)
class Wish:
    """One pair that somebody wants. Without a target, a LUN like the source's origin is made under the name."""

    source: Lun
    target: Lun | None
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the world says of a pair before anything is done: who holds the target, which volumes are on it that the source has
    not, the signature that it is to have afterwards, and what differs.
    """

    holders: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()
    signature: str = ""
    differs: Runs = ()
    saves: Mapping[UUID, int] | None = None
    """For each shadow copy of the target, how many chunks of its store the copy takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`forced` holds the page-83 identities that were typed in full: those targets are restored whatever is in the way."""

    undo: bool = False
    verify: bool = False
    any_volume: bool = False
    forced: frozenset[str] = frozenset()


def refuse_arguments(wishes: Sequence[Wish]) -> None:
    if not wishes:
        raise InvalidArgument("no pair is named", remedy="name what is restored where: SHADOW:LUN")
    sources = [wish.source.uuid for wish in wishes]
    targets = [wish.target.uuid if wish.target else wish.name for wish in wishes]
    for wish in wishes:
        if wish.target is None:
            names.check_name(NameKind.LUN, wish.name)
        if sources.count(wish.source.uuid) > 1:
            raise InvalidArgument(f"{wish.source.name!r} is named as a source twice", remedy="name each LUN once")
        if targets.count(wish.target.uuid if wish.target else wish.name) > 1:
            raise InvalidArgument(f"{wish.name!r} is named as a target twice", remedy="name each LUN once")
        if wish.target is not None and wish.target.uuid in sources:
            raise InvalidArgument(f"{wish.name!r} is named as a source and as a target", remedy="name each LUN once")


def refuse_unsuitable(document: Document, wishes: Sequence[Wish]) -> None:
    for wish in wishes:
        source, target = wish.source, wish.target
        if source.shadow is None:
            raise VolumeNotSupported(
                f"LUN {source.name!r} is no shadow copy, and only those are restored from",
                remedy=f"take one first, with: blkrecov snapshot create {source.name} NAME",
            )
        if source.shadow.lost or not source.ready:
            raise VolumeNotSupported(
                f"shadow copy {source.name!r} does not hold what it should: {source.shadow.lost or 'it is not filled yet'}",
                remedy="choose another shadow copy: blkrecov snapshot list",
            )
        if target is None:
            continue
        if target.shadow is not None:
            raise VolumeNotSupported(
                f"LUN {target.name!r} is a shadow copy itself, which is never altered",
                remedy="restore onto the origin, another LUN, or a new name",
            )
        larger = [each.name for each in document.shadows_of(target.uuid) if each.size > source.size]
        if target.size > source.size and larger:
            raise VolumeNotSupported(
                f"LUN {target.name!r} would shrink to {format_size(source.bytes)}, and its shadow copies "
                f"{', '.join(larger)} show more than that",
                remedy="delete those first, or restore onto a new name",
            )


def refuse_another(document: Document) -> None:
    for task in document.tasks:
        if task.kind is TaskKind.RESYNC and not task.state.ended:
            raise BadState(
                f"task {task.id} (resync of {' '.join(task.objects)}) is under way, and there is one at a time",
                remedy=f"wait for it with: blkrecov task wait {task.id}",
            )


def refuse_dangerous(
    document: Document, observed: Observed, wishes: Sequence[Wish], facts: Sequence[Facts], options: Options
) -> None:
    for wish, fact in zip(wishes, facts, strict=True):
        source, target = wish.source, wish.target
        for lun in (source, target):
            if lun is not None:
                _refuse_busy(document, lun)
        if not observed.reachable(document, source):
            raise ProviderVeto(
                f"shadow copy {source.name!r} cannot be read: it has lost more drives than it can do without",
                remedy="bring its drives, and its origin's, back",
            )
        if target is None:
            continue
        _refuse_degraded(document, observed, target, source)
        naa = naa_of_serial(serial_of(target.uuid))
        if naa in options.forced:
            continue
        force = f"if that is what you want, add: --force {naa}"
        if fact.holders:
            raise ProviderVeto(
                f"LUN {target.name!r} is in use by {', '.join(fact.holders)}",
                remedy=f"end what uses it (umount, swapoff), then try again; {force}",
            )
        if fact.strangers and not options.any_volume:
            raise ProviderVeto(
                f"LUN {target.name!r} has volumes that shadow copy {source.name!r} has not, and that would be lost: "
                f"{', '.join(fact.strangers)}",
                remedy="save them, then add --no-volume-check",
            )
        assert source.shadow is not None
        if source.shadow.taken < target.restored:
            raise ProviderVeto(
                f"LUN {target.name!r} holds a later moment than shadow copy {source.name!r} shows: this would go back in time",
                remedy=f"choose the right shadow copy (blkrecov snapshot list); {force}",
            )


def _refuse_busy(document: Document, lun: Lun) -> None:
    try:
        provision.refuse_busy(document, lun)
    except BlkrecovError as error:
        raise ProviderVeto(error.message, remedy=error.remedy) from error


def _refuse_degraded(document: Document, observed: Observed, target: Lun, source: Lun) -> None:
    if not observed.survives(document, target):
        raise ProviderVeto(
            f"LUN {target.name!r} has failed: it has lost more members than it can do without",
            remedy="bring its drives back, or restore onto a new name",
        )
    whole = all(member.state is MemberState.IN_SYNC for member in target.members)
    moving = any(member.successor is not None for member in target.members)
    if target.size != source.size and (moving or not whole or observed.lost(document, target)):
        raise ProviderVeto(
            f"LUN {target.name!r} has to change its size, and has lost a member",
            remedy=f"run: blkrecov recover {target.name}",
        )


def propose(
    document: Document,
    wishes: Sequence[Wish],
    facts: Sequence[Facts],
    options: Options,
    ids: Iterator[UUID],
    discards: frozenset[UUID],
) -> tuple[Proposal, Task]:
    """What is wanted. `discards` are the drives whose space reads as zeros once it is discarded.

    Raises: InsufficientStorage, ObjectExists.
    """
    number = document.next_task
    pairs: list[Pair] = []
    prepare: list[Step] = []
    for count, (wish, fact) in enumerate(zip(wishes, facts, strict=True)):
        try:
            document, pair, steps = _paired(document, wish, fact, options, f"undo-{number}-{count}", ids, discards)
        except (NotEnoughSpace, NotEnoughDrives) as error:
            raise InsufficientStorage(error.message, remedy=error.remedy) from error
        pairs.append(pair)
        prepare += steps
    task = tasks.started(
        Task(
            id=number,
            kind=TaskKind.RESYNC,
            lun=pairs[0].target,
            objects=tuple(f"{wish.source.name}:{wish.name}" for wish in wishes),
            phases=(Phase.RESTORE, Phase.COMPARE) if options.verify else (Phase.RESTORE,),
            pairs=tuple(pairs),
            temporary=tuple(pair.undo for pair in pairs if pair.undo),
        )
    )
    proposal = Proposal(
        document=document.with_task(task),
        why=f"resync of {', '.join(task.objects)}",
        prepare=tuple(prepare),
        others=frozenset(uuid for pair in pairs for uuid in (pair.target, pair.undo) if uuid),
    )
    return proposal, task


def _paired(
    document: Document,
    wish: Wish,
    fact: Facts,
    options: Options,
    name: str,
    ids: Iterator[UUID],
    discards: frozenset[UUID],
) -> tuple[Document, Pair, tuple[Step, ...]]:
    source, target, steps = wish.source, wish.target, list[Step]()
    made = target is None
    blank = False
    undo: Lun | None = None
    if target is None:
        provision.refuse_taken(document, wish.name)
        target = _like(document, wish, ids)
        blanking = shadows.blanked(document, target, discards)
        blank = bool(blanking)
        steps += [*shadows.cleared(document, [target]), *blanking]
        document = document.with_lun(target)
    else:
        _refuse_full(document, fact.saves or {})
        if options.undo:
            undo = shadows.undo(document, target, name, changes.total(fact.differs), ids)
            document = document.with_lun(undo)
            steps += shadows.cleared(document, [undo])
        if target.size < source.size:
            before, target = target, geometry.extended(document, target, source.bytes, ids)
            provision.refuse_bitmap(before, target)
            steps += evened(document, before, target)
            document = document.with_lun(target)
    target = shadows.filled(document, target, source, ids, signature=fact.signature, blank=blank)
    pair = Pair(source=source.uuid, target=target.uuid, undo=undo.uuid if undo else None, made=made)
    return document.with_lun(target), pair, tuple(steps)


def _like(document: Document, wish: Wish, ids: Iterator[UUID]) -> Lun:
    """A new LUN like the one that a shadow copy was taken of, or like the shadow copy where that is gone."""
    source = wish.source
    assert source.shadow is not None
    origin = next((lun for lun in document.luns if lun.uuid == source.shadow.origin), source)
    request = Request(name=wish.name, layout=origin.layout, size=source.bytes, exported=origin.exported)
    return geometry.place(document, request, ids)


def _refuse_full(document: Document, saves: Mapping[UUID, int]) -> None:
    """The target's other shadow copies have to save what the copy overwrites."""
    for uuid, missing in saves.items():
        lun = document.lun_of(uuid)
        if missing > 0:
            assert lun.shadow is not None
            more = in_bytes(Sectors(round_up(missing * lun.shadow.chunk, UNIT)))
            size = in_bytes(geometry.plex_length(lun)) + more
            raise InsufficientStorage(
                f"the store of shadow copy {lun.name!r} has no room for what would be overwritten",
                remedy=f"give it {format_size(Bytes(more))} more: blkrecov snapshot extend {lun.name} --store {size}",
            )


def lacking(lun: Lun, usage: SnapshotUsage, saved: int) -> int:
    """How many chunks a shadow copy's store has too few, if it is to save so many more."""
    assert lun.shadow is not None
    chunk = Sectors(lun.shadow.chunk)
    held = max((usage.allocated - usage.metadata) // chunk, 0)
    return held + saved - cow.capacity(geometry.plex_length(lun), chunk)


def region(document: Document, target: Lun, differs: Runs, length: int) -> int:
    """Sectors of the regions in which a target is copied."""
    stores = [each.shadow.chunk for each in document.shadows_of(target.uuid) if each.shadow is not None]
    if not stores:
        return changes.choose_region(differs, length, min(LEAST_REGION, length))
    least = max(stores)
    while changes.is_too_fine(length, least):
        least *= 2
    return least


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """How far the copy of one pair is."""

    done: Sectors
    total: Sectors
    source_failed: bool
    destination_failed: bool
    log_failed: bool
    complete: bool


def copied(observed: Observed, lun: Lun) -> Copied:
    """What the kernel says of a LUN's copy."""
    restore = lun.restore
    assert restore is not None
    parts = changes.divide(restore.length, restore.region, restore.parts) if restore.length else ()
    mirrors = observed.copy(restore)
    there = bool(parts) and len(mirrors) == len(parts)
    left = sum((mirror.status.total - mirror.status.done) * restore.region for mirror in mirrors) if there else 0
    todo = restore.todo
    return Copied(
        done=Sectors(max(todo - left, 0) if there else 0),
        total=Sectors(todo),
        source_failed=any(mirror.source_failed for mirror in mirrors),
        destination_failed=any(mirror.destination_failed for mirror in mirrors),
        log_failed=any(mirror.log_failed for mirror in mirrors),
        complete=there and all(_is_whole(mirror) for mirror in mirrors),
    )


def _is_whole(mirror: Mirror) -> bool:
    failed = mirror.destination_failed or mirror.source_failed or mirror.log_failed
    return mirror.status.done == mirror.status.total and not failed


def targets(document: Document, task: Task) -> tuple[Lun, ...]:
    """The LUNs that a task restores and has not done with."""
    found = (lun for lun in document.luns if any(pair.target == lun.uuid for pair in task.pairs))
    return tuple(lun for lun in found if lun.restore is not None)


def _pair_of(task: Task, target: Lun) -> Pair:
    return next(pair for pair in task.pairs if pair.target == target.uuid)


def trouble(document: Document, observed: Observed, task: Task) -> ProviderVeto | None:
    """Why a task cannot end well, if it cannot."""
    present = {lun.uuid: lun for lun in document.luns}
    for target in targets(document, task):
        assert target.restore is not None
        undo = _pair_of(task, target).undo
        if undo is not None and undo not in present and not target.restore.begun:
            return ProviderVeto(
                f"the shadow copy of LUN {target.name!r} that was to undo the restore could not be taken",
                remedy="nothing was written yet: restore again",
            )
        source = present.get(target.restore.source)
        if source is None or source.shadow is None:
            return ProviderVeto(
                f"what LUN {target.name!r} is restored from is gone", remedy="take the shadow copy again"
            )
        if source.shadow.lost:
            return ProviderVeto(
                f"shadow copy {source.name!r} was lost while it was read: {source.shadow.lost}",
                remedy="choose another shadow copy; give the next one a larger --store",
            )
        if not observed.reachable(document, source):
            return ProviderVeto(
                f"shadow copy {source.name!r} lost more drives than it can do without while it was read",
                remedy="bring its drives, and its origin's, back; then restore again",
            )
        if not observed.survives(document, target):
            return ProviderVeto(
                f"LUN {target.name!r} lost more drives than it can do without while it was restored",
                remedy="bring its drives back, or restore onto a new name",
            )
        if isinstance(observed.store(source), SnapshotTrouble):
            return ProviderVeto(
                f"shadow copy {source.name!r} overflowed, or its store could not be written, while it was read",
                remedy="choose another shadow copy; give the next one a larger --store",
            )
        copy = copied(observed, target)
        if copy.source_failed:
            return ProviderVeto(
                f"shadow copy {source.name!r} cannot be read in places",
                remedy="see the kernel's log (journalctl -k); recover the LUNs whose drives have failed, then restore again",
            )
        if copy.destination_failed:
            return ProviderVeto(
                f"LUN {target.name!r} cannot be written in places",
                remedy="see the kernel's log (journalctl -k); recover it, then restore again",
            )
    return None


def restarted(document: Document, lun: Lun, ids: Iterator[UUID]) -> Document:
    """The document with a LUN's copy about to begin anew, its log on another drive. Raises: NotEnoughSpace."""
    restore = lun.restore
    assert restore is not None
    drive, log = geometry.place_log(document, frozenset([restore.drive] if restore.drive else []))
    fresh = msgspec.structs.replace(
        restore, uuid=next(ids), length=0, region=0, todo=0, drive=drive.uuid, log=log, written=restore.begun
    )
    return document.with_lun(msgspec.structs.replace(lun, restore=fresh))


def flushes(document: Document, observed: Observed, task: Task) -> tuple[Flush, ...]:
    """What is to be done when all is copied, before it is written down."""
    drives = {
        member.drive
        for lun in targets(document, task)
        for index, member in enumerate(lun.members)
        if index not in observed.lost(document, lun)
    }
    usable = sorted(drive for drive in drives if drive in observed.backings and document.drive_of(drive).online)
    return tuple(Flush(port_node(document, drive)) for drive in usable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What a comparison has found so far: `mismatch` in sectors, as md counts them, 64 KiB at a time."""

    done: Sectors
    total: Sectors
    mismatch: Sectors
    failed: bool
    complete: bool


def compared(observed: Observed, lun: Lun) -> Compared:
    """What the kernel says of the comparison that it was asked for. Where nothing was copied there is none; it is complete."""
    restore = lun.restore
    assert restore is not None
    raid = observed.comparison(restore)
    if raid is None:
        nothing = restore.todo == 0
        none = Sectors(0)
        return Compared(done=none, total=Sectors(restore.todo), mismatch=none, failed=not nothing, complete=nothing)
    failed = any(leg is not LegHealth.IN_SYNC for leg in raid.legs)
    ended = raid.action is SyncAction.IDLE and raid.done == raid.total
    done = raid.total if ended else raid.done
    return Compared(done=done, total=raid.total, mismatch=raid.mismatch, failed=failed, complete=ended and not failed)


def finished(document: Document, task: Task) -> Document:
    """The array when all is copied: targets are ready, as large as their sources; what was there for the copy's sake is gone."""
    back = tasks.phase(task) is Phase.UNDO
    for target in targets(document, task):
        assert target.restore is not None
        source = document.lun_of(target.restore.source)
        # What was not whole before is not whole when it is there again.
        whole = msgspec.structs.replace(target, restore=None, incomplete=target.incomplete if back else "")
        if task.kind is TaskKind.RESYNC and not back:
            assert source.shadow is not None
            whole = msgspec.structs.replace(whole, restored=source.shadow.taken)
        document = document.with_lun(geometry.shrunk(whole, source.size) if whole.size > source.size else whole)
    return _tidied(document, task)


def abandoned(document: Document, task: Task, why: str) -> Document:
    """The array when a task has come to nothing: targets that were written to are not ready, and say why; the others are as they
    were; what was made for the task's sake is gone.
    """
    for target in targets(document, task):
        assert target.restore is not None
        if _pair_of(task, target).made or task.kind is TaskKind.SNAPSHOT:
            document = document.without_unmade(target)
            continue
        reason = why if target.restore.begun or target.incomplete else ""
        document = document.with_lun(msgspec.structs.replace(target, restore=None, incomplete=reason))
    return _tidied(document, task)


def _tidied(document: Document, task: Task) -> Document:
    for lun in document.luns:
        if lun.uuid in task.temporary:
            document = document.without_lun(lun)
    return document


def undone(document: Document, task: Task, error: BlkrecovError, ids: Iterator[UUID]) -> Document | None:
    """The document with the task about to put back what was there before; None where that cannot be, or is under way.

    Raises: NotEnoughSpace for the copy's log.
    """
    if tasks.phase(task) is Phase.UNDO:
        return None
    present = {lun.uuid: lun for lun in document.luns}
    undos = {pair.target: present.get(pair.undo) if pair.undo else None for pair in task.pairs}
    begun = [target for target in targets(document, task) if target.restore is not None and target.restore.begun]
    if not begun or any(_is_useless(undos[target.uuid]) for target in begun):
        return None
    for target in targets(document, task):
        undo = undos[target.uuid]
        if undo is None or target not in begun:
            document = document.with_lun(msgspec.structs.replace(target, restore=None))
            continue
        document = document.with_lun(msgspec.structs.replace(target, restore=None))
        filled = shadows.filled(document, document.lun_of(target.uuid), undo, ids)
        assert filled.restore is not None
        going_back = msgspec.structs.replace(filled.restore, written=True)
        document = document.with_lun(msgspec.structs.replace(filled, restore=going_back))
    return document.with_task(tasks.turned_back(task, error))


def _is_useless(undo: Lun | None) -> bool:
    return undo is None or undo.shadow is None or bool(undo.shadow.lost)
