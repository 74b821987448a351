"""Connections that nobody can hold for nothing, or fill without end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from imagen_jax.page.limits import HEAD_SECONDS, MAX_HEAD, MESSAGES, REQUEST_SECONDS

Receive = Callable[[], Awaitable[dict[str, Any]]]
"""Of ASGI: the next message of a connection."""


class BoundedHttp(HttpToolsProtocol):
    """HTTP of uvicorn, which itself waits for a request as long as it takes, and keeps any head."""

    _timer: asyncio.TimerHandle | None = None
    _head: int | None = 0
    """Bytes of the head that is coming; None between a head and the next request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the loop for a new connection."""
        super().connection_made(transport)
        self._within(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop at the end of a connection."""
        self._within(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by the loop for what has come."""
        super().data_received(data)
        if self._head is not None:  # all of it is of the head
            self._head += len(data)
            if self._head > MAX_HEAD:
                self.transport.close()

    def on_message_begin(self) -> None:
        """Called by the parser at the begin of a request."""
        super().on_message_begin()
        self._head = 0
        self._within(HEAD_SECONDS)

    def on_headers_complete(self) -> None:
        """Called by the parser behind the head of a request."""
        self._head = None
        self._within(REQUEST_SECONDS)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser at the end of a request, a handshake of a websocket included."""
        self._within(None)
        super().on_message_complete()

    def _within(self, seconds: float | None) -> None:
        """Closes the connection after some seconds, unless this is called again before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self.transport.close)


def paced(receive: Receive) -> Receive:
    """Return what receives messages no faster than MESSAGES: what comes faster waits in its socket.

    One tab that sends without end would keep all others waiting.
    """
    a_second, at_once = MESSAGES
    left, last = float(at_once), time.monotonic()

    async def receive_paced() -> dict[str, Any]:
        nonlocal left, last
        message = await receive()
        now = time.monotonic()
        left, last = min(at_once, left + (now - last) * a_second) - 1, now
        if left < 0:
            await asyncio.sleep(-left / a_second)
        return message

    return receive_paced
