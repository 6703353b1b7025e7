"""Each way in which a drive goes, and each in which it comes back, on a real kernel, with the contents of all LUNs verified."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from blkrecov.array import Array
from blkrecov.engine import locked
from blkrecov.model import Drive, TaskState
from blkrecov.units import KIB
from tests.kernel.lab import Kernel, disagreements, forget_power_cuts, run, states, sweep, tables
from tests.kernel.ways import (
    COMINGS,
    FAILED,
    GOINGS,
    HALF,
    LAYOUTS,
    ONLINE,
    PIECE,
    Coming,
    Going,
    Home,
    World,
    packed,
    unpacked,
    watched,
)

NOTICED_S: Final = 5.0
# What is written while the drive is away, in regions of the bitmaps, and the members' superblocks.
BOUND: Final = 2 * 1024 * KIB


def impossible(going: Going, coming: Coming) -> str:
    """Why the two do not go together."""
    restarted = bool(coming.restart)
    match coming.name:
        case "clone" if going.status is not ONLINE:
            return "a copy of a drive that is away may be the drive"
        case "clone" if going.name == "deleted":
            return "there is no file left to copy"
        case "not there" if going.name not in ("taken while stopped", "unplugged"):
            return "it has not gone from where it was"
    if coming.name == "longer" and going.status is not FAILED:
        return "a drive that has not failed is taken as soon as it is there, and what is behind its end is nobody's"
    if going.home is Home.JOURNAL and not restarted:
        return "a journal that was aborted is taken up by the next mount, and a file that is attached lets no one unmount it"
    if going.home is Home.DISK and coming.name not in ("same place", "another array's", "no labels", "not there"):
        return "a disk has no file; when the machine starts again it is plugged in, or is not there"
    if not restarted and coming.name.startswith("moved") and going.name == "deleted":
        return "a file without a name cannot be moved"
    return ""


CELLS: Final = [(going, coming) for going in GOINGS for coming in COMINGS if not impossible(going, coming)]


@pytest.fixture(scope="module")
def archives(ext4: Path) -> Iterator[dict[str, tuple[Path, dict[str, bytearray]]]]:
    made = {layout: packed(ext4, layout) for layout in LAYOUTS}
    yield made
    for archive, _ in made.values():
        archive.unlink()


def looks(drive: Drive, going: Going, world: World) -> bool:
    """Whether a drive is known to be what has become of it."""
    if drive.status is not going.status:
        return False
    if going.status is not ONLINE:
        return going.reason in drive.reason
    if going.name == "renamed":
        return drive.path == str(world.file)
    return going.reason in drive.failing


def reconnected(array: Array, world: World, going: Going, coming: Coming, path: str | None) -> tuple[int, str]:
    """(bytes that the kernel wrote to the returning members, what the task says)."""
    task = array.reconnect(*array.propose_reconnect("d1", path))
    task = array.wait(task.id, timeout_s=60)
    assert task.state is TaskState.COMPLETED, task
    return task.bytes_kernel, task.message


def parameter(going: Going, coming: Coming) -> Any:
    """One of the possible ways of coming for each way of going, in turn; all of them together take half an hour."""
    possible = [each for other, each in CELLS if other is going]
    chosen = coming is possible[GOINGS.index(going) % len(possible)]
    marks = () if chosen else (pytest.mark.long,)
    return pytest.param(going, coming, marks=marks, id=f"{going.name}/{coming.name}")


@pytest.mark.parametrize(("going", "coming"), [parameter(going, coming) for going, coming in CELLS])
def test_way(ext4: Path, archives: dict[str, tuple[Path, dict[str, bytearray]]], going: Going, coming: Coming) -> None:
    layout = LAYOUTS[(GOINGS.index(going) + COMINGS.index(coming)) % len(LAYOUTS)]
    before = Kernel.now()
    with unpacked(ext4, *archives[layout], going.home) as world:
        unpacked_before = Kernel.now()
        try:
            cell(world, going, coming)
            world.lab.stop()
            run("udevadm", "settle", "--timeout=30")
            assert Kernel.now() == unpacked_before
        finally:
            sweep(world.lab.directory)
            forget_power_cuts()
    assert Kernel.now() == before


def cell(world: World, going: Going, coming: Coming) -> None:
    lab, begun = world.lab, time.monotonic()
    if going.stopped:
        going.go(world)
    with watched(lab) as array:
        at = time.monotonic()
        if not going.stopped:
            going.go(world)
        while not looks(drive := array.document.drive("d1"), going, world):
            assert time.monotonic() < at + NOTICED_S, (drive.status, drive.reason, drive.failing, drive.path)
            time.sleep(0.01)
        seconds = "" if going.stopped or going.unseen else f"{time.monotonic() - at:.2f} s"
        # Once the monitor has let go of the lock it has done what is due.
        with locked(lab.settings, lab.name):
            pass
        for offset in (HALF + 8 * PIECE, HALF + 9 * PIECE):
            assert world.write("mirror", offset)
            assert world.write("parity", offset)
            assert world.write("plain", offset) == (going.status is ONLINE)
        seen = drive.status.value + (", set aside" if drive.failing else "")
    if coming.restart == "stop":
        lab.stop()
    elif coming.restart:
        lab.power_cut()
    if coming.name != "not there":
        going.mend(world)
    path = coming.put(world)
    with lab.opened() as array:
        if coming.refused is not None:
            sequence, loaded = array.document.sequence, tables()
            with pytest.raises(coming.refused, match=coming.words):
                array.propose_reconnect("d1", path)
            assert (array.document.sequence, tables()) == (sequence, loaded)
            if coming.name == "not there":
                going.mend(world)
            coming.after(world)
            path = None
        rewritten, said = reconnected(array, world, going, coming, path)
        drive = array.document.drive("d1")
        assert (drive.status, drive.reason, drive.fault) == (ONLINE, "", None)
        assert drive.path == str(world.file)
        for name in ("mirror", "parity"):
            assert set(states(array, name)) == {"in_sync"}
            assert disagreements(array, name) == []
            assert world.wrong(name) == []
        plain = world.wrong("plain")
    with lab.opened() as array:
        drive = array.document.drive("d1")
        assert (drive.status, drive.reason, drive.path) == (ONLINE, "", str(world.file))
        assert (world.wrong("mirror"), world.wrong("parity"), world.wrong("plain")) == ([], [], plain)
    if going.doubtful:
        assert "may have lost what was written to it" in said
    else:
        assert plain == []
        assert rewritten <= BOUND, said
    took = time.monotonic() - begun
    lost = f"; {len(plain)} pieces of the linear LUN lost, and said" if plain else ""
    refused = f"refused: {coming.refused.__name__}; then " if coming.refused else ""
    print(
        f"{going.name:20} {coming.name:27} {seen:18} {seconds:>7} {rewritten // KIB:5} KiB  {refused}whole{lost}"
        f" ({took:.1f} s)"
    )


def test_every_way_has_its_ways() -> None:
    """At least forty; and those that cannot be are told with the reason."""
    print(f"{len(CELLS)} cells")
    for going in GOINGS:
        for coming in COMINGS:
            if why := impossible(going, coming):
                print(f"{going.name:20} {coming.name:27} impossible: {why}")
    assert len(CELLS) >= 40
