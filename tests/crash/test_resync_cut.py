"""The power goes while LUNs are restored from shadow copies. The next command that opens the array goes on with it, by itself.

One array lives through all the moments, and is overwritten and restored anew for each. Some of the cuts kill the guest; the
others, inside of it, take all devices away at one moment and begin another boot, which is cheaper and forgets no page cache. The
moments are spread over all of the call: effects before the copy, parts of the copy, effects after it.
"""

import random
from collections import Counter
from collections.abc import Callable
from typing import Final

import pytest

from blkrecov.units import KIB
from tests.crash.conftest import ROUNDS
from tests.crash.power import Json, Machine

DISKS_MIB: Final = (128,) * 4
MOMENTS: Final = {"start": 2, "copy": 3, "finish": 2} if ROUNDS <= 2 else {"start": 6, "copy": 8, "finish": 6}
"""By stage; their sum is how often the power goes."""
KILLS: Final = 1 if ROUNDS <= 2 else 6
SCENARIOS: Final = ("origin", "other", "both")
PER_BOOT_S: Final = 240.0
# Beside what is copied: the disk signature's page.
SIGNATURE: Final = 4 * KIB


def moments(chance: random.Random, times: int) -> list[tuple[int, str, str, float]]:
    """As many as asked for, in random order: of each stage as many, evenly spread, of each scenario in turn."""
    found: list[tuple[str, str, float]] = []
    for stage, count in MOMENTS.items():
        for number in range(count * times):
            scenario = SCENARIOS[len(found) % len(SCENARIOS)]
            found.append((scenario, stage, (number + chance.random()) / (count * times)))
    chance.shuffle(found)
    return [(number, *moment) for number, moment in enumerate(found, start=1)]


@pytest.fixture(scope="module")
def cuts(
    tmp_path_factory: pytest.TempPathFactory,
    chance: Callable[[str], random.Random],
    rounds: int,
    figure: Callable[[str], None],
) -> list[Json]:
    machine = Machine(tmp_path_factory.mktemp("resync") / "machine", DISKS_MIB)
    wanted = moments(chance("resync"), max(1, rounds // 3))
    boots = KILLS * max(1, rounds // 3) + 1
    share = -(-len(wanted) // boots)
    for boot in range(boots):
        here = wanted[boot * share : (boot + 1) * share]
        kill = here.pop() if boot < boots - 1 else None
        order: Json = {"boot": boot, "moments": here, "kill": kill}
        with machine.running("guest_resync", order) as guest:
            if kill is None:
                guest.finish(PER_BOOT_S)
            else:
                guest.until_marked(f"moment-{kill[0]}", PER_BOOT_S)
                guest.cut()
    found: list[Json] = machine.report()["found"]
    counts = machine.report()["counts"]
    machine.discard()
    for cut in found:
        figure(told(cut))
    hows = Counter(cut["how"] for cut in found)
    figure(
        f"power cuts during a resync: {len(found)}, {hows['killed']} by killing the guest, {hows['cut inside']} inside of it; "
        f"effects before and after the copy, by scenario: {counts}"
    )
    return found


def told(cut: Json) -> str:
    parts = [
        f"{name}: {each['dirty']} of {each['regions']} regions of {each['region'] // KIB} KiB left, "
        f"{cut['written'][name]} bytes written"
        for name, each in cut["copies"].items()
    ]
    where = "; ".join(parts) or {"": "not written down yet", "in_progress": "not seeded yet"}.get(
        cut["task"], cut["task"]
    )
    return f"moment {cut['number']}, {cut['scenario']}, {cut['stage']} {cut['far']:.2f}, {cut['how']}: {where}"


def test_the_power_goes_at_as_many_moments_as_asked_for(cuts: list[Json]) -> None:
    """Of these, one is a machine's whose memory is gone, or six. They meet a resync while it copies; twenty of them
    meet it in each of its states.
    """
    assert len(cuts) >= sum(MOMENTS.values())
    assert sum(cut["how"] == "killed" for cut in cuts) >= KILLS
    assert any(copying(cut) for cut in cuts), "none while the kernel copied"
    if ROUNDS > 2:
        assert any(under_way(cut) and len(cut["copies"]) < len(cut["targets"]) for cut in cuts), (
            "none before the logs were seeded"
        )
        assert any(copied(cut) for cut in cuts), "none between the copy and the end"


def under_way(cut: Json) -> bool:
    return bool(cut["task"] == "in_progress")


def copying(cut: Json) -> bool:
    """Some of it was copied, some was not."""
    left: int = sum(each["dirty"] for each in cut["copies"].values())
    whole: int = sum(each["regions"] for each in cut["copies"].values())
    return 0 < left < whole


def copied(cut: Json) -> bool:
    return len(cut["copies"]) == len(cut["targets"]) and not any(each["dirty"] for each in cut["copies"].values())


def test_a_resync_finishes_after_a_power_cut(cuts: list[Json]) -> None:
    """Without being asked to: whoever opens the array next takes it up. One that was not written down yet never happened."""
    for cut in cuts:
        if cut["task"]:
            assert cut["ended"] == "completed", told(cut)
        assert cut["contents"] == cut["after" if cut["task"] else "before"], told(cut)


def test_shadow_copies_are_as_they_were(cuts: list[Json]) -> None:
    """The sources, and the target's other shadow copy, which had to save what the copy overwrote."""
    for cut in cuts:
        assert {name: cut["contents"][name] for name in cut["sources"]} == cut["sources"], told(cut)


def test_a_target_is_not_readable_until_it_is_restored(cuts: list[Json]) -> None:
    """After the restart too, at its SCSI disk and at its node."""
    for cut in cuts:
        assert not any(cut["readable"].values()), told(cut)
        if under_way(cut) and cut["how"] == "cut inside":
            assert set(cut["readable"]) == set(cut["targets"]), told(cut)
    assert {name for cut in cuts for name in cut["readable"]} == {"a", "b"}


def test_a_copy_goes_on_at_the_region_where_it_was(cuts: list[Json]) -> None:
    """No more is written to a target than its log had as not copied when the power went."""
    for cut in cuts:
        for name, each in cut["copies"].items():
            assert cut["written"][name] <= each["dirty"] * each["region"] + SIGNATURE, told(cut)
        if cut["stage"] == "copy" and cut["far"] > 0.3:
            assert any(each["dirty"] < each["regions"] for each in cut["copies"].values()), told(cut)


def test_nothing_half_made_is_left(cuts: list[Json]) -> None:
    for cut in cuts:
        assert cut["wrong"] == [], told(cut)
