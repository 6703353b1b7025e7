"""systemd's journal: what this process logs goes there as it is, with its priority and, for events, their ids and facts.

Everything is told once. An event is given to the journal by the process that makes it, daemon or command: then it is there
whether or not a daemon runs, nobody has to remember how much was told, and the journal's own fields say who it was. Whatever else
is logged goes to stderr; where that leads to the journal, natively instead.

Source: systemd.io/JOURNAL_NATIVE_PROTOCOL; systemd.exec(5), $JOURNAL_STREAM; systemd.journal-fields(7).
"""

import logging
import os
import socket
import struct
import sys
from contextlib import closing, suppress
from typing import Final

SOCKET: Final = "/run/systemd/journal/socket"
EVENTS: Final = "blkrecov.events"
# A journal that is busy is waited for that long. One that hangs, on a LUN of ours perhaps, costs its entry: the event log has it.
PATIENCE_S: Final = 1.0
# A datagram takes 200 KiB in all (net.core.wmem_default). Longer entries would want a file in memory, and nobody writes such.
_LONGEST: Final = 16 * 1024
# Python's levels as syslog's.
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG: Final = 7
_FIELDS: Final = ("message_id", "blkrecov_")


def datagram(fields: dict[str, object]) -> bytes:
    """An entry in the native protocol: NAME=value lines; a value of several lines has its length before it, as 64 bits."""
    found = b""
    for name, value in fields.items():
        data = str(value).encode(errors="backslashreplace")[:_LONGEST]
        between = b"\n" + struct.pack("<Q", len(data)) if b"\n" in data else b"="
        found += name.encode() + between + data + b"\n"
    return found


class JournalHandler(logging.Handler):
    """Gives records to the journal, and the facts that they have beside their message. What cannot be told stops nothing."""

    def __init__(self, identifier: str, path: str) -> None:
        super().__init__()
        self._identifier = identifier
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {
            "MESSAGE": self.format(record),
            "PRIORITY": next((number for level, number in _PRIORITIES if record.levelno >= level), _DEBUG),
            "SYSLOG_IDENTIFIER": self._identifier,
        }
        fields |= {name.upper(): value for name, value in vars(record).items() if name.startswith(_FIELDS)}
        # Where there is no descriptor left for a socket either.
        with (
            suppress(OSError),
            closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)) as sender,
        ):
            sender.settimeout(PATIENCE_S)
            sender.sendto(datagram(fields), self._path)


def is_stderr() -> bool:
    """Whether what is written to stderr is read by the journal."""
    with suppress(OSError):
        found = os.fstat(sys.stderr.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False


def log_as(identifier: str, level: int, path: str = SOCKET) -> None:
    """Where the logs of this process go from here on: events to the journal, all else from a level on to it or to stderr."""
    native = JournalHandler(identifier, path)
    logging.basicConfig(
        level=level, format="%(message)s", handlers=[native if is_stderr() else logging.StreamHandler()]
    )
    events = logging.getLogger(EVENTS)
    events.setLevel(logging.DEBUG)
    events.propagate = False
    events.addHandler(native)


def show_events() -> None:
    """Events that people read are shown on stderr as well, for whoever has started this by hand."""
    if not is_stderr():
        shown = logging.StreamHandler()
        shown.setLevel(logging.INFO)
        logging.getLogger(EVENTS).addHandler(shown)
