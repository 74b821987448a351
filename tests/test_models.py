"""Identities that the layers and both U-Nets satisfy whatever their weights are."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from ml_collections import ConfigDict

from imagen_jax import chips
from imagen_jax.config import to_plain
from imagen_jax.errors import UserError
from imagen_jax.models import layers
from imagen_jax.models.attention import (
    AttentionPool,
    ImageAttention,
    TextBlock,
    rotate_by_position,
)
from imagen_jax.models.blocks import ResBlock
from imagen_jax.models.conditioning import sinusoidal_embedding
from imagen_jax.stage import Stage, make_stage
from imagen_jax.typing import Conditioning, TextEmbedding

BATCH = 4


class Network:
    """A stage's network with random weights, none of them zero, and inputs for it."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.params = tiny.random_params(stage)
        self.conditioning = tiny.conditioning(stage, BATCH)
        rng = np.random.default_rng(1)
        size = (BATCH, stage.resolution, stage.resolution, 3)
        self.x = jnp.asarray(rng.normal(size=size), jnp.float32)
        self.logsnr = jnp.linspace(-10.0, 10.0, BATCH)
        self.jitted = jax.jit(stage.apply)
        self.output = self(self.conditioning)

    @functools.cached_property
    def start(self) -> Any:
        """Parameters that training starts from."""
        return nn.unbox(jax.jit(self.stage.init)(jax.random.key(0)))

    def __call__(self, conditioning: Conditioning, **changed: Any) -> np.ndarray:
        inputs = {"x": self.x, "logsnr": self.logsnr} | changed
        result = self.jitted(self.params, inputs["x"], inputs["logsnr"], conditioning)
        return np.asarray(result)

    def with_text(self, states: jax.Array, mask: jax.Array) -> np.ndarray:
        return self(self.conditioning._replace(text=TextEmbedding(states, mask)))


@pytest.fixture(scope="module", params=["base", "sr", "patches", "jit"])
def network(request: pytest.FixtureRequest) -> Network:
    if request.param == "patches":
        return Network(tiny.stage("sr", "stages.sr.network.patch=2"))
    if request.param == "jit":
        return Network(tiny.stage("sr").with_network(tiny.JIT))
    return Network(tiny.stage(request.param))


def assert_close(a: Any, b: Any, tolerance: float = 1e-4) -> None:
    """Equal up to rounding, relative to the largest value."""
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


# layers


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 4, 8, 24, 64, 256])
@pytest.mark.parametrize("film", [False, True], ids=["plain", "film"])
def test_group_norm_is_group_norm(channels: int, film: bool) -> None:
    rng = np.random.default_rng(channels)
    x = 3.0 + 2.0 * rng.normal(size=(2, 4, 6, channels))
    params = {"scale": rng.normal(size=channels), "bias": rng.normal(size=channels)}
    scale, shift = rng.normal(size=(2, 2, channels)) if film else (None, None)
    y = layers.GroupNorm(jnp.float32).apply(
        {"params": jax.tree.map(jnp.float32, params)},
        *(None if z is None else jnp.float32(z) for z in (x, scale, shift)),
    )
    with jax.enable_x64(True):
        reference = nn.GroupNorm(
            layers.num_groups(channels), epsilon=1e-5, dtype=jnp.float64, use_fast_variance=False
        ).apply({"params": params}, x)
        if scale is not None and shift is not None:
            reference = reference * (1 + scale[:, None, None]) + shift[:, None, None]
        reference = np.asarray(reference)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, reference, rtol=1e-5, atol=2e-5)


def test_a_norm_of_parts_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    small, large = (
        jnp.asarray(1.0 + rng.normal(size=size), jnp.float32)
        for size in ((2, 3, 4, 10), (2, 6, 8, 22))
    )
    film = jnp.asarray(rng.normal(size=(2, 2, 32)), jnp.float32)
    norm = layers.GroupNorm(jnp.float32)
    whole, params = norm.init_with_output(
        jax.random.key(0), jnp.concatenate([layers.upsample(small), large], axis=-1), *film
    )
    parts = norm.apply(params, (small, large), *film)
    np.testing.assert_allclose(layers.upsample(parts[0]), whole[..., :10], atol=1e-5)
    np.testing.assert_allclose(parts[1], whole[..., 10:], atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_convolution_has_the_gradients_of_flaxs(
    platform: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chips, "platform", lambda: platform)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 6, 8, 5)), dtype)
    ours = layers.Conv(7, jnp.dtype(dtype), stride=2)
    flaxs = nn.Conv(7, (3, 3), strides=2, dtype=jnp.float32)
    params = nn.unbox(ours.init(jax.random.key(0), x))
    params["params"]["conv"]["bias"] = jnp.asarray(rng.normal(size=7), jnp.float32)
    weights = rng.normal(size=(2, 3, 4, 7))

    def loss(params: Any, layer: nn.Module) -> jax.Array:
        return (layer.apply(params, x) * weights).sum()

    found = jax.grad(loss)(params, ours)["params"]["conv"]
    expected = jax.grad(loss)({"params": params["params"]["conv"]}, flaxs)["params"]
    assert set(found) == set(expected) == {"kernel", "bias"}
    for name, value in expected.items():
        assert_close(found[name], value, 1e-5 if dtype == "float32" else 2e-2)


def test_groups_divide_the_channels() -> None:
    for channels in range(1, 300):
        groups = layers.num_groups(channels)
        assert channels % groups == 0
        assert groups in (1, 2, 4, 8, 16, 32)
        assert groups == 1 or channels // groups >= 4
    assert layers.num_groups(512) == 32


def sums_in_one_fusion(blocks: int) -> int:
    """Operands of the largest fusion in the compiled gradient of a row of residual blocks."""

    class Row(nn.Module):
        @nn.compact
        def __call__(self, x: Any, vector: Any) -> Any:
            for _ in range(blocks):
                x = ResBlock(8, jnp.float32)(x, vector, False)
            return x

    inputs = jnp.ones((2, 4, 4, 8)), jnp.ones((2, 8))
    params = jax.eval_shape(lambda: nn.unbox(Row().init(jax.random.key(0), *inputs)))
    loss = lambda params: jnp.sum(Row().apply(params, *inputs) ** 2)  # noqa: E731
    program = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    return max(found[1].count("%") for found in re.finditer(r" fusion\((.*?)\), kind", program))


@pytest.mark.slow
def test_gradients_along_residual_blocks_are_summed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sums_in_one_fusion(3) == sums_in_one_fusion(2)
    monkeypatch.setattr(chips, "one_device", lambda: False)
    assert sums_in_one_fusion(3) > sums_in_one_fusion(2), "XLA does it, and the sum can go back"


@pytest.mark.parametrize("number", [1.0, jnp.inf, jnp.nan])
def test_a_residual_sum_is_a_sum(number: float) -> None:
    """`number` is the one that the gradient's condition reads."""
    x, y = jnp.arange(24.0).reshape(2, 3, 4).at[0, 0, 0].set(number), jnp.ones((2, 3, 4))
    plain = jax.grad(lambda x, y: jnp.sum((x + y) ** 2), (0, 1))(x, y)
    found = jax.grad(lambda x, y: jnp.sum(layers.residual_sum(x, y) ** 2), (0, 1))(x, y)
    if np.isfinite(number):
        tiny.assert_identical(found, plain)
    else:
        assert not any(np.isfinite(gradient).all() for gradient in found)


def test_resampling() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 8, 3)), jnp.float32)
    np.testing.assert_allclose(layers.downsample(layers.upsample(x)), x, rtol=1e-6)
    np.testing.assert_array_equal(
        layers.upsample(x, 3), np.repeat(np.repeat(x, 3, axis=1), 3, axis=2)
    )
    twice = layers.downsample(layers.downsample(x))
    np.testing.assert_allclose(layers.downsample(x, 4), twice, atol=1e-6)
    np.testing.assert_allclose(twice.mean((1, 2)), x.mean((1, 2)), atol=1e-6)
    with pytest.raises(ValueError, match="4 x 8 cannot be downsampled by 3"):
        layers.downsample(x, 3)


def test_patches_are_squares_of_pixels() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 12, 5)), jnp.float32)
    patches = layers.to_patches(x, 3)
    assert patches.shape == (2, 2, 4, 45)
    np.testing.assert_array_equal(patches[1, 1, 2], x[1, 3:6, 6:9].reshape(-1))
    np.testing.assert_array_equal(layers.from_patches(patches, 3), x)
    np.testing.assert_array_equal(layers.to_patches(x, 1), x)


@pytest.mark.parametrize(("scale", "low", "high"), [(25.0, -20.0, 20.0), (1000.0, 0.0, 1.0)])
def test_sinusoidal_embedding_tells_values_apart(scale: float, low: float, high: float) -> None:
    """The same fraction of the range moves it by the same distance everywhere."""
    embedded = sinusoidal_embedding(jnp.linspace(low, high, 201) * scale, 32)
    np.testing.assert_allclose(embedded[:, :16] ** 2 + embedded[:, 16:] ** 2, 1.0, atol=1e-5)
    distances = np.linalg.norm(embedded[:, None] - embedded[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 0.5


# all networks


@pytest.mark.slow
def test_output_is_zero_at_initialisation(network: Network) -> None:
    y = network.jitted(network.start, network.x, network.logsnr, network.conditioning)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, np.zeros_like(network.x))


@pytest.mark.slow
def test_every_parameter_learns(network: Network) -> None:
    """The convolutions that start at zero hold gradients back, but for four steps at most: the
    output's, those of the blocks, what FiLM reads, and the conditioning behind it."""
    stage = network.stage
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            y = stage.apply(params, network.x, network.logsnr, network.conditioning)
            return jnp.mean((y - network.x) ** 2)

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params, state = network.start, optimizer.init(network.start)
    for _ in range(4):
        params, state = step(params, state)
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), params, network.start)
    stuck = [jax.tree_util.keystr(k) for k, v in jax.tree_util.tree_leaves_with_path(same) if v]
    assert not stuck


@pytest.mark.parametrize("garbage", [jnp.nan, 1e30])
def test_masked_text_is_never_read(network: Network, garbage: float) -> None:
    states, mask = network.conditioning.text
    y = network.with_text(jnp.where(mask[..., None], states, garbage), mask)
    np.testing.assert_array_equal(y, network.output)


def test_dropped_text_is_never_read(network: Network) -> None:
    states, mask = network.conditioning.text
    nothing = jnp.zeros_like(mask)
    dropped = network.with_text(jnp.zeros_like(states), nothing)
    assert np.isfinite(dropped).all()
    np.testing.assert_array_equal(network.with_text(states, nothing), dropped)
    np.testing.assert_array_equal(network.with_text(states * jnp.nan, nothing), dropped)
    assert np.abs(dropped - network.output).max() > 1e-3


@pytest.mark.slow
def test_padding_of_text_does_not_matter(network: Network) -> None:
    states, mask = network.conditioning.text
    longer = jnp.pad(states, ((0, 0), (0, 6), (0, 0))), jnp.pad(mask, ((0, 0), (0, 6)))
    assert_close(network.with_text(*longer), network.output)


@pytest.mark.slow
def test_order_of_tokens_matters_to_text_layers() -> None:
    block = TextBlock(4, jnp.float32)
    states = jax.random.normal(jax.random.key(2), (1, 5, 8))
    mask = jnp.ones((1, 5), bool)
    params = block.init(jax.random.key(3), states, mask)
    order = jnp.asarray([3, 1, 4, 0, 2])
    y, reordered = (block.apply(params, s, mask) for s in (states, states[:, order]))
    assert float(jnp.abs(y[:, order] - reordered).max()) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("positions", [False, True])
def test_attention_positions(positions: bool) -> None:
    layer = ImageAttention(4, True, True, jnp.float32, positions)
    x, text = jnp.ones((1, 4, 6, 8)), jax.random.normal(jax.random.key(4), (1, 3, 8))
    mask = jnp.ones((1, 3), bool)
    y, _ = layer.init_with_output(jax.random.key(5), x, text, mask)
    places = y.reshape(24, 8)
    distance = jnp.abs(places[:, None] - places[None]).max(-1)[~np.eye(24, dtype=bool)]
    if positions:
        assert float(distance.min()) > 1e-4  # no two places are alike
    else:
        assert float(distance.max()) < 1e-5


@pytest.mark.slow
def test_rotated_products_depend_on_distance_alone() -> None:
    """RoFormer, equation 16; and a rotation keeps lengths."""
    q, k = jax.random.normal(jax.random.key(1), (2, 6))
    positions = rotate_by_position(
        jnp.broadcast_to(jnp.stack([q, k]), (1, 9, 2, 6)), jnp.arange(9)
    )[0]
    products = positions[:, 0] @ positions[:, 1].T
    for distance in range(-8, 9):
        diagonal = jnp.diagonal(products, distance)
        assert_close(diagonal, jnp.full_like(diagonal, diagonal[0]))
    assert float(jnp.abs(products[0] - products[0, 0]).max()) > 1e-2
    assert_close(jnp.linalg.norm(positions[:, 0], axis=-1), jnp.full(9, jnp.linalg.norm(q)))
    # The slowest pair of six channels turns by 100^(-2/3) radian a token.
    pair = rotate_by_position(jnp.ones((1, 2, 1, 6)), jnp.arange(2))[0, 1, 0, jnp.asarray([2, 5])]
    angle = 100.0 ** (-2 / 3)
    assert_close(pair, jnp.asarray([np.cos(angle) - np.sin(angle), np.sin(angle) + np.cos(angle)]))


def test_odd_heads_cannot_be_rotated() -> None:
    with pytest.raises(ValueError, match=r"heads of 3 channels .* head_channels must be even"):
        rotate_by_position(jnp.zeros((1, 2, 1, 3)), jnp.arange(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "sr"])
def test_order_of_tokens_does_not_matter_without_text_layers(name: str) -> None:
    """As in the paper: token states carry their positions already, and nothing adds others."""
    network = Network(tiny.stage(name, f"stages.{name}.network.text_layers=0"))
    states, mask = network.conditioning.text
    order = jnp.asarray([3, 1, 4, 0, 2])
    assert_close(network.with_text(states[:, order], mask[:, order]), network.output)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pool"), [("base", "mean"), ("sr", "attention"), ("sr", "mean")])
def test_pooled_text_alone(name: str, pool: str) -> None:
    """Without cross-attention text reaches the image through the pooled vector alone."""
    stage = tiny.stage(name, *tiny.ONE_LEVEL)
    without = {"base": False, "sr": (False,)}[name]
    pooled = stage.network.clone(text_pool=pool, cross_attention=without)
    network = Network(dataclasses.replace(stage, network=pooled))
    paths = flax.traverse_util.flatten_dict(network.params, sep="/")
    assert [p for p in paths if p.startswith("conditioning/pool/")]
    assert not [p for p in paths if "/text/" in p and not p.startswith("conditioning/pool/")]
    states, mask = network.conditioning.text
    changed = np.abs(network.with_text(states[::-1], mask) - network.output).max((1, 2, 3))
    assert (changed > 1e-4).all()
    np.testing.assert_array_equal(
        network.with_text(jnp.where(mask[..., None], states, jnp.nan), mask), network.output
    )
    dropped = network.with_text(states, jnp.zeros_like(mask))
    np.testing.assert_array_equal(network.with_text(-states, jnp.zeros_like(mask)), dropped)
    assert np.isfinite(dropped).all()


def test_unknown_pool() -> None:
    config = to_plain(tiny.config())
    config["stages"]["base"]["network"]["text_pool"] = "max"
    with pytest.raises(ValueError, match=r"text_pool must be one of 'attention', 'mean'.*'max'"):
        make_stage(ConfigDict(config), "base")


def test_examples_do_not_mix(network: Network) -> None:
    order = jnp.asarray([2, 0, 3, 1])
    permuted = jax.tree.map(lambda leaf: leaf[order], network.conditioning)
    y = network(permuted, x=network.x[order], logsnr=network.logsnr[order])
    assert_close(y, network.output[order])
    spoilt = network.x.at[0].set(jnp.nan)
    np.testing.assert_array_equal(network(network.conditioning, x=spoilt)[1:], network.output[1:])


def test_everything_conditions_the_output(network: Network) -> None:
    given = network.conditioning
    changed = {
        "x": network(given, x=network.x + 0.1),
        "logsnr": network(given, logsnr=network.logsnr + 0.1),
        "text": network.with_text(given.text.states[::-1], given.text.mask),
    }
    if given.low_res is not None and given.aug_level is not None:
        changed["low_res"] = network(given._replace(low_res=given.low_res[::-1]))
        changed["aug_level"] = network(given._replace(aug_level=given.aug_level + 0.01))
    for name, y in changed.items():
        per_example = np.abs(y - network.output).max(axis=(1, 2, 3))
        assert (per_example > 1e-4).all(), name


@pytest.mark.slow
def test_bfloat16_agrees_with_float32(network: Network) -> None:
    half = network.stage.with_network(network.stage.network.with_dtype("bfloat16"))
    y = jax.jit(half.apply)(network.params, network.x, network.logsnr, network.conditioning)
    assert y.dtype == jnp.float32
    error = np.linalg.norm(y - network.output) / np.linalg.norm(network.output)
    # bfloat16 has 8 bits: 0.4 % per operation, some dozens of them in a row.
    assert 0 < error < 0.03


def test_same_weights_at_another_size(network: Network) -> None:
    size = 2 * network.stage.resolution
    wide = size + network.stage.network.size_multiple
    larger = jax.eval_shape(
        network.stage.apply,
        network.params,
        jnp.zeros((BATCH, size, wide, 3)),
        network.logsnr,
        network.conditioning._replace(
            low_res=None if network.stage.low_res is None else jnp.zeros((BATCH, size, wide, 3))
        ),
    )
    assert larger.shape == (BATCH, size, wide, 3)


@pytest.mark.slow
def test_dropout_is_on_in_training_alone() -> None:
    stage = tiny.stage("base", "stages.base.network.dropout=0.5")
    network = Network(stage)
    plain = Network(tiny.stage("base")).output
    np.testing.assert_array_equal(network.output, plain)
    train = jax.jit(lambda key: stage.apply(
        network.params, network.x, network.logsnr, network.conditioning, True, key
    ))  # fmt: skip
    first, second = train(jax.random.key(0)), train(jax.random.key(1))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(train(jax.random.key(0)), first)


# mistakes


def init_shape(stage: Stage) -> None:
    """Traces the initialisation, which costs no compilation."""
    jax.eval_shape(stage.init, jax.random.key(0))


@pytest.mark.parametrize(("name", "size", "multiple"), [("base", 5, 2), ("sr", 6, 4)])
def test_resolution_that_the_network_cannot_take(name: str, size: int, multiple: int) -> None:
    stage = tiny.stage(name)
    with pytest.raises(UserError, match=f"{size} x {size} pixels; .* multiples of {multiple}"):
        dataclasses.replace(stage, resolution=size)
    with pytest.raises(UserError, match=f"{size} x {size} pixels; .* multiples of {multiple}"):
        dataclasses.replace(stage, crop=size)


@pytest.mark.parametrize("patch", [0, -2])
def test_patches_of_no_pixels(patch: int) -> None:
    with pytest.raises(UserError, match=r"'sr' takes images of multiples of .* such as patch"):
        tiny.stage("sr", f"stages.sr.network.patch={patch}")
    with pytest.raises(UserError, match=r"'sr' takes images of multiples of .* such as patch"):
        tiny.stage("sr").with_network(tiny.JIT.clone(patch=patch))


def test_patches_make_the_multiple_larger() -> None:
    patched = tiny.stage("sr", "stages.sr.network.patch=2")
    assert patched.network.size_multiple == 2 * tiny.stage("sr").network.size_multiple


@pytest.mark.parametrize("name", ["base", "sr"])
def test_heads_that_do_not_divide(name: str) -> None:
    with pytest.raises(ValueError, match=r"image of 16 channels cannot be divided .* heads of 6"):
        init_shape(tiny.stage(name, f"stages.{name}.network.head_channels=6",
                              f"stages.{name}.network.text_channels=12"))  # fmt: skip
    with pytest.raises(ValueError, match=r"text of 10 channels cannot be divided .* heads of 4"):
        init_shape(tiny.stage(name, f"stages.{name}.network.text_channels=10"))


def test_heads_of_a_transformer_are_rotated_in_two_halves() -> None:
    network = tiny.JIT.clone(head_channels=2, width=6)
    with pytest.raises(UserError, match="head_channels is 2; JiT needs a multiple of 4"):
        init_shape(tiny.stage("sr").with_network(network))


@pytest.mark.parametrize("layer", [ImageAttention(3, True, True, jnp.float32),
                                   AttentionPool(3, 4, jnp.float32),
                                   TextBlock(3, jnp.float32)])  # fmt: skip
def test_every_attention_checks_its_heads(layer: nn.Module) -> None:
    text, mask = jnp.zeros((1, 2, 8)), jnp.ones((1, 2), bool)
    image = [jnp.zeros((1, 2, 2, 8))] if isinstance(layer, ImageAttention) else []
    with pytest.raises(ValueError, match=r"of 8 channels cannot be divided into .* heads of 3"):
        jax.eval_shape(layer.init, jax.random.key(0), *image, text, mask)


def test_missing_and_needless_low_res() -> None:
    base, sr = tiny.stage("base"), tiny.stage("sr")
    for stage, given, message in (
        (sr, tiny.conditioning(base, 1), "needs conditioning.low_res"),
        (sr, tiny.conditioning(sr, 1)._replace(aug_level=None), "needs conditioning.aug_level"),
        (base, tiny.conditioning(sr, 1), "takes no conditioning.low_res"),
    ):
        x = jnp.zeros((1, stage.resolution, stage.resolution, 3))
        with pytest.raises(ValueError, match=message):
            stage.apply({}, x, jnp.zeros(1), given)


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("base", "attention", "one entry per resolution"),
        ("base", "blocks", "one entry per resolution"),
        ("sr", "cross_attention", "one entry per DBlock"),
        ("sr", "blocks", "one entry per DBlock"),
    ],
)
def test_one_entry_for_each_level(name: str, key: str, message: str) -> None:
    wrong = "(1, 1, 1)" if key == "blocks" else "(True,)"
    with pytest.raises(ValueError, match=message):
        init_shape(tiny.stage(name, f"stages.{name}.network.{key}={wrong}"))
