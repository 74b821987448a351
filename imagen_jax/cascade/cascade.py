"""Cascade: stages with their weights and the text encoder that conditions them."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
from jax.sharding import Mesh

from imagen_jax.cascade.folder import CHUNK
from imagen_jax.cascade.prompts import Prompt, check_words, encode, no_text
from imagen_jax.cascade.request import Request, lists_choices, make_request
from imagen_jax.cascade.run import Finished, Step, run_stage
from imagen_jax.cascade.samples import Samples
from imagen_jax.cascade.stages import (
    SETTINGS,
    PerStage,
    Settings,
    choose_stages,
    stage_settings,
)
from imagen_jax.checkpoints.cascades import open_cascade, tell_untrained
from imagen_jax.checkpoints.pretrained import Pretrained
from imagen_jax.chips import configure_jax
from imagen_jax.diffusion.transitions import Sampler
from imagen_jax.errors import UserError
from imagen_jax.low_noise import last_level
from imagen_jax.sharding import make_mesh
from imagen_jax.stage_config import SampleConfig
from imagen_jax.text.encoder import TextEncoder, load_encoder
from imagen_jax.typing import TextEmbedding


class Cascade:
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

    def __init__(
        self,
        pretrained: Pretrained,
        load_text_encoder: Callable[[], TextEncoder],
        *,
        stages: Sequence[str] | None = None,
        dtype: str | None = None,
        low_memory: bool = False,
        mesh: Mesh | None = None,
    ):
        """Args:
        pretrained: the cascade on disk.
        load_text_encoder: loads the frozen encoder that the stages were trained with.
        stages, dtype, low_memory, mesh: as for load.

        Raises:
          UserError: stages that are not there, do not follow one another or read different text.
        """
        if dtype not in (None, "float32", "bfloat16"):
            raise UserError(f"dtype is {dtype!r}; choices: float32, bfloat16, or None")
        self.stages = [
            stage if dtype is None else stage.with_network(stage.network.with_dtype(dtype))
            for stage in choose_stages(pretrained.stages, stages)
        ]
        configure_jax()
        if stages is None:
            tell_untrained(pretrained)
        self.dtype = dtype
        self.low_memory = low_memory
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
        low_memory: bool = False,
        mesh: Mesh | None = None,
    ) -> Cascade:
        """Load a cascade.

        Args:
          path: a work directory of `imagen train`, or what `imagen export` wrote; None is the small
            cascade that comes with the package.
          encoder_weights, vocabulary: files of the text encoder, see `load_encoder`; needed by
            cascades that were trained with T5.
          stages: names of those to use, one after another in the cascade; None is all. A later
            one as the first needs an image to start from.
          dtype: dtype of weights and activations, "float32" or "bfloat16"; None is float32 weights,
            and activations as the config says.
          low_memory: load the encoder, if there is a text to encode, and the weights of a stage
            when their turn comes, and free them after it, so that no more than one of them is in
            memory; else all are loaded now and kept.
          mesh: devices; None is all of them, each with all weights and a part of every batch.
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
            pretrained, load_text_encoder, stages=stages, dtype=dtype, low_memory=low_memory,
            mesh=mesh,
        )  # fmt: skip
        if not low_memory:
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
        """Return the weights of a stage on the mesh, loaded unless they are in memory."""
        if name not in self._weights:
            (stage,) = (stage for stage in self.stages if stage.name == name)
            self._weights[name] = self._pretrained.weights(stage, self.mesh, self.dtype)
        return self._weights[name]

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Stage name -> hash of all that decides its images, see Pretrained.fingerprint."""
        return {stage.name: self._pretrained.fingerprint(stage) for stage in self.stages}

    def settings(self, **overrides: Unpack[Settings]) -> dict[str, SampleConfig]:
        """Return the settings of every stage: its defaults, replaced by what is not None.

        Args:
          **overrides: fields of SampleConfig; a value holds for all stages, a mapping from stage
            names to values for those stages.

        Raises:
          UserError: an unknown field or stage, or a value of another type or out of range.
        """
        return stage_settings(self.stages, overrides)

    def encode(self, prompts: Sequence[Prompt]) -> TextEmbedding:
        """Return token states of prompts, as `sample` takes them for its text; see prompts.encode.

        Raises:
          UserError: a prompt is too long, or the two of a blend do not have equally many tokens.
        """
        config = self.stages[0].text
        if not any(prompts):  # precomputed text needs no encoder
            return no_text(len(prompts), config.max_length, config.width)
        text = encode(self.encoder, prompts, config.max_length)
        if self.low_memory:
            self._encoder = None
        return text

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
        return request

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
        """
        given = locals()
        request = self.request(**{name: given[name] for name in ASKED})
        return self.run(
            request, batch_size=batch_size, intermediates=intermediates,
            show_progress=show_progress, on_step=on_step, on_finished=on_finished,
        )  # fmt: skip

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
        that starting from an image that was kept gives the same.

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
        for asked in request.stages:

            def finished(rows: np.ndarray, made: np.ndarray, stage: str = asked.name) -> None:
                if on_finished is not None:
                    on_finished(Finished(stage, rows, made, request))

            try:
                previous, estimates[asked.name] = run_stage(
                    asked, request, self.weights(asked.name), text, negative, previous, self.mesh,
                    batch_size=batch_size, intermediates=intermediates,
                    show_progress=show_progress, on_step=on_step, on_batch=finished,
                )  # fmt: skip
            finally:
                if self.low_memory:
                    self._weights.pop(asked.name, None)
            images[asked.name] = previous
        return Samples(
            request=request,
            images=images[request.stages[-1].name],
            stages=images,
            intermediates=estimates if intermediates else {},
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
