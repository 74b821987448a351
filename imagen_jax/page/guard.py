"""Which requests are answered at all."""

from __future__ import annotations

import ipaddress
from typing import Any

from imagen_jax.page.limits import MAX_UPLOAD

MAX_BODY = MAX_UPLOAD + 2**16
"""Bytes of a request: an upload and what a form puts around it."""


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a host of this name or address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware in front of the page.

    A web site that is open in the same browser can send requests to a server on loopback, under a
    name of its own that it points there (DNS rebinding) or as a foreign origin: both are refused,
    and so is a body that is larger than an upload may be.
    """

    def __init__(self, app: Any, *, only_loopback: bool):
        """Args:
        app: what is guarded.
        only_loopback: refuse requests to a host that is not of loopback by its name.
        """
        self._app = app
        self._only_loopback = only_loopback

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answers, or hands on, a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
        else:
            status, reason = refusal
            headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": reason.encode()})

    def _refusal(self, scope: dict[str, Any]) -> tuple[int, str] | None:
        headers = {name.decode("latin-1"): x.decode("latin-1") for name, x in scope["headers"]}
        host = headers.get("host", "")
        if self._only_loopback and not is_loopback(host.rsplit(":", 1)[0]):
            return 421, f"this page is for its own machine, not for {host}"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, f"requests from {origin} are not answered"
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            length = headers.get("content-length", "")
            if not length.isdigit():
                return 411, "a request with a body must say how long it is"
            if int(length) > MAX_BODY:
                return 413, f"{length} bytes are too many: an upload may have {MAX_UPLOAD}"
        return None
