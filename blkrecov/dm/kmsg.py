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
# "I/O error, dev sda, sector 8 op 0x1:(WRITE) ...", "critical space allocation error, dev loop3, sector ...": block/blk-mq.c,
# blk_print_req_error(). Few of many are printed.
_ERROR: Final = re.compile(r".* error, dev (\S+), sector \d+")


def parse_record(record: str) -> str | None:
    """The message of one record of /dev/kmsg when device-mapper or md wrote it, else None."""
    message = _message(record)
    return message if _OURS.match(message) else None


def parse_error(record: str) -> str | None:
    """The name of the device that a record reports a failed request of, else None. The kernel writes cciss!c0d0 so."""
    found = _ERROR.match(_message(record))
    return found[1] if found else None


def _message(record: str) -> str:
    """
    Shape:   6,106,2580000,-[,...];text, then lines of " KEY=value" about the device, which are ignored.
    Kernel:  Documentation/ABI/testing/dev-kmsg
    """
    # A line break inside a message is written as \x0a; to people it is a blank.
    return record.partition(";")[2].partition("\n")[0].replace(r"\x0a", " ")


class LogMark:
    """A place in the log. Where the log cannot be read, as in some containers, it has no lines."""

    def __init__(self) -> None:
        self._fd: int | None = None
        try:
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int | None:
        """Readable when there is more, for poll(2); None where the log cannot be read."""
        return self._fd

    def lines(self) -> tuple[str, ...]:
        """What device-mapper and md have logged since the mark, or since the last call."""
        return tuple(message for record in self._records() if (message := parse_record(record)) is not None)

    def errors(self) -> frozenset[str]:
        """The names of the devices that requests have failed on since the mark, or since the last call."""
        return frozenset(name for record in self._records() if (name := parse_error(record)) is not None)

    def _records(self) -> list[str]:
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
            found.append(record.decode(errors="replace"))
        return found

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
