"""blkrecovd: looks after all arrays of the machine, and is org.blkrecov1 on the system bus.

One event loop, which never blocks: it answers the bus, feeds the watchdog and starts a worker for each array, whose thread does
whatever there is to do (blkrecov.worker). Arrays that are new on this machine ring a bell, so nothing is looked for while nothing
happens.

Nothing of an array depends on this process. It may be stopped, killed or replaced at any moment: LUNs are the kernel's, tasks
are in the configuration, and whoever opens the array next goes on.

The watchdog is fed while the loop turns and every worker's thread lives. A worker that the kernel holds is no reason to be
killed: its thread could not be, and the others would go with it. Then systemctl status tells what it is at.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final, TypeVar
from uuid import UUID

from dbus_fast import BusType
from dbus_fast.aio import MessageBus

from blkrecov import journal, rows, systemd
from blkrecov.array import Array
from blkrecov.bell import Bell
from blkrecov.bus.service import BEGIN_S, Service
from blkrecov.engine import create_array, list_arrays
from blkrecov.errors import AccessDenied, BlkrecovError, ObjectDeleted, ObjectNotFound, ProviderFailure
from blkrecov.events import Event, EventLog
from blkrecov.settings import Address, Settings, metrics_place, remembered
from blkrecov.state import ArrayState
from blkrecov.views import Json
from blkrecov.watch import Watch
from blkrecov.worker import Worker

log = logging.getLogger(__name__)

T = TypeVar("T")

# How long the start waits for arrays that are slow to come up, before it says that it is ready.
READY_S: Final = 20.0
# How long workers may take to let go of their arrays before we go without them.
GOING_S: Final = 5.0
# When events that could not be followed are followed again.
FOLLOW_AGAIN_S: Final = 10.0


class Daemon:
    """Made and run in an event loop."""

    def __init__(self, settings: Settings, bus: MessageBus, metrics: Address | Path | None = None) -> None:
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._workers: dict[UUID, Worker] = {}
        self._first: dict[UUID, asyncio.Event] = {}
        self._states: dict[UUID, ArrayState] = {}
        self._status = ""
        self._server: asyncio.Server | None = None
        self._service = Service(bus, self)
        self._service.export()

    # What the service asks for.

    def call(self, array: UUID, what: str, function: Callable[[Array], T], *, brings_up: bool) -> Future[T]:
        worker = self._workers.get(array)
        if worker is None:
            raise ObjectDeleted(f"there is no array {array}")
        return worker.call(what, function, brings_up=brings_up)

    def doing(self, array: UUID) -> str:
        return self._workers[array].doing

    @property
    def directory(self) -> Path:
        return self._settings.state

    async def create(self, name: str) -> UUID:
        made = await _in_thread(lambda: create_array(self._settings, name))
        return await self._known(made.uuid, made.name)

    async def find(self) -> Sequence[Json]:
        return await _in_thread(lambda: [rows.found(self._settings, each) for each in list_arrays(self._settings)])

    async def open(self, array: UUID) -> UUID:
        if array in self._workers:
            return array
        found = next((each for each in await self.find() if each["uuid"] == str(array)), None)
        if found is None:
            raise ObjectNotFound(f"there is no array {array}", remedy="list what there is with: blkrecov array list")
        return await self._known(array, found["name"])

    async def _known(self, array: UUID, name: str) -> UUID:
        self._look_after(array, name)
        await self._first[array].wait()
        return array

    def _look_after(self, array: UUID, name: str) -> None:
        """Start a worker for an array that has none."""
        if array not in self._workers:
            self._first[array] = asyncio.Event()
            self._workers[array] = Worker(self._settings, array, name, self._told)
            self._workers[array].start()

    def _told(self, state: ArrayState) -> None:
        """In a worker's thread, which may outlive the loop if the kernel holds it."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._update, state)

    def _update(self, state: ArrayState) -> None:
        self._states[state.uuid] = state
        # Before all that may fail: nobody is to wait for it for ever.
        self._first[state.uuid].set()
        self._service.update(state)
        self._tell_status()

    def _follow_events(self) -> None:
        """In a thread of its own, for as long as the process lives: so the bus is told whoever makes them, daemon or command.

        What happens before an array is on the bus nobody is told of; its objects say what it is like then.
        """
        log_ = EventLog(self._settings.state)
        told: Event | None = None
        while not self._loop.is_closed():
            try:
                for event in _followed(log_, told):
                    self._loop.call_soon_threadsafe(self._service.happened, event)
                    told = event
            except (BlkrecovError, OSError) as error:
                log.warning("the bus is told of no events for %g s: %s", FOLLOW_AGAIN_S, error)
                time.sleep(FOLLOW_AGAIN_S)
            except RuntimeError:  # The loop has ended.
                return

    def _tell_status(self) -> None:
        status = _status(list(self._states.values()))
        stuck = [worker for worker in self._workers.values() if worker.busy_s > BEGIN_S]
        status = "; ".join((status, *(f"array {worker.name} {worker.doing}" for worker in stuck)))
        if status != self._status:
            self._status = status
            systemd.notify(STATUS=status)

    # Its life.

    async def run(self, ended: asyncio.Event) -> None:
        """Until `ended` is set. Raises: DeviceInUse where another daemon listens, or has the name on the bus."""
        self._settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with Bell(self._settings.bell) as bell:
            self._loop.add_reader(bell.fileno(), self._rung, bell)
            threading.Thread(target=self._follow_events, name="events", daemon=True).start()
            try:
                self._rung(bell)
                if not await self._ready(ended):
                    return
                await self._serve_metrics()
                # Whoever finds the name finds the objects too.
                await self._service.publish()
                systemd.notify(READY="1")
                self._feed()
                await ended.wait()
                systemd.notify(STOPPING="1")
            finally:
                self._loop.remove_reader(bell.fileno())
                if self._server is not None:
                    self._server.close()
                await self._let_go()

    async def _serve_metrics(self) -> None:
        """What cannot be served is no reason to leave arrays alone."""
        if self._metrics is None:
            return
        # Much is imported by that, and takes memory that is not needed otherwise.
        from blkrecov import metrics_server
        from blkrecov.scrape import Scrapes

        try:
            self._server = await metrics_server.serve(self._metrics, Scrapes(self._workers).text)
        except OSError as error:
            log.error("metrics cannot be served at %s: %s", self._metrics, error)

    def _rung(self, bell: Bell) -> None:
        """Look after what this machine has had before. Others' arrays are opened for those who ask for them by name."""
        bell.hush()
        for array in remembered(self._settings):
            self._look_after(array.uuid, array.name)
        for worker in self._workers.values():
            worker.wake()

    async def _ready(self, ended: asyncio.Event) -> bool:
        """Whether it is time to begin: all arrays are known, or slow. False where it ended before."""
        over = self._loop.create_task(ended.wait())
        known = [self._loop.create_task(event.wait()) for event in self._first.values()]
        deadline = self._loop.time() + READY_S
        while (waiting := [each for each in known if not each.done()]) and not over.done():
            left_s = deadline - self._loop.time()
            if left_s <= 0:
                break
            await asyncio.wait({over, *waiting}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        for each in (over, *known):
            each.cancel()
        for uuid in self._workers.keys() - self._states.keys():
            worker = self._workers[uuid]
            self._service.update(ArrayState(uuid=uuid, name=worker.name, trouble=f"it {worker.doing}"))
        return not ended.is_set()

    def _feed(self) -> None:
        period_s = systemd.watchdog_s()
        if period_s is None:
            return
        # Before all that may fail: whatever that is, it is tried again.
        self._loop.call_later(period_s / 2, self._feed)
        dead = [worker.name for worker in self._workers.values() if not worker.alive]
        if dead:
            log.error("nobody looks after the arrays %s any more: the watchdog is not fed", ", ".join(dead))
            return
        systemd.notify(WATCHDOG="1")
        self._tell_status()

    async def _let_go(self) -> None:
        for worker in self._workers.values():
            worker.end()
        deadline = self._loop.time() + GOING_S
        while any(worker.alive for worker in self._workers.values()) and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        for worker in self._workers.values():
            if worker.alive:
                log.warning("array %s is left as it is: it %s", worker.name, worker.doing)


def _followed(log_: EventLog, after: Event | None) -> Iterator[Event]:
    with Watch(log_.path) as watch:
        yield from log_.follow(after=after, pause=lambda _: watch.wait())


async def _in_thread(function: Callable[[], T]) -> T:
    """Have it done in a thread that may stay behind: nobody waits for what the kernel holds, as asyncio.to_thread() would."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return await asyncio.wrap_future(future)


def _status(states: list[ArrayState]) -> str:
    under_way = sum(row["state"] in ("queued", "in_progress") for state in states for row in state.tasks)
    sick = [state.name for state in states if not state.healthy]
    words = f"{len(states)} arrays, {under_way} tasks under way"
    return f"{words}; not healthy: {', '.join(sick)}" if sick else words


async def serve(settings: Settings, metrics: Address | Path | None = None) -> None:
    """Until SIGTERM or SIGINT. Raises: DeviceInUse where it runs already; ProviderFailure without a bus, or when it has gone."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    except OSError as error:
        raise ProviderFailure(f"there is no system bus: {error}", remedy="start dbus.service") from error
    running = asyncio.create_task(Daemon(settings, bus, metrics).run(ended))
    left: asyncio.Task[None] = asyncio.create_task(bus.wait_for_disconnect())  # type: ignore[no-untyped-call]
    await asyncio.wait({running, left}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        await running
        left.cancel()
        bus.disconnect()
        return
    ended.set()
    await running
    raise ProviderFailure("the system bus has gone", remedy="it is started again by systemd, and so are we")


def main() -> None:
    """The entry point. The exit status is 0 after SIGTERM, 1 for what ended it, 2 for usage."""
    parser = argparse.ArgumentParser(
        prog="blkrecovd", description="Looks after blkrecov's arrays; org.blkrecov1 on the system bus."
    )
    parser.add_argument("--version", action="version", version=f"blkrecovd {version('blkrecov')}")
    parser.parse_args()
    journal.log_as("blkrecovd", logging.INFO)
    journal.show_events()
    try:
        if os.geteuid() != 0:
            raise AccessDenied("device-mapper, loop devices and LIO are root's")
        asyncio.run(serve(Settings.load(), metrics_place()))
    except BlkrecovError as error:
        log.error("blkrecovd: %s (%s): %s", error.code.name, error.code.hresult_text, error.message)
        log.error("  what to do: %s", error.remedy)
        sys.exit(1)


if __name__ == "__main__":
    main()
