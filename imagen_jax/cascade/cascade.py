"""Cascade: stages with their weights and the text encoder that conditions them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from imagen_jax.cascade.prompts import (
    Prompt,
    check_negative_prompts,
    check_prompts,
    check_text,
    encode,
    no_text,
    tokenize,
)
from imagen_jax.cascade.request import (
    StageRun,
    check_seeds,
    choose_stages,
    plan_stages,
    stage_settings,
)
from imagen_jax.cascade.run import StageRows, Step, run_stage
from imagen_jax.cascade.samples import CascadeSamples, Finished, make_recipe
from imagen_jax.checkpoints.cascades import Pretrained, open_cascade
from imagen_jax.errors import UserError
from imagen_jax.sharding import make_mesh
from imagen_jax.stage import SampleConfig
from imagen_jax.text.encoder import TextEncoder, load_encoder
from imagen_jax.typing import TextEmbedding

Keep = Literal["all", "one"]


class Cascade:
    """Stages of one cascade with their weights and the text encoder that conditions them.

    Attributes:
      stages: lowest resolution first.
      mesh: devices that batches are divided over, and weights laid out on.
      keep: "all" keeps what was loaded; "one" frees the encoder and every stage after use.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        load_text_encoder: Callable[[], TextEncoder],
        *,
        stages: Sequence[str] | None = None,
        dtype: str | None = None,
        keep: Keep = "all",
        mesh: Mesh | None = None,
    ):
        """Args:
        pretrained: the cascade on disk.
        load_text_encoder: loads the frozen encoder that the stages were trained with.
        stages, dtype, keep, mesh: as for load.

        Raises:
          UserError: stages that are not there, do not follow one another or read different text.
        """
        if keep not in ("all", "one"):
            raise UserError(f"keep is {keep!r}; choices: all, one")
        if dtype not in (None, "float32", "bfloat16"):
            raise UserError(f"dtype is {dtype!r}; choices: float32, bfloat16, or None")
        self.stages = [
            stage if dtype is None else stage.with_network(stage.network.with_dtype(dtype))
            for stage in choose_stages(pretrained.stages, stages)
        ]
        self.dtype = dtype
        self.keep = keep
        self.mesh = make_mesh() if mesh is None else mesh
        self.source = pretrained.source
        self._pretrained = pretrained
        self._load_text_encoder = load_text_encoder
        self._encoder: TextEncoder | None = None
        self._weights: dict[str, Any] = {}

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        encoder_weights: str | None = None,
        vocabulary: str | None = None,
        *,
        stages: Sequence[str] | None = None,
        dtype: str | None = None,
        keep: Keep = "all",
        mesh: Mesh | None = None,
    ) -> Cascade:
        """Loads a cascade.

        Args:
          path: a work directory of `imagen train`, or a directory written by
            `pretrained.export_cascade`; None is the small cascade that comes with the package.
          encoder_weights, vocabulary: files of the text encoder, see `load_encoder`; needed by
            cascades that were trained with T5.
          stages: names of those to use, one after another in the cascade; None is all. A later
            one as the first needs an image to start from.
          dtype: of weights and activations, "float32" or "bfloat16"; None is float32 weights, and
            activations as the config says.
          keep: "all" loads everything now and keeps it; "one" loads the encoder, if there is a text
            to encode, and the weights of a stage when their turn comes and frees them after it, so
            that no more than one of them is in memory.
          mesh: of devices; None is all of them, each with all weights and a part of every batch.
            Weights are divided over its axes fsdp and tensor, see sharding.LOGICAL_AXIS_RULES.

        Raises:
          UserError: no cascade is there, or a stage has no checkpoint yet; stages that do not
            belong together, or another text encoder than they were trained with.
        """
        pretrained = open_cascade(path)
        recorded = pretrained.encoder

        def load_text_encoder() -> TextEncoder:
            encoder = load_encoder(recorded["name"], encoder_weights, vocabulary)
            if encoder.fingerprint != recorded["fingerprint"]:
                raise UserError(
                    f"the cascade was trained with embeddings of encoder {recorded['name']!r} with "
                    f"fingerprint {recorded['fingerprint']}, but the one here has "
                    f"{encoder.fingerprint}; use the weights and vocabulary that it was trained "
                    "with"
                )
            return encoder

        cascade = cls(
            pretrained, load_text_encoder, stages=stages, dtype=dtype, keep=keep, mesh=mesh
        )
        if keep == "all":
            _ = cascade.encoder
            for stage in cascade.stages:
                cascade.weights(stage.name)
        return cascade

    @property
    def size(self) -> int:
        """Pixels per side of the images that the cascade makes unless asked for another size."""
        return self.stages[-1].resolution

    @property
    def encoder(self) -> TextEncoder:
        """The text encoder, loaded unless it is in memory."""
        if self._encoder is None:
            self._encoder = self._load_text_encoder()
        return self._encoder

    def weights(self, name: str) -> Any:
        """Weights of a stage on the mesh, loaded unless they are in memory."""
        if name not in self._weights:
            (of_disk,) = (stage for stage in self._pretrained.stages if stage.name == name)
            self._weights[name] = self._pretrained.weights(of_disk, self.mesh, self.dtype)
        return self._weights[name]

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Stage name -> of all that decides its images, see Pretrained.fingerprint."""
        return {
            stage.name: self._pretrained.fingerprint(stage)
            for stage in choose_stages(
                self._pretrained.stages, [stage.name for stage in self.stages]
            )
        }

    def settings(self, **overrides: Any) -> dict[str, SampleConfig]:
        """Settings of every stage: its defaults, replaced by what is not None.

        Args:
          **overrides: fields of SampleConfig; a value holds for all stages, a mapping from stage
            names to values for those stages.

        Raises:
          UserError: an unknown field or stage, or a value of another type or out of range.
        """
        return stage_settings(self.stages, **overrides)

    def check(self, prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
        """The prompts, stripped, as `sample` would take them; encodes nothing.

        Raises:
          UserError: none were given, or one is empty, too long or no text.
        """
        checked = check_prompts(prompts)
        tokenize(self.encoder, checked, self.stages[0].text.max_length)
        return checked

    def encode(self, prompts: Sequence[Prompt]) -> TextEmbedding:
        """Token states of prompts, as `sample` takes them for its text; see prompts.encode.

        Raises:
          UserError: a prompt is too long, or the two of a blend do not have equally many tokens.
        """
        config = self.stages[0].text
        if not any(prompts):  # precomputed text needs no encoder
            return no_text(len(prompts), config.max_length, config.width)
        text = encode(self.encoder, prompts, config.max_length)
        if self.keep == "one":
            self._encoder = None
        return text

    def sample(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        seed: int = 0,
        per_prompt: int = 1,
        negative_prompts: str | Sequence[str] | None = None,
        image: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        **options: Any,
    ) -> CascadeSamples:
        """Images of prompts.

        Image r of a prompt has the seed `seed + r`; equal prompt, seed and settings give the
        equal image, whatever else is sampled with it.

        Args:
          prompts: one or more, not empty; texts, or a Blend of two.
          seed: of the first image of every prompt, in [0, 2**32).
          per_prompt: images of each prompt.
          negative_prompts: one for all, or one for each prompt; see sample_each.
          image, mask: one for all, or one for each prompt; see sample_each.
          **options: of sample_each.

        Raises:
          UserError: as sample_each, or per_prompt below 1.
        """
        prompts = check_prompts(prompts)
        check_seeds([seed], 1)
        if per_prompt < 1:
            raise UserError(f"per_prompt must be at least 1, got {per_prompt}")
        negative = check_negative_prompts(negative_prompts, len(prompts))

        def repeated(x: np.ndarray | None, axes: int) -> np.ndarray | None:
            one_each = x is not None and np.ndim(x) == axes + 1 and len(x) == len(prompts)
            return np.repeat(x, per_prompt, axis=0) if one_each else x  # type: ignore[arg-type]

        return self.sample_each(
            [prompt for prompt in prompts for _ in range(per_prompt)],
            [seed + r for _ in prompts for r in range(per_prompt)],
            negative_prompts=[text for text in negative for _ in range(per_prompt)],
            image=repeated(image, 3),
            mask=repeated(mask, 2),
            **options,
        )

    def sample_each(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        *,
        text: TextEmbedding | None = None,
        negative_prompts: str | Sequence[str] | None = None,
        size: int | tuple[int, int] | None = None,
        image: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        strength: float | Mapping[str, float] | None = None,
        resamples: int = 1,
        jump: int = 1,
        start_stage: str | None = None,
        batch_size: int | None = None,
        intermediates: bool = False,
        show_progress: bool = True,
        on_step: Callable[[Step], None] | None = None,
        on_finished: Callable[[Finished], None] | None = None,
        **overrides: Any,
    ) -> CascadeSamples:
        """One image of each of n prompts with the seed at its place.

        An image alone is enlarged: it is what start_stage starts from. With a strength, it is
        noised so far and sampled anew from there (SDEdit), by start_stage; later stages enlarge the
        result. With a mask, every stage paints anew what it says, and keeps the rest
        of the image (RePaint). Stages run one after another over all images; what a stage hands
        on has 8 bits a channel, so that starting from an image that was kept gives the same.

        Args:
          prompts: n, not empty; texts, or a Blend of two.
          seeds: n, in [0, 2**32).
          text: token states of the n prompts in place of what the encoder makes of them, such as
            precomputed ones; [n, l, d] with l at most what the stages were trained with.
          negative_prompts: one for all, or n: prediction = w conditional + (1 - w) negative in
            place of unconditional; "" is unconditional. It changes nothing where guidance is 1.
          size: of the last stage's images: side, or (height, width). None is what it was trained
            for; when enlarging, what the image gives.
          image: uint8 [h, w, 3] for all, or [n, h, w, 3]; brought to the sizes that stages need.
          mask: bool [h, w] or [n, h, w], True where the image is to be painted anew.
          strength: in (0, 1], 1 keeps nothing of the image, see sampling.Edit: of start_stage, or
            by stage.
          resamples, jump: of inpainting, see diffusion.inpaint: more agree better with what is
            kept, for as many times the steps.
          start_stage: the first that runs; None is the first that can.
          batch_size: images made at once, at most; None is 16 on each device.
          intermediates: also keep the estimates of the clean image at every step.
          show_progress: draw a progress bar for each stage.
          on_step: called after every step; may raise to stop.
          on_finished: called with the images of every batch that a stage finishes.
          **overrides: see `settings`.

        Raises:
          UserError: no prompts, an empty or too long prompt, a size that the stages cannot make,
            settings out of range, or arguments that do not fit one another.
        """
        prompts = check_prompts(prompts)
        count = len(prompts)
        seeds = check_seeds(seeds, count)
        negative = check_negative_prompts(negative_prompts, count)
        settings = self.settings(**overrides)
        runs = plan_stages(
            self.stages, settings, count, size=size, image=image, mask=mask, strength=strength,
            resamples=resamples, jump=jump, start_stage=start_stage,
        )  # fmt: skip
        if any(negative) and all(run.settings.guidance == 1 for run in runs):
            raise UserError("a negative prompt changes nothing: guidance is 1 everywhere; raise it")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        if text is None:
            both = self.encode([*prompts, *negative])
            states, away = (TextEmbedding(*(x[rows] for x in both))
                            for rows in (slice(count), slice(count, None)))  # fmt: skip
        else:
            states, away = check_text(text, count, self.stages[0].text), self.encode(negative)
        recipe = make_recipe(
            runs, prompts, negative, seeds, self.fingerprints, self.dtype, image=image, mask=mask,
            text=None if text is None else states.states,
        )  # fmt: skip
        by_stage: dict[str, np.ndarray] = {}
        estimates: dict[str, np.ndarray] = {}
        previous: np.ndarray | None = None
        for run in runs:
            name = run.stage.name
            rows_of = StageRows(
                seeds, states, away, previous if run.low_res is None else run.low_res
            )

            def finished(rows: np.ndarray, images: np.ndarray, run: StageRun = run) -> None:
                if on_finished is not None:
                    is_last = run is runs[-1]
                    on_finished(Finished(run.stage.name, rows, images, recipe, is_last))

            try:
                by_stage[name], estimates[name] = run_stage(
                    run, self.weights(name), rows_of, self.mesh, batch_size=batch_size,
                    intermediates=intermediates, show_progress=show_progress, on_step=on_step,
                    on_batch=finished,
                )  # fmt: skip
            finally:
                if self.keep == "one":
                    self._weights.pop(name, None)
            previous = by_stage[name]
        return CascadeSamples(
            **{field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)},
            images=by_stage[runs[-1].stage.name],
            stages=by_stage,
            intermediates=estimates if intermediates else {},
        )
