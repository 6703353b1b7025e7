"""The fault matrix of Recover: which members fail, when, and what becomes of the operation meanwhile.

A cell is a layout, who is lost first, and a story. A story is a function that takes a Rig: a LUN with known contents on an array
that it has for itself. It lets things fail, recovers, and ends with `whole` (contents, members, superblocks, devices and the
document are what they should be) or with `lost` (the LUN is lost, that is said, and nothing is made up).

Arrays are made for several cells. What a cell has used up, the next replaces as an operator would, by adding drives.
"""

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest

from blkrecov import tasks
from blkrecov.array import Array
from blkrecov.dm import counters, names
from blkrecov.dm.control import Control
from blkrecov.dm.status import LegHealth
from blkrecov.dm.table import ErrorTable
from blkrecov.errors import Code, ObjectFailed
from blkrecov.model import Layout, Member, Phase, Task, TaskState
from blkrecov.running import Progress
from blkrecov.steps import CreateDevice, Step
from blkrecov.units import KIB, MIB, TIB, Sectors, in_bytes
from tests.crash.pattern import same_row
from tests.kernel.lab import (
    BLOCK,
    DEADLINE_S,
    DRIVE,
    PIECE,
    Files,
    Lab,
    Writer,
    disagreements,
    in_sync,
    lun,
    made,
    our_devices,
    pieces,
    read,
    regions_of,
    run,
    show,
    states,
    until,
    write,
)

NAME: Final = "vol"
# Bytes per second and member. md looks at the rate after each 128 KiB, and takes its averages over seconds: a rebuild of 6 MiB
# that begins at the first has come a part of its way at once, and stands nearly still when it is given the second.
SLOW: Final = MIB
HELD: Final = 64 * KIB
FREE: Final = TIB
CHUNK: Final = 64 * KIB
ROOM: Final = MIB
"""What each Writer has to itself."""
ROOMS: Final = 3
CELLS_PER_ARRAY: Final = 12


@dataclass(frozen=True)
class Shape:
    """A layout with so many members. Members have 6 MiB or more."""

    layout: str
    members: int
    size: int
    two: tuple[int, int] | None = None
    """Members that can be lost together."""

    @property
    def parity(self) -> int:
        return Layout(self.layout).parity


SHAPES: Final = {
    "raid1": Shape("raid1", 2, 10 * MIB),
    "raid1of3": Shape("raid1", 3, 10 * MIB, (0, 2)),
    "raid10": Shape("raid10", 4, 12 * MIB, (0, 3)),
    "raid4": Shape("raid4", 3, 12 * MIB),
    "raid5": Shape("raid5", 3, 12 * MIB),
    "raid6": Shape("raid6", 4, 12 * MIB, (1, 2)),
}


@dataclass(frozen=True)
class Cell:
    shape: str
    who: str
    """The first, the last, or two members are lost to begin with."""
    story: str

    def __str__(self) -> str:
        return f"{self.shape}-{self.who}_lost-{self.story}"

    @property
    def lost(self) -> tuple[int, ...]:
        shape = SHAPES[self.shape]
        if self.who == "two":
            assert shape.two is not None
            return shape.two
        return (0,) if self.who == "first" else (shape.members - 1,)

    @property
    def on_files(self) -> bool:
        """Whether the contents are files. Not where the power is cut, or the LUN is lost: there each block counts."""
        return self.who != "last" and not any(word in self.story for word in ("power_cut", "too_many", "beyond"))


def cells(table: dict[str, dict[str, str]]) -> list[Cell]:
    """From {layout: {story: who, who}}."""
    return [
        Cell(shape, who, story)
        for shape, stories in table.items()
        for story, several in stories.items()
        for who in several.split()
    ]


Story = Callable[["Rig"], None]
STORIES: Final[dict[str, Story]] = {}


def story(function: Story) -> Story:
    STORIES[function.__name__] = function
    return function


class Bench:
    """Arrays for cells, one after the other, and the count of the cells that held."""

    def __init__(self, ext4: Path) -> None:
        self._ext4 = ext4
        self._resources = ExitStack()
        self._lab: Lab | None = None
        self._drives = 0
        self._used = 0
        self._held: Counter[str] = Counter()

    def run(self, cell: Cell) -> None:
        if self._used >= CELLS_PER_ARRAY:
            self.close()
        try:
            rig = self._rig(cell)
            with rig.opened():
                STORIES[cell.story](rig)
                rig.clear()
        except BaseException:
            # Whatever state it is in: the next cell gets another.
            if self._lab is not None:
                self._lab.drives.clear()
            self.close()
            raise
        self._used += 1
        self._held[cell.shape] += 1

    def close(self) -> None:
        self._lab, self._used, self._drives = None, 0, 0
        self._resources.close()

    def _rig(self, cell: Cell) -> "Rig":
        if self._lab is None:
            self._lab = self._resources.enter_context(made(self._ext4))
            self._lab.create(0)
        return Rig(self._lab, cell, self._name)

    def _name(self) -> str:
        self._drives += 1
        return f"d{self._drives}"

    def report(self) -> str:
        each = ", ".join(f"{shape} {count}" for shape, count in self._held.items())
        return f"fault matrix: {self._held.total()} cells ({each})"


@contextmanager
def bench(ext4: Path, config: pytest.Config) -> Iterator[Bench]:
    """A bench whose report is printed at the end, whatever pytest captures."""
    made_bench = Bench(ext4)
    try:
        yield made_bench
    finally:
        made_bench.close()
        capture = config.pluginmanager.getplugin("capturemanager")
        assert capture is not None
        with capture.global_and_fixture_disabled():
            print(f"\n{made_bench.report()}")


@dataclass
class Written:
    """What a Writer has done. `cut`: the power was cut meanwhile, or the LUN was lost, so that it may have had an error."""

    writer: Writer
    path: str
    cut: bool = False
    hole: frozenset[int] = frozenset()
    """Blocks that share their parity with a write that was under way when the power was cut. A LUN that lacked a member then may
    have lost them: the write hole, which only a journal closes."""


class Rig:
    """A LUN under test, with an array that is opened, closed and opened again."""

    def __init__(self, lab: Lab, cell: Cell, new_name: Callable[[], str]) -> None:
        self.lab, self.cell, self.shape = lab, cell, SHAPES[cell.shape]
        self.disk = f"/dev/mapper/{names.lun_name(lab.name, NAME)}"
        self.number = 0
        self._new_name = new_name
        self._process = ExitStack()
        self._array: Array | None = None
        self._files: Files | None = None
        self._known = b""
        self._written: list[Written] = []
        self._gone: dict[str, set[int]] = {}
        self._percent = 0

    @property
    def array(self) -> Array:
        assert self._array is not None, "nobody has the array open"
        return self._array

    # The process.

    @contextmanager
    def opened(self) -> Iterator[None]:
        self.open()
        try:
            self._prepare()
            yield
        finally:
            self.close()

    def open(self) -> None:
        """A new process has the array: it knows what stands on the drives, and what the kernel says."""
        self._array = self._process.enter_context(self.lab.opened())
        task = self.task
        if task is not None and not task.state.ended:
            assert task.percent >= self._percent // 25 * 25, f"{self._percent} % before, {task.percent} % now"
            self._percent = task.percent

    def close(self) -> None:
        self._array = None
        self._process.close()

    def die(self) -> None:
        """The process is gone, without a word to anybody."""
        self.close()
        self.open()

    def stop(self, meanwhile: Callable[[], None] | None = None) -> None:
        """A clean stop, and a start."""
        if self._files is not None:
            self._files.umount()
        self.array.stop()
        self.close()
        if meanwhile is not None:
            meanwhile()
        self.open()
        if self._files is not None:
            self._files.mount()

    def power_cut(self, meanwhile: Callable[[], None] | None = None) -> None:
        """All at once, with a write under way if there is a Writer."""
        assert self._files is None
        for written in self._written:
            written.cut = True
        self.close()
        self.lab.power_cut()
        for written in self._written:
            if self.shape.parity and written.writer._under_way:
                first, count, _ = written.writer._under_way
                written.hole |= {
                    block
                    for under_way in range(first, first + count)
                    for block in same_row(under_way, self.shape.members - self.shape.parity, CHUNK // BLOCK)
                }
        if meanwhile is not None:
            meanwhile()
        self.open()

    # What is there to begin with.

    def _prepare(self) -> None:
        """The members' drives, no spare, nothing else that could serve; the LUN with its contents."""
        fresh = [drive.name for drive in self.array.document.drives if drive.online and not drive.failures]
        for drive in self.array.document.drives:
            if drive.online and drive.name not in fresh[: self.shape.members]:
                self.array.fail_drive(drive.name)
        self.members = fresh[: self.shape.members]
        for name in self.members:
            if self.array.document.drive(name).hot_spare:
                self.array.set_hot_spare(name, False)
        while len(self.members) < self.shape.members:
            self.members.append(self._add(spare=False))
        lun(self.array, NAME, self.shape.layout, self.shape.size, drives=self.members, exported=False)
        self.number, self._percent = 0, 0
        if self.cell.on_files:
            self._files = Files.make(self.disk, self.lab.directory / "mnt", 2 * MIB)
            for room in range(ROOMS):
                self._files.room(f"room{room}", ROOM)
        else:
            self._known = _contents(self.shape.size - ROOMS * ROOM)
            write(self.disk, 0, self._known)
        in_sync(self.array, NAME)
        self.array.advance_all()

    def _add(self, *, spare: bool) -> str:
        name = self._new_name()
        self.lab.add(self.array, name, size=DRIVE, spare=spare)
        return name

    def spares(self, number: int = 1) -> list[str]:
        """So many hot spares more."""
        return [self._add(spare=True) for _ in range(number)]

    def clear(self) -> None:
        """Nothing of the cell stays but its drives."""
        self.unmounted()
        self.array.carry_out(self.array.propose_delete(NAME))
        assert not [name for name in our_devices() if f"-{NAME}" in name]

    def unmounted(self) -> None:
        if self._files is not None:
            self._files.umount()
            self._files = None

    # What happens.

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Somebody writes, all the while."""
        room = len(self._written)
        assert room < ROOMS
        if self._files is not None:
            path, offset = str(self._files.point / f"room{room}"), 0
        else:
            path, offset = self.disk, self.shape.size - (ROOMS - room) * ROOM
        writer = Writer(path, ROOM, offset=offset, seed=room + 1)
        self._written.append(Written(writer, path))
        with writer:
            yield writer

    def drive_of(self, index: int) -> str:
        document = self.array.document
        return document.drive_of(document.lun(NAME).members[index].drive).name

    def lose(self, *indexes: int) -> None:
        """The drives of these members are taken for failed."""
        for index in indexes:
            name = self._going(index)
            self.array.fail_drive(name)
            assert self.array.document.drive(name).status.value == "failed"

    def lose_first(self) -> None:
        """Those members that the cell begins with, and a look at what is left."""
        self.lose(*self.cell.lost)
        self.degraded(self.cell.lost)

    def err(self, *indexes: int) -> None:
        """The drives of these members answer with errors, behind the array's back."""
        for index in indexes:
            name = self._going(index)
            with Control() as control:
                port = names.drive_name(self.lab.name, name)
                length = Sectors(sum(line.length for line in control.table(port)))
                control.replace(port, ErrorTable(length=length).render(), visible=False, flush=False, freeze=False)

    def noticed(self, *indexes: int) -> None:
        """Until the kernel has given these members up. It needs somebody who writes."""

        def given_up() -> bool:
            self.array.observe()
            return set(indexes) <= self.array.observed.failed_legs(self.array.document.lun(NAME))

        until(f"the loss of members {indexes}", given_up)

    def _going(self, index: int) -> str:
        """The drive of a member that is about to be lost."""
        name = self.drive_of(index)
        self._gone.setdefault(name, set()).add(index)
        return name

    def away(self, *indexes: int) -> Callable[[], None]:
        """What takes these members' drives away while the array is stopped."""
        drives = [self._going(index) for index in indexes]

        def take() -> None:
            self._hidden.mkdir(parents=True, exist_ok=True)
            for name in drives:
                self.lab.path(name).rename(self._hidden / name)

        return take

    @property
    def _hidden(self) -> Path:
        """Where no search goes."""
        return self.lab.directory / "away/and/out"

    def back(self) -> None:
        """The drives that were away are where they were."""
        for path in self._hidden.iterdir():
            path.rename(self.lab.path(path.name))

    @property
    def survivor(self) -> int:
        """A member that can be lost beside those that are."""
        return self._beside(alive=True)

    @property
    def last(self) -> int:
        """A member that cannot be lost beside those that are."""
        return self._beside(alive=False)

    def _beside(self, *, alive: bool) -> int:
        wanted = self.array.document.lun(NAME)
        unusable = self.array.observed.lost(self.array.document, wanted) | wanted.rebuilding
        rest = [index for index in range(len(wanted.members)) if index not in unusable]
        return next(
            index
            for index in reversed(rest)
            if wanted.layout.survives(len(wanted.members), unusable | {index}) is alive
        )

    # The operation.

    @property
    def task(self) -> Task | None:
        return self.array.document.task(self.number) if self.number else None

    def begin(self) -> None:
        """A Recover that has come a part of its way, and all but stands still."""
        self.start(SLOW)
        until("the rebuild's first part", lambda: self.array.progress(self.number).fraction > 0.05)
        self.array.set_rates(self.number, None, HELD)
        self.array.advance(self.number)
        progress = self.look()
        assert (progress.task.state, progress.phase) == (TaskState.IN_PROGRESS, Phase.REBUILD)
        assert progress.fraction < 0.95

    def start(self, rate: int = FREE) -> None:
        proposal, task = self.array.propose_recover(NAME, None, rate_max=rate)
        self.number = self.array.start(proposal, task).id
        self._percent = 0

    def freed(self) -> None:
        """The rebuild may go as fast as it can."""
        if not self.array.document.task(self.number).state.ended:
            self.array.set_rates(self.number, None, FREE)

    def look(self) -> Progress:
        progress = self.array.progress(self.number)
        self._saw(progress)
        return progress

    def _saw(self, progress: Progress) -> None:
        task = progress.task
        if task.state is TaskState.FAILED:
            assert task.percent == 0
        else:
            assert task.percent >= self._percent, f"{self._percent} % before, {task.percent} % now"
            assert (task.percent == 100) == (task.state is TaskState.COMPLETED)
            self._percent = task.percent

    def ended(self) -> Task:
        """The task when it has ended, with its percentage watched."""
        self.freed()
        return self.array.wait(self.number, on_progress=self._saw, timeout_s=DEADLINE_S)

    def begun_by_itself(self) -> None:
        """The one task that the array has begun for this LUN. It may have ended already: members are small."""
        uuid = self.array.document.lun(NAME).uuid
        (task,) = [task for task in self.array.document.tasks if task.lun == uuid]
        self.number = task.id

    def completed(self) -> None:
        task = self.ended()
        assert (task.state, task.code, task.percent) == (TaskState.COMPLETED, "S_OK", 100), task.message
        assert tasks.vds_status(task) == (Code.S_OK, 100)
        assert "0 mismatches" in task.message
        assert task.bytes_kernel > 0

    def failed(self, code: Code) -> None:
        task = self.ended()
        assert (task.state, task.code, task.percent) == (TaskState.FAILED, code.name, 0), task.message
        assert tasks.vds_status(task) == (code, 0)
        assert task.remedy

    def recovered(self) -> None:
        """A Recover from beginning to end."""
        self.start()
        self.completed()

    def cancelled(self) -> None:
        """The LUN is as degraded afterwards as it was."""
        before = _condition(show(self.array, NAME))
        task = self.array.cancel(self.number)
        assert (task.state, task.code, task.percent) == (TaskState.CANCELLED, "VDS_E_OPERATION_CANCELED", 0)
        assert tasks.vds_status(task) == (Code.VDS_E_OPERATION_CANCELED, 0)
        self.still_held(before["fault_tolerance"])

    def still_held(self, tolerance: int) -> None:
        shown = show(self.array, NAME)
        expected = {"status": "online", "health": "failed_redundancy", "fault_tolerance": tolerance}
        assert _condition(shown) == expected
        assert self.wrong() == []

    def paused(self) -> None:
        task = self.array.pause(self.number)
        assert (task.state, task.paused) == (TaskState.IN_PROGRESS, True)
        self.array.set_rates(self.number, None, FREE)
        assert self.array.document.lun(NAME).frozen

    def resumed(self) -> None:
        assert self.array.document.task(self.number).paused
        assert self.look().task.state is TaskState.IN_PROGRESS
        assert self.array.resume(self.number).paused is False

    def substitutes(self) -> list[Member]:
        return [member for member in self.array.document.lun(NAME).members if member.state.value == "rebuilding"]

    def moved(self, members: list[Member]) -> int:
        """Bytes that were written to these members since their devices were made."""
        self.array.observe()
        live = self.array.observed.devices
        numbers = [live[names.dm_uuid(member.uuid, "rimage")].number for member in members]
        return sum(in_bytes(counters.sectors_written(number)) for number in numbers)

    # What is to be so.

    def wrong(self) -> list[str]:
        """What of the contents is not as it was written; without what is being written now."""
        bad = []
        if self._files is not None:
            bad += self._files.wrong()
        else:
            starts = count(0, PIECE)
            for at, found in zip(starts, pieces(self.disk, 0, len(self._known)), strict=False):
                known = self._known[at : at + PIECE]
                bad += [f"block {(at + inner) // BLOCK}" for inner in _different(found, known)]
        for written in self._written:
            assert written.cut or written.writer.error is None
            if written.writer in Writer.at_work:
                continue
            bad += [f"block {block} of {written.path}" for block in written.writer.wrong() if block not in written.hole]
        return bad

    def degraded(self, lost: tuple[int, ...]) -> None:
        """All is there, and these members are lost."""
        shown = show(self.array, NAME)
        assert (shown["status"], shown["health"]) == ("online", "failed_redundancy")
        found = {index for index, state in enumerate(states(self.array, NAME)) if state in ("failed", "missing")}
        assert found == set(lost)
        assert self.wrong() == []

    def whole(self) -> None:
        """All is there, twice; nothing is left of what was lost, nor of what was done about it."""
        assert self.wrong() == []
        self.unmounted_and_checked()
        shown = show(self.array, NAME)
        assert _condition(shown)["health"] == "healthy"
        assert (shown["status"], shown["task"], shown["sync"]) == ("online", None, None)
        assert states(self.array, NAME) == ["in_sync"] * self.shape.members
        wanted = self.array.document.lun(NAME)
        assert (wanted.suspect, wanted.frozen, wanted.mismatches or 0) == (False, False, 0)
        assert self.array.trouble == {}
        raid = self.array.observed.raid(wanted)
        assert raid is not None
        assert set(raid.legs) == {LegHealth.IN_SYNC}
        used = {self.drive_of(index) for index in range(self.shape.members)}
        assert len(used) == self.shape.members
        for name in set(self._gone) - used:
            assert regions_of(self.array, name) == set(), name
        assert set(our_devices()) == self._devices()
        assert disagreements(self.array, NAME) == []

    def still_degraded(self) -> None:
        """All is there, and not twice."""
        shown = show(self.array, NAME)
        assert shown["status"] == "online"
        assert shown["health"] in ("failed_redundancy", "rebuilding")
        assert self.wrong() == []

    def unmounted_and_checked(self) -> None:
        if self._files is not None:
            files, self._files = self._files, None
            files.umount()
            run("fsck.ext4", "-f", "-n", self.disk)

    def _devices(self) -> set[str]:
        array = self.lab.name
        legs = range(self.shape.members)
        return {
            names.lun_name(array, NAME),
            names.plex_name(array, NAME),
            *(names.meta_name(array, NAME, index) for index in legs),
            *(names.data_name(array, NAME, index) for index in legs),
            *(names.drive_name(array, drive.name) for drive in self.array.document.drives),
        }

    def lost(self) -> None:
        """The LUN is lost, which is said. What can be read of it is right, and the rest is an error."""
        for written in self._written:
            written.cut = True
        shown = show(self.array, NAME)
        assert (shown["status"], shown["health"], shown["task"]) == ("failed", "failed", None)
        with pytest.raises(ObjectFailed) as refused:
            self.array.propose_recover(NAME, None)
        assert refused.value.code is Code.VDS_E_OBJECT_STATUS_FAILED
        made_up = []
        for at in range(0, len(self._known), 64 * KIB):
            try:
                found = read(self.disk, at, 64 * KIB)
            except OSError:
                continue
            if found != self._known[at : at + 64 * KIB]:
                made_up.append(at)
        assert made_up == []


@cache
def _contents(length: int) -> bytes:
    """What raw LUNs hold. Made once: memory that is new takes the guest longer than anything that is done with it."""
    return random.Random(1).randbytes(length)


def _different(found: bytes, known: bytes) -> list[int]:
    if found == known:
        return []
    return [at for at in range(0, len(known), BLOCK) if found[at : at + BLOCK] != known[at : at + BLOCK]]


def _condition(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: shown[name] for name in ("status", "health", "fault_tolerance")}


# The stories. Before the rebuild.


@story
def runs(rig: Rig) -> None:
    """Drives are taken for failed under writes, and a Recover runs to its end."""
    spares = rig.spares(len(rig.cell.lost))
    with rig.writing() as writer:
        rig.lose_first()
        writer.wait_for(10)
        rig.recovered()
        writer.wait_for(5)
    rig.whole()
    assert {rig.drive_of(index) for index in rig.cell.lost} == set(spares)


@story
def errors(rig: Rig) -> None:
    """The kernel meets errors while nobody of ours looks; who looks next recovers by itself, because there are spares for it."""
    spares = rig.spares(len(rig.cell.lost))
    with rig.writing() as writer:
        rig.err(*rig.cell.lost)
        rig.noticed(*rig.cell.lost)
        rig.degraded(rig.cell.lost)
        rig.array.attend()
        rig.begun_by_itself()
        rig.completed()
        writer.wait_for(5)
    rig.whole()
    assert {rig.drive_of(index) for index in rig.cell.lost} == set(spares)


@story
def errors_then_recover(rig: Rig) -> None:
    """Recover is the first to hear of it."""
    rig.spares(len(rig.cell.lost))
    with rig.writing():
        rig.err(*rig.cell.lost)
        rig.noticed(*rig.cell.lost)
        rig.recovered()
    rig.whole()


@story
def errors_power_cut(rig: Rig) -> None:
    """Nobody of ours has looked since the kernel met the errors; what it had time to write down is in the superblocks only."""
    rig.spares(len(rig.cell.lost))
    with rig.writing() as writer:
        rig.err(*rig.cell.lost)
        rig.noticed(*rig.cell.lost)
        writer.wait_for(5)
        rig.power_cut()
    rig.degraded(rig.cell.lost)
    rig.recovered()
    rig.whole()


@story
def away_and_back(rig: Rig) -> None:
    """Drives are missing at a start, LUN and all are written to without them; they come back, and are what Recover takes."""
    rig.stop(rig.away(*rig.cell.lost))
    drives = {rig.drive_of(index) for index in rig.cell.lost}
    with rig.writing() as writer:
        rig.degraded(rig.cell.lost)
        writer.wait_for(10)
    rig.stop(rig.back)
    rig.degraded(rig.cell.lost)
    rig.recovered()
    rig.whole()
    assert {rig.drive_of(index) for index in rig.cell.lost} == drives


# During the rebuild: another member.


@story
def second_lost(rig: Rig) -> None:
    """There are spares for both: one task recovers both."""
    rig.spares(len(rig.cell.lost) + 1)
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        rig.lose(rig.survivor)
        writer.wait_for(10)
        rig.completed()
    rig.whole()


@story
def second_lost_by_errors(rig: Rig) -> None:
    """The kernel stops its rebuild and begins again; nobody looks until then."""
    rig.spares(len(rig.cell.lost) + 1)
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        second = rig.survivor
        rig.err(second)
        rig.noticed(second)
        writer.wait_for(10)
        rig.completed()
    rig.whole()


@story
def second_lost_without_spare(rig: Rig) -> None:
    """The first gets its substitute all the same; the task tells what it lacks, and with one more drive a Recover ends it."""
    rig.spares(len(rig.cell.lost))
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        second = rig.survivor
        rig.lose(second)
        rig.failed(Code.VDS_E_NOT_ENOUGH_DRIVE)
        rig.degraded((second,))
        writer.wait_for(5)
        rig.spares()
        rig.recovered()
    rig.whole()


@story
def second_lost_power_cut(rig: Rig) -> None:
    """Both are being rebuilt when the power is cut."""
    rig.spares(len(rig.cell.lost) + 1)
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        rig.lose(rig.survivor)
        rig.array.advance_all()
        assert len(rig.substitutes()) == len(rig.cell.lost) + 1
        writer.wait_for(5)
        rig.power_cut()
    rig.completed()
    rig.whole()


@story
def process_dies_second_lost(rig: Rig) -> None:
    """The second is lost while there is no process; the next one hears of it when it opens the array."""
    rig.spares(len(rig.cell.lost) + 1)
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        second = rig.survivor
        rig.err(second)
        rig.close()
        writer.wait_for(20)
        rig.open()
        rig.completed()
        writer.wait_for(5)
    assert rig.drive_of(second) not in rig.members
    rig.whole()


@story
def dies_substituting(rig: Rig) -> None:
    """The process is killed in the middle of its second substitution, wanted and half made."""
    rig.spares(len(rig.cell.lost) + 1)
    rig.lose_first()
    rig.begin()
    second = rig.drive_of(rig.survivor)
    rig.close()
    child = os.fork()
    if child == 0:
        _die_substituting(rig, second)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    rig.open()
    with rig.writing():
        rig.completed()
    assert second not in {rig.drive_of(index) for index in range(rig.shape.members)}
    rig.whole()


def _die_substituting(rig: Rig, second: str) -> None:
    """For a process of its own, which does not come back."""
    try:
        with rig.lab.opened() as array:
            array.fail_drive(second)
            act = array._actor.act

            def dying(step: Step) -> object:
                if isinstance(step, CreateDevice) and "rimage" in step.device.name:
                    os.kill(os.getpid(), signal.SIGKILL)
                return act(step)

            with mock.patch.object(array._actor, "act", dying):
                array.advance_all()
    finally:
        os._exit(1)


@story
def beyond_during(rig: Rig) -> None:
    """One more than the layout can do without: the task says so, and so does all that is asked afterwards."""
    rig.spares(len(rig.cell.lost) + 1)
    with rig.writing():
        for written in rig._written:
            written.cut = True
        rig.lose_first()
        rig.begin()
        rig.lose(rig.last)
        rig.failed(Code.VDS_E_OBJECT_STATUS_FAILED)
    rig.lost()
    rig.power_cut()
    rig.lost()


@story
def beyond_and_back(rig: Rig) -> None:
    """A drive that the LUN cannot do without is missing at a start in the middle of the rebuild; with it everything is back."""
    rig.spares(len(rig.cell.lost))
    rig.lose_first()
    rig.begin()
    rig.stop(rig.away(rig.last))
    rig.failed(Code.VDS_E_OBJECT_STATUS_FAILED)
    rig.lost()
    rig.stop(rig.back)
    rig.still_degraded()
    with rig.writing():
        rig.recovered()
    rig.whole()


@story
def beyond_power_cut_and_back(rig: Rig) -> None:
    """The same, where the power was cut as well."""
    rig.spares(len(rig.cell.lost))
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        writer.wait_for(5)
        rig.power_cut(rig.away(rig.last))
    rig.failed(Code.VDS_E_OBJECT_STATUS_FAILED)
    rig.lost()
    rig.power_cut(rig.back)
    rig.still_degraded()
    rig.recovered()
    rig.whole()


# During the rebuild: the spare.


@story
def spare_fails(rig: Rig) -> None:
    """There is another."""
    spares = rig.spares(len(rig.cell.lost) + 1)
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        rig.lose(rig.cell.lost[0])
        writer.wait_for(5)
        rig.completed()
    assert {rig.drive_of(index) for index in rig.cell.lost} < set(spares)
    rig.whole()


@story
def spare_fails_by_errors(rig: Rig) -> None:
    """The kernel finds out, while a process waits for the end."""
    rig.spares(len(rig.cell.lost) + 1)
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        rig.err(rig.cell.lost[0])
        rig.completed()
        writer.wait_for(5)
    rig.whole()


@story
def spare_fails_without_another(rig: Rig) -> None:
    """The LUN is as degraded as it was, and says what it lacks."""
    rig.spares(len(rig.cell.lost))
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        rig.lose(*rig.cell.lost)
        rig.failed(Code.VDS_E_NOT_ENOUGH_DRIVE)
        rig.degraded(rig.cell.lost)
        writer.wait_for(5)
        rig.spares(len(rig.cell.lost))
        rig.recovered()
    rig.whole()


@story
def spare_away_power_cut(rig: Rig) -> None:
    """The spare is missing after a power cut in the middle; there is another."""
    rig.spares(len(rig.cell.lost) + 1)
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        writer.wait_for(5)
        rig.power_cut(rig.away(rig.cell.lost[0]))
    rig.completed()
    rig.whole()
    rig.back()


@story
def lost_drive_returns(rig: Rig) -> None:
    """The drive that was lost is back in the middle of the rebuild: that goes on where it was, and the drive is free."""
    rig.stop(rig.away(*rig.cell.lost))
    spares = rig.spares(len(rig.cell.lost))
    rig.degraded(rig.cell.lost)
    rig.begin()
    rig.stop(rig.back)
    assert {rig.drive_of(index) for index in rig.cell.lost} == set(spares)
    with rig.writing():
        rig.completed()
    assert {rig.array.document.drive(name).status.value for name in rig._gone} == {"online"}
    rig.whole()


# After it.


@story
def another_after(rig: Rig) -> None:
    """Recovered, the LUN can lose the others as well."""
    rig.spares(len(rig.cell.lost) + 1)
    with rig.writing() as writer:
        rig.lose_first()
        rig.recovered()
        another = (rig.cell.lost[-1] + 1) % rig.shape.members
        rig.lose(another)
        rig.degraded((another,))
        writer.wait_for(5)
        rig.recovered()
    rig.whole()


@story
def substitute_after(rig: Rig) -> None:
    """A substitute is a member like all others: it can be lost as well, to errors, while the next process looks."""
    rig.spares(len(rig.cell.lost) + 1)
    rig.lose_first()
    rig.recovered()
    with rig.writing():
        rig.err(rig.cell.lost[0])
        rig.noticed(rig.cell.lost[0])
        rig.die()
        rig.degraded(rig.cell.lost[:1])
        rig.recovered()
    rig.whole()


# What becomes of the operation.


@story
def cancelled(rig: Rig) -> None:
    """The next Recover goes on where the first one was."""
    rig.spares(len(rig.cell.lost))
    rig.lose_first()
    rig.begin()
    members = rig.substitutes()
    rig.cancelled()
    with rig.writing() as writer:
        writer.wait_for(5)
    _goes_on(rig, members, 0)


def _goes_on(rig: Rig, members: list[Member], before: int) -> None:
    """A Recover after a cancelled one. `before`: what was moved by an earlier kernel."""
    assert rig.substitutes() == members
    rig.recovered()
    length = sum(in_bytes(member.length) for member in members)
    written = before + rig.moved(members)
    assert length <= written <= length * 1.4, f"{written} bytes were written to substitutes of {length}"
    rig.whole()


@story
def cancelled_stop(rig: Rig) -> None:
    """It stays cancelled over a stop and a start, and goes on from there."""
    rig.spares(len(rig.cell.lost))
    rig.lose_first()
    rig.begin()
    members = rig.substitutes()
    rig.cancelled()
    tolerance = show(rig.array, NAME)["fault_tolerance"]
    before = rig.moved(members)
    rig.stop()
    rig.still_held(tolerance)
    _goes_on(rig, members, before)


@story
def cancelled_power_cut(rig: Rig) -> None:
    """It stays cancelled over a power cut as well. What was written last may have to be regenerated again."""
    rig.spares(len(rig.cell.lost))
    rig.lose_first()
    rig.begin()
    members = rig.substitutes()
    rig.cancelled()
    tolerance = show(rig.array, NAME)["fault_tolerance"]
    before = rig.moved(members)
    with rig.writing() as writer:
        writer.wait_for(5)
        rig.power_cut()
    rig.still_held(tolerance)
    _goes_on(rig, members, before)


@story
def cancelled_second_lost(rig: Rig) -> None:
    """Nobody is at it when the second is lost; one Recover is for both."""
    rig.spares(len(rig.cell.lost) + 1)
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        rig.cancelled()
        rig.lose(rig.survivor)
        writer.wait_for(5)
        rig.recovered()
    rig.whole()


@story
def cancelled_spare_fails(rig: Rig) -> None:
    """The half-made substitute is lost; the next Recover takes another."""
    rig.spares(len(rig.cell.lost) + 1)
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        rig.cancelled()
        rig.lose(rig.cell.lost[0])
        writer.wait_for(5)
        rig.recovered()
    rig.whole()


@story
def cancelled_beyond(rig: Rig) -> None:
    """A half-made substitute is no copy: the LUN is lost with one more, and nothing is made up from it."""
    rig.spares(len(rig.cell.lost) + 1)
    rig.lose_first()
    rig.begin()
    rig.cancelled()
    rig.lose(rig.last)
    rig.lost()
    rig.stop()
    rig.lost()


@story
def paused(rig: Rig) -> None:
    """It stands still, however fast it may be, until it is resumed."""
    rig.spares(len(rig.cell.lost))
    rig.lose_first()
    rig.begin()
    members = rig.substitutes()
    rig.paused()
    before = rig.moved(members)
    with rig.writing() as writer:
        writer.wait_for(20)
    length = sum(in_bytes(member.length) for member in members)
    assert rig.moved(members) - before <= ROOM * 2 * len(members)
    rig.resumed()
    rig.completed()
    assert rig.moved(members) <= length * 1.4
    rig.whole()


@story
def paused_stop(rig: Rig) -> None:
    """It stays paused over a stop and a start."""
    rig.spares(len(rig.cell.lost))
    rig.lose_first()
    rig.begin()
    rig.paused()
    tolerance = show(rig.array, NAME)["fault_tolerance"]
    rig.stop()
    rig.still_held(tolerance)
    with rig.writing():
        rig.resumed()
        rig.completed()
    rig.whole()


@story
def paused_power_cut(rig: Rig) -> None:
    """And over a power cut."""
    rig.spares(len(rig.cell.lost))
    rig.lose_first()
    rig.begin()
    rig.paused()
    tolerance = show(rig.array, NAME)["fault_tolerance"]
    with rig.writing() as writer:
        writer.wait_for(5)
        rig.power_cut()
    rig.still_held(tolerance)
    rig.resumed()
    rig.completed()
    rig.whole()


@story
def paused_second_lost(rig: Rig) -> None:
    """When it is resumed it is for both."""
    rig.spares(len(rig.cell.lost) + 1)
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        rig.paused()
        rig.lose(rig.survivor)
        writer.wait_for(5)
        rig.resumed()
        rig.completed()
    rig.whole()


@story
def paused_spare_fails_by_errors(rig: Rig) -> None:
    """The kernel loses the half-made substitute while nobody looks, and the task is resumed by the next process."""
    rig.spares(len(rig.cell.lost) + 1)
    with rig.writing():
        rig.lose_first()
        rig.begin()
        rig.paused()
        rig.err(rig.cell.lost[0])
        rig.noticed(rig.cell.lost[0])
        rig.die()
        rig.resumed()
        rig.completed()
    rig.whole()


@story
def process_dies(rig: Rig) -> None:
    """Killed while it waits; the kernel does not care, and the next process takes over."""
    rig.spares(len(rig.cell.lost))
    rig.lose_first()
    rig.close()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _recover_until_killed(rig, writing)
    os.close(writing)
    assert os.read(reading, 1) == b"!"
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    rig.open()
    (task,) = [task for task in rig.array.document.tasks if not task.state.ended]
    rig.number = task.id
    assert task.state is TaskState.IN_PROGRESS
    with rig.writing():
        rig.completed()
    rig.whole()


def _recover_until_killed(rig: Rig, news: int) -> None:
    """For a process of its own, which does not come back."""
    try:
        rig.open()
        rig.begin()

        def tell(_progress: Progress) -> None:
            os.write(news, b"!")

        rig.array.wait(rig.number, on_progress=tell)
    finally:
        os._exit(1)


@story
def stop(rig: Rig) -> None:
    """A clean stop in the middle; the rebuild goes on with the start."""
    rig.spares(len(rig.cell.lost))
    rig.lose_first()
    rig.begin()
    rig.stop()
    with rig.writing() as writer:
        rig.completed()
        writer.wait_for(5)
    rig.whole()


@story
def power_cut(rig: Rig) -> None:
    """Under writes, in the middle."""
    rig.spares(len(rig.cell.lost))
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        writer.wait_for(10)
        rig.power_cut()
    with rig.writing():
        rig.completed()
    rig.whole()


@story
def power_cut_twice(rig: Rig) -> None:
    """Again as soon as the rebuild goes on, and then a clean stop."""
    rig.spares(len(rig.cell.lost))
    with rig.writing() as writer:
        rig.lose_first()
        rig.begin()
        writer.wait_for(5)
        rig.power_cut()
    with rig.writing() as writer:
        writer.wait_for(5)
        rig.power_cut()
    if rig.task is not None and not rig.task.state.ended:
        rig.stop()
    rig.completed()
    rig.whole()


# Too many.


@story
def too_many(rig: Rig) -> None:
    """Refused, spare or no spare, before and after a restart."""
    rig.spares()
    rig.lose_first()
    rig.lose(rig.last)
    rig.lost()
    rig.power_cut()
    rig.lost()


@story
def too_many_by_errors(rig: Rig) -> None:
    """The writer gets errors, and no process of ours knows until it looks."""
    rig.spares()
    with rig.writing() as writer:
        rig._written[-1].cut = True
        rig.err(*rig.cell.lost)
        rig.noticed(*rig.cell.lost)
        rig.err(rig.last)
        until("the writer's error", lambda: writer.error is not None)
    rig.array.attend()
    rig.lost()


@story
def errors_of_the_last_copy(rig: Rig) -> None:
    """md never gives up a last copy. The writer gets errors; when the drive answers again, all that it acknowledged is there."""
    rig.spares(len(rig.cell.lost))
    with rig.writing() as writer:
        rig._written[-1].cut = True
        rig.err(*rig.cell.lost)
        rig.noticed(*rig.cell.lost)
        rig.err(rig.last)
        until("the writer's error", lambda: writer.error is not None)
    rig.array.attend()
    rig.begun_by_itself()
    rig.completed()
    rig.whole()


@story
def too_many_away_and_back(rig: Rig) -> None:
    """Drives without which the LUN cannot be are missing at a start. Nothing is lost by that: they come back, and so does it."""
    rig.spares(len(rig.cell.lost))
    rig.lose_first()
    rig.stop(rig.away(rig.last))
    rig.lost()
    rig.stop(rig.back)
    rig.degraded(rig.cell.lost)
    rig.recovered()
    rig.whole()
