"""Waits for a file that grows, without looking: the kernel tells (inotify).

A directory is watched, so that the file may be made, moved away and made again. What happens between two waits is queued, so
begin to watch before you read, and nothing is missed.
"""

import select
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from inotify_simple import INotify, flags

from blkrecov.errors import AccessDenied

_CHANGES: Final = flags.MODIFY | flags.CREATE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE


class Watch:
    """Watches what in a directory has names that begin with that of a file."""

    def __init__(self, path: Path) -> None:
        """The directory is made if it is not there. Raises: AccessDenied."""
        self._name = path.name
        self._changes = INotify()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._changes.add_watch(path.parent, _CHANGES)
        except PermissionError as error:
            self._changes.close()
            raise AccessDenied(f"{path.parent} is root's") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._changes.close()

    def wait(self, output: int | None = None) -> None:
        """Until something has changed. Raises: BrokenPipeError when nobody reads any more what is written to `output`."""
        poll = select.poll()
        poll.register(self._changes, select.POLLIN)
        if output is not None:
            poll.register(output, 0)  # Of a pipe without readers the kernel tells unasked.
        while True:
            ready = dict(poll.poll())
            if self._changes.fileno() in ready:
                names = [event.name for event in self._changes.read(timeout=0)]
                # Without a name: there was more than the kernel keeps for us.
                if any(not name or name.startswith(self._name) for name in names):
                    return
            elif ready:
                raise BrokenPipeError
