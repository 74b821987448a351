"""Serves the page."""

from __future__ import annotations

import functools
import gc
import socket
import webbrowser
from collections.abc import Sequence

import jax
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from nicegui import Client, ui
from nicegui import app as pages
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route

from imagen_jax.errors import UserError
from imagen_jax.page.connections import BoundedHttp
from imagen_jax.page.form import sizes
from imagen_jax.page.guard import Guard, is_loopback, own_names
from imagen_jax.page.jobs import Worker
from imagen_jax.page.layout import build
from imagen_jax.page.limits import MAX_CONNECTIONS, MAX_TABS
from imagen_jax.page.process import Sampler
from imagen_jax.page.uploads import PATH, Uploads

KEPT_SECONDS = 120.0
"""Seconds that the images of a closed tab are kept."""
SILENT_SECONDS = 20.0
"""Of these, NiceGUI takes four tenths for an answer to a ping of it, and asks twice as seldom: a
browser that is busy, or a machine that is, keeps its connection."""
GONE_SECONDS = 3.0
"""Seconds in which a page whose connection has ended may come back."""


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
    sampler: Sampler,
    listening: socket.socket,
    host: str,
    *,
    allowed: Sequence[str] = (),
    open_browser: bool = False,
) -> None:
    """Serves the page until the process is interrupted.

    Args:
      sampler: the process that samples; it is ended, too.
      listening: the socket from `listen`.
      host: the host given to it; unless it is of loopback, requests by any address of this machine
        and by its own names are answered.
      allowed: further names by which requests are answered then.
      open_browser: also open the page.

    Raises:
      KeyboardInterrupt: always, at the end.
      UserError: an allowed name is none, or the page is on loopback, where none is answered.
      Exception: the process could not load its cascade.
    """
    only_loopback = is_loopback(host)
    if allowed and only_loopback:
        raise UserError("--allow-host is for a page that --host opens to a network")
    names = None if only_loopback else own_names(host, allowed)
    sampler.wait()
    jax.config.update("jax_platforms", "cpu")  # devices are the sampler's: nothing is computed here
    worker, uploads = Worker(sampler), Uploads(sizes(sampler.cascade))

    @ui.page("/", reconnect_timeout=GONE_SECONDS)
    async def page() -> None:
        await build(worker, uploads)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    ui.run_with(
        app,
        title="imagen",
        favicon=FAVICON,
        show_welcome_message=False,
        gzip_middleware_factory=functools.partial(GZipMiddleware, compresslevel=1),
        reconnect_timeout=SILENT_SECONDS,
        binding_refresh_interval=None,  # nothing is bound that would have to be looked at
        message_history_length=100,  # sent again; a page that missed more is loaded again
    )
    # Before what NiceGUI answers, and without what it puts around each piece of a body.
    app.router.routes.insert(0, Route(PATH, uploads.take, methods=["POST"]))
    # Nothing is built for paths that do not exist.
    pages.add_exception_handler(404, not_found)
    pages.storage.max_tab_storage_age = KEPT_SECONDS
    app.add_middleware(Guard, names=names, full=lambda: len(Client.instances) >= MAX_TABS)
    _collect_garbage()  # in which Ctrl-C, that comes once the address is there, would be lost
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    print(f"imagen: the page is at {address} (Ctrl-C ends it)", flush=True)
    if not only_loopback:
        print(
            "imagen: everyone who can reach this machine can use it: there is no password. It is "
            f"answered by an address or as {', '.join(sorted(names or ()))}; see --allow-host",
            flush=True,
        )
    if open_browser:
        webbrowser.open(address)
    config = uvicorn.Config(
        app,
        log_level="warning",
        log_config=None,
        ws="websockets-sansio",
        access_log=False,
        http=BoundedHttp,
        limit_concurrency=MAX_CONNECTIONS,
        ws_max_size=2**20,
        timeout_graceful_shutdown=1,  # open tabs keep a connection
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        sampler.close()
    raise KeyboardInterrupt  # it ends by nothing else, but does not always raise it itself


def _collect_garbage() -> None:
    """Collect what closed tabs leave, which refers to itself, without a look at all else.

    What is there before the first tab stays to the end. Everybody waits while all that came later
    is looked through, so that this is done before there is much of it: every 60,000 objects, where
    fifty tabs have three times as many. Python's own bounds are for what nobody waits for.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # of nothing: Python waits for a quarter more than was there the last time
    gc.set_threshold(5_000, 3, 2)


async def not_found(request: Request, error: Exception) -> Response:
    """Answers a request for a path that does not exist."""
    return PlainTextResponse("there is no such page", status_code=404)


FAVICON = """
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="7" fill="#4338ca"/>
<rect x="6" y="6" width="9" height="9" rx="1" fill="#a5b4fc"/>
<rect x="17" y="6" width="9" height="9" rx="1" fill="#f9a8d4"/>
<rect x="6" y="17" width="9" height="9" rx="1" fill="#fde68a"/>
<rect x="17" y="17" width="9" height="9" rx="1" fill="#86efac"/>
</svg>""".strip()
