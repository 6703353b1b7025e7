"""The kernel's log, read from one moment on.

Device-mapper answers EINVAL and says why only in the log. A LogMark stands at the log's end when it is made; lines() gives what
device-mapper and md have logged since. The log belongs to everybody: lines that another thread's call caused at the same time
are among ours, which is why they are quoted to people and never matched by programs.
"""

import os
import re
from types import TracebackType
from typing import Final, Self

_RECORD: Final = 8192  # Larger than any record; a smaller buffer gets EINVAL. kernel/printk/printk.c, devkmsg_read()
_OURS: Final = re.compile(r"(device-mapper|mdX?|md/[\w-]+|raid\d*|dm-\d+):")


def parse_record(record: str) -> str | None:
    """The message of one record of /dev/kmsg when device-mapper or md wrote it, else None.

    Shape:   6,106,2580000,-[,...];text, then lines of " KEY=value" about the device, which are ignored.
    Kernel:  Documentation/ABI/testing/dev-kmsg
    """
    message = record.partition(";")[2].partition("\n")[0]
    # A line break inside a message is written as \x0a; to people it is a blank.
    return message.replace(r"\x0a", " ") if _OURS.match(message) else None


class LogMark:
    """A place in the log. Where the log cannot be read, as in some containers, it has no lines."""

    def __init__(self) -> None:
        self._fd: int | None = None
        try:
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def lines(self) -> tuple[str, ...]:
        """What device-mapper and md have logged since the mark, or since the last call."""
        found = []
        while self._fd is not None:
            try:
                record = os.read(self._fd, _RECORD)
            except (
                BrokenPipeError
            ):  # Overwritten before we read it; the next read goes on with the oldest that is left.
                continue
            except OSError:  # EAGAIN at the end.
                break
            message = parse_record(record.decode(errors="replace"))
            if message is not None:
                found.append(message)
        return tuple(found)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
