"""How busy a block device is, from what the kernel has counted at two moments. Pure.

Counters begin when a device is made. One that was made anew between the two moments has counted less than before, and says
nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What went to and from a device, in requests and in bytes, and for how long it was busy with it."""

    reads: int
    read: int
    writes: int
    written: int
    busy_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Bytes per second, and the part of the time (0 to 1) in which there was I/O."""

    read: float
    written: float
    busy: float


def rates(before: Counters, now: Counters, seconds: float) -> Rates | None:
    """None where it cannot be told."""
    if seconds <= 0 or now.read < before.read or now.written < before.written:
        return None
    return Rates(
        read=(now.read - before.read) / seconds,
        written=(now.written - before.written) / seconds,
        # The kernel counts in steps of its timer, and may come out above the time that has passed.
        busy=min(max((now.busy_ms - before.busy_ms) / (1000 * seconds), 0.0), 1.0),
    )
