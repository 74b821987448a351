"""The left half of the page: everything that is asked for."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from nicegui import ui

from imagen_jax.cascade import Cascade
from imagen_jax.diffusion.grids import TIME_GRIDS
from imagen_jax.diffusion.guidance import THRESHOLDS
from imagen_jax.diffusion.samplers import SAMPLERS
from imagen_jax.page.canvas import Canvas
from imagen_jax.page.form import MODES, Form, sizes
from imagen_jax.page.limits import MAX_IMAGES, MAX_PROMPT, MAX_STEPS, clamped
from imagen_jax.page.uploads import Uploads

FIRST = {"guidance": "Guidance", "steps": "Steps"}
MORE = {
    "sampler": "Sampler",
    "time_grid": "Time grid",
    "threshold": "Threshold",
    "percentile": "Percentile",
    "aug_level": "Noise on the small image",
    "pad": "Padding",
}
STRENGTH = 0.3
"""Of a change, to begin with: what it changes shows, and the image is still there."""
HELP = {
    "guidance": "1 is off; more follows the text closer",
    "time_grid": "where the sampler's steps lie; heun needs karras",
    "percentile": "of dynamic thresholding",
    "aug_level": "noise conditioning augmentation, 0 to 1: more invents more detail",
    "pad": "pixels of the small image by which its edges are continued: mends borders",
    "threshold": "how each step's estimate is kept in the range of an image",
}


class Controls:
    """The fields of the page.

    Attributes:
      canvas: the image that is edited.
    """

    def __init__(
        self,
        cascade: Cascade,
        uploads: Uploads,
        on_make: Callable[[], Awaitable[None]],
        on_error: Callable[[str], None],
    ):
        """Args:
        cascade: whose stages and defaults are shown.
        uploads: reads what is uploaded.
        on_make: called when the button is pressed.
        on_error: told what is wrong with an upload.
        """
        self._cascade = cascade
        self._sizes = sizes(cascade)
        self._settings: dict[str, dict[str, Any]] = {}
        self._mode = ui.toggle(MODES, value="create", on_change=lambda: self._show_mode())
        self._mode.props("no-caps unelevated spread aria-label=Mode").classes("w-full modes")
        self._explained = ui.label().classes("note")
        with ui.column().classes("w-full gap-3") as self._given:
            self.canvas = Canvas(uploads, (cascade.size, cascade.size), on_error)
            with ui.column().classes("w-full gap-0") as self._of_change:
                self._strength = self._slider("Strength", 0.01, 1.0, 0.01, STRENGTH)
                ui.label("share of noise: 1 keeps nothing of the image").classes("note")
            with ui.column().classes("w-full gap-0") as self._of_paint:
                self._resamples = self._slider("Passes", 1, 10, 1, 2)
                ui.label("more passes fit it better to the rest, and take longer").classes("note")
        self._prompt = self._area("Prompt", "what the image shows")
        self._negative = self._area("Negative prompt", "what it is guided away from; may be empty")
        with ui.row().classes("w-full gap-3"):
            self._images = self._number("Images", 4, 1, MAX_IMAGES)
            self._seed = self._number("Seed", 0, 0, 2**32 - 1)
            with self._seed.add_slot("append"):
                dice = ui.button(icon="casino", on_click=self._roll)
                dice.props('flat dense round size=sm aria-label="Another seed"')
            self._size = ui.select(
                self._sizes, label="Shape, pixels", value=next(iter(self._sizes)),
                on_change=lambda event: self.canvas.set_size(event.value),
            )  # fmt: skip
            self._size.props("outlined dense").classes("grow")
        with ui.column().classes("w-full gap-1"):
            self._table(FIRST, heads=True)
            with ui.expansion("More settings").props("dense").classes("w-full more"):
                self._table(MORE, heads=False)
        self.button = ui.button("Make images", on_click=on_make)
        self.button.props("no-caps unelevated size=lg").classes("w-full")
        self._show_mode()

    async def form(self) -> Form:
        """Return what the fields hold, whatever a browser has put there; see form.request."""
        return Form(
            mode=self._mode.value,
            prompt=self._prompt.value,
            negative=self._negative.value,
            images=self._images.value,
            seed=self._seed.value,
            size=self._size.value,
            strength=self._strength.value,
            resamples=self._resamples.value,
            settings={
                field: {name: element.value for name, element in of_stages.items()}
                for field, of_stages in self._settings.items()
            },
            image=self.canvas.image,
            mask=await self.canvas.mask() if self._mode.value == "paint" else None,
        )

    def fill(self, form: Form, seed: int) -> None:
        """Sets the fields to what an image of this seed was made of, but for strokes."""
        self._mode.value = form.mode
        self._prompt.value, self._negative.value = form.prompt, form.negative
        self._images.value, self._seed.value, self._size.value = 1, seed, form.size
        self._strength.value, self._resamples.value = form.strength, form.resamples
        for field, of_stages in form.settings.items():
            for name, value in of_stages.items():
                self._settings[field][name].value = value

    def say(self, prompt: str) -> None:
        """Sets the prompt."""
        self._prompt.value = prompt

    def edit(self, image: np.ndarray, name: str, mode: str) -> None:
        """Puts an image on the canvas."""
        self._mode.value = mode
        self.canvas.load(image, name)

    def _show_mode(self) -> None:
        mode = self._mode.value
        self._explained.text = self._explanation(mode)
        self._given.visible = mode != "create"
        self._of_change.visible, self._of_paint.visible = mode == "change", mode == "paint"
        self.canvas.set_painting(mode == "paint")

    def _explanation(self, mode: str) -> str:
        if mode == "enlarge":
            small = next((s.low_res for s in self._cascade.stages if s.low_res is not None), None)
            if small is None:
                return "No stage of this cascade enlarges images."
            return (
                f"The image is brought to {small} px and enlarged to {self._cascade.size} px, "
                "guided by a prompt that says what it shows."
            )
        return {
            "create": "Images from noise, as the prompt says.",
            "change": "The image is noised, and sampled again from there as the prompt says.",
            "paint": "What you brush over is repainted; the rest stays as it is.",
        }[mode]

    def _roll(self) -> None:
        self._seed.value = random.randrange(2**31)

    def _area(self, label: str, hint: str) -> ui.textarea:
        # The limit is counted, not cut: a longer text is refused with an error.
        def too_long(text: str | None) -> str | None:
            count = len(text or "")
            return f"{count:,} of {MAX_PROMPT:,} characters" if count > MAX_PROMPT else None

        area = ui.textarea(label, placeholder=hint, validation=too_long)
        return area.props("outlined autogrow dense hide-bottom-space").classes("w-full")

    def _number(self, label: str, value: float, low: float, high: float) -> ui.number:
        number = _bounded(low, high, 1, value, label)
        return number.props("outlined dense").classes("number")

    def _slider(self, label: str, low: float, high: float, step: float, value: float) -> ui.slider:
        with ui.row().classes("w-full justify-between"):
            ui.label(label)
            shown = ui.label()
        slider = ui.slider(min=low, max=high, step=step, value=round(value / step) * step)
        slider.props(f"aria-label={label}")
        # A browser may send something else than a number.
        shown.bind_text_from(slider, "value", lambda x: f"{clamped(x, low, high) or low:g}")
        return slider

    def _table(self, fields: dict[str, str], *, heads: bool) -> None:
        stages = self._cascade.stages
        columns = f"grid-template-columns: 7.5rem repeat({len(stages)}, minmax(0, 1fr))"
        with ui.element("div").classes("settings").style(columns):
            if heads:
                ui.label("")
                for stage in stages:
                    ui.label(f"{stage.name}, {stage.resolution} px").classes("head")
            for field, label in fields.items():
                with ui.label(label):
                    if field in HELP:
                        ui.tooltip(HELP[field])
                self._settings[field] = {}
                for stage in stages:
                    if field in ("aug_level", "pad") and stage.low_res is None:
                        ui.label("")
                        continue
                    element = self._setting(field, getattr(stage.sample, field))
                    element.props(f'outlined dense aria-label="{label}, {stage.name}"')
                    self._settings[field][stage.name] = element

    def _setting(self, field: str, value: Any) -> ui.number | ui.select:
        if field == "sampler":
            choices = [*SAMPLERS, "dpmpp_2m(sde=true)"]
            return ui.select(list(dict.fromkeys([*choices, value])), value=value)
        if field == "time_grid":
            return ui.select(list(TIME_GRIDS), value=value)
        if field == "threshold":
            return ui.select(list(THRESHOLDS), value=value)
        if field == "steps":
            return _bounded(1, MAX_STEPS, 1, value)
        high, step = {
            "guidance": (1000, 0.5),
            "percentile": (100, 0.5),
            "aug_level": (1, 0.05),
            "pad": (64, 1),
        }[field]
        return _bounded(0, high, step, value)


def _bounded(low: float, high: float, step: float, value: float, label: str = "") -> ui.number:
    """A field for a number whose arrows stay within bounds.

    The bounds are the browser's alone (the colon keeps NiceGUI from them): NiceGUI would move what
    is typed into them, where it is to be refused with an error.
    """
    return ui.number(label, value=value).props(f":min={low} :max={high} step={step}")
