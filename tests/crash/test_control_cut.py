"""The control plane cut short at its points: by the process's end, and at some by the machine's.

A run takes a seeded sample of the operations, and of their points; with BLKRECOV_CRASH_ROUNDS=3 or more it takes them all.

What holds afterwards, whatever the point: the array opens; a second open finds nothing to do; no device, loop device or LIO
object is left that nobody wants; the LUNs hold what was written to them; the operation has happened or it has not, and if it has
not, the same command works now.
"""

import random
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.crash.conftest import ROUNDS, SEED
from tests.crash.power import Json, Machine

DISK_MIB: Final = 320
OF_EACH: Final = 2


def sampled(operations: tuple[str, ...]) -> tuple[str, ...]:
    chosen = random.Random(f"{SEED} {operations}").sample(operations, OF_EACH)
    return operations if ROUNDS > 2 else tuple(sorted(chosen, key=operations.index))


GROUPS: Final = (
    sampled(("create", "add", "remove", "extend", "delete", "fail", "recover")),
    sampled(("snapshot", "plex", "resync", "undo", "forget")),
)
"""Operations, by the guest that they are tried in."""
OPERATIONS: Final = tuple(operation for group in GROUPS for operation in group)
COARSE_SAMPLE: Final = 1
FINE_SAMPLE: Final = 1
CUTS: Final = 2
DEADLINE_S: Final = 3000.0


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("points") / "machine", (DISK_MIB,))
    yield made
    made.discard()


@pytest.fixture(scope="module")
def killed(
    machine: Machine,
    chance: Callable[[str], random.Random],
    rounds: int,
    figure: Callable[[str], None],
) -> Json:
    """All operations, on one machine."""
    all_of_them = rounds > 2
    order: Json = {
        "coarse": None if all_of_them else COARSE_SAMPLE,
        "fine": None if all_of_them else FINE_SAMPLE,
        "seed": chance("points").random(),
    }
    results: Json = {}
    for group in GROUPS:
        results |= machine.run("guest_points", order | {"all": group}, DEADLINE_S)
    for operation, result in results.items():
        figure(
            f"{operation}: killed at {result['coarse_tried']} of {result['coarse']} coarse points and at "
            f"{result['fine_tried']} of {result['fine']} fine ones; {result['done']} times it was done, "
            f"{result['undone']} times undone"
        )
    tried = sum(result["coarse_tried"] + result["fine_tried"] for result in results.values())
    figure(f"points at which a process was killed: {tried}")
    return results


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_that_is_killed_is_done_or_undone(killed: Json, operation: str) -> None:
    """At each of its points; the next process to open the array finds what is missing, or what is too much, by looking."""
    assert operation in killed, "an operation before it left the array unusable"
    result = killed[operation]
    assert result["wrong"] == []
    assert result["done"] + result["undone"] == result["coarse_tried"] + result["fine_tried"]


def test_an_operation_under_a_power_cut_is_done_or_undone(
    machine: Machine,
    killed: Json,
    chance: Callable[[str], random.Random],
    rounds: int,
    figure: Callable[[str], None],
) -> None:
    """As above, but the kernel's half is gone as well; only what was flushed to the drives counts."""
    random_ = chance("control power")
    cuts = CUTS if rounds <= 2 else 2 * rounds
    previous: Json = {}
    for number in range(cuts + 1):
        operation = random_.choice(OPERATIONS) if number < cuts else None
        order: Json = {
            "check": bool(previous),
            "next": operation,
            "at": random_.randint(1, max(1, killed.get(operation, {}).get("fine", 1))) if operation else 0,
            "marker": f"marker-{number}",
        }
        with machine.running("guest_points", order) as guest:
            guest.until_marked(f"marker-{number}-looked")
            if previous:
                looked = machine.report()
                assert looked.get("error") is None, previous
                assert looked["wrong"] == [], previous
                assert looked["state"] in (previous["before"], *previous["ends"]), (looked, previous)
                figure(
                    f"power cut in {previous['operation']} at fine point {previous['at']}: "
                    f"{'done' if looked['state'] in previous['ends'] else 'undone'}"
                )
            if operation is None:
                guest.finish()
            else:
                guest.until_marked(f"marker-{number}")
                guest.cut()
        previous = {**machine.report(), "operation": operation, "at": order["at"]}
