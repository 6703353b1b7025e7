"""What a service tells systemd: that it is ready, what it is at, and that it is alive (sd_notify(3), sd_watchdog_enabled(3))."""

import logging
import os
import socket
from contextlib import closing
from typing import Final

log = logging.getLogger(__name__)

_MICROSECONDS: Final = 1_000_000


def notify(**words: str) -> None:
    """Tell words such as READY="1", STATUS="..."; nothing where nobody listens. What cannot be told stops nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # A line break in a name that somebody gave to a file would begin another word.
    text = "\n".join(f"{key}={' '.join(value.split())}" for key, value in words.items())
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        with closing(socket.socket(socket.AF_UNIX, kind)) as sender:
            sender.sendto(text.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
    except OSError as error:
        log.info("%s cannot be told %s: %s", address, text, error)


def watchdog_s() -> float | None:
    """Within how many seconds this process has to say WATCHDOG="1" each time; None where that is not asked of it."""
    period = os.environ.get("WATCHDOG_USEC", "")
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(period) / _MICROSECONDS if ours and period.isdigit() and int(period) else None
