"""Cascade: stages with their weights and the text encoder that conditions them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np

from imagen_jax.cascade.folder import CHUNK
from imagen_jax.cascade.loaded import Loaded
from imagen_jax.cascade.prompts import Prompt, check_words
from imagen_jax.cascade.request import Request, lists_choices, make_request
from imagen_jax.cascade.run import Finished, Step, run_stage
from imagen_jax.cascade.samples import Samples, count_black
from imagen_jax.cascade.stages import SETTINGS, PerStage, Settings
from imagen_jax.diffusion.transitions import Sampler
from imagen_jax.errors import UserError
from imagen_jax.low_noise import last_level
from imagen_jax.typing import TextEmbedding


class Cascade(Loaded):
    """Stages of one cascade with their weights and the text encoder that conditions them.

    Example:
      >>> from imagen_jax import Cascade
      >>> cascade = Cascade.load()
      >>> samples = cascade.sample(["a drawing of a red apple"], seed=1, per_prompt=2)
      >>> len(samples), samples[0].size == (cascade.size, cascade.size)
      (2, True)
      >>> [path.name for path in samples.save("images")][0]
      'grid.png'

    Attributes:
      stages: stages, lowest resolution first.
      mesh: devices that batches are divided over, and weights laid out on.
      dtype: dtype of weights and activations, where it is not the config's.
      low_memory: True if the encoder and every stage are freed after use.
    """

    @lists_choices
    def request(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        seed: int | Sequence[int] = 0,
        per_prompt: int = 1,
        negative_prompts: str | Sequence[str] | None = None,
        text: TextEmbedding | None = None,
        size: int | tuple[int, int] | None = None,
        image: Any = None,
        mask: Any = None,
        strength: PerStage[float] = None,
        resamples: int = 1,
        jump: int = 1,
        start_stage: str | None = None,
        guidance: PerStage[float] = None,
        guidance_min_logsnr: PerStage[float] = None,
        guidance_max_logsnr: PerStage[float] = None,
        threshold: PerStage[str] = None,
        percentile: PerStage[float] = None,
        threshold_cap: PerStage[float] = None,
        sampler: PerStage[str | Sampler] = None,
        steps: PerStage[int] = None,
        time_grid: PerStage[str] = None,
        end_logsnr: PerStage[float] = None,
        aug_level: PerStage[float] = None,
        pad: PerStage[int] = None,
    ) -> Request:
        """Return what is asked for, checked; `run` and `stream` make it.

        Image r of a prompt has the seed `seed + r`; equal prompt, seed and settings give the equal
        image, whatever else is sampled with it.

        An image alone is enlarged: it is what start_stage starts from. With a strength, it is
        noised that far and sampled from there (SDEdit, img2img), by start_stage; later stages
        enlarge the result. With a mask, every stage paints what is True in it, and keeps the rest
        of the image (RePaint, inpainting).

        Args:
          prompts: one or more, not empty; texts, or a Blend of two.
          seed: seed of the first image of every prompt, in [0, 2**32); or one for each prompt.
          per_prompt: images of each prompt.
          negative_prompts: one for all, or one for each prompt: prediction = w conditional +
            (1 - w) negative in place of unconditional; "" is unconditional. It changes nothing
            where guidance is 1.
          text: token states of the prompts in place of what the encoder makes of them, such as
            precomputed ones; [n, l, d] with l at most what the stages were trained with.
          size: size of the last stage's images: side, or (height, width). None is what it was
            trained for; when enlarging, what the image gives.
          image: uint8 [h, w, 3] for all, or one for each prompt; brought to the sizes that stages
            need.
          mask: bool [h, w] or one for each prompt, True where the image is repainted.
          strength: img2img strength in (0, 1], 1 keeps nothing of the image, see sampling.Edit: of
            start_stage, or by stage.
          resamples, jump: inpainting walks every `jump` steps `resamples` times, see
            diffusion.editing: more agree better with what is kept.
          start_stage: the first that runs; None is the first that can.
          guidance, guidance_min_logsnr, guidance_max_logsnr, threshold, percentile, threshold_cap,
            sampler, steps, time_grid, end_logsnr, aug_level, pad: see SampleConfig; a value holds
            for all stages, a mapping from stage names to values for those, None is the config's.

        Raises:
          UserError: no prompts, an empty or too long prompt, a size that the stages cannot make,
            values out of range, arguments that do not fit one another, or an unknown one.
        """
        given = locals()
        settings = cast("Settings", {name: given[name] for name in SETTINGS})
        request = make_request(
            self.stages, self.fingerprints, self.dtype, prompts, seed=seed, per_prompt=per_prompt,
            negative_prompts=negative_prompts, text=text, size=size, image=image, mask=mask,
            strength=strength, resamples=resamples, jump=jump, start_stage=start_stage,
            settings=settings,
        )  # fmt: skip
        texts: list[Prompt] = [*request.negative_prompts]
        if text is None:
            texts += request.prompts
        if any(texts):
            check_words(self.encoder, texts, self.stages[0].text.max_length)
        self._check_noise_levels(request)
        return dataclasses.replace(request, safety=self.applied)

    def _check_noise_levels(self, request: Request) -> None:
        """Warn of stages whose sampling ends where validation found the network to be bad."""
        for asked in request.stages:
            errors = self._pretrained.x0_errors.get(asked.name)
            if errors and (fault := errors.fault(last_level(asked.stage, asked.settings))):
                warnings.warn(f"stage {asked.name!r}: {fault}", stacklevel=4)

    @lists_choices
    def sample(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        seed: int | Sequence[int] = 0,
        per_prompt: int = 1,
        negative_prompts: str | Sequence[str] | None = None,
        text: TextEmbedding | None = None,
        size: int | tuple[int, int] | None = None,
        image: Any = None,
        mask: Any = None,
        strength: PerStage[float] = None,
        resamples: int = 1,
        jump: int = 1,
        start_stage: str | None = None,
        guidance: PerStage[float] = None,
        guidance_min_logsnr: PerStage[float] = None,
        guidance_max_logsnr: PerStage[float] = None,
        threshold: PerStage[str] = None,
        percentile: PerStage[float] = None,
        threshold_cap: PerStage[float] = None,
        sampler: PerStage[str | Sampler] = None,
        steps: PerStage[int] = None,
        time_grid: PerStage[str] = None,
        end_logsnr: PerStage[float] = None,
        aug_level: PerStage[float] = None,
        pad: PerStage[int] = None,
        batch_size: int | None = None,
        intermediates: bool = False,
        show_progress: bool = True,
        on_step: Callable[[Step], None] | None = None,
        on_finished: Callable[[Finished], None] | None = None,
    ) -> Samples:
        """Return images of prompts: `run` of a `request`, whose arguments these are.

        Raises:
          UserError: see request and run.

        Warns:
          UserWarning: the safety checker of the cascade, if it has one, made images black.
        """
        given = locals()
        request = self.request(**{name: given[name] for name in ASKED})
        samples = self.run(
            request, batch_size=batch_size, intermediates=intermediates,
            show_progress=show_progress, on_step=on_step, on_finished=on_finished,
        )  # fmt: skip
        if any(samples.black):
            warnings.warn(count_black(samples.black), stacklevel=3)
        return samples

    def run(
        self,
        request: Request,
        *,
        batch_size: int | None = None,
        intermediates: bool = False,
        show_progress: bool = True,
        on_step: Callable[[Step], None] | None = None,
        on_finished: Callable[[Finished], None] | None = None,
    ) -> Samples:
        """Return the images of a request.

        Stages run one after another over all images; what a stage hands on has 8 bits a channel, so
        that starting from an image that was kept gives the same. A cascade with a safety checker or
        a watermark applies them to the images of the last stage; where one is made black, so is
        what earlier stages and steps made of it. Only on_step sees estimates before that.

        Args:
          request: the request.
          batch_size: most images that are made at once; None is what run.BATCH_PIXELS allow, at
            most 16 on each device.
          intermediates: also keep the estimates of the clean image at every step.
          show_progress: draw a progress bar for each stage.
          on_step: called after every step; may raise to stop.
          on_finished: called with the images of every batch that a stage finishes.

        Raises:
          UserError: a batch_size below 1.
        """
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        count = len(request)
        if request.text is None:
            both = self.encode([*request.prompts, *request.negative_prompts])
            text, negative = (TextEmbedding(*(x[rows] for x in both))
                              for rows in (slice(count), slice(count, None)))  # fmt: skip
        else:
            text, negative = request.text, self.encode(request.negative_prompts)
        images: dict[str, np.ndarray] = {}
        estimates: dict[str, np.ndarray] = {}
        previous: np.ndarray | None = None
        black = [""] * count
        last = request.stages[-1].name

        def finished(stage: str, rows: np.ndarray, made: np.ndarray) -> np.ndarray:
            reasons = [""] * len(rows)
            if stage == last and self.safety_filter is not None:
                made, reasons = self.safety_filter(made)
                for row, reason in zip(rows, reasons, strict=True):
                    black[row] = reason
            if on_finished is not None:
                on_finished(Finished(stage, rows, made, request, reasons))
            return made

        for asked in request.stages:
            try:
                previous, estimates[asked.name] = run_stage(
                    asked, request, self.weights(asked.name), text, negative, previous, self.mesh,
                    batch_size=batch_size, intermediates=intermediates,
                    show_progress=show_progress, on_step=on_step,
                    on_batch=functools.partial(finished, asked.name),
                )  # fmt: skip
            finally:
                if self.low_memory:
                    self._weights.pop(asked.name, None)
                    if self.safety_filter is not None:
                        self.safety_filter.free()
            images[asked.name] = previous
        hidden = [row for row, reason in enumerate(black) if reason]
        for name, made in images.items():
            estimates[name][:, hidden] = 0
            if name != last:
                made[hidden] = 0
        return Samples(
            request=request,
            images=images[last],
            stages=images,
            intermediates=estimates if intermediates else {},
            black=black,
        )

    def stream(
        self,
        request: Request,
        *,
        chunk: int = CHUNK,
        batch_size: int | None = None,
        on_finished: Callable[[Finished], None] | None = None,
    ) -> Iterator[Samples]:
        """Yield the samples of a request, `chunk` images at a time, each through all stages.

        Memory does not grow with the number of images, and each chunk is what it is whether the
        chunks before it were made or not.

        Args:
          request: the request.
          chunk: images that go through all stages together.
          batch_size, on_finished: as for run.

        Raises:
          UserError: a chunk or batch_size below 1.
        """
        if chunk < 1:
            raise UserError(f"chunk must be at least 1, got {chunk}")
        for start in range(0, len(request), chunk):
            yield self.run(
                request.rows(start, start + chunk), batch_size=batch_size, show_progress=False,
                on_finished=on_finished,
            )  # fmt: skip


ASKED = tuple(name for name in inspect.signature(Cascade.request).parameters if name != "self")
"""Arguments of Cascade.request."""
