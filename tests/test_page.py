"""What stands behind the page: the form, the queue, masks from strokes, and what is answered."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tiny

pytest.importorskip("nicegui", reason="the page needs NiceGUI: the extra page")

from imagen_jax.cascade import Cascade
from imagen_jax.cascade.stages import check_size
from imagen_jax.errors import UserError
from imagen_jax.page.drawing import Stroke, mask_of, preview
from imagen_jax.page.form import Form, request, sizes
from imagen_jax.page.guard import MAX_BODY, Guard, is_loopback
from imagen_jax.page.jobs import Job, Worker
from imagen_jax.page.limits import MAX_IMAGES, MAX_PROMPT, MAX_WAITING
from imagen_jax.page.server import listen


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    return Cascade.load(tiny.write_cascade(tmp_path_factory.mktemp("page") / "cascade"))


def form(**changes: Any) -> Form:
    asked = Form(
        mode="create", prompt="a red apple", negative="", images=2, seed=0,
        size=(tiny.SR, tiny.SR), strength=0.5, resamples=1,
        settings={"steps": {"base": 2, "sr": 2}, "guidance": {"base": 2.0, "sr": 1.0}},
    )  # fmt: skip
    return dataclasses.replace(asked, **changes)


IMAGE = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)

# form


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "print"}, "unknown mode 'print'"),
        ({"prompt": " \n"}, "say in the prompt"),
        ({"prompt": "a" * (MAX_PROMPT + 1)}, "the prompt has 1,001 characters; at most 1,000"),
        ({"prompt": "a " * 40}, "tokens; this cascade was trained with at most 32"),
        ({"negative": "a" * (MAX_PROMPT + 1)}, "the negative prompt has 1,001 characters"),
        ({"negative": "b", "settings": {"guidance": {"base": 1, "sr": 1}}}, "guidance is 1"),
        ({"negative": "b", "mode": "enlarge", "image": IMAGE}, "raise it in one of sr"),
        ({"prompt": "\ud800"}, "not valid Unicode"),
        ({"images": MAX_IMAGES + 1}, "number of images is 17; it must be from 1 to 16"),
        ({"images": None}, "number of images must be a whole number, got None"),
        ({"seed": -1}, "the seed is -1"),
        ({"seed": 2**32 - 1, "images": 2}, "the seed is 4,294,967,295; it must be from 0 to"),
        ({"seed": 0.5}, "the seed must be a whole number, got 0.5"),
        ({"settings": {"steps": {"base": 251}}}, "number of steps of base is 251"),
        ({"settings": {"guidance": {"base": None}}}, "guidance of base is empty"),
        ({"settings": {"pad": {"sr": 0.5}}}, "the padding of sr must be a whole number, got 0.5"),
        ({"settings": {"guidance": {"base": -1.0}}}, "guidance is -1.0"),
        ({"mode": "change"}, "choose an image"),
        ({"mode": "paint", "image": IMAGE}, "brush over"),
        ({"mode": "paint", "image": IMAGE, "mask": np.zeros((6, 6), bool)}, "brush over"),
        ({"mode": "paint", "image": IMAGE, "mask": np.ones((6, 6), bool), "resamples": 99},
         "number of passes is 99"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_mistakes_in_the_form_are_told(
    cascade: Cascade, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        request(form(**changes), cascade)
    assert message in str(error.value)


def test_what_the_form_stands_for(cascade: Cascade) -> None:
    asked = request(form(prompt=" a red apple\n", images=3, seed=5.0), cascade)
    assert asked.prompts == ["a red apple"] * 3
    assert asked.seeds == [5, 6, 7]
    assert asked.image is None
    assert asked.mask is None
    assert [stage.edit for stage in asked.stages] == [None, None]
    changed = request(form(mode="change", image=IMAGE), cascade)
    assert changed.image is not None
    np.testing.assert_array_equal(changed.image[0], IMAGE[:, 1:7])  # the middle square
    assert [stage.edit and stage.edit.strength for stage in changed.stages] == [0.5, None]
    enlarged = request(form(mode="enlarge", image=IMAGE, size=(8, 12)), cascade)
    assert enlarged.image is not None
    np.testing.assert_array_equal(enlarged.image[0], IMAGE)
    assert [stage.name for stage in enlarged.stages] == ["sr"]


def test_all_sizes_that_are_offered_can_be_made(cascade: Cascade) -> None:
    assert len(sizes(cascade)) == 3
    for size in sizes(cascade):
        assert check_size(cascade.stages, size) == size


# drawing


def test_masks_are_where_the_brush_went() -> None:
    dot, line = Stroke([(8.5, 4.5)], 4), Stroke([(2, 10), (14, 10)], 2)
    mask = mask_of([dot, line], (16, 20), (32, 40))
    assert mask.shape == (32, 40)
    y, x = np.mgrid[:32, :40]
    inside, outside = 3, 5.5  # pixels from the middle of the dot, whose radius is 4 here
    far = np.hypot(x - 17, y - 9)
    assert mask[far < inside].all()
    assert mask[19:22, 6:27].all()
    assert not mask[(far > outside) & ((y < 17) | (y > 23))].any()
    assert not mask_of([], (16, 20), (32, 40)).any()


def test_previews_are_small_and_keep_the_mean() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    small = preview(image, 30)
    assert small.shape == (20, 30, 3)
    np.testing.assert_allclose(small.mean((0, 1)), image.mean((0, 1)), atol=1)
    assert preview(image, 90) is image


# jobs


@pytest.fixture
def worker(cascade: Cascade) -> Worker:
    return Worker(cascade)


def ended(job: Job) -> Job:
    limit = time.monotonic() + 60
    while not job.ended and time.monotonic() < limit:
        time.sleep(0.01)
    assert job.ended
    return job


def test_a_job_makes_what_the_cascade_makes(worker: Worker) -> None:
    job = ended(worker.submit(form()))
    assert (job.state, job.error) == ("done", "")
    samples = worker.cascade.sample(["a red apple"], per_prompt=2, steps=2,
                                    guidance={"base": 2.0}, show_progress=False)  # fmt: skip
    for row in range(2):
        np.testing.assert_array_equal(job.image(row), samples.images[row])
        np.testing.assert_array_equal(job.stages["base"][row], samples.stages["base"][row])
        assert [(f.stage, f.step) for f in job.frames[row]] == [
            ("base", 1), ("base", 2), ("sr", 1), ("sr", 2),
        ]  # fmt: skip
    assert job.request.record(1) == samples.request.record(1)


def test_frames_of_many_steps_are_thinned_out(worker: Worker) -> None:
    job = ended(worker.submit(form(settings={"steps": {"base": 100, "sr": 1}})))
    steps = [frame.step for frame in job.frames[0] if frame.stage == "base"]
    assert steps[0] == 1
    assert steps[-1] == 100
    assert 24 <= len(steps) <= 26
    assert max(np.diff(steps)) <= 5


@pytest.fixture
def gate(cascade: Cascade) -> Iterator[threading.Event]:
    """What a job waits for in place of sampling."""
    opened = threading.Event()
    with mock.patch.object(cascade, "run", side_effect=lambda *_, **__: opened.wait(60)):
        yield opened
        opened.set()


def test_the_queue_is_in_order_limited_and_can_be_left(
    worker: Worker, gate: threading.Event
) -> None:
    first = worker.submit(form())
    while first.state == "waiting":
        time.sleep(0.01)
    waiting = [worker.submit(form(seed=i)) for i in range(MAX_WAITING)]
    with pytest.raises(ValueError, match="8 jobs are waiting"):
        worker.submit(form())
    assert [worker.ahead(job) for job in waiting] == list(range(MAX_WAITING))
    worker.stop(waiting[0])
    assert waiting[0].state == "stopped"
    assert worker.ahead(waiting[1]) == 0
    assert {job.state for job in waiting[1:]} == {"waiting"}
    gate.set()
    assert {ended(job).state for job in waiting[1:]} == {"done"}


def test_stopping_keeps_what_is_done(worker: Worker) -> None:
    job = worker.submit(form(settings={"steps": {"base": 2, "sr": 250}}))
    while "base" not in job.stages:
        time.sleep(0.01)
    worker.stop(job)
    assert ended(job).state == "stopped"
    assert job.image(0) is None
    assert job.stages["base"][0].shape == (tiny.BASE, tiny.BASE, 3)


@pytest.mark.parametrize(
    ("error", "told"),
    [(ValueError("no such thing"), "no such thing"), (KeyError("x"), "KeyError: 'x'")],
)
def test_the_worker_outlives_errors(
    worker: Worker, error: Exception, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock.patch.object(worker.cascade, "run", side_effect=error):
        job = ended(worker.submit(form()))
    assert (job.state, job.error) == ("failed", told)
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, KeyError)
    assert ended(worker.submit(form())).state == "done"


# what is answered


def answer(only_loopback: bool = True, kind: str = "http", method: str = "GET", **headers: str):
    """Status of the guard's answer; 200 where a request is handed on."""
    sent: list[dict[str, Any]] = []

    async def handed_on(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"status": 200})

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    scope = {"type": kind, "method": method, "headers": pairs}
    asyncio.run(Guard(handed_on, only_loopback=only_loopback)(scope, receive, send))
    return sent[0].get("status", sent[0].get("code"))


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_only_the_own_pages_requests_are_answered(kind: str) -> None:
    refused = {"http": (421, 403), "websocket": (1008, 1008)}[kind]
    assert answer(kind=kind, host="127.0.0.1:7860") == 200
    assert answer(kind=kind, host="localhost:7860", origin="http://localhost:7860") == 200
    assert answer(kind=kind, host="[::1]:7860") == 200
    assert answer(kind=kind, host="evil.example:7860") == refused[0]
    assert answer(kind=kind) == refused[0]
    assert answer(kind=kind, host="localhost:7860", origin="http://evil.example") == refused[1]
    assert answer(kind=kind, host="localhost:7860", origin="http://localhost:1") == refused[1]
    assert answer(kind=kind, host="localhost:7860", origin="null") == refused[1]
    assert answer(only_loopback=False, kind=kind, host="lab.example:7860") == 200


def test_large_bodies_are_refused_unread() -> None:
    host = "localhost:7860"
    assert answer(method="POST", host=host, content_length=str(MAX_BODY)) == 200
    assert answer(method="POST", host=host, content_length=str(MAX_BODY + 1)) == 413
    assert answer(method="POST", host=host) == 411
    assert answer(method="PUT", host=host, content_length="-1") == 411


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
