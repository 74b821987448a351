"""Protocols: what is sampled, what it is compared with, and the way from one to the other."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imagen_jax.cascade import Cascade, Settings, count_black, cut_prompts
from imagen_jax.data.scenes.grammar import caption
from imagen_jax.data.scenes.levels import Level, get_level
from imagen_jax.data.scenes.sampling import sample_scene
from imagen_jax.data.scenes.scene import Scene
from imagen_jax.errors import UserError
from imagen_jax.eval.coco import Captions
from imagen_jax.eval.features.clip_weights import Clip
from imagen_jax.eval.features.network import FeatureNetwork
from imagen_jax.eval.images import Files, Images, RenderedScenes
from imagen_jax.eval.job import ImageStore, keep_earlier
from imagen_jax.eval.measure import Instruments, measure
from imagen_jax.eval.metrics.manifold import NEIGHBOURS
from imagen_jax.eval.prompts import Prompt, Suite
from imagen_jax.eval.reality import Reality
from imagen_jax.eval.report import write_report
from imagen_jax.eval.scene_suite import scene_suite
from imagen_jax.files import as_json, output_folder, write_json
from imagen_jax.paths import as_path

SCORES, REPORT, PROMPTS = "scores.json", "report.html", "prompts.json"
_APART = 1_000
"""Between seeds of prompts and those of the real scenes that their images are compared with."""


class Work(NamedTuple):
    """Prompts to sample and their reference set.

    Attributes:
      title: title of the report.
      suite: the prompts.
      per_prompt: images of each.
      real: real images, as many as are sampled; None where there are none.
      others: further real ones, whose distance from `real` is the floor; None where there are none.
      shown: images of each category in the report.
      level: level of the scenes that the prompts describe; None if they are no scenes.
    """

    title: str
    suite: Suite
    per_prompt: int = 1
    real: Images | None = None
    others: Images | None = None
    shown: int = 24
    level: Level | None = None


def level_of(cascade: Cascade) -> Level:
    """The level of scenes that a cascade was trained on.

    Raises:
      UserError: it was trained on other images.
    """
    source = cascade.source.get("train", {})
    if "level" not in source:
        raise UserError(
            f"this cascade was trained on {source or 'an unknown source'}; alignment is measured "
            "on the built-in scenes, whose layouts are known"
        )
    return get_level(source["level"])


def suite_work(suite: Suite, per_prompt: int) -> Work:
    """Prompts that nobody has real images of: DrawBench, PartiPrompts."""
    return Work(suite.name, suite, per_prompt)


def scene_suite_work(
    level: Level, per_category: int, per_prompt: int, seed: int, side: int
) -> Work:
    """Our suite in DrawBench's categories, compared with real images of other such scenes."""

    def real(number: int) -> RenderedScenes:
        other = scene_suite(level, per_category * per_prompt, seed + number * _APART)
        return _rendered([prompt.scene for prompt in other.prompts], number, side)

    suite = scene_suite(level, per_category, seed)
    title = f"Scenes ({level.name}) in DrawBench's categories"
    return Work(title, suite, per_prompt, real(1), real(2), level=level)


def scene_caption_work(level: Level, split: str, count: int, seed: int, side: int) -> Work:
    """Captions of scenes of a split, compared with real images of others of the same split."""

    def scenes(number: int) -> list[Scene]:
        first = 1_000_000 + seed + number * _APART
        return [sample_scene(level, split, first, i) for i in range(count)]

    prompts = [Prompt(caption(scene), split, scene) for scene in scenes(0)]
    suite = Suite(f"captions of {split} scenes, {level.name}", prompts)
    real, others = (_rendered(scenes(number), number, side) for number in (1, 2))
    return Work(suite.name, suite, 1, real, others, level=level)


def _rendered(scenes: Sequence[Scene | None], number: int, side: int) -> RenderedScenes:
    known = [scene for scene in scenes if scene is not None]
    return RenderedScenes(f"real images of scenes, set {number}", known, side)


def coco_work(captions: Captions, side: int) -> Work:
    """Captions of a validation set, compared with the images that they belong to.

    The floor is of the images whose captions were not chosen, as far as there are any.
    """
    chosen = captions.chosen
    suite = Suite("COCO captions", [Prompt(c.caption, "captions") for c in chosen])
    real = Files("images of the captions", [c.image for c in chosen], side, "crop")
    rest = captions.rest[: len(chosen)]
    # Neighbours of a small rest say nothing.
    others = Files("images of other captions", rest, side, "crop") if len(rest) > 10 else None
    title = f"COCO captions, {len(chosen):,} images"
    return Work(title, suite, 1, real, others, shown=96)


def run(
    cascade: Cascade,
    work: Work,
    instruments: Instruments,
    output: str | Path,
    *,
    seed: int = 0,
    process: tuple[int, int] = (0, 1),
    real_features: str | Path | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Samples what is missing, measures, and writes scores.json and report.html.

    Other scores of these images, such as by another network, are kept as scores-2.json and so on.

    Args:
      cascade: the cascade to evaluate.
      work: prompts and reference set.
      instruments: networks to measure with.
      output: directory, see job; what is there of the same job is kept.
      seed: image i has the noise of seed + i.
      process: (which of several processes this is, how many there are).
      real_features: directory where features of real images are kept; None is <output>/real.
      settings: sampling settings that replace the cascade's.

    Returns:
      What scores.json holds.

    Raises:
      UserError: as ImageStore.sample; or too few images to be compared with real ones.
      Unfinished: other processes have not finished.
    """
    output, suite = output_folder(output), work.suite
    said = [prompt.text for prompt in suite.prompts]
    length = cascade.stages[0].text.max_length
    cut = cut_prompts(cascade.encoder, said, length)
    shortened = sum(new != old for new, old in zip(cut, said, strict=True))
    if shortened:
        warnings.warn(
            f"{shortened} of {len(said)} prompts have more than the {length} tokens that this "
            "cascade was trained with; their first words are sampled",
            stacklevel=2,
        )
    texts = cut * work.per_prompt
    if work.real is not None and instruments.network is not None and len(texts) <= NEIGHBOURS:
        raise UserError(
            f"distances from real images need more than {NEIGHBOURS} images, and these are "
            f"{len(texts)}; raise --count or --per-category"
        )
    seeds = [seed + i for i in range(len(texts))]
    store = ImageStore(output, texts, seeds, cascade.size, process)
    store.sample(cascade, instruments.networks, settings)
    reality = None
    if work.real is not None:
        reality = Reality(work.real, work.others, as_path(real_features or output / "real"))
    scores = measure(store, suite, instruments, reality, work.level)
    record = {
        "suite": suite.name,
        "prompts": suite.fingerprint,
        "per_prompt": work.per_prompt,
        "seed": seed,
        "job": json.loads((output / "job.json").read_bytes()),
        "scores": scores,
    }
    if shortened:
        record["cut"] = f"{shortened} of {len(said)} prompts, to {length} tokens"
    if any(black := store.black()):
        record["black"] = count_black(black)
    page = output / REPORT
    keep_earlier([output / SCORES, page], as_json(record))
    write_json(output / PROMPTS, [[prompt.text, prompt.category] for prompt in suite.prompts])
    write_json(output / SCORES, record)
    write_report(page, work.title, _facts(record), scores, store, suite, work.level, work.shown)
    return record


def evaluate(
    cascade: Cascade,
    output: str | Path,
    *,
    work: Work | None = None,
    network: FeatureNetwork | None = None,
    clip: Clip | None = None,
    per_category: int = 16,
    seed: int = 0,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Sample a cascade, measure its images, and write scores.json and report.html.

    Example:
      >>> from imagen_jax import Cascade, evaluate
      >>> record = evaluate(Cascade.load(), "evaluation", per_category=1)
      >>> 0 <= record["scores"]["alignment"]["all"]["all_correct"]["accuracy"] <= 1
      True

    Args:
      cascade: what is judged.
      output: the directory; images that are there from the same call are kept.
      work: what is sampled, and what it is compared with, such as `suite_work` or `coco_work`;
        None is the suite of scenes, for cascades that were trained on the built-in ones.
      network: feature network for distances from real images, see features.network.load_network;
        None measures no distances.
      clip: CLIP for its score, see features.clip_weights.read_clip; None measures none.
      per_category: prompts of each category, where work is None.
      seed: image i has the noise of seed + i.
      settings: sampling settings that replace the cascade's, such as {"guidance": 3.0}.

    Returns:
      What scores.json holds; "scores" is as `measure` returns it.

    Raises:
      UserError: a cascade that was trained on other images, where work is None; settings out of
        range; a directory of another job.
    """
    if work is None:
        work = scene_suite_work(level_of(cascade), per_category, 1, seed, cascade.size)
    instruments = Instruments(network, clip)
    return run(cascade, work, instruments, output, seed=seed, settings=settings)


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    facts = {"images": str(record["scores"]["count"]), "seed": str(record["seed"])}
    for number, (name, of) in enumerate(record["job"]["settings"].items()):
        said = [of["sampler"], f"{of['steps']} steps", f"guidance {of['guidance']:g}"]
        dynamic = of["threshold"] == "dynamic"
        said.append(f"dynamic {of['percentile']:g}" if dynamic else of["threshold"])
        if number:  # the base stage starts from noise alone
            said.append(f"aug_level {of['aug_level']:g}")
        side = record["job"]["pixels"][name]
        facts[f"{name} {side} px"] = ", ".join(said)
    return facts | {name: record[name] for name in ("cut", "black") if name in record}
