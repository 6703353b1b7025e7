"""Revival: which members of a LUN that had lost too much may serve again. Nothing that was acknowledged is ever lost by that."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blkrecov.dm.superblock import Superblock
from blkrecov.model import Layout, Lun, MemberState
from blkrecov.revival import judge
from tests.unit.arrays import FAULT_TOLERANT, drives, with_lun, with_states

GOOD, LOST, REBUILDING = MemberState.IN_SYNC, MemberState.FAILED, MemberState.REBUILDING


def lun_of(layout: Layout) -> Lun:
    return with_lun(drives(6), layout)[1]


def known(lun: Lun, *words: tuple[int, int] | None) -> Mapping[UUID, Superblock | None]:
    """Superblocks by (events, bits of failed members), None for a member whose drive is away."""
    return {
        member.uuid: Superblock(
            legs=len(lun.members),
            position=index,
            events=word[0],
            failed=word[1],
            recovery_offset=None,
            resync_offset=None,
        )
        for index, (member, word) in enumerate(zip(lun.members, words, strict=True))
        if word is not None
    }


def trusted(lun: Lun, *words: tuple[int, int] | None, force: bool = False) -> set[int]:
    here = frozenset(index for index, word in enumerate(words) if word is not None)
    return set(judge(lun, known(lun, *words), here, force=force).trusted)


def test_those_that_served_last_serve_again() -> None:
    """A raid5 loses member 0 at event 7, and member 1 at event 9: nothing was acknowledged after that."""
    assert trusted(lun_of(Layout.RAID5), (7, 0b000), (9, 0b001), (12, 0b011)) == {1, 2}


def test_what_fails_at_one_blow_has_missed_nothing() -> None:
    """Only the survivor was told."""
    assert trusted(lun_of(Layout.RAID5), (7, 0b000), (7, 0b000), (9, 0b011)) == {0, 1, 2}


@pytest.mark.parametrize(
    "words", [(None, (9, 0b001), (12, 0b011)), ((7, 0b000), (9, 0b001), (12, 0b011))], ids=["away", "back"]
)
def test_a_member_that_had_failed_before_is_not_waited_for(words: tuple[tuple[int, int] | None, ...]) -> None:
    """It serves neither when it is back."""
    assert trusted(lun_of(Layout.RAID5), *words) == {1, 2}


def test_one_that_may_have_served_alone_is_waited_for() -> None:
    """The other half of a mirror may have been written to since."""
    lun = lun_of(Layout.RAID1)
    assert trusted(lun, (7, 0), None) == set()
    assert trusted(lun, (7, 0), (9, 0b01)) == {1}


def test_one_that_cannot_have_served_alone_is_not() -> None:
    """A raid6 of four needs two; whatever the one that is away has seen, one of these has seen it too."""
    lun = lun_of(Layout.RAID6)
    assert trusted(lun, (7, 0), (7, 0), (7, 0), None) == {0, 1, 2}


def test_what_the_document_calls_lost_or_unfinished_never_serves() -> None:
    """Whatever their superblocks say: another array's may lie there."""
    lun = with_states(lun_of(Layout.RAID6), LOST, REBUILDING, GOOD, GOOD)
    assert trusted(lun, (99, 0), (99, 0), (9, 0b11), (9, 0b11)) == {2, 3}


@pytest.mark.parametrize("change", [{"position": 1}, {"legs": 9}, {"recovery_offset": 4096}])
def test_a_superblock_of_somebody_else_proves_nothing(change: dict[str, int]) -> None:
    lun = lun_of(Layout.RAID5)
    words = dict(known(lun, (7, 0), (7, 0), None))
    first = words[lun.members[0].uuid]
    assert first is not None
    values = {name: getattr(first, name) for name in first.__dataclass_fields__} | change
    words[lun.members[0].uuid] = Superblock(**values)
    assert not judge(lun, words, frozenset({0, 1})).trusted


def test_forced_those_serve_that_failed_last() -> None:
    """As few as it takes; one that the document calls lost only where there is no other."""
    lun = with_states(lun_of(Layout.RAID5), LOST, GOOD, GOOD)
    assert trusted(lun, (7, 0), None, (12, 0b011), force=True) == {0, 2}
    assert trusted(lun_of(Layout.RAID1), (7, 0), None, force=True) == {0}
    assert trusted(lun_of(Layout.RAID5), (7, 0), None, None, force=True) == set()


@dataclass
class World:
    """A LUN whose members fail, alone or together, while it is written to. What md does, as far as it matters here."""

    lun: Lun
    alive: set[int] = field(default_factory=set)
    marked: set[int] = field(default_factory=set)
    """Those that the kernel has given up: of a raid10's pair never both."""
    seen: list[int] = field(default_factory=list)
    """The last acknowledged write that each member has."""
    words: list[tuple[int, int]] = field(default_factory=list)
    events: int = 7
    acknowledged: list[int] = field(default_factory=list)
    """By member: what it would have, had it never failed."""

    def __post_init__(self) -> None:
        self.alive = set(range(len(self.lun.members)))
        self.seen = [0] * len(self.alive)
        self.acknowledged = [0] * len(self.alive)
        self.words = [(self.events, 0)] * len(self.alive)

    @property
    def lost(self) -> frozenset[int]:
        return frozenset(range(len(self.lun.members))) - self.alive

    @property
    def serves(self) -> bool:
        return self.lun.layout.survives(len(self.lun.members), self.lost)

    def write(self) -> None:
        """All of it; of a raid10 the pairs that are there are written to whatever the others do."""
        for index in range(len(self.seen)):
            of_pair = self.lun.layout is Layout.RAID10 and {index, index ^ 1} & self.alive
            if self.serves or of_pair:
                self.acknowledged[index] += 1
                if index in self.alive:
                    self.seen[index] = self.acknowledged[index]

    def fail(self, blow: frozenset[int], *, noted: bool) -> None:
        before = self.lost
        self.alive -= blow
        self.events += 2
        for index in sorted(blow):
            if self.lun.layout is not Layout.RAID10 or index ^ 1 not in self.marked:
                self.marked.add(index)
        for index in self.alive:
            self.words[index] = (self.events, sum(1 << other for other in self.marked))
        if noted:
            for index in self.lun.layout.misses(len(self.seen), before, blow) | (
                before if self.serves else frozenset()
            ):
                self.lun = self.lun.with_member(
                    index, msgspec.structs.replace(self.lun.members[index], state=MemberState.FAILED)
                )


@settings(max_examples=400)
@given(data=st.data(), layout=st.sampled_from(FAULT_TOLERANT))
def test_no_acknowledged_write_is_lost_however_members_failed(data: st.DataObject, layout: Layout) -> None:
    """Whoever may serve again has all of them, and they are enough; with all drives back there are always some."""
    world = World(lun_of(layout))
    everyone = frozenset(range(len(world.lun.members)))
    while world.serves or (layout is Layout.RAID10 and world.alive and data.draw(st.booleans(), "goes on")):
        if data.draw(st.booleans(), "write"):
            world.write()
        blow = data.draw(st.frozensets(st.sampled_from(sorted(world.alive)), min_size=1), "fail")
        world.fail(blow, noted=data.draw(st.booleans(), "noted"))
        world.write()
    here = data.draw(st.frozensets(st.sampled_from(sorted(everyone))) | st.just(everyone), "back")
    words = [word if index in here else None for index, word in enumerate(world.words)]
    verdict = judge(world.lun, known(world.lun, *words), here)
    assert all(world.seen[index] == world.acknowledged[index] for index in verdict.trusted)
    assert verdict.why
    if verdict.trusted:
        assert verdict.trusted <= here
        assert layout.survives(len(everyone), everyone - verdict.trusted)
    elif layout is not Layout.RAID10:
        assert here != everyone


def test_one_that_served_in_between_and_is_away_is_waited_for() -> None:
    """Members 0 and 1 failed one after the other; what 2 was told of the first it was told over by the second."""
    lun = lun_of(Layout.RAID5)
    assert trusted(lun, (7, 0b000), None, (11, 0b011)) == set()
    assert trusted(lun, (7, 0b000), (9, 0b001), (11, 0b011)) == {1, 2}


def test_one_that_the_document_calls_lost_may_know_who_failed_before_it() -> None:
    """It was made to fail before anybody had looked."""
    lun = with_states(lun_of(Layout.RAID5), GOOD, LOST, GOOD)
    assert trusted(lun, (7, 0b000), (9, 0b001), (11, 0b011)) == set()


@pytest.mark.parametrize(("offset", "serve"), [(4096, {0, 2, 3}), (None, set())], ids=["unfinished", "whole by now"])
def test_a_lun_that_failed_while_a_member_was_regenerated(offset: int | None, serve: set[int]) -> None:
    """The kernel calls the other one failed, and not that one. If that one was whole, the LUN went on without the other."""
    lun = with_states(with_lun(drives(6), Layout.RAID5, members=4)[1], GOOD, REBUILDING, GOOD, GOOD)
    words = dict(known(lun, (11, 0b0100), (11, 0b0100), (9, 0b0000), (11, 0b0100)))
    unfinished = words[lun.members[1].uuid]
    assert unfinished is not None
    words[lun.members[1].uuid] = replace(unfinished, recovery_offset=offset)
    assert set(judge(lun, words, frozenset(range(4))).trusted) == serve
