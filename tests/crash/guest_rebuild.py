"""In the guest: LUNs that lose a drive and are being rebuilt, slowly, until the host cuts the power.

Order: luns [[name, layout, MiB, drives]], drives, fail [[drive, spare]] (for each LUN), sixteenths (how far every rebuild is when
the host is told).
"""

import signal
import sys

from blkrecov.units import KIB, MIB
from tests.crash import inside
from tests.crash.pattern import BLOCK, content
from tests.crash.power import Json, order_of

# Bytes per second and member, above md's own floor: a rebuild takes seconds instead of milliseconds.
SLOWLY = 2048 * KIB


def main(order: Json) -> None:
    inside.make([inside.request(*lun) for lun in order["luns"]], order["drives"])
    with inside.opened() as array:
        for number, (name, _, mib, _) in enumerate(order["luns"]):
            disk = inside.disk_of(array, array.document.lun(name))
            inside.write_all(disk, content(number, 0, mib * MIB // BLOCK, 1))
        for drive, _ in order["fail"]:
            array.fail_drive(drive)
        tasks = {}
        for (name, *_), (_, spare) in zip(order["luns"], order["fail"], strict=True):
            proposal, task = array.propose_recover(name, spare, rate_max=SLOWLY)
            tasks[name] = array.start(proposal, task).id

        def far_enough() -> bool:
            raids = [array.observed.raid(lun) for lun in array.document.luns]
            return all(raid and raid.done * 16 >= raid.total * order["sixteenths"] for raid in raids)

        inside.until(array, far_enough, "rebuilt so far", tick_s=0.05)
        inside.report({"tasks": tasks, "statuses": inside.statuses(array)})
    inside.mark("rebuilding")
    signal.pause()


if __name__ == "__main__":
    main(order_of(sys.argv))
