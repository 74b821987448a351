"""The page of one tab: controls on the left, results on the right."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nicegui import app, ui

from imagen_jax.errors import UserError
from imagen_jax.page.controls import Controls
from imagen_jax.page.image import Detail
from imagen_jax.page.jobs import Job, Tab, Worker
from imagen_jax.page.results import Results
from imagen_jax.page.uploads import Uploads

STYLE = Path(__file__).with_name("style.css").read_text("utf-8")


EXAMPLES = (
    "a drawing of a red apple on a blue background",
    "a flat icon of a green cat on a pink background",
    "a drawing of a rocket above a sunflower on a black background",
    "a flat icon of a blue star left of a yellow car on a white background",
)
"""In the words of the built-in scenes."""


CLOSED_SECONDS = 5.0
"""Seconds in which a page may reconnect, as it does on a reload."""


async def build(worker: Worker, uploads: Uploads) -> None:
    """Put the page of a tab together; jobs of the tab are still there when it is loaded again.

    Where it is closed, its jobs that are not done are given up.

    Args:
      worker: the worker that samples, for all tabs.
      uploads: reads uploads, for all tabs.
    """
    cascade = worker.cascade
    ui.colors(primary="#4338ca", negative="#b91c1c")
    ui.add_css(STYLE)

    def fail(message: str) -> None:
        error.text = message
        error.visible = True

    async def make() -> None:
        error.visible = False
        form = await controls.form()
        try:
            results.add(worker.submit(form, results.tab))
        except UserError as reason:
            fail(str(reason))
            return
        welcome.visible = False

    def reuse(job: Job, row: int) -> None:
        if job.form.image is not None:
            controls.edit(job.form.image, "the same image", job.form.mode)
        controls.fill(job.form, job.request.seeds[row])

    with ui.element("main").classes("page"):
        with ui.column().classes("side gap-3"):
            with ui.row().classes("w-full items-baseline gap-2"):
                ui.label("imagen").classes("name")
                stages = " to ".join(f"{stage.resolution}" for stage in cascade.stages)
                ui.label(f"{stages} px, text by {cascade.encoder.name}").classes("note")
            controls = Controls(cascade, uploads, make, fail)
            error = ui.label().classes("error w-full").props("role=alert")
            error.visible = False
        with ui.column().classes("results gap-4"):
            with ui.column().classes("w-full gap-2 welcome") as welcome:
                ui.label("Say what the image shows, and press Make images.")
                if cascade.source.get("train", {}).get("name") == "scenes":
                    ui.label("Such as:").classes("note")
                    for text in EXAMPLES:
                        chip = ui.button(text, on_click=lambda _, t=text: controls.say(t))
                        chip.props("flat no-caps dense").classes("example")
            results = Results(worker, lambda: Detail(reuse, controls.edit))
    client = ui.context.client
    await client.connected()
    tab = app.storage.tab.setdefault("kept", Tab())
    tab.pages += 1

    def left() -> None:
        tab.pages -= 1
        asyncio.get_running_loop().call_later(CLOSED_SECONDS, worker.leave, tab)

    client.on_delete(left)
    results.restore(tab)
    welcome.visible = not tab.jobs
