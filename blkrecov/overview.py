"""An array at one moment, for those who watch it: what is not well and what to do about it, and how busy it is. Pure.

Whatever shows an array as a whole is computed from this one value, whoever has taken it: the status on one screen, the live view,
the metrics.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Final
from uuid import UUID

from blkrecov import recover, traffic, views
from blkrecov.condition import Condition, condition, endangered, fills_up, state_of, suspended
from blkrecov.dm.status import LegHealth
from blkrecov.errors import AnotherCallInProgress, BlkrecovError, NotEnoughDrives, NotEnoughSpace
from blkrecov.model import Document, Drive, DriveStatus, Health, Lun, Phase, Task
from blkrecov.observed import Observed
from blkrecov.traffic import Counters
from blkrecov.units import Sectors, format_size, in_bytes
from blkrecov.views import Json

# As many as fit on a screen's line; the others are counted.
_NAMED: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A task that has not ended, with its percentage of now. `done` and `total` are of its present phase."""

    task: Task
    phase: Phase | None = None
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    document: Document
    observed: Observed
    at_s: float = 0.0
    """By a clock that never goes back."""
    work: tuple[Work, ...] = ()
    trouble: Mapping[UUID, BlkrecovError] = field(default_factory=dict)
    """LUNs that could not be brought up, and why."""
    stalled: Mapping[UUID, BlkrecovError] = field(default_factory=dict)
    """Drives that are said to be online, and do not answer."""
    traffic: Mapping[UUID, Counters] = field(default_factory=dict)
    """By drive and LUN; what is not loaded has none."""
    errors: Mapping[UUID, int] = field(default_factory=dict)
    """By LUN that has a SCSI disk: the commands that this disk has ended with an error."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not well. The remedy is empty where there is nothing to do but to wait."""

    kind: str
    """"drive" or "LUN"."""
    name: str
    state: str
    """A word or two, as its row in a table has."""
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.what}"


def problems(overview: Overview) -> tuple[Problem, ...]:
    """All that is not well: drives first, for LUNs suffer from them. Empty exactly when everything is healthy."""
    drives = (_drive_problem(drive, overview.stalled.get(drive.uuid)) for drive in overview.document.drives)
    luns = (_lun_problem(overview, lun) for lun in overview.document.luns)
    return tuple(problem for problem in (*drives, *luns) if problem is not None)


def summary(overview: Overview) -> str:
    """One line, as monitoring systems show it."""
    document, found = overview.document, problems(overview)
    words = [_counted(len(document.drives), "drive"), _counted(len(document.luns), "LUN")]
    if overview.work:
        words.append(f"{_counted(len(overview.work), 'task')} under way")
    if not found:
        return f"array {document.name} is healthy: {', '.join(words)}"
    named = [f"{problem.kind} {problem.name} {problem.state}" for problem in found[:_NAMED]]
    if len(found) > _NAMED:
        named.append(f"{len(found) - _NAMED} more")
    return f"array {document.name} is not healthy: {', '.join(named)}; {', '.join(words)}"


def report(overview: Overview) -> Json:
    """What `blkrecov status --json` adds to an array's own fields."""
    found = problems(overview)
    return {
        "healthy": not found,
        "summary": summary(overview),
        "problems": [
            {
                "kind": problem.kind.lower(),
                "name": problem.name,
                "state": problem.state,
                "what": problem.what,
                "remedy": problem.remedy,
            }
            for problem in found
        ],
        "tasks": [views.task_view(work.task) for work in overview.work],
    }


def sample(overview: Overview) -> Json:
    """All that changes while an array works, with the kernel's counters as they are: two of these make an activity()."""
    document, observed = overview.document, overview.observed
    return {
        **report(overview),
        "name": document.name,
        "at_s": overview.at_s,
        "drives": [
            {"name": drive.name, "status": _drive_state(drive), "counters": _counters(overview, drive.uuid)}
            for drive in document.drives
        ],
        "luns": [
            {
                "name": lun.name,
                "layout": lun.layout.value,
                "health": state_of(document, observed, lun)[1].value,
                "sync": sync_ratio(overview, lun),
                "counters": _counters(overview, lun.uuid),
            }
            for lun in document.luns
        ],
        "tasks": [
            {
                **views.task_view(work.task),
                "phase": work.phase.value if work.phase else None,
                "step": work.task.done,
                "done": work.done,
                "total": work.total,
            }
            for work in overview.work
        ],
    }


def _counters(overview: Overview, uuid: UUID) -> Json | None:
    found = overview.traffic.get(uuid)
    return dataclasses.asdict(found) if found is not None else None


def activity(now: Json, before: Json | None) -> Json:
    """How busy all of it was between two samples. Rates are bytes per second, and null where they cannot be told."""
    seconds = now["at_s"] - before["at_s"] if before else 0.0
    shown = {key: value for key, value in now.items() if key != "at_s"}
    for kind in ("drives", "luns"):
        earlier = {row["name"]: row["counters"] for row in before[kind]} if before else {}
        shown[kind] = [
            {
                **{key: value for key, value in row.items() if key != "counters"},
                **_rates(row["counters"], earlier.get(row["name"]), seconds),
            }
            for row in now[kind]
        ]
    shown["tasks"] = [_pace(row, before["tasks"] if before else (), seconds) for row in now["tasks"]]
    return shown


def _rates(now: Json | None, before: Json | None, seconds: float) -> Json:
    found = traffic.rates(Counters(**before), Counters(**now), seconds) if before and now else None
    return {key: getattr(found, key, None) for key in ("read", "written", "busy")}


def _pace(row: Json, before: Iterable[Json], seconds: float) -> Json:
    """A task with its rate and the seconds that its present phase has left at that rate."""
    same = [each for each in before if (each["id"], each["step"]) == (row["id"], row["step"])]
    rate = None
    if same and seconds > 0 and row["done"] > same[0]["done"]:
        rate = (row["done"] - same[0]["done"]) / seconds
    left_s = max(row["total"] - row["done"], 0) / rate if rate else None
    return {**row, "rate": rate, "left_s": left_s}


def sync_ratio(overview: Overview, lun: Lun) -> float | None:
    """How much of a LUN's members is equal by the kernel's word, 0 to 1; None where there is nobody to be equal with."""
    raid = overview.observed.raid(lun)
    match condition(overview.document, overview.observed, lun):
        case Condition.HEALTHY | Condition.FAILING | Condition.SUSPECT:
            return 1.0
        case Condition.SYNCING | Condition.REBUILDING | Condition.HELD if raid is not None and raid.total:
            # "Aa N/N idle" is a recovery that is about to begin.
            waits = raid.done == raid.total and LegHealth.OUT_OF_SYNC in raid.legs
            return 0.0 if waits else raid.done / raid.total
        case _:
            return None


def _drive_state(drive: Drive) -> str:
    return "set aside" if drive.online and drive.failing else drive.status.value.replace("_", " ")


def _drive_problem(drive: Drive, stalled: BlkrecovError | None) -> Problem | None:
    name, state = drive.name, _drive_state(drive)
    if drive.online and stalled is not None:
        return Problem("drive", name, "stalled", f"is stalled: {stalled.message}", stalled.remedy)
    if drive.online:
        if not drive.failing:
            return None
        remedy = f"blkrecov drive replace {name}; or trust it again: blkrecov drive trust {name}"
        return Problem("drive", name, state, f"is set aside: {drive.failing}", remedy)
    verb = {DriveStatus.FAILED: "has failed", DriveStatus.REMOVED: "is away"}.get(drive.status, f"is {state}")
    reason = f": {drive.reason}" if drive.reason else ""
    remedy = f"mend it and bring it back with: blkrecov drive reconnect {name}"
    return Problem("drive", name, state, f"{verb}{reason}", remedy)


def _lun_problem(overview: Overview, lun: Lun) -> Problem | None:
    document, observed = overview.document, overview.observed
    found = condition(document, observed, lun)
    if live := observed.holding(lun):
        # Said before all else: nothing that a user could see of the LUN comes back before that.
        what = "is suspended, and not by the array: all that is asked of it waits"
        return Problem("LUN", lun.name, "suspended", what, suspended(lun, live).remedy)
    if found is Condition.HEALTHY:
        return None
    status, health = state_of(document, observed, lun)
    state = (status if health is Health.UNKNOWN else health).value.replace("_", " ")
    what, remedy = _words(overview, lun, found)
    work = next((item for item in overview.work if lun.uuid in item.task.luns), None)
    if work is not None:
        task = work.task
        word = "paused" if task.paused else task.state.value.replace("_", " ")
        what = f"{what}; task {task.id} ({task.kind.value}) is {word}, {task.percent} %"
        remedy = f"blkrecov task resume {task.id}" if task.paused else ""
    return Problem("LUN", lun.name, state, what, remedy)


def _words(overview: Overview, lun: Lun, found: Condition) -> tuple[str, str]:
    """What is wrong with a LUN on which nothing is under way, and what to do about it."""
    document, observed = overview.document, overview.observed
    trouble = overview.trouble.get(lun.uuid)
    match found:
        case Condition.FAILED:
            return _failed(document, observed, lun)
        case Condition.OFFLINE:
            reason = f": {trouble.message}" if trouble else ""
            return f"is offline{reason}", trouble.remedy if trouble else "bring it up with: blkrecov refresh"
        case Condition.FILLING:
            return "is being restored", ""
        case Condition.INCOMPLETE:
            return f"is not whole: {lun.incomplete}", f"restore it: blkrecov resync SHADOW:{lun.name}"
        case Condition.DEGRADED:
            return f"has lost {_members(document, lun, observed.lost(document, lun))}", _recovery(
                document, observed, lun
            )
        case Condition.HELD:
            held = _members(document, lun, lun.rebuilding)
            return f"is without redundancy, the rebuild of {held} was stopped", f"blkrecov recover {lun.name}"
        case Condition.REBUILDING:
            return f"is being rebuilt ({_members(document, lun, lun.rebuilding)})", ""
        case Condition.SYNCING:
            return f"is being synchronised, {sync_ratio(overview, lun) or 0.0:.0%}", ""
        case Condition.SUSPECT:
            differs = f": {format_size(in_bytes(Sectors(lun.mismatches)))}" if lun.mismatches else " since a power cut"
            return f"has members that may disagree{differs}", f"blkrecov recover {lun.name}"
        case _:
            return _failing(document, observed, lun)


def _failed(document: Document, observed: Observed, lun: Lun) -> tuple[str, str]:
    if lun.shadow is not None and lun.shadow.lost:
        return f"is lost: {lun.shadow.lost}", f"blkrecov snapshot delete {lun.name}"
    if lun.differential and lun.shadow is not None and observed.survives(document, lun):
        return f"has failed with its origin, LUN {document.lun_of(lun.shadow.origin).name}", ""
    lost = observed.lost(document, lun) | lun.rebuilding
    away = [drive for index in sorted(lost) if not (drive := document.drive_of(lun.members[index].drive)).online]
    remedy = f"blkrecov drive reconnect {away[0].name}" if away else "restore it from a shadow copy or a backup"
    return (
        f"has failed: it has lost {_members(document, lun, lost)}, which {lun.layout.value} cannot do without",
        remedy,
    )


def _failing(document: Document, observed: Observed, lun: Lun) -> tuple[str, str]:
    if fills_up(observed, lun):
        usage = views.shadow_view(observed, lun)["store"]
        more = f"blkrecov snapshot extend {lun.name} --store {format_size(2 * usage['size']).replace(' ', '')}"
        return f"is nearly full: {format_size(usage['used'])} of {format_size(usage['size'])}", more
    weak = sorted(endangered(document, lun))
    drive = document.drive_of(lun.members[weak[0]].drive).name
    return f"depends on {_members(document, lun, frozenset(weak))}, set aside", f"blkrecov drive replace {drive}"


def _recovery(document: Document, observed: Observed, lun: Lun) -> str:
    command = f"blkrecov recover {lun.name}"
    try:
        recover.propose(document, observed, lun, None, (UUID(int=number) for number in count(1)))
    except (NotEnoughDrives, NotEnoughSpace) as error:
        return f"{error.remedy}; then: {command}"
    except AnotherCallInProgress:
        return ""
    return command


def _members(document: Document, lun: Lun, indexes: frozenset[int]) -> str:
    """What these members are on, for people."""
    drives = ", ".join(document.drive_of(lun.members[index].drive).name for index in sorted(indexes))
    return f"{_counted(len(indexes), 'member')} of {len(lun.members)} ({drives})"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
