"""Connections that send without end, or never to an end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

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
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Port of a server that waits half a second for the head of a request, and one for all."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1.0)
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


def answer(port: int, *pieces: bytes) -> bytes:
    """All that the server says to some bytes, until it closes the connection."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
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
def test_what_does_not_come_to_its_end_is_closed(port: int, unfinished: bytes) -> None:
    assert answer(port, unfinished) == b""


@pytest.mark.parametrize(
    ("begin", "piece"), [(b"GET /", b"x" * 999), (b"GET / HTTP/1.1\r\nX: ", b"x" * 999),
                         (b"GET / HTTP/1.1\r\n", b"X: " + b"x" * 995 + b"\r\n")],
)  # fmt: skip
def test_heads_without_end_are_closed(
    port: int, begin: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 600.0)
    assert answer(port, begin, *[piece] * 2000) == b"", "the server never closes it"


def test_a_websocket_stays(port: int) -> None:
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}/") as websocket:
        with pytest.raises(TimeoutError):
            websocket.recv(timeout=1.5)
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
