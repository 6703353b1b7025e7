"""Whether a device would answer at all, told before it is asked: who waits for it in the kernel cannot be ended.

    suspended   it, or something that it or its file stands on, is a device-mapper device that somebody has suspended
    hung        requests are under way on it, or below, and none has come back for a while

Asks sysfs, and no device. One that hangs with nothing under way looks like any other: whoever asks it first is held, alone. So
does one on which the kernel counts nothing: dm-delay's requests are under way from when they are let through (drivers/md/dm.c,
accounts_remapped_io), and an empty flush never is (block/blk-flush.c).
"""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from blkrecov import blockdev
from blkrecov.blockdev import text
from blkrecov.errors import BlkrecovError, Code

# A disk that spins up takes longer; it is not asked then, and is no worse for it.
PATIENCE_S: Final = 8.0

_FIRST_S: Final = 0.001
_PAUSE_S: Final = 0.25
# Of /sys/block/*/stat: reads, writes, discards and flushes that have ended (Documentation/block/stat.rst).
_ENDED: Final = (0, 4, 11, 15)

# What was waited for in vain is not waited for again: by device, what had ended then.
_hung: Final[dict[str, tuple[str, ...]]] = {}


class Stalled(BlkrecovError):
    """Whoever asked this device would wait, and could not be ended."""

    code = Code.VDS_E_TIMEOUT


def refuse_stalled(path: str) -> None:
    """Of a block device, or a file that lies on one. What cannot be looked at is let pass: it says so itself when it is opened.

    Raises: Stalled, naming what holds it up.
    """
    devices = _below(path)
    if suspended := _suspended(path, devices):
        raise suspended
    for device in devices:
        if hangs(device):
            raise Stalled(
                f"{path} does not answer: no request to {device.name} has come back for {PATIENCE_S:g} s",
                remedy="see to what it lies on (journalctl -k); what is asked of it can be neither taken back nor ended",
            )


def below_is_suspended(path: str) -> Stalled | None:
    """What there is to say of a path at or below which a device is suspended. Waits for nothing."""
    return _suspended(path, _below(path))


def hangs(device: Path, ended: threading.Event | None = None) -> bool:
    """Whether there are requests under way on a device in sysfs, and none of them ends for as long as we have patience.

    `ended` says that nobody wants to know any more.
    """
    if not _is_at_work(device):
        return False
    before, pause_s = _ended(device), _FIRST_S
    deadline = time.monotonic() + (0.0 if _hung.get(device.name) == before else PATIENCE_S)
    while _is_at_work(device):
        if _ended(device) != before:
            break
        if time.monotonic() >= deadline:
            _hung[device.name] = before
            return True
        if ended is None:
            time.sleep(pause_s)
        elif ended.wait(pause_s):
            break
        pause_s = min(2 * pause_s, _PAUSE_S)
    return False


def _suspended(path: str, devices: Iterable[Path]) -> Stalled | None:
    for device in devices:
        if device.name.startswith("dm-") and text(device / "dm/suspended") == "1":
            name = text(device / "dm/name")
            return Stalled(
                f"{path} does not answer: {name} is suspended", remedy=f"let it go on with: dmsetup resume {name}"
            )
    return None


def _below(path: str) -> tuple[Path, ...]:
    """The block device that a path is or lies on, and all that this stands on."""
    try:
        status = Path(path).stat()
    except OSError:
        return ()
    return tuple(blockdev.below(status.st_rdev or status.st_dev, _file_system))


def _file_system(device: Path) -> Iterator[int]:
    """Where the file of a loop device lies."""
    if device.name.startswith("loop") and (file := text(device / "loop/backing_file")):
        with suppress(OSError):
            yield Path(file).stat().st_dev


def _is_at_work(device: Path) -> bool:
    return any(word != "0" for word in text(device / "inflight").split())


def _ended(device: Path) -> tuple[str, ...]:
    words = text(device / "stat").split()
    return tuple(words[index] for index in _ENDED if index < len(words))
