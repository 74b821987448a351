"""A server in this process that speaks Google Cloud Storage's JSON protocol, for its clients.

TensorStore is sent to it by TENSORSTORE_GCS_HTTP_URL. TensorFlow knows one address alone, that of
Google: it is given the server as its proxy, and the server's certificate as one to trust.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("www.googleapis.com", "storage.googleapis.com", "oauth2.googleapis.com")


@dataclass
class Bucket:
    """Objects of one bucket, and what was asked of them.

    Attributes:
      objects: name -> (content, generation).
      requests: "GET name", "POST name" and so on, in order.
      slow: seconds that writing an object whose name has this part takes, by part.
    """

    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    slow: dict[str, float] = field(default_factory=dict)
    sessions: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)
    last: int = 0

    def put(self, name: str, content: bytes) -> int:
        """Store an object; return its generation."""
        with self.lock:
            self.last += 1
            self.objects[name] = (content, self.last)
            return self.last

    def clear(self) -> None:
        """Remove all."""
        with self.lock:
            self.objects.clear()
            self.requests.clear()
            self.slow.clear()

    def put_folder(self, prefix: str, folder: Path) -> None:
        """Store all files of a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def names(self, prefix: str = "") -> list[str]:
        """Names of objects, sorted."""
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers for gs://bucket; gs://forbidden may not be used, and no other bucket is there."""

    protocol_version = "HTTP/1.1"
    bucket: Bucket
    context: ssl.SSLContext | None = None

    def setup(self) -> None:
        super().setup()
        with contextlib.suppress(AttributeError):
            self.connection.settimeout(120)

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        assert self.context is not None
        self.connection = self.context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb", -1)
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def handle_any(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = {k: v[-1] for k, v in urllib.parse.parse_qs(url.query).items()}
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            body = self.read_chunks()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upload = re.fullmatch(r"/upload/storage/v1/b/[^/]+/o", url.path)
        listing = re.fullmatch(r"/storage/v1/b/([^/]+)(/o)?", url.path)
        rewrite = re.fullmatch(r"/storage/v1/b/[^/]+/o/(.+)/rewriteTo/b/[^/]+/o/(.+)", url.path)
        found = re.fullmatch(r"/storage/v1/b/[^/]+/o/(.+)", url.path)
        plain = re.fullmatch(r"/(?!storage/|upload/)[^/]+/(.+)", url.path)
        bucket = self.bucket
        named = re.match(r"(?:/upload)?/storage/v1/b/([^/]+)", url.path)
        if named and named[1] != "bucket":
            status = 403 if named[1] == "forbidden" else 404
            self.answer(status, {"error": {"code": status, "message": f"bucket {named[1]}"}})
        elif upload:
            name = query.get("name", "")
            bucket.requests.append(f"{self.command} {name}")
            self.upload(query, body)
        elif listing:
            self.list(query) if listing[2] else self.answer(200, {"name": "bucket"})
        elif rewrite:
            source, target = map(urllib.parse.unquote, rewrite.groups())
            if source not in bucket.objects:
                self.answer(404, {})
                return
            bucket.put(target, bucket.objects[source][0])
            self.answer(200, {"done": True, "resource": self.about(target)})
        elif found or plain:
            name = urllib.parse.unquote((found or plain)[1])  # type: ignore[index]
            bucket.requests.append(f"{self.command} {name}")
            self.object(name, query, media=query.get("alt") == "media" or not found)
        else:
            self.answer(404, {})

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def upload(self, query: dict[str, str], body: bytes) -> None:
        name = query.get("name", "")
        if query["uploadType"] == "resumable" and self.command == "POST":
            session = str(len(self.bucket.sessions))
            self.bucket.sessions[session] = (name, b"")
            where = "https://www.googleapis.com/upload/storage/v1/b/bucket/o"
            self.answer(200, {}, Location=f"{where}?uploadType=resumable&upload_id={session}")
            return
        if query["uploadType"] == "resumable":
            session = query["upload_id"]
            name, before = self.bucket.sessions[session]
            body = before + body
            total = self.headers.get("Content-Range", "").rpartition("/")[2]
            if total == "*" or (total.isdecimal() and len(body) < int(total)):
                self.bucket.sessions[session] = (name, body)
                self.answer(308, {}, Range=f"bytes=0-{len(body) - 1}")
                return
        for part, seconds in self.bucket.slow.items():
            if part in name:
                time.sleep(seconds)
        with self.bucket.lock:
            if not self.condition(name, query):
                return
            self.bucket.put(name, body)
            self.answer(200, self.about(name))

    def condition(self, name: str, query: dict[str, str]) -> bool:
        generation = self.bucket.objects.get(name, (b"", 0))[1]
        if int(query.get("ifGenerationMatch", generation)) != generation:
            self.answer(412, {})
            return False
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            self.answer(304, None)
            return False
        return True

    def about(self, name: str) -> dict[str, Any]:
        content, generation = self.bucket.objects[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "bucket",
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
        }

    def list(self, query: dict[str, str]) -> None:
        prefix, end = query.get("prefix", ""), query.get("delimiter", "")
        first = max(query.get("startOffset", ""), query.get("pageToken", ""))
        items, prefixes = [], set[str]()
        most = int(query.get("maxResults", 1000))
        answer: dict[str, Any] = {"kind": "storage#objects"}
        with self.bucket.lock:
            for name in self.bucket.names(prefix):
                if name < first or (query.get("endOffset") and name >= query["endOffset"]):
                    continue
                inner = name[len(prefix) :]
                if end and end in inner:
                    prefixes.add(prefix + inner.partition(end)[0] + end)
                    continue
                if len(items) == most:
                    answer["nextPageToken"] = name
                    break
                items.append(self.about(name))
        self.bucket.requests.append(f"LIST {prefix}")
        self.answer(200, answer | {"items": items, "prefixes": sorted(prefixes)})

    def object(self, name: str, query: dict[str, str], media: bool) -> None:
        with self.bucket.lock:
            if self.command == "DELETE":
                if not self.condition(name, query):
                    return
                there = self.bucket.objects.pop(name, None)
                self.answer(204 if there else 404, None)
                return
            if name not in self.bucket.objects:
                self.answer(404, {})
                return
            if not self.condition(name, query):
                return
            content, generation = self.bucket.objects[name]
            if not media:
                self.answer(200, self.about(name))
                return
        headers = {"x-goog-generation": str(generation),
                   "x-goog-stored-content-length": str(len(content))}  # fmt: skip
        asked = self.headers.get("Range")
        if asked is None:
            self.send(200, content, headers)
            return
        first, last = asked.removeprefix("bytes=").split("-")
        start = int(first) if first else max(0, len(content) - int(last))
        if start >= len(content):
            self.send(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
            return
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        span = f"bytes {start}-{stop - 1}/{len(content)}"
        self.send(206, content[start:stop], headers | {"Content-Range": span})

    def answer(self, status: int, value: Any, **headers: str) -> None:
        content = b"" if value is None else json.dumps(value).encode()
        self.send(status, content, {"Content-Type": "application/json", **headers})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Server(http.server.ThreadingHTTPServer):
    """Says nothing of clients that are gone."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextlib.contextmanager
def serve(scratch: Path) -> Iterator[tuple[Bucket, dict[str, str]]]:
    """Yield the objects of gs://bucket, and the environment that sends clients there.

    Args:
      scratch: folder for the server's certificate.
    """
    key, certificate = scratch / "key.pem", scratch / "certificate.pem"
    names = ",".join(f"DNS:{name}" for name in NAMES)
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", f"subjectAltName={names}"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    bucket = Bucket()
    handler = type("OfBucket", (Handler,), {"bucket": bucket, "context": context})
    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield (
            bucket,
            {
                "TENSORSTORE_GCS_HTTP_URL": address,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
                "HTTPS_PROXY": address,
                "https_proxy": address,
                "no_proxy": "127.0.0.1,localhost",
                "CURL_CA_BUNDLE": str(certificate),
                "NO_GCE_CHECK": "true",
                "GCS_RETRY_CONFIG_MAX_RETRIES": "1",
            },
        )
    finally:
        server.shutdown()
        server.server_close()
