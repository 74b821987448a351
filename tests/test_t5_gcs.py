"""T5X checkpoints are read from gs:// as from a folder: against a server that speaks like GCS."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.text.t5_checkpoint import load_t5_encoder

DATA = Path(__file__).parent / "testdata" / "t5x"
OBJECTS = "/storage/v1/b/bucket/o"


class Storage(http.server.BaseHTTPRequestHandler):
    """Lists and reads the files of tests/testdata/t5x as objects of gs://bucket."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == OBJECTS:
            names = sorted(p.relative_to(DATA).as_posix() for p in DATA.rglob("*") if p.is_file())
            found = [
                {"name": name, "generation": "1", "size": str((DATA / name).stat().st_size)}
                for name in names
                if name.startswith(query.get("prefix", ""))
            ]
            self.answer(200, json.dumps({"items": found}).encode())
            return
        path = DATA / urllib.parse.unquote(url.path.removeprefix(OBJECTS + "/"))
        if not url.path.startswith(OBJECTS) or not path.is_file():
            self.answer(404, b"")
            return
        content, asked = path.read_bytes(), self.headers.get("Range")
        if asked is None:
            self.answer(200, content)
            return
        first, last = asked.removeprefix("bytes=").split("-")
        start = int(first) if first else len(content) - int(last)
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        span = f"bytes {start}-{end - 1}/{len(content)}"
        self.answer(206, content[start:end], {"Content-Range": span})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        sent = {"Content-Length": str(len(body)), "x-goog-generation": "1", **(headers or {})}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Storage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    yield "gs://bucket"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_layouts_are_read_from_a_bucket(bucket: str) -> None:
    # One server for all: the library keeps the address it was first given.
    for layout in ("t5x", "t5x_bf16", "t5x_scan", "t5x_orbax"):
        local = load_t5_encoder(DATA / layout / "checkpoint_7")
        config, params = load_t5_encoder(f"{bucket}/{layout}/checkpoint_7")
        assert config == local[0]
        jax.tree.map(np.testing.assert_array_equal, params, local[1])
    with pytest.raises(UserError, match="checkpoint_8"):
        load_t5_encoder(f"{bucket}/t5x/checkpoint_8")
