"""The right half of the page: images as they are made, and those of earlier jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui

from imagen_jax.cascade import count_black
from imagen_jax.page.image import Detail, ShownImage
from imagen_jax.page.jobs import Job, Tab, Worker
from imagen_jax.page.limits import MAX_KEPT

POLL = 0.25
"""Seconds between looks at the job that is shown."""
SELDOM = 1.0
"""The same of a job that has ended, whose images may yet be dropped."""
EMPTY = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
"""A transparent pixel, where there is no image yet."""


class Results:
    """Jobs of one tab and the one that is looked at.

    Attributes:
      tab: state that survives a reload of the page.
    """

    def __init__(self, worker: Worker, detail_of: Callable[[], Detail]):
        """Args:
        worker: the worker that samples.
        detail_of: () -> the Detail of the chosen image, put where it is called.
        """
        self._worker, self._detail_of = worker, detail_of
        self.tab = Tab()
        self._job: Job | None = None
        self._others: list[Job] = []  # that are shown below
        self._seen: Any = None
        self._tiles: list[ShownImage] = []
        self._root = ui.column().classes("w-full gap-4")

    def _build(self) -> None:
        """Puts the elements of a job there, which a tab has no use for before its first."""
        with self._root, ui.column().classes("w-full gap-3"):
            with ui.row().classes("w-full items-center no-wrap gap-3"):
                self._title = ui.label().classes("title grow")
                self._stop = ui.button("Stop", icon="stop", on_click=self._stop_job)
                self._stop.props("outline no-caps dense padding='2px 10px'")
            with ui.row().classes("w-full items-center no-wrap gap-3"):
                self._bar = ui.linear_progress(0, show_value=False, size="6px")
                self._bar.props("instant-feedback").classes("grow")
                self._state = ui.label().classes("note state").props("role=status")
            self._gallery = ui.element("div").classes("gallery")
            self._detail = self._detail_of()
        with self._root:
            self._history = ui.element("div").classes("history")
            self._timer = ui.timer(POLL, self._refresh)

    def add(self, job: Job) -> None:
        """Shows a new job."""
        self.tab.jobs = [job, *self.tab.jobs][:MAX_KEPT]
        self._show(job)

    def restore(self, tab: Tab) -> None:
        """Shows the jobs that the tab had before it was loaded again, and keeps new ones there."""
        self.tab = tab
        if tab.jobs:
            self._show(tab.jobs[0])

    def _show(self, job: Job) -> None:
        if self._job is None:
            self._build()
        self._job = job
        self._title.text = job.prompt
        self._gallery.clear()
        self._tiles = []
        self._gallery.classes(remove="one few many")
        self._gallery.classes("one" if job.count == 1 else "few" if job.count <= 4 else "many")
        height, width = job.request.stages[-1].size
        with self._gallery:
            for row, seed in enumerate(job.request.seeds):
                label = f"image {row + 1}, seed {seed}"
                tile = ShownImage(label).classes("tile")
                tile.style(f"aspect-ratio: {width} / {height}")
                tile.show(EMPTY)
                tile.on("click", lambda _, row=row: self._choose(row))
                tile.props["title"] = label
                self._tiles.append(tile)
        self._choose(0)
        self._show_history()

    def _choose(self, row: int) -> None:
        assert self._job is not None
        for i, tile in enumerate(self._tiles):
            tile.classes("chosen") if i == row else tile.classes(remove="chosen")
        self._detail.choose(self._job, row)
        self._seen = None
        self._refresh()

    def _refresh(self) -> None:
        """Shows what has changed since the last time."""
        job = self._job
        if job is None:
            return
        ahead = self._worker.ahead(job) if job.state == "waiting" else 0
        if self._seen == (job.version, ahead):
            return
        self._seen = (job.version, ahead)
        self._timer.interval = SELDOM if job.ended else POLL
        self._state.text = said(job, ahead)
        self._state.classes(remove="failed")
        if job.state == "failed":
            self._state.classes("failed")
        self._stop.visible = not job.ended
        self._bar.visible = job.state == "running"
        newest = job.frames[0][-1] if job.frames[0] else None
        self._bar.props["indeterminate"] = newest is None
        self._bar.value = 0 if newest is None else newest.step / newest.steps
        self._bar.update()
        for row, tile in enumerate(self._tiles):
            made = job.url(row)
            if made is not None:
                tile.show(made)
            elif job.frames[row]:
                tile.show(job.frames[row][-1].url)
        self._detail.refresh()
        if job.ended:
            self._show_history()

    def _show_history(self) -> None:
        others = [job for job in self.tab.jobs if job is not self._job and job.thumb]
        if others == self._others:
            return
        self._others = others
        self._history.clear()
        with self._history:
            if others:
                ui.label("Earlier").classes("head")
            for job in others:
                thumb = ShownImage(job.prompt).classes("thumb")
                thumb.show(job.thumb)
                thumb.props["title"] = job.prompt
                thumb.on("click", lambda _, job=job: self._show(job))

    def _stop_job(self) -> None:
        if self._job is not None:
            self._worker.stop(self._job)


def said(job: Job, ahead: int) -> str:
    """Progress of a job in words."""
    if job.state == "waiting":
        return "next in line" if ahead == 0 else f"{ahead + 1} jobs come before it"
    if job.state in ("failed", "dropped"):
        return job.error
    if job.state == "stopped":
        return "stopped"
    if job.state == "done":
        black = [job.black.get(row, "") for row in range(job.count)]
        return f"done in {job.seconds:.1f} s" + (f"; {count_black(black)}" if any(black) else "")
    newest = job.frames[0][-1] if job.frames[0] else None
    if newest is None:
        return "getting ready; the first of a kind is compiled"
    return f"stage {newest.stage}, step {newest.step} of {newest.steps}"
