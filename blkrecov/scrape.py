"""What the daemon answers a scrape with: what its workers have seen last, and what the kernel says and has counted until now.

Nothing that an array is stuck in holds up an answer. Counters are sysfs's, which waits for nobody. What device-mapper says of its
devices is asked in a thread, and if that does not come soon, what was seen last is told.
"""

import asyncio
import dataclasses
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, TypeAlias
from uuid import UUID

from blkrecov import observer
from blkrecov.dm.control import Control
from blkrecov.errors import BlkrecovError
from blkrecov.metrics import Care, exposition
from blkrecov.observed import Live
from blkrecov.overview import Overview
from blkrecov.survey import counted
from blkrecov.suspensions import Suspensions
from blkrecov.worker import Worker

# Whoever scrapes waits for ten seconds as a rule.
PATIENCE_S: Final = 1.0

Devices: TypeAlias = Mapping[UUID, Mapping[str, Live]]
"""By array, and by device-mapper UUID."""
Seen: TypeAlias = Sequence[tuple[Overview, Suspensions]]


class Scrapes:
    """Made in the event loop's thread. `workers` may grow."""

    def __init__(self, workers: Mapping[UUID, Worker]) -> None:
        self._workers = workers
        self._look: asyncio.Future[Devices] | None = None

    async def text(self) -> str:
        """The exposition."""
        workers = list(self._workers.values())
        seen = [(worker.overview, worker.suspensions) for worker in workers if worker.overview is not None]
        known = [overview for overview, _ in seen]
        devices = await self._devices(seen)
        now = [
            dataclasses.replace(each, observed=dataclasses.replace(each.observed, devices=devices[each.document.array]))
            if each.document.array in devices
            else each
            for each in known
        ]
        care = [
            Care(worker.name, worker.overview is not None and not worker.trouble, worker.busy_s) for worker in workers
        ]
        return exposition([counted(each) for each in now], care)

    async def _devices(self, known: Seen) -> Devices:
        """Empty where the kernel does not tell in time. Then it is not asked again before it has."""
        if self._look is None or self._look.done():
            seen: Future[Devices] = Future()
            # One that is stuck in the kernel must not keep the process, as one of the loop's own would.
            threading.Thread(target=_look, args=(known, seen), name="scrape", daemon=True).start()
            self._look = asyncio.wrap_future(seen)
        look = self._look
        await asyncio.wait({look}, timeout=PATIENCE_S)
        return look.result() if look.done() else {}


def _look(known: Seen, future: "Future[Devices]") -> None:
    found = {}
    try:
        with suppress(BlkrecovError, OSError), Control() as control:
            for each, suspensions in known:
                found[each.document.array] = observer.devices(control, each.document, suspensions)
    finally:
        future.set_result(found)
