"""One array, one thread: the monitor's loop, and beside it calls that others want carried out.

Whatever blocks in the kernel blocks this thread and nobody else. It tells what the array is like after everything that it does
(ArrayState), so whoever wants to know asks that value, never the thread. A call is a function of the open array, which is carried
out between two sleeps, under the lock and on what other processes may have changed meanwhile.

An array that cannot be opened, or whose monitor has ended in an error, is tried again when somebody calls, when another process
has written to it, and when something has changed where its drives are looked for (blkrecov.drives.arrivals). Else after a while,
and each time after a longer one: what was in the way may be something that tells nobody when it goes.
"""

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

from blkrecov import rows
from blkrecov.array import Array
from blkrecov.bell import Bell, ring
from blkrecov.dm.events import EventWatcher
from blkrecov.drives import arrivals
from blkrecov.drives.watch import DriveWatcher
from blkrecov.errors import AccessDenied, BlkrecovError, Code, DeviceInUse
from blkrecov.monitor import AGAIN_MOST_S, AGAIN_S, Monitor
from blkrecov.overview import Overview
from blkrecov.settings import Settings, is_stopped, remembered
from blkrecov.state import ArrayState
from blkrecov.suspensions import Suspensions

log = logging.getLogger(__name__)

T = TypeVar("T")

_IDLE: Final = "is idle"


class Unexpected(BlkrecovError):
    """What nobody thought of. Its traceback is in the daemon's log."""

    code = Code.E_UNEXPECTED
    default_remedy = "report what the daemon's log says: journalctl -u blkrecovd"


def stopped(name: str) -> AccessDenied:
    """Why there is nothing to look at, for who may not bring the array up, or was too late to mean that."""
    return AccessDenied(f"array {name} is stopped", remedy="bring it up as root: blkrecov refresh")


@dataclass(frozen=True, slots=True)
class _Call:
    what: str
    function: Callable[[Array], Any]
    brings_up: bool
    future: Future[Any]


class Worker:
    """`publish` is called by the thread, with each state that differs from the one before."""

    def __init__(self, settings: Settings, uuid: UUID, name: str, publish: Callable[[ArrayState], None]) -> None:
        self.name: Final = name
        self.suspensions: Final = Suspensions.of(settings.volatile, uuid)
        self._settings = settings
        self._publish = publish
        self._calls: deque[_Call] = deque()
        self._ended = False
        self._wake = threading.Event()
        self._monitor: Monitor | None = None
        self._at = ("is being opened", time.monotonic())
        self.overview: Overview | None = None
        """The array as it was last seen; without counters, which anybody may read."""
        self._state = ArrayState(uuid=uuid, name=name)
        # One that is stuck in the kernel must not keep the process.
        self._thread: Final = threading.Thread(target=self._run, name=f"array {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Let go of the array, which stays as it is. Returns at once; `alive` tells when it has."""
        self._ended = True
        if (monitor := self._monitor) is not None:
            monitor.end()
        self._rouse()

    def wake(self) -> None:
        """Look again whether there is something to do."""
        self._wake.set()

    @property
    def trouble(self) -> str:
        """Why the array cannot be opened or looked after; empty if it can."""
        return self._state.trouble

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def doing(self) -> str:
        """What it is at and for how long, as the end of a sentence about the array."""
        words, since = self._at
        return f"{words}, for {time.monotonic() - since:.0f} s by now"

    @property
    def busy_s(self) -> float:
        """For how long it has been at the same thing; 0 while it is idle."""
        words, since = self._at
        return 0.0 if words == _IDLE else time.monotonic() - since

    def call(self, what: str, function: Callable[[Array], T], *, brings_up: bool) -> Future[T]:
        """Have this done as soon as the thread is at leisure. `what` says so to others who have to wait. A future that has not
        begun may be cancelled. One that does not bring up raises AccessDenied if the array is stopped by then.
        """
        future: Future[T] = Future()
        self._calls.append(_Call(what, function, brings_up, future))
        self._rouse()
        return future

    def _rouse(self) -> None:
        """Wake the monitor, or whoever waits for a reason to open the array: both listen to the array's bell."""
        self._wake.set()
        ring(self._settings.bell_of(self._state.uuid))

    # In the thread.

    def _run(self) -> None:
        patience_s = AGAIN_S
        while not self._ended:
            self._wake.clear()
            if is_stopped(self._settings, self._state.uuid) and not self._calls:
                self.tell(ArrayState(uuid=self._state.uuid, name=self.name, summary=f"array {self.name} is stopped"))
                self._is_at(_IDLE)
                self._wake.wait()
                continue
            self._is_at("is being opened")
            try:
                with Array.opened(self._settings, str(self._state.uuid)) as array:
                    patience_s = AGAIN_S
                    self._monitor = _Attendant(self, array)
                    self._monitor.run()
            except BlkrecovError as error:
                self._failed(error)
            except Exception as error:
                log.exception("array %s", self.name)
                self._failed(Unexpected(f"{type(error).__name__}: {error}"))
            finally:
                self._monitor = None
            if not self._ended and not self._rest(patience_s):
                patience_s = min(2 * patience_s, AGAIN_MOST_S)

    def _rest(self, patience_s: float) -> bool:
        """Until there is a reason to open the array again. False when there was none in time."""
        uuid = self._state.uuid
        try:
            paths = [path for array in remembered(self._settings) if array.uuid == uuid for path in array.paths]
            before = arrivals.present(paths, self._settings.directories)
            with Bell(self._settings.bell_of(uuid)) as bell:
                if self._wake.is_set():
                    return True
                return arrivals.wait(before, paths, self._settings.directories, bell.fileno(), patience_s)
        except (DeviceInUse, OSError):  # Another process looks after it; or there is nothing to be had to wait with.
            return self._wake.wait(patience_s)

    def _failed(self, error: BlkrecovError) -> None:
        if error.message != self._state.trouble:
            log.warning("array %s cannot be looked after: %s", self.name, error.message)
        self._is_at(f"could not be opened ({error.message})")
        self.tell(dataclasses.replace(self._state, trouble=error.message, remedy=error.remedy))
        while self._calls:
            future = self._calls.popleft().future
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _is_at(self, words: str) -> None:
        self._at = (words, time.monotonic())

    def tell(self, state: ArrayState) -> None:
        if state != self._state:
            self._state = state
            self._publish(state)


class _Attendant(Monitor):
    """The monitor, which carries out calls as well and tells the array's state."""

    def __init__(self, worker: Worker, array: Array) -> None:
        super().__init__(array)
        self._worker = worker
        self._percents: dict[int, int] = {}
        if worker._ended:
            self._ended = True  # end() came before there was a monitor to hear of it.

    def _is_wanted(self) -> bool:
        return bool(self._worker._calls)

    def _sleep(self, events: EventWatcher, bell: Bell, drives: DriveWatcher, mounts: int) -> frozenset[UUID]:
        self._worker._is_at(_IDLE)
        suspects = super()._sleep(events, bell, drives, mounts)
        self._worker._is_at("waits for another process that works on this machine's arrays")
        return suspects

    def _attend(self, suspects: frozenset[UUID]) -> None:
        # Those that come meanwhile have the next turn: callers without end must not keep the array from being looked after.
        for _ in range(len(self._worker._calls)):
            call = self._worker._calls.popleft()
            if call.future.set_running_or_notify_cancel():
                self._worker._is_at(f"is busy with {call.what}")
                self._carry_out(call)
        self._worker._is_at("is being looked after")
        super()._attend(suspects)
        self._tell()

    def _carry_out(self, call: _Call) -> None:
        """The answer is given when the state tells what has changed."""
        answer, failure = None, None
        try:
            self._bring_up(call)
            answer = call.function(self._array)
        except BlkrecovError as error:
            failure = error
        except Exception as error:
            log.exception("array %s, %s", self._array.document.name, call.what)
            failure = Unexpected(f"{type(error).__name__}: {error}")
        try:
            self._tell()
        finally:
            if failure is not None:
                call.future.set_exception(failure)
            else:
                call.future.set_result(answer)

    def _bring_up(self, call: _Call) -> None:
        """Raises: AccessDenied. Only now it is known what those before it have left."""
        self._array.reload()
        down = self._array.down()
        if down and not call.brings_up:
            raise stopped(self._array.document.name)
        if down or self._down:
            # Its drives are found anew: they may have other devices than when it was stopped.
            self._array.reenumerate()
            self._array.refresh()
            self._down = False

    def _ticked(self) -> None:
        tasks = rows.tasks(self._see(), self._percents)
        self._tell_state(dataclasses.replace(self._worker._state, tasks=tasks))

    def _tell(self) -> None:
        array = self._array
        self._down = array.down()
        if self._down:
            array.observe()
        self._tell_state(
            rows.state(array, self._see(), running=not self._down, trouble=self._trouble, least=self._percents)
        )

    def _see(self) -> Overview:
        """Look how far tasks are, and let others see the array as it is."""
        self._worker.overview = rows.overview(self._array, running=not self._down)
        return self._worker.overview

    def _tell_state(self, state: ArrayState) -> None:
        # Who looks again after a restart may see a little less at first.
        self._percents = {row["id"]: row["percent"] for row in state.tasks if row["state"] == "in_progress"}
        self._worker.tell(state)
