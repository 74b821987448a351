"""Parts behind the page: the form, the queue, masks from strokes, and the log."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
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
from imagen_jax.page.form import Form, modes, request, sizes
from imagen_jax.page.jobs import Job, Tab, Worker
from imagen_jax.page.limits import MAX_IMAGES, MAX_PROMPT, MAX_WAITING, MAX_WAITING_OF_TAB, MAX_WORK
from imagen_jax.page.log import MAX_LINE, log_in_lines
from imagen_jax.page.process import Sampler
from imagen_jax.page.sampling import Told, serve_jobs
from imagen_jax.stage_programs import forget_programs, step_program


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "print"}, "unknown mode 'print'"),
        ({"prompt": " \n"}, "say in the prompt"),
        ({"prompt": "a" * (MAX_PROMPT + 1)}, "the prompt has 1,001 characters; at most 1,000"),
        ({"prompt": "a " * 40}, "has 42 tokens; this cascade was trained with at most 32"),
        ({"prompt": "a " * 400}, "has 402 tokens; this cascade was trained with at most 32"),
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
        ({"prompt": 3}, "the prompt must be text, got 3"),
        ({"size": "big"}, "unknown shape 'big'; choices: square, 8 x 8"),
        ({"settings": {"guidance": {"base": 1e300}}}, "guidance of base is no number that it can"),
        ({"mode": "change", "image": IMAGE, "strength": 2}, "the strength is 2; it must be from 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_mistakes_in_the_form_are_told(
    cascade: Cascade, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        request(form(**changes), cascade)
    assert message in str(error.value)


def test_a_cascade_of_one_stage_is_offered_what_it_can_do(cascade: Cascade) -> None:
    base = Cascade(cascade._pretrained, cascade._load_text_encoder, stages=["base"])
    with pytest.raises(UserError, match="this cascade has no stage that enlarges images"):
        request(form(mode="enlarge", image=IMAGE, size=(4, 4), settings={}), base)
    assert list(modes(base)) == ["create", "change", "paint"]
    sr = Cascade(cascade._pretrained, cascade._load_text_encoder, stages=["sr"])
    assert list(modes(sr)) == ["change", "paint", "enlarge"]
    assert list(modes(cascade)) == ["create", "change", "paint", "enlarge"]
    made = request(form(size=(4, 4), settings={}), base)
    assert [stage.size for stage in made.stages] == [(4, 4)]


def test_the_form_as_a_request(cascade: Cascade) -> None:
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


@pytest.mark.parametrize("value", [None, "", "2", [], {}, [1], float("nan"), float("inf"), -1e308,
                                   10**400, True, {"base": 1}])  # fmt: skip
def test_anything_that_a_browser_may_send_is_told(cascade: Cascade, value: Any) -> None:
    """Whatever stands in a field: a UserError, or what the field's own type may be."""
    for field in ("mode", "prompt", "negative", "images", "seed", "size", "strength", "resamples"):
        mask = np.ones((6, 6), bool)
        mode = {"strength": "change", "resamples": "paint"}.get(field, "create")
        asked = form(mode=mode, image=IMAGE, mask=mask)
        try:
            request(dataclasses.replace(asked, **{field: value}), cascade)
        except UserError:
            continue
        assert field in ("prompt", "negative"), (field, value)
        assert value in ("2", None, "")
    for setting in ("steps", "guidance", "sampler", "threshold", "percentile", "aug_level"):
        with pytest.raises(UserError):
            request(form(settings={setting: {"base": value}}), cascade)


@pytest.mark.parametrize(
    ("changes", "work"),
    [
        ({"images": 16, "settings": {"steps": {"base": 250, "sr": 250}}}, "8,000"),
        ({"images": 2, "mode": "paint", "image": IMAGE, "mask": np.ones((6, 6), bool),
          "resamples": 10, "settings": {"steps": {"base": 250, "sr": 250}}}, "10,000"),
    ],
)  # fmt: skip
def test_jobs_that_would_keep_all_others_waiting(
    cascade: Cascade, changes: dict[str, Any], work: str
) -> None:
    with pytest.raises(UserError, match=rf"are {work} steps; a job may have {MAX_WORK:,}"):
        request(form(**changes), cascade)


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


def submit(worker: Worker, asked: Form) -> Job:
    """A job of a tab of its own."""
    return worker.submit(asked, Tab())


class InThread(Sampler):
    """Samples in a thread, where tests reach it."""

    def __init__(self, cascade: Cascade):
        self._sampled = cascade
        super().__init__()
        self.wait()

    def _start(self, there: Connection) -> None:
        self.told = Told(there, when_alone=lambda: None)
        args = (there, self._sampled, self.told)
        threading.Thread(target=serve_jobs, args=args, daemon=True).start()


@pytest.fixture
def worker(cascade: Cascade) -> Iterator[Worker]:
    made = Worker(InThread(cascade))
    yield made
    for job, _ in list(made._waiting):
        made.stop(job)
    while made._running:  # it would compute while other tests do
        time.sleep(0.01)


def ended(job: Job) -> Job:
    limit = time.monotonic() + 1200
    while not job.ended and time.monotonic() < limit:
        time.sleep(0.01)
    assert job.ended
    return job


@pytest.mark.slow
def test_a_job_makes_what_the_cascade_makes(worker: Worker, cascade: Cascade) -> None:
    job = ended(submit(worker, form()))
    assert (job.state, job.error) == ("done", "")
    samples = cascade.sample(["a red apple"], per_prompt=2, steps=2, guidance={"base": 2.0},
                             show_progress=False)  # fmt: skip
    for row in range(2):
        np.testing.assert_array_equal(job.image(row), samples.images[row])
        np.testing.assert_array_equal(job.stages["base"][row], samples.stages["base"][row])
        assert [(f.stage, f.step) for f in job.frames[row]] == [
            ("base", 1), ("base", 2), ("sr", 1), ("sr", 2),
        ]  # fmt: skip
    assert job.request.record(1) == samples.request.record(1)


def test_frames_of_many_steps_are_thinned_out(worker: Worker) -> None:
    job = ended(submit(worker, form(settings={"steps": {"base": 100, "sr": 1}})))
    steps = [frame.step for frame in job.frames[0] if frame.stage == "base"]
    assert steps[0] == 1
    assert steps[-1] == 100
    assert 24 <= len(steps) <= 26
    assert max(np.diff(steps)) <= 5


@pytest.fixture
def gate(cascade: Cascade) -> Iterator[threading.Event]:
    """Event that a job waits for in place of sampling."""
    opened = threading.Event()
    with mock.patch.object(cascade, "run", side_effect=lambda *_, **__: opened.wait(600)):
        yield opened
        opened.set()


@pytest.fixture
def held(cascade: Cascade) -> Iterator[threading.Event]:
    """Event that jobs wait for after the first step of their last stage."""
    opened, run = threading.Event(), cascade.run

    def run_held(request: Any, on_step: Any, **options: Any) -> Any:
        def hold(step: Any) -> None:
            on_step(step)
            if (step.stage, step.step) == ("sr", 1):
                opened.wait(600)

        return run(request, on_step=hold, **options)

    with mock.patch.object(cascade, "run", side_effect=run_held):
        yield opened
        opened.set()


def running(worker: Worker, tab: Tab) -> Job:
    """A job of a tab that has begun."""
    job = worker.submit(form(), tab)
    while job.state == "waiting":
        time.sleep(0.01)
    return job


def test_the_queue_is_in_order_limited_and_can_be_left(
    worker: Worker, gate: threading.Event
) -> None:
    running(worker, Tab())
    waiting = [submit(worker, form(seed=i)) for i in range(MAX_WAITING)]
    with pytest.raises(ValueError, match=f"{MAX_WAITING} jobs are waiting"):
        submit(worker, form())
    assert [worker.ahead(job) for job in waiting] == list(range(MAX_WAITING))
    worker.stop(waiting[0])
    assert waiting[0].state == "stopped"
    assert worker.ahead(waiting[1]) == 0
    assert {job.state for job in waiting[1:]} == {"waiting"}
    gate.set()
    assert {ended(job).state for job in waiting[1:]} == {"done"}


def test_no_tab_fills_the_queue(worker: Worker, gate: threading.Event) -> None:
    tab, other = Tab(), Tab()
    running(worker, tab)
    jobs = [worker.submit(form(seed=i), tab) for i in range(MAX_WAITING_OF_TAB)]
    with pytest.raises(ValueError, match="2 of your jobs are waiting"):
        worker.submit(form(), tab)
    assert worker.submit(form(), other).state == "waiting"
    worker.stop(jobs[0])
    assert worker.submit(form(), tab).state == "waiting"


def stopped(worker: Worker, job: Job) -> bool:
    """The sampler has heard that a job is to be stopped."""
    assert isinstance(worker._sampler, InThread)
    return worker._sampler.told.stopped == job.number


def test_jobs_of_a_closed_tab_are_given_up(worker: Worker, held: threading.Event) -> None:
    tab, other = Tab(pages=1), Tab(pages=1)
    first = worker.submit(form(settings={"steps": {"base": 250, "sr": 250}}), tab)
    while not first.frames[0]:
        time.sleep(0.01)
    second, third = worker.submit(form(), tab), worker.submit(form(), other)
    worker.leave(tab)
    assert second.state == "waiting", "a page of it is open"
    tab.pages = 0
    worker.leave(tab)
    assert second.state == "stopped"
    while not stopped(worker, first):
        time.sleep(0.01)
    held.set()
    assert ended(first).state == "stopped"
    assert ended(third).state == "done"


def test_images_of_the_oldest_job_are_dropped_where_they_are_too_many(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ended(submit(worker, form()))
    size = first.kept_bytes
    assert size > 2 * 3 * (tiny.BASE**2 + tiny.SR**2)
    monkeypatch.setattr("imagen_jax.page.jobs.MAX_KEPT_BYTES", 2.5 * size)
    second, third = ended(submit(worker, form(seed=1))), ended(submit(worker, form(seed=2)))
    while first.state == "done":
        time.sleep(0.01)
    assert [job.state for job in (first, second, third)] == ["dropped", "done", "done"]
    assert first.kept_bytes == 0
    assert first.image(0) is None
    assert second.image(0) is not None


@pytest.mark.slow
def test_compiled_programs_do_not_grow_with_what_visitors_ask_for(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagen_jax.page.sampling.MAX_KINDS", 2)
    forget_programs()  # those of other tests
    images = {}
    for percentile in (90.0, 91.0, 92.0, 93.0, 90.0):
        of_all = {"percentile": {"base": percentile, "sr": 99.5}}
        settings = {"threshold": {"base": "dynamic", "sr": "static"}, **of_all}
        job = ended(submit(worker, form(settings=form().settings | settings)))
        assert (job.state, job.error) == ("done", "")
        image = job.image(0)
        np.testing.assert_array_equal(image, images.setdefault(percentile, image))
        assert step_program.cache_info().currsize <= 4  # two stages of two kinds
    before = step_program.cache_info().misses
    ended(submit(worker, form(seed=7, settings=form().settings | settings)))
    assert step_program.cache_info().misses == before, "another seed is no other program"


def test_stopping_keeps_finished_images(worker: Worker, held: threading.Event) -> None:
    job = submit(worker, form(settings={"steps": {"base": 2, "sr": 250}}))
    while "base" not in job.stages:
        time.sleep(0.01)
    worker.stop(job)
    while not stopped(worker, job):
        time.sleep(0.01)
    held.set()
    assert ended(job).state == "stopped"
    assert job.image(0) is None
    assert job.stages["base"][0].shape == (tiny.BASE, tiny.BASE, 3)


@pytest.mark.parametrize(
    ("error", "told"),
    [(UserError("no such thing"), "no such thing"), (KeyError("x"), "KeyError: 'x'")],
)
def test_the_worker_outlives_errors(
    worker: Worker, cascade: Cascade, error: Exception, told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with mock.patch.object(cascade, "run", side_effect=error):
        job = ended(submit(worker, form()))
    assert (job.state, job.error) == ("failed", told)
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, KeyError)
    assert ended(submit(worker, form())).state == "done"


# the log


def test_the_log_is_lines_that_a_terminal_only_shows(capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("nicegui")
    before = log.handlers, log.propagate
    try:
        log_in_lines()
        log.warning("a browser may log \x1b]0;pwn\x07\nimagen: what it likes")
        try:
            raise ValueError("x" * 10_000)
        except ValueError as error:
            log.exception(error)
    finally:
        log.handlers, log.propagate = before
    lines = capfd.readouterr().err.split("\n")
    assert len(lines) == 3
    assert lines[0] == r"imagen: nicegui: a browser may log \x1b]0;pwn\x07 imagen: what it likes"
    assert lines[1].startswith("imagen: nicegui: ValueError in test_page.py, line ")
    assert len(lines[1]) < 2 * MAX_LINE
