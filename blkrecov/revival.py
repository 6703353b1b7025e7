"""A LUN that had lost more members than it can do without, and whose members are back: which of them may serve again. Pure.

From the moment at which it had lost too much no write was acknowledged. Those that served until then hold all that ever was, so
they are to be trusted; members that had failed earlier have missed writes. Who served is in the superblocks: before the kernel
acknowledges a write that a leg misses, it writes into all other superblocks that this leg has failed (drivers/md/md.c,
md_update_sb(), MD_SB_CHANGE_PENDING). So the freshest superblock that tells of a state in which the LUN could serve tells of
the last such state.

Some of those that served may be away still. That is no matter as long as those that are here are enough, and would have been told
of every state in which one of them did not serve. They may have been told and have it overwritten since: the freshest says
who had failed in the end, and not in which order. So one that it calls failed is trusted only where nobody who is away could know
better.

A raid10 that has lost a pair goes on writing to the others. There only the freshest superblock counts, and all must be here.

Whatever is chosen, what was being written at that moment may be torn, as after a power cut. With all members here the kernel
makes them equal again; a member that is regenerated from torn stripes is regenerated wrong there, if only in what was being
written beside it (the write hole of raid4, 5 and 6).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from blkrecov.dm.superblock import Superblock
from blkrecov.model import Layout, Lun, MemberState

Superblocks = Mapping[UUID, Superblock | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The members that may serve, by index; none where that would be to choose. `why` is for people."""

    trusted: frozenset[int]
    why: str
    forced: bool = False


def judge(lun: Lun, superblocks: Superblocks, here: frozenset[int], *, force: bool = False) -> Verdict:
    """`here` are the members whose drives are online. Forced, those that failed last serve, whatever they have missed."""
    served = frozenset(index for index, member in enumerate(lun.members) if member.state is MemberState.IN_SYNC)
    known = {index: head for index in here if (head := _whole(lun, index, superblocks)) is not None}
    heads = {index: head for index, head in known.items() if index in served}
    failed = _last_failed(lun, heads)
    # One that the document calls unfinished may be whole by now, and have served.
    unfinished = frozenset(
        index
        for index in lun.rebuilding
        if (head := superblocks.get(lun.members[index].uuid)) is not None and head.recovery_offset is not None
    )
    everyone = frozenset(range(len(lun.members)))
    if failed is not None:
        trusted = everyone - failed
        present = trusted & frozenset(known)
        enough = lun.layout.survives(len(lun.members), everyone - present)
        if enough and not _may_have_missed(lun, present, failed, trusted - present, known, heads, unfinished):
            return Verdict(present, _told(lun, present, known))
    if force:
        return _forced(lun, known, everyone)
    away = sorted(served - frozenset(known))
    missing = ", ".join(map(str, away))
    return Verdict(
        frozenset(), f"member {missing} is missing, and served last" if away else "its superblocks do not agree"
    )


def _whole(lun: Lun, index: int, superblocks: Superblocks) -> Superblock | None:
    """A member's superblock, if it is this member's, and that of one that was in sync."""
    head = superblocks.get(lun.members[index].uuid)
    if head is None or head.position != index or head.legs != len(lun.members) or head.recovery_offset is not None:
        return None
    return head


def _last_failed(lun: Lun, known: Mapping[int, Superblock]) -> frozenset[int] | None:
    """The members that did not serve in the last state on record in which the LUN could; None where there is no such record."""
    for head in sorted(known.values(), key=lambda head: -head.events):
        failed = head.lost | lun.lost | lun.rebuilding
        if lun.layout.survives(len(lun.members), failed):
            return failed
        if lun.layout is Layout.RAID10:
            break
    return None


def _may_have_missed(
    lun: Lun,
    present: frozenset[int],
    failed: frozenset[int],
    unseen: frozenset[int],
    known: Mapping[int, Superblock],
    heads: Mapping[int, Superblock],
    unfinished: frozenset[int],
) -> bool:
    """Whether one that would be trusted may have failed while others went on."""
    count = len(lun.members)
    for index in present:
        for head in known.values():
            # By whomever: one that the document calls lost has served after that as well.
            told = index in head.lost and head.events > known[index].events
            if told and lun.layout.survives(count, head.lost | unfinished):
                return True
    if not unseen:
        return False
    if lun.layout is Layout.RAID10:
        return True
    in_the_end = max(heads.values(), key=lambda head: head.events).lost
    if any(lun.layout.survives(count, failed | {index}) for index in present & in_the_end):
        return True
    return lun.layout.survives(count, frozenset(range(count)) - unseen)


def _forced(lun: Lun, known: Mapping[int, Superblock], everyone: frozenset[int]) -> Verdict:
    """Those that failed last, as few as it takes: each one more would be one more that has missed something."""
    chosen: frozenset[int] = frozenset()
    for index in sorted(
        known, key=lambda index: (lun.members[index].state is MemberState.FAILED, -known[index].events)
    ):
        chosen |= {index}
        if lun.layout.survives(len(lun.members), everyone - chosen):
            why = f"forced, with what members {_names(chosen)} have: what they missed is lost"
            return Verdict(chosen, why, forced=True)
    return Verdict(frozenset(), f"not even members {_names(frozenset(known))} together are enough")


def _told(lun: Lun, trusted: frozenset[int], known: Mapping[int, Superblock]) -> str:
    events = ", ".join(f"{index}: {known[index].events}" for index in sorted(known))
    rest = frozenset(range(len(lun.members))) - trusted
    missed = f"; {_names(rest)} missed writes before that" if rest else ""
    return f"members {_names(trusted)} served until it failed (event counters {events}){missed}"


def _names(members: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(members))) or "none"
