"""The shipped quickstart config shrunk to a few thousand parameters, and data for it."""

from __future__ import annotations

import functools
import json
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from imagen_jax.config import load_config, to_plain
from imagen_jax.data.sources import SceneSource
from imagen_jax.embed import embed
from imagen_jax.models.jit import JiT
from imagen_jax.stage import Stage, make_stage
from imagen_jax.text import encoder as encoder_lib
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.tokenizer import CaptionTooLongError
from imagen_jax.typing import Conditioning, TextEmbedding

WIDTH, MAX_TOKENS = 8, 7
BASE, SR = 4, 8
"""Resolutions of the two stages."""

ONE_LEVEL = tuple(
    f"stages.{stage}.network.{change}"
    for stage, changes in (
        ("base", ("multipliers=(1,)", "blocks=(1,)", "attention=(True,)", "text_layers=0")),
        ("sr", ("channels=(8,)", "blocks=(1,)", "self_attention=(True,)",
                "cross_attention=(True,)", "text_layers=0")),
    )
    for change in changes
)  # fmt: skip
"""Still smaller, for tests that compile much: networks of one resolution."""

JIT = JiT(patch=2, width=16, depth=3, head_channels=8, bottleneck=8, text_layers=0, dtype="float32")

WITHOUT_SAMPLES = (*ONE_LEVEL, *(f"stages.{name}.train.sample_every=0" for name in ("base", "sr")))
"""Config that `workdir` is trained with."""


def config(*overrides: str) -> FrozenConfigDict:
    """The tiny config; later overrides win."""
    return load_config(Path(__file__).with_name("tiny_config.py"), overrides)


def stage(name: str, *overrides: str) -> Stage:
    """A stage of the tiny config."""
    return make_stage(config(*overrides), name)


def encoder(name: str = "tiny", width: int = WIDTH) -> TextEncoder:
    """A text encoder that looks words up in a random table: one token for a word."""

    def tokenize(captions: Sequence[str]) -> list[np.ndarray]:
        for caption in captions:
            if len(caption.split()) > MAX_TOKENS:
                cut = tokenize([" ".join(caption.split()[:MAX_TOKENS])])[0]
                raise CaptionTooLongError(caption, len(caption.split()), MAX_TOKENS, cut)
        words = [caption.split() for caption in captions]
        return [np.array([zlib.crc32(w.encode()) % 64 for w in ws], np.int32) for ws in words]

    def network(table: Any, ids: Any, mask: Any) -> jax.Array:
        return jnp.where(mask[..., None], table[ids], 0)

    table = np.random.default_rng(0).normal(size=(64, width)).astype(np.float32)
    fingerprint = f"{name} {width}"
    return TextEncoder(name, width, MAX_TOKENS, fingerprint, tokenize, network, table)


def embed_scenes(
    level: str,
    count: int,
    size: int,
    seed: int,
    encoder_name: str,
    output: Path,
    num_shards: int = 8,
    **files: str,
) -> dict[str, Any]:
    """Embeds built-in scenes with a text encoder by its name, and returns the manifest."""
    source = SceneSource(level, "train", seed, count, size)
    text_encoder = encoder_lib.load_encoder(encoder_name, **files)
    return embed(
        source, output, encoder=text_encoder, split="train", image_size=size, num_shards=num_shards
    )


encoder_lib.ENCODERS["tiny"] = lambda weights, vocabulary, dtype: encoder()  # type: ignore[index]


class Example(NamedTuple):
    """A captioned image."""

    id: str
    caption: str
    image: np.ndarray


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}


class Colours:
    """Images of one colour that the caption names: as easy to learn as images can be."""

    size = SR

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[Example]:
        for i in range(shard, len(self), num_shards):
            name = list(COLOURS)[i // num_shards % len(COLOURS)]
            image = np.broadcast_to(np.uint8(COLOURS[name]), (self.size, self.size, 3))
            yield Example(str(i), f"a {name} image", np.ascontiguousarray(image))

    def describe(self) -> dict[str, Any]:
        return {"name": "colours"}

    def __len__(self) -> int:
        return 16


def embed_colours(directory: Path, text_encoder: TextEncoder | None = None) -> Path:
    """An embedding directory of `Colours`."""
    from imagen_jax.embed import embed

    embed(
        Colours(),
        directory,
        encoder=text_encoder or encoder(),
        split="train",
        image_size=SR,
        num_shards=2,
    )
    return directory


def conditioning(of: Stage, batch_size: int, seed: int = 0) -> Conditioning:
    """Random conditioning; the last tokens of every example are masked."""
    rng = np.random.default_rng(seed)
    length = of.text.max_length
    states = jnp.asarray(rng.normal(size=(batch_size, length, of.text.width)), jnp.float32)
    text = TextEmbedding(states, jnp.arange(length)[None] < jnp.full((batch_size, 1), length - 2))
    if of.low_res is None:
        return Conditioning(text)
    image = rng.normal(size=(batch_size, of.resolution, of.resolution, 3))
    return Conditioning(text, jnp.asarray(image, jnp.float32), jnp.linspace(0.1, 0.9, batch_size))


def batch(of: Stage, batch_size: int, seed: int = 0) -> dict[str, jax.Array]:
    """A random training batch."""
    rng = np.random.default_rng(seed)

    def image(size: int) -> jax.Array:
        return jnp.asarray(rng.uniform(-1, 1, (batch_size, size, size, 3)), jnp.float32)

    text = conditioning(of, batch_size, seed).text
    arrays = {"image": image(of.resolution), "text_emb": text.states, "text_mask": text.mask}
    return arrays if of.low_res is None else arrays | {"low_res": image(of.low_res)}


def random_params(of: Stage, seed: int = 0, scale: float = 0.2) -> Any:
    """Parameters of the stage without the zeros that networks start from."""
    from imagen_jax.checkpoints.pretrained import abstract_params

    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), jnp.float32),
        abstract_params(of),
    )


def write_cascade(
    directory: Path, text_encoder: TextEncoder | None = None, scale: float = 0.02
) -> Path:
    """An untrained cascade in the form that the package ships.

    Its default encoder, with random weights, is known outside of the tests, too.
    """
    import flax.traverse_util
    import safetensors.numpy

    text_encoder = text_encoder or encoder_lib.load_encoder("minilm-random")
    cascade = config(
        *ONE_LEVEL,
        f"text.encoder={text_encoder.name}",
        f"text.width={text_encoder.width}",
        "text.max_length=32",
    )
    record = {"name": text_encoder.name, "fingerprint": text_encoder.fingerprint}
    directory.mkdir()
    (directory / "cascade.json").write_text(
        json.dumps({"config": to_plain(cascade), "encoder": record, "source": {}})
    )
    for name in cascade.cascade:
        params = random_params(make_stage(cascade, name), scale=scale)
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        half = {key: np.asarray(value, np.float16) for key, value in flat.items()}
        safetensors.numpy.save_file(half, directory / f"{name}.safetensors")
    return directory


_kept = tempfile.TemporaryDirectory(prefix="imagen-jax-tests-")


@functools.cache
def embeddings() -> Path:
    """One embedding directory for all tests; not to be written to."""
    return embed_colours(Path(_kept.name) / "embeddings")


@functools.cache
def workdir() -> Path:
    """One work directory with both stages trained for two steps; not to be written to."""
    from imagen_jax.train.loop import train

    directory = Path(_kept.name) / "workdir"
    for name in ("sr", "base"):  # any order
        train(config(*WITHOUT_SAMPLES), name, str(embeddings()), str(directory))
    return directory


def assert_identical(a: Any, b: Any) -> None:
    """The same trees, bit for bit."""
    a, b = jax.device_get((a, b))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


def metrics_of(directory: Path) -> dict[int, dict[str, float]]:
    """Scalars that a stage has logged, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(directory / "logs"), {"tensors": 0})  # all
    events.Reload()
    found: dict[int, dict[str, float]] = {}
    for tag in set(events.Tags()["tensors"]) - {"samples"}:
        for event in events.Tensors(tag):
            found.setdefault(event.step, {})[tag] = float(make_ndarray(event.tensor_proto))
    return found


def record(directory: Path, name: str) -> dict[str, Any]:
    """The record of a stage."""
    return json.loads((directory / name / "stage.json").read_text())
