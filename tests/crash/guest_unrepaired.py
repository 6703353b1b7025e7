"""In the guest, the control case: the same disks assembled as after a clean stop, so that nobody asks for a resynchronisation.

Everything else is the same. What the kernel then calls in sync is compared by the kernel itself.
"""

import dataclasses
import sys
from contextlib import ExitStack

import msgspec

from blkrecov import catalog
from blkrecov.array import Array
from blkrecov.drives.store import IoCounter
from blkrecov.engine import locked
from tests.crash import inside
from tests.crash.power import Json, order_of


def main(order: Json) -> None:
    settings = inside.settings()
    found = {}
    with locked(settings) as lock, ExitStack() as resources:
        (discovered,) = catalog.discover(settings, IoCounter())
        assert discovered.document is not None
        assert discovered.document.running, "the power was cut while the array ran"
        clean = msgspec.structs.replace(discovered.document, running="")
        array = Array(settings, dataclasses.replace(discovered, document=clean), lock, resources)
        array.assemble()
        first = inside.statuses(array)
        inside.until_in_sync(array)
        for name in order["luns"]:
            proposal, task = array.propose_scrub(name, repair=False)
            array.start(proposal, task)
            array.wait(task.id, timeout_s=inside.DEADLINE_S)
            found[name] = array.document.lun(name).mismatches
    inside.report({"first": first, "resyncs": inside.resyncs(), "mismatches": found})


if __name__ == "__main__":
    main(order_of(sys.argv))
