"""A bell beside an array's state: who changes the array rings it, and the monitor, if there is one, wakes.

A datagram socket: ringing waits for nobody, and costs nothing where nobody listens. Where the state's file system has become
read-only, it hangs in /run.
"""

import errno
import socket
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from blkrecov.errors import DeviceInUse

_VOLATILE: Final = Path("/run/blkrecov")
_KIND: Final = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK


def ring(path: Path) -> bool:
    """Whether somebody listens."""
    return any(_ring(place) for place in (path, _VOLATILE / path.name))


def _ring(path: Path) -> bool:
    try:
        with closing(socket.socket(socket.AF_UNIX, _KIND)) as sender:
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
        self._socket = socket.socket(socket.AF_UNIX, _KIND)
        try:
            try:
                self._path = self._bound(path)
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                _VOLATILE.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._path = self._bound(_VOLATILE / path.name)
        except OSError as error:
            self._socket.close()
            if error.errno == errno.EADDRINUSE:
                raise DeviceInUse(f"another monitor has just begun to listen on {path}") from error
            raise

    def _bound(self, path: Path) -> Path:
        path.unlink(missing_ok=True)  # Whoever listened there was killed.
        self._socket.bind(str(path))
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # Read-only by now.
            self._path.unlink()
        self._socket.close()

    def fileno(self) -> int:
        """Readable since it was rung, until hush()."""
        return self._socket.fileno()

    def hush(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(64)
