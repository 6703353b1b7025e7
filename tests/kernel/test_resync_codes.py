"""Every answer of ResyncLuns and of its IVssAsync, brought about on a real kernel; and what an error in the middle leaves behind.

Each row of the table is brought about by what would bring it about for an operator, through the library and through the command.
After a refusal nothing has changed: not the configuration, not a table of the kernel's, not a byte of any LUN. A veto is in the
event log, with its remedy, by the time the code is there, and nothing else is.

Errors in the middle come from the medium: a drive's file lies on a device that is slow, or fails, where and when a test wants it.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest

from blkrecov import tasks
from blkrecov.array import Array
from blkrecov.dm import names
from blkrecov.errors import BlkrecovError, Code
from blkrecov.events import Event, EventLog
from blkrecov.geometry import free_length
from blkrecov.model import Phase, Task, TaskState
from blkrecov.page83.designator import CodeSet, Kind
from blkrecov.page83.export import Exporter
from blkrecov.page83.identity import naa_of_serial, serial_of
from blkrecov.page83.information import (
    NO_SIGNATURE,
    BusType,
    Hex,
    LunInformation,
    StorageDeviceIdDescriptor,
    StorageIdentifier,
    to_json,
)
from blkrecov.resync import Options
from blkrecov.session import RestoreSession
from blkrecov.shadows import ShadowRequest
from blkrecov.units import MIB, SECTOR, Bytes, in_bytes
from tests.kernel.lab import (
    DEADLINE_S,
    Lab,
    Slow,
    blkrecov,
    checksum,
    disagreements,
    disk_of,
    fill,
    in_sync,
    lun,
    our_devices,
    recover,
    run,
    show,
    states,
    tables,
    until,
    write,
)
from tests.kernel.test_codes import label_of, no_files

NUMBERS: Final = {
    "E_ACCESSDENIED": 0x80070005,
    "E_OUTOFMEMORY": 0x8007000E,
    "E_INVALIDARG": 0x80070057,
    "VSS_E_BAD_STATE": 0x80042301,
    "VSS_E_PROVIDER_VETO": 0x80042306,
    "VSS_E_OBJECT_NOT_FOUND": 0x80042308,
    "VSS_S_ASYNC_PENDING": 0x00042309,
    "VSS_S_ASYNC_FINISHED": 0x0004230A,
    "VSS_S_ASYNC_CANCELLED": 0x0004230B,
    "VSS_E_VOLUME_NOT_SUPPORTED": 0x8004230C,
    "VSS_E_INSUFFICIENT_STORAGE": 0x8004231F,
    "VSS_E_CANNOT_REVERT_DISKID": 0x800423FE,
}
SIZE: Final = 2 * MIB
MEDIUM: Final = "m"


@dataclass(frozen=True)
class Row:
    """A code, and words that must be in the message and in the remedy."""

    code: str
    message: str
    remedy: str


INVALID, BAD, ABSENT = "E_INVALIDARG", "VSS_E_BAD_STATE", "VSS_E_OBJECT_NOT_FOUND"
UNFIT, FULL, VETO = "VSS_E_VOLUME_NOT_SUPPORTED", "VSS_E_INSUFFICIENT_STORAGE", "VSS_E_PROVIDER_VETO"

ROWS: Final = {
    "no pair is named": Row(INVALID, "no pair", "SHADOW:LUN"),
    "the arrays differ in length": Row(INVALID, "2 sources and 1 targets", "as many"),
    "a file holds no LUN information": Row(INVALID, "no LUN information", "as it was written"),
    "a LUN is in the arrays twice": Row(INVALID, "named twice", "name each LUN once"),
    "a source is named twice": Row(INVALID, "'s1' is named as a source twice", "name each LUN once"),
    "a target is named twice": Row(INVALID, "'vol' is named as a target twice", "name each LUN once"),
    "a new name is named twice": Row(INVALID, "'new' is named as a target twice", "name each LUN once"),
    "a LUN is in both roles": Row(INVALID, "'s2' is named as a source and as a target", "name each LUN once"),
    "the new name is reserved": Row(INVALID, "'drive' is reserved", "another name"),
    "the new name is none": Row(INVALID, "'a b' is not a name", "use letters"),
    "the session has not begun": Row(BAD, "has not begun", "call begin() first"),
    "the session has begun": Row(BAD, "has begun already", "another session"),
    "nothing is being restored": Row(BAD, "nothing is being restored", "resync()"),
    "the machine is in rescue mode": Row(BAD, "in rescue mode", "restart the machine"),
    "the machine is in emergency mode": Row(BAD, "in emergency mode", "restart the machine"),
    "the machine is in its initramfs": Row(BAD, "in its initramfs", "its own system"),
    "another resync is under way": Row(BAD, "there is one at a time", "task wait"),
    "there is no such shadow copy": Row(ABSENT, "'nobody'", "list"),
    "the shadow copy was deleted": Row(ABSENT, "'gone' has been deleted", "list"),
    "the origin was deleted": Row(ABSENT, "has been deleted", "list"),
    "nobody answers to the information": Row(ABSENT, "no LUN answers to", "lun list"),
    "the source is no shadow copy": Row(UNFIT, "is no shadow copy, and only those", "snapshot create"),
    "the source is lost": Row(UNFIT, "'lost' does not hold what it should", "snapshot list"),
    "the source is not filled yet": Row(UNFIT, "it is not filled yet", "snapshot list"),
    "the target is a shadow copy": Row(UNFIT, "is a shadow copy itself", "the origin, another LUN, or a new name"),
    "the target would shrink below its shadow copies": Row(UNFIT, "its shadow copies large show more", "delete those"),
    "no identifier is eligible": Row(UNFIT, "cannot be found by its identifiers", "type 1, 2, 3 or 8"),
    "two LUNs answer": Row(UNFIT, "all answer to", "nothing was written"),
    "another disk has the target's identity": Row(UNFIT, "claim", "nothing was written"),
    "a drive is not itself": Row(UNFIT, "is not itself", "page83 check"),
    "the target cannot grow": Row(FULL, "free", "drive add"),
    "a new target has no room": Row(FULL, "free", ""),
    "the undo store has no room": Row(FULL, "free", ""),
    "the log has no room": Row(FULL, "1 MiB free for the log", "drive add"),
    "another shadow copy's store has no room": Row(FULL, "'tight' has no room", "snapshot extend tight --store"),
    "another LUN has the original's signature": Row("VSS_E_CANNOT_REVERT_DISKID", "no two may have one", "other disk"),
    "the target is mounted": Row(VETO, "'vol' is in use by a mount on ", "--force"),
    "a process has the target open": Row(VETO, "(sleep)", "umount, swapoff"),
    "the target is swap": Row(VETO, "in use by swap", "swapoff"),
    "the target is being recovered": Row(VETO, "(recover) is under way", "task wait"),
    "the source cannot be read": Row(VETO, "cannot be read", "bring its drives"),
    "a degraded target has to change its size": Row(VETO, "has lost a member", "recover pair"),
    "the target holds a later moment": Row(VETO, "go back in time", "--force"),
    "the target has volumes of its own": Row(VETO, "would be lost", "--no-volume-check"),
    "the kernel refuses a new target": Row(VETO, "the kernel says", "journalctl"),
    "somebody has removed a device": Row(VETO, "is not what is there", "reenumerate"),
    "no file can be opened": Row("E_OUTOFMEMORY", "Too many open files", "raise the limit"),
    "the caller is not root": Row("E_ACCESSDENIED", "root's", "as root"),
    "the task is under way": Row("VSS_S_ASYNC_PENDING", "", ""),
    "the task has ended well": Row("VSS_S_ASYNC_FINISHED", "copied", ""),
    "the task was cancelled": Row("VSS_S_ASYNC_CANCELLED", "cancelled", "not ready until"),
    "the source cannot be read in places": Row(VETO, "'p' cannot be read in places", "restore again"),
    "the target cannot be written in places": Row(VETO, "'vol' cannot be written in places", "restore again"),
    "the source overflows": Row(VETO, "shadow copy 's", "larger --store"),
    "the source's drive is lost": Row(VETO, "lost more drives than it can do without while it was read", "bring its"),
    "the target's drive is lost": Row(VETO, "'vol' lost more drives than it can do without", "onto a new name"),
    "no drive keeps the log": Row(VETO, "log", "drive add"),
    "the kernel refuses the copy": Row(VETO, "the kernel says", "journalctl"),
}
PAIRS: Final = (
    ("the arrays differ in length", "the session has not begun"),
    ("a LUN is in the arrays twice", "the machine is in rescue mode"),
    ("a LUN is in the arrays twice", "nobody answers to the information"),
    ("a source is named twice", "the machine is in rescue mode"),
    ("a source is named twice", "the source is no shadow copy"),
    ("a LUN is in both roles", "the target is a shadow copy"),
    ("the machine is in rescue mode", "nobody answers to the information"),
    ("the machine is in rescue mode", "the source is no shadow copy"),
    ("there is no such shadow copy", "the source is no shadow copy"),
    ("the source is no shadow copy", "another resync is under way"),
    ("another resync is under way", "the target is mounted"),
    ("the target is a shadow copy", "a new target has no room"),
    ("the target cannot grow", "the target is mounted"),
)


# What is asked, and what is looked at.


def take(
    array: Array, origin: str, name: str, *, plex: bool = False, store: int | None = None, drives: tuple[str, ...] = ()
) -> None:
    request = ShadowRequest(
        origin=origin, name=name, plex=plex, size=Bytes(store) if store else None, drives=drives, exported=False
    )
    proposal, task = array.propose_shadows([request])
    if task is None:
        array.carry_out(proposal)
    else:
        assert array.wait(array.start(proposal, task).id, timeout_s=DEADLINE_S).code == "S_OK"


def session(array: Array, *pairs: str) -> RestoreSession:
    """One that has begun, with these pairs."""
    restore = RestoreSession(array)
    restore.begin()
    for pair in pairs:
        source, _, target = pair.partition(":")
        restore.add(source, target or None)
    return restore


def asked(
    array: Array, *pairs: str, options: Options | None = None, revert: bool = False
) -> Callable[[], tuple[object, Task]]:
    return lambda: session(array, *pairs).propose(options, revert_identity=revert)


def restored(array: Array, *pairs: str, options: Options | None = None) -> Task:
    return ended(array, begun(array, *pairs, options=options))


def begun(array: Array, *pairs: str, options: Options | None = None) -> RestoreSession:
    restore = session(array, *pairs)
    restore.resync(options)
    return restore


def ended(array: Array, restore: RestoreSession) -> Task:
    """What has become of it."""
    assert restore.wait(timeout_s=DEADLINE_S) is Code.S_OK
    task = array.document.task(array.document.next_task - 1)
    assert task.state.ended, f"task {task.id} is at {task.percent} % after {DEADLINE_S:g} s"
    return task


def node(name: str) -> str:
    return f"/dev/mapper/{names.lun_name('lab', name)}"


def contents(array: Array) -> dict[str, str]:
    """What all LUNs hold, as far as they can be read."""
    observed = array.observe()
    whole = [each for each in array.document.luns if each.ready and observed.reachable(array.document, each)]
    return {each.name: checksum(node(each.name)) for each in whole}


def decided(array: Array) -> tuple[object, ...]:
    """The configuration, whatever its version: what is taken back is written again."""
    document = array.document
    return document.drives, document.luns, document.tasks, document.tombstones


def events(lab: Lab) -> list[Event]:
    return [event for event in EventLog(lab.state).read() if event.kind.value.startswith("resync_")]


def naa(array: Array, name: str) -> str:
    return naa_of_serial(serial_of(array.document.lun(name).uuid))


def said(*identifiers: tuple[int, int, bytes]) -> LunInformation:
    """The information of a LUN with these identifiers: code set, type, bytes."""
    return LunInformation(
        device_type=0,
        device_type_modifier=0,
        command_queueing=True,
        bus_type=BusType.FILE_BACKED_VIRTUAL,
        vendor_id=None,
        product_id=None,
        product_revision=None,
        serial_number=None,
        disk_signature=NO_SIGNATURE,
        device_id_descriptor=StorageDeviceIdDescriptor(
            identifiers=tuple(
                StorageIdentifier(code_set=code_set, type=kind, identifier=Hex(data))
                for code_set, kind, data in identifiers
            )
        ),
        interconnects=(),
    )


def by_naa(text: str) -> LunInformation:
    return said((CodeSet.BINARY, Kind.NAA, bytes.fromhex(text)))


STRANGER: Final = by_naa("6001405" + 25 * "e")
OTHER_STRANGER: Final = by_naa("6001405" + 25 * "f")


def pairs_file(lab: Lab, sources: Sequence[LunInformation], targets: Sequence[LunInformation]) -> str:
    path = lab.directory / "pairs.json"
    both = {"sources": sources, "targets": targets}
    path.write_text(json.dumps({name: [json.loads(to_json(each)) for each in some] for name, some in both.items()}))
    return str(path)


@dataclass
class Table:
    """What has been produced of the table so far."""

    rows: set[str] = field(default_factory=set)
    pairs: set[tuple[str, str]] = field(default_factory=set)

    def refused(
        self, situation: str, lab: Lab, array: Array, ask: Callable[[], object], *words: str, command: bool = True
    ) -> None:
        """A call is refused as the row says, and so is the command with these words; nothing has changed."""
        before = (decided(array), tables(), contents(array))
        self.raised(situation, lab, ask)
        if command:
            self.commanded(situation, lab, array, *words)
        assert (decided(array), tables(), contents(array)) == before, situation

    def raised(self, situation: str, lab: Lab, ask: Callable[[], object]) -> None:
        """A call is refused as the row says."""
        told = len(events(lab))
        with pytest.raises(BlkrecovError) as caught:
            ask()
        error = caught.value
        self._is(situation, error.code.name, error.code.hresult, error.message, error.remedy)
        _is_told(lab, told, error.code.name, error.message, error.remedy)
        self.rows.add(situation)

    def commanded(self, situation: str, lab: Lab, array: Array, *words: str) -> None:
        """The command with these words is refused as the row says."""
        told = len(events(lab))
        with array.unlocked():
            answer = blkrecov(lab, "resync", *words, "--json")
        array.reload()
        assert (answer.status, answer.out) == (1, ""), f"{situation}: {answer}"
        said = answer.error
        self._is(situation, said["code"], int(said["hresult"], 16), said["message"], said["remedy"])
        _is_told(lab, told, said["code"], said["message"], said["remedy"])
        self.rows.add(situation)

    def first(self, told: str, other: str, call: Callable[[], object]) -> None:
        """Both situations are so, and the first is told."""
        wanted = ROWS[told]
        with pytest.raises(BlkrecovError) as caught:
            call()
        assert caught.value.code.name == wanted.code, f"{told} before {other}: {caught.value.message}"
        assert wanted.message in caught.value.message, f"{told} before {other}: {caught.value.message}"
        self.pairs.add((told, other))

    def stands(self, situation: str, task: Task) -> None:
        """A task shows what the row says (IVssAsync::QueryStatus)."""
        code = tasks.vss_status(task)
        self._is(situation, code.name, code.hresult, task.message, task.remedy)
        self.rows.add(situation)

    def failed(self, situation: str, lab: Lab, task: Task, *, back: bool = False) -> None:
        """A task failed as the row says, told so with the remedy, and is so told by the command."""
        assert (task.state, task.percent) == (TaskState.FAILED, 0), f"{situation}: {task}"
        self.stands(situation, task)
        last = events(lab)[-1]
        assert (last.kind.value, last.task, last.remedy) == ("resync_failed", task.id, task.remedy), situation
        assert task.message in last.message
        assert ("what was there before is there again" in task.message) == back, situation

    def _is(self, situation: str, code: str, number: int, message: str, remedy: str) -> None:
        wanted = ROWS[situation]
        assert (code, number) == (wanted.code, NUMBERS[wanted.code]), f"{situation}: {code}, {message}"
        assert wanted.message in message, f"{situation}: {message}"
        assert wanted.remedy in remedy, f"{situation}: {remedy}"
        assert remedy or code.startswith("VSS_S"), situation


def _is_told(lab: Lab, before: int, code: str, message: str, remedy: str) -> None:
    """A veto has one event of its own, with its remedy; other codes have none."""
    new = [(event.kind.value, event.remedy) for event in events(lab)[before:]]
    assert new == ([("resync_vetoed", remedy)] if code == VETO else [])
    assert code != VETO or message in events(lab)[-1].message


@pytest.fixture(scope="module")
def table() -> Table:
    return Table()


# A medium that can be slow, and can fail.


class Medium(Slow):
    """A file system for drives whose reads and writes take their time, or fail."""

    size: Final = Bytes(28 * MIB)

    @classmethod
    @contextmanager
    def made(cls, ext4: Path) -> Iterator["Medium"]:
        with super().made(ext4) as medium:
            assert isinstance(medium, Medium)
            yield medium

    def add(self, array: Array) -> None:
        """A drive "m" on it."""
        path = str(self.directory / MEDIUM)
        array.add_drive(path, size=self.size, name=MEDIUM, spare=False, force=False)

    def slow_reads(self, milliseconds: int) -> None:
        self._load(f"0 {self._length} delay {self._loop} 0 {milliseconds} {self._loop} 0 0")

    def fail(self) -> None:
        self._load(f"0 {self._length} error")

    def fail_at(self, sector: int) -> None:
        """Eight sectors of the drive can neither be read nor written."""
        at = self._place(sector)
        rest = at + 8
        self._load(
            f"0 {at} linear {self._loop} 0\n{at} 8 error\n{rest} {self._length - rest} linear {self._loop} {rest}"
        )

    def heal(self) -> None:
        self.delay(0)

    def delay(self, milliseconds: int) -> None:
        self._load(f"0 {self._length} delay {self._loop} 0 0 {self._loop} 0 {milliseconds}")

    def _place(self, sector: int) -> int:
        """Where the file system has a sector of the drive's file."""
        for line in run("filefrag", "-b512", "-v", str(self.directory / MEDIUM)).splitlines():
            found = re.match(r"\s*\d+:\s*(\d+)\.\.\s*(\d+):\s*(\d+)\.\.", line)
            if found is not None and int(found[1]) <= sector <= int(found[2]):
                return int(found[3]) + sector - int(found[1])
        raise AssertionError(f"nothing was written to sector {sector}")

    def _load(self, lines: str) -> None:
        subprocess.run(["dmsetup", "reload", self._device], input=lines, text=True, check=True)
        # A file system that has met an error cannot be frozen.
        run("dmsetup", "resume", "--noflush", "--nolockfs", self._device)


@pytest.fixture
def medium(ext4: Path) -> Iterator[Medium]:
    """Ask for it before `lab`, so that it is there for longer."""
    with Medium.made(ext4) as medium:
        yield medium


def place_of(array: Array, name: str, offset: int) -> int:
    """The sector of its drive at which a LUN of one extent has a byte."""
    member = array.document.lun(name).members[0]
    return member.data[0].start + offset // SECTOR


# Refusals.


@pytest.mark.long
def test_arguments_sessions_and_luns(lab: Lab, table: Table) -> None:
    """What can never work, whatever room there is and whoever uses what."""
    lab.create(4)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", SIZE, drives=("d0",), exported=False)
        other = lun(array, "other", "linear", SIZE, drives=("d1",), exported=False)
        lun(array, "big", "linear", 2 * SIZE, drives=("d2",), exported=False)
        lun(array, "mother", "linear", MIB, drives=("d3",), exported=False)
        for number, each in enumerate((disk, other)):
            fill(each, SIZE, seed=number)
        for origin, name in (("vol", "s1"), ("vol", "s2"), ("vol", "gone"), ("big", "large")):
            take(array, origin, name)
        array.carry_out(array.propose_delete("gone"))
        take(array, "mother", "orphan", plex=True)
        array.carry_out(array.propose_delete("mother"))
        take(array, "other", "lost", store=MIB)
        fill(other, 2 * MIB, seed=5)
        array.advance_all()
        assert array.document.lun("lost").shadow is not None

        def refused(situation: str, *pairs: str) -> None:
            table.refused(situation, lab, array, asked(array, *pairs), *pairs)

        refused("no pair is named")
        refused("a source is named twice", "s1:vol", "s1:other")
        refused("a target is named twice", "s1:vol", "s2:vol")
        refused("a new name is named twice", "s1:new", "s2:new")
        refused("a LUN is in both roles", "s1:s2", "s2:vol")
        refused("the new name is reserved", "s1:drive")
        refused("the new name is none", "s1:a b")
        refused("there is no such shadow copy", "nobody:vol")
        refused("the shadow copy was deleted", "gone:vol")
        refused("the origin was deleted", "orphan")
        refused("the source is no shadow copy", "vol:other")
        refused("the source is lost", "lost:other")
        refused("the target is a shadow copy", "s1:s2")
        refused("the target would shrink below its shadow copies", "s1:big")

        def resync_luns(*count: LunInformation, targets: Sequence[LunInformation]) -> Callable[[], object]:
            return lambda: session(array).resync_luns(count, targets)

        two = (STRANGER, OTHER_STRANGER)
        table.refused(
            "the arrays differ in length",
            lab,
            array,
            resync_luns(*two, targets=[STRANGER]),
            *("--luns", pairs_file(lab, two, [STRANGER])),
        )
        table.refused(
            "nobody answers to the information",
            lab,
            array,
            resync_luns(STRANGER, targets=[OTHER_STRANGER]),
            *("--luns", pairs_file(lab, [STRANGER], [OTHER_STRANGER])),
        )
        twice = resync_luns(STRANGER, targets=[STRANGER])
        table.refused("a LUN is in the arrays twice", lab, array, twice, command=False)
        garbage = lab.directory / "garbage"
        garbage.write_bytes(b"\xff{")
        table.commanded("a file holds no LUN information", lab, array, "--luns", str(garbage))

        # The session.
        unbegun = RestoreSession(array)
        early: tuple[Callable[[], object], ...] = (
            lambda: unbegun.add("s1", "vol"),
            unbegun.propose,
            unbegun.resync,
            lambda: unbegun.resync_luns([STRANGER], [OTHER_STRANGER]),
        )
        for ask in early:
            table.refused("the session has not begun", lab, array, ask, command=False)
        ready = session(array, "s1:vol")
        table.refused("the session has begun", lab, array, ready.begin, command=False)
        for unasked in (ready.status, ready.wait, ready.cancel):
            table.refused("nothing is being restored", lab, array, unasked, command=False)
        table.first(
            "the arrays differ in length",
            "the session has not begun",
            lambda: unbegun.resync_luns(two, [STRANGER]),
        )
        table.first("a LUN is in the arrays twice", "nobody answers to the information", twice)
        table.first(
            "a source is named twice", "the source is no shadow copy", asked(array, "vol:other", "s1:vol", "s1:new")
        )
        table.first("a LUN is in both roles", "the target is a shadow copy", asked(array, "s1:s2", "s2:vol"))
        table.first(
            "there is no such shadow copy", "the source is no shadow copy", asked(array, "vol:other", "nobody:vol")
        )

        # The machine.
        mistaken, doubled, strangers = session(array, "vol:other"), session(array, "s1:vol", "s1:other"), session(array)
        for word, situation in (
            ("rescue", "the machine is in rescue mode"),
            ("emergency", "the machine is in emergency mode"),
        ):
            with in_mode(lab, word):
                table.refused(situation, lab, array, asked(array, "s1:vol"), "s1:vol")
                table.refused(situation, lab, array, ready.propose, command=False)
                rescue = "the machine is in rescue mode"
                if situation == rescue:
                    table.first("a source is named twice", rescue, doubled.propose)
                    table.first(rescue, "the source is no shadow copy", mistaken.propose)
                    table.first(
                        "a LUN is in the arrays twice", rescue, lambda: strangers.resync_luns([STRANGER], [STRANGER])
                    )
                    table.first(
                        rescue,
                        "nobody answers to the information",
                        lambda: strangers.resync_luns([STRANGER], [OTHER_STRANGER]),
                    )
        with mock.patch("blkrecov.surroundings.INITRAMFS", garbage):
            table.refused("the machine is in its initramfs", lab, array, asked(array, "s1:vol"), "s1:vol")

        # The caller, and what it may have.
        def ask_without_files() -> None:
            with no_files():
                asked(array, "s1:vol")()

        table.raised("no file can be opened", lab, ask_without_files)
        with no_files(), array.unlocked():
            answer = blkrecov(lab, "resync", "s1:vol", "--json")
        array.reload()
        assert (answer.status, answer.error["code"]) == (1, "E_OUTOFMEMORY"), answer
        with mock.patch("blkrecov.engine.os.geteuid", return_value=65534):
            table.commanded("the caller is not root", lab, array, "s1:vol")

        with label_of(array, "d0", "d1"):
            table.refused("a drive is not itself", lab, array, asked(array, "s1:vol"), command=False)


@contextmanager
def in_mode(lab: Lab, word: str) -> Iterator[None]:
    line = lab.directory / "cmdline"
    line.write_text(f"root=/dev/ubda {word}\n")
    with mock.patch("blkrecov.surroundings.COMMAND_LINE", line):
        yield


@contextmanager
def impatient() -> Iterator[None]:
    """Holders are not waited for so long: that they are is a test of its own."""
    with mock.patch("blkrecov.session.HOLD_PATIENCE_S", 0.2):
        yield


def with_mbr(disk: str, signature: int) -> None:
    """An MBR without partitions."""
    sector = bytearray(4096)
    sector[0x1B8:0x1BC] = signature.to_bytes(4, "little")
    sector[0x1FE:0x200] = b"\x55\xaa"
    write(disk, 0, bytes(sector))


@contextmanager
def open_in(path: str, seconds: int = 600) -> Iterator[subprocess.Popen[bytes]]:
    """A process has it open, for so long."""
    with open(path, "rb") as file:
        process = subprocess.Popen(["sleep", str(seconds)], stdin=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def mounted(disk: str, point: Path) -> Iterator[None]:
    point.mkdir(exist_ok=True)
    # Read-only: a journal is written to by itself.
    run("mount", "-o", "ro", disk, str(point))
    try:
        yield
    finally:
        run("umount", str(point))


@pytest.mark.long
def test_holders_and_dangers(lab: Lab, table: Table) -> None:
    """What cannot be done now. A target that is held, or holds a later moment, is restored for who types its identity in full."""
    lab.create(4)
    with lab.opened() as array, impatient():
        disk = lun(array, "vol", "linear", SIZE, drives=("d0",), exported=False)
        other = lun(array, "other", "linear", SIZE, drives=("d0",), exported=False)
        pair = lun(array, "pair", "raid1", 2 * SIZE, drives=("d0", "d1"), exported=False)
        lun(array, "big", "linear", 2 * SIZE, drives=("d1",), exported=False)
        in_sync(array, "pair")
        array.advance_all()
        run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", disk)
        fill(other, SIZE, seed=2)
        fill(pair, 2 * SIZE, seed=3)
        take(array, "vol", "s1")
        take(array, "big", "large", store=MIB)
        first = checksum(disk)

        def refused(situation: str, *words: str, **wanted: Any) -> None:
            pairs = [word for word in words if ":" in word]
            table.refused(situation, lab, array, asked(array, *pairs, **wanted), *words)

        # Who has it.
        naa_of_vol = naa(array, "vol")
        with mounted(disk, lab.directory / "mnt"):
            refused("the target is mounted", "s1:vol")
            wrong = (naa_of_vol[:16], naa_of_vol[:-1], naa(array, "other"), "")
            words = [word for each in wrong for word in ("--force", each)]
            refused("the target is mounted", "s1:vol", *words, options=Options(forced=frozenset(wrong)))
            forced = Options(forced=frozenset({naa_of_vol}))
            assert restored(array, "s1:vol", options=forced).code == "S_OK"
            with array.unlocked():
                answer = blkrecov(lab, "resync", "s1:vol", "--force", f"0x{naa_of_vol.upper()}", "--json")
            array.reload()
            assert (answer.status, answer.json["state"]) == (0, "completed"), answer
        with open_in(disk) as process:
            refused("a process has the target open", "s1:vol")
            assert f"process {process.pid} " in events(lab)[-1].message
            with array.unlocked():
                answer = blkrecov(lab, "resync", "s1:vol", "--force", f"naa.{naa_of_vol}", "--json")
            array.reload()
            assert (answer.status, answer.json["state"]) == (0, "completed"), answer
        assert checksum(disk) == first
        run("mkswap", other)
        run("swapon", other)
        try:
            refused("the target is swap", "s1:other")
        finally:
            run("swapoff", other)

        # Which way it goes.
        fill(disk, MIB, seed=6)
        second = checksum(disk)
        until("another second", lambda: int(time.time()) > _taken(array, "s1"))
        take(array, "vol", "s2")
        fill(disk, 2 * MIB, seed=7)
        assert restored(array, "s2:vol").code == "S_OK"
        assert checksum(disk) == second
        refused("the target holds a later moment", "s1:vol")
        shortened = frozenset({naa_of_vol[:-1]})
        refused(
            "the target holds a later moment", "s1:vol", "--force", naa_of_vol[:-1], options=Options(forced=shortened)
        )
        assert restored(array, "s1:vol", options=forced).code == "S_OK"
        assert checksum(disk) == first

        # Signatures.
        with_mbr(other, 0x12345678)
        take(array, "other", "signed")
        array.carry_out(array.propose_delete("large"))
        refused("another LUN has the original's signature", "signed:big", "--revert-identity", revert=True)

        # Members.
        array.fail_drive("d1")
        refused("a degraded target has to change its size", "s1:pair")
        proposal, task = array.propose_recover("pair", "d2", rate_max=MIB)
        array.start(proposal, task)
        array.pause(task.id)
        refused("the target is being recovered", "s1:pair")
        array.cancel(task.id)
        refused("the source cannot be read", *_of_a_lost_origin(array))


def _of_a_lost_origin(array: Array) -> tuple[str]:
    """A shadow copy whose origin's drive has failed."""
    lun(array, "line", "linear", SIZE, drives=("d2",), exported=False)
    take(array, "line", "ofline", drives=("d3",))
    array.fail_drive("d2")
    return ("ofline:vol",)


def _taken(array: Array, name: str) -> int:
    shadow = array.document.lun(name).shadow
    assert shadow is not None
    return shadow.taken


def test_a_holder_that_lets_go_in_time_is_no_holder(lab: Lab) -> None:
    """Windows tries for five seconds; so do we, and tell who it was only then."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", SIZE, drives=("d0",), exported=False)
        digest = fill(disk, SIZE, seed=1)
        take(array, "vol", "s1")
        fill(disk, MIB, seed=2)
        began = time.monotonic()
        with open_in(disk):
            with pytest.raises(BlkrecovError, match=r"in use by process \d+ \(sleep\)"):
                asked(array, "s1:vol")()
            assert time.monotonic() - began >= 5
        with open_in(disk, 2):
            assert restored(array, "s1:vol").code == "S_OK"
        assert checksum(disk) == digest


def test_room(lab: Lab, table: Table) -> None:
    """Everything that a restore needs room for is asked about before the first write."""
    lab.create(2, size=Bytes(24 * MIB))
    with lab.opened() as array, impatient():
        disk = lun(array, "vol", "linear", 2 * SIZE, drives=("d0",), exported=False)
        lun(array, "small", "linear", MIB, drives=("d0",), exported=False)
        lun(array, "bare", "linear", MIB, drives=("d0",), exported=False)
        fill(disk, 2 * SIZE, seed=1)
        take(array, "vol", "s1", drives=("d1",))
        fill(disk, 2 * MIB, seed=2)
        take(array, "vol", "tight", store=MIB, drives=("d1",))
        take(array, "small", "tiny", store=MIB, drives=("d1",))
        take(array, "small", "third", store=MIB, drives=("d1",))

        def refused(situation: str, *words: str, **wanted: Any) -> None:
            pairs = [word for word in words if ":" in word]
            table.refused(situation, lab, array, asked(array, *pairs, **wanted), *words)

        refused("another shadow copy's store has no room", "s1:vol")
        array.carry_out(array.propose_delete("tight"))
        _leave(array, 2 * MIB)
        refused("the target cannot grow", "s1:bare")
        refused("a new target has no room", "s1:new")
        refused("the undo store has no room", "s1:vol", "--undo", options=Options(undo=True))
        table.first("the target is a shadow copy", "a new target has no room", asked(array, "s1:new", "tiny:third"))
        with open_in(node("bare")):
            table.first("the target cannot grow", "the target is mounted", asked(array, "s1:bare"))
        _leave(array, 0)
        refused("the log has no room", "s1:vol")


def _leave(array: Array, length: int) -> None:
    """Leave so much free in the whole array."""
    free = sum(in_bytes(free_length(array.document, drive)) for drive in array.document.drives)
    lun(array, f"filler{length}", "linear", free - length, exported=False)


@pytest.mark.long
def test_found_by_information(lab: Lab, table: Table) -> None:
    """VDS_LUN_INFORMATION as it was saved finds its LUNs, before a restart and after; what identifies nothing finds none."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", SIZE, drives=("d0",))
        array.carry_out(array.propose_shadows([ShadowRequest(origin="vol", name="s1")])[0])
        digest = checksum(disk)
        with array.unlocked():
            saved = {name: blkrecov(lab, "lun", "show", name, "--information").json for name in ("s1", "vol")}
        array.reload()
        path = lab.directory / "pairs.json"
        path.write_text(json.dumps({"sources": [saved["s1"]], "targets": [saved["vol"]]}))

        def put_back() -> None:
            fill(disk_of(array, "vol"), MIB, seed=2)
            assert checksum(disk_of(array, "vol")) != digest
            with array.unlocked():
                answer = blkrecov(lab, "resync", "--luns", str(path), "--json")
            array.reload()
            assert (answer.status, answer.json["objects"]) == (0, ["s1:vol"]), answer
            assert checksum(disk_of(array, "vol")) == digest

        put_back()
        source, target = by_naa(naa(array, "s1")), by_naa(naa(array, "vol"))
        uuid = said((CodeSet.BINARY, 0xA, bytes([0x10, 0]) + array.document.lun("vol").uuid.bytes))
        port = said((CodeSet.BINARY, Kind.RELATIVE_TARGET_PORT, bytes([0, 0, 0, 1])))
        both = said(*((CodeSet.BINARY, Kind.NAA, bytes.fromhex(naa(array, name))) for name in ("s1", "vol")))

        def refused(situation: str, given: LunInformation) -> None:
            words = ("--luns", pairs_file(lab, [source], [given]))
            table.refused(situation, lab, array, lambda: session(array).resync_luns([source], [given]), *words)

        for unfit in (uuid, port):
            refused("no identifier is eligible", unfit)
        refused("two LUNs answer", both)
        with twin(lab, array.document.lun("vol").uuid.hex):
            refused("another disk has the target's identity", target)

        # What would be lost with the target.
        run("sgdisk", "--new=1:2048:+512K", disk)
        until("the partition", lambda: Path(f"{disk}1").exists())
        table.refused("the target has volumes of its own", lab, array, asked(array, "s1:vol"), "s1:vol")
        assert Path(disk).name + "1" in events(lab)[-1].message
        with mounted_partition(disk, lab.directory / "mnt"), impatient():
            table.refused("the target is mounted", lab, array, asked(array, "s1:vol"), "s1:vol")
        with array.unlocked():
            answer = blkrecov(lab, "resync", "s1:vol", "--no-volume-check", "--json")
        array.reload()
        assert (answer.status, checksum(disk), Path(f"{disk}1").exists()) == (0, digest, False), answer
    lab.stop()
    with lab.opened() as array:
        path.write_text(json.dumps({"sources": [saved["s1"]], "targets": [saved["vol"]]}))
        put_back()


@contextmanager
def mounted_partition(disk: str, point: Path) -> Iterator[None]:
    run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", f"{disk}1")
    with mounted(f"{disk}1", point):
        yield


@contextmanager
def twin(lab: Lab, serial: str) -> Iterator[None]:
    """A SCSI disk of somebody else's that bears the identity of ours."""
    file = lab.directory / "twin"
    run("truncate", "--size=16M", str(file))
    loop = run("losetup", "--find", "--show", str(file))
    theirs = (
        mock.patch("blkrecov.page83.export.PREFIX", "somebody-"),
        mock.patch("blkrecov.page83.export.target_wwn_of", return_value="naa.5001405fffffffff"),
        mock.patch.object(Exporter, "_refuse_taken"),
    )
    try:
        with theirs[0], theirs[1], theirs[2]:
            Exporter().export("twin", loop, serial)
        yield
    finally:
        with theirs[0], theirs[1], theirs[2]:
            Exporter().unexport("twin")
        run("losetup", "--detach", loop)


# Errors in the middle.

LARGE: Final = 8 * MIB


@contextmanager
def with_medium(lab: Lab, medium: Medium, size: int = 24 * MIB) -> Iterator[Array]:
    """An array whose configuration is on five other drives, so that only contents and logs are on the medium."""
    lab.create(5, size=Bytes(size))
    with lab.opened() as array:
        medium.add(array)
        yield array


def is_unusable(array: Array, name: str) -> bool:
    """Not ready, said why, and nothing to be read from it."""
    try:
        checksum(node(name), MIB)
    except OSError:
        shown = show(array, name)
        return shown["status"] == "not_ready" and "did not end" in array.document.lun(name).incomplete
    return False


def left_over(array: Array) -> tuple[list[str], list[str]]:
    """What there is beside tasks: devices, LUNs."""
    return our_devices(), [each.name for each in array.document.luns]


@pytest.mark.long
def test_a_source_with_bad_sectors(medium: Medium, lab: Lab, table: Table) -> None:
    """Of two pairs one fails: neither counts as restored. With an undo both hold again what they held before."""
    with with_medium(lab, medium) as array:
        vol = lun(array, "vol", "linear", LARGE, drives=("d0",), exported=False)
        other = lun(array, "other", "linear", SIZE, drives=("d1",), exported=False)
        before = (fill(vol, LARGE, seed=1), fill(other, SIZE, seed=2))
        take(array, "vol", "p", plex=True, drives=(MEDIUM,))
        take(array, "other", "q", plex=True, drives=("d2",))
        later = (fill(vol, LARGE, seed=3), fill(other, SIZE, seed=4))
        devices = left_over(array)
        medium.fail_at(place_of(array, "p", 5 * MIB))
        task = restored(array, "q:other", "p:vol", options=Options(undo=True))
        table.failed("the source cannot be read in places", lab, task, back=True)
        assert (checksum(vol), checksum(other), left_over(array)) == (*later, devices)
        task = restored(array, "q:other", "p:vol")
        table.failed("the source cannot be read in places", lab, task)
        assert is_unusable(array, "vol")
        assert is_unusable(array, "other")
        assert left_over(array) == devices
        with array.unlocked():
            answer = blkrecov(lab, "task", "wait", str(task.id), "--json")
        array.reload()
        assert (answer.status, answer.error["code"]) == (1, VETO)
        medium.heal()
        assert (checksum(node("p")), checksum(node("q"))) == before
        assert restored(array, "q:other", "p:vol").code == "S_OK"
        assert (checksum(vol), checksum(other)) == before


@pytest.mark.long
def test_a_target_with_bad_sectors(medium: Medium, lab: Lab, table: Table) -> None:
    """What cannot be written cannot be put back either: it stays not ready until it can."""
    with with_medium(lab, medium) as array:
        vol = lun(array, "vol", "linear", LARGE, drives=(MEDIUM,), exported=False)
        first = fill(vol, LARGE, seed=1)
        take(array, "vol", "s", drives=("d1",))
        fill(vol, LARGE, seed=2)
        devices = left_over(array)
        for undo in (False, True):
            medium.fail_at(place_of(array, "vol", 5 * MIB))
            task = restored(array, "s:vol", options=Options(undo=undo))
            table.failed("the target cannot be written in places", lab, task)
            assert is_unusable(array, "vol")
            assert left_over(array) == devices
            medium.heal()
            assert checksum(node("s")) == first
            assert restored(array, "s:vol").code == "S_OK"
            assert checksum(vol) == first
            fill(vol, LARGE, seed=3)


@pytest.mark.long
def test_a_log_that_is_lost(medium: Medium, lab: Lab, table: Table) -> None:
    """The copy begins anew with a log on another drive, and ends well; where no drive has room for one, it ends."""
    with with_medium(lab, medium) as array:
        vol = lun(array, "vol", "linear", LARGE, drives=("d0",), exported=False)
        first = fill(vol, LARGE, seed=1)
        take(array, "vol", "p", plex=True, drives=("d1",))

        def lost_under_way() -> Task:
            fill(vol, LARGE, seed=2)
            medium.delay(300)
            restore = begun(array, "p:vol")
            assert restore.status() is Code.VSS_S_ASYNC_PENDING
            restoring = array.document.lun("vol").restore
            assert restoring is not None
            assert restoring.drive == array.document.drive(MEDIUM).uuid
            medium.fail()
            task = ended(array, restore)
            medium.heal()
            return task

        assert lost_under_way().code == "S_OK"
        assert checksum(vol) == first
        for number, drive in enumerate(array.document.drives):
            free = in_bytes(free_length(array.document, drive))
            if drive.name != MEDIUM and free:
                lun(array, f"full{number}", "linear", free, drives=(drive.name,), exported=False)
        table.failed("no drive keeps the log", lab, lost_under_way())
        assert is_unusable(array, "vol")
        assert checksum(node("p")) == first
        assert restored(array, "p:vol").code == "S_OK"
        assert checksum(vol) == first


@pytest.mark.long
def test_a_source_that_overflows(medium: Medium, lab: Lab, table: Table) -> None:
    """Somebody writes to the origin meanwhile, more than the shadow copy has room for."""
    with with_medium(lab, medium) as array:
        vol = lun(array, "vol", "linear", LARGE, drives=("d0",), exported=False)
        other = lun(array, "other", "linear", LARGE, drives=(MEDIUM,), exported=False)
        fill(vol, LARGE, seed=1)
        before = fill(other, LARGE, seed=2)
        for number, undo in enumerate((True, False)):
            take(array, "vol", f"s{number}", store=MIB, drives=("d1",))
            medium.delay(300)
            restore = begun(array, f"s{number}:other", options=Options(undo=undo))
            assert restore.status() is Code.VSS_S_ASYNC_PENDING
            written = fill(vol, LARGE, seed=3 + number)
            medium.heal()
            task = ended(array, restore)
            table.failed("the source overflows", lab, task, back=undo)
            assert checksum(vol) == written
            assert undo or is_unusable(array, "other")
            assert not undo or checksum(other) == before
            assert [each.name for each in array.document.luns if each.shadow and each.shadow.lost] == [f"s{number}"]
            array.carry_out(array.propose_delete(f"s{number}"))


@pytest.mark.long
def test_drives_that_are_lost(medium: Medium, lab: Lab, table: Table) -> None:
    """The source's, beyond redundancy; then the target's."""
    # Beside a source its drive has no room for the undo's store.
    with with_medium(lab, medium, 20 * MIB) as array:
        vol = lun(array, "vol", "linear", LARGE, drives=(MEDIUM,), exported=False)
        before = fill(vol, LARGE, seed=1)
        for drive in ("d1", "d2", "d3"):
            take(array, "vol", f"on{drive}", plex=True, drives=(drive,))
        later = fill(vol, LARGE, seed=2)

        def lost_under_way(source: str, drive: str, *, undo: bool) -> Task:
            medium.delay(300)
            restore = begun(array, f"{source}:vol", options=Options(undo=undo))
            assert restore.status() is Code.VSS_S_ASYNC_PENDING
            array.fail_drive(drive)
            medium.heal()
            return ended(array, restore)

        table.failed("the source's drive is lost", lab, lost_under_way("ond1", "d1", undo=True), back=True)
        assert checksum(vol) == later
        table.failed("the source's drive is lost", lab, lost_under_way("ond2", "d2", undo=False))
        assert is_unusable(array, "vol")
        table.failed("the target's drive is lost", lab, lost_under_way("ond3", MEDIUM, undo=True))
        assert array.document.lun("vol").incomplete
        assert checksum(node("ond3")) == before


@pytest.mark.long
def test_a_target_that_loses_a_member(medium: Medium, lab: Lab) -> None:
    """Within its redundancy: the copy goes on, and the LUN is recovered afterwards as any other."""
    with with_medium(lab, medium) as array:
        vol = lun(array, "vol", "raid1", LARGE, drives=("d0", MEDIUM), exported=False)
        in_sync(array, "vol")
        array.advance_all()
        first = fill(vol, LARGE, seed=1)
        take(array, "vol", "p", plex=True, drives=("d1", "d2"))
        fill(vol, LARGE, seed=2)
        medium.delay(300)
        restore = begun(array, "p:vol")
        assert restore.status() is Code.VSS_S_ASYNC_PENDING
        medium.fail()
        assert ended(array, restore).code == "S_OK"
        assert (checksum(vol), states(array, "vol")) == (first, ["in_sync", "failed"])
        medium.heal()
        assert recover(array, "vol", "d3").code == "S_OK"
        assert (checksum(vol), disagreements(array, "vol"), checksum(node("p"))) == (first, [], first)


def test_the_kernel_refuses(lab: Lab, table: Table) -> None:
    """Somebody has one of the drives: no new target can be made on it, and no log of a copy."""
    lab.create(1, size=Bytes(20 * MIB))
    with lab.opened() as array:
        vol = lun(array, "vol", "linear", SIZE, drives=("d0",), exported=False)
        fill(vol, SIZE, seed=1)
        take(array, "vol", "s", drives=("d0",))
        _leave(array, 0)
        lab.add(array, "d2")
        devices = left_over(array)
        holder = os.open(
            array._actor.path_of(f"/dev/mapper/{names.drive_name('lab', 'd2')}"), os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC
        )
        try:
            table.refused("the kernel refuses a new target", lab, array, lambda: begun(array, "s:new"), "s:new")
            assert left_over(array) == devices
            before = checksum(vol)
            task = restored(array, "s:vol")
            table.failed("the kernel refuses the copy", lab, task)
        finally:
            os.close(holder)
        assert restored(array, "s:vol").code == "S_OK"
        assert (checksum(vol), left_over(array)) == (before, devices)
        ask = asked(array, "s:vol")
        run("dmsetup", "remove", node("s"))
        table.raised("somebody has removed a device", lab, ask)
        array.reenumerate()
        array.refresh()


# The task.


@pytest.mark.long
def test_the_task(medium: Medium, lab: Lab, table: Table) -> None:
    """IVssAsync: pending, cancelled, finished, and too late for that; one at a time."""
    with with_medium(lab, medium) as array, impatient():
        vol = lun(array, "vol", "linear", LARGE, drives=(MEDIUM,), exported=False)
        other = lun(array, "other", "linear", SIZE, drives=("d0",), exported=False)
        fill(other, SIZE, seed=3)
        first = fill(vol, LARGE, seed=1)
        take(array, "vol", "s", drives=("d1",))
        take(array, "other", "t", drives=("d2",))
        fill(vol, LARGE, seed=2)
        medium.delay(100)
        restore = begun(array, "s:vol")
        number = array.document.next_task - 1

        def task() -> Task:
            return array.document.task(number)

        assert restore.status() is Code.VSS_S_ASYNC_PENDING
        table.stands("the task is under way", task())
        assert restore.wait(timeout_s=0.3) is Code.S_OK
        assert restore.status() is Code.VSS_S_ASYNC_PENDING
        array.pause(number)
        assert restore.status() is Code.VSS_S_ASYNC_PENDING
        situation = "another resync is under way"
        table.refused(situation, lab, array, asked(array, "t:other"), "t:other")
        table.first("the source is no shadow copy", situation, asked(array, "other:new"))
        with open_in(other):
            table.first(situation, "the target is mounted", asked(array, "t:other"))
        array.resume(number)
        assert restore.cancel() is Code.S_OK
        table.stands("the task was cancelled", task())
        assert (task().percent, restore.cancel()) == (0, Code.VSS_S_ASYNC_CANCELLED)
        assert (restore.wait(), restore.status()) == (Code.S_OK, Code.VSS_S_ASYNC_CANCELLED)
        assert events(lab)[-1].kind.value == "resync_cancelled"
        with array.unlocked():
            for verb in ("wait", "cancel"):
                answer = blkrecov(lab, "task", verb, str(number), "--json")
                assert (answer.status, answer.error["code"]) == (1, "VSS_S_ASYNC_CANCELLED"), verb
        array.reload()
        assert is_unusable(array, "vol")

        medium.slow_reads(200)
        restore = begun(array, "s:vol", options=Options(verify=True))
        number = array.document.next_task - 1
        until("the comparison", lambda: tasks.phase(array.advance(number)) is not Phase.RESTORE)
        assert tasks.phase(task()) is Phase.COMPARE
        assert (restore.cancel(), restore.status()) == (Code.VSS_S_ASYNC_FINISHED, Code.VSS_S_ASYNC_PENDING)
        medium.heal()
        assert ended(array, restore).message.endswith("0 mismatches")
        assert (restore.status(), restore.cancel()) == (Code.VSS_S_ASYNC_FINISHED, Code.VSS_S_ASYNC_FINISHED)
        assert checksum(vol) == first
        restore = begun(array, "s:vol")
        table.stands("the task has ended well", ended(array, restore))

        # A plex that is being filled is nobody's source yet.
        medium.delay(200)
        request = ShadowRequest(origin="other", name="u", plex=True, drives=(MEDIUM,), exported=False)
        proposal, filling = array.propose_shadows([request])
        assert filling is not None
        array.start(proposal, filling)
        array.pause(filling.id)
        table.refused("the source is not filled yet", lab, array, asked(array, "u:new"), "u:new")
        array.cancel(filling.id)
        medium.heal()


@pytest.mark.long
def test_the_table_of_codes_is_whole(table: Table) -> None:
    """No row that was never brought about."""
    assert set(ROWS) - table.rows == set()
    assert set(PAIRS) - table.pairs == set()
    print(f"\ntable of codes of ResyncLuns: {len(table.rows)} rows, {len(table.pairs)} pairs of precedence")
