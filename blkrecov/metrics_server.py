"""Gives the metrics to whoever asks over HTTP, from an asyncio loop: on the machine's own address, or on a Unix socket.

It answers GET /metrics and nothing else, one request to a connection. There is no password: who may connect may read. So it
listens on an address of the machine's own (settings.metrics_place()), or on a socket for whom its directory lets in; a proxy does
the rest.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Final

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from blkrecov.settings import Address

log = logging.getLogger(__name__)

# Who connects and says nothing holds a connection no longer than this.
PATIENCE_S: Final = 10.0
_MOST: Final = 16 * 1024
# Scrapers are a few. Connections without number would take the descriptors that the arrays need.
CONNECTIONS: Final = 32


async def serve(at: Address | Path, text: Callable[[], Awaitable[str]]) -> asyncio.Server:
    """Listens on a port (0: any that is free) or a Unix socket, until the server is closed. `text` gives the exposition.

    The socket's directory is made, for root alone, where it is not there. A socket that is there is replaced. A connection
    beside CONNECTIONS others is closed at once.

    Raises: OSError where it cannot listen there.
    """

    open_now = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        if open_now >= CONNECTIONS:
            writer.close()
            return
        open_now += 1
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(PATIENCE_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(await _answered(head, text))
                    await writer.drain()
        finally:
            open_now -= 1
            writer.close()

    if isinstance(at, Path):
        at.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        server = await asyncio.start_unix_server(answer, at, limit=_MOST)
        at.chmod(0o666)
        return server
    return await asyncio.start_server(answer, at.host, at.port, limit=_MOST)


async def _answered(head: bytes, text: Callable[[], Awaitable[str]]) -> bytes:
    method, _, rest = head.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if path != b"/metrics":
        return _response(HTTPStatus.NOT_FOUND, "the metrics are at /metrics\n")
    if method not in (b"GET", b"HEAD"):
        return _response(HTTPStatus.METHOD_NOT_ALLOWED, "GET it\n")
    try:
        body = await text()
    except Exception:
        # A scrape that fails is told as one; the loop has other work to do.
        log.exception("the metrics could not be taken")
        return _response(HTTPStatus.INTERNAL_SERVER_ERROR, "the metrics could not be taken\n")
    return _response(HTTPStatus.OK, body, content=method == b"GET")


def _response(status: HTTPStatus, body: str, *, content: bool = True) -> bytes:
    data = body.encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {CONTENT_TYPE_PLAIN_0_0_4}\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (data if content else b"")
