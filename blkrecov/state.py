"""An array as it is known at one moment: a value that threads hand on, and that every question is answered from. Pure."""

from dataclasses import dataclass
from uuid import UUID

from blkrecov.views import Json


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
    auto_recover: bool | None = None
    scrub: str = "off"
    rate_min: int = 0
    rate_max: int = 0
    drives: tuple[Json, ...] = ()
    luns: tuple[Json, ...] = ()
    """With "trouble": why a LUN could not be brought up, or cannot be used."""
    tasks: tuple[Json, ...] = ()
    """With "phase", "rate_min" and "rate_max"."""

    @property
    def healthy(self) -> bool:
        return (
            self.running and not self.trouble and all(row["health"] == "healthy" for row in (*self.drives, *self.luns))
        )
