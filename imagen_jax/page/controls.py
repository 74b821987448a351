"""The left half of the page: everything that is asked for."""

from __future__ import annotations

import math
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
from imagen_jax.page.form import Form, modes, sizes
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
PASSES = 2
"""Of painting, to begin with."""
OF_SMALL = ("aug_level", "pad")
"""Of stages that enlarge a small image."""
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

    Every element costs each new tab time: those that edit an image, and those of the further
    settings, are put there when they are asked for.
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
        self._cascade, self._uploads, self._on_error = cascade, uploads, on_error
        self._sizes = sizes(cascade)
        self._editing: _Editing | None = None
        self._settings: dict[str, dict[str, Any]] = {}
        self._defaults = {
            field: {
                stage.name: getattr(stage.sample, field)
                for stage in cascade.stages
                if field not in OF_SMALL or stage.low_res is not None
            }
            for field in (*FIRST, *MORE)
        }
        offered = modes(cascade)
        self._mode = ui.toggle(
            offered, value=next(iter(offered)), on_change=lambda: self._show_mode()
        )
        self._mode.props("no-caps unelevated spread aria-label=Mode").classes("w-full modes")
        self._explained = ui.label().classes("note")
        self._given = ui.column().classes("w-full gap-3")
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
                on_change=lambda event: self._set_size(event.value),
            )  # fmt: skip
            self._size.props("outlined dense").classes("grow")
        with ui.column().classes("w-full gap-1"):
            self._table(FIRST, heads=True)
            more = ui.expansion("More settings", on_value_change=lambda: self._show_more())
            with more.props("dense").classes("w-full more"):
                self._more = ui.column().classes("w-full gap-1")
        self.button = ui.button("Make images", on_click=on_make)
        self.button.props("no-caps unelevated size=lg").classes("w-full")
        self._show_mode()

    async def form(self) -> Form:
        """Return what the fields hold, whatever a browser has put there; see form.request."""
        edit = self._editing
        return Form(
            mode=self._mode.value,
            prompt=self._prompt.value,
            negative=self._negative.value,
            images=self._images.value,
            seed=self._seed.value,
            size=self._size.value,
            strength=STRENGTH if edit is None else edit.strength.value,
            resamples=PASSES if edit is None else edit.resamples.value,
            settings=self._defaults
            | {
                field: {name: element.value for name, element in of_stages.items()}
                for field, of_stages in self._settings.items()
            },
            image=None if edit is None else edit.canvas.image,
            mask=await edit.canvas.mask() if edit and self._mode.value == "paint" else None,
        )

    def fill(self, form: Form, seed: int) -> None:
        """Sets the fields to what an image of this seed was made of, but for strokes."""
        self._mode.value = form.mode
        self._prompt.value, self._negative.value = form.prompt, form.negative
        self._images.value, self._seed.value, self._size.value = 1, seed, form.size
        if self._editing is not None:
            self._editing.strength.value = form.strength
            self._editing.resamples.value = form.resamples
        for field, of_stages in form.settings.items():
            if field not in self._settings and of_stages != self._defaults[field]:
                self._show_more()
            for name, element in self._settings.get(field, {}).items():
                element.value = of_stages[name]

    def say(self, prompt: str) -> None:
        """Sets the prompt."""
        self._prompt.value = prompt

    def edit(self, image: np.ndarray, name: str, mode: str) -> None:
        """Puts an image on the canvas."""
        self._mode.value = mode
        assert self._editing is not None  # of every mode but "create"
        self._editing.canvas.load(image, name)

    def _set_size(self, size: tuple[int, int] | None) -> None:
        if self._editing is not None and size is not None:
            self._editing.canvas.set_size(size)

    def _show_mode(self) -> None:
        mode = self._mode.value
        if mode is None:  # which no button stands for
            return
        self._explained.text = self._explanation(mode)
        self._given.visible = mode != "create"
        if mode != "create" and self._editing is None:
            with self._given:
                size = self._size.value or next(iter(self._sizes))
                self._editing = _Editing(self._uploads, size, self._on_error)
        if self._editing is not None:
            self._editing.show(mode)

    def _show_more(self) -> None:
        if "sampler" not in self._settings:
            with self._more:
                self._table(MORE, heads=False)

    def _explanation(self, mode: str) -> str:
        if mode == "enlarge":
            small = next(s.low_res for s in self._cascade.stages if s.low_res is not None)
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
        def too_long(text: Any) -> str | None:
            count = len(text) if isinstance(text, str) else 0  # what is no text is told later
            return f"{count:,} of {MAX_PROMPT:,} characters" if count > MAX_PROMPT else None

        area = ui.textarea(label, placeholder=hint, validation=too_long)
        return area.props("outlined autogrow dense hide-bottom-space").classes("w-full")

    def _number(self, label: str, value: float, low: float, high: float) -> ui.number:
        number = _bounded(low, high, 1, value, label)
        return number.props("outlined dense").classes("number")

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
                    if stage.name not in self._defaults[field]:
                        ui.label("")
                        continue
                    element = self._setting(field, self._defaults[field][stage.name])
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


class _Editing:
    """Fields of the modes that begin with an image.

    Attributes:
      canvas: the image.
      strength, resamples: sliders.
    """

    def __init__(self, uploads: Uploads, size: tuple[int, int], on_error: Callable[[str], None]):
        self.canvas = Canvas(uploads, size, on_error)
        with ui.column().classes("w-full gap-0") as self._of_change:
            self.strength = _slider("Strength", 0.01, 1.0, 0.01, STRENGTH)
            ui.label("share of noise: 1 keeps nothing of the image").classes("note")
        with ui.column().classes("w-full gap-0") as self._of_paint:
            self.resamples = _slider("Passes", 1, 10, 1, PASSES)
            ui.label("more passes fit it better to the rest, and take longer").classes("note")

    def show(self, mode: str) -> None:
        """Shows what belongs to a mode."""
        self._of_change.visible, self._of_paint.visible = mode == "change", mode == "paint"
        self.canvas.set_painting(mode == "paint")


def _slider(label: str, low: float, high: float, step: float, value: float) -> ui.slider:
    with ui.row().classes("w-full justify-between"):
        ui.label(label)
        shown = ui.label()
    slider = ui.slider(min=low, max=high, step=step, value=round(value / step) * step)
    slider.props(f"aria-label={label}")
    # A browser may send something else than a number.
    shown.bind_text_from(slider, "value", lambda x: f"{clamped(x, low, high) or low:g}")
    return slider


class _Number(ui.number):
    """A field for a number in which a browser may put something else."""

    def _event_args_to_value(self, e: Any) -> float | None:
        try:
            number = super()._event_args_to_value(e)
        except (TypeError, ValueError, OverflowError):
            return None
        return number if number is not None and math.isfinite(number) else None


def _bounded(low: float, high: float, step: float, value: float, label: str = "") -> ui.number:
    """A field for a number whose arrows stay within bounds.

    The bounds are the browser's alone (the colon keeps NiceGUI from them): NiceGUI would move what
    is typed into them, where it is to be refused with an error.
    """
    return _Number(label, value=value).props(f":min={low} :max={high} step={step}")
