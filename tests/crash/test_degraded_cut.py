"""The power goes while a member is lost, and while one is being rebuilt.

What is promised then. raid1 and raid10: every flushed write is there. Parity LUNs: every flushed write is there, except in the
rows of a stripe in which another write was under way: data of the lost member exists there only as a sum of the others, and the
sum was cut in half (the write hole; only a journal closes it, and dm-raid's would cost the bitmap). The LUN is marked suspect and
is not healthy again before a recovery has made it whole and repaired it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pytest

from blkrecov.units import MIB, SECTOR
from tests.crash.images import Disks, disagreements
from tests.crash.pattern import BLOCK, History, content, same_row
from tests.crash.power import Json, Machine

DISK_MIB: Final = 32
CHUNK: Final = 16  # Blocks of 4 KiB in our chunk of 64 KiB.


@dataclass(frozen=True, slots=True)
class Degraded:
    history: History
    at_once: Disks
    reopened: Json
    contents: dict[str, bytes]
    disagreements: dict[str, int]


DEGRADED: Final = (("m", "raid1", 6, 3), ("p", "raid5", 6, 3), ("t", "raid10", 6, 4))
DEGRADED_NUMBER: Final = {name: number for number, (name, *_) in enumerate(DEGRADED)}
BY_LAYOUT: Final = [pytest.param(name, id=layout) for name, layout, *_ in DEGRADED]


def looked_at(machine: Machine, names: list[str]) -> tuple[dict[str, bytes], dict[str, int]]:
    """The contents of LUNs as their disks gave them, and the blocks in which their members disagree."""
    contents = {name: (machine.out / f"lun-{name}.img").read_bytes() for name in names}
    disks = Disks(machine.images)
    return contents, {lun.name: disagreements(lun.layout, disks.members(lun)) for lun in disks.document.luns}


@pytest.fixture(scope="module")
def degraded(
    tmp_path_factory: pytest.TempPathFactory, chance: Callable[[str], random.Random], figure: Callable[[str], None]
) -> Degraded:
    """A LUN of each kind loses d2, is written to, and the power goes; then it is opened and recovered."""
    machine = Machine(tmp_path_factory.mktemp("degraded") / "machine", (DISK_MIB,) * 5)
    random_ = chance("degraded")
    log = machine.out / "log"
    order: Json = {
        "make": True,
        "luns": DEGRADED,
        "drives": 5,
        "fail": "d2",
        "slow": random_.choice(("d0", "d1")),
        "write_ms": 8,
        "seed": random_.random(),
        "first": 1,
        "log": log.name,
    }
    enough = random_.randrange(200, 600)
    with machine.running("guest_writer", order) as guest:
        guest.until(lambda: log.exists() and log.read_bytes().count(b"\nf ") >= enough, f"{enough} flushed writes")
        guest.cut()
    history = History()
    history.read(log.read_text())
    at_once = Disks(machine.images)
    names = [name for name, *_ in DEGRADED]
    order = {"luns": names, "drives": 5, "tasks": [], "recover": names, "scrub": names, "stop": False}
    reopened = machine.run("guest_reopen", order)
    contents, differing = looked_at(machine, names)
    machine.discard()
    found = Degraded(history, at_once, reopened, contents, differing)
    hole = len(list(history.losses(DEGRADED_NUMBER["p"], contents["p"])))
    figure(f"degraded power cut: {history.flushes} writes flushed, {hole} blocks lost to raid5's write hole")
    return found


@pytest.mark.parametrize("name", BY_LAYOUT)
def test_a_degraded_lun_comes_back_suspect_after_a_power_cut(degraded: Degraded, name: str) -> None:
    """It serves its data at once; that its members may disagree is written down until they have been repaired."""
    (shown,) = (lun for lun in degraded.reopened["shown"]["luns"] if lun["name"] == name)
    assert (shown["status"], shown["health"]) == ("online", "failed_redundancy")
    assert degraded.reopened["suspect"][name] is True
    assert degraded.reopened["forced"] == 0


@pytest.mark.parametrize("name", BY_LAYOUT)
def test_recover_after_a_degraded_power_cut_rebuilds_and_repairs(degraded: Degraded, name: str) -> None:
    """A rebuild alone would copy what the cut had left half done."""
    assert degraded.reopened["recovered"][name] == {"state": "completed", "phases": ["rebuild", "repair", "verify"]}
    assert degraded.reopened["views"][name]["health"] == "healthy"
    assert degraded.reopened["scrubbed"][name] == 0
    assert degraded.disagreements[name] == 0


@pytest.mark.parametrize("name", [param for param in BY_LAYOUT if param.id != "raid5"])
def test_a_degraded_mirror_loses_no_flushed_write(degraded: Degraded, name: str) -> None:
    """Each copy of a mirror is whole by itself."""
    assert list(degraded.history.losses(DEGRADED_NUMBER[name], degraded.contents[name])) == []


def test_a_degraded_raid5_loses_flushed_writes_only_in_the_write_hole(degraded: Degraded) -> None:
    """Only in rows of a stripe in which a write was under way when the power went."""
    number = DEGRADED_NUMBER["p"]
    hole = {
        other
        for lun, block in degraded.history.open_blocks()
        if lun == number
        for other in same_row(block, data_members=2, chunk=CHUNK)
    }
    lost = dict(degraded.history.losses(number, degraded.contents["p"]))
    assert {block: how for block, how in lost.items() if block not in hole} == {}


REBUILT: Final = (("m", "raid1", 12, "d0,d1"), ("p", "raid5", 24, "d2,d3,d4"))
MEMBER: Final = 12 * MIB


@dataclass(frozen=True, slots=True)
class Rebuild:
    checkpoint: dict[str, int]
    """Bytes that the substitute's superblock says are rebuilt, as the cut left it."""
    substitute: dict[str, int]
    """Its index."""
    reopened: Json
    contents: dict[str, bytes]
    disagreements: dict[str, int]


@pytest.fixture(scope="module")
def rebuild(
    tmp_path_factory: pytest.TempPathFactory, chance: Callable[[str], random.Random], figure: Callable[[str], None]
) -> Rebuild:
    """Two LUNs lose a drive each; while both are rebuilt the power goes. Then the array is opened, and nothing else is asked."""
    machine = Machine(tmp_path_factory.mktemp("rebuild") / "machine", (DISK_MIB,) * 7)
    order: Json = {
        "luns": REBUILT,
        "drives": 7,
        "fail": [["d1", "d5"], ["d3", "d6"]],
        "sixteenths": chance("rebuild").randrange(3, 9),
    }
    with machine.running("guest_rebuild", order) as guest:
        guest.until_marked("rebuilding")
        guest.cut()
    tasks = machine.report()["tasks"]
    disks = Disks(machine.images)
    checkpoint, substitute = {}, {}
    for lun in disks.document.luns:
        (index,) = (index for index, member in enumerate(lun.members) if member.state.value == "rebuilding")
        superblock = disks.superblocks(lun)[index]
        assert superblock is not None
        assert superblock.recovery_offset is not None
        substitute[lun.name], checkpoint[lun.name] = index, superblock.recovery_offset * SECTOR
    names = [name for name, *_ in REBUILT]
    order = {"luns": names, "drives": 7, "tasks": list(tasks.values()), "recover": [], "scrub": names, "stop": False}
    reopened = machine.run("guest_reopen", order)
    contents, differing = looked_at(machine, names)
    machine.discard()
    written = {name: reopened["written"][name][substitute[name]] for name in names}
    figure(f"power cut in a rebuild of {MEMBER} bytes: checkpoints {checkpoint}, written after the restart {written}")
    return Rebuild(checkpoint, substitute, reopened, contents, differing)


@pytest.mark.parametrize("name", ["m", "p"], ids=["raid1", "raid5"])
def test_a_rebuild_goes_on_from_its_checkpoint_after_a_power_cut(rebuild: Rebuild, name: str) -> None:
    """The kernel's own checkpoint: what it had rebuilt is not rebuilt again."""
    assert 0 < rebuild.checkpoint[name] < MEMBER
    written = rebuild.reopened["written"][name][rebuild.substitute[name]]
    assert MEMBER - rebuild.checkpoint[name] <= written <= MEMBER - rebuild.checkpoint[name] + MIB


@pytest.mark.parametrize("name", ["m", "p"], ids=["raid1", "raid5"])
def test_a_recovery_completes_by_itself_after_a_power_cut(rebuild: Rebuild, name: str) -> None:
    """Nobody asks for it again, and its task ends as it would have: with the LUN healthy, not suspect."""
    (task,) = (task for task in rebuild.reopened["tasks"] if task["objects"][0] == name)
    assert (task["state"], task["percent"], task["code"]) == ("completed", 100, "S_OK")
    assert rebuild.reopened["views"][name]["health"] == "healthy"
    assert rebuild.reopened["scrubbed"][name] == 0


@pytest.mark.parametrize("name", ["m", "p"], ids=["raid1", "raid5"])
def test_contents_survive_a_power_cut_in_a_rebuild(rebuild: Rebuild, name: str) -> None:
    """Byte for byte, by the disk and on the members."""
    number = [other for other, *_ in REBUILT].index(name)
    blocks = len(rebuild.contents[name]) // BLOCK
    assert rebuild.contents[name] == content(number, 0, blocks, 1)
    assert rebuild.disagreements[name] == 0
