"""Connections that send without end, or never to an end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

pytest.importorskip("nicegui", reason="the page needs NiceGUI: the extra page")

import uvicorn

from imagen_jax.page import connections
from imagen_jax.page.connections import BoundedHttp, paced
from imagen_jax.page.limits import MAX_HEAD


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers with the length of a body; echoes what a websocket sends."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        return
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message["body"]), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


@pytest.fixture
def port() -> Iterator[int]:
    """Port of a server; see `impatient`."""
    config = uvicorn.Config(
        app, http=BoundedHttp, ws="websockets-sansio", lifespan="off", log_level="critical"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.fixture
def impatient(port: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Port of one that waits half a second for the head of a request, and one for all."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1.0)
    return port


def answer(port: int, *pieces: bytes) -> bytes:
    """All that the server says to some bytes, until it closes the connection."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            while received := connection.recv(65536):
                said += received
        except ConnectionError:
            pass
    return said


def test_a_request_is_answered(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\n"
    said = answer(port, head, b"abc")
    assert said.startswith(b"HTTP/1.1 200")
    assert said.endswith(b"3\r\n0\r\n\r\n") or said.endswith(b"3")
    long = b"GET /" + b"x" * (MAX_HEAD // 2) + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert answer(port, long).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "unfinished",
    [b"", b"GE", b"GET / HTTP/1.1\r\nHo", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"],
)
def test_what_does_not_come_to_its_end_is_closed(impatient: int, unfinished: bytes) -> None:
    assert answer(impatient, unfinished) == b""


@pytest.mark.parametrize(
    ("begin", "piece"), [(b"GET /", b"x" * 999), (b"GET / HTTP/1.1\r\nX: ", b"x" * 999),
                         (b"GET / HTTP/1.1\r\n", b"X: " + b"x" * 995 + b"\r\n")],
)  # fmt: skip
def test_heads_without_end_are_closed(
    port: int, begin: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEAD_SECONDS", "REQUEST_SECONDS"):
        monkeypatch.setattr(connections, name, 3600.0)
    assert answer(port, begin, *[piece] * 2000) == b"", "the server never closes it"


def test_a_websocket_stays(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from websockets.sync.client import connect

    for name in ("HEAD_SECONDS", "REQUEST_SECONDS"):  # long enough for the handshake
        monkeypatch.setattr(connections, name, 4.0)
    with connect(f"ws://127.0.0.1:{port}/", open_timeout=600) as websocket:
        with pytest.raises(TimeoutError):
            websocket.recv(timeout=5)
        websocket.send("still here")
        assert websocket.recv() == "still here"


def test_messages_are_received_no_faster_than_the_page_bears(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def receive() -> dict[str, Any]:
        return {}

    async def receive_many(count: int) -> None:
        receive_paced = paced(receive)
        for _ in range(count):
            await receive_paced()

    monkeypatch.setattr(connections, "MESSAGES", (100, 50))
    monkeypatch.setattr(connections.time, "monotonic", lambda: now)
    monkeypatch.setattr(connections.asyncio, "sleep", sleep)
    asyncio.run(receive_many(50))
    assert now == 0, "so many may come at once"
    asyncio.run(receive_many(1050))
    assert now == pytest.approx(10)


# the page itself


@contextlib.contextmanager
def started(workdir: Path) -> Iterator[int]:
    """Port of the page of a cascade."""
    command = [sys.executable, "-m", "imagen_jax.main", "demo", "--port", "0"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    with subprocess.Popen(
        [*command, "--workdir", str(workdir)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        address = re.search(r":(\d+)/", process.stdout.readline())
        assert address, process.communicate()[1]
        yield int(address[1])
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=600)
        assert process.returncode == 130
        assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_heard_as_soon_as_the_address_is_there(tmp_path: Path) -> None:
    with started(tiny.write_cascade(tmp_path / "cascade")):
        pass


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, interruptible: None) -> Iterator[int]:
    """Port of the page of a tiny cascade."""
    workdir = tiny.write_cascade(tmp_path_factory.mktemp("page") / "cascade")
    with started(workdir) as port:
        yield port


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET / HTTP/1.1", b"200"), ("POST / HTTP/1.1", b"405"), ("DELETE / HTTP/1.1", b"405"),
        ("GET /elsewhere HTTP/1.1", b"404"), ("GET /docs HTTP/1.1", b"404"),
        ("GET /openapi.json HTTP/1.1", b"404"), ("GET /upload/x HTTP/1.1", b"40"),
        ("POST /upload/x HTTP/1.1", b"404"), ("POST /upload/../x HTTP/1.1", b"404"),
        ("GET /_nicegui/client/x/upload/1 HTTP/1.1", b"404"),
        ("GET /../../etc/passwd HTTP/1.1", b"404"), ("GET /%2e%2e/etc/passwd HTTP/1.1", b"404"),
        ("GET //etc/passwd HTTP/1.1", b"404"), ("GET /%00 HTTP/1.1", b"404"),
        ("TRACE / HTTP/1.1", b"4"), ("NONSENSE / HTTP/1.1", b"4"),
    ],
)  # fmt: skip
def test_requests_of_anything_else_are_answered_by_a_status(
    page: int, line: str, status: bytes
) -> None:
    said = answer(
        page, f"{line}\r\nHost: 127.0.0.1:{page}\r\nContent-Length: 3\r\n"
        "Connection: close\r\n\r\nabc".encode(),
    )  # fmt: skip
    assert said.startswith(b"HTTP/1.1 " + status), said[:300]
    assert b"root:" not in said
    assert b"Traceback" not in said
    if status == b"404":
        assert b"<html" not in said, "nothing is built for what is not there"
