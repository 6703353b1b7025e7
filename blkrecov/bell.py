"""A bell beside an array's state: who changes the array rings it, and the monitor, if there is one, wakes.

A datagram socket: ringing waits for nobody, and costs nothing where nobody listens.
"""

import errno
import socket
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from blkrecov.errors import DeviceInUse

_KIND: Final = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK


def ring(path: Path) -> bool:
    """Whether somebody listens."""
    with closing(socket.socket(socket.AF_UNIX, _KIND)) as sender:
        try:
            sender.sendto(b"\n", str(path))
        except BlockingIOError:
            return True  # It has not come to listen to the last ones.
        except OSError:
            return False
    return True


class Bell:
    """The listener's end."""

    def __init__(self, path: Path) -> None:
        """Raises: DeviceInUse where somebody listens already."""
        if ring(path):
            raise DeviceInUse(f"the array has a monitor already: it listens on {path}", remedy="end that one first")
        path.unlink(missing_ok=True)  # Whoever listened there was killed.
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, _KIND)
        try:
            self._socket.bind(str(path))
        except OSError as error:
            self._socket.close()
            if error.errno == errno.EADDRINUSE:
                raise DeviceInUse(f"another monitor has just begun to listen on {path}") from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        self._socket.close()

    def fileno(self) -> int:
        """Readable since it was rung, until hush()."""
        return self._socket.fileno()

    def hush(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(64)
