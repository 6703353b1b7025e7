"""In the guest: writes to LUNs through their SCSI disks, and tells the host what it must find again. Ends when the power does.

Order: luns [[name, layout, MiB, drives]], drives, fail (a drive, or null), slow (a drive, or null), write_ms, seed, first (the
number of the first write), log (a file's name).
"""

import mmap
import os
import random
import sys
import threading

from blkrecov.units import MIB
from tests.crash import inside
from tests.crash.pattern import BLOCK, content
from tests.crash.power import Json, order_of, told

THREADS = 4
MOST_BLOCKS = 8


class Writer:
    """One thread's writes: random places of an area that is its own, flushed now and then."""

    def __init__(self, lun: int, disk: str, area: range, log: int, chance: random.Random, first: int) -> None:
        self._lun, self._disk, self._area, self._log = lun, disk, area, log
        self._chance, self._number = chance, first
        self._pending: list[str] = []

    def run(self) -> None:
        buffer = mmap.mmap(-1, MOST_BLOCKS * BLOCK)
        with inside.direct(self._disk) as descriptor:
            while True:
                count = self._chance.choice((1, 1, 1, 2, 4, MOST_BLOCKS))
                start = self._chance.randrange(self._area.start, self._area.stop - count + 1)
                self._say(f"i {self._lun} {self._number} {start} {count}\n")
                data = content(self._lun, start, count, self._number)
                buffer[: len(data)] = data
                put = os.pwritev(descriptor, [memoryview(buffer)[: len(data)]], start * BLOCK)
                assert put == len(data)
                self._pending.append(f"f {self._lun} {self._number} {start} {count}\n")
                self._number += 1
                if self._chance.random() < 0.5:
                    os.fdatasync(descriptor)
                    self._say("".join(self._pending))
                    self._pending.clear()

    def _say(self, text: str) -> None:
        assert os.write(self._log, text.encode()) == len(text)


def main(order: Json) -> None:
    if order["make"]:
        inside.make([inside.request(*lun) for lun in order["luns"]], order["drives"])
    with inside.opened() as array:
        resyncs = inside.resyncs()
        inside.until_in_sync(array)
        if order["fail"]:
            array.fail_drive(order["fail"])
        if order["slow"]:
            inside.slow_down(array, order["slow"], order["write_ms"])
        disks = [inside.disk_of(array, array.document.lun(name)) for name, *_ in order["luns"]]
    inside.report({"resyncs": resyncs, "made": order["make"]})
    log = os.open(inside.OUT / order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    threads = []
    for lun, (disk, (_, _, mib, _)) in enumerate(zip(disks, order["luns"], strict=True)):
        # The first half only: regions in which nothing was written must not be resynchronised.
        blocks = mib * MIB // BLOCK // 2
        for number in range(THREADS):
            area = range(number * blocks // THREADS, (number + 1) * blocks // THREADS)
            chance = random.Random(f"{order['seed']} {lun} {number}")
            writer = Writer(lun, disk, area, log, chance, order["first"])
            threads.append(threading.Thread(target=writer.run))
    told(f"writing to {disks}")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(order_of(sys.argv))
