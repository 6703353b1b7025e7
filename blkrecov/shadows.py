"""Shadow copies made, and what they take. Pure: each function says what is wanted, or why not.

A differential shadow copy is a LUN whose plex is a store: the kernel puts there what its origin is about to overwrite
(drivers/md/dm-snap.c). All shadow copies of one call are of one moment. A plex is filled from a differential one that goes
when it is whole: the same copy that restores a LUN (blkrecov.resync).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec

from blkrecov import geometry, provision, tasks
from blkrecov.dm import cow, names
from blkrecov.errors import InsufficientStorage, InvalidArgument, InvalidOperation, NotEnoughDrives, NotEnoughSpace
from blkrecov.geometry import Request
from blkrecov.model import UNIT, Document, Layout, Lun, Pair, Phase, Restore, Shadow, Task, TaskKind
from blkrecov.observed import Observed
from blkrecov.proposal import Proposal
from blkrecov.stack import port_node
from blkrecov.steps import DiscardExtent, Step, ZeroExtent
from blkrecov.units import KIB, MIB, Bytes, Sectors, format_size, in_bytes, round_up, sectors

# What an origin's first write to a chunk copies.
CHUNK: Final = Bytes(64 * KIB)
LEAST_CHUNK: Final = Bytes(4 * KIB)
LARGEST_CHUNK: Final = Bytes(512 * KIB)
# A store of this part of its origin, unless another size is asked for.
STORE_PARTS: Final = 5
LEAST_STORE: Final = Bytes(16 * MIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowRequest:
    """A shadow copy that somebody wants. `size` is the store's, in bytes; `layout` the store's, or the plex's."""

    origin: str
    name: str
    plex: bool = False
    size: Bytes | None = None
    chunk: Bytes = CHUNK
    layout: Layout | None = None
    drives: tuple[str, ...] = ()
    exported: bool = True


def propose(
    document: Document,
    observed: Observed,
    requests: Sequence[ShadowRequest],
    ids: Iterator[UUID],
    discards: frozenset[UUID] = frozenset(),
) -> tuple[Proposal, Task | None]:
    """Shadow copies of one moment, and the task that fills those that are plexes, if any are. `discards` are the drives whose
    space reads as zeros once it is discarded.

    Raises: InvalidArgument; ObjectNotFound and ObjectDeleted; ObjectExists; InvalidOperation for an origin that has no contents
            of its own, or none that could be read; AnotherCallInProgress; InsufficientStorage.
    """
    if not requests:
        raise InvalidArgument("no LUN is named", remedy="name a LUN, and the shadow copy that is to be taken of it")
    made: list[Lun] = []
    pairs: list[Pair] = []
    prepare: list[Step] = []
    for number, request in enumerate(requests):
        origin = document.lun(request.origin)
        _refuse_unfit(document, observed, origin)
        names.check_name(names.NameKind.LUN, request.name)
        provision.refuse_taken(document, request.name)
        if request.plex:
            base = _differential(document, origin, _base(request, document.next_task, number), ids)
            document = document.with_lun(base)
            plex, blanking = _plex(document, origin, request, base, ids, discards)
            prepare += blanking
            document = document.with_lun(plex)
            pairs.append(Pair(source=base.uuid, target=plex.uuid))
            made += [base, plex]
        else:
            shadow = _differential(document, origin, request, ids)
            document = document.with_lun(shadow)
            made.append(shadow)
    task = None
    if pairs:
        task = tasks.started(
            Task(
                id=document.next_task,
                kind=TaskKind.SNAPSHOT,
                lun=pairs[0].target,
                objects=tuple(document.lun_of(pair.target).name for pair in pairs),
                phases=(Phase.RESTORE,),
                pairs=tuple(pairs),
                temporary=tuple(pair.source for pair in pairs),
            )
        )
        document = document.with_task(task)
    words = ", ".join(f"{request.name} of LUN {request.origin}" for request in requests)
    proposal = Proposal(
        document=document,
        why=f"shadow copies: {words}",
        prepare=(*cleared(document, made), *prepare),
        others=frozenset(lun.uuid for lun in made),
    )
    return proposal, task


def _refuse_unfit(document: Document, observed: Observed, origin: Lun) -> None:
    if origin.differential:
        raise InvalidOperation(
            f"LUN {origin.name!r} is a differential shadow copy: there are none of such a one",
            remedy="take one of its origin, or restore it onto a LUN of its own",
        )
    provision.refuse_busy(document, origin)
    if not origin.ready or not observed.reachable(document, origin):
        raise InvalidOperation(
            f"LUN {origin.name!r} has no whole contents: {origin.incomplete or 'it has failed'}",
            remedy="bring its drives back, or restore it, first",
        )


def _base(request: ShadowRequest, task: int, number: int) -> ShadowRequest:
    """What a plex is filled from."""
    return ShadowRequest(origin=request.origin, name=f"base-{task}-{number}", size=request.size, exported=False)


def undo(document: Document, target: Lun, name: str, needed: int, ids: Iterator[UUID]) -> Lun:
    """A shadow copy of a LUN that is about to be restored, with a store for `needed` sectors of its contents."""
    size = in_bytes(cow.store_length(-(-needed // sectors(CHUNK)), sectors(CHUNK)))
    request = ShadowRequest(origin=target.name, name=name, size=Bytes(max(size, MIB)), exported=False)
    return _differential(document, target, request, ids)


def _differential(document: Document, origin: Lun, request: ShadowRequest, ids: Iterator[UUID]) -> Lun:
    if request.chunk.bit_count() != 1 or not LEAST_CHUNK <= request.chunk <= LARGEST_CHUNK:
        raise InvalidArgument(
            f"chunks of {request.chunk} bytes are none that a store can have",
            remedy=f"give a power of two from {format_size(LEAST_CHUNK)} to {format_size(LARGEST_CHUNK)}",
        )
    chunk = sectors(request.chunk)
    others = [other.shadow.chunk for other in document.shadows_of(origin.uuid) if other.shadow is not None]
    if any(other != chunk for other in others):
        raise InvalidArgument(
            f"LUN {origin.name!r} has shadow copies with chunks of {format_size(in_bytes(Sectors(others[0])))}",
            remedy="give all shadow copies of a LUN the same chunk",
        )
    most = in_bytes(cow.store_length(-(-origin.size // chunk), chunk))
    size = request.size or max(LEAST_STORE, Bytes(origin.bytes // STORE_PARTS))
    layout = request.layout or (Layout.RAID1 if origin.layout.fault_tolerant else Layout.LINEAR)
    store = _placed(document, request, layout, Bytes(min(size, round_up(most, in_bytes(UNIT)))), ids)
    return msgspec.structs.replace(store, size=origin.size, shadow=Shadow(origin=origin.uuid, chunk=chunk))


def _plex(
    document: Document,
    origin: Lun,
    request: ShadowRequest,
    base: Lun,
    ids: Iterator[UUID],
    discards: frozenset[UUID],
) -> tuple[Lun, tuple[DiscardExtent, ...]]:
    lun = _placed(document, request, request.layout or origin.layout, origin.bytes, ids)
    lun = msgspec.structs.replace(lun, shadow=Shadow(origin=origin.uuid))
    steps = blanked(document, lun, discards)
    try:
        return filled(document.with_lun(lun), lun, base, ids, blank=bool(steps)), steps
    except NotEnoughSpace as error:
        raise InsufficientStorage(error.message, remedy=error.remedy) from error


def blanked(document: Document, lun: Lun, discards: frozenset[UUID]) -> tuple[DiscardExtent, ...]:
    """What makes a new LUN read as zeros, so that holes need not be copied; nothing where one of its drives could not."""
    if any(member.drive not in discards for member in lun.members):
        return ()
    return tuple(
        DiscardExtent(port_node(document, member.drive), extent) for member in lun.members for extent in member.data
    )


def filled(
    document: Document, lun: Lun, source: Lun, ids: Iterator[UUID], *, signature: str = "", blank: bool = False
) -> Lun:
    """The LUN as what a shadow copy's contents are to be put on. Raises: NotEnoughSpace for the copy's log."""
    drive, log = geometry.place_log(document)
    restore = Restore(uuid=next(ids), source=source.uuid, drive=drive.uuid, log=log, signature=signature, blank=blank)
    return msgspec.structs.replace(lun, restore=restore)


def _placed(document: Document, request: ShadowRequest, layout: Layout, size: Bytes, ids: Iterator[UUID]) -> Lun:
    try:
        return geometry.place(
            document,
            Request(name=request.name, layout=layout, size=size, drives=request.drives, exported=request.exported),
            ids,
        )
    except (NotEnoughSpace, NotEnoughDrives) as error:
        remedy = f"{error.remedy}; or give a smaller --store, or --layout linear"
        raise InsufficientStorage(f"shadow copy {request.name!r}: {error.message}", remedy=remedy) from error


def cleared(document: Document, made: Sequence[Lun]) -> tuple[ZeroExtent, ...]:
    """What is to be zeroed before new LUNs are made: superblocks, and where a store's header is.

    A store is taken for an old one by its first chunk (drivers/md/dm-snap-persistent.c, read_header()).
    """
    steps = []
    for lun in made:
        for member in lun.members:
            port = port_node(document, member.drive)
            steps += [ZeroExtent(port, extent) for extent in member.meta]
            if lun.differential:
                steps.append(ZeroExtent(port, msgspec.structs.replace(member.data[0], length=int(UNIT))))
    return tuple(steps)


def extend(document: Document, lun: Lun, size: Bytes, ids: Iterator[UUID]) -> Proposal:
    """A differential shadow copy with a larger store, while it is used.

    Raises: InvalidOperation for a LUN that has no store, or whose store was full before; what provision.extend() does.
    """
    if lun.shadow is None or not lun.differential:
        raise InvalidOperation(f"LUN {lun.name!r} has no store that could be larger", remedy="see: blkrecov lun extend")
    if lun.shadow.lost:
        raise InvalidOperation(
            f"shadow copy {lun.name!r} has lost its contents: {lun.shadow.lost}",
            remedy=f"delete it with: blkrecov snapshot delete {lun.name}",
        )
    # The store as a LUN like any other: its plex is its size.
    bare = msgspec.structs.replace(lun, size=geometry.plex_length(lun), shadow=None)
    try:
        proposal = provision.extend(document, bare, size, ids)
    except NotEnoughSpace as error:
        raise InsufficientStorage(error.message, remedy=error.remedy) from error
    grown = msgspec.structs.replace(proposal.document.lun_of(lun.uuid), size=lun.size, shadow=lun.shadow)
    store = format_size(in_bytes(geometry.plex_length(grown)))
    return Proposal(
        document=document.with_lun(grown),
        why=f"the store of {lun.name} grows to {store}",
        prepare=proposal.prepare,
        lun=lun.uuid,
    )


def stamped(document: Document, observed: Observed, now: int) -> Document:
    """The document with the moment of shadow copies that the kernel has, and that had none yet."""
    for lun in document.luns:
        if lun.shadow is not None and not lun.shadow.taken and observed.store(lun) is not None:
            document = document.with_lun(_taken(lun, now))
    # A plex shows the moment of what it is filled from.
    for task in document.tasks:
        for pair in task.pairs if task.kind is TaskKind.SNAPSHOT and not task.state.ended else ():
            plex = document.lun_of(pair.target)
            if plex.shadow is not None and not plex.shadow.taken:
                document = document.with_lun(_taken(plex, now))
    return document


def _taken(lun: Lun, now: int) -> Lun:
    assert lun.shadow is not None
    return msgspec.structs.replace(lun, shadow=msgspec.structs.replace(lun.shadow, taken=now))
