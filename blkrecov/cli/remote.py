"""An array that blkrecovd looks after, as commands see it: org.blkrecov1 on the system bus.

Nothing starts the daemon from here. While it is being restarted, by an upgrade say, a command that waits for a task waits for
the daemon too, and goes on; a change that was asked for just then fails, and says where to look what became of it.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Self, TypeVar
from uuid import UUID

import click
import msgspec
from dbus_fast import BusType, Message, MessageFlag, MessageType, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.errors import SignatureBodyMismatchError

from blkrecov.bus.interfaces import (
    ARRAY,
    ERRORS,
    INTERFACES,
    MANAGER,
    NAME,
    OBJECT_MANAGER,
    PROPERTIES,
    SESSION,
    TASK,
    Method,
)
from blkrecov.bus.objects import ROOT, plain, task_path, task_row, uuid_of
from blkrecov.cli.access import Named, OnProgress, Pairs, Reported, Request, resolved
from blkrecov.engine import choose
from blkrecov.errors import AccessDenied, BlkrecovError, Code, InvalidArgument, ObjectDeleted, ProviderFailure, TimedOut
from blkrecov.events import Event
from blkrecov.settings import Settings
from blkrecov.state import ENDED, ArrayState, head
from blkrecov.views import Json

T = TypeVar("T")

DAEMON: Final = "org.freedesktop.DBus"
# How long whoever asks waits for a daemon that has gone, and how often it asks meanwhile.
RESTART_S: Final = 30.0
AGAIN_S: Final = 0.2
_STANDARD: Final = "org.freedesktop.DBus.Error."
_GONE: Final = tuple(f"{_STANDARD}{word}" for word in ("NoReply", "ServiceUnknown", "NameHasNoOwner"))


class DaemonGone(ProviderFailure):
    """No answer, because whoever was asked is not there any more, or not yet again."""

    default_remedy = "see what became of it: journalctl -u blkrecovd, blkrecov task list; then try again"


class Bus:
    """A connection to the system bus, with an event loop that turns while something is asked."""

    def __init__(self, runner: asyncio.Runner, bus: MessageBus) -> None:
        self._runner = runner
        self._bus = bus
        self._heard = asyncio.Event()
        # The runner ends it, if nothing else does.
        self._watching = runner.get_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """Whoever waits for a signal hears of the bus's own end too, and learns of it by the question that follows."""
        with suppress(Exception):  # Whatever it ended of: no signal will come any more.
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        self._heard.set()

    @classmethod
    @contextmanager
    def connected(cls) -> Iterator[Self | None]:
        """None where there is no bus."""
        with asyncio.Runner() as runner:

            async def connect() -> MessageBus:
                return await MessageBus(bus_type=BusType.SYSTEM).connect()

            try:
                bus = runner.run(connect())
            except (OSError, EOFError):
                yield None
                return
            try:
                yield cls(runner, bus)
            finally:
                with suppress(OSError, EOFError):
                    bus.disconnect()

    def has(self, name: str) -> bool:
        """Whether somebody on the bus has this name."""
        return bool(self._run(self._ask(DAEMON, "/org/freedesktop/DBus", DAEMON, "NameHasOwner", "s", [name]))[0])

    def call(self, path: str, interface: str, name: str, /, *arguments: Any, **options: Any) -> Sequence[Any]:
        """A method of ours, with its options by their names. Raises: Reported, AccessDenied, ObjectNotFound, DaemonGone."""
        method = _method(interface, name)
        body = [*plain(arguments), _given(method, options)]
        if method.reads:
            return self._run(self._patiently(lambda: self._ask(NAME, path, interface, name, method.signature, body)))
        try:
            return self.ask(path, interface, name, method.signature, body)
        except KeyboardInterrupt:
            click.echo("\nblkrecovd goes on with it; look with: blkrecov task list", err=True)
            raise

    def ask(self, path: str, interface: str, member: str, signature: str = "", body: Sequence[Any] = ()) -> list[Any]:
        return self._run(self._ask(NAME, path, interface, member, signature, body))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _ask(
        self, destination: str, path: str, interface: str, member: str, signature: str, body: Sequence[Any]
    ) -> list[Any]:
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            flags=MessageFlag.NO_AUTOSTART,
            signature=signature,
            body=list(body),
        )
        with _fitting():
            message.signature_tree.verify(message.body)
        if not self._bus.connected:
            raise DaemonGone("the system bus has gone")
        try:
            reply = await self._bus.call(message)
        except (OSError, EOFError) as error:
            raise DaemonGone(f"the system bus has gone: {error}") from error
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            raise _error(reply)
        return list(reply.body)

    async def _patiently(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """A question, asked again while the daemon is being restarted. Raises: what it does; DaemonGone."""
        until: float | None = None
        while True:
            try:
                return await ask()
            except DaemonGone:
                until = until or time.monotonic() + RESTART_S
                if time.monotonic() >= until or not self._bus.connected:
                    raise
            except ObjectDeleted:
                if until is None or time.monotonic() >= until:
                    raise  # Not one that knows nothing yet.
            await asyncio.sleep(AGAIN_S)

    def wait(self, path: str, heard: Callable[[Json], None], timeout_s: float | None) -> Json:
        """A task's row when it has ended; what it is like meanwhile is told. Raises: TimedOut, DaemonGone, ObjectNotFound."""
        return self._run(self._wait(path, heard, timeout_s))

    async def _wait(self, path: str, heard: Callable[[Json], None], timeout_s: float | None) -> Json:
        await self._listen(f"path='{path}'")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        seen = 0
        while True:
            self._heard.clear()
            row = task_row(await self._patiently(lambda: self._properties(path, TASK)))
            if row["state"] not in ENDED:
                seen = row["percent"] = max(seen, row["percent"])
            heard(row)
            if row["state"] in ENDED:
                return row
            if deadline is not None and time.monotonic() >= deadline:
                raise TimedOut(
                    f"the task has not ended within {timeout_s:g} s; it goes on",
                    remedy=f"wait for it with: blkrecov task wait {path.rpartition('/')[2]}",
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._heard.wait(), None if deadline is None else deadline - time.monotonic())

    def changes(self, rule: str) -> Iterator[None]:
        """Once at the beginning, and after each signal of ours that fits the rule, or when the daemon comes or goes."""
        self._run(self._listen(rule))
        while True:
            self._heard.clear()
            yield
            self._run(self._heard.wait())

    async def _listen(self, rule: str) -> None:
        def hear(message: Message) -> None:
            if message.message_type is MessageType.SIGNAL:
                self._heard.set()

        self._bus.add_message_handler(hear)
        for each in (f"type='signal',sender='{NAME}',{rule}", f"type='signal',sender='{DAEMON}',arg0='{NAME}'"):
            await self._ask(DAEMON, "/org/freedesktop/DBus", DAEMON, "AddMatch", "s", [each])

    async def _properties(self, path: str, interface: str) -> Json:
        (found,) = await self._ask(NAME, path, PROPERTIES, "GetAll", "s", [interface])
        return {name: variant.value for name, variant in found.items()}

    def objects(self) -> dict[str, dict[str, Json]]:
        (found,) = self.ask(ROOT, OBJECT_MANAGER, "GetManagedObjects")
        return {
            path: {name: {key: variant.value for key, variant in values.items()} for name, values in interfaces.items()}
            for path, interfaces in found.items()
        }

    def property(self, path: str, interface: str, name: str) -> Any:
        (variant,) = self.ask(path, PROPERTIES, "Get", "ss", [interface, name])
        return variant.value


class Daemon:
    """blkrecovd, where it runs and looks after the arrays that this command's settings are about."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    @classmethod
    @contextmanager
    def reached(cls, settings: Settings) -> Iterator[Self | None]:
        """None where none runs. Raises: AccessDenied for users whom the bus tells nothing."""
        with Bus.connected() as bus:
            ours = bus is not None and bus.has(NAME) and _is_ours(bus, settings)
            yield cls(bus) if bus is not None and ours else None

    def arrays(self) -> list[Json]:
        """The arrays of this machine, as rows.found()."""
        (text,) = self._bus.call(ROOT, MANAGER, "GetArrays")
        return list(json.loads(text))

    def create(self, name: str) -> UUID:
        """A new array. Raises: what engine.create_array() does."""
        (path,) = self._bus.call(ROOT, MANAGER, "CreateArray", name)
        return UUID(str(path).rpartition("/")[2])

    def array(self, name: str | None) -> "Remote":
        """Raises: ObjectNotFound, InvalidArgument when several arrays could be meant."""
        known = self._known()
        if not any(name in (None, *words) for words in known):
            # Perhaps one that is new on this machine.
            _, uuid = choose([(row["name"], row["uuid"]) for row in self.arrays()], name)
            (path,) = self._bus.call(ROOT, MANAGER, "OpenArray", uuid)
            return Remote(self._bus, str(path))
        return Remote(self._bus, known[choose(tuple(known), name)])

    def _known(self) -> dict[tuple[str, str], str]:
        """The paths of arrays by (name, UUID)."""
        found = self._bus.objects()
        return {(known[ARRAY]["Name"], known[ARRAY]["Uuid"]): path for path, known in found.items() if ARRAY in known}


class Remote:
    """An array that the daemon looks after. What it is like is asked for once, and again after each change."""

    def __init__(self, bus: Bus, path: str) -> None:
        self._bus = bus
        self._path = path
        self._state: ArrayState | None = None
        self.stale = ""
        """Why what is shown is not of now."""

    def state(self) -> ArrayState:
        if self._state is None:
            (text,) = self._bus.call(self._path, ARRAY, "GetState")
            self._state = msgspec.json.decode(text, type=ArrayState)
            self.stale = json.loads(text)["stale"]
        return self._state

    def head(self) -> Json:
        return head(self.state())

    def drives(self) -> Sequence[Json]:
        return self.state().drives

    def luns(self) -> Sequence[Json]:
        return self.state().luns

    def tasks(self) -> Sequence[Json]:
        return self.state().tasks

    def path(self, named: Named) -> str:
        (path,) = self._bus.call(self._path, ARRAY, "Find", named.kind, named.name)
        return str(path)

    def row(self, path: str) -> Json:
        kind, word = path.split("/")[-2:]
        rows = {"task": self.tasks, "drive": self.drives, "lun": self.luns}[kind]()
        found = [row for row in rows if word == (str(row["id"]) if kind == "task" else UUID(row["uuid"]).hex)]
        if not found:
            raise ObjectDeleted(f"there is no {path} any more")
        return found[0]

    def call(self, wanted: Request) -> Sequence[Any]:
        path, arguments, options = self._meant(wanted)
        self._state = None
        return self._bus.call(path, wanted.interface, wanted.method, *arguments, **options)

    def plan(self, wanted: Request) -> Sequence[str]:
        path, arguments, options = self._meant(wanted)
        method = _method(wanted.interface, wanted.method)
        given = [_variant(argument.type, value) for argument, value in zip(method.takes[:-1], arguments, strict=True)]
        given.append(Variant("a{sv}", _given(method, options)))
        (steps,) = self._bus.ask(path, wanted.interface, "Plan", "sava{sv}", [wanted.method, given, {}])
        return list(steps)

    def _meant(self, wanted: Request) -> tuple[str, Sequence[Any], dict[str, Any]]:
        path = self.path(wanted.of) if wanted.of else self._path
        return path, resolved(self, wanted.arguments), resolved(self, wanted.options)

    def resync(self, pairs: Pairs, options: dict[str, Any]) -> str:
        with self._session(pairs) as session:
            self._state = None
            (task,) = self._bus.call(session, SESSION, "Resync", **options)
        return str(task)

    def plan_resync(self, pairs: Pairs, options: dict[str, Any]) -> Sequence[str]:
        with self._session(pairs) as session:
            (steps,) = self._bus.call(session, SESSION, "Plan", **options)
        return list(steps)

    @contextmanager
    def _session(self, pairs: Pairs) -> Iterator[str]:
        (session,) = self._bus.call(self._path, ARRAY, "InitializeForRestore")
        for source, target in pairs:
            self._bus.call(session, SESSION, "Add", source, target)
        yield session
        self._bus.call(session, SESSION, "End")

    def follow(self, number: int, on_progress: OnProgress | None, timeout_s: float | None) -> Json:
        array = uuid_of(self._path)
        assert array is not None
        self._state = None
        return self._bus.wait(task_path(array, number), on_progress or (lambda _: None), timeout_s)

    def events(self) -> Iterator[Sequence[Event]]:
        """The last thousand, and again whenever there are more."""
        for _ in self._bus.changes(f"path='{self._path}',interface='{ARRAY}',member='Event'"):
            (text,) = self._bus.call(self._path, ARRAY, "GetEvents", last=1000)
            yield msgspec.json.decode(text, type=list[Event])

    def samples(self, ended: Callable[[], bool]) -> Iterator[Json]:
        while True:
            (text,) = self._bus.call(self._path, ARRAY, "GetActivity")
            yield json.loads(text)
            if ended():
                return


def _is_ours(bus: Bus, settings: Settings) -> bool:
    directory = bus.property(ROOT, MANAGER, "StateDirectory")
    return os.path.realpath(str(directory)) == os.path.realpath(settings.state)


def _method(interface: str, name: str) -> Method:
    method = INTERFACES[interface].method(name)
    assert method is not None, f"{interface} has no {name}"
    return method


def _given(method: Method, options: Mapping[str, Any]) -> dict[str, Variant]:
    """Options, each as a variant of its type."""
    types = method.options or {}
    return {name: _variant(types[name], value) for name, value in options.items()}


def _variant(signature: str, value: Any) -> Variant:
    with _fitting():
        return Variant(signature, plain(value))


@contextmanager
def _fitting() -> Iterator[None]:
    """Raises: InvalidArgument for a value that its type on the bus cannot hold, so that nobody can be asked about it."""
    try:
        yield
    except SignatureBodyMismatchError as error:
        raise InvalidArgument(f"an argument does not fit: {error}") from error


def _error(reply: Message) -> BlkrecovError:
    """What an error from the bus means."""
    name, words = reply.error_name or "", [str(word) for word in reply.body]
    message = words[0] if words else name
    if name.startswith(ERRORS):
        remedy = words[2] if len(words) > 2 else ""
        return Reported(Code[name.removeprefix(ERRORS)], message.removesuffix(f"\n{remedy}"), remedy)
    if name == f"{_STANDARD}AccessDenied":
        return AccessDenied(
            "the daemon tells nothing to this user, or takes no orders from it",
            remedy="run it as root, for example with sudo; to look is enough to be in the group blkrecov",
        )
    if name == f"{_STANDARD}UnknownObject":
        return ObjectDeleted(message)
    if name in _GONE:
        return DaemonGone(f"blkrecovd does not answer: {message}")
    return ProviderFailure(f"the bus says {name}: {message}")
