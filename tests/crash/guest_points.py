"""In the guest: operations of the control plane, cut short at each of their points; then the array is opened again and looked at.

A point is a moment between two effects. Coarse points are after each step that the engine takes and after each copy of the
configuration that it writes. Fine points are before each single effect: a device-mapper ioctl that changes something, a write to
a drive's metadata, a directory, link or attribute of LIO, a file that comes or goes, a loop device, a file system that is
frozen or thawed.

Order, one of two:
    {"all": [operations], "coarse" and "fine": how many points of each kind per operation (null: all of them), "seed"}
        By ending the process there. Every process is forked from this one, which opens nothing itself.
    {"check": whether to look at what a power cut has left, "next": operation or null, "at", "marker"}
        The operation stops at its fine point of that number and touches the marker, for the host to cut the power.
"""

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from blkrecov import engine, provision, resync, stack
from blkrecov.actor import Actor
from blkrecov.array import Array
from blkrecov.converge import converge
from blkrecov.dm import names
from blkrecov.dm.control import Control
from blkrecov.dm.table import DelayTable, Segment
from blkrecov.drives import loop, raw
from blkrecov.drives.store import DriveStore
from blkrecov.errors import BlkrecovError
from blkrecov.model import Document, Drive, Lun, MemberState, Task
from blkrecov.resync import Options
from blkrecov.session import RestoreSession
from blkrecov.shadows import ShadowRequest
from blkrecov.units import KIB, MIB, SECTOR, Bytes, Sectors, sectors
from tests.crash import inside
from tests.crash.pattern import BLOCK, content
from tests.crash.power import Json, order_of, told
from tests.kernel import lab

FILES: Final = Path("/mnt/crash")
SIZE: Final = Bytes(32 * MIB)
EXTRA: Final = str(FILES / "extra")
MIBS: Final = 2
"""Of each LUN. "base" is on d0 and d1 and nothing is done to it; "y" is on d2 and d3."""
GROWN_MIBS: Final = 20
"""When y is larger than this it is made anew, to be extended again."""
EXPORTED: Final = ("extend", "delete")
"""Operations for which y must be a SCSI disk. For the others it is none: a disk takes udev a second to come."""
CHANGING: Final = (
    "DEV_CREATE",
    "TABLE_LOAD",
    "DEV_SUSPEND",
    "DEV_REMOVE",
    "DEV_RENAME",
    "TABLE_CLEAR",
    "TARGET_MSG",
)
LOOP_CHANGING: Final = (loop.LOOP_CONFIGURE, loop.LOOP_CLR_FD)
KILLED: Final = 9
# Bytes per second and member: what is to be synchronised is not over before it is looked at.
SLOWLY: Final = 16 * KIB
PATTERN: Final = content(1, 0, MIBS * MIB // BLOCK, 1)
SHADOWED: Final = {"resync": False, "undo": False, "forget": True}
"""Operations for which y has the shadow copy s1, and whether that is a SCSI disk."""
RESTORING: Final = ("resync", "undo")
"""Operations for which y has changed since."""
COPYING: Final = ("plex", "resync", "undo")
"""Operations in which the kernel copies. A quarter of it that is met by chance is written down: so points may be fewer."""
CHANGED: Final = content(1, 0, MIB // 2 // BLOCK, 2) + PATTERN[MIB // 2 :]
MOUNTED: Final = Path("/mnt/mounted")
"""Where LUN f is mounted while there is one."""
FILE_SYSTEM_MIBS: Final = 4
SLOW_MS: Final = 10
FIFREEZE: Final = 0xC0045877  # linux/fs.h
FITHAW: Final = 0xC0045878


# Cutting short.


class Points:
    """Counts points, and does something at one of them."""

    def __init__(self, at: int, then: Callable[[], None]) -> None:
        self._at, self._then = at, then
        self.names: list[str] = []

    def reached(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self._at:
            self._then()


def count_coarse(points: Points) -> None:
    act, write_slot = Actor.act, DriveStore.write_slot

    def acting(self: Actor, step: Any) -> Any:
        undo = act(self, step)
        points.reached(f"after {step.lines()[0]}")
        return undo

    def writing(self: DriveStore, *args: Any) -> int:
        index = write_slot(self, *args)
        points.reached(f"after the configuration was written to {self.path}")
        return index

    Actor.act, DriveStore.write_slot = acting, writing  # type: ignore[method-assign, assignment]


def count_fine(points: Points) -> None:
    ioctl, write = Control._ioctl, DriveStore._write
    raw_write, raw_zero = raw.write, raw.zero

    def asking(self: Control, operation: str, name: str, *args: Any, **kwargs: Any) -> bytes:
        if operation in CHANGING:
            points.reached(f"before {operation} {name}")
        return ioctl(self, operation, name, *args, **kwargs)

    def writing(self: DriveStore, offset: int, data: bytes) -> None:
        points.reached(f"before {len(data)} bytes at {offset} of {self.path}")
        write(self, offset, data)

    def writing_raw(node: str, *args: Any) -> None:
        points.reached(f"before a superblock of {node}")
        raw_write(node, *args)

    def zeroing(node: str, *args: Any) -> None:
        points.reached(f"before zeroing {node}")
        raw_zero(node, *args)

    Control._ioctl, DriveStore._write = asking, writing  # type: ignore[method-assign]
    raw.write, raw.zero = writing_raw, zeroing  # type: ignore[assignment]
    sys.addaudithook(lambda event, args: _audited(points, event, args))


def _audited(points: Points, event: str, args: tuple[Any, ...]) -> None:
    ours = ("/sys/kernel/config/", str(FILES))
    if event in ("os.mkdir", "os.rmdir", "os.remove", "os.symlink", "os.truncate"):
        if any(str(arg).startswith(ours) for arg in args[:2]):
            points.reached(f"before {event} {args[0]}")
    elif event == "open":
        path, _, flags = args
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(ours):
            points.reached(f"before writing {path}")
    elif event == "fcntl.ioctl" and args[1] in LOOP_CHANGING:
        points.reached(f"before a loop device is {'attached' if args[1] == loop.LOOP_CONFIGURE else 'detached'}")
    elif event == "fcntl.ioctl" and args[1] in (FIFREEZE, FITHAW):
        points.reached(f"before a file system is {'frozen' if args[1] == FIFREEZE else 'thawed'}")


# Operations.


def create(array: Array) -> None:
    array.create_lun(array.propose_lun(inside.request("x", "raid1", MIBS, "d1,d2")))


def add(array: Array) -> None:
    array.add_drive(EXTRA, size=SIZE, name="extra", spare=False, force=False)


def remove(array: Array, name: str = "extra") -> None:
    proposal, task, _ = array.propose_remove(name)
    array.remove(proposal, task)


def extend(array: Array) -> None:
    array.carry_out(array.propose_extend("y", Bytes(array.document.lun("y").bytes + MIB)))


def delete(array: Array) -> None:
    array.carry_out(array.propose_delete("y"))


def fail(array: Array) -> None:
    array.fail_drive("d2")


def recover(array: Array) -> None:
    array.start(*array.propose_recover("y", None))


def snapshot(array: Array) -> None:
    """Shadow copies of two LUNs at one moment. The file system on one of them has something to write still."""
    (MOUNTED / "file").write_bytes(os.urandom(64 * KIB))
    requests = [
        ShadowRequest(origin="y", name="s1", drives=("d0", "d1"), exported=False),
        ShadowRequest(origin="f", name="s2", drives=("d2", "d3"), exported=False),
    ]
    array.carry_out(array.propose_shadows(requests)[0])


def plex(array: Array) -> None:
    proposal, task = array.propose_shadows(
        [ShadowRequest(origin="y", name="p1", plex=True, drives=("d0", "d1"), exported=False)]
    )
    assert task is not None
    end(array, array.start(proposal, task))


def restore(array: Array) -> None:
    end(array, session_of(array).resync())


def undo(array: Array) -> None:
    """Begin a restore, and go back to what was there before."""
    slow_down({"d2": SLOW_MS})
    array._run(converge(array.document, array.observe()), wanted=frozenset())
    task = session_of(array).resync(Options(undo=True))
    assert not task.state.ended, "it had ended before it could be cancelled"
    end(array, array.cancel(task.id))


def forget(array: Array) -> None:
    array.carry_out(array.propose_delete("s1"))


def session_of(array: Array) -> RestoreSession:
    session = RestoreSession(array)
    session.begin()
    session.add("s1")
    return session


def end(array: Array, task: Task) -> None:
    """Wait for a copy's end. Looked at in between as seldom as can be."""

    def copied() -> bool:
        targets = resync.targets(array.document, task)
        return all(resync.copied(array.observed, target).complete for target in targets)

    array.advance(task.id)
    inside.until(array, copied, "the copy's end")
    array.wait(task.id, timeout_s=inside.DEADLINE_S)


def slow_down(milliseconds: dict[str, int]) -> None:
    """Give drives a long way to their medium, in the eyes of this process. The next one to open the array undoes it."""
    port = stack.port

    def slow(document: Document, drive: Drive, backing: str | None) -> stack.Device:
        device = port(document, drive, backing)
        if drive.name not in milliseconds or backing is None:
            return device
        source = Segment(device=backing, offset=Sectors(0), length=sectors(drive.size))
        table = DelayTable(source=source, read_ms=0, write_ms=milliseconds[drive.name]).render()
        return replace(device, table=table)

    stack.port = slow


OPERATIONS: Final[dict[str, Callable[[Array], None]]] = {
    "create": create,
    "add": add,
    "remove": remove,
    "extend": extend,
    "delete": delete,
    "fail": fail,
    "recover": recover,
    "snapshot": snapshot,
    "plex": plex,
    "resync": restore,
    "undo": undo,
    "forget": forget,
}


def summary(array: Array) -> Json:
    """What an operator would call the state. Where a lost member and its substitute are does not count."""
    document = array.document
    return {
        "drives": {drive.name: drive.status.value for drive in document.drives},
        "luns": {
            lun.name: [
                lun.size,
                [
                    (document.drive_of(member.drive).name if member.state is MemberState.IN_SYNC else "", member.state)
                    for member in lun.members
                ],
                *([f"of {document.lun_of(lun.shadow.origin).name}"] if lun.shadow is not None else []),
            ]
            for lun in document.luns
        },
        "contents": {lun.name: contents(array, lun) for lun in document.luns if lun.name != "f"},
        "tasks": sorted(task.kind.value for task in document.tasks if not task.state.ended),
    }


def contents(array: Array, lun: Lun) -> str:
    """What a LUN holds, in a word. Of one that is larger than what was written to it, only so much counts."""
    if lun.name == "x":
        return "nothing"
    if lun.name == "s2":
        return "a file system" if is_at_rest(inside.disk_of(array, lun)) else "a file system that is in use"
    disk = inside.disk_of(array, lun)
    data = lab.read(disk, 0, lab.size_of(disk))
    if len(data) != lun.bytes:
        return f"{len(data)} bytes, and the LUN has {lun.bytes}"
    words = {PATTERN: "the pattern", CHANGED: "the pattern, changed"}
    return words.get(data[: len(PATTERN)], "something else")


def is_at_rest(disk: str) -> bool:
    """Whether a file system can be mounted read-only, which one with an open journal on a read-only disk cannot."""
    checked = subprocess.run(["fsck.ext4", "-f", "-n", disk], check=False, capture_output=True)
    point = MOUNTED.with_name("shadow")
    point.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-o", "ro", disk, str(point)], check=False, capture_output=True)
    if mounted.returncode == 0:
        subprocess.run(["umount", str(point)], check=True)
    return (checked.returncode, mounted.returncode) == (0, 0)


def expected(operation: str, before: Json) -> Json:
    """The state after an operation that was done."""
    after: Json = json.loads(json.dumps(before))
    drives, luns, holds = after["drives"], after["luns"], after["contents"]
    size = MIBS * MIB // SECTOR
    match operation:
        case "create":
            luns["x"] = [size, [["d1", "in_sync"], ["d2", "in_sync"]]]
            holds["x"] = "nothing"
        case "add":
            drives["extra"] = "online"
        case "remove":
            del drives["extra"]
        case "extend":
            luns["y"][0] += MIB // SECTOR
        case "delete":
            del luns["y"], holds["y"]
        case "fail":
            drives["d2"] = "failed"
            luns["y"][1][0] = ["", "failed"]
        case "recover":
            luns["y"][1][0] = ["", "rebuilding"]
            after["tasks"] = ["recover"]
        case "snapshot":
            luns["s1"] = [size, [["d0", "in_sync"], ["d1", "in_sync"]], "of y"]
            luns["s2"] = [FILE_SYSTEM_MIBS * MIB // SECTOR, [["d2", "in_sync"]], "of f"]
            holds |= {"s1": "the pattern", "s2": "a file system"}
        case "plex":
            luns["p1"] = [size, [["d0", "in_sync"], ["d1", "in_sync"]], "of y"]
            holds["p1"] = "the pattern"
        case "resync":
            holds["y"] = "the pattern"
        case "forget":
            del luns["s1"], holds["s1"]
    return after


def ends_of(operation: str, before: Json) -> list[Json]:
    """The states after an operation that was done, to its end or as far as it was when it was cut short."""
    # Of a restore that is not cancelled yet the end is the restore's.
    words = (operation, "resync") if operation == "undo" else (operation,)
    return [expected(word, before) for word in words]


def prepare(operation: str) -> None:
    """Bring the array from wherever an operation, or half of one, has left it to where it can be done."""
    with inside.opened() as array:
        wanted = {drive.path for drive in array.document.drives if drive.online}
        for device in loop.attached():
            if device.deleted or device.backing_file not in wanted:  # Told as a leak already.
                loop.detach(device)
        for task in array.document.tasks:
            if not task.state.ended:
                array.cancel(task.id)
        have = {lun.name: lun for lun in array.document.luns}
        if "x" in have:
            array.carry_out(array.propose_delete("x"))
        y = have.get("y")
        for lun in array.document.luns:
            of_use = (
                lun.name == "s1" and y is not None and fits(y, operation) and SHADOWED.get(operation) == lun.exported
            )
            if lun.shadow is not None and not of_use:
                array.carry_out(array.propose_delete(lun.name))
        degraded = y is not None and bool(y.lost) and not y.rebuilding
        if y is not None and not (degraded if operation == "recover" else fits(y, operation)):
            array.carry_out(array.propose_delete("y"))
        for drive in array.document.drives:
            if not drive.online and not (operation == "recover" and degraded):
                remove(array, drive.name)
                Path(drive.path).unlink()
                array.add_drive(drive.path, size=SIZE, name=drive.name, spare=False, force=False)
        if not any(lun.name == "y" for lun in array.document.luns):
            make_lun(array, "y", "d2,d3", exported=operation in EXPORTED)
        extra = any(drive.name == "extra" for drive in array.document.drives)
        if extra and operation != "remove":
            remove(array)
            extra = False
        if not extra:
            Path(EXTRA).unlink(missing_ok=True)
        if operation == "remove" and not extra:
            add(array)
        if operation == "recover" and not array.document.lun("y").lost:
            array.fail_drive("d2")
        prepare_contents(array, operation)


def prepare_contents(array: Array, operation: str) -> None:
    """What LUNs hold when an operation begins, and the shadow copy that it is about."""
    y = array.document.lun("y")
    disk = inside.disk_of(array, y)
    if not array.document.shadows_of(y.uuid):
        if contents(array, y) != "the pattern":
            inside.write_all(disk, PATTERN)
        if operation in SHADOWED:
            request = ShadowRequest(origin="y", name="s1", drives=("d0", "d1"), exported=SHADOWED[operation])
            array.carry_out(array.propose_shadows([request])[0])
    if operation in RESTORING:
        inside.write_all(disk, CHANGED)
    if operation == "snapshot":
        prepare_file_system(array)
    elif any(lun.name == "f" for lun in array.document.luns):
        if MOUNTED.is_mount():
            subprocess.run(["umount", str(MOUNTED)], check=True)
        array.carry_out(array.propose_delete("f"))


def prepare_file_system(array: Array) -> None:
    if not any(lun.name == "f" for lun in array.document.luns):
        request = inside.request("f", "linear", FILE_SYSTEM_MIBS, "d0", exported=False)
        disk = inside.disk_of(array, array.create_lun(array.propose_lun(request)))
        subprocess.run(["mkfs.ext4", "-q", "-b", "1024", "-J", "size=1", disk], check=True)
    if not MOUNTED.is_mount():
        MOUNTED.mkdir(exist_ok=True)
        subprocess.run(["mount", inside.disk_of(array, array.document.lun("f")), str(MOUNTED)], check=True)


def fits(y: Lun, operation: str) -> bool:
    largest = GROWN_MIBS if operation == "extend" else MIBS
    whole = y.ready and not (y.lost or y.rebuilding)
    return whole and y.bytes <= largest * MIB and (y.exported or operation not in EXPORTED)


def make_lun(array: Array, name: str, drives: str, *, exported: bool) -> None:
    request = inside.request(name, "raid1", MIBS, drives, exported=exported)
    array.carry_out(provision.configure(array.document, rate_max=0))
    lun = array.create_lun(array.propose_lun(request))
    inside.write_all(inside.disk_of(array, lun), PATTERN)
    inside.until_in_sync(array)
    array.carry_out(provision.configure(array.document, rate_max=SLOWLY))


# Looking.


def state() -> Json:
    with inside.opened() as array:
        return summary(array)


def look() -> Json:
    """Open the array twice. The second time there must be nothing to do, and nothing may be there that nobody wants."""
    wrong: list[str] = []
    with inside.opened() as array:
        for task in array.document.tasks:
            if task.kind in resync.COPIES and not task.state.ended:
                array.wait(task.id, timeout_s=inside.DEADLINE_S)
        first = array.document.sequence
    steps: list[str] = []
    act = Actor.act

    def acting(self: Actor, step: Any) -> Any:
        steps.append(step.lines()[0])
        return act(self, step)

    Actor.act = acting  # type: ignore[method-assign]
    with inside.opened() as array:
        if steps:
            wrong.append(f"the second open still had to {steps}")
        if array.document.sequence != first:
            wrong.append(f"the second open wrote version {array.document.sequence} after {first}")
        left = converge(array.document, array.observe())
        if left:
            wrong.append(f"what is there is not what is wanted: {left}")
        wrong += leaks(array)
        wrong += [f"LUN {lun.name} is not ready: {lun.incomplete}" for lun in array.document.luns if not lun.ready]
        found = summary(array)
        if found["contents"]["base"] != "the pattern":
            wrong.append(f"LUN base does not hold what was written to it: {found['contents']['base']}")
        if MOUNTED.is_mount() and is_frozen(MOUNTED):
            wrong.append("the file system of LUN f is frozen")
        return {"state": found, "wrong": wrong}


def is_frozen(point: Path) -> bool:
    """Whether a file system was frozen. It is not any more."""
    descriptor = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, FITHAW, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def leaks(array: Array) -> list[str]:
    """Objects of the kernel that are there and not wanted, or wanted and not there."""
    document = array.document
    online = [drive for drive in document.drives if drive.online]
    exported = [lun for lun in document.luns if lun.exported]
    wanted: list[stack.Device] = [stack.port(document, drive, None) for drive in document.drives]
    for lun in document.luns:
        legs = stack.legs(document, lun)
        wanted += [*legs, stack.plex(document, lun, {leg.uuid: stack.node(leg.name) for leg in legs})]
        if document.shadows_of(lun.uuid):
            wanted.append(stack.origin(document, lun))
        if lun.differential:
            wanted.append(stack.shadow(document, lun))
        wanted.append(stack.top(document, lun, failed=False))
    with Control() as control:
        devices = {entry.name for entry in control.devices() if entry.name.startswith(names.PREFIX)}
        suspended = sorted(name for name in devices if control.info(name).suspended)
    lio = Path("/sys/kernel/config/target")
    attached = {device.backing_file for device in loop.attached()}
    # What has failed may keep its loop device, until the array is stopped.
    attached -= {drive.path for drive in document.drives if not drive.online}
    found: dict[str, tuple[set[str], set[str]]] = {
        "devices": (devices, {device.name for device in wanted}),
        "loop devices": (attached, {drive.path for drive in online if Path(drive.path).is_file()}),
        "LIO backstores": (
            {entry.name for entry in lio.glob("core/iblock_*/*") if entry.is_dir() and entry.name != "alua"},
            {f"{names.PREFIX}-{inside.ARRAY}-{lun.name}" for lun in exported},
        ),
    }
    targets, exports = len(list(lio.glob("loopback/naa.*"))), len(exported)
    wrong = [
        f"{what}: too many {sorted(there - due)}, missing {sorted(due - there)}"
        for what, (there, due) in found.items()
        if there != due
    ]
    if suspended:
        wrong.append(f"suspended: {suspended}")
    if targets != exports:
        wrong.append(f"{targets} LIO targets for {exports} LUNs")
    return wrong


# Running.


def forked(work: Callable[[], Json | None]) -> tuple[int, Json]:
    """Run something in a process of its own: (its exit status, what it returned). What it raises is told as "error"."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            answer: Json = work() or {}
        except BlkrecovError as error:
            answer = {"error": f"{type(error).__name__}: {error.message}"}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with open(writing, "w") as pipe:
            pipe.write(json.dumps(answer))
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text or "{}")


def must(work: Callable[[], Json | None]) -> Json:
    status, answer = forked(work)
    assert status == 0, answer
    assert "error" not in answer, answer
    return answer


def operate(operation: str) -> None:
    with inside.opened() as array:
        OPERATIONS[operation](array)


def operate_until(operation: str, counting: Callable[[Points], None], at: int, then: Callable[[], None]) -> None:
    with inside.opened() as array:
        counting(Points(at, then))
        OPERATIONS[operation](array)


def points_of(operation: str) -> dict[str, list[str]]:
    with inside.opened() as array:
        coarse, fine = Points(0, lambda: None), Points(0, lambda: None)
        count_coarse(coarse)
        count_fine(fine)
        OPERATIONS[operation](array)
    return {"coarse": coarse.names, "fine": fine.names}


def ready() -> None:
    """The file system with the drives' files; a machine that starts for the first time makes it, and the array."""
    import rtslib_fb  # noqa: F401  # Once, and not in every process that is forked.

    Path("/proc/sys/dev/raid/speed_limit_min").write_text("1")
    FILES.mkdir()
    disk = inside.ubd(0)
    fresh = subprocess.run(["blkid", disk], check=False, capture_output=True).returncode != 0
    if fresh:
        subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    subprocess.run(["mount", disk, str(FILES)], check=True)
    if fresh:
        must(make)


def make() -> None:
    engine.create_array(inside.settings(), inside.ARRAY)
    with inside.opened() as array:
        for number in range(4):
            path = str(FILES / f"d{number}")
            array.add_drive(path, size=SIZE, name=f"d{number}", spare=False, force=False)
        make_lun(array, "base", "d0,d1", exported=True)
        make_lun(array, "y", "d2,d3", exported=False)


class Trial:
    """All points of one operation."""

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.before: Json = {}
        self.ends: list[Json] = []
        self.rested = False
        """Whether the array is known to be in the state before the operation."""
        self.result: Json = dict.fromkeys(("done", "undone", "coarse", "coarse_tried", "fine", "fine_tried"), 0)
        self.result["wrong"] = []

    def run(self, coarse: int | None, fine: int | None, chance: random.Random) -> Json:
        try:
            self._run(coarse, fine, chance)
        except AssertionError as error:
            # The array cannot be brought back to where the next point begins.
            self.result["gave_up"] = str(error)
            self.result["wrong"].append(f"gave up: {error}")
        return self.result

    def _run(self, coarse: int | None, fine: int | None, chance: random.Random) -> None:
        reference = self._reference()
        for kind, counting, number in (("coarse", count_coarse, coarse), ("fine", count_fine, fine)):
            points = reference[kind]
            numbers = range(1, len(points) + 1)
            chosen = numbers if number is None else sorted(chance.sample(numbers, min(number, len(points))))
            for at in chosen:
                self._cut_at(counting, at, points[at - 1])
                self.result[f"{kind}_tried"] += 1

    def _prepare(self) -> None:
        if not self.rested:
            must(lambda: prepare(self.operation))
        if self.operation == "extend" and self.before:
            # Not brought back: it grows by as much each time.
            self.before = must(state)
            self.ends = ends_of("extend", self.before)

    def _reference(self) -> dict[str, list[str]]:
        """The operation undisturbed: its points of both kinds, and that it does what it is to do."""
        self._prepare()
        self.before = must(state)
        self.ends = ends_of(self.operation, self.before)
        self.rested = False
        points: dict[str, list[str]] = must(lambda: points_of(self.operation))
        self.result |= {kind: len(found) for kind, found in points.items()}
        looked = must(look)
        assert not looked["wrong"], looked
        assert looked["state"] == self.ends[0], looked
        return points

    def _cut_at(self, counting: Callable[[Points], None], at: int, name: str) -> None:
        where = f"{self.operation}, point {at}, {name}"
        began = time.monotonic()
        self._prepare()
        self.rested = False
        status, answer = forked(lambda: operate_until(self.operation, counting, at, lambda: os._exit(KILLED)))
        if status != KILLED and ("error" in answer or self.operation not in COPYING):
            self.result["wrong"].append(f"{where}: was not reached: {answer}")
            return
        self._judge(where, forked(look)[1], again=counting is count_fine)
        told(f"{where}: {time.monotonic() - began:.1f} s")

    def _judge(self, where: str, looked: Json, *, again: bool) -> None:
        wrong: list[str] = self.result["wrong"]
        if "error" in looked:
            wrong.append(f"{where}: cannot be opened: {looked['error']}")
            return
        wrong += [f"{where}: {what}" for what in looked["wrong"]]
        if looked["state"] in self.ends:
            self.result["done"] += 1
        elif looked["state"] == self.before:
            self.result["undone"] += 1
            self.rested = not looked["wrong"] and not again
            if again:
                # Whoever was cut short tries again, with the same words.
                _, answer = forked(lambda: operate(self.operation))
                if "error" in answer:
                    wrong.append(f"{where}: undone, and done again it ends in {answer['error']}")
        else:
            wrong.append(f"{where}: neither done nor undone: {looked['state']}")


def main(order: Json) -> None:
    ready()
    if "all" in order:
        results = {}
        for operation in order["all"]:
            chance = random.Random(f"{order['seed']} {operation}")
            results[operation] = Trial(operation).run(order["coarse"], order["fine"], chance)
            if "gave_up" in results[operation]:
                break
            told(f"{operation}: {results[operation]}")
        inside.report(results)
        return
    result: Json = {}
    if order["check"]:
        result = forked(look)[1]
    inside.report(result)
    inside.mark(order["marker"] + "-looked")
    operation = order["next"]
    if operation:
        must(lambda: prepare(operation))
        before = must(state)
        told(f"{operation}, point {order['at']}")
        inside.report({"before": before, "ends": ends_of(operation, before)})

        def stop_here() -> None:
            inside.mark(order["marker"])
            signal.pause()

        forked(lambda: operate_until(operation, count_fine, order["at"], stop_here))
        stop_here()  # It has ended with fewer points than when they were counted; the power goes right after it.


if __name__ == "__main__":
    main(order_of(sys.argv))
