"""A server on this machine that speaks as much of Cloud Storage and of the metadata server as the
hosts of a job need: tokens, and objects that are downloaded and uploaded."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "a-token"
METADATA = "/computeMetadata/v1/instance/"


class BucketServer:
    """Objects of buckets, by "bucket/name".

    Attributes:
      objects: their contents.
      attributes: what the metadata server says of this machine, by name.
      failures: how many requests for objects are answered with status 503 from now on.
      environment: variables by which programs find the server.
    """

    def __init__(self, port: int):
        self.objects: dict[str, bytes] = {}
        self.attributes: dict[str, str] = {}
        self.failures = 0
        self.environment = {
            "GCE_METADATA_HOST": f"localhost:{port}",
            "STORAGE_EMULATOR_HOST": f"http://localhost:{port}",
        }

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> bytes | int:
        """Return the body, or a status that is an error."""
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path.startswith(METADATA):
            if headers.get("metadata-flavor") != "Google":
                return 403
            name = url.path.removeprefix(METADATA)
            if name == "service-accounts/default/token":
                return json.dumps({"access_token": TOKEN, "expires_in": 3599}).encode()
            found = self.attributes.get(name.removeprefix("attributes/"))
            return 404 if found is None else found.encode()
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401
        if self.failures:
            self.failures -= 1
            return 503
        parts = url.path.split("/")
        if method == "POST" and parts[1:4] == ["upload", "storage", "v1"]:
            self.objects[f"{parts[5]}/{query['name']}"] = body
            return b"{}"
        if method == "GET" and parts[1:3] == ["storage", "v1"] and query.get("alt") == "media":
            return self.objects.get(f"{parts[4]}/{urllib.parse.unquote(parts[6])}", 404)
        return 400


@contextlib.contextmanager
def serve() -> Iterator[BucketServer]:
    """Runs a server for as long as the block does."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found = bucket.answer(self.command, self.path, headers, body)
            self.send_response(found if isinstance(found, int) else 200)
            self.end_headers()
            if not isinstance(found, int):
                self.wfile.write(found)

        do_GET = do_POST = _answer

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    bucket = BucketServer(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
