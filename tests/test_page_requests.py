"""Requests that the page answers, and uploads that it takes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("nicegui", reason="the page needs NiceGUI: the extra page")

import nicegui.core
from starlette.requests import Request

from imagen_jax.errors import UserError
from imagen_jax.page.guard import Guard, is_loopback, own_names
from imagen_jax.page.limits import MAX_READING, MAX_UPLOAD
from imagen_jax.page.server import listen, serve
from imagen_jax.page.uploads import Uploads, what_is_used

# what is answered


def answered(
    names: set[str] | None = None, kind: str = "http", method: str = "GET", path: str = "/",
    full: bool = False, **headers: str,
) -> tuple[int, dict[bytes, bytes]]:  # fmt: skip
    """Status and headers of the guard's answer; 200 where a request is handed on."""
    sent: list[dict[str, Any]] = []

    async def handed_on(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    scope = {"type": kind, "method": method, "path": path, "headers": pairs}
    asyncio.run(Guard(handed_on, names=names, full=lambda: full)(scope, receive, send))
    return sent[0].get("status", sent[0].get("code")), dict(sent[0].get("headers", ()))


def answer(*args: Any, **options: Any) -> int:
    return answered(*args, **options)[0]


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_only_the_own_pages_requests_are_answered(kind: str) -> None:
    refused = {"http": (421, 403), "websocket": (1008, 1008)}[kind]
    assert answer(kind=kind, host="127.0.0.1:7860") == 200
    assert answer(kind=kind, host="localhost:7860", origin="http://localhost:7860") == 200
    assert answer(kind=kind, host="[::1]:7860") == 200
    assert answer(kind=kind, host="evil.example:7860") == refused[0]
    assert answer(kind=kind, host="127.0.0.1.evil.example") == refused[0]
    assert answer(kind=kind) == refused[0]
    assert answer(kind=kind, host="localhost:7860", origin="http://evil.example") == refused[1]
    assert answer(kind=kind, host="localhost:7860", origin="http://localhost:1") == refused[1]
    assert answer(kind=kind, host="localhost:7860", origin="null") == refused[1]


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_on_a_network_only_own_names_are_answered(kind: str) -> None:
    names = own_names("10.0.0.7", ["Lab.example"])
    for host in ("10.0.0.7:7860", "192.168.1.5", "[fe80::1]:7860", "lab.example:7860",
                 "LAB.EXAMPLE", "localhost:80", f"{socket.gethostname()}:7860"):  # fmt: skip
        assert answer(names, kind, host=host) == 200, host
        assert answer(names, kind, host=host, origin=f"http://{host}") == 200
    # A web site can point a name of its own here.
    for host in ("evil.example:7860", "lab.example.evil.example", "2130706433", "0x7f.1", "", ":1",
                 "[evil.example]", "lab.example:7860:1", "lab.example@evil.example"):  # fmt: skip
        assert answer(names, kind, host=host) in (421, 1008), host
        assert answer(names, kind, host=host, origin=f"http://{host}") in (421, 1008)


@pytest.mark.parametrize("name", ["http://lab", "lab:7860", "", "a b", "lab/x", "*"])
def test_allowed_hosts_are_names(name: str) -> None:
    with pytest.raises(ValueError, match="--allow-host is"):
        own_names("0.0.0.0", [name])


def test_further_hosts_need_an_open_page() -> None:
    with pytest.raises(UserError, match="--allow-host is for a page that --host opens to a net"):
        serve(mock.Mock(), mock.Mock(), "127.0.0.1", allowed=["lab"])


def test_other_sites_cannot_load_or_frame_the_page() -> None:
    host = "localhost:7860"
    for site in ("cross-site", "same-site"):
        for mode, dest in (("no-cors", "image"), ("cors", "empty"), ("navigate", "iframe"),
                           ("navigate", "object"), ("websocket", "websocket")):  # fmt: skip
            fetch = {"sec_fetch_site": site, "sec_fetch_mode": mode, "sec_fetch_dest": dest}
            assert answer(host=host, **fetch) == 403, fetch
            assert answer(host=host, path="/any", **fetch) == 403
        link = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
        assert answer(host=host, **link) == 200, "a link to the page may be followed"
    own = {"sec_fetch_site": "same-origin", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}
    assert answer(host=host, **own) == 200
    for status, headers in (answered(host=host), answered(host="evil.example")):
        assert headers[b"x-frame-options"] == b"DENY", status
        assert headers[b"content-security-policy"] == b"frame-ancestors 'none'"


def test_no_new_tab_where_too_many_are_open() -> None:
    assert answer(host="localhost", full=True) == 503
    assert answer(host="localhost", path="/_nicegui/static/x.js", full=True) == 200


def test_large_bodies_are_refused_unread() -> None:
    host = "localhost:7860"
    assert answer(method="POST", host=host, content_length=str(MAX_UPLOAD)) == 200
    assert answer(method="POST", host=host, content_length=str(MAX_UPLOAD + 1)) == 413
    assert answer(method="POST", host=host) == 411
    assert answer(method="PUT", host=host, content_length="-1") == 411
    assert answer(method="POST", host=host, content_length="\u0669") == 411


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "")))


def test_taken_ports_and_unknown_hosts_are_told() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen on .*, port {port}: Address"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match=r"cannot listen on no\.such\.host\.invalid"):
        listen("no.such.host.invalid", 0)


# uploads


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((6, 6), (6, 6)),
        ((8, 8), (8, 8)),
        ((16, 24), (16, 24)),
        ((100, 100), (13, 13)),  # by 8: a crop of 100 x 66 is reduced to no less than 12 x 8
        ((101, 3000), (13, 19)),
        ((1, 2**24), (1, 2)),
    ],
)
def test_uploads_are_cropped_and_reduced_to_their_use(
    shape: tuple[int, int], kept: tuple[int, int]
) -> None:
    offered = [(8, 8), (8, 12), (12, 8)]
    found = what_is_used(np.zeros((*shape, 3), np.uint8), offered)
    assert found.shape == (*kept, 3)
    owner = found if found.base is None else found.base
    assert memoryview(owner).nbytes == found.nbytes, "the rest is kept with it"


def upload(uploads: Uploads, pieces: Sequence[bytes], key: str = "key") -> int:
    """Status of the answer to an upload that comes in pieces."""
    left = list(pieces)

    async def receive() -> dict[str, Any]:
        if not left:
            return {"type": "http.disconnect"}
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": body != b"end"}

    async def take() -> int:
        monkeypatched = mock.patch.object(nicegui.core, "loop", asyncio.get_running_loop())
        with monkeypatched:
            scope = {"type": "http", "method": "POST", "path_params": {"key": key},
                     "headers": [(b"x-name", b"a%20cat.png")]}  # fmt: skip
            answer = await uploads.take(Request(scope, receive))
            await asyncio.sleep(0.01)  # in which the field takes it
        return answer.status_code

    return asyncio.run(take())


def test_uploads_that_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    uploads, field = Uploads([(8, 8)]), mock.MagicMock(is_deleted=False, receiving=False)
    field.on_upload = mock.AsyncMock()
    assert upload(uploads, [b"end"]) == 404
    uploads._fields["key"] = field
    assert upload(uploads, [b"end"], key="another") == 404
    assert upload(uploads, [b"cut"]) == 408
    with monkeypatch.context() as patched:
        patched.setattr("imagen_jax.page.uploads.MAX_RECEIVED", 9)
        assert upload(uploads, [b"many", b"more", b"end"]) == 503
    field.receiving = True
    assert upload(uploads, [b"end"]) == 429, "one at a time"
    field.receiving = False
    assert not field.on_upload.called
    assert upload(uploads, [b"a", b"b", b"end"]) == 204, "those before have left nothing behind"
    field.on_upload.assert_awaited_once_with(b"abend", "a cat.png")
    field.is_deleted = True
    assert upload(uploads, [b"end"]) == 404


def test_reduced_uploads_are_means_of_areas() -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    found = what_is_used(image, [(8, 8)])
    means = image.reshape(8, 12, 8, 12, 3).mean((1, 3))
    np.testing.assert_allclose(found, means, atol=0.51)


def test_images_that_the_page_cannot_read_now(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        return None

    uploads = Uploads([(8, 8)])
    monkeypatch.setattr("imagen_jax.page.uploads.run.io_bound", nothing)
    with pytest.raises(UserError, match="the page is being closed"):
        asyncio.run(uploads.read(b""))
    uploads._waiting = MAX_READING
    with pytest.raises(UserError, match="too many images are being read; try again in a moment"):
        asyncio.run(uploads.read(b""))
