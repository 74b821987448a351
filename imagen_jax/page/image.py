"""Everything about one image: its denoising, its stages, its files and how to make it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from nicegui import run, ui

from imagen_jax.page.drawing import png_of, png_with_record
from imagen_jax.page.jobs import Job
from imagen_jax.page.limits import clamped


class ShownImage(ui.element):
    """An <img> whose address changes without flicker."""

    def __init__(self, label: str):
        """Args:
        label: alternative text.
        """
        super().__init__("img")
        self.props["alt"] = label
        self.classes("image")

    def show(self, url: str) -> None:
        """Shows the image of this address."""
        if self.props.get("src") != url:
            self.props["src"] = url
            self.update()


class Detail:
    """A card about the chosen image of a job.

    Attributes:
      card: the page element that holds it.
    """

    def __init__(
        self,
        on_repeat: Callable[[Job, int], None],
        on_edit: Callable[[np.ndarray, str, str], None],
    ):
        """Args:
        on_repeat: called with a job and an image's number: make it again, perhaps otherwise.
        on_edit: called with an image, its name and a mode of form.MODES.
        """
        self._on_repeat, self._on_edit = on_repeat, on_edit
        self._job: Job | None = None
        self._row = 0
        self._frames = 0
        self._shown: Any = None
        with ui.element("div").classes("detail card") as self.card:
            with ui.column().classes("gap-2 film"):
                self._large = ShownImage("the chosen image")
                self._large.classes("large")
                self._film = ui.slider(min=1, max=2, value=2, on_change=self._show_frame)
                self._film.props('aria-label="Denoising step" dense')
                self._frame = ui.label().classes("note")
            with ui.column().classes("gap-3 grow about"):
                ui.label("Stages").classes("head")
                self._stages = ui.row().classes("gap-4 items-end")
                with ui.row().classes("gap-2") as self._buttons:
                    for label, icon, action in (
                        ("Download PNG", "download", self._download),
                        ("Use its settings", "replay", self._repeat),
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
                        self._record = ui.label().classes("w-full record")
                    more.classes("w-full more")

    def choose(self, job: Job, row: int) -> None:
        """Shows another image."""
        self._job, self._row, self._frames, self._shown = job, row, 0, None
        self.refresh()

    def refresh(self) -> None:
        """Shows what has changed since the last time."""
        job = self._job
        self.card.visible = job is not None and bool(job.frames[self._row])
        if job is None or not self.card.visible:
            return
        count = len(job.frames[self._row])
        at_end = self._film.value >= self._frames
        self._frames = count
        self._film.props["max"] = max(2, count)
        self._film.enabled = count > 1
        self._film.update()
        if at_end:  # else the user looks at an earlier step
            self._film.value = count
        self._show_frame()
        key = (len(job.stages), job.ended)
        if self._shown != key:
            self._shown = key
            self._show_stages(job)
            self._show_recipe(job)

    def _show_frame(self) -> None:
        job = self._job
        frames = [] if job is None else job.frames[self._row]
        if job is None or not frames:
            return
        at = int(clamped(self._film.value, 1, len(frames)) or 1) - 1
        frame, made = frames[at], job.url(self._row)
        self._large.show(frame.url if made is None or at < len(frames) - 1 else made)
        self._frame.text = f"stage {frame.stage}, step {frame.step} of {frame.steps}"

    def _show_stages(self, job: Job) -> None:
        self._stages.clear()
        with self._stages:
            for asked in job.request.stages:
                url = job.urls.get(asked.name, {}).get(self._row)
                if url is None:
                    continue
                with ui.column().classes("gap-1 items-center"):
                    shown = ShownImage(f"image of stage {asked.name}").classes("stage")
                    shown.show(url)
                    height, width = asked.size
                    ui.label(f"{asked.name}, {width} x {height}").classes("note")
            if not job.stages:
                ui.label("The first stage is at work.").classes("note")

    def _show_recipe(self, job: Job) -> None:
        done = job.image(self._row) is not None
        self._buttons.visible = self._recipe.visible = done
        if not done:
            return
        record = job.record(self._row)
        given = "".join(f" --{what} {self._given_name(job, what)}" for what in record["given"])
        for what, button in self._given.items():
            button.visible = what in record["given"]
        self._command.text = f"imagen sample --from {self._file_name(job)}{given}"
        self._record.text = json.dumps(record, indent=1, ensure_ascii=False)

    def _given_button(self, what: str) -> ui.button:
        button = ui.button(f"Download its {what}", on_click=lambda: self._download_given(what))
        return button.props("flat no-caps dense size=0.8rem")

    def _file_name(self, job: Job) -> str:
        return f"imagen-{job.request.seeds[self._row]}.png"

    def _given_name(self, job: Job, what: str) -> str:
        return self._file_name(job).replace(".png", f"-{what}.png")

    async def _download(self) -> None:
        job, row = self._job, self._row
        made = None if job is None else job.image(row)
        if job is not None and made is not None:
            name = self._file_name(job)
            record = job.record(row)
            _send(await run.io_bound(png_with_record, made, record), name)

    async def _download_given(self, what: str) -> None:
        job = self._job
        if job is not None:
            name, given = self._given_name(job, what), getattr(job.request, what)
            _send(await run.io_bound(png_of, given[0]), name)

    def _repeat(self) -> None:
        if self._job is not None:
            self._on_repeat(self._job, self._row)

    def _edit(self, mode: str) -> None:
        made = None if self._job is None else self._job.image(self._row)
        if self._job is not None and made is not None:
            self._on_edit(made, self._file_name(self._job), mode)


def _send(content: bytes | None, name: str) -> None:
    """Sends a PNG file, unless the page has ended meanwhile, or its tab was closed."""
    if content is not None and not ui.context.client.is_deleted:
        ui.download.content(content, name, "image/png")
