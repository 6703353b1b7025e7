"""An array as it is known at one moment: a value that threads hand on, and that every question is answered from. Pure."""

import dataclasses
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from blkrecov.model import TaskState
from blkrecov.views import Json

ENDED: Final = frozenset(state.value for state in TaskState if state.ended)
"""The states of tasks that have ended, as rows have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayState:
    """The rows are the JSON of blkrecov.views, sizes in bytes; nobody changes them."""

    uuid: UUID
    name: str
    sequence: int = 0
    """The version of the configuration."""
    running: bool = False
    """False while the array is stopped, or was not opened yet."""
    trouble: str = ""
    """Why it could not be opened, or cannot be looked after. All else is what was known before."""
    remedy: str = ""
    """What to do about that."""
    summary: str = ""
    """How it is, on one line."""
    problems: tuple[Json, ...] = ()
    """What is not well, as blkrecov.overview.report() says it."""
    auto_recover: bool | None = None
    scrub: str = "off"
    rate_min: int = 0
    rate_max: int = 0
    drives: tuple[Json, ...] = ()
    luns: tuple[Json, ...] = ()
    """With "trouble": why a LUN could not be brought up, or cannot be used."""
    tasks: tuple[Json, ...] = ()
    """With "phase", "done" and "total" of it, "rate_min" and "rate_max"."""

    @property
    def healthy(self) -> bool:
        return self.running and not self.trouble and not self.problems


def head(state: ArrayState) -> Json:
    """What an array is by itself, as blkrecov.rows.head() says it."""
    keys = ("name", "uuid", "sequence", "auto_recover", "scrub", "rate_min", "rate_max")
    return {key: str(state.uuid) if key == "uuid" else getattr(state, key) for key in keys}


def status(state: ArrayState) -> Json:
    """What `blkrecov status --json` says of an array: with its tasks that have not ended."""
    if not state.trouble and not state.running:
        problem = {
            "kind": "array",
            "name": state.name,
            "state": "stopped",
            "what": "is stopped",
            "remedy": f"blkrecov refresh --array {state.name}",
        }
        state = dataclasses.replace(state, problems=(problem, *state.problems))
    elif not state.running:
        problem = {
            "kind": "array",
            "name": state.name,
            "state": "unknown",
            "what": f"cannot be opened: {state.trouble}",
            "remedy": state.remedy,
        }
        state = dataclasses.replace(
            state, summary=f"array {state.name} cannot be opened", problems=(problem, *state.problems)
        )
    return {
        **head(state),
        "drives": list(state.drives),
        "luns": list(state.luns),
        "healthy": state.healthy,
        "summary": state.summary,
        "problems": list(state.problems),
        "tasks": [row for row in state.tasks if row["state"] not in ENDED],
    }
