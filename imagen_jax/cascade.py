"""From prompts to pictures: the stages of a cascade, loaded from checkpoints, one after another."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from imagen_jax import pretrained
from imagen_jax.grid import labelled_grid
from imagen_jax.sampling import picture_keys, sample_stage, to_uint8
from imagen_jax.stage import Stage
from imagen_jax.stage_config import SampleConfig
from imagen_jax.text.encoder import TextEncoder, load_encoder
from imagen_jax.typing import TextEmbedding

BATCH_SIZES = (1, 2, 4, 8, 16)
"""A batch is padded to one of these, so that few shapes are compiled."""


@dataclasses.dataclass(frozen=True)
class CascadeSamples:
    """Pictures, and everything that is needed to make them again.

    Attributes:
      images: [n, h, w, 3] uint8 of the last stage.
      prompts: n prompts.
      seeds: n seeds; picture i is a function of prompts[i], seeds[i] and settings.
      settings: stage name -> how it was sampled.
      stages: stage name -> [n, h, w, 3] uint8 pictures of that stage.
      intermediates: stage name -> [steps, n, h, w, 3] uint8 estimates of the clean picture at every
        step; empty unless asked for.
    """

    images: np.ndarray
    prompts: list[str]
    seeds: list[int]
    settings: dict[str, SampleConfig]
    stages: dict[str, np.ndarray]
    intermediates: dict[str, np.ndarray]


class Cascade:
    """Stages of one cascade with their weights and the text encoder that conditions them."""

    def __init__(
        self,
        stages: Sequence[tuple[Stage, Any]],
        encoder: TextEncoder,
        source: Mapping[str, Any],
    ):
        """Args:
        stages: (stage, weights), lowest resolution first.
        encoder: the frozen encoder that the stages were trained with.
        source: split -> description of the data that they were trained on.

        Raises:
          ValueError: a stage does not start from what the one before it makes, or reads text of
            another encoder or length than the others.
        """
        resolution = None
        for stage, _ in stages:
            if stage.text != stages[0][0].text:
                raise ValueError(
                    f"the stages read different text: {stage.name!r} {stage.text}, "
                    f"{stages[0][0].name!r} {stages[0][0].text}"
                )
            if stage.low_res != resolution:
                raise ValueError(
                    f"stage {stage.name!r} starts from {stage.low_res} pixels, but what comes "
                    f"before it makes {resolution}"
                )
            resolution = stage.resolution
        self.stages = list(stages)
        self.encoder = encoder
        self.source = source

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        encoder_weights: str | None = None,
        vocabulary: str | None = None,
    ) -> Cascade:
        """Loads a cascade.

        Args:
          path: a work directory of `imagen train`, or a directory written by
            `pretrained.export_cascade`; None is the small cascade that comes with the package.
          encoder_weights, vocabulary: files of the text encoder, see `load_encoder`; needed by
            cascades that were trained with T5.

        Raises:
          FileNotFoundError: no cascade is there, or a stage has no checkpoint yet.
          ValueError: stages that do not belong together, or another text encoder than they were
            trained with.
        """
        stages, origin = pretrained.load_stages(path)
        recorded = origin["encoder"]
        encoder = load_encoder(recorded["name"], encoder_weights, vocabulary)
        if encoder.fingerprint != recorded["fingerprint"]:
            raise ValueError(
                f"the cascade was trained with embeddings of encoder {recorded['name']!r} with "
                f"fingerprint {recorded['fingerprint']}, but the one here has "
                f"{encoder.fingerprint}; use the weights and vocabulary that it was trained with"
            )
        return cls(stages, encoder, origin["source"])

    @property
    def size(self) -> int:
        """Pixels per side of the pictures that the whole cascade makes."""
        return self.stages[-1][0].resolution

    def settings(self, **overrides: Any) -> dict[str, SampleConfig]:
        """Settings of every stage: its defaults, replaced by what is not None.

        Args:
          **overrides: fields of SampleConfig; a value holds for all stages, a mapping from stage
            names to values for those stages.

        Raises:
          ValueError: an unknown field or stage, or a value out of range.
        """
        names = [stage.name for stage, _ in self.stages]
        fields = [field.name for field in dataclasses.fields(SampleConfig)]
        result = {stage.name: stage.sample for stage, _ in self.stages}
        for field, value in overrides.items():
            if field not in fields:
                raise ValueError(f"unknown setting {field!r}; choices: {', '.join(fields)}")
            per_stage = value if isinstance(value, Mapping) else dict.fromkeys(names, value)
            for name, setting in per_stage.items():
                if name not in result:
                    raise ValueError(f"{field}: unknown stage {name!r}; choices: {names}")
                if setting is not None:
                    result[name] = dataclasses.replace(result[name], **{field: setting})
        return result

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        per_prompt: int = 1,
        size: int | None = None,
        intermediates: bool = False,
        show_progress: bool = True,
        **overrides: Any,
    ) -> CascadeSamples:
        """Pictures of prompts.

        Picture r of a prompt has the seed `seed + r`; equal prompt, seed and settings give the
        equal picture, whatever else is sampled with it.

        Args:
          prompts: one or more, not empty.
          seed: of the first picture of every prompt, at least 0.
          per_prompt: pictures of each prompt.
          size: pixels per side, as a check; None is what the cascade makes.
          intermediates: also keep the estimates of the clean picture at every step.
          show_progress: draw a progress bar.
          **overrides: see `settings`.

        Raises:
          ValueError: no prompts, an empty or too long prompt, another size than the cascade makes,
            or settings out of range.
        """
        prompts = check_prompts(prompts)
        if per_prompt < 1:
            raise ValueError(f"per_prompt must be at least 1, got {per_prompt}")
        if size is not None and size != self.size:
            raise ValueError(
                f"this cascade makes pictures of {self.size} x {self.size} pixels (stages "
                f"{[stage.resolution for stage, _ in self.stages]}), not {size} x {size}"
            )
        return self.sample_each(
            [prompt for prompt in prompts for _ in range(per_prompt)],
            [seed + r for _ in prompts for r in range(per_prompt)],
            intermediates=intermediates,
            show_progress=show_progress,
            **overrides,
        )

    def sample_each(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        intermediates: bool = False,
        show_progress: bool = True,
        **overrides: Any,
    ) -> CascadeSamples:
        """One picture of each prompt with the seed at its place; otherwise as `sample`.

        Raises:
          ValueError: as `sample`, or not as many seeds as prompts.
        """
        prompts = check_prompts(prompts)
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; need as many")
        if not all(0 <= seed < 2**32 for seed in seeds):
            raise ValueError(f"seeds must be in [0, 2**32), got {list(seeds)}")
        settings = self.settings(**overrides)
        distinct = list(dict.fromkeys(prompts))
        text = self._encode(distinct)
        index = np.array([distinct.index(prompt) for prompt in prompts])
        batch_size = next((b for b in BATCH_SIZES if b >= len(index)), BATCH_SIZES[-1])
        batches = range(0, len(index), batch_size)
        steps = len(batches) * sum(s.steps for s in settings.values())
        parts: dict[str, list[np.ndarray]] = {name: [] for name in settings}
        estimates: dict[str, list[np.ndarray]] = {name: [] for name in settings}
        with tqdm(total=steps, desc="sampling", unit="step", disable=not show_progress) as bar:
            for start in batches:
                rows = np.arange(start, start + batch_size) % len(index)  # padded by repetition
                chosen = TextEmbedding(*(x[index[rows]] for x in text))
                keys = picture_keys([seeds[int(r)] for r in rows])
                real = min(batch_size, len(index) - start)
                picture = None
                for stage, params in self.stages:
                    bar.set_postfix_str(f"{stage.name} {stage.resolution} px")
                    samples = sample_stage(
                        stage,
                        params,
                        chosen,
                        keys,
                        picture,
                        settings[stage.name],
                        _Tick.of(bar) if show_progress else None,
                        intermediates,
                    )
                    picture = jax.block_until_ready(samples.x0)
                    parts[stage.name].append(to_uint8(picture)[:real])
                    if samples.intermediates is not None:
                        estimates[stage.name].append(to_uint8(samples.intermediates)[:, :real])
        stages = {name: np.concatenate(images) for name, images in parts.items()}
        return CascadeSamples(
            images=stages[self.stages[-1][0].name],
            prompts=prompts,
            seeds=list(seeds),
            settings=settings,
            stages=stages,
            intermediates={
                name: np.concatenate(images, axis=1) for name, images in estimates.items() if images
            },
        )

    def _encode(self, prompts: Sequence[str]) -> TextEmbedding:
        """Token states padded to the length that the stages were trained with."""
        text = self.encoder.encode(prompts)
        limit = self.stages[0][0].text.max_length
        lengths = np.asarray(text.mask).sum(axis=1)
        if lengths.max() > limit:
            worst = int(lengths.argmax())
            raise ValueError(
                f"prompt {prompts[worst]!r} has {lengths[worst]} tokens; this cascade was trained "
                f"with at most {limit}. Shorten the prompt."
            )
        pad = limit - text.mask.shape[1]
        if pad < 0:
            return TextEmbedding(
                jnp.asarray(text.states[:, :limit]), jnp.asarray(text.mask[:, :limit])
            )
        return TextEmbedding(
            jnp.pad(jnp.asarray(text.states), ((0, 0), (0, pad), (0, 0))),
            jnp.pad(jnp.asarray(text.mask), ((0, 0), (0, pad))),
        )


class _Tick:
    """Progress callback that stays the same object, so that compiled samplers are reused."""

    def __init__(self):
        self.bar = None

    def __call__(self, index: Any) -> None:
        del index
        if self.bar is not None:
            self.bar.update()

    @classmethod
    def of(cls, bar: tqdm) -> _Tick:
        _TICK.bar = bar
        return _TICK


_TICK = _Tick()


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts, stripped.

    Raises:
      ValueError: none were given, or one is empty.
    """
    if isinstance(prompts, str):
        prompts = [prompts]
    stripped = [prompt.strip() for prompt in prompts]
    if not stripped:
        raise ValueError("no prompts were given; pass at least one")
    for i, prompt in enumerate(stripped):
        if not prompt:
            raise ValueError(f"prompt {i} is empty")
    return stripped


def save_samples(samples: CascadeSamples, output: str | Path) -> list[Path]:
    """Writes grid.png, labelled, and one PNG per picture with its settings in its metadata.

    The PNGs have the text chunks prompt, seed and settings (JSON, by stage).

    Returns:
      Paths of the written files, the grid first.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    settings = json.dumps({k: dataclasses.asdict(v) for k, v in samples.settings.items()})
    scale = max(1, 192 // samples.images.shape[1])
    columns = min(len(samples.images), 4)
    grid = labelled_grid(samples.images, samples.prompts, columns=columns, scale=scale)
    paths = [output / "grid.png"]
    grid.save(paths[0])
    for i, image in enumerate(samples.images):
        info = PngInfo()
        info.add_itxt("prompt", samples.prompts[i])
        info.add_itxt("seed", str(samples.seeds[i]))
        info.add_itxt("settings", settings)
        paths.append(output / f"{i:04d}.png")
        PILImage.fromarray(image).save(paths[-1], pnginfo=info)
    return paths
