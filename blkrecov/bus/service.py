"""org.blkrecov1 on a connection: every message to us is answered in here.

Properties, introspection and the list of objects are answered from the last state that was told (update()), so nothing that an
array is stuck in can hold up an answer. Methods are handed to the array's worker; how long one may take once it was begun is the
kernel's business, but one that is not begun in time fails and says what the worker is at.

An error's first word is its message and, on the next line, its remedy, for clients that show one string; the HRESULT (u) and the
remedy alone (s) follow.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

import msgspec
from dbus_fast import Message, MessageFlag, MessageType, NameFlag, RequestNameReply, Variant
from dbus_fast.aio import MessageBus

from blkrecov.array import Array
from blkrecov.bus import interfaces
from blkrecov.bus.interfaces import ARRAY, INTERFACES, MANAGED, MANAGER, SESSION, STANDARD, TASK, Interface, Method
from blkrecov.bus.objects import (
    ROOT,
    Added,
    Changed,
    Interfaces,
    Objects,
    Removed,
    array_objects,
    array_of,
    array_path,
    changes,
    children,
    concerned,
    plain,
    session_object,
    session_path,
    task_path,
)
from blkrecov.errors import AccessDenied, BlkrecovError, Code, DeviceInUse, InvalidArgument, ObjectDeleted, TimedOut
from blkrecov.events import Event
from blkrecov.methods import HANDLERS, Options, Result, plan_resync, restore, resync
from blkrecov.session import RestoreSession
from blkrecov.state import ENDED, ArrayState
from blkrecov.views import Json
from blkrecov.worker import Unexpected, stopped

log = logging.getLogger(__name__)

T = TypeVar("T")

# How long a call may wait for its turn. Clients wait for 25 s by default, and ought to hear why it takes so long.
BEGIN_S: Final = 10.0
# How long a question that looks anew may take; then it is answered with what is known.
LOOK_S: Final = 2.0
_INTEGERS: Final = "ynqiuxt"
_MACHINE_ID: Final = Path("/etc/machine-id")


class Arrays(Protocol):
    """What the service asks of whoever runs the workers."""

    @property
    def directory(self) -> Path:
        """Where arrays are remembered."""

    def call(self, array: UUID, what: str, function: Callable[[Array], T], *, brings_up: bool) -> Future[T]:
        """As Worker.call(). Raises: ObjectDeleted for an array without worker."""

    def doing(self, array: UUID) -> str: ...

    async def create(self, name: str) -> UUID:
        """Make an array, and tell of it. Raises: what engine.create_array() does."""

    async def find(self) -> Sequence[Json]:
        """The arrays of this machine, looked for anew, as rows.found()."""

    async def open(self, array: UUID) -> UUID:
        """Look after an array from now on. Raises: ObjectNotFound."""


class StandardError(Exception):
    """An error of D-Bus's own."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = f"org.freedesktop.DBus.Error.{name}"


@dataclass
class _Session:
    """A restore that a client has opened. The pairs are looked up anew for each call, for the array changes meanwhile."""

    path: str
    owner: str
    array: UUID
    pairs: list[tuple[str, str]] = field(default_factory=list)
    task: int | None = None


class Service:
    """Made in the event loop's thread, which all of its methods belong to. export() begins to answer."""

    def __init__(self, bus: MessageBus, arrays: Arrays) -> None:
        self._bus = bus
        self._arrays = arrays
        self._version = version("blkrecov")
        self._known: dict[UUID, Objects] = {}
        self._states: dict[UUID, ArrayState] = {}
        self._names: dict[UUID, str] = {}
        self._sessions: dict[str, _Session] = {}
        self._next_session = 1
        self._waiting: dict[str, list[Message]] = {}
        # How much there is that ends when a client leaves the bus.
        self._held: Counter[str] = Counter()
        self._answering: set[asyncio.Task[Any]] = set()

    def export(self) -> None:
        self._bus.add_message_handler(self._handle)

    async def publish(self) -> None:
        """Take the name by which clients find us. Raises: DeviceInUse."""
        if await self._bus.request_name(interfaces.NAME, NameFlag.DO_NOT_QUEUE) is not RequestNameReply.PRIMARY_OWNER:
            raise DeviceInUse(f"{interfaces.NAME} is on the bus already", remedy="end the other blkrecovd first")

    # What is there.

    @property
    def objects(self) -> Objects:
        found: dict[str, Interfaces] = {ROOT: {MANAGER: self._manager()}}
        for known in self._known.values():
            found.update(known)
        for session in self._sessions.values():
            found[session.path] = session_object(session.owner, session.array, session.task)
        return found

    def _manager(self) -> Mapping[str, Any]:
        arrays = [array_path(uuid) for uuid in sorted(self._known, key=lambda uuid: self._names[uuid])]
        return {"Version": self._version, "StateDirectory": str(self._arrays.directory), "Arrays": arrays}

    def update(self, state: ArrayState) -> None:
        """An array is like this now: tell those who listen, then wake those who wait for a task, then tell that it has ended."""
        before = self._known.get(state.uuid, {})
        after = array_objects(state)
        is_new = state.uuid not in self._known
        self._known[state.uuid], self._names[state.uuid], self._states[state.uuid] = after, state.name, state
        self._tell(before, after)
        if is_new:
            self._signal(
                ROOT,
                interfaces.PROPERTIES,
                "PropertiesChanged",
                "sa{sv}as",
                self._changed(MANAGER, self._manager(), {"Arrays"}),
            )
        for path in list(self._waiting):
            if array_of(path) == state.uuid and (path not in after or _ended(after[path])):
                for message in self._waiting.pop(path):
                    self._answer_wait(message, after.get(path))
                    self._let_go(message.sender or "")
        # A short task has ended before anything was told of it; those found when the array is first opened have ended long ago.
        was_open = bool(before) and before[array_path(state.uuid)][ARRAY]["Sequence"] > 0
        for path, known in after.items():
            if was_open and _ended(known) and not _ended(before.get(path, {})):
                self._signal(path, TASK, "Completed", "ssuss", _outcome(known))

    def happened(self, event: Event) -> None:
        """Tell an event, of an array that there is."""
        for uuid, name in self._names.items():
            if name == event.array:
                objects = concerned(self._known[uuid], event.lun, event.drive, event.task)
                body = [event.kind.value, event.message, event.remedy, event.time, objects]
                self._signal(array_path(uuid), ARRAY, "Event", "sssdao", body)

    def _tell(self, before: Objects, after: Objects) -> None:
        for change in changes(before, after):
            match change:
                case Removed(path, names):
                    self._signal(ROOT, interfaces.OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, list(names)])
                case Added(path, added):
                    self._signal(
                        ROOT, interfaces.OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", [path, _typed(added)]
                    )
                case Changed(path, name, properties):
                    body = self._changed(name, properties, properties)
                    self._signal(path, interfaces.PROPERTIES, "PropertiesChanged", "sa{sv}as", body)

    def _changed(self, interface: str, properties: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
        values = {name: properties[name] for name in names}
        return [interface, _typed({interface: values})[interface], []]

    def _signal(self, path: str, interface: str, member: str, signature: str, body: list[Any]) -> None:
        if self._bus.connected:
            self._bus.send(Message.new_signal(path, interface, member, signature, plain(body)))

    # Messages.

    def _handle(self, message: Message) -> Message | bool | None:
        if message.sender == "org.freedesktop.DBus" and message.member == "NameOwnerChanged":
            name, _, owner = message.body
            if not owner:
                self._client_left(name)
            return None
        if message.message_type is not MessageType.METHOD_CALL or (message.interface, message.member) == (None, "Ping"):
            return None
        if message.interface == interfaces.PEER and message.member != "GetMachineId":
            return None  # dbus-fast answers those.
        try:
            if message.interface == interfaces.PEER:
                # dbus-fast would ask the bus, and Debian's lets nobody ask it that.
                self._reply(message, "s", [_MACHINE_ID.read_text().strip()])
            else:
                self._dispatch(message)
        except (StandardError, BlkrecovError) as error:
            self._fail(message, error)
        except Exception as error:
            log.exception("%s.%s of %s", message.interface, message.member, message.path)
            self._fail(message, Unexpected(f"{type(error).__name__}: {error}"))
        return True

    def _dispatch(self, message: Message) -> None:
        path, member = message.path or "", message.member or ""
        there = self.objects
        if path not in there:
            if member == "Introspect" and (below := children(there, path)):
                self._reply(message, "s", [interfaces.introspection((), below)])
                return
            raise StandardError("UnknownObject", f"there is no object {path}")
        known = there[path]
        own = [INTERFACES[name] for name in known] + ([MANAGED] if path == ROOT else [])
        interface, method = _chosen((*own, *STANDARD), message)
        match method.name:
            case "Introspect":
                self._reply(message, "s", [interfaces.introspection(own, children(there, path))])
            case "GetManagedObjects":
                objects = {name: _typed(held) for name, held in there.items() if name != ROOT}
                self._reply(message, method.result, [objects])
            case "GetAll":
                self._reply(message, "a{sv}", [_typed(known).get(_known_name(message.body[0], own), {})])
            case "Get":
                self._reply(message, "v", [_property(known, *message.body)])
            case "Set":
                raise StandardError("PropertyReadOnly", f"{message.body[1]} is read only")
            case _:
                *arguments, given = message.body
                options = plain_options(given, method)
                self._call(message, interface, method, arguments, options)

    def _call(
        self, message: Message, interface: Interface, method: Method, arguments: Sequence[Any], options: Options
    ) -> None:
        """Those of our own interfaces, which may take their time."""
        path = message.path or ""
        if interface.name == TASK and method.name == "Wait":
            self._wait(message, options)
            return
        if interface.name == MANAGER:
            answer = self._of_manager(method, arguments)
        elif interface.name == SESSION:
            answer = self._of_session(self._sessions[path], message, method, arguments, options)
        elif method.name == "InitializeForRestore":
            answer = self._open_session(message)
        elif method.name == "GetState":
            answer = self._state_now(path, message.sender or "")
        elif method.name == "Plan":
            answer = self._plan(path, interface, arguments)
        else:
            handler = HANDLERS[interface.name, method.name]
            answer = self._asked(message, method, lambda array: handler(array, path, arguments, options).act())
        self._answer_later(message, method, answer)

    def _answer_later(self, message: Message, method: Method, answer: Coroutine[Any, Any, Result]) -> None:
        async def answered() -> None:
            try:
                result = await answer
            except (StandardError, BlkrecovError) as error:
                self._fail(message, error)
            except Exception as error:
                log.exception("%s of %s", method.name, message.path)
                self._fail(message, Unexpected(f"{type(error).__name__}: {error}"))
            else:
                self._reply(message, method.result, result)

        self._begin(answered())

    def _begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have it done beside all else. The loop alone would not keep it."""
        task = asyncio.get_running_loop().create_task(work)
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _asked(self, message: Message, method: Method, function: Callable[[Array], Result]) -> Result:
        """What a method gives. Raises: AccessDenied for who may only look, where there is nothing to look at."""
        path = message.path or ""
        uuid = array_of(path)
        brings_up = True
        if method.reads and uuid is not None:
            brings_up = not self._states[uuid].running
            if brings_up and not await self._is_root(message.sender or ""):
                raise stopped(self._names[uuid])
        return await self._in_array(path, method.name, function, brings_up=brings_up)

    async def _in_array(self, path: str, what: str, function: Callable[[Array], T], *, brings_up: bool = True) -> T:
        """Raises: TimedOut for what could not be begun in time; AccessDenied after a stop for what brings nothing up."""
        uuid = array_of(path)
        assert uuid is not None, f"{path} is of no array"
        call = self._arrays.call(uuid, what, function, brings_up=brings_up)
        future = asyncio.wrap_future(call)
        await asyncio.wait({future}, timeout=BEGIN_S)
        if not future.done() and call.cancel():
            raise TimedOut(
                f"{what} was not begun within {BEGIN_S:g} s: array {self._names[uuid]!r} {self._arrays.doing(uuid)}",
                remedy="try again later; nothing was done",
            )
        return await future

    async def _state_now(self, path: str, sender: str) -> Result:
        """Never kept waiting for long: what is known is told, and what keeps the array from being looked at."""
        uuid = array_of(path)
        assert uuid is not None, f"{path} is of no array"
        brings_up = not self._states[uuid].running
        if brings_up and not await self._is_root(sender):
            return [self._state_text(uuid)]
        call = self._arrays.call(uuid, "GetState", lambda array: array.observe(), brings_up=brings_up)
        future = asyncio.wrap_future(call)
        # Of a stopped array nothing is known that would be an answer, and to bring it up takes its time.
        await asyncio.wait({future}, timeout=None if brings_up else LOOK_S)
        stale = ""
        if future.done():
            with suppress(AccessDenied):  # Stopped meanwhile, which the state says.
                await future
        else:
            call.cancel()
            future.add_done_callback(lambda late: late.cancelled() or late.exception())
            stale = f"array {self._names[uuid]} {self._arrays.doing(uuid)}; this is what was known before"
        return [self._state_text(uuid, stale)]

    async def _is_root(self, sender: str) -> bool:
        """To look at an array that is stopped brings it up, which is root's to do."""
        return bool(await self._ask_bus("GetConnectionUnixUser", sender) == 0)

    def _state_text(self, uuid: UUID, stale: str = "") -> str:
        return msgspec.json.encode({**msgspec.to_builtins(self._states[uuid]), "stale": stale}).decode()

    def _plan(self, path: str, interface: Interface, arguments: Sequence[Any]) -> Coroutine[Any, Any, Result]:
        name, variants = arguments
        method = interface.method(name)
        handler = HANDLERS.get((interface.name, name))
        if method is None or handler is None:
            raise InvalidArgument(f"{interface.name} has no method {name!r} that could be planned")
        given = [variant.value for variant in variants]
        options: Options = {}
        if len(given) == len(method.takes) and variants[-1].signature == "a{sv}":
            options = plain_options(given.pop(), method)
        types = [variant.signature for variant in variants[: len(given)]]
        if types != [argument.type for argument in method.takes[:-1]]:
            raise InvalidArgument(f"{name} takes {method.signature}, without or with the options")
        return self._in_array(path, f"Plan {name}", lambda array: [list(handler(array, path, given, options).plan())])

    def _reply(self, message: Message, signature: str, body: list[Any]) -> None:
        if not message.flags & MessageFlag.NO_REPLY_EXPECTED and self._bus.connected:
            self._bus.send(Message.new_method_return(message, signature, plain(body)))

    def _fail(self, message: Message, error: StandardError | BlkrecovError) -> None:
        if isinstance(error, BlkrecovError):
            name, signature = f"{interfaces.ERRORS}{error.code.name}", "sus"
            body: list[Any] = [f"{error.message}\n{error.remedy}", error.code.hresult, error.remedy]
        else:
            name, signature, body = error.name, "s", [str(error)]
        if not message.flags & MessageFlag.NO_REPLY_EXPECTED and self._bus.connected:
            self._bus.send(
                Message(
                    message_type=MessageType.ERROR,
                    destination=message.sender,
                    reply_serial=message.serial,
                    error_name=name,
                    signature=signature,
                    body=plain(body),
                )
            )

    # The manager.

    def _of_manager(self, method: Method, arguments: Sequence[Any]) -> Coroutine[Any, Any, Result]:
        async def create() -> Result:
            return [array_path(await self._arrays.create(arguments[0]))]

        async def open_array() -> Result:
            return [array_path(await self._arrays.open(_uuid(arguments[0])))]

        async def get_arrays() -> Result:
            return [msgspec.json.encode(await self._arrays.find()).decode()]

        return {"CreateArray": create, "OpenArray": open_array, "GetArrays": get_arrays}[method.name]()

    # Waiting for a task.

    def _wait(self, message: Message, options: Options) -> None:
        path = message.path or ""
        known = self.objects[path]
        if _ended(known):
            self._answer_wait(message, known)
            return
        self._waiting.setdefault(path, []).append(message)
        self._hold(message.sender or "")
        if "timeout" in options:
            asyncio.get_running_loop().call_later(options["timeout"], self._out_of_patience, path, message)

    def _out_of_patience(self, path: str, message: Message) -> None:
        if message in self._waiting.get(path, ()):
            self._forget(path, message)
            self._fail(message, TimedOut("the task has not ended by then; it goes on"))

    def _forget(self, path: str, message: Message) -> None:
        self._waiting[path].remove(message)
        if not self._waiting[path]:
            del self._waiting[path]
        self._let_go(message.sender or "")

    def _answer_wait(self, message: Message, known: Interfaces | None) -> None:
        if known is None:
            self._fail(message, ObjectDeleted(f"nobody remembers {message.path}", remedy="it has ended long ago"))
        else:
            self._reply(message, "ssuss", _outcome(known))

    # Restore sessions.

    async def _open_session(self, message: Message) -> Result:
        path, owner = message.path or "", message.sender or ""
        uuid = array_of(path)
        assert uuid is not None
        await self._in_array(path, "InitializeForRestore", lambda array: RestoreSession(array).begin())
        session = _Session(session_path(self._next_session), owner, uuid)
        self._next_session += 1
        self._sessions[session.path] = session
        self._tell({}, {session.path: session_object(owner, uuid, None)})
        self._hold(owner)
        return [session.path]

    # Clients that leave.

    def _hold(self, owner: str) -> None:
        """Have the bus tell when a client leaves, until it is let go as often as it was held."""
        self._held[owner] += 1
        if self._held[owner] == 1:
            self._begin(self._listen(owner))

    async def _listen(self, owner: str) -> None:
        await self._ask_bus("AddMatch", _left(owner))
        if await self._ask_bus("NameHasOwner", owner) is not True:
            self._client_left(owner)  # It went before we listened.

    def _let_go(self, owner: str) -> None:
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
            # The bus counts them: one for each that was added.
            self._begin(self._ask_bus("RemoveMatch", _left(owner)))

    async def _ask_bus(self, member: str, argument: str) -> Any:
        answer = await self._bus.call(
            Message(
                destination="org.freedesktop.DBus",
                path="/org/freedesktop/DBus",
                interface="org.freedesktop.DBus",
                member=member,
                signature="s",
                body=[argument],
            )
        )
        return answer.body[0] if answer is not None and answer.body else None

    def _client_left(self, owner: str) -> None:
        for session in [each for each in self._sessions.values() if each.owner == owner]:
            self._end(session)
        for path, messages in list(self._waiting.items()):
            for message in [each for each in messages if each.sender == owner]:
                self._forget(path, message)

    def _end(self, session: _Session) -> None:
        if self._sessions.pop(session.path, None) is None:
            return
        self._tell({session.path: session_object(session.owner, session.array, session.task)}, {})
        self._let_go(session.owner)

    async def _of_session(
        self, session: _Session, message: Message, method: Method, arguments: Sequence[Any], options: Options
    ) -> Result:
        if message.sender != session.owner:
            raise AccessDenied("this restore session is another client's", remedy="open one of your own")
        path = array_path(session.array)
        match method.name:
            case "Add":
                pair = (arguments[0], arguments[1])
                await self._in_array(path, "Add", lambda array: restore(array, [pair]))
                session.pairs.append(pair)
                return []
            case "Resync":
                return [await self._resync(session, options)]
            case "Plan":
                return [
                    await self._in_array(path, "Plan Resync", lambda array: plan_resync(array, session.pairs, options))
                ]
            case "End":
                self._end(session)
                return []

        def asked(array: Array) -> Code:
            begun = RestoreSession(array, session.task)
            return begun.status() if method.name == "Status" else begun.cancel()

        code = await self._in_array(path, method.name, asked)
        return [code.name, code.hresult]

    async def _resync(self, session: _Session, options: Options) -> str:
        before = session_object(session.owner, session.array, session.task)
        session.task = await self._in_array(
            array_path(session.array), "Resync", lambda array: resync(array, session.pairs, options).id
        )
        if session.path in self._sessions:
            after = session_object(session.owner, session.array, session.task)
            self._tell({session.path: before}, {session.path: after})
        return task_path(session.array, session.task)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidArgument(f"{text!r} is no UUID", remedy="GetArrays tells those of this machine's arrays") from None


def _left(owner: str) -> str:
    return f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{owner}'"


def _ended(known: Interfaces) -> bool:
    return TASK in known and known[TASK]["State"] in ENDED


def _outcome(known: Interfaces) -> Result:
    return [known[TASK][name] for name in ("State", "Result", "HResult", "Message", "Remedy")]


def _typed(known: Interfaces) -> dict[str, dict[str, Variant]]:
    """With each property as a variant of its type."""
    return {
        name: {
            item.name: Variant(item.type, plain(properties[item.name]))
            for item in INTERFACES[name].properties
            if item.name in properties
        }
        for name, properties in known.items()
    }


def _chosen(offered: Iterable[Interface], message: Message) -> tuple[Interface, Method]:
    """Who is meant; a caller may leave the interface out. Raises: StandardError."""
    offered = list(offered)
    if message.interface is not None and message.interface not in {interface.name for interface in offered}:
        raise StandardError("UnknownInterface", f"{message.path} has no interface {message.interface}")
    for interface in offered:
        method = interface.method(message.member or "")
        if method is not None and message.interface in (None, interface.name):
            if method.signature != message.signature:
                raise StandardError(
                    "InvalidArgs", f"{method.name} takes {method.signature!r}, not {message.signature!r}"
                )
            return interface, method
    raise StandardError("UnknownMethod", f"{message.interface or message.path} has no method {message.member}")


def _known_name(name: str, own: Iterable[Interface]) -> str:
    if name not in {interface.name for interface in (*own, *STANDARD)}:
        raise StandardError("UnknownInterface", f"there is no interface {name} here")
    return name


def _property(known: Interfaces, interface: str, name: str) -> Variant:
    if interface not in known:
        raise StandardError("UnknownInterface", f"there is no interface {interface} here")
    typed = _typed({interface: known[interface]})[interface]
    if name not in typed:
        raise StandardError("UnknownProperty", f"{interface} has no property {name}")
    return typed[name]


def plain_options(given: Mapping[str, Variant], method: Method) -> Options:
    """Options as plain values. Numbers are not negative, and any integer will do. Raises: InvalidArgument."""
    known = method.options or {}
    found = {}
    for name, variant in given.items():
        if name not in known:
            words = ", ".join(known) or "none"
            raise InvalidArgument(f"{method.name} has no option {name!r}", remedy=f"the options that it knows: {words}")
        wanted = known[name]
        is_number = variant.signature in f"{_INTEGERS}d" and math.isfinite(variant.value) and variant.value >= 0
        fits = variant.signature in _INTEGERS if wanted in _INTEGERS else wanted == "d"
        if not (is_number and fits if wanted in f"{_INTEGERS}d" else wanted == variant.signature):
            raise InvalidArgument(
                f"option {name} of {method.name} cannot be {variant.value!r} ({variant.signature})",
                remedy=f"its type is {wanted}",
            )
        found[name] = variant.value
    return found
