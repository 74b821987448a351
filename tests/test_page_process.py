"""The process that samples for the page: its priority, its death, and the page's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from imagen_jax.cascade import Cascade, Request
from imagen_jax.errors import UserError
from imagen_jax.page.form import Form
from imagen_jax.page.jobs import Job, Tab, Worker
from imagen_jax.page.messages import Ended, Made, Make
from imagen_jax.page.process import BEHIND, GoneError, Sampler

FORM = Form(
    mode="create", prompt="a red apple", negative="", images=2, seed=0, size=(tiny.SR, tiny.SR),
    strength=0.5, resamples=1,
    settings={"steps": {"base": 2, "sr": 2}, "guidance": {"base": 2.0, "sr": 1.0}},
)  # fmt: skip
LONG = {"steps": {"base": 250, "sr": 250}}
"""Of a job that takes a minute: slow_steps.py sees to it."""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_cascade(tmp_path_factory.mktemp("process") / "cascade")


@pytest.fixture(scope="module")
def sampler(workdir: Path) -> Iterator[Sampler]:
    started = Sampler(str(workdir), modules=["slow_steps"])
    started.wait()
    yield started
    started.close()


def request(sampler: Sampler, **options: Any) -> Request:
    return sampler.cascade.request(["a red apple"], per_prompt=2, **options)


def until(condition: Any, seconds: float = 600) -> None:
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    assert condition()


def child(sampler: Sampler) -> int:
    return sampler._process.pid


@pytest.mark.slow
def test_images_are_those_of_the_cascade(sampler: Sampler, workdir: Path) -> None:
    asked = request(sampler, steps=2)
    *told, last = sampler.run(Make(1, asked))
    assert last == Ended("done")
    (made,) = (message for message in told if isinstance(message, Made) and message.is_last)
    samples = Cascade.load(workdir).run(asked, show_progress=False)
    np.testing.assert_array_equal([made.images[0], made.images[1]], samples.images)


@pytest.mark.skipif(sys.platform != "linux", reason="niceness of threads is Linux's")
def test_all_its_threads_let_others_go_first(sampler: Sampler) -> None:
    list(sampler.run(Make(2, request(sampler, steps=2))))
    tasks = os.listdir(f"/proc/{child(sampler)}/task")
    names = {}
    for task in tasks:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            names[task] = Path(f"/proc/{child(sampler)}/task/{task}/comm").read_text()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    computing = [int(t) for t, name in names.items() if name.startswith("tf_XLA")]
    assert computing, names
    for task in computing:
        assert os.getpriority(os.PRIO_PROCESS, task) == min(own + BEHIND, 19)


def test_a_job_is_stopped_between_its_steps(sampler: Sampler) -> None:
    told = sampler.run(Make(3, request(sampler, **LONG)))
    next(told)
    sampler.stop(3)
    *rest, last = told
    assert last == Ended("stopped")
    assert len(rest) < 250


@pytest.mark.slow
def test_weights_that_have_changed_since_a_job_was_asked_for(
    sampler: Sampler, tmp_path: Path
) -> None:
    other = tiny.write_cascade(tmp_path / "cascade", scale=0.03)
    asked = Cascade.load(other, low_memory=True).request("a red apple")
    (last,) = sampler.run(Make(4, asked))
    assert last.state == "failed"
    assert "the cascade has changed since this was asked for" in last.error


@pytest.mark.slow
def test_visitors_are_told_of_its_death_and_the_next_job_works(
    sampler: Sampler, capfd: pytest.CaptureFixture[str]
) -> None:
    worker, before = Worker(sampler), child(sampler)
    job = worker.submit(Form(**{**vars(FORM), "settings": LONG}), Tab())
    until(lambda: job.frames[0])
    waiting = worker.submit(FORM, Tab())
    os.kill(before, signal.SIGKILL)
    until(lambda: job.ended)
    died = "the process that makes images has ended by SIGKILL, as it does where memory runs out"
    assert (job.state, job.error) == ("failed", f"{died}; it is started again: ask once more")
    until(lambda: waiting.ended)
    assert (waiting.state, waiting.error) == ("done", "")
    assert child(sampler) != before
    assert f"imagen: {died}; it is started again\n" in capfd.readouterr().err


@pytest.mark.slow
def test_a_job_does_not_hear_of_a_death_before_it(sampler: Sampler) -> None:
    os.kill(child(sampler), signal.SIGKILL)
    sampler._process.join(600)
    job = Worker(sampler).submit(FORM, Tab())
    until(lambda: job.ended)
    assert (job.state, job.error) == ("done", "")


@pytest.mark.slow
def test_a_process_that_cannot_be_started_again(
    sampler: Sampler, workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = Worker(sampler)
    job = worker.submit(Form(**{**vars(FORM), "settings": LONG}), Tab())
    until(lambda: job.frames[0])
    workdir.rename(workdir.with_name("gone"))
    try:
        os.kill(child(sampler), signal.SIGKILL)
        until(lambda: job.ended)
        failing = worker.submit(FORM, Tab())
        until(lambda: failing.ended)
        assert failing.state == "failed"
        assert failing.error == f"no work directory {workdir}; imagen train makes one"
    finally:
        workdir.with_name("gone").rename(workdir)
    assert f"imagen: no work directory {workdir}" in capfd.readouterr().err
    again: Job = worker.submit(FORM, Tab())
    until(lambda: again.ended)
    assert (again.state, again.error) == ("done", "")


@pytest.mark.slow
def test_what_it_cannot_load_is_raised_where_it_was_started(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no work directory {tmp_path / 'none'}"):
        Sampler(str(tmp_path / "none")).wait()
    with pytest.raises(UserError, match="--import is 'no_such_module'"):
        Sampler(modules=["no_such_module"]).wait()


def test_a_process_that_dies_before_it_has_loaded() -> None:
    sampler = Sampler()
    os.kill(child(sampler), signal.SIGTERM)
    with pytest.raises(GoneError, match=r"the process that makes images has ended by SIGTERM$"):
        sampler.wait()


CODE = """
import os, sys, time
from jax._src import xla_bridge
from imagen_jax.page.process import Sampler
from imagen_jax.page.messages import Make

if __name__ == "__main__":
    sampler = Sampler(sys.argv[1])
    sampler.wait()
    request = sampler.cascade.request(["a red apple"], steps=250)
    next(sampler.run(Make(1, request)))
    assert not xla_bridge.backends_are_initialized(), "devices are the sampler's"
    print(sampler._process.pid, flush=True)
    time.sleep(3600)
"""


@pytest.mark.slow
def test_it_ends_with_a_page_that_is_killed(workdir: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.py"
    file.write_text(CODE)
    with subprocess.Popen(
        [sys.executable, str(file), str(workdir)], stdout=subprocess.PIPE, text=True
    ) as page:
        assert page.stdout is not None
        of = Path("/proc") / page.stdout.readline().strip()
        assert of.name.isdigit()
        assert of.exists() or sys.platform != "linux"
        page.kill()
    until(lambda: not of.exists() or "State:\tZ" in (of / "status").read_text())
