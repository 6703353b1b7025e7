"""What can be done with arrays, drives, LUNs, shadow copies and tasks, as functions of the open array by org.blkrecov1's names.

The daemon's workers and commands that find no daemon carry out these same ones. Each looks first and acts then
(Prepared), so that what would be done can be asked for. Objects come and go as paths.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET

from blkrecov import provision
from blkrecov.array import Array
from blkrecov.bus import interfaces
from blkrecov.bus.objects import NONE, drive_path, lun_path, task_path, uuid_of
from blkrecov.dm.control import Control
from blkrecov.dmrp import storage
from blkrecov.dmrp.notify import view
from blkrecov.errors import BlkrecovError, InvalidArgument, ObjectNotFound, ShadowNotFound
from blkrecov.geometry import Request
from blkrecov.model import Drive, DriveStatus, Fault, FaultKind, Layout, Lun, Schedule, Task
from blkrecov.overview import sample
from blkrecov.page83.information import LunInformation, from_json, to_json
from blkrecov.proposal import Proposal
from blkrecov.resync import Options as ResyncOptions
from blkrecov.session import RestoreSession
from blkrecov.shadows import CHUNK, ShadowRequest
from blkrecov.steps import Step
from blkrecov.survey import survey
from blkrecov.units import Bytes

Options: TypeAlias = Mapping[str, Any]
Result: TypeAlias = list[Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A method whose checks are done: the lines of its steps, and what takes them and gives the method's result."""

    plan: Callable[[], Iterable[str]]
    act: Callable[[], Result]


# (the array, the object's path, the arguments before the options, the options)
Handler: TypeAlias = Callable[[Array, str, Sequence[Any], Options], Prepared]


def _lines(steps: Sequence[Step]) -> Iterable[str]:
    return [line for step in steps for line in step.lines()]


def _carried_out(array: Array, proposal: Proposal, result: Callable[[], Result] = list) -> Prepared:
    def act() -> Result:
        array.carry_out(proposal)
        return result()

    return Prepared(lambda: _lines(array.plan(proposal)), act)


def _begun(
    array: Array, proposal: Proposal, task: Task, start: Callable[[Proposal, Task], Task] | None = None
) -> Prepared:
    return Prepared(
        lambda: _lines(array.plan(proposal)),
        lambda: [task_path(array.document.array, (start or array.start)(proposal, task).id)],
    )


def _simple(act: Callable[[], object]) -> Prepared:
    """What has no steps that could be told before."""

    def done() -> Result:
        act()
        return []

    return Prepared(list, done)


def _drive(array: Array, path: str) -> Drive:
    """Raises: ObjectNotFound, ObjectDeleted."""
    return array.document.drive(str(uuid_of(path) or path))


def _lun(array: Array, path: str) -> Lun:
    """Raises: ObjectNotFound, ObjectDeleted."""
    return array.document.lun(str(uuid_of(path) or path))


def _number(path: str) -> int:
    word = path.rpartition("/")[2]
    if not word.isdigit():
        raise ObjectNotFound(f"{path} is no task")
    return int(word)


def _positive(value: int, what: str) -> Bytes:
    if not 0 < value < 2**63:
        raise InvalidArgument(
            f"{what} is {value} bytes", remedy="give a number of bytes from one to what a file can have"
        )
    return Bytes(value)


def _size(options: Options, name: str) -> Bytes | None:
    return _positive(options[name], name) if name in options else None


def _layout(word: str) -> Layout:
    try:
        return Layout(word)
    except ValueError:
        words = ", ".join(layout.value for layout in Layout)
        raise InvalidArgument(f"{word!r} is no layout", remedy=f"give one of {words}") from None


# Arrays.


def _add_drive(array: Array, _path: str, arguments: Sequence[Any], options: Options) -> Prepared:
    def added(*, dry: bool) -> tuple[Drive | None, Sequence[str]]:
        return array.add_drive(
            arguments[0],
            size=_size(options, "size"),
            name=options.get("name"),
            spare=options.get("spare", False),
            force=options.get("force", False),
            dry=dry,
        )

    def act() -> Result:
        drive, _ = added(dry=False)
        assert drive is not None
        return [drive_path(array.document.array, drive.uuid)]

    if not str(arguments[0]).startswith("/"):
        raise InvalidArgument(f"{arguments[0]!r} is relative to nothing here", remedy="give a path that begins with /")
    return Prepared(lambda: added(dry=True)[1], act)


def _create_lun(array: Array, _path: str, arguments: Sequence[Any], options: Options) -> Prepared:
    name, layout, size = arguments
    drives, members = tuple(options.get("drives", ())), options.get("members")
    if members is not None and drives and members != len(drives):
        raise InvalidArgument(
            f"{members} members, but {len(drives)} drives are named", remedy="give members or drives, not both"
        )
    request = Request(
        name=name,
        layout=_layout(layout),
        size=_positive(size, "size"),
        drives=drives,
        members=members,
        exported=options.get("export", True),
    )
    proposal = array.propose_lun(request)
    return Prepared(
        lambda: _lines(array.plan(proposal)),
        lambda: [lun_path(array.document.array, array.create_lun(proposal).uuid)],
    )


def _request(origin: Lun, name: str, options: Options) -> ShadowRequest:
    return ShadowRequest(
        origin=origin.name,
        name=name,
        plex=options.get("plex", False),
        size=_size(options, "store"),
        chunk=_size(options, "chunk") or CHUNK,
        layout=_layout(options["layout"]) if "layout" in options else None,
        drives=tuple(options.get("drives", ())),
        exported=options.get("export", True),
    )


def _shadows(array: Array, pairs: Iterable[tuple[str, str]], options: Options) -> Prepared:
    requests = [_request(_lun(array, origin), name, options) for origin, name in pairs]
    proposal, task = array.propose_shadows(requests)

    def act() -> Result:
        begun = NONE
        if task is None:
            array.carry_out(proposal)
        else:
            begun = task_path(array.document.array, array.start(proposal, task).id)
        made = [array.document.lun(request.name) for request in requests]
        return [[lun_path(array.document.array, lun.uuid) for lun in made], begun]

    return Prepared(lambda: _lines(array.plan(proposal)), act)


def _create_shadow_copies(array: Array, _path: str, arguments: Sequence[Any], options: Options) -> Prepared:
    return _shadows(array, arguments[0], options)


def _create_shadow_copy(array: Array, path: str, arguments: Sequence[Any], options: Options) -> Prepared:
    prepared = _shadows(array, [(path, arguments[0])], options)

    def act() -> Result:
        (made,), task = prepared.act()
        return [made, task]

    return Prepared(prepared.plan, act)


_AUTO: Final = {"on": True, "off": False, "default": None}


def _configure(array: Array, _path: str, _arguments: Sequence[Any], options: Options) -> Prepared:
    auto, scrub = options.get("auto-recover"), options.get("scrub")
    schedules = [item.value for item in Schedule]
    for name, value, words in (("auto-recover", auto, list(_AUTO)), ("scrub", scrub, schedules)):
        if value is not None and value not in words:
            raise InvalidArgument(f"{name} cannot be {value!r}", remedy=f"give one of {', '.join(words)}")
    proposal = provision.configure(
        array.document,
        auto_recover=UNSET if auto is None else _AUTO[auto],
        scrub=UNSET if scrub is None else Schedule(scrub),
        rate_min=options.get("rate-min", UNSET),
        rate_max=options.get("rate-max", UNSET),
    )
    return _carried_out(array, proposal)


def _reenumerate(array: Array, _path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    def act() -> Result:
        came, went = array.reenumerate()
        missing = [drive.name for drive in array.document.drives if drive.status is DriveStatus.REMOVED]
        return [list(came), list(went), missing]

    return Prepared(list, act)


def _refresh(array: Array, _path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    return _simple(array.refresh)


def _objects(array: Array, _path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    def act() -> Result:
        found = array.objects()
        return [msgspec.json.encode([view(item) for item in (*found.objects, *found.tasks)]).decode()]

    return Prepared(list, act)


def _events(array: Array, _path: str, _arguments: Sequence[Any], options: Options) -> Prepared:
    def act() -> Result:
        found = array.events.read(options.get("last"), array=array.document.name)
        return [msgspec.json.encode(found).decode()]

    return Prepared(list, act)


def _stop(array: Array, _path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    return _simple(array.stop)


def _find(array: Array, _path: str, arguments: Sequence[Any], _options: Options) -> Prepared:
    kind, name = arguments
    document = array.document

    def act() -> Result:
        match kind:
            case "drive":
                return [drive_path(document.array, document.drive(name).uuid)]
            case "lun":
                return [lun_path(document.array, document.lun(name).uuid)]
            case "task" if name.isdecimal():
                return [task_path(document.array, document.task(int(name)).id)]
        raise InvalidArgument(f"{name!r} is no name of a {kind}", remedy="look for a drive, a lun, or a task's number")

    return Prepared(list, act)


def _activity(array: Array, _path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    def act() -> Result:
        with Control() as control:
            return [msgspec.json.encode(sample(survey(array, control))).decode()]

    return Prepared(list, act)


# Restore sessions, which a client adds pairs to by and by: they are looked up anew each time.


def restore(array: Array, pairs: Iterable[tuple[str, str]]) -> RestoreSession:
    """A session with these pairs: each a name, a UUID, a path on the bus, or VDS_LUN_INFORMATION as JSON; an empty target is the
    origin. Raises: what RestoreSession.begin() and add() do; InvalidArgument for JSON that is something else.
    """
    session = RestoreSession(array)
    session.begin()
    for source, target in pairs:
        session.add(_meant(source), _meant(target) if target else None)
    return session


def resync(array: Array, pairs: Iterable[tuple[str, str]], options: Options) -> Task:
    """ResyncLuns, begun. Raises: what restore() and RestoreSession.resync() do."""
    revert = options.get("revert-identity", False)
    return restore(array, pairs).resync(_resync_options(options), revert_identity=revert)


def plan_resync(array: Array, pairs: Iterable[tuple[str, str]], options: Options) -> list[str]:
    """The steps that resync() would take. Raises: what it does."""
    revert = options.get("revert-identity", False)
    proposal, _ = restore(array, pairs).propose(_resync_options(options), revert_identity=revert)
    return list(_lines(array.plan(proposal)))


def _resync_options(options: Options) -> ResyncOptions:
    return ResyncOptions(
        undo=options.get("undo", False),
        verify=options.get("verify", False),
        any_volume=options.get("no-volume-check", False),
        forced=frozenset(text.lower().removeprefix("0x").removeprefix("naa.") for text in options.get("force", ())),
    )


def _meant(text: str) -> str | LunInformation:
    """Raises: InvalidArgument for JSON that is no VDS_LUN_INFORMATION."""
    if text.startswith("{"):
        return from_json(text)
    uuid = uuid_of(text) if text.startswith("/") else None
    return str(uuid) if uuid is not None else text


# Drives.


def _fail(array: Array, path: str, _arguments: Sequence[Any], options: Options) -> Prepared:
    name = _drive(array, path).name
    faults = [
        Fault(kind, 0 if kind is FaultKind.DROP_WRITES else options[word])
        for word, kind in (
            ("after", FaultKind.AFTER),
            ("error-rate", FaultKind.ERROR_RATE),
            ("slow", FaultKind.SLOW),
            ("drop-writes", FaultKind.DROP_WRITES),
        )
        if options.get(word, False) is not False
    ]
    if len(faults) > 1:
        raise InvalidArgument("several faults at once", remedy="give one of after, error-rate, slow and drop-writes")
    proposal = array.propose_fault(name, faults[0]) if faults else array.propose_fail(name)
    act = (lambda: array.inject_fault(name, faults[0])) if faults else (lambda: array.fail_drive(name))
    return Prepared(lambda: _lines(array.plan(proposal)), _simple(act).act)


def _reconnect(array: Array, path: str, _arguments: Sequence[Any], options: Options) -> Prepared:
    name = _drive(array, path).name
    proposal, task, found = array.propose_reconnect(name, options.get("path"), force=options.get("force", False))
    return _begun(array, proposal, task, lambda wanted, begun: array.reconnect(wanted, begun, found))


def _replace(array: Array, path: str, _arguments: Sequence[Any], options: Options) -> Prepared:
    """LUN by LUN: what is begun when a later one is refused goes on."""
    old = _drive(array, path).name
    new = _drive(array, options["onto"]).name if "onto" in options else None
    luns = array.luns_on(old)

    def plan() -> Iterable[str]:
        return [line for lun in luns for line in _lines(array.plan(array.propose_replace(lun, old, new)[0]))]

    def act() -> Result:
        begun = [array.start(*array.propose_replace(lun, old, new)) for lun in luns]
        return [[task_path(array.document.array, task.id) for task in begun]]

    return Prepared(plan, act)


def _remove(array: Array, path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    proposal, task, moves = array.propose_remove(_drive(array, path).name)
    prepared = _begun(array, proposal, task, array.remove)
    return Prepared(lambda: array.plan_remove(proposal, task, moves), prepared.act)


def _set_hot_spare(array: Array, path: str, arguments: Sequence[Any], _options: Options) -> Prepared:
    return _carried_out(array, provision.set_hot_spare(array.document, _drive(array, path).name, arguments[0]))


def _trust(array: Array, path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    return _carried_out(array, provision.trust(array.document, _drive(array, path).name))


# LUNs and shadow copies.


def _recover(array: Array, path: str, _arguments: Sequence[Any], options: Options) -> Prepared:
    spare = _drive(array, options["spare"]).name if "spare" in options else None
    proposal, task = array.propose_recover(
        _lun(array, path).name, spare, rate_min=options.get("rate-min"), rate_max=options.get("rate-max")
    )
    return _begun(array, proposal, task)


def _scrub(array: Array, path: str, _arguments: Sequence[Any], options: Options) -> Prepared:
    return _begun(array, *array.propose_scrub(_lun(array, path).name, repair=options.get("repair", False)))


def _extend(array: Array, path: str, arguments: Sequence[Any], _options: Options) -> Prepared:
    return _carried_out(array, array.propose_extend(_lun(array, path).name, _positive(arguments[0], "size")))


def _delete(array: Array, path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    return _carried_out(array, array.propose_delete(_lun(array, path).name))


def _verify(array: Array, path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    def act() -> Result:
        lun = _lun(array, path)
        try:
            verified, trouble = array.verify(lun), ""
        except BlkrecovError as error:
            verified, trouble = False, error.message
        return [verified, [[each.source, each.naa or "", each.detail] for each in array.witnesses(lun)], trouble]

    return Prepared(list, act)


def _information(array: Array, path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    return Prepared(list, lambda: [to_json(array.information(_lun(array, path))).decode()])


def _shadow_copy(array: Array, path: str) -> Lun:
    lun = _lun(array, path)
    if lun.shadow is None:
        raise ShadowNotFound(f"LUN {lun.name!r} is no shadow copy")
    return lun


def _extend_store(array: Array, path: str, arguments: Sequence[Any], _options: Options) -> Prepared:
    name = _shadow_copy(array, path).name
    return _carried_out(array, array.propose_extend_store(name, _positive(arguments[0], "store")))


def _delete_shadow_copy(array: Array, path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    return _carried_out(array, array.propose_delete(_shadow_copy(array, path).name))


# Tasks.


def _cancel(array: Array, path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    return _simple(lambda: array.cancel(_number(path)))


def _pause(array: Array, path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    return _simple(lambda: array.pause(_number(path)))


def _resume(array: Array, path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    return _simple(lambda: array.resume(_number(path)))


def _set_rates(array: Array, path: str, _arguments: Sequence[Any], options: Options) -> Prepared:
    if not options:
        raise InvalidArgument("no rate is given", remedy="give rate-min or rate-max")
    return _simple(lambda: array.set_rates(_number(path), options.get("rate-min"), options.get("rate-max")))


def _task_info(array: Array, path: str, _arguments: Sequence[Any], _options: Options) -> Prepared:
    def act() -> Result:
        info = storage.task_info(array.document, array.document.task(_number(path)))
        return [msgspec.json.encode(view(info)).decode()]

    return Prepared(list, act)


HANDLERS: Final[Mapping[tuple[str, str], Handler]] = {
    (interfaces.ARRAY, "AddDrive"): _add_drive,
    (interfaces.ARRAY, "CreateLun"): _create_lun,
    (interfaces.ARRAY, "CreateShadowCopies"): _create_shadow_copies,
    (interfaces.ARRAY, "Configure"): _configure,
    (interfaces.ARRAY, "Reenumerate"): _reenumerate,
    (interfaces.ARRAY, "Refresh"): _refresh,
    (interfaces.ARRAY, "GetObjects"): _objects,
    (interfaces.ARRAY, "GetEvents"): _events,
    (interfaces.ARRAY, "Stop"): _stop,
    (interfaces.ARRAY, "Find"): _find,
    (interfaces.ARRAY, "GetActivity"): _activity,
    (interfaces.DRIVE, "Fail"): _fail,
    (interfaces.DRIVE, "Reconnect"): _reconnect,
    (interfaces.DRIVE, "Replace"): _replace,
    (interfaces.DRIVE, "Remove"): _remove,
    (interfaces.DRIVE, "SetHotSpare"): _set_hot_spare,
    (interfaces.DRIVE, "Trust"): _trust,
    (interfaces.LUN, "Recover"): _recover,
    (interfaces.LUN, "Scrub"): _scrub,
    (interfaces.LUN, "Extend"): _extend,
    (interfaces.LUN, "Delete"): _delete,
    (interfaces.LUN, "CreateShadowCopy"): _create_shadow_copy,
    (interfaces.LUN, "Verify"): _verify,
    (interfaces.LUN, "GetInformation"): _information,
    (interfaces.SHADOW, "Extend"): _extend_store,
    (interfaces.SHADOW, "Delete"): _delete_shadow_copy,
    (interfaces.TASK, "Cancel"): _cancel,
    (interfaces.TASK, "Pause"): _pause,
    (interfaces.TASK, "Resume"): _resume,
    (interfaces.TASK, "SetRates"): _set_rates,
    (interfaces.TASK, "GetTaskInfo"): _task_info,
}
