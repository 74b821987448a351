"""A visitor of the page, who speaks to it as a browser does; page_load.py lets many at it."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import html
import io
import json
import random
import re
import time
import uuid
from typing import Any

import aiohttp
import numpy as np
import socketio
from PIL import Image

WORDS = ("apple", "cat", "dog", "rocket", "star", "car")
NASTY: tuple[Any, ...] = (None, "", -1, 3e6, 1e308, [], {}, "x" * 5000, True)


class Visitor:
    """One tab of a browser.

    Attributes:
      elements: what the page consists of, by id.
      images: hashes of the images of jobs that it was shown.
      waits: (what, seconds, when it was sent) of every request that was answered.
      news: number of times that the page said something of a job, or an error.
    """

    def __init__(self, address: str, number: int, session: aiohttp.ClientSession):
        self._address, self._number, self._session = address, number, session
        self._rng = random.Random(number)
        self._seed = 1000 * number
        self._changed = asyncio.Event()
        self._socket: socketio.AsyncClient | None = None
        self.elements: dict[str, dict[str, Any]] = {}
        self.images: set[str] = set()
        self.titles: set[str] = set()
        self.waits: list[tuple[str, float, float]] = []
        self.news = 0

    async def open(self) -> None:
        """Loads the page in a new tab."""
        started = time.monotonic()
        async with self._session.get(self._address) as response:
            text = await response.text()
            if response.status == 503:  # enough tabs are open
                return
            assert response.status == 200, response.status
        self._note("page", started)
        found = re.search(r"parseElements\(String\.raw`(.*?)`\)", text, re.DOTALL)
        identity = re.search(r"'client_id': '([^']+)'", text)
        assert found, "no elements"
        assert identity, "no client"
        self.elements = json.loads(html.unescape(found[1]))
        self._mode = 0
        self._client = identity[1]
        self._socket = socketio.AsyncClient(reconnection=False, http_session=self._session)
        self._socket.on("update", self._update)
        self._socket.on("disconnect", self._changed.set)
        query = {"client_id": self._client, "next_message_id": 0, "implicit_handshake": "true",
                 "tab_id": str(uuid.uuid4()), "document_id": str(uuid.uuid4()),
                 "old_tab_id": ""}  # fmt: skip
        started = time.monotonic()
        await self._socket.connect(
            self._address + "?" + "&".join(f"{k}={v}" for k, v in query.items()),
            socketio_path="/_nicegui_ws/socket.io", transports=["websocket"],
            wait_timeout=20,  # as browsers wait; Python's client would after a second give up
        )  # fmt: skip
        self._note("connect", started)

    def _note(self, what: str, started: float) -> None:
        self.waits.append((what, time.monotonic() - started, started))

    async def close(self) -> None:
        """Closes the tab."""
        if self._socket is not None:
            await self._socket.disconnect()
            self._socket = None

    def _update(self, changes: dict[str, Any]) -> None:
        for key, element in changes.items():
            if key.startswith("_"):
                continue
            if element is None:
                self.elements.pop(key, None)
                continue
            self.elements[key] = element
            source = str(element.get("props", {}).get("src", ""))
            classes = element.get("class", [])
            self.news += bool({"state", "error", "title"} & {*classes})
            if source.startswith("data:image") and len(source) > 100 and "canvas" not in classes:
                self.images.add(hashlib.sha256(source.encode()).hexdigest())
            if "title" in classes and element.get("text"):
                self.titles.add(element["text"])
        self._changed.set()

    def find(self, name: str) -> tuple[str, dict[str, Any]]:
        """(id, element) by its label."""
        for key, element in self.elements.items():
            if name in _labels(element):
                return key, element
        raise KeyError(name)

    def _has(self, name: str) -> bool:
        return any(name in _labels(element) for element in self.elements.values())

    def by_class(self, name: str) -> tuple[str, dict[str, Any]]:
        """(id, element) by a class of it."""
        return next((k, e) for k, e in self.elements.items() if name in e.get("class", []))

    async def event(self, found: tuple[str, dict[str, Any]], kind: str, *args: Any) -> None:
        """Does something to an element."""
        key, element = found
        listener = next(e for e in element["events"] if e["type"].lower() == kind.lower())
        assert self._socket is not None
        message = {"id": int(key), "client_id": self._client,
                   "listener_id": listener["listener_id"],
                   "args": [json.dumps(arg) for arg in args]}  # fmt: skip
        await self._socket.emit("event", message)

    async def type(self, name: str, value: Any) -> None:
        """Sets a field."""
        found = self.find(name)
        kinds = [event["type"] for event in found[1]["events"]]
        kind = next(kind for kind in kinds if kind.lower().startswith("update:"))
        await self.event(found, kind, value)

    async def answered(self, what: str, ready: Any, seconds: float = 60.0) -> bool:
        """Waits until the page shows something; notes for how long."""
        started = time.monotonic()
        while not ready():
            assert self._socket is not None
            if not self._socket.connected:
                raise ConnectionError(f"the connection ended before {what} was answered")
            self._changed.clear()
            left = seconds - (time.monotonic() - started)
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.01, left))
            except TimeoutError:
                self._note(what, started)
                return False
        self._note(what, started)
        return True

    async def mode(self, number: int) -> None:
        """Chooses what is done, and waits until the page explains it."""
        found = self.find("Mode")
        explained = str(int(found[0]) + 1)
        before = self.elements[explained].get("text")
        await self.event(found, "update:modelValue", number)
        if self._mode != number:
            self._mode = number
            await self.answered("mode", lambda: self.elements[explained].get("text") != before)

    async def make(self) -> None:
        """Asks for images, and waits until the page says what becomes of them."""
        self._seed += 10
        for name, value in (("Images", 2), ("Seed", self._seed), ("Steps, base", 3),
                            ("Steps, sr", 2)):  # fmt: skip
            await self.type(name, value)
        prompt = f"a drawing of a {self._rng.choice(WORDS)}, visitor {self._number}"
        await self.type("Prompt", prompt)
        before = self.news
        await self.event(self.find("Make images"), "click")
        await self.answered("make", lambda: self.news > before)

    async def stop(self) -> None:
        """Stops the job that is shown, if there is one."""
        if self._has("Stop"):
            await self.event(self.find("Stop"), "click")

    async def upload(self) -> None:
        """Uploads an image of noise."""
        content = noise(self._rng.choice((48, 300, 900)))
        _, element = self.find("Choose an image, or drop it here")
        address = self._address.rstrip("/") + element["props"]["url"]
        started = time.monotonic()
        async with self._session.post(address, data=content) as response:
            assert response.status == 204, response.status
        self._note("upload", started)

    async def brush(self) -> None:
        """Draws a few strokes, which the browser sends as it is done with each."""
        found = self.by_class("canvas")
        for _ in range(3):
            await asyncio.sleep(0.3)
            points = [[self._rng.uniform(-50, 150), self._rng.uniform(0, 99)] for _ in range(14)]
            await self.event(found, "mouse", points)
        await self.event(found, "mouse", self._rng.choice((*NASTY, [[1, "x"]], [[1]])))

    async def misbehave(self) -> None:
        """Sends values that no browser would."""
        names = ("Brush", "Images", "Seed", "Strength", "Passes", "Steps, base", "Prompt")
        for name in filter(self._has, names):
            await self.type(name, self._rng.choice(NASTY))
        await self.event(self.find("Make images"), "click")
        for name, value in (("Passes", 2), ("Strength", 0.3)):
            if self._has(name):
                await self.type(name, value)

    async def visit(self, until: float, within: float) -> None:
        """Comes within some seconds, does things, and goes, again and again."""
        await asyncio.sleep(self._rng.uniform(0, within))
        while time.monotonic() < until:
            await self.open()
            if self._socket is None:
                await asyncio.sleep(1)
                continue
            for _ in range(self._rng.randrange(2, 6)):
                deed = self._rng.choice(("make", "make", "edit", "paint", "stop", "misbehave"))
                if deed in ("edit", "paint"):
                    await self.mode(1 if deed == "edit" else 2)
                    await self.upload()
                    if deed == "paint":
                        await self.brush()
                    await self.make()
                else:
                    if deed == "make":
                        await self.mode(0)
                    await getattr(self, deed)()
                await asyncio.sleep(self._rng.uniform(0.5, 3))
                if time.monotonic() > until:
                    break
            await self.close()


@functools.cache  # visitors share two cores with what they measure
def noise(side: int) -> bytes:
    """PNG of noise."""
    pixels = np.random.default_rng(side).integers(0, 256, (side, side + 9, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _labels(element: dict[str, Any]) -> tuple[Any, Any]:
    props = element.get("props", {})
    return props.get("label"), props.get("aria-label")
