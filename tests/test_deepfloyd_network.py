"""DeepFloyd IF's U-Nets against diffusers' (tests/make_deepfloyd_reference.py), and their names."""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import deepfloyd_files as files
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import chips, sharding
from imagen_jax.checkpoints.deepfloyd_names import network_fields, our_name
from imagen_jax.errors import UserError
from imagen_jax.models.deepfloyd_unet import DeepFloydUNet, timestep
from imagen_jax.typing import Conditioning, TextEmbedding

TESTDATA = Path(__file__).parent / "testdata"
REFERENCE = np.load(TESTDATA / "deepfloyd_network.npz")
ALPHAS = np.cumprod(
    1.0 - np.minimum(1.0 - np.divide(*(np.cos((np.arange(1000) + i) / 1000 / 1.008 * np.pi / 2
                     + 0.008 / 1.008 * np.pi / 2) ** 2 for i in (1, 0))), 0.999)
)  # fmt: skip
LOGSNRS = np.log(ALPHAS) - np.log1p(-ALPHAS)


def turned(x: np.ndarray) -> np.ndarray:
    """A matrix or a kernel of torch in our order of axes."""
    return {2: lambda: x.T, 4: lambda: x.transpose(2, 3, 1, 0)}.get(x.ndim, lambda: x)()


def of_torch(name: str, levels: int, x: np.ndarray) -> tuple[str, np.ndarray]:
    ours = our_name(name, x.ndim, levels)
    assert ours is not None, name
    return ours, x if ours.endswith("position") else turned(x)


@functools.cache
def network(stage: str) -> DeepFloydUNet:
    return DeepFloydUNet(**network_fields(files.CONFIGS[stage], stage))


@functools.cache
def torch_weights(stage: str) -> dict[str, np.ndarray]:
    shapes = [tuple(json.loads(str(s))) for s in REFERENCE[f"{stage}/shapes"]]
    return files.weights(dict(zip(map(str, REFERENCE[f"{stage}/names"]), shapes, strict=True)))


def params_of(stage: str, null_text: np.ndarray | None = None) -> Any:
    levels = len(network(stage).channels)
    flat = dict(of_torch(name, levels, x) for name, x in torch_weights(stage).items())
    null = np.zeros((files.LENGTH, files.WIDTH), np.float32) if null_text is None else null_text
    return flax.traverse_util.unflatten_dict(flat | {"conditioning/null_text": null}, sep="/")


def conditioning_of(stage: str, text: Any, mask: Any = None) -> tuple[jax.Array, Conditioning]:
    """logsnr [b] and conditioning of the stored case."""
    given = files.inputs(stage)
    mask = jnp.ones(text.shape[:2], bool) if mask is None else mask
    conditioning = Conditioning(TextEmbedding(text, mask))
    if stage == "II":
        levels = LOGSNRS[given["noise_level"]]
        aug = jnp.asarray(2 / np.pi * np.arctan(np.exp(-levels / 2)), jnp.float32)
        conditioning = conditioning._replace(low_res=jnp.asarray(given["low_res"]), aug_level=aug)
    return jnp.asarray(LOGSNRS[given["step"]], jnp.float32), conditioning


def run(stage: str, params: Any, x: Any, text: Any, low_res: Any = None, **fields: Any) -> Any:
    logsnr, conditioning = conditioning_of(stage, text)
    if low_res is not None:
        conditioning = conditioning._replace(low_res=low_res)
    net = network(stage).clone(**fields)
    return net.apply({"params": params}, x, logsnr, conditioning)


def test_steps_are_those_of_the_discrete_process() -> None:
    steps = timestep(jnp.asarray(LOGSNRS, jnp.float32))
    np.testing.assert_array_equal(steps, np.arange(1000))
    assert timestep(jnp.asarray([-20.0, 20.0])).tolist() == [999, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "bound"), [("plain", 1e-5), ("cpu", 2e-5)])
@pytest.mark.parametrize("stage", ["I", "II"])
def test_outputs_and_gradients_equal_diffusers(stage: str, where: str, bound: float) -> None:
    given, params = files.inputs(stage), params_of(stage)
    expected = {name: REFERENCE[f"{stage}/{name}"] for name in ("output", "gradient of text")}
    direction = files.normal(f"{stage} direction", *expected["output"].shape)

    def product(params: Any, x: Any, text: Any, low_res: Any) -> Any:
        output = run(stage, params, x, text, low_res)
        return (output * direction).sum(), output

    low_res = jnp.asarray(given["low_res"]) if stage == "II" else None
    argnums = (0, 1, 2, 3) if stage == "II" else (0, 1, 2)
    differentiated = jax.value_and_grad(product, argnums, has_aux=True)
    plain = jax.sharding.use_abstract_mesh(chips.no_platform())
    with plain if where == "plain" else contextlib.nullcontext():
        (_, output), (of_params, of_x, of_text, *of_low_res) = jax.jit(differentiated)(
            params, given["x"], given["text"], low_res
        )
    largest = np.abs(expected["output"]).max()
    np.testing.assert_allclose(output, expected["output"], rtol=0, atol=bound * largest)

    of_pixels = np.concatenate([of_x, *of_low_res], axis=-1)
    for got, name in ((of_pixels, "gradient of x"), (of_text, "gradient of text")):
        wanted = REFERENCE[f"{stage}/{name}"]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=bound * np.abs(wanted).max())

    names, levels = torch_weights(stage), len(network(stage).channels)
    flat = flax.traverse_util.flatten_dict(of_params, sep="/")
    assert float(np.abs(flat.pop("conditioning/null_text")).max()) == 0.0  # the text is there
    largest = max(float(REFERENCE[f"{stage}/largest of {name}"]) for name in names)
    for name, weight in names.items():
        ours = np.asarray(flat.pop(of_torch(name, levels, weight)[0]))
        if weight.ndim > 1 and not name.endswith("positional_embedding"):
            ours = ours.T if weight.ndim == 2 else ours.transpose(3, 2, 0, 1)
        assert ours.shape == weight.shape
        wanted = REFERENCE[f"{stage}/probes of {name}"]
        np.testing.assert_allclose(
            files.probes(name, ours), wanted, rtol=0, atol=bound * largest, err_msg=name
        )
    assert not flat


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["I", "II"])
def test_bfloat16_agrees_with_float32(stage: str) -> None:
    given = files.inputs(stage)
    output = run(stage, params_of(stage), given["x"], given["text"], dtype="bfloat16")
    wanted = REFERENCE[f"{stage}/output"]
    error = np.abs(output - wanted)
    assert np.sqrt((error**2).mean()) < 0.03 * np.sqrt((wanted**2).mean())
    assert error.max() < 0.04 * np.abs(wanted).max()


@pytest.mark.slow
def test_dropped_text_is_the_null_text() -> None:
    given, null = files.inputs("I"), files.normal("null", files.LENGTH, files.WIDTH)
    logsnr, conditioning = conditioning_of("I", given["text"])
    text, kept = jnp.asarray(given["text"]), jnp.asarray([[True], [False]])
    outputs = []
    for states, mask in (
        (text.at[1].set(jnp.nan), kept & conditioning.text.mask),
        (text.at[1].set(null), conditioning.text.mask),
    ):
        told = conditioning._replace(text=TextEmbedding(states, mask))
        variables = {"params": params_of("I", null)}
        outputs.append(network("I").apply(variables, given["x"], logsnr, told))
    np.testing.assert_array_equal(*outputs)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["I", "II"])
def test_cached_text_changes_nothing(stage: str) -> None:
    given, variables = files.inputs(stage), {"params": params_of(stage)}
    logsnr, conditioning = conditioning_of(stage, given["text"])
    net = network(stage)
    plain, cache = net.apply(variables, given["x"], logsnr, conditioning, mutable=["text_cache"])
    blank = conditioning._replace(text=jax.tree.map(jnp.zeros_like, conditioning.text))
    again = net.apply(variables | cache, given["x"], logsnr, blank)
    np.testing.assert_array_equal(plain, again)


def test_other_lengths_of_text_are_refused() -> None:
    given = files.inputs("I")
    with pytest.raises(UserError, match=r"77 token states .* given 16"):
        run("I", params_of("I"), given["x"], given["text"][:, :16])


KEYS: dict[str, Any] = json.loads(
    gzip.decompress((TESTDATA / "deepfloyd_keys.json.gz").read_bytes())
)


@pytest.mark.slow
@pytest.mark.parametrize("size", KEYS)
def test_names_and_shapes_at_full_size(size: str) -> None:
    config = KEYS[size]["config"]
    net = DeepFloydUNet(**network_fields(config, size))
    text = TextEmbedding(jnp.zeros((1, 77, 4096)), jnp.zeros((1, 77), bool))
    x, scalar = jnp.zeros((1, 64, 64, 3)), jnp.zeros(1)
    conditioning = Conditioning(text, *([x, scalar] if size.startswith("II") else []))
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, scalar, conditioning)["params"]
    flat = flax.traverse_util.flatten_dict(nn.unbox(shapes), sep="/")
    ours = {name: leaf.shape for name, leaf in flat.items()}
    assert ours.pop("conditioning/null_text") == (77, 4096)
    theirs = dict(
        of_torch(name, len(net.channels), np.broadcast_to(np.float32(0), shape))
        for name, shape in KEYS[size]["shapes"].items()
    )
    assert {name: x.shape for name, x in theirs.items()} == ours
    assert len(theirs) == len(KEYS[size]["shapes"])
    millions = sum(math.prod(shape) for shape in ours.values()) / 1e6
    published = {"I-XL": 4304.7, "I-L": 935.4, "I-M": 371.6, "II-L": 1243.3, "II-M": 482.5}
    assert millions == pytest.approx(published[size], abs=0.05)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("act_fn", "silu"),
        ("norm_num_groups", 16),
        ("out_channels", 3),
        ("class_embed_type", "timestep"),
        ("down_block_types", ["DownBlock2D"] * 3),
        ("up_block_types", ["ResnetUpsampleBlock2D"] * 3),
        ("layers_per_block", [1, 2]),
        ("attention_head_dim", [16, 8, 16]),
        ("time_embedding_act_fn", "gelu"),
        ("mid_block_scale_factor", 1.4142271248762552),
        ("cross_attention_dim", None),
        ("block_out_channels", "32"),
    ],
)
def test_other_networks_are_refused_by_their_config(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"config.json: {key} is .*, and DeepFloyd IF's U-N"):
        network_fields(files.CONFIGS["I"] | {key: value}, "config.json")


def divided_over_devices_it_is_the_same() -> None:
    """Run in a process of its own, with four devices."""
    given, params = files.inputs("II"), params_of("II")
    logsnr, conditioning = conditioning_of("II", jnp.asarray(given["text"]))
    net = network("II")
    boxed = jax.eval_shape(net.init, jax.random.key(0), given["x"], logsnr, conditioning)["params"]

    def apply(params: Any, *args: Any) -> Any:
        return net.apply({"params": params}, *args)

    alone = jax.jit(apply)(params, given["x"], logsnr, conditioning)
    for axes in ({"fsdp": 2, "tensor": 2}, {"data": 2, "spatial": 2}):
        mesh = sharding.make_mesh(axes)
        placed = jax.tree.map(jax.device_put, params, sharding.state_shardings(boxed, mesh))
        divided = jax.jit(sharding.on_mesh(apply, mesh))(placed, given["x"], logsnr, conditioning)
        np.testing.assert_allclose(divided, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


@pytest.mark.slow
def test_divided_over_devices() -> None:
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient() -> None:
    given, params = files.inputs("I"), params_of("I")

    def loss(params: Any, remat: str) -> Any:
        return (run("I", params, given["x"], given["text"], remat=remat) ** 2).sum()

    plain, again = (
        jax.jit(jax.grad(loss), static_argnums=1)(params, r) for r in ("none", "blocks")
    )
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), plain, again)


if __name__ == "__main__":
    divided_over_devices_it_is_the_same()
