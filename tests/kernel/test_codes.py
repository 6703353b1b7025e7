"""Every answer of IVdsLun::Recover and of its IVdsAsync, brought about on a real kernel, and which of two reasons is told.

Each row of the table is brought about by what would bring it about for an operator: a drive that is lost, a device that somebody
has removed, a limit that is reached. The precedence is that of the specification: what makes the answer untrustworthy first, then
lasting facts, then passing ones, so that who tries again on "busy" never does so for what can never work.
"""

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from unittest import mock

import msgspec
import pytest

from blkrecov import tasks
from blkrecov.actor import Undo
from blkrecov.array import Array
from blkrecov.drives.label import BLOCK as LABEL
from blkrecov.errors import BlkrecovError, CacheCorrupt, Code
from blkrecov.geometry import Request
from blkrecov.model import Layout, Phase, Task, TaskState
from blkrecov.proposal import Proposal
from blkrecov.steps import CreateDevice, ReplaceTable, Step
from blkrecov.units import MIB, Bytes
from tests.kernel.lab import (
    DEADLINE_S,
    Lab,
    Slow,
    blkrecov,
    checksum,
    disagreements,
    fill,
    in_sync,
    lun,
    our_devices,
    read,
    recover,
    run,
    show,
    states,
    tables,
    until,
    write,
)


@dataclass(frozen=True)
class Row:
    """A code, and words that must be in the message and in the remedy."""

    code: str
    hresult: int
    message: str
    remedy: str


ROWS: Final = {
    "the lowest rate is above the highest": Row("E_INVALIDARG", 0x80070057, "is above the highest", "choose a highest"),
    "the spare serves the LUN": Row("E_INVALIDARG", 0x80070057, "'d1' serves LUN 'vol' already", "does not use"),
    "the spare is set aside": Row("E_INVALIDARG", 0x80070057, "'late' is set aside", "drive trust late"),
    "the array is not open": Row("VDS_E_INITIALIZE_NOT_CALLED", 0x80042402, "not open", "open the array"),
    "a device was removed": Row("VDS_E_PROVIDER_CACHE_CORRUPT", 0x8004241F, "blkrecov-lab-vol has gone", "reenumerate"),
    "a device was renamed": Row("VDS_E_PROVIDER_CACHE_CORRUPT", 0x8004241F, "blkrecov-lab-vol", "reenumerate"),
    "a leg was renamed": Row("VDS_E_PROVIDER_CACHE_CORRUPT", 0x8004241F, "blkrecov-lab-vol-rimage_0", "reenumerate"),
    "another process has written the configuration": Row(
        "VDS_E_PROVIDER_CACHE_CORRUPT", 0x8004241F, "another version of the configuration", "reenumerate"
    ),
    "the LUN was deleted": Row("VDS_E_OBJECT_DELETED", 0x8004240B, "'five' has been deleted", "lun list"),
    "there never was such a LUN": Row("VDS_E_OBJECT_NOT_FOUND", 0x80042405, "'nobody'", "lun list"),
    "a raid5 has lost two": Row("VDS_E_OBJECT_STATUS_FAILED", 0x80042431, "lost members 0, 1 of 3", "bring its drives"),
    "a raid1 has lost both": Row("VDS_E_OBJECT_STATUS_FAILED", 0x80042431, "0, 1 of 2", "bring its drives back"),
    "a raid0 has lost one": Row("VDS_E_OBJECT_STATUS_FAILED", 0x80042431, "raid0 can do without", "bring its drives"),
    "the LUN is linear": Row("VDS_E_INVALID_OPERATION", 0x80042415, "without redundancy", "restore its contents"),
    "the LUN is raid0, with a hot spare": Row(
        "VDS_E_INVALID_OPERATION", 0x80042415, "is raid0", "restore its contents"
    ),
    "a recovery is under way": Row("VDS_E_ANOTHER_CALL_IN_PROGRESS", 0x80042404, "(recover) is under way", "task wait"),
    "a scrub is under way": Row("VDS_E_ANOTHER_CALL_IN_PROGRESS", 0x80042404, "(scrub) is under way", "task wait"),
    "no drive is left": Row("VDS_E_NOT_ENOUGH_DRIVE", 0x80042410, "serves LUN 'vol' already", "drive add"),
    "no drive has the space": Row("VDS_E_NOT_ENOUGH_SPACE", 0x8004240F, "free that a substitute needs", "drive add"),
    "no file can be opened": Row("E_OUTOFMEMORY", 0x8007000E, "Too many open files", "raise the limit"),
    "there is no memory": Row("E_OUTOFMEMORY", 0x8007000E, "memory", "raise the limit"),
    "the kernel refuses a leg": Row(
        "VDS_E_PROVIDER_FAILURE", 0x80042442, "the kernel says: device-mapper: table: ", "journalctl"
    ),
    "the kernel refuses the plex": Row("VDS_E_PROVIDER_FAILURE", 0x80042442, "the kernel says: ", "journalctl"),
    "a member's drive is not itself": Row("VDS_E_OPERATION_DENIED", 0x8004240A, "'d1' (", "page83 check"),
    "the spare is not itself": Row("VDS_E_OPERATION_DENIED", 0x8004240A, "'late' (", "page83 check"),
    "the LUN is healthy": Row("S_OK", 0, "nothing to do", ""),
    "the task is under way": Row("VDS_E_OPERATION_PENDING", 0x80042409, "", ""),
    "the task was cancelled": Row("VDS_E_OPERATION_CANCELED", 0x8004240D, "was cancelled", "start it again"),
    "Cancel comes twice": Row("VDS_E_OPERATION_CANCELED", 0x8004240D, "is cancelled already", "start it again"),
    "Cancel comes while it verifies": Row("VDS_E_CANCEL_TOO_LATE", 0x8004240C, "only verifies it", "task wait"),
    "Cancel comes after the end": Row("VDS_E_CANCEL_TOO_LATE", 0x8004240C, "is completed already", "it has ended"),
    "the wait is over before the task": Row("VDS_E_TIMEOUT", 0x8004245F, "has not ended within", "task wait"),
    "the task has done its work": Row("S_OK", 0, "verified", ""),
    "the task has failed": Row("VDS_E_OBJECT_STATUS_FAILED", 0x80042431, "lost too many members", "bring its drives"),
}
PAIRS: Final = (
    ("the lowest rate is above the highest", "the array is not open"),
    ("the array is not open", "a device was removed"),
    ("a device was removed", "the LUN was deleted"),
    ("the LUN was deleted", "a raid5 has lost two"),
    ("a raid0 has lost one", "the LUN is raid0, with a hot spare"),
    ("the LUN is raid0, with a hot spare", "a replacement is under way"),
    ("a recovery is under way", "no drive is left"),
)


@dataclass
class Table:
    """What has been produced of the table so far."""

    rows: set[str] = field(default_factory=set)
    pairs: set[tuple[str, str]] = field(default_factory=set)

    def refused(self, situation: str, call: Callable[[], object]) -> None:
        """A call is refused as the row says."""
        wanted = ROWS[situation]
        with pytest.raises(BlkrecovError) as caught:
            call()
        error = caught.value
        assert (error.code.name, error.code.hresult) == (wanted.code, wanted.hresult), f"{situation}: {error.message}"
        assert wanted.message in error.message, situation
        assert wanted.remedy in error.remedy, situation
        self.rows.add(situation)

    def refused_everywhere(
        self, situation: str, call: Callable[[], object], lab: Lab, array: Array, *words: str
    ) -> None:
        """A call is refused as the row says, and so is a command."""
        self.refused(situation, call)
        with array.unlocked():
            self.told(situation, lab, *words)
        array.reload()

    def told(self, situation: str, lab: Lab, *words: str) -> None:
        """A command is refused as the row says."""
        wanted = ROWS[situation]
        answer = blkrecov(lab, *words, "--json")
        assert (answer.status, answer.out) == (1, ""), f"{situation}: {answer}"
        assert answer.error["code"] == wanted.code, f"{situation}: {answer}"
        assert answer.error["hresult"] == f"0x{wanted.hresult:08X}"
        assert wanted.message in answer.error["message"], f"{situation}: {answer}"
        assert wanted.remedy in answer.error["remedy"], f"{situation}: {answer}"

    def stands(self, situation: str, task: Task, percent: int | range) -> None:
        """A task shows what the row says (IVdsAsync::QueryStatus)."""
        wanted = ROWS[situation]
        code, shown = tasks.vds_status(task)
        assert (code.name, code.hresult) == (wanted.code, wanted.hresult), f"{situation}: {task}"
        assert shown in (percent if isinstance(percent, range) else (percent,)), f"{situation}: {task}"
        if task.state.ended:
            assert task.percent == shown, f"{situation}: {task}"
        assert wanted.message in task.message
        assert wanted.remedy in task.remedy
        self.rows.add(situation)

    def first(self, told: str, other: str, call: Callable[[], object]) -> None:
        """Both situations are so, and the first is told."""
        wanted = ROWS[told]
        with pytest.raises(BlkrecovError) as caught:
            call()
        assert caught.value.code.name == wanted.code, f"{told} before {other}: {caught.value.message}"
        assert wanted.message in caught.value.message, f"{told} before {other}"
        self.pairs.add((told, other))


@pytest.fixture(scope="module")
def table() -> Table:
    return Table()


@contextmanager
def no_files() -> Iterator[None]:
    """This process can open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    held = []
    try:
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def without_memory(call: Callable[[], object]) -> None:
    """Do it in a process that gets no page more, and raise here what it raised there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            call()
        except BlkrecovError as error:
            os.write(writing, json.dumps([error.code.name, error.message, error.remedy]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert said, "nothing was raised that is ours"
    code, message, remedy = json.loads(said)
    raise type("InTheChild", (BlkrecovError,), {"code": Code[code]})(message, remedy=remedy)


@contextmanager
def label_of(array: Array, drive: str, other: str) -> Iterator[None]:
    """A drive bears the label of another, as if cables had been swapped."""
    ours, theirs = (array._backings[array.document.drive(name).uuid] for name in (drive, other))
    kept = read(ours, 0, LABEL)
    write(ours, 0, read(theirs, 0, LABEL))
    try:
        yield
    finally:
        write(ours, 0, kept)


@contextmanager
def taken(array: Array, prefix: str) -> Iterator[None]:
    """The new leg whose name begins so is held by somebody from its making until a raid table was tried with it."""
    act = array._actor.act
    held: list[int] = []

    def with_somebody(step: Step) -> Undo | None:
        try:
            undo = act(step)
        finally:
            if isinstance(step, ReplaceTable) and held:
                os.close(held.pop())
        if isinstance(step, CreateDevice) and step.device.name.startswith(prefix):
            held.append(os.open(array._actor.path_of(f"/dev/mapper/{step.device.name}"), os.O_RDONLY | os.O_EXCL))
        return undo

    with mock.patch.object(array._actor, "act", with_somebody):
        yield
    assert held == []


def changed(array: Array, drive: str, *, failing: str) -> None:
    document = array.document.with_drive(msgspec.structs.replace(array.document.drive(drive), failing=failing))
    array.carry_out(Proposal(document=document, why="for the test"))


def slowed(array: Array, rate: int) -> None:
    """What the kernel synchronises from now on keeps to so many bytes per second and member."""
    array.carry_out(Proposal(document=msgspec.structs.replace(array.document, rate_max=rate), why="for the test"))


def begun(array: Array, name: str, **rates: int) -> Task:
    proposal, task = array.propose_recover(name, None, **rates)
    return array.start(proposal, task)


def test_arguments_and_resources(lab: Lab, table: Table) -> None:
    """What is asked of a LUN, and what it would take. The same after each refusal as before; in the end it is recovered."""
    lab.create(3)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", 32 * MIB, drives=("d0", "d1", "d2"), exported=False)
        in_sync(array, "vol")
        digest = fill(disk, 32 * MIB, seed=1)
        table.stands("the LUN is healthy", recover(array, "vol"), 100)
        with array.unlocked():
            answer = blkrecov(lab, "recover", "vol", "--json")
        assert (answer.status, answer.json["code"], answer.json["percent"]) == (0, "S_OK", 100)
        array.reload()
        table.refused_everywhere(
            "there never was such a LUN",
            lambda: array.propose_recover("nobody", None),
            lab,
            array,
            "recover",
            "nobody",
        )
        table.refused_everywhere(
            "the lowest rate is above the highest",
            lambda: array.propose_recover("vol", None, rate_min=2 * MIB, rate_max=MIB),
            lab,
            array,
            *("recover", "vol", "--rate-min", "2M", "--rate-max", "1M"),
        )
        array.fail_drive("d0")
        before = (array.document, tables())

        def ask() -> object:
            return array.propose_recover("vol", None)

        table.refused_everywhere("no drive is left", ask, lab, array, "recover", "vol")
        table.refused_everywhere(
            "the spare serves the LUN",
            lambda: array.propose_recover("vol", "d1"),
            lab,
            array,
            *("recover", "vol", "--spare", "d1"),
        )
        assert (array.document, tables()) == before
        lab.add(array, "small", size=Bytes(16 * MIB), spare=True)
        table.refused_everywhere("no drive has the space", ask, lab, array, "recover", "vol")
        lab.add(array, "late")
        changed(array, "late", failing="it went away three times")
        words = ("recover", "vol", "--spare", "late")
        table.refused_everywhere(
            "the spare is set aside", lambda: array.propose_recover("vol", "late"), lab, array, *words
        )
        changed(array, "late", failing="")
        before = (array.document, tables())
        with label_of(array, "d1", "d2"):
            table.refused("a member's drive is not itself", ask)
        with label_of(array, "late", "d2"):
            table.refused("the spare is not itself", ask)
        with no_files():
            table.refused("no file can be opened", ask)
            with array.unlocked():
                table.told("no file can be opened", lab, "recover", "vol")
        table.refused("there is no memory", lambda: without_memory(ask))
        assert (array.document, tables()) == before
        table.stands("the task has done its work", recover(array, "vol"), 100)
        assert (states(array, "vol"), checksum(disk), disagreements(array, "vol")) == (["in_sync"] * 3, digest, [])


def operations(array: Array) -> dict[str, Callable[[], object]]:
    request = Request(name="new", layout=Layout.LINEAR, size=Bytes(MIB), exported=False)
    return {
        "recover": lambda: array.propose_recover("vol", None),
        "scrub": lambda: array.propose_scrub("vol", repair=False),
        "replace": lambda: array.propose_replace("vol", "d0", None),
        "extend": lambda: array.propose_extend("vol", Bytes(10 * MIB)),
        "delete": lambda: array.propose_delete("vol"),
        "create": lambda: array.propose_lun(request),
        "fail": lambda: array.propose_fail("d2"),
    }


MISTAKES: Final[dict[str, Callable[[], object]]] = {
    "a device was removed": lambda: run("dmsetup", "remove", "blkrecov-lab-vol"),
    "a device was renamed": lambda: run("dmsetup", "rename", "blkrecov-lab-vol", "somebody"),
    "a leg was renamed": lambda: run("dmsetup", "rename", "blkrecov-lab-vol-rimage_0", "blkrecov-lab-vol-rimage_7"),
}


def test_a_corrupt_cache(lab: Lab, table: Table) -> None:
    """Somebody else has been there: nothing is done until the array was enumerated and then refreshed, and all is well again."""
    lab.create(3)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", 8 * MIB, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        digest, before = fill(disk, 8 * MIB, seed=1), tables()

        def put_right(situation: str) -> None:
            for name, ask in operations(array).items():
                with pytest.raises(CacheCorrupt, match="is not what is there"):
                    print(situation, name, ask())
            with pytest.raises(CacheCorrupt):
                array.refresh()
            table.refused(situation, operations(array)["recover"])
            assert array.reenumerate() == ((), ())
            array.refresh()
            assert array.trouble == {}
            for ask in operations(array).values():
                ask()
            assert (tables(), checksum(disk), show(array, "vol")["health"]) == (before, digest, "healthy")
            assert recover(array, "vol").code == "S_OK"

        for situation, mistake in MISTAKES.items():
            mistake()
            put_right(situation)
        with array.unlocked():
            assert blkrecov(lab, "drive", "spare", "d2").status == 0
        put_right("another process has written the configuration")
        assert array.document.drive("d2").hot_spare


def test_failed_deleted_and_without_redundancy(lab: Lab, table: Table) -> None:
    """Lasting facts, the graver of two first; and what is asked before them."""
    lab.create(8, spares=1, size=Bytes(20 * MIB))
    with lab.opened() as array:
        lun(array, "five", "raid5", 4 * MIB, drives=("d0", "d1", "d2"), exported=False)
        lun(array, "mirror", "raid1", 4 * MIB, drives=("d3", "d4"), exported=False)
        lun(array, "stripe", "raid0", 4 * MIB, drives=("d5", "d6"), exported=False)
        lun(array, "line", "linear", 4 * MIB, drives=("d7",), exported=False)
        lun(array, "vol", "linear", 4 * MIB, drives=("d7",), exported=False)
        for name in ("five", "mirror"):
            in_sync(array, name)

        def ask(name: str) -> Callable[[], object]:
            return lambda: array.propose_recover(name, None)

        assert array.document.drive("s0").hot_spare
        table.refused_everywhere("the LUN is raid0, with a hot spare", ask("stripe"), lab, array, "recover", "stripe")
        table.refused_everywhere("the LUN is linear", ask("line"), lab, array, "recover", "line")
        for drive in ("d0", "d1", "d3", "d4", "d5"):
            array.fail_drive(drive)
        table.refused_everywhere("a raid5 has lost two", ask("five"), lab, array, "recover", "five")
        table.refused_everywhere("a raid1 has lost both", ask("mirror"), lab, array, "recover", "mirror")
        table.refused_everywhere("a raid0 has lost one", ask("stripe"), lab, array, "recover", "stripe")
        table.first("a raid0 has lost one", "the LUN is raid0, with a hot spare", ask("stripe"))

        uuid = array.document.lun("five").uuid
        array.carry_out(array.propose_delete("five"))
        table.refused_everywhere("the LUN was deleted", ask("five"), lab, array, "recover", "five")
        table.refused("the LUN was deleted", lambda: array.propose_recover("five", None))
        table.first("the LUN was deleted", "a raid5 has lost two", ask("five"))
        with pytest.raises(BlkrecovError, match="has been deleted"):
            array.propose_recover(str(uuid), None)

        MISTAKES["a device was removed"]()
        table.first("a device was removed", "the LUN was deleted", ask("five"))
    table.refused("the array is not open", ask("vol"))
    table.first("the array is not open", "a device was removed", ask("vol"))
    table.first(
        "the lowest rate is above the highest",
        "the array is not open",
        lambda: array.propose_recover("vol", None, rate_min=2 * MIB, rate_max=MIB),
    )
    assert blkrecov(lab, "lun", "delete", "vol").status == 0


def test_the_task(slow: Slow, lab: Lab, table: Table) -> None:
    """IVdsAsync: pending, cancelled, too late, timed out, done and failed, each with the percentage that belongs to it."""
    lab.create(5, spares=1)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", 32 * MIB, drives=("d0", "d1", "d2"), exported=False)
        lun(array, "stripe", "raid0", 16 * MIB, drives=("d3", "d4"), exported=False)
        in_sync(array, "vol")
        array.advance_all()  # It is written down that the initial synchronisation has ended: else a repair would be due.
        digest = fill(disk, 32 * MIB, seed=1)
        array.fail_drive("d0")
        # d3 and d4 have no room for a member: nobody is left but the hot spare.
        lun(array, "full3", "linear", 14 * MIB, drives=("d3",), exported=False)
        lun(array, "full4", "linear", 14 * MIB, drives=("d4",), exported=False)
        task = begun(array, "vol", rate_max=2 * MIB)
        assert task.objects == ("vol", "s0")
        table.stands("the task is under way", array.progress(task.id).task, range(100))

        def ask() -> object:
            return array.propose_recover("vol", None)

        table.refused_everywhere("a recovery is under way", ask, lab, array, "recover", "vol")
        table.first("a recovery is under way", "no drive is left", ask)
        number = str(task.id)
        table.refused_everywhere(
            "the wait is over before the task",
            lambda: array.wait(task.id, timeout_s=0.3),
            lab,
            array,
            *("task", "wait", number, "--timeout", "0.3"),
        )
        table.stands("the task is under way", array.progress(task.id).task, range(1, 100))
        with array.unlocked():
            assert blkrecov(lab, "task", "show", number, "--json").json["state"] == "in_progress"
        array.reload()
        table.stands("the task was cancelled", array.cancel(task.id), 0)
        table.refused_everywhere(
            "Cancel comes twice", lambda: array.cancel(task.id), lab, array, "task", "cancel", number
        )
        with array.unlocked():
            answer = blkrecov(lab, "task", "wait", number, "--json")
        assert (answer.status, answer.error["code"]) == (1, "VDS_E_OPERATION_CANCELED")
        array.reload()
        assert states(array, "vol").count("rebuilding") == 1

        task = begun(array, "vol", rate_max=6 * MIB)
        until("the rebuild", lambda: tasks.phase(array.advance(task.id)) is not Phase.REBUILD)
        assert tasks.phase(array.document.task(task.id)) is Phase.VERIFY, array.document.task(task.id)
        number = str(task.id)
        table.refused_everywhere(
            "Cancel comes while it verifies", lambda: array.cancel(task.id), lab, array, "task", "cancel", number
        )
        array.set_rates(task.id, None, 0)
        table.stands("the task has done its work", array.wait(task.id, timeout_s=DEADLINE_S), 100)
        table.refused_everywhere(
            "Cancel comes after the end", lambda: array.cancel(task.id), lab, array, "task", "cancel", number
        )
        assert (states(array, "vol"), checksum(disk), disagreements(array, "vol")) == (["in_sync"] * 3, digest, [])

        slowed(array, MIB)
        scrubbing = array.start(*array.propose_scrub("vol", repair=False))
        table.refused_everywhere("a scrub is under way", ask, lab, array, "recover", "vol")
        table.stands("the task was cancelled", array.cancel(scrubbing.id), 0)

        array.add_drive(str(slow.directory / "slow"), size=slow.drive, name="slow", spare=False, force=False)
        slow.delay(100)
        moving = array.start(*array.propose_replace("stripe", "d3", "slow"))
        assert moving.state is TaskState.IN_PROGRESS
        table.first(
            "the LUN is raid0, with a hot spare",
            "a replacement is under way",
            lambda: array.propose_recover("stripe", None),
        )
        table.stands("the task was cancelled", array.cancel(moving.id), 0)
        slow.delay(0)

        # One member is being rebuilt when another one is lost: there is nothing to rebuild it from.
        lab.add(array, "late")
        array.fail_drive("d1")
        task = begun(array, "vol")
        assert task.state is TaskState.IN_PROGRESS
        array.fail_drive("d2")
        table.stands("the task has failed", array.wait(task.id, timeout_s=DEADLINE_S), 0)
        with array.unlocked():
            answer = blkrecov(lab, "task", "wait", str(task.id), "--json")
        assert (answer.status, answer.error["code"]) == (1, "VDS_E_OBJECT_STATUS_FAILED")


def test_the_kernel_refuses(lab: Lab, table: Table) -> None:
    """What the kernel says is told in its own words, and everything is as it was: a LUN in use, and nothing half-made."""
    lab.create(4)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", 32 * MIB, drives=("d0", "d1", "d2"), exported=False)
        in_sync(array, "vol")
        digest = fill(disk, 32 * MIB, seed=1)
        array.fail_drive("d0")
        before = (tables(), our_devices(), array.document.luns, array.document.drives, array.document.tasks)

        def refused() -> None:
            proposal, task = array.propose_recover("vol", None)
            array.start(proposal, task)

        def unchanged() -> None:
            after = (tables(), our_devices(), array.document.luns, array.document.drives, array.document.tasks)
            assert after == before
            assert (checksum(disk), show(array, "vol")["health"]) == (digest, "failed_redundancy")

        # Somebody has mounted the spare, or made another array of it: none of our devices can be made on it.
        holder = os.open("/dev/mapper/blkrecov-lab-drive-d3", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        try:
            table.refused_everywhere("the kernel refuses a leg", refused, lab, array, "recover", "vol")
            unchanged()
        finally:
            os.close(holder)
        # Somebody is quick, and takes the new leg as soon as it is there: by then the LUN's plex is suspended.
        with taken(array, "blkrecov-lab-vol-rmeta_0_"):
            table.refused("the kernel refuses the plex", refused)
        unchanged()
        assert recover(array, "vol").code == "S_OK"
        assert (checksum(disk), disagreements(array, "vol")) == (digest, [])


def test_the_table_of_codes_is_whole(table: Table) -> None:
    """No row that was never brought about."""
    assert set(ROWS) - table.rows == set()
    assert set(PAIRS) - table.pairs == set()
    print(f"\ntable of codes: {len(table.rows)} rows, {len(table.pairs)} pairs of precedence")
