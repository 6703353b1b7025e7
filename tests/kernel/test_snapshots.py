"""Shadow copies on a real kernel: each shows the moment that it was taken of, whatever happens to its origin and to the drives.

Contents are judged by checksums of the whole LUN, read past every cache.
"""

import copy
import mmap
import os
import shutil
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

from blkrecov import resync, views
from blkrecov.array import Array
from blkrecov.dm import names
from blkrecov.dm.control import Control
from blkrecov.errors import DeviceInUse
from blkrecov.events import Event, EventLog
from blkrecov.freeze import Freezer
from blkrecov.model import Layout, Task
from blkrecov.shadows import ShadowRequest
from blkrecov.units import KIB, MIB, SECTOR, Bytes, sectors
from tests.kernel.lab import (
    BLOCK,
    DEADLINE_S,
    Files,
    Lab,
    Slow,
    Writer,
    blkrecov,
    checksum,
    disk_of,
    fail_at_once,
    fill,
    in_sync,
    lun,
    our_devices,
    read,
    recover,
    regions_of,
    run,
    show,
    size_of,
    states,
    tables,
    until,
)

SIZE: Final = 8 * MIB
CHUNK: Final = 64 * KIB
# An hour: until somebody says that it is enough.
HELD_MS: Final = 3_600_000


def take(
    array: Array,
    origin: str,
    name: str,
    *,
    store: int | None = None,
    layout: str | None = None,
    drives: tuple[str, ...] = (),
    exported: bool = False,
) -> str:
    """Take a differential shadow copy, and return the disk to read it by."""
    request = ShadowRequest(
        origin=origin,
        name=name,
        size=Bytes(store) if store else None,
        layout=Layout(layout) if layout else None,
        drives=drives,
        exported=exported,
    )
    proposal, task = array.propose_shadows([request])
    assert task is None
    array.carry_out(proposal)
    return disk_of(array, name)


def begin_plex(array: Array, origin: str, name: str, *, layout: str | None = None, exported: bool = False) -> Task:
    request = ShadowRequest(
        origin=origin, name=name, plex=True, layout=Layout(layout) if layout else None, exported=exported
    )
    proposal, task = array.propose_shadows([request])
    assert task is not None
    return array.start(proposal, task)


def delete(array: Array, name: str) -> None:
    array.carry_out(array.propose_delete(name))


def scribble(disk: str, seed: int, length: int = SIZE) -> str:
    """Change a part of a disk, by writes within a chunk, over the border of two, and over many; the checksum of all of it."""
    fill(disk, BLOCK, seed, offset=seed * CHUNK % length)
    fill(disk, 2 * BLOCK, seed, offset=(seed * 7 % 20 + 1) * CHUNK - BLOCK)
    fill(disk, 2 * MIB, seed, offset=MIB * (seed % 4) + BLOCK)
    return checksum(disk)


def sums(array: Array, *luns: str) -> dict[str, str]:
    return {name: checksum(disk_of(array, name)) for name in luns}


def cannot_read(disk: str) -> bool:
    try:
        read(disk, 0, BLOCK)
    except OSError:
        return True
    return False


def told(lab: Lab, kind: str, name: str) -> list[Event]:
    return [event for event in EventLog(lab.state).read() if (event.kind.value, event.lun) == (kind, name)]


def look(array: Array) -> None:
    """What the monitor does when it is woken."""
    array.attend()


def is_suspended(device: str) -> bool:
    with Control() as control:
        return control.info(device).suspended


def port_fails(array: Array, drive: str) -> None:
    """All I/O to a drive fails from now on, and nobody is told."""
    fail_at_once([names.drive_name(array.document.name, drive)])


# Contents.


@dataclass(frozen=True)
class Case:
    origin: str
    members: int | None
    store: str
    deleted: tuple[str, str, str]

    def __str__(self) -> str:
        return f"{self.origin}-with-stores-of-{self.store}"


CASES = [
    Case("linear", None, "linear", ("one", "two", "three")),
    Case("raid1", 2, "raid5", ("two", "one", "three")),
    Case("raid5", 3, "raid1", ("three", "two", "one")),
    Case("raid10", 4, "linear", ("one", "three", "two")),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_shadow_copy_keeps_its_moment(lab: Lab, case: Case) -> None:
    """Several of one origin, taken at different moments, and deleted in any order: the others, and the origin, stay right."""
    lab.create(6)
    with lab.opened() as array:
        disk = lun(array, "vol", case.origin, SIZE, members=case.members, exported=False)
        fill(disk, SIZE, seed=1)
        wanted = {}
        for seed, name in enumerate(("one", "two", "three")):
            wanted[name] = scribble(disk, seed)
            take(array, "vol", name, layout=case.store)
        now = scribble(disk, seed=11)
        assert len({now, *wanted.values()}) == 4
        assert sums(array, *wanted) == wanted
        for seed, name in enumerate(case.deleted, start=20):
            delete(array, name)
            del wanted[name]
            now = scribble(disk, seed)
            assert sums(array, "vol", *wanted) == {"vol": now, **wanted}
        assert array.trouble == {}
        assert [lun.name for lun in array.document.luns] == ["vol"]
        assert not [name for name in our_devices() if "origin" in name or "shadow" in name]


def test_a_shadow_copy_is_a_read_only_disk_with_an_identity_of_its_own(lab: Lab) -> None:
    """Written to through its SCSI disk or its node it refuses; its origin is written through both."""
    lab.create(3)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", SIZE)
        node = show(array, "vol")["node"]
        wanted = fill(disk, SIZE, seed=1)
        shadow = take(array, "vol", "snap", store=4 * MIB, exported=True)
        fill(disk, MIB, seed=2)
        fill(node, MIB, seed=3, offset=2 * MIB)
        fill(disk, MIB, seed=4, offset=MIB // 2)
        for path in (shadow, node.replace("vol", "snap")):
            assert Path(f"/sys/class/block/{Path(path).resolve().name}/ro").read_text() == "1\n"
            with pytest.raises(OSError, match=r"not permitted|Read-only"):
                fill(path, BLOCK, seed=5)
            assert checksum(path) == wanted
        origin = show(array, "vol")
    shown = blkrecov(lab, "lun", "show", "snap", "--json").json
    assert shown["device"].startswith("/dev/sd")
    assert shown["page83"]["verified"]
    assert shown["page83"]["naa"] != origin["page83"]["naa"]
    assert (shown["shadow_copy_of"], shown["size"], shown["status"]) == ("vol", SIZE, "online")
    assert (origin["shadow_copy_of"], origin["shadow"]) == (None, None)
    assert shown["shadow"]["taken"] > 0
    used = shown["shadow"]["store"].pop("used")
    # Two MiB and a half, by chunks; and what tells of them.
    assert 40 * CHUNK <= used <= 46 * CHUNK
    assert shown["shadow"] == {
        "kind": "differential",
        "taken": shown["shadow"]["taken"],
        "store": {"size": 4 * MIB, "chunk": CHUNK},
        "lost": None,
    }
    assert blkrecov(lab, "snapshot", "list", "--json").json[0]["name"] == "snap"


class Alternating:
    """Writes numbers to two LUNs in turn, each on both before the next one: the later LUN never is ahead."""

    BLOCKS: Final = 64

    def __init__(self, first: str, second: str) -> None:
        self._disks = (first, second)
        self._stopping = False
        self._news = threading.Condition()
        self.number = 0
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="alternating", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.go_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def go_on(self) -> None:
        """Until every block has been written once more."""
        with self._news:
            goal = self.number + self.BLOCKS
            assert self._news.wait_for(lambda: self.number >= goal or self.error is not None, DEADLINE_S)
        assert self.error is None

    def _work(self) -> None:
        part = memoryview(mmap.mmap(-1, BLOCK))
        files = [os.open(disk, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC) for disk in self._disks]
        try:
            while not self._stopping:
                number = self.number + 1
                part[:] = struct.pack("<Q", number) * (BLOCK // 8)
                for file in files:
                    assert os.pwritev(file, [part], number % self.BLOCKS * BLOCK) == BLOCK
                with self._news:
                    self.number = number
                    self._news.notify_all()
        except OSError as error:
            with self._news:
                self.error = error
                self._news.notify_all()
        finally:
            for file in files:
                os.close(file)

    @classmethod
    def last(cls, disk: str) -> int:
        """The last number on a LUN; all before it are there as well."""
        data = read(disk, 0, cls.BLOCKS * BLOCK)
        found = struct.unpack(f"<{len(data) // 8}Q", data)[:: BLOCK // 8]
        last: int = max(found)
        assert sorted(found) == list(range(last - cls.BLOCKS + 1, last + 1))
        return last


def test_a_set_is_of_one_moment(lab: Lab) -> None:
    """Numbers are written to one LUN and then to the other, all the time: no set shows the second LUN ahead of the first, or
    more than one number behind.
    """
    lab.create(4)
    with lab.opened() as array:
        first = lun(array, "first", "raid5", SIZE)
        second = lun(array, "second", "linear", SIZE, exported=False)
        moments = []
        with Alternating(first, second) as numbers:
            for count in range(4):
                requests = [
                    ShadowRequest(origin="first", name=f"a{count}", size=Bytes(2 * MIB), exported=False),
                    ShadowRequest(origin="second", name=f"b{count}", size=Bytes(2 * MIB), exported=False),
                ]
                begun = numbers.number
                array.carry_out(array.propose_shadows(requests)[0])
                ended = numbers.number
                numbers.go_on()
                last = [Alternating.last(disk_of(array, f"{letter}{count}")) for letter in "ab"]
                assert last[0] - last[1] in (0, 1)
                assert begun <= last[1] <= ended + 1
                moments.append(last)
        assert len({first for first, _ in moments}) == 4
        found = [[Alternating.last(disk_of(array, f"{letter}{count}")) for letter in "ab"] for count in range(4)]
        assert found == moments


# File systems.


def test_a_shadow_copy_of_a_mounted_file_system_mounts_as_it_is(lab: Lab) -> None:
    """Read-only, so no journal can be replayed: all that was written before is there, without having been synced. The mount
    goes on meanwhile.
    """
    lab.create(4, size=Bytes(64 * MIB))
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", 32 * MIB)
        files = Files.make(disk, lab.directory / "mnt", 3 * MIB)
        with Writer(files.room("writes", MIB), MIB) as writer:
            writer.wait_for(20)
            (files.point / "unsynced").write_bytes(b"unsynced" * 4096)
            shadow = take(array, "vol", "snap", exported=True)
            (files.point / "file0").unlink()
            writer.wait_for(20)
        seen = copy.copy(files)
        seen.point = lab.directory / "seen"
        assert seen.wrong_on(shadow) == []
        run("mount", "-o", "ro", shadow, str(seen.point))
        assert (seen.point / "unsynced").read_bytes() == b"unsynced" * 4096
        with pytest.raises(DeviceInUse, match="seen"):
            array.propose_delete("snap")
        run("umount", str(seen.point))
        files.umount()


def is_frozen(point: Path) -> bool:
    """Freezes a file system that is not, and thaws it again."""
    done = subprocess.run(["fsfreeze", "--freeze", str(point)], check=False, capture_output=True, text=True)
    if done.returncode:
        assert "busy" in done.stderr
        return True
    run("fsfreeze", "--unfreeze", str(point))
    return False


def killed(lab: Lab, method: str, work: Callable[[Array], object]) -> None:
    """A process that opens the array, and dies as soon as it has come through one of the freezer's methods or the kernel's."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            owner: Any = Freezer if hasattr(Freezer, method) else Control
            original = getattr(owner, method)

            def last(self: object, *words: object, **more: object) -> None:
                original(self, *words, **more)
                os.kill(os.getpid(), signal.SIGKILL)

            with lab.opened() as array:
                setattr(owner, method, last)
                work(array)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("exported", [True, False], ids=["disk", "node"])
@pytest.mark.parametrize("method", ["freeze", "suspend"])
def test_what_a_dead_process_has_frozen_is_thawed_by_the_next(lab: Lab, method: str, exported: bool) -> None:
    """Killed right after the freeze, or with the LUN suspended as well: the next command lets everything go on."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", 16 * MIB, exported=exported)
        files = Files.make(disk, lab.directory / "mnt", MIB)
    killed(lab, method, lambda array: take(array, "vol", "snap"))
    assert is_frozen(files.point)
    answer = blkrecov(lab, "lun", "list", "--json")
    assert answer.status == 0
    assert not is_frozen(files.point)
    assert not [name for name in our_devices() if is_suspended(name)]
    files.add(MIB)
    with lab.opened() as array:
        # Nobody was told of a shadow copy, and none is there that shows some later moment.
        assert [lun.name for lun in array.document.luns] == ["vol"]
        take(array, "vol", "snap")
        assert not is_frozen(files.point)
        seen = copy.copy(files)
        seen.point = lab.directory / "seen"
        assert seen.wrong_on(disk_of(array, "snap")) == []
        files.umount()


@pytest.mark.parametrize("exported", [True, False], ids=["disk", "node"])
def test_what_somebody_else_has_frozen_stays_frozen(lab: Lab, exported: bool) -> None:
    """A user's own fsfreeze is neither in the way nor undone."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", 16 * MIB, exported=exported)
        files = Files.make(disk, lab.directory / "mnt", MIB)
        run("fsfreeze", "--freeze", str(files.point))
        try:
            take(array, "vol", "snap")
            assert is_frozen(files.point)
        finally:
            run("fsfreeze", "--unfreeze", str(files.point))
        seen = copy.copy(files)
        seen.point = lab.directory / "seen"
        assert seen.wrong_on(disk_of(array, "snap")) == []
        files.umount()


# The store.


def test_a_store_that_fills_up_is_told_extended_and_lost_when_it_overflows(lab: Lab) -> None:
    """Its origin never notices, and neither do other shadow copies."""
    lab.create(4)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", 16 * MIB, exported=False)
        wanted = fill(disk, 16 * MIB, seed=1)
        small = take(array, "vol", "small", store=2 * MIB, layout="raid1")
        take(array, "vol", "large", store=17 * MIB)
        fill(disk, MIB, seed=2)
        look(array)
        assert told(lab, "snapshot_filling", "small") == []
        # 26 chunks of 32, with header and table.
        fill(disk, 8 * CHUNK, seed=3, offset=MIB)
        look(array)
        look(array)
        (event,) = told(lab, "snapshot_filling", "small")
        assert "81 %" in event.message
        assert event.remedy.endswith("blkrecov snapshot extend small --store 4194304")
        with Writer(disk, MIB, offset=MIB // 2) as writer:
            array.carry_out(array.propose_extend_store("small", Bytes(4 * MIB)))
            writer.wait_for(1)
        assert show(array, "small")["shadow"]["store"]["size"] == 4 * MIB
        fill(disk, 2 * MIB, seed=4, offset=MIB)
        assert sums(array, "small", "large") == {"small": wanted, "large": wanted}
        look(array)
        assert len(told(lab, "snapshot_filling", "small")) == 1
        now = fill(disk, 16 * MIB, seed=5)
        # Before anybody has looked: what is not right any more cannot be read.
        assert cannot_read(small)
        look(array)
        (event,) = told(lab, "snapshot_lost", "small")
        assert event.remedy.startswith("delete it with: blkrecov snapshot delete small")
        shown = show(array, "small")
        assert (shown["status"], bool(shown["shadow"]["lost"])) == ("failed", True)
        assert cannot_read(small)
        assert sums(array, "vol", "large") == {"vol": now, "large": wanted}
        assert show(array, "vol")["health"] == "healthy"
    answer = blkrecov(lab, "snapshot", "extend", "small", "--store", "8M", "--json")
    assert (answer.status, answer.error["code"]) == (1, "VDS_E_INVALID_OPERATION")
    assert "blkrecov snapshot delete small" in answer.error["remedy"]
    assert blkrecov(lab, "snapshot", "delete", "small").status == 0
    with lab.opened() as array:
        now = fill(disk_of(array, "vol"), 16 * MIB, seed=6)
        assert sums(array, "vol", "large") == {"vol": now, "large": wanted}


def test_a_shadow_copy_is_lost_when_its_linear_store_fails(lab: Lab) -> None:
    """Writes go on. When its drive answers again the store still looks good to the kernel, and must never be believed."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", SIZE, drives=("d0",), exported=False)
        fill(disk, SIZE, seed=1)
        shadow = take(array, "vol", "snap", layout="linear", drives=("d1",))
        fill(disk, MIB, seed=2)
        port_fails(array, "d1")
        fill(disk, 2 * MIB, seed=3)
        now = checksum(disk)
        assert cannot_read(shadow)
        look(array)
        assert (show(array, "snap")["status"], len(told(lab, "snapshot_lost", "snap"))) == ("failed", 1)
        array.stop()
    with lab.opened() as array:
        assert (array.document.drive("d1").status.value, show(array, "snap")["status"]) == ("online", "failed")
        assert cannot_read(disk_of(array, "snap"))
        assert checksum(disk_of(array, "vol")) == now
        delete(array, "snap")
        assert regions_of(array, "d1") == set()


@pytest.mark.long
def test_a_shadow_copy_outlives_a_drive_of_its_mirrored_store(lab: Lab) -> None:
    """A raid1 store loses a leg and is recovered as any LUN is; then it can do without the other."""
    lab.create(3)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", SIZE, drives=("d0",), exported=False)
        wanted = fill(disk, SIZE, seed=1)
        take(array, "vol", "snap", layout="raid1", drives=("d1", "d2"))
        in_sync(array, "snap")
        port_fails(array, "d1")
        scribble(disk, seed=2)
        array.fail_drive("d1")
        scribble(disk, seed=3)
        assert (states(array, "snap"), sums(array, "snap")) == (["failed", "in_sync"], {"snap": wanted})
        lab.add(array, "d3")
        assert recover(array, "snap", "d3").code == "S_OK"
        array.fail_drive("d2")
        now = scribble(disk, seed=4)
        assert (states(array, "snap"), sums(array, "snap")) == (["in_sync", "failed"], {"snap": wanted})
        assert checksum(disk) == now
        assert told(lab, "snapshot_lost", "snap") == []


# Restarts.


@pytest.mark.parametrize(
    ("layout", "store", "restarts"),
    [("raid5", "raid1", ("stop", "power_cut")), ("linear", "linear", ("power_cut", "stop"))],
    ids=["raid5", "linear"],
)
def test_shadow_copies_outlive_restarts(lab: Lab, layout: str, store: str, restarts: tuple[str, str]) -> None:
    """All of them, whatever was written before and is written afterwards; with the same identity, read-only as before."""
    lab.create(4)
    with lab.opened() as array:
        disk = lun(array, "vol", layout, SIZE, exported=False)
        wanted = {}
        for seed, name in enumerate(("one", "two")):
            wanted[name] = fill(disk, SIZE, seed) if not seed else scribble(disk, seed)
            take(array, "vol", name, layout=store, exported=name == "one")
        now = scribble(disk, seed=5)
        before = show(array, "one")
    for seed, restart in enumerate(restarts, start=6):
        getattr(lab, restart)()
        with lab.opened() as array:
            assert array.trouble == {}
            assert sums(array, "vol", *wanted) == {"vol": now, **wanted}
            after = show(array, "one")
            assert (after["page83"], after["shadow"]) == (before["page83"], before["shadow"])
            assert Path(f"/sys/class/block/{Path(after['device']).name}/ro").read_text() == "1\n"
            now = scribble(disk_of(array, "vol"), seed)
            assert sums(array, *wanted) == wanted
            before = show(array, "one")


def test_a_power_cut_under_writes_leaves_shadow_copies_right(lab: Lab) -> None:
    """What the origin has acknowledged is there, and nothing of it in what shows an earlier moment."""
    lab.create(4)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", SIZE, exported=False)
        wanted = {}
        fill(disk, SIZE, seed=1)
        with Writer(disk, SIZE) as writer:
            writer.wait_for(20)
            # A moment in the middle of writes: what it shows is taken down while it is new.
            take(array, "vol", "one", layout="raid1")
            wanted["one"] = checksum(disk_of(array, "one"))
            writer.wait_for(20)
            take(array, "vol", "two", layout="linear")
            wanted["two"] = checksum(disk_of(array, "two"))
            writer.wait_for(50)
            lab.power_cut()
    with lab.opened() as array:
        assert sums(array, *wanted) == wanted
        assert writer.wrong(disk_of(array, "vol")) == []


@contextmanager
def away(lab: Lab, drive: str) -> Iterator[None]:
    """The drive's file is where no search goes."""
    hidden = lab.directory / "away/and/out"
    hidden.mkdir(parents=True, exist_ok=True)
    shutil.move(lab.path(drive), hidden / drive)
    try:
        yield
    finally:
        shutil.move(hidden / drive, lab.path(drive))


@pytest.mark.parametrize("restart", ["stop", "power_cut"])
def test_a_shadow_copy_whose_store_was_away_is_lost_for_good(lab: Lab, restart: str) -> None:
    """Its origin was used without it; nothing on the store tells of that when it is back."""
    lab.create(3)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", SIZE, drives=("d0",), exported=False)
        wanted = {"other": fill(disk, SIZE, seed=1)}
        take(array, "vol", "snap", layout="linear", drives=("d1",))
        take(array, "vol", "other", layout="linear", drives=("d2",))
        fill(disk, MIB, seed=2)
    getattr(lab, restart)()
    with away(lab, "d1"):
        with lab.opened() as array:
            fill(disk_of(array, "vol"), 2 * MIB, seed=3)
            now = checksum(disk_of(array, "vol"))
            assert (show(array, "snap")["status"], sums(array, "other")) == ("failed", wanted)
            assert cannot_read(disk_of(array, "snap"))
        getattr(lab, restart)()
    with lab.opened() as array:
        assert len(told(lab, "snapshot_lost", "snap")) == 1
        assert "was away while LUN vol was used" in show(array, "snap")["shadow"]["lost"]
        assert cannot_read(disk_of(array, "snap"))
        assert sums(array, "vol", "other") == {"vol": now, **wanted}
        delete(array, "snap")


def test_a_shadow_copy_waits_for_an_origin_that_is_away(lab: Lab) -> None:
    """Nobody could write to it meanwhile: nothing is lost, and both are right when it is back."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", SIZE, exported=False, drives=("d0", "d1"))
        wanted = fill(disk, SIZE, seed=1)
        lab.add(array, "d2")
        take(array, "vol", "snap", layout="linear", drives=("d2",))
        now = scribble(disk, seed=2)
        array.stop()
    with away(lab, "d0"), away(lab, "d1"), lab.opened() as array:
        assert {show(array, name)["status"] for name in ("vol", "snap")} == {"failed"}
        assert show(array, "snap")["shadow"]["lost"] is None
        array.stop()
    with lab.opened() as array:
        assert array.trouble == {}
        assert sums(array, "vol", "snap") == {"vol": now, "snap": wanted}
        scribble(disk_of(array, "vol"), seed=3)
        assert sums(array, "snap") == {"snap": wanted}


# What happens to the origin.


def moved(array: Array, name: str, old: str, new: str) -> Task:
    proposal, task = array.propose_replace(name, old, new)
    return array.wait(array.start(proposal, task).id, timeout_s=DEADLINE_S)


@pytest.mark.long
def test_an_origin_is_recovered_moved_and_extended_under_its_shadow_copies(lab: Lab) -> None:
    """A drive fails while both are written to; the origin is recovered, moves to another drive, grows: contents stay."""
    lab.create(3, spares=2)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", SIZE, exported=False)
        wanted = {"one": fill(disk, SIZE, seed=1)}
        in_sync(array, "vol")
        # On the same drives: the one that fails takes a member of both.
        take(array, "vol", "one", layout="raid1", drives=("d0", "d1"))
        with Writer(disk, SIZE // 2) as writer:
            writer.wait_for(10)
            array.fail_drive("d0")
            writer.wait_for(10)
            assert (states(array, "vol")[0], states(array, "one")[0]) == ("failed", "failed")
            assert sums(array, "one") == wanted
            assert recover(array, "vol", "s0").code == "S_OK"
            assert recover(array, "one", "s1").code == "S_OK"
            writer.wait_for(10)
            lab.add(array, "d3")
            assert moved(array, "vol", "d1", "d3").code == "S_OK"
            writer.wait_for(10)
        assert writer.wrong() == []
        wanted["two"] = scribble(disk, seed=2)
        take(array, "vol", "two", layout="linear")
        with Writer(disk, SIZE // 2) as writer:
            array.carry_out(array.propose_extend("vol", Bytes(2 * SIZE)))
            writer.wait_for(10)
        assert writer.wrong() == []
        fill(disk, SIZE, seed=3, offset=SIZE)
        now = checksum(disk)
        assert {name: show(array, name)["size"] for name in ("vol", *wanted)} == {
            "vol": 2 * SIZE,
            "one": SIZE,
            "two": SIZE,
        }
        assert sums(array, "vol", *wanted) == {"vol": now, **wanted}
        wanted["three"] = now
        take(array, "vol", "three", store=17 * MIB, layout="linear")
        now = fill(disk, 2 * SIZE, seed=4)
        assert sums(array, "vol", *wanted) == {"vol": now, **wanted}
        array.stop()
    with lab.opened() as array:
        assert sums(array, "vol", *wanted) == {"vol": now, **wanted}


@pytest.mark.long
def test_a_linear_origin_and_a_linear_store_move_to_other_drives(lab: Lab) -> None:
    """Their plexes go through a mirror for that while and past it afterwards: no write to the origin goes unsaved."""
    lab.create(4)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", SIZE, drives=("d0",), exported=False)
        wanted = fill(disk, SIZE, seed=1)
        take(array, "vol", "snap", layout="linear", drives=("d1",))
        with Writer(disk, SIZE) as writer:
            writer.wait_for(10)
            assert moved(array, "vol", "d0", "d2").code == "S_OK"
            writer.wait_for(10)
            assert moved(array, "snap", "d1", "d3").code == "S_OK"
            writer.wait_for(10)
        assert writer.wrong() == []
        assert sums(array, "snap") == {"snap": wanted}
        assert [regions_of(array, drive) for drive in ("d0", "d1", "d2", "d3")] == [set(), set(), {"vol"}, {"snap"}]


# Plexes.


def test_a_plex_needs_its_origin_no_more(lab: Lab) -> None:
    """It has all the contents, on members of its own, and is as read-only as any shadow copy."""
    lab.create(4)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", SIZE)
        wanted = fill(disk, SIZE, seed=1)
        task = array.wait(begin_plex(array, "vol", "plex", exported=True).id, timeout_s=DEADLINE_S)
        assert (task.code, task.percent) == ("S_OK", 100)
        now = scribble(disk, seed=2)
        assert sums(array, "vol", "plex") == {"vol": now, "plex": wanted}
        shown = show(array, "plex")
        assert (shown["layout"], shown["shadow_copy_of"], shown["status"]) == ("raid5", "vol", "online")
        assert (shown["shadow"]["kind"], shown["shadow"]["store"]) == ("plex", None)
        assert shown["page83"]["verified"]
        assert shown["page83"]["naa"] != show(array, "vol")["page83"]["naa"]
        # What it was filled from is gone.
        assert [lun.name for lun in array.document.luns] == ["vol", "plex"]
        with pytest.raises(OSError, match=r"not permitted|Read-only"):
            fill(shown["device"], BLOCK, seed=3)
        take(array, "plex", "again")
        assert sums(array, "again") == {"again": wanted}
        delete(array, "again")
        origin = str(array.document.lun("vol").uuid)
        delete(array, "vol")
        assert show(array, "plex")["shadow_copy_of"] == origin
        array.stop()
    with lab.opened() as array:
        assert sums(array, "plex") == {"plex": wanted}


@pytest.mark.long
def test_a_plex_has_holes_where_its_origin_has(lab: Lab) -> None:
    """What was never written is not copied, and takes no room in the drive's file."""
    size = 64 * MIB
    lab.create(2, size=Bytes(80 * MIB))
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", size, drives=("d0",), exported=False)
        fill(disk, MIB, seed=1)
        fill(disk, MIB, seed=2, offset=40 * MIB)
        before = lab.path("d1").stat().st_blocks * SECTOR
        task = array.wait(begin_plex(array, "vol", "plex", layout="linear").id, timeout_s=DEADLINE_S)
        assert task.code == "S_OK"
        assert 2 * MIB <= task.bytes_kernel <= 4 * MIB
        assert checksum(disk_of(array, "plex")) == checksum(disk)
        assert 2 * MIB <= lab.path("d1").stat().st_blocks * SECTOR - before <= 5 * MIB


LARGE: Final = 36 * MIB
END: Final = 32 * MIB


@dataclass
class Half:
    """A plex whose first part is filled; its last, on a drive that takes no writes for now, is not."""

    slow: Slow
    wanted: str
    task: int

    def change(self, array: Array) -> str:
        """Write to the origin, where it is copied already and where it is not; the checksum of all of it."""
        disk = disk_of(array, "vol")
        fill(disk, MIB, seed=3, offset=BLOCK)
        fill(disk, MIB, seed=4, offset=END + MIB)
        return checksum(disk)

    def is_under_way(self, array: Array) -> bool:
        return not array.advance(self.task).state.ended

    def go_on(self) -> None:
        self.slow.delay(0)

    @contextmanager
    def going_on_when(self, what: str, ask: Callable[[], object]) -> Iterator[None]:
        """What is done meanwhile waits for writes that are held: they go on as soon as it has come so far."""

        def work() -> None:
            until(what, ask)
            self.go_on()

        thread = threading.Thread(target=work)
        thread.start()
        yield
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


@pytest.fixture
def begin_half(slow: Slow, lab: Lab) -> Iterator[Callable[[Array], Half]]:
    """Six drives, of which five carry the configuration: the slow one is no part of them. Ask for it before `lab`."""
    lab.create(5)

    def begin(array: Array) -> Half:
        array.add_drive(str(slow.directory / "s0"), size=slow.drive, name="s0", spare=True, force=False)
        disk = lun(array, "vol", "linear", LARGE, drives=("d0", "d1"), exported=False)
        fill(disk, 4 * MIB, seed=1)
        fill(disk, 4 * MIB, seed=2, offset=END)
        wanted = checksum(disk)
        request = ShadowRequest(origin="vol", name="plex", plex=True, layout=Layout.LINEAR, drives=("d2", "s0"))
        proposal, task = array.propose_shadows([request])
        assert task is not None
        array.carry_out(proposal)
        # Not before: to make it empty is to write to it.
        slow.delay(HELD_MS)
        array.advance(task.id)

        def half() -> bool:
            array.observe()
            (target,) = resync.targets(array.document, array.document.task(task.id))
            return resync.copied(array.observed, target).done >= sectors(Bytes(4 * MIB))

        until("half of the copy", half)
        return Half(slow, wanted, task.id)

    yield begin
    slow.delay(0)


def test_a_plex_is_of_the_moment_when_it_was_begun(begin_half: Callable[[Array], Half], lab: Lab) -> None:
    """Its origin is written to while it is filled. Until it is whole it is not ready, whoever asks."""
    with lab.opened() as array:
        half = begin_half(array)
        now = half.change(array)
        assert half.is_under_way(array)
        shown = show(array, "plex")
        assert (shown["status"], shown["shadow"]["kind"], shown["task"]) == ("not_ready", "plex", half.task)
        assert cannot_read(shown["node"])
        # A SCSI disk that was never ready has no size yet.
        assert size_of(shown["device"]) == 0
        half.go_on()
        assert array.wait(half.task, timeout_s=DEADLINE_S).code == "S_OK"
        assert show(array, "plex")["status"] == "online"
        assert sums(array, "vol", "plex") == {"vol": now, "plex": half.wanted}
        assert [lun.name for lun in array.document.luns] == ["vol", "plex"]


def left(array: Array) -> object:
    """All that a plex could leave behind."""
    array.observe()
    uses = [views.regions(array.document, drive) for drive in array.document.drives]
    return [lun.name for lun in array.document.luns], uses, our_devices(), len(array.observed.exports)


@pytest.mark.long
def test_a_plex_that_is_cancelled_leaves_nothing_behind(begin_half: Callable[[Array], Half], lab: Lab) -> None:
    """Neither a LUN nor an extent nor a device, and nothing above its origin's plex."""

    def cancelled() -> list[Event]:
        return [event for event in EventLog(lab.state).read() if event.kind.value == "snapshot_cancelled"]

    with lab.opened() as array:
        half = begin_half(array)
        now = half.change(array)
        assert half.is_under_way(array)
        with half.going_on_when("the cancellation", cancelled):
            task = array.cancel(half.task)
        assert (task.state.value, task.code, len(cancelled())) == ("cancelled", "VSS_S_ASYNC_CANCELLED", 1)
        after = left(array)
        assert sums(array, "vol") == {"vol": now}
        delete(array, "vol")
        lun(array, "vol", "linear", LARGE, drives=("d0", "d1"), exported=False)
        assert left(array) == after


@pytest.mark.parametrize("restart", ["process", "power_cut"])
def test_a_plex_goes_on_after_a_restart(begin_half: Callable[[Array], Half], lab: Lab, restart: str) -> None:
    """Whoever opens the array next sees it to its end; what was written to the origin before and after is no part of it."""
    with lab.opened() as array:
        half = begin_half(array)
        half.change(array)
        assert half.is_under_way(array)
    match restart:
        case "stop":
            node = names.lun_name(lab.name, "plex")
            with half.going_on_when("the end of the plex's node", lambda: node not in our_devices()):
                lab.stop()
        case "power_cut":
            port = names.drive_name(lab.name, "d0")
            with half.going_on_when("the loss of power", lambda: is_suspended(port)):
                lab.power_cut()
    with lab.opened() as array:
        fill(disk_of(array, "vol"), 2 * MIB, seed=5, offset=END - MIB)
        now = checksum(disk_of(array, "vol"))
        half.go_on()
        assert array.wait(half.task, timeout_s=DEADLINE_S).code == "S_OK"
        assert sums(array, "vol", "plex") == {"vol": now, "plex": half.wanted}
        assert [lun.name for lun in array.document.luns] == ["vol", "plex"]


@pytest.mark.long
def test_plexes_of_a_set_are_of_one_moment(lab: Lab) -> None:
    """They are filled one beside the other, by one task."""
    lab.create(4)
    with lab.opened() as array:
        first = lun(array, "first", "raid1", SIZE, exported=False)
        second = lun(array, "second", "linear", SIZE, exported=False)
        requests = [
            ShadowRequest(origin=name, name=f"{name}-plex", plex=True, layout=Layout.LINEAR, exported=False)
            for name in ("first", "second")
        ]
        with Alternating(first, second) as numbers:
            proposal, task = array.propose_shadows(requests)
            assert task is not None
            task = array.start(proposal, task)
            numbers.go_on()
            assert array.wait(task.id, timeout_s=DEADLINE_S).code == "S_OK"
            numbers.go_on()
        last = [Alternating.last(disk_of(array, f"{name}-plex")) for name in ("first", "second")]
        assert last[0] - last[1] in (0, 1)


# Refusals.


REFUSALS = [
    ("lun delete vol", "VDS_E_INVALID_OPERATION", "blkrecov snapshot delete"),
    ("snapshot create snap copy", "VDS_E_INVALID_OPERATION", "take one of its origin"),
    ("snapshot create --plex snap copy", "VDS_E_INVALID_OPERATION", "take one of its origin"),
    ("snapshot create vol snap", "VDS_E_OBJECT_EXISTS", "another name"),
    ("snapshot create vol vol", "VDS_E_OBJECT_EXISTS", "another name"),
    ("snapshot create vol one vol one --layout linear", "VDS_E_OBJECT_EXISTS", "another name"),
    ("snapshot create vol one two", "E_INVALIDARG", "name each LUN, and after it its shadow copy"),
    ("snapshot create other one --store 60M", "VSS_E_INSUFFICIENT_STORAGE", "a smaller --store"),
    ("snapshot create --plex other one --layout raid1", "VSS_E_INSUFFICIENT_STORAGE", "drive add"),
    ("snapshot create vol one --layout raid6", "VSS_E_INSUFFICIENT_STORAGE", "drive add"),
    ("snapshot create other one --chunk 48K", "E_INVALIDARG", "a power of two from 4 KiB to 512 KiB"),
    ("snapshot create other one --chunk 1M", "E_INVALIDARG", "a power of two from 4 KiB to 512 KiB"),
    ("snapshot create vol one --chunk 16K", "E_INVALIDARG", "the same chunk"),
    ("snapshot create vol drive", "E_INVALIDARG", ""),
    ("snapshot create nothing one", "VDS_E_OBJECT_NOT_FOUND", "lun list"),
    ("snapshot extend snap --store 1M", "E_INVALIDARG", ""),
    ("snapshot extend snap --store 60M", "VSS_E_INSUFFICIENT_STORAGE", "drive add"),
    ("snapshot extend vol --store 16M", "VSS_E_OBJECT_NOT_FOUND", "snapshot list"),
    ("snapshot delete vol", "VSS_E_OBJECT_NOT_FOUND", "snapshot list"),
    ("snapshot delete nothing", "VDS_E_OBJECT_NOT_FOUND", "lun list"),
    ("lun extend snap --size 40M", "VDS_E_INVALID_OPERATION", "snapshot extend"),
]
PLANS = [
    "snapshot create vol one",
    "snapshot create vol one other two",
    "snapshot create --plex vol one",
    "snapshot extend snap --store 3M",
    "snapshot delete snap",
]


@pytest.mark.long
def test_what_is_refused_or_planned_changes_nothing(lab: Lab) -> None:
    """Each refusal with its code, and what to do about it; a plan has steps, and none of them is taken."""
    lab.create(3)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", SIZE, drives=("d0", "d1"), exported=False)
        lun(array, "other", "linear", 50 * MIB, exported=False)
        in_sync(array, "vol")
        wanted = {"vol": fill(disk, SIZE, seed=1)}
        take(array, "vol", "snap", store=2 * MIB, layout="linear")
        wanted["snap"] = wanted["vol"]
        in_sync(array, "vol")
    before = lab.sequence(), tables()
    wrong = []
    for words, code, remedy in REFUSALS:
        answer = blkrecov(lab, *words.split(), "--json")
        error = answer.error if answer.err else {"code": "", "remedy": ""}
        if answer.status != 1 or error["code"] != code or remedy not in error["remedy"]:
            wrong.append((words, answer.status, error))
    assert not wrong, "\n".join(map(str, wrong))
    assert (lab.sequence(), tables()) == before
    with lab.opened() as array:
        lab.add(array, "d3", "d4")
    before = lab.sequence(), tables()
    for words in PLANS:
        answer = blkrecov(lab, *words.split(), "--plan", "--json")
        assert (answer.status, len(answer.json["steps"]) > 2) == (0, True), words
    assert (lab.sequence(), tables()) == before
    with lab.opened() as array:
        assert sums(array, "vol", "snap") == wanted
