"""Guard that decides which requests are answered."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.page.connections import paced
from imagen_jax.page.limits import MAX_UPLOAD

HEADERS = (
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""Of every answer: no other site shows the page in a frame, where a click could be stolen, or puts
anything of it into a page of its own."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """True if only this machine reaches a host of this name or address."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def own_names(host: str, allowed: Iterable[str] = ()) -> set[str]:
    """Return the names under which the page is asked for where it is open to a network.

    Args:
      host: name or address that it listens on.
      allowed: further names that people type.

    Raises:
      UserError: an allowed name is none.
    """
    for name in allowed:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"--allow-host is {name!r}; it must be a name alone, without a port, such as "
                "lab.example"
            )
    names = ["localhost", host, socket.gethostname(), socket.getfqdn(), *allowed]
    return {name.lower() for name in names if name}


class Guard:
    """ASGI middleware in front of the page.

    A web site that is open in the same browser can send requests to this server: under a name of
    its own that it points here (DNS rebinding), as a foreign origin, or by an image or a frame in
    its page. All of these are refused, and so are a body that is larger than an upload may be, and
    new tabs where too many are open.
    """

    def __init__(self, app: Any, *, names: set[str] | None, full: Callable[[], bool]):
        """Args:
        app: the application behind the guard.
        names: in lower case, that are answered beside addresses; None on loopback, where only
          loopback is.
        full: True if no further tab can be opened.
        """
        self._app = app
        self._names = names
        self._full = full

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answers, or hands on, a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            is_socket = scope["type"] == "websocket"
            await self._app(scope, paced(receive) if is_socket else receive, send_guarded)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
        else:
            status, reason = refusal
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            start = {"type": "http.response.start", "status": status, "headers": headers}
            await send_guarded(start)
            await send({"type": "http.response.body", "body": reason.encode()})

    def _refusal(self, scope: dict[str, Any]) -> tuple[int, str] | None:
        headers = {name.decode("latin-1"): x.decode("latin-1") for name, x in scope["headers"]}
        host = headers.get("host", "")
        if not self._answers_to(host):
            return 421, f"this page does not answer to {host!r}; see imagen demo --allow-host"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, f"requests from {origin} are not answered"
        site, kind = headers.get("sec-fetch-site"), headers.get("sec-fetch-dest")
        # A link to the page may stand anywhere; what it loads may come from the page alone.
        followed = headers.get("sec-fetch-mode") == "navigate" and kind in (None, "document")
        if site in ("cross-site", "same-site") and not followed:
            return 403, "requests of other sites are not answered"
        if scope["type"] != "http":
            return None
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            if scope["path"] == "/" and self._full():
                return 503, "too many tabs are open; close one, or try again in a minute"
            return None
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            return 411, "a request with a body must say how long it is"
        if int(length) > MAX_UPLOAD:
            return 413, f"{length} bytes are too many: an upload may have {MAX_UPLOAD}"
        return None

    def _answers_to(self, host: str) -> bool:
        """True if a Host header names this machine.

        Names of other sites may point here, addresses cannot.
        """
        name = host if host.endswith("]") else re.sub(r":\d*$", "", host)
        if self._names is None:
            return is_loopback(name)
        return _address(name) is not None or name.lower().rstrip(".") in self._names


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host[1:-1] if host.startswith("[") else host)
    except ValueError:
        return None
