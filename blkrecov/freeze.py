"""File systems frozen for the moment of a shadow copy: what they hold is on the LUN, and nothing is under way.

A shadow copy is read-only, so a journal in it can never be replayed: one that was taken of a running file system could not be
mounted. A frozen file system stays so when the process that froze it dies. Therefore what is about to be frozen is written
down first, in a directory that is empty after a boot, and whoever works on the arrays next thaws it. The record is whole at any
moment: what it had forgotten would stay frozen for ever.

Kernel: fs/ioctl.c, FIFREEZE and FITHAW; fs/super.c, freeze_super().
"""

import errno
import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from blkrecov import observer
from blkrecov.blockdev import printable
from blkrecov.errors import ProviderFailure
from blkrecov.settings import write_whole

log = logging.getLogger(__name__)

_FIFREEZE: Final = 0xC0045877  # linux/fs.h, _IOWR('X', 119, int)
_FITHAW: Final = 0xC0045878
# It is not frozen, is not there any more, or is none that could be.
_NOT_FROZEN: Final = (errno.EINVAL, errno.ENOENT, errno.ENOTDIR, errno.ENOTTY, errno.EOPNOTSUPP)


class Freezer:
    """Freezes and thaws. `record` is the file that tells of what is frozen, in a directory that does not outlive a boot."""

    def __init__(self, record: Path) -> None:
        self._record = record

    def freeze(self, devices: tuple[str, ...]) -> None:
        """All that is mounted from these block devices, and their partitions. What somebody else has frozen stays theirs.

        Raises: ProviderFailure, with nothing frozen, where a file system refuses.
        """
        points = sorted({path for device in devices for path, _ in observer.mounts(device)})
        frozen = list(self._read())
        for point in points:
            try:
                self._write((*frozen, point))
                _ask(point, _FIFREEZE)
            except OSError as error:
                # EOPNOTSUPP: a file system that cannot be frozen. EBUSY: it is frozen, or mounted a second time here.
                if error.errno in (errno.EOPNOTSUPP, errno.EBUSY):
                    self._write(tuple(frozen))
                    continue
                self.thaw()
                shown = printable(point)
                raise ProviderFailure(f"what is mounted on {shown} cannot be frozen: {error.strerror}") from error
            frozen.append(point)

    def thaw(self) -> None:
        """What was frozen here, or by a process that died meanwhile. What could not be thawed is tried again the next time."""
        left = []
        for point in self._read():
            try:
                _ask(point, _FITHAW)
            except OSError as error:
                if error.errno not in _NOT_FROZEN:
                    log.warning("what is mounted on %s could not be thawed: %s", point, error.strerror)
                    left.append(point)
        if left:
            self._write(tuple(left))
            return
        with suppress(FileNotFoundError):
            self._record.unlink()

    def _read(self) -> tuple[str, ...]:
        with suppress(FileNotFoundError):
            return tuple(os.fsdecode(line) for line in self._record.read_bytes().split(b"\0") if line)
        return ()

    def _write(self, points: tuple[str, ...]) -> None:
        self._record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(self._record, b"\0".join(os.fsencode(point) for point in points))


def _ask(point: str, request: int) -> None:
    descriptor = os.open(point, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, request, 0)
    finally:
        os.close(descriptor)
