"""An array as commands see it: rows to show, requests by org.blkrecov1's names, and tasks to wait for.

Who looks after the array carries the requests out: blkrecovd where it runs (blkrecov.cli.remote), else the command itself, which
has opened the array for as long as it takes. What is done is the same code in both cases, blkrecov.methods; so is what is shown,
blkrecov.rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias
from uuid import UUID

import msgspec

from blkrecov import rows
from blkrecov.array import Array
from blkrecov.bus.interfaces import ARRAY, DRIVE, LUN, SHADOW, TASK
from blkrecov.bus.objects import array_path, task_path
from blkrecov.dm.control import Control
from blkrecov.errors import BlkrecovError, Code
from blkrecov.methods import HANDLERS, Prepared, plan_resync, resync
from blkrecov.overview import sample
from blkrecov.running import Progress
from blkrecov.state import ArrayState
from blkrecov.survey import survey
from blkrecov.views import Json

Pairs: TypeAlias = Sequence[tuple[str, str]]
OnProgress: TypeAlias = Callable[[Json], None]


@dataclass(frozen=True, slots=True)
class Named:
    """An object of the array by its name; a task by its number. `kind` is drive, lun or task."""

    kind: str
    name: str


_KINDS: Final = {DRIVE: "drive", LUN: "lun", SHADOW: "lun", TASK: "task"}


@dataclass(frozen=True, slots=True)
class Request:
    """A method of an object, or of the array for None. Arguments and options may be Named, and are what they lead to then."""

    interface: str
    method: str
    of: Named | None = None
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def request(interface: str, method: str, *arguments: Any, of: str | None = None, **options: Any) -> Request:
    """`of` is the object's name. Options that are None or empty are not given."""
    given = {name.replace("_", "-"): value for name, value in options.items() if value is not None and value != ()}
    named = None if interface == ARRAY or of is None else Named(_KINDS[interface], of)
    return Request(interface, method, named, arguments, given)


class Reported(BlkrecovError):
    """An error that others have met, as they tell it: the daemon's answer, or how a task ended."""

    def __init__(self, code: Code, message: str, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code  # type: ignore[misc]


class Access(Protocol):
    """An array within a command's reach. All of it raises what the methods do."""

    def head(self) -> Json:
        """The array without its drives and LUNs."""

    def drives(self) -> Sequence[Json]: ...

    def luns(self) -> Sequence[Json]: ...

    def tasks(self) -> Sequence[Json]: ...

    def state(self) -> ArrayState: ...

    def path(self, named: Named) -> str:
        """The object's path on the bus. Raises: ObjectNotFound, ObjectDeleted."""

    def row(self, path: str) -> Json:
        """One of drives(), luns() or tasks(), by its path. Raises: ObjectNotFound, ObjectDeleted."""

    def call(self, wanted: Request) -> Sequence[Any]:
        """What the method gives; objects are paths."""

    def plan(self, wanted: Request) -> Sequence[str]: ...

    def resync(self, pairs: Pairs, options: dict[str, Any]) -> str:
        """Begin a restore; its task's path."""

    def plan_resync(self, pairs: Pairs, options: dict[str, Any]) -> Sequence[str]: ...

    def follow(self, number: int, on_progress: OnProgress | None, timeout_s: float | None) -> Json:
        """Wait for a task's end; its row then. Raises: TimedOut."""

    def samples(self, ended: Callable[[], bool]) -> Iterator[Json]:
        """What the counters say (overview.sample()), again and again, until it is enough."""


def drive(access: Access, name: str) -> Json:
    return access.row(access.path(Named("drive", name)))


def lun(access: Access, name: str) -> Json:
    return access.row(access.path(Named("lun", name)))


def array_view(access: Access) -> Json:
    return {**access.head(), "drives": list(access.drives()), "luns": list(access.luns())}


class Local:
    """An array that this command has opened."""

    def __init__(self, array: Array) -> None:
        self._array: Final = array

    def head(self) -> Json:
        return rows.head(self._array)

    def drives(self) -> Sequence[Json]:
        return [rows.drive(self._array, drive) for drive in self._array.document.drives]

    def luns(self) -> Sequence[Json]:
        return [rows.lun(self._array, lun) for lun in self._array.document.luns]

    def tasks(self) -> Sequence[Json]:
        return [rows.task(self._array, task) for task in self._array.document.tasks]

    def state(self) -> ArrayState:
        return rows.state(self._array, rows.overview(self._array))

    def path(self, named: Named) -> str:
        (path,) = HANDLERS[ARRAY, "Find"](self._array, "", (named.kind, named.name), {}).act()
        return str(path)

    def row(self, path: str) -> Json:
        kind, word = path.split("/")[-2:]
        document = self._array.document
        match kind:
            case "task":
                return rows.task(self._array, document.task(int(word)))
            case "drive":
                return rows.drive(self._array, document.drive(str(UUID(word))))
            case _:
                return rows.lun(self._array, document.lun(str(UUID(word))))

    def call(self, wanted: Request) -> Sequence[Any]:
        return self._prepared(wanted).act()

    def plan(self, wanted: Request) -> Sequence[str]:
        return list(self._prepared(wanted).plan())

    def _prepared(self, wanted: Request) -> Prepared:
        path = self.path(wanted.of) if wanted.of else array_path(self._array.document.array)
        arguments, options = resolved(self, wanted.arguments), resolved(self, wanted.options)
        return HANDLERS[wanted.interface, wanted.method](self._array, path, arguments, options)

    def resync(self, pairs: Pairs, options: dict[str, Any]) -> str:
        return task_path(self._array.document.array, resync(self._array, pairs, options).id)

    def plan_resync(self, pairs: Pairs, options: dict[str, Any]) -> Sequence[str]:
        return plan_resync(self._array, pairs, options)

    def follow(self, number: int, on_progress: OnProgress | None, timeout_s: float | None) -> Json:
        def told(progress: Progress) -> None:
            if on_progress is not None:
                on_progress(rows.under_way(progress))

        task = self._array.wait(number, on_progress=told if on_progress else None, timeout_s=timeout_s)
        return rows.task(self._array, task)

    def samples(self, ended: Callable[[], bool]) -> Iterator[Json]:
        """Others may work on the array meanwhile; what they change is read anew."""
        with Control() as control:
            while True:
                with self._array.unlocked():
                    while not self._array.outdated():
                        yield msgspec.to_builtins(sample(survey(self._array, control)))
                        if ended():
                            return
                self._array.reload()


def resolved(access: Access, value: Any) -> Any:
    """A value with paths in the place of names."""
    match value:
        case Named():
            return access.path(value)
        case dict():
            return {key: resolved(access, item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(resolved(access, item) for item in value)
        case _:
            return value
