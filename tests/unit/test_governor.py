"""How fast a synchronisation may be, by what is seen of everybody else."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.governor import CEILING, FLOOR, LONGEST_QUIET_S, MD_MINIMUM, QUIET_S, Governor, Limits, Sample
from blkrecov.units import KIB, MIB, Bytes

FAST = 400 * MIB
"""What the synchronisation of these tests reaches when nothing holds it."""
NOBODY = (0, 0.0)
A_LITTLE = MIB


def run(governor: Governor, *seconds: tuple[int, float | None]) -> list[Governor]:
    """The governor after each second in which others moved so many bytes, with this pressure at its end."""
    sample = governor.last or Sample(at_s=1000.0, foreign=0, moved={"253:1": 0})
    found, governor = [], governor.after(sample)
    for foreign, pressure in seconds:
        sample = replace(
            sample,
            at_s=sample.at_s + 1,
            foreign=sample.foreign + foreign,
            moved={leg: there + min(governor.limits.maximum, FAST) for leg, there in sample.moved.items()},
            pressure=pressure,
        )
        governor = governor.after(sample)
        found.append(governor)
    return found


def maxima(governors: list[Governor]) -> list[int]:
    return [governor.limits.maximum for governor in governors]


def mib(governors: list[Governor]) -> list[int]:
    return [maximum // MIB for maximum in maxima(governors)]


def test_nobody_else_means_no_brakes() -> None:
    """md's stock ceiling of 200 MB/s is not what an idle machine waits for. Before the first sample as well."""
    assert Governor().limits == Limits(minimum=MD_MINIMUM, maximum=CEILING)
    assert maxima(run(Governor(), *[NOBODY] * 30)) == [CEILING] * 30


def test_somebody_who_waits_is_given_way_at_once_and_down_to_the_floor() -> None:
    """Half of the speed that was measured, then half of that. Never nothing: a LUN must not stay degraded for ever."""
    assert mib(run(Governor(), NOBODY, *[(A_LITTLE, 50.0)] * 8)) == [CEILING // MIB, 200, 100, 50, 25, 12, 10, 10, 10]


def test_a_lowering_is_not_measured_against_the_standstill_that_it_causes() -> None:
    """md stops until its average over half a minute is below the limit. That is no reason to ask for less."""
    governor = Governor().after(Sample(at_s=0, foreign=0, moved={"253:1": 0}))
    governor = governor.after(Sample(at_s=1, foreign=A_LITTLE, moved={"253:1": FAST}))
    governor = governor.after(Sample(at_s=2, foreign=2 * A_LITTLE, moved={"253:1": FAST}))
    assert governor.limits.maximum == 100 * MIB


def test_the_slow_are_given_way_as_well() -> None:
    """The first limit comes from what was measured: half of the ceiling would hold nobody."""
    governor = Governor().after(Sample(at_s=0, foreign=0, moved={"253:1": 0, "253:2": 0}))
    governor = governor.after(Sample(at_s=2, foreign=A_LITTLE, moved={"253:1": 10 * MIB, "253:2": 80 * MIB}))
    assert governor.limits.maximum == 20 * MIB


@pytest.mark.parametrize(
    ("foreign", "pressure", "gives_way"),
    [
        (A_LITTLE, None, True),  # Nobody can tell, so the safe side.
        (A_LITTLE, 10.0, True),
        (A_LITTLE, 9.0, False),
        (A_LITTLE, 0.0, False),
        (20 * MIB, 0.0, True),  # An initiator elsewhere waits elsewhere.
        (63 * KIB, 99.0, False),  # Whoever waits, it is not for these drives.
    ],
)
def test_who_is_given_way(foreign: int, pressure: float | None, gives_way: bool) -> None:
    """PSI says whether this machine's tasks wait for I/O at all; only the counters say whether it is for these drives."""
    (governor,) = run(Governor(), (foreign, pressure))
    assert (governor.limits.maximum < CEILING) is gives_way


def test_all_brakes_are_off_soon_after_the_last_of_the_others() -> None:
    """In one step: md takes half a second to notice."""
    governors = run(Governor(), (A_LITTLE, 50.0), NOBODY, NOBODY)
    assert mib(governors) == [200, 200, CEILING // MIB]


def test_whoever_comes_every_few_seconds_is_not_met_at_full_speed_each_time() -> None:
    """The kernel writes back every five seconds, so most of what writes comes and goes. The quiet asked for doubles, to 16 s."""
    period = [(A_LITTLE, 50.0), *[NOBODY] * 4]
    freed = [
        second
        for second, (one, other) in enumerate(pairwise(run(Governor(), *period * 40)))
        if other.limits.maximum > one.limits.maximum
    ]
    assert freed == [1, 8]


def test_long_after_that_a_newcomer_is_a_newcomer() -> None:
    """Patience is for those who come back soon."""
    regular = run(Governor(), *[(A_LITTLE, 50.0), *[NOBODY] * 4] * 3)[-1]
    assert regular.patience_s > QUIET_S
    assert run(regular, *[NOBODY] * 40, (A_LITTLE, 50.0))[-1].patience_s == QUIET_S


def test_somebody_at_ease_leaves_room_for_more_and_more() -> None:
    """A little every second, once PSI's ten seconds tell of what is now; and a limit above what can be reached is none."""
    lowered = run(Governor(), *[(A_LITTLE, 50.0)] * 6)
    assert mib(lowered)[-1] == 10
    eased = run(lowered[-1], *[(A_LITTLE, 1.0)] * 50)
    assert mib(eased)[:6] == [10, 10, 10, 10, 20, 30]
    assert mib(eased)[-1] == CEILING // MIB


def test_between_pressure_and_ease_nothing_moves() -> None:
    """Else it would go up and down around one number."""
    lowered = run(Governor(), (A_LITTLE, 50.0), (A_LITTLE, 50.0))[-1]
    assert set(mib(run(lowered, *[(A_LITTLE, 7.0)] * 60))) == {100}


def test_what_may_be_the_synchronisation_itself_is_not_somebody() -> None:
    """Counters are not read at one moment: what may have moved in between says nothing of others."""
    first = Sample(at_s=0, foreign=-3 * MIB, doubt=3 * MIB, moved={"253:1": 0})
    second = Sample(at_s=1, foreign=0, doubt=0, moved={"253:1": 2000 * MIB}, pressure=50.0)
    assert Governor().after(first).after(second).limits.maximum == CEILING


def test_other_devices_are_another_beginning() -> None:
    """A recovery that has begun or ended changes the sums; their difference would be a terabyte of somebody."""
    governor = run(Governor(), (A_LITTLE, 50.0))[-1]
    assert governor.last is not None
    later = replace(governor.last, at_s=governor.last.at_s + 1, foreign=2**40)
    for other in (replace(later, moved={"253:9": 5}), replace(later, devices=frozenset({"253:0"}))):
        assert governor.after(other).limits == governor.limits
        assert governor.after(other).last == other


def test_the_wanted_limits_are_kept() -> None:
    """The least even if somebody waits, the most even if nobody does."""
    governor = Governor(rate_min=30 * MIB, rate_max=60 * MIB)
    assert governor.limits == Limits(minimum=Bytes(30 * MIB), maximum=Bytes(60 * MIB))
    pressed = run(governor, *[(A_LITTLE, 50.0)] * 3)[-1]
    assert pressed.limits == Limits(minimum=Bytes(30 * MIB), maximum=Bytes(30 * MIB))


def test_a_wanted_maximum_goes_before_every_minimum() -> None:
    """md would take a minimum above it for the only limit (drivers/md/md.c, md_do_sync())."""
    assert Governor(rate_max=MIB // 2).limits == Limits(minimum=Bytes(MIB // 2), maximum=Bytes(MIB // 2))
    assert Governor(rate_min=3 * MIB, rate_max=MIB).limits == Limits(minimum=Bytes(MIB), maximum=Bytes(MIB))


def test_what_the_machine_gives_to_every_synchronisation_is_not_taken_from_ours() -> None:
    """Its operator has raised md's minimum; a maximum below that would lower it."""
    governor = Governor(usual_minimum=50 * MIB)
    pressed = run(governor, *[(A_LITTLE, 50.0)] * 9)[-1]
    assert pressed.limits == Limits(minimum=Bytes(50 * MIB), maximum=Bytes(50 * MIB))


_SECONDS = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 500 * MIB)),
        st.one_of(st.none(), st.sampled_from((0.0, 7.0, 50.0)), st.floats(0, 100)),
    ),
    max_size=120,
)
_GOVERNORS = st.builds(
    Governor,
    rate_min=st.one_of(st.just(0), st.integers(1, 2**41)),
    rate_max=st.one_of(st.just(0), st.integers(1, 2**41)),
    usual_minimum=st.integers(KIB, 2**41),
)


@given(_GOVERNORS, _SECONDS)
def test_limits_are_always_between_floor_and_ceiling(
    governor: Governor, seconds: list[tuple[int, float | None]]
) -> None:
    """Whatever is measured, and whatever was wished for: the kernel takes any number, so nobody else would object."""
    for each in run(governor, *seconds):
        limits = each.limits
        assert 0 < limits.minimum <= limits.maximum
        assert governor.floor <= limits.maximum <= governor.ceiling <= CEILING


@given(_SECONDS)
def test_it_never_swings_with_each_sample(seconds: list[tuple[int, float | None]]) -> None:
    """After a lowering nothing rises for two seconds, whatever comes. And md would not follow."""
    found = maxima([Governor(), *run(Governor(), *seconds)])
    moves = [(second, after - before) for second, (before, after) in enumerate(pairwise(found)) if after != before]
    for (lowered_s, down), (raised_s, up) in pairwise(moves):
        if down < 0 < up:
            assert raised_s - lowered_s >= QUIET_S


@given(_SECONDS)
def test_quiet_always_ends_with_all_brakes_off(seconds: list[tuple[int, float | None]]) -> None:
    """No history is held against a machine that is idle for 16 seconds."""
    last = run(Governor(), *seconds, *[NOBODY] * int(LONGEST_QUIET_S))[-1]
    assert last.limits.maximum == CEILING


@given(_SECONDS)
def test_pressure_that_stays_always_ends_at_the_floor(seconds: list[tuple[int, float | None]]) -> None:
    """Six halvings of 400 MiB/s."""
    last = run(Governor(), *seconds, *[(A_LITTLE, 50.0)] * 6)[-1]
    assert last.limits.maximum == FLOOR


@given(_SECONDS, st.integers(2, 5))
def test_looking_more_often_changes_nothing(seconds: list[tuple[int, float | None]], times: int) -> None:
    """Samples that are too close together are left out, so the pace of a loop is not that of the halvings."""
    once = run(Governor(), *seconds)
    governor = once[-1] if once else Governor().after(Sample(at_s=0.0, foreign=0, moved={"253:1": 0}))
    assert governor.last is not None
    for number in range(1, times):
        near = replace(
            governor.last, at_s=governor.last.at_s + number * 0.05, foreign=governor.last.foreign + number * MIB
        )
        assert governor.after(near) == governor
