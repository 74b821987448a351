"""The page's form, checked and turned into a Request."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from imagen_jax.cascade import Cascade, Request, check_prompts, crop_to
from imagen_jax.cascade.stages import size_step
from imagen_jax.errors import UserError
from imagen_jax.page.limits import MAX_IMAGES, MAX_PROMPT, MAX_STEPS, MAX_WORK, clamped

MODES = {
    "create": "Create",
    "change": "Change",
    "paint": "Paint a part",
    "enlarge": "Enlarge",
}
"""Mode -> its name on the page."""


@dataclasses.dataclass
class Form:
    """Everything that is asked for on the page, as its fields hold it.

    Attributes:
      mode: one of MODES.
      prompt, negative: texts.
      images: number of images; image i has seed + i.
      seed: seed of the first image.
      size: height and width of the images.
      strength: img2img strength of "change", in (0, 1].
      resamples: times that "paint" repeats each step.
      settings: field of SampleConfig -> stage -> value.
      image: uint8 [h, w, 3] that was uploaded.
      mask: bool [h, w] of what is repainted.
    """

    mode: Any
    prompt: Any
    negative: Any
    images: Any
    seed: Any
    size: Any
    strength: Any
    resamples: Any
    settings: dict[str, dict[str, Any]]
    image: np.ndarray | None = None
    mask: np.ndarray | None = None


def modes(cascade: Cascade) -> dict[str, str]:
    """Those of MODES that the stages of a cascade can do, of which one may be there alone."""
    small = [stage.low_res for stage in cascade.stages]
    cannot = set() if small[0] is None else {"create"}
    if not any(small):
        cannot.add("enlarge")
    return {mode: name for mode, name in MODES.items() if mode not in cannot}


def sizes(cascade: Cascade) -> dict[tuple[int, int], str]:
    """Height and width of images that the page offers -> how it calls them."""
    side, step = cascade.size, size_step(cascade.stages)
    long = max(step, round(1.5 * side / step) * step)
    offered = {"square": (side, side), "wide": (side, long), "tall": (long, side)}
    return {size: f"{name}, {size[1]} x {size[0]}" for name, size in offered.items()}


def request(form: Form, cascade: Cascade) -> Request:
    """Return what the form asks of a cascade, checked.

    Raises:
      UserError: something is missing, too much or out of range; says what.
    """
    if not isinstance(form.mode, str) or form.mode not in MODES:
        raise UserError(f"unknown mode {form.mode!r}; choices: {', '.join(MODES)}")
    prompt = _text("prompt", form.prompt)
    if not prompt:
        raise UserError("say in the prompt what the image shows")
    negative = _text("negative prompt", form.negative)
    count = _whole("number of images", form.images, 1, MAX_IMAGES)
    seed = _whole("seed", form.seed, 0, 2**32 - count)
    settings = {field: dict(values) for field, values in form.settings.items()}
    for name, steps in settings.get("steps", {}).items():
        settings["steps"][name] = _whole(f"number of steps of {name}", steps, 1, MAX_STEPS)
    for name, pad in settings.get("pad", {}).items():
        settings["pad"][name] = _whole(f"padding of {name}", pad, 0, 64)
    for field, values in settings.items():
        for name, value in values.items():
            if value is None:
                raise UserError(f"{field} of {name} is empty")
            if isinstance(value, int | float) and clamped(value, -1e6, 1e6) != value:
                raise UserError(f"{field} of {name} is no number that it can be")
    if not isinstance(form.size, tuple) or form.size not in sizes(cascade):
        raise UserError(
            f"unknown shape {form.size!r}; choices: {', '.join(sizes(cascade).values())}"
        )
    options: dict[str, Any] = {"size": form.size, **settings}
    if form.mode != "create":
        if form.image is None:
            raise UserError("choose an image to start from")
        options["image"] = crop_to(form.image, options["size"])
    if form.mode == "change":
        strength = clamped(form.strength, 0.01, 1.0)
        if strength is None or strength != form.strength:
            raise UserError(f"the strength is {form.strength!r}; it must be from 0.01 to 1")
        options["strength"] = strength
    if form.mode == "paint":
        if form.mask is None or not form.mask.any():
            raise UserError("brush over the part of the image that is to be repainted")
        options["mask"] = form.mask
        options["resamples"] = _whole("number of passes", form.resamples, 1, 20)
    ran = [s for s in cascade.stages if form.mode != "enlarge" or s.low_res is not None]
    if not ran:
        raise UserError("this cascade has no stage that enlarges images")
    asked = cascade.request(
        prompt, seed=seed, per_prompt=count, negative_prompts=negative or None, **options
    )
    _check_work(asked, options.get("resamples", 1))
    return asked


def _check_work(asked: Request, passes: int) -> None:
    """Raises UserError if a job would keep all others waiting for too long."""
    steps = [stage.settings.steps for stage in asked.stages]
    work = len(asked) * passes * sum(steps)
    if work > MAX_WORK:
        raise UserError(
            f"{len(asked)} images of {' + '.join(map(str, steps))} steps in {passes} passes are "
            f"{work:,} steps; a job may have {MAX_WORK:,}: ask for fewer images, steps or passes"
        )


def _text(what: str, text: Any) -> str:
    text = "" if text is None else text
    if not isinstance(text, str):
        raise UserError(f"the {what} must be text, got {text!r}")
    if len(text) > MAX_PROMPT:
        raise UserError(
            f"the {what} has {len(text):,} characters; at most {MAX_PROMPT:,} are taken"
        )
    return str(check_prompts([text])[0]) if text.strip() else ""


def _whole(what: str, value: Any, low: int, high: int) -> int:
    number = clamped(value, -(2**53), 2**53)  # also of infinity, which is no whole number
    if number is None or number != value or number != int(number):
        raise UserError(f"the {what} must be a whole number, got {value}")
    if not low <= value <= high:
        raise UserError(f"the {what} is {int(value):,}; it must be from {low:,} to {high:,}")
    return int(value)
