"""The right half of the page: pictures as they are made, and everything about one of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from nicegui import ui

from imagen_jax.page.drawing import data_url, png_of, png_with_record, preview
from imagen_jax.page.jobs import Job, Worker
from imagen_jax.page.limits import MAX_KEPT

POLL = 0.12
"""Seconds between looks at the job that is shown."""
EMPTY = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
"""A transparent pixel, where there is no picture yet."""
LARGE = 512
"""Longest side, in pixels, of a finished picture in the browser; files have all pixels."""


class Picture(ui.element):
    """An <img> whose address changes without flicker."""

    def __init__(self, label: str):
        """Args:
        label: what it shows, for those who do not see it.
        """
        super().__init__("img")
        self.props["alt"] = label
        self.classes("picture")

    def show(self, url: str) -> None:
        """Shows the picture of this address."""
        if self.props.get("src") != url:
            self.props["src"] = url
            self.update()


@dataclasses.dataclass(eq=False)
class Kept:
    """What a tab keeps when it is loaded again.

    Attributes:
      jobs: newest first.
    """

    jobs: list[Job] = dataclasses.field(default_factory=list)


class Results:
    """Jobs of one tab and the one that is looked at."""

    def __init__(
        self,
        worker: Worker,
        on_repeat: Callable[[Job, int], None],
        on_edit: Callable[[np.ndarray, str, str], None],
    ):
        """Args:
        worker: what makes the pictures.
        on_repeat: called with a job and a picture's number: make it again, perhaps otherwise.
        on_edit: called with a picture, its name and a mode of form.MODES.
        """
        self._worker, self._on_repeat, self._on_edit = worker, on_repeat, on_edit
        self._kept = Kept()
        self._job: Job | None = None
        self._row = 0
        self._frames = 0
        self._seen: Any = None
        self._shown: Any = None
        self._tiles: list[Picture] = []
        with ui.column().classes("w-full gap-3") as self._body:
            with ui.row().classes("w-full items-center no-wrap gap-3"):
                self._title = ui.label().classes("title grow")
                self._stop = ui.button("Stop", icon="stop", on_click=self._stop_job)
                self._stop.props("outline no-caps dense padding='2px 10px'")
            with ui.row().classes("w-full items-center no-wrap gap-3"):
                self._bar = ui.linear_progress(0, show_value=False, size="6px")
                self._bar.props("instant-feedback").classes("grow")
                self._state = ui.label().classes("note state").props("role=status")
            self._gallery = ui.element("div").classes("gallery")
            self._detail()
        self._history = ui.element("div").classes("history")
        self._body.visible = False
        ui.timer(POLL, self._refresh)

    def add(self, job: Job) -> None:
        """Shows a new job."""
        self._kept.jobs = [job, *self._kept.jobs][:MAX_KEPT]
        self._show(job)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show yet."""
        return self._job is None

    def restore(self, kept: Kept) -> None:
        """Shows the jobs that the tab had before it was loaded again, and keeps new ones there."""
        self._kept = kept
        if kept.jobs:
            self._show(kept.jobs[0])

    def _detail(self) -> None:
        with ui.element("div").classes("detail card") as self._card:
            with ui.column().classes("gap-2 film"):
                self._large = Picture("the chosen picture")
                self._large.classes("large")
                self._film = ui.slider(min=1, max=2, value=2, on_change=self._show_frame)
                self._film.props('aria-label="Denoising step" dense')
                self._frame = ui.label().classes("note")
            with ui.column().classes("gap-3 grow about"):
                ui.label("Stages").classes("head")
                self._stages = ui.row().classes("gap-4 stages items-end")
                with ui.row().classes("gap-2") as self._buttons:
                    for label, icon, action in (
                        ("Download PNG", "download", self._download),
                        ("Use its settings", "replay", lambda: self._repeat()),
                        ("Change it", "tune", lambda: self._edit("change")),
                        ("Paint a part", "brush", lambda: self._edit("paint")),
                    ):
                        button = ui.button(label, icon=icon, on_click=action)
                        button.props("outline no-caps dense padding='2px 10px' size=0.8rem")
                with ui.column().classes("w-full gap-1") as self._recipe:
                    ui.label("To make it again").classes("head")
                    self._command = ui.label().classes("command")
                    with ui.row().classes("gap-2"):
                        self._given = {what: self._given_button(what) for what in ("image", "mask")}
                    with ui.expansion("Everything it was made of").props("dense") as more:
                        self._record = ui.code("", language="json").classes("w-full record")
                    more.classes("w-full more")

    def _given_button(self, what: str) -> ui.button:
        button = ui.button(f"Download its {what}", on_click=lambda: self._download_given(what))
        return button.props("flat no-caps dense size=0.8rem")

    def _show(self, job: Job) -> None:
        self._job, self._seen, self._row = job, None, 0
        self._body.visible = True
        self._title.text = job.prompt
        self._gallery.clear()
        self._tiles = []
        self._gallery.classes(remove="one few many")
        self._gallery.classes("one" if job.count == 1 else "few" if job.count <= 4 else "many")
        height, width = job.arguments["size"]
        with self._gallery:
            for row in range(job.count):
                label = f"picture {row + 1}, seed {job.arguments['seeds'][row]}"
                tile = Picture(label).classes("tile")
                tile.style(f"aspect-ratio: {width} / {height}")
                tile.show(EMPTY)
                tile.on("click", lambda _, row=row: self._choose(row))
                tile.props["title"] = label
                self._tiles.append(tile)
        self._choose(0)
        self._show_history()

    def _choose(self, row: int) -> None:
        self._row, self._frames = row, 0
        for i, tile in enumerate(self._tiles):
            tile.classes("chosen") if i == row else tile.classes(remove="chosen")
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
        self._state.text = said(job, ahead)
        self._state.classes(remove="failed")
        if job.state == "failed":
            self._state.classes("failed")
        self._stop.visible = not job.ended
        self._bar.visible = job.state == "running"
        frames = job.frames[self._row]
        waits = job.state == "running" and not frames
        self._bar.props["indeterminate"] = waits
        self._bar.value = frames[-1].step / frames[-1].steps if frames else 0
        self._bar.update()
        for row, tile in enumerate(self._tiles):
            made = job.picture(row)
            if made is not None:
                tile.show(data_url(preview(made, LARGE)))
            elif job.frames[row]:
                tile.show(job.frames[row][-1].url)
        self._card.visible = bool(frames)
        if frames:
            self._show_picture(job)
        if job.ended:
            self._show_history()

    def _show_picture(self, job: Job) -> None:
        count = len(job.frames[self._row])
        at_end = self._film.value >= self._frames
        self._frames = count
        self._film.props["max"] = max(2, count)
        self._film.enabled = count > 1
        self._film.update()
        if at_end:
            self._film.value = count
        self._show_frame()
        key = (job, self._row, len(job.stages), job.ended)
        if self._shown == key:
            return
        self._shown = key
        self._stages.clear()
        with self._stages:
            for name, made in job.stages.items():
                if self._row not in made:
                    continue
                image = made[self._row]
                with ui.column().classes("gap-1 items-center"):
                    shown = Picture(f"picture of stage {name}").classes("stage")
                    shown.show(data_url(preview(image, LARGE)))
                    ui.label(f"{name}, {image.shape[1]} x {image.shape[0]}").classes("note")
            if not job.stages:
                ui.label("The first stage is at work.").classes("note")
        done = job.picture(self._row) is not None and job.recipe is not None
        self._buttons.visible = self._recipe.visible = done
        if done:
            assert job.recipe is not None
            record = job.recipe.record(self._row)
            given = "".join(f" --{what} {self._given_name(job, what)}" for what in record["given"])
            for what, button in self._given.items():
                button.visible = what in record["given"]
            self._command.text = f"imagen sample --from {self._file_name(job)}{given}"
            self._record.content = json.dumps(record, indent=1, ensure_ascii=False)

    def _show_frame(self) -> None:
        job = self._job
        frames = [] if job is None else job.frames[self._row]
        if job is None or not frames:
            return
        at = min(int(self._film.value), len(frames)) - 1
        frame, made = frames[at], job.picture(self._row)
        last = at == len(frames) - 1
        self._large.show(data_url(preview(made, LARGE)) if made is not None and last else frame.url)
        self._frame.text = f"stage {frame.stage}, step {frame.step} of {frame.steps}"

    def _show_history(self) -> None:
        self._history.clear()
        others = [job for job in self._kept.jobs if job is not self._job and job.frames[0]]
        with self._history:
            if others:
                ui.label("Earlier").classes("head")
            for job in others:
                thumb = Picture(job.prompt).classes("thumb")
                made = job.picture(0)
                thumb.show(job.frames[0][-1].url if made is None else data_url(preview(made)))
                thumb.props["title"] = job.prompt
                thumb.on("click", lambda _, job=job: self._show(job))

    def _file_name(self, job: Job) -> str:
        return f"imagen-{job.arguments['seeds'][self._row]}.png"

    def _stop_job(self) -> None:
        if self._job is not None:
            self._worker.stop(self._job)

    def _download(self) -> None:
        job = self._job
        if job is None or job.recipe is None:
            return
        made = job.picture(self._row)
        if made is not None:
            content = png_with_record(made, job.recipe.record(self._row))
            ui.download.content(content, self._file_name(job), "image/png")

    def _download_given(self, what: str) -> None:
        if self._job is not None:
            content = png_of(self._job.arguments[what])
            ui.download.content(content, self._given_name(self._job, what), "image/png")

    def _given_name(self, job: Job, what: str) -> str:
        return self._file_name(job).replace(".png", f"-{what}.png")

    def _repeat(self) -> None:
        if self._job is not None:
            self._on_repeat(self._job, self._row)

    def _edit(self, mode: str) -> None:
        made = None if self._job is None else self._job.picture(self._row)
        if self._job is not None and made is not None:
            self._on_edit(made, self._file_name(self._job), mode)


def said(job: Job, ahead: int) -> str:
    """How far a job is, in words."""
    if job.state == "waiting":
        return "next in line" if ahead == 0 else f"{ahead + 1} jobs come before it"
    if job.state == "failed":
        return job.error
    if job.state == "stopped":
        return "stopped"
    if job.state == "done":
        return f"done in {job.seconds:.1f} s"
    newest = job.frames[0][-1] if job.frames[0] else None
    if newest is None:
        return "getting ready; the first of a kind is compiled"
    return f"stage {newest.stage}, step {newest.step} of {newest.steps}"
