"""In the guest, after a power cut: opens the array as an operator does, waits until the kernel is done, and looks.

Order: luns [name], drives, tasks (to wait for), recover (LUNs), scrub (LUNs), stop. The contents of LUN x go to lun-x.img.
"""

import json
import sys
import time
from pathlib import Path

from blkrecov import converge as converge_
from blkrecov.model import TaskState
from tests.crash import inside
from tests.crash.images import Disks
from tests.crash.power import Json, order_of


def main(order: Json) -> None:
    before = Disks([Path(inside.ubd(number)) for number in range(order["drives"])])
    superblocks = {
        lun.name: [block.resync_offset if block else "none" for block in before.superblocks(lun)]
        for lun in before.document.luns
    }
    started = time.monotonic()
    shown = inside.blkrecov("--verbose", "array", "show", "--json")
    took_s = time.monotonic() - started
    forced = shown.stderr.count("set array_resync_offset to 0")
    with inside.opened() as array:
        first = inside.statuses(array)
        inside.until_in_sync(array)
        written = {lun.name: inside.written_to_members(array, lun) for lun in array.document.luns}
        left = converge_.converge(array.document, array.observe())
        suspect = {lun.name: lun.suspect for lun in array.document.luns}
    tasks = [json.loads(inside.blkrecov("--json", "task", "wait", str(number)).stdout) for number in order["tasks"]]
    recovered = {}
    for name in order["recover"]:
        with inside.opened() as array:
            proposal, task = array.propose_recover(name, None)
            array.start(proposal, task)
            ended = array.wait(task.id, timeout_s=inside.DEADLINE_S)
            recovered[name] = {"state": ended.state.value, "phases": [phase.value for phase in ended.phases]}
            assert ended.state is TaskState.COMPLETED, ended
    scrubbed = {}
    for name in order["scrub"]:
        with inside.opened() as array:
            proposal, task = array.propose_scrub(name, repair=False)
            array.start(proposal, task)
            array.wait(task.id, timeout_s=inside.DEADLINE_S)
            scrubbed[name] = array.document.lun(name).mismatches
    with inside.opened() as array:
        for name in order["luns"]:
            data = inside.read_all(inside.disk_of(array, array.document.lun(name)))
            (inside.OUT / f"lun-{name}.img").write_bytes(data)
        views = {lun.name: array.lun_json(lun) for lun in array.document.luns}
        if order["stop"]:
            array.stop()
    inside.report(
        {
            "superblocks": superblocks,
            "shown": json.loads(shown.stdout),
            "took_s": took_s,
            "forced": forced,
            "first": first,
            "resyncs": inside.resyncs(),
            "written": written,
            "left": [str(group) for group in left],
            "suspect": suspect,
            "tasks": tasks,
            "recovered": recovered,
            "scrubbed": scrubbed,
            "views": views,
        }
    )


if __name__ == "__main__":
    main(order_of(sys.argv))
