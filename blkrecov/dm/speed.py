"""md's speed limits: /proc/sys/dev/raid/speed_limit_min and speed_limit_max.

They hold for every md and dm-raid array of the machine that has no rates of its own, and at once: a synchronisation that is
under way keeps to them (drivers/md/md.c, speed_min(), speed_max()). Rates in a raid table would be that LUN's alone, but changing
them means loading the table anew, and that makes a full copy of an incremental recovery (Linux 6.1 and 6.12). The directory is
there as soon as md-mod is.

The limits are the machine's, not ours. What they were is written down before they are changed, so that `restore` puts them back
also when the process that changed them was killed. A limit that somebody else has set meanwhile is theirs: it is what will be put
back. All of that lies in /run, and says in which boot it was written, for the kernel forgets limits with the rest.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from blkrecov.errors import ProviderFailure
from blkrecov.governor import Limits
from blkrecov.units import KIB, Bytes

SYSCTLS: Final = Path("/proc/sys/dev/raid")
STATE: Final = Path("/run/blkrecov")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MINIMUM: Final = "speed_limit_min"
_MAXIMUM: Final = "speed_limit_max"
_LARGEST: Final = 2**31 - 1  # Both are ints (drivers/md/md.c, raid_table[]).

_Knobs = dict[str, int]
"""KiB per second and member, by the sysctl's name."""


class _Record(msgspec.Struct, frozen=True):
    """`before` is what will be put back. `ours` are the values that a sysctl may have from us: the last, and the one before it
    in case that we died between writing this and writing there."""

    boot: str
    before: dict[str, int]
    ours: dict[str, list[int]]


class SpeedLimits:
    """The limits of this machine. Several processes may use them at a time; the last one to speak is heard."""

    def __init__(self, sysctls: Path = SYSCTLS, state: Path = STATE) -> None:
        self._sysctls = sysctls
        self._record = state / "speed-limits.json"
        self._lock = state / "speed-limits.lock"

    def read(self) -> Limits | None:
        """The limits as they are; None while md is not loaded, and nothing can be synchronised."""
        return _limits(self._knobs())

    def usual(self) -> Limits | None:
        """The limits that the machine has without us: what `restore` would leave."""
        knobs, record = self._knobs(), self._recorded()
        if knobs is None:
            return None
        return _limits({name: _before(name, value, record) for name, value in knobs.items()})

    def apply(self, limits: Limits) -> None:
        """Set the limits. Nothing is done while md is not loaded, nor when they are so already.

        Raises: ProviderFailure when the kernel does not let us, as in a container.
        """
        wanted = {_MINIMUM: _kib(limits.minimum), _MAXIMUM: _kib(limits.maximum)}
        with self._locked():
            knobs, old = self._knobs(), self._recorded()
            if knobs is None:
                return
            ours = {
                name: sorted({wanted[name], value} if _is_ours(name, value, old) else {wanted[name]})
                for name, value in knobs.items()
            }
            before = {name: _before(name, value, old) for name, value in knobs.items()}
            record = _Record(_boot_id(), before, ours)
            if wanted != knobs or old is None:
                self._write_down(record)
            self._set({name: value for name, value in wanted.items() if knobs[name] != value})

    def restore(self) -> None:
        """Put back what was there before the first `apply`, whichever process did that. Harmless when there was none.

        Raises: ProviderFailure; then it is remembered still.
        """
        with self._locked():
            knobs, record = self._knobs(), self._recorded()
            if knobs is not None and record is not None:
                self._set({name: record.before[name] for name, value in knobs.items() if _is_ours(name, value, record)})
            self._record.unlink(missing_ok=True)

    def _knobs(self) -> _Knobs | None:
        try:
            return {name: int((self._sysctls / name).read_text()) for name in (_MINIMUM, _MAXIMUM)}
        except FileNotFoundError:
            return None

    def _set(self, knobs: _Knobs) -> None:
        for name, value in knobs.items():
            path = self._sysctls / name
            try:
                path.write_text(f"{value}\n")
            except OSError as error:
                raise ProviderFailure(
                    f"{path} cannot be set to {value}: {error.strerror}",
                    remedy="run it as root, where /proc/sys may be written to",
                ) from error

    def _recorded(self) -> _Record | None:
        """What was written down in this boot. Anything else is not believed."""
        try:
            record = msgspec.json.decode(self._record.read_bytes(), type=_Record)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        whole = record.before.keys() == record.ours.keys() == {_MINIMUM, _MAXIMUM}
        return record if whole and record.boot == _boot_id() else None

    def _write_down(self, record: _Record) -> None:
        """Whole or not at all."""
        fresh = self._record.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(record))
        fresh.replace(self._record)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let go by the kernel when the process dies."""
        self._lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _is_ours(name: str, value: int, record: _Record | None) -> bool:
    return record is not None and value in record.ours[name]


def _before(name: str, value: int, record: _Record | None) -> int:
    """What a sysctl that has this value was before we changed it."""
    return record.before[name] if record is not None and value in record.ours[name] else value


def _limits(knobs: _Knobs | None) -> Limits | None:
    if knobs is None:
        return None
    return Limits(minimum=Bytes(knobs[_MINIMUM] * KIB), maximum=Bytes(knobs[_MAXIMUM] * KIB))


def _kib(rate: Bytes) -> int:
    return min(max(rate // KIB, 1), _LARGEST)


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
