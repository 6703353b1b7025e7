"""In the guest: resynchronisations under which the power goes, and what is found when the array is opened again.

The array's LUNs are there for all of a run. "a" is restored from its shadow copy a1 while a2 is there too, "b" from a plex that
was taken of a LUN which is gone. Before each resync the targets are overwritten. Where the copy is to be met, drives are slow.

A moment is [number, scenario, stage, how far], the last a fraction. Stages: "start" and "finish" are at one of the call's single
effects (guest_points.count_fine) before and after the copy, "copy" is when the kernel has copied that much. At the host's
moments the guest waits for the host to kill it; at its own it takes the devices away, and begins another boot, by itself.

Order: boot (0 makes the array), moments (the guest's own), kill (the host's moment, or null). What must be known after a boot
is in state.json.
"""

import hashlib
import json
import mmap
import os
import random
import re
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from unittest import mock

from blkrecov import changes, engine, model, resync, stack
from blkrecov.array import Array
from blkrecov.converge import converge
from blkrecov.dm import mirror_log
from blkrecov.dm.control import Control
from blkrecov.drives.label import newest
from blkrecov.drives.store import DriveStore, IoCounter
from blkrecov.model import Document, Layout, Lun, TaskState
from blkrecov.session import RestoreSession
from blkrecov.shadows import ShadowRequest
from blkrecov.units import KIB, MIB, SECTOR
from tests.crash import inside
from tests.crash.guest_points import KILLED, Points, count_fine, forked, leaks, must, slow_down
from tests.crash.power import Json, order_of, told
from tests.kernel import lab

DRIVES: Final = 4
SLOW_MS: Final = {"d0": 10, "d3": 60}
"""A part of each target, and the log of the copy, which is on the emptiest drive: d0."""
TARGETS: Final = {"origin": {"a": "a1"}, "other": {"b": "p"}, "both": {"a": "a1", "b": "p"}}
"""The shadow copy that is put on each target, by scenario."""
SOURCES: Final = ("a1", "a2", "p")
MIBS: Final = {"a": 32, "b": 24}
CHUNK: Final = 64 * KIB
# Every seventh chunk: the first, the last, and some of both parts of the copy.
CHANGED: Final = tuple(range(0, MIBS["a"] * MIB // CHUNK, 7))
PAGE: Final = 4096
BEGINS: Final = re.compile("DEV_SUSPEND .*-copy$")
STATE: Final = inside.OUT / "state.json"
SCRATCH: Final = Path("/tmp/resync")

Moment = tuple[int, str, str, float]


# Contents.


def first_page(signature: int) -> bytes:
    """A disk's first page: an MBR with this signature and one partition."""
    page = bytearray(PAGE)
    struct.pack_into("<I2xB3xB3xII", page, 0x1B8, signature, 0, 0x83, 2048, 8192)
    page[510:512] = b"\x55\xaa"
    return bytes(page)


def fill(disk: str, mibs: int, seed: int, signature: int) -> None:
    lab.fill(disk, mibs * MIB, seed)
    lab.write(disk, 0, first_page(signature))


def put(disk: str, pieces: dict[int, bytes]) -> None:
    """Write bytes to these offsets, with the disk opened once: udev looks at one that was written to and closed."""
    buffer = mmap.mmap(-1, CHUNK)
    with inside.direct(disk) as descriptor:
        for offset, data in pieces.items():
            buffer[: len(data)] = data
            assert os.pwritev(descriptor, [memoryview(buffer)[: len(data)]], offset) == len(data)
        os.fdatasync(descriptor)


def digest(disk: str) -> list[str]:
    """What a disk holds: of its first page, and of all the rest."""
    rest = hashlib.sha256()
    for piece in lab.pieces(disk, PAGE, lab.size_of(disk) - PAGE):
        rest.update(piece)
    return [hashlib.sha256(lab.read(disk, 0, PAGE)).hexdigest(), rest.hexdigest()]


def page_digest(signature: int) -> str:
    return hashlib.sha256(first_page(signature)).hexdigest()


def digests(array: Array) -> dict[str, list[str]]:
    return {lun.name: digest(inside.disk_of(array, lun)) for lun in array.document.luns}


# The array.


def make() -> None:
    settings = inside.settings()
    engine.create_array(settings, inside.ARRAY)
    with inside.opened() as array:
        for number in range(DRIVES):
            array.add_drive(inside.ubd(number), size=None, name=f"d{number}", spare=False, force=False)
        wanted = (
            inside.request("a", "raid1", MIBS["a"], "d0,d1"),
            inside.request("b", "raid5", MIBS["b"], "d1,d2,d3", exported=False),
            inside.request("c", "linear", MIBS["b"], "d3", exported=False),
        )
        disks = {}
        for number, request in enumerate(wanted):
            lun = array.create_lun(array.propose_lun(request))
            disks[lun.name] = inside.disk_of(array, lun)
            fill(disks[lun.name], request.size // MIB, seed=number, signature=1 + number)
        proposal, task = array.propose_shadows(
            [ShadowRequest(origin="c", name="p", plex=True, drives=("d2",), exported=False)]
        )
        assert task is not None
        array.wait(array.start(proposal, task).id, timeout_s=inside.DEADLINE_S)
        array.carry_out(array.propose_delete("c"))
        for name in ("a1", "a2"):
            shadow = ShadowRequest(origin="a", name=name, layout=Layout.LINEAR, drives=("d3",), exported=False)
            array.carry_out(array.propose_shadows([shadow])[0])
            lab.fill(disks["a"], CHUNK, seed=10, offset=CHANGED[1] * CHUNK)  # So that no two show the same.
        inside.until_in_sync(array)
        save({"sources": {name: found for name, found in digests(array).items() if name in SOURCES}})


def overwrite(array: Array, number: int, targets: Json) -> None:
    """Put contents on the targets that are another round's alone; of "a" only some chunks are."""
    for name in targets:
        disk = inside.disk_of(array, array.document.lun(name))
        if name == "a":
            chance = random.Random(number)
            put(disk, {chunk * CHUNK: chance.randbytes(CHUNK) for chunk in CHANGED} | {0: first_page(1000 + number)})
        else:
            fill(disk, MIBS[name], seed=1000 * number, signature=1000 + number)


def restored(array: Array, number: int, targets: Json, before: dict[str, list[str]]) -> dict[str, list[str]]:
    """What is where when the targets have the contents of their shadow copies, under the signatures that they had."""
    sources = {name: before[source][1] for name, source in targets.items()}
    return before | {name: [page_digest(1000 + number), rest] for name, rest in sources.items()}


# The call, and its end.


def call(moment: Moment, counts: Json, then: Callable[[], None]) -> Json:
    """A resync, until its moment comes; one that is 0 never comes. Returns how many effects came before the copy, and after."""
    number, scenario, stage, far = moment
    targets = TARGETS[scenario]
    before_copy, after_copy = counts.get(scenario, (0, 0))
    at = {"start": int(far * before_copy), "finish": before_copy + int(far * after_copy)}.get(stage, -1) + 1
    points = Points(at, then)
    with inside.opened() as array:
        overwrite(array, number, targets)
        before = digests(array)
        after = restored(array, number, targets, before)
        save({"cut": {"moment": moment, "task": array.document.next_task, "before": before, "after": after}})
        if stage == "copy":
            slow_down(SLOW_MS)
            array._run(converge(array.document, array.observe()), wanted=frozenset())
        session = RestoreSession(array)
        session.begin()
        for name, source in targets.items():
            session.add(source, name)
        count_fine(points)
        task = session.resync()

        def copied() -> float:
            copies = [resync.copied(array.observed, target) for target in resync.targets(array.document, task)]
            return min((copy.done / copy.total for copy in copies), default=1.0)

        if stage == "copy":
            inside.until(array, lambda: copied() >= far, "part of the copy", tick_s=0.005)
            then()
        inside.until(array, lambda: copied() == 1, "all of the copy", tick_s=0.01)
        ended = array.wait(task.id, timeout_s=inside.DEADLINE_S)
        assert ended.state is TaskState.COMPLETED, ended
        assert ended.bytes_process < 2 * MIB, ended
    # Before the resume with which the last copy begins, and after it.
    before_copy = max(index for index, name in enumerate(points.names, 1) if BEGINS.search(name))
    return {"counts": [before_copy, len(points.names) - before_copy]}


def take_the_power() -> None:
    """As Lab.power_cut(), also in the middle of a call: what is suspended would hold up the taking away."""
    lab.fail_at_once([name for name in lab.our_devices() if "-drive-" in name])
    with Control() as control:
        for name in lab.our_devices():
            if control.info(name).suspended:
                control.resume(name, visible=False)
    SCRATCH.mkdir(exist_ok=True)
    lab.Lab(SCRATCH).power_cut()


# Afterwards.


def on_the_drives() -> Document:
    documents = []
    for number in range(DRIVES):
        with DriveStore(inside.ubd(number), IoCounter(), writable=False) as store:
            slot = newest(store.read_slots(store.read_label().label))
            assert slot is not None
            documents.append(model.decode(slot.payload))
    return max(documents, key=lambda document: document.sequence)


def copies(document: Document) -> dict[str, Json]:
    """For each target whose copy has begun: how many regions it has, and how many its log has as not copied."""
    found = {}
    for lun in document.luns:
        restore = lun.restore
        if restore is None or not restore.length or restore.drive is None:
            continue
        path = document.drive_of(restore.drive).path
        dirty = 0
        for number, part in enumerate(changes.divide(restore.length, restore.region, restore.parts)):
            start = (restore.log[0].start + number * stack.COPY_LOG_LENGTH) * SECTOR
            regions = mirror_log.dirty(lab.read(path, start, stack.COPY_LOG_LENGTH * SECTOR), part.regions)
            assert regions is not None, f"part {number} of the copy to {lun.name} has no log"
            dirty += len(regions)
        found[lun.name] = {
            "regions": -(-restore.todo // restore.region),
            "dirty": dirty,
            "region": restore.region * SECTOR,
        }
    return found


def state_of(document: Document, number: int) -> str:
    """A task's state; nothing for one that never was written down."""
    return next((task.state.value for task in document.tasks if task.id == number), "")


def is_readable(array: Array, lun: Lun) -> bool:
    try:
        lab.read(inside.disk_of(array, lun), 0, PAGE)
    except (OSError, AssertionError):  # The SCSI disk of a LUN that was not ready from its start has no size.
        return False
    return True


def finish(number: int) -> Json:
    """Open the array, wait until the task has ended, and look at everything; first at what is not restored yet."""
    with ExitStack() as leaving:
        # It goes on in the kernel from the start, and ends when somebody takes up the task.
        with mock.patch.object(Array, "_take_up"):
            array = leaving.enter_context(inside.opened())
        readable = {lun.name: is_readable(array, lun) for lun in array.document.luns if not lun.ready}
        if state_of(array.document, number):
            array.wait(number, timeout_s=inside.DEADLINE_S)
        written = {name: plex_written(array, array.document.lun(name)) for name in MIBS}
        wrong = leaks(array)
        wrong += [f"LUN {lun.name} is not ready" for lun in array.document.luns if not lun.ready]
        left = converge(array.document, array.observe())
        if left:
            wrong.append(f"what is there is not what is wanted: {left}")
        return {
            "ended": state_of(array.document, number),
            "readable": readable,
            "written": written,
            "contents": digests(array),
            "wrong": wrong,
        }


def plex_written(array: Array, lun: Lun) -> int:
    """Bytes written to a LUN since it was brought up, by whomever."""
    live = array.observed.plex(lun)
    assert live is not None
    return int(Path(f"/sys/dev/block/{live.number}/stat").read_text().split()[6]) * SECTOR


def look(how: str) -> None:
    """What a cut has left, and what becomes of it. Goes to the list of what was found."""
    state = saved()
    cut = state["cut"]
    number, scenario, stage, far = cut["moment"]
    document = on_the_drives()
    found: Json = {"number": number, "scenario": scenario, "stage": stage, "far": far, "how": how}
    found |= {"task": state_of(document, cut["task"]), "targets": list(TARGETS[scenario]), "copies": copies(document)}
    found |= {"sources": state["sources"], "before": cut["before"], "after": cut["after"]}
    if how == "killed":
        inside.blkrecov("array", "show")
    found |= must(lambda: finish(cut["task"]))
    save({"cut": None, "found": [*state.get("found", []), found]})
    told(f"{found}")


# Running.


def saved() -> Json:
    state: Json = json.loads(STATE.read_text()) if STATE.exists() else {}
    return state


def save(more: Json) -> None:
    fresh = STATE.with_suffix(".new")
    fresh.write_text(json.dumps(saved() | more))
    fresh.rename(STATE)


def undisturbed(number: int, scenario: str) -> None:
    """The call without a cut: what it does, and how many effects that takes."""
    answer = must(lambda: call((number, scenario, "", 0.0), {}, lambda: None))
    state = saved()
    looked = must(lambda: finish(state["cut"]["task"]))
    assert not looked["wrong"], looked
    assert looked["contents"] == state["cut"]["after"], looked
    save({"counts": state.get("counts", {}) | {scenario: answer["counts"]}})


def cut_here(moment: Moment) -> None:
    status, answer = forked(lambda: call(moment, saved()["counts"], lambda: os._exit(KILLED)))
    assert status == KILLED or "error" not in answer, answer
    take_the_power()
    look("cut inside")


def wait_for_the_host(moment: Moment) -> None:
    def stop_here() -> None:
        inside.mark(f"moment-{moment[0]}")
        signal.pause()

    _, answer = forked(lambda: call(moment, saved()["counts"], stop_here))
    assert "error" not in answer, answer
    stop_here()  # It has ended with fewer effects than when they were counted; the power goes right after it.


def main(order: Json) -> None:
    import rtslib_fb  # noqa: F401  # Once, and not in every process that is forked.

    if order["boot"] == 0:
        must(make)
        for number, scenario in enumerate(TARGETS):
            undisturbed(100 + number, scenario)
    else:
        look("killed")
    for moment in order["moments"]:
        cut_here(tuple(moment))
    if order["kill"]:
        wait_for_the_host(tuple(order["kill"]))
    with inside.opened() as array:
        array.stop()
    inside.report(saved())


if __name__ == "__main__":
    main(order_of(sys.argv))
