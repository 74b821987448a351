"""Serves the page."""

from __future__ import annotations

import socket
import webbrowser

import uvicorn
from fastapi import FastAPI
from nicegui import app as pages
from nicegui import ui

from imagen_jax.cascade import Cascade
from imagen_jax.errors import UserError
from imagen_jax.page.guard import Guard, is_loopback
from imagen_jax.page.jobs import Worker
from imagen_jax.page.layout import build

KEPT_SECONDS = 3600.0
"""How long the images of a closed tab are kept."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address.

    Args:
      host: address, or a name that has one.
      port: 0 is any that is free.

    Raises:
      UserError: there is no such address, or the port is taken; says which.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    return listening


def serve(
    cascade: Cascade, listening: socket.socket, host: str, *, open_browser: bool = False
) -> None:
    """Serves the page until the process is interrupted.

    Args:
      cascade: what makes the images.
      listening: what `listen` returned.
      host: that was given to it; unless it is of loopback, requests by any name are answered.
      open_browser: also open the page.

    Raises:
      KeyboardInterrupt: always, at the end.
    """
    only_loopback = is_loopback(host)
    worker = Worker(cascade)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    ui.run_with(
        app,
        root=lambda: build(worker),
        title="imagen",
        favicon=FAVICON,
        show_welcome_message=False,
    )
    pages.storage.max_tab_storage_age = KEPT_SECONDS
    app.add_middleware(Guard, only_loopback=only_loopback)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    print(f"imagen: the page is at {address} (Ctrl-C ends it)", flush=True)
    if not only_loopback:
        print(
            "imagen: everyone who can reach this machine can use it: there is no password",
            flush=True,
        )
    if open_browser:
        webbrowser.open(address)
    config = uvicorn.Config(
        app,
        log_level="warning",
        ws="websockets-sansio",
        access_log=False,
        timeout_graceful_shutdown=1,  # open tabs keep a connection
    )
    uvicorn.Server(config).run(sockets=[listening])
    raise KeyboardInterrupt  # it ends by nothing else, but does not always raise it itself


FAVICON = """
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="7" fill="#4338ca"/>
<rect x="6" y="6" width="9" height="9" rx="1" fill="#a5b4fc"/>
<rect x="17" y="6" width="9" height="9" rx="1" fill="#f9a8d4"/>
<rect x="6" y="17" width="9" height="9" rx="1" fill="#fde68a"/>
<rect x="17" y="17" width="9" height="9" rx="1" fill="#86efac"/>
</svg>""".strip()
