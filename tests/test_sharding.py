"""However a stage is laid out on devices, it computes the same.

The comparisons need eight devices, so they run in a process of their own: `python
tests/test_sharding.py`.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from imagen_jax import sharding
from imagen_jax.errors import UserError
from imagen_jax.stage import Stage
from imagen_jax.train.state import abstract_state, create_state
from imagen_jax.train.step import stage_loss

MESH = AbstractMesh((1, 2, 2, 1, 2), sharding.MESH_AXES)


def boxed(axes: tuple[str | None, ...], shape: tuple[int, ...]) -> dict[str, Any]:
    return {"kernel": nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), axes)}


# rules


def test_rules_lay_out_axes() -> None:
    found = sharding.state_shardings(
        {"step": jax.ShapeDtypeStruct((), jnp.int32)} | boxed(("window", "in", "out"), (3, 4, 6)),
        MESH,
    )
    assert found == {
        "step": NamedSharding(MESH, PartitionSpec()),
        "kernel": NamedSharding(MESH, PartitionSpec(None, "fsdp", "tensor")),
    }


def test_unknown_logical_axis() -> None:
    with pytest.raises(ValueError, match=r"\['kernel'\]: unknown logical axes \['heads'\]"):
        sharding.state_shardings(boxed(("in", "heads"), (4, 6)), MESH)


def test_axis_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"\['kernel'\]: axis of size 7 .* 'tensor' of size 2"):
        sharding.state_shardings(boxed(("in", "out"), (4, 7)), MESH)


def test_parameter_without_axes_is_replicated() -> None:
    params = {"a": boxed(("in", "out"), (2, 2)), "b": {"kernel": jax.ShapeDtypeStruct((2,), float)}}
    found = sharding.state_shardings(params, MESH)
    assert found["b"]["kernel"] == NamedSharding(MESH, PartitionSpec())
    assert found["a"]["kernel"] == NamedSharding(MESH, PartitionSpec("fsdp", "tensor"))


@pytest.mark.parametrize("name", ["base", "sr"])
def test_every_axis_of_every_parameter_has_a_name(name: str) -> None:
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        jax.eval_shape(tiny.stage(name).init, jax.random.key(0)),
        is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
    )
    known = {axis for axis, _ in sharding.LOGICAL_AXIS_RULES}
    for path, leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned), jax.tree_util.keystr(path)
        assert len(leaf.names) == leaf.value.ndim, jax.tree_util.keystr(path)
        assert set(leaf.names) <= known, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"model": 2}, r"unknown mesh axes \['model'\]"),
        ({"data": -1, "fsdp": -1}, r"only one mesh axis may be -1, got \['data', 'fsdp'\]"),
        ({"fsdp": 3}, r"mesh {'fsdp': 3} does not use the 1 devices"),
        ({"spatial": 2, "tensor": 2}, "cannot have both spatial"),
        ({"data": 0}, "does not use the 1 devices"),
    ],
)
def test_mesh_that_cannot_be_made(axes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(axes)


@pytest.mark.slow
@dataclasses.dataclass(frozen=True)
class OfSlice:
    """A device of one of several slices."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        (None, {"slice": 2, "data": 4, "fsdp": 1}),
        ({"slice": 1, "data": -1, "fsdp": 2}, {"slice": 2, "data": 2, "fsdp": 2}),
        ({"slice": 2, "fsdp": 4}, {"slice": 2, "data": 1, "fsdp": 4}),
    ],
)
def test_the_first_axis_joins_slices(axes: dict[str, int] | None, shape: dict[str, int]) -> None:
    devices = [OfSlice(i, i // 2, i // 4) for i in range(8)]
    mesh = sharding.make_mesh(axes, devices)
    assert {name: mesh.shape[name] for name in shape} == shape
    assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match="in 2 slices, but the mesh axis 'slice' has 4"):
        sharding.make_mesh({"slice": 4, "data": -1}, devices)


@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "muon"])
def test_state_lies_where_its_shardings_say(optimizer: str) -> None:
    stage = tiny.stage("base", *tiny.ONE_LEVEL, f"stages.base.train.optimizer={optimizer}")
    mesh = sharding.make_mesh()
    abstract, shardings = abstract_state(stage, mesh)
    state = create_state(stage, mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == described
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema)


# on eight devices


def assert_same(a: Any, b: Any, tolerance: float) -> None:
    """Equal up to rounding, leaf by leaf, relative to the leaf's largest value."""

    def check(path: Any, x: jax.Array, y: jax.Array) -> None:
        error, size = float(np.abs(x - y).max()), float(np.abs(y).max())
        assert error <= tolerance * size, f"{jax.tree_util.keystr(path)}: {error} of {size}"

    jax.tree_util.tree_map_with_path(check, jax.device_get(a), jax.device_get(b))


def gradients_of(stage: Stage, meshes: list[dict[str, int]]) -> None:
    params, batch = tiny.random_params(stage), tiny.batch(stage, 8)

    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(stage_loss(stage, params, batch, jax.random.key(1)).per_example)

    expected = jax.jit(jax.value_and_grad(loss))(params, batch)
    for axes in meshes:
        mesh = sharding.make_mesh(axes)
        _, shardings = abstract_state(stage, mesh)
        sharded = jax.jit(
            sharding.on_mesh(jax.value_and_grad(loss), mesh),
            in_shardings=(shardings.params, sharding.batch_shardings(mesh, batch)),
            out_shardings=(sharding.replicated(mesh), shardings.params),
        )(params, batch)
        divided = any(not g.sharding.is_fully_replicated for g in jax.tree.leaves(sharded[1]))
        assert divided == bool(axes.keys() & {"fsdp", "tensor"}), axes
        assert_same(sharded, expected, tolerance=1e-4)


def gradients_do_not_depend_on_the_mesh() -> None:
    gradients_of(
        tiny.stage("base", *tiny.ONE_LEVEL),
        [
            {"data": 8},
            {"data": 2, "tensor": 4},
            {"data": 2, "fsdp": 2, "tensor": 2},
            {"slice": 2, "fsdp": 4},
            {"slice": 2, "data": 2, "tensor": 2},
        ],
    )
    gradients_of(
        tiny.stage("sr", *tiny.ONE_LEVEL),
        [{"data": 4, "fsdp": 2}, {"data": 4, "spatial": 2}, {"data": 2, "fsdp": 2, "spatial": 2}],
    )
    gradients_of(  # as the 1024 stage: no self-attention
        tiny.stage("sr", *tiny.ONE_LEVEL, "stages.sr.network.self_attention=(False,)"),
        [{"data": 2, "spatial": 4}, {"fsdp": 4, "tensor": 2}],
    )
    gradients_of(
        tiny.stage("sr").with_network(tiny.JIT),
        [{"data": 4, "spatial": 2}, {"data": 2, "fsdp": 2, "tensor": 2}],
    )


def training_goes_on_with_another_mesh() -> None:
    from imagen_jax.checkpoints.cascades import open_cascade
    from imagen_jax.train.loop import train

    with tempfile.TemporaryDirectory() as directory:
        data = str(tiny.embed_colours(Path(directory) / "embeddings"))
        config = tiny.config("cascade=('base',)", "stages.base.train.steps=1", *tiny.ONE_LEVEL)
        with pytest.raises(
            ValueError, match=r"batch_size is 4; it must be a multiple of the 8 dev"
        ):
            train(config, "base", data, directory)
        trained = train(
            config, "base", data, directory, mesh_axes={"data": 2, "fsdp": 2, "tensor": 2}
        ).state
        kernel = trained.params["middle_0"]["conv_in"]["conv"]["kernel"]
        assert kernel.sharding.spec == PartitionSpec(None, None, "fsdp", "tensor")
        restored = train(config, "base", data, directory, mesh_axes={"data": 4, "tensor": 2}).state
        kernel = restored.params["middle_0"]["conv_in"]["conv"]["kernel"]
        assert kernel.sharding.mesh.shape == sharding.mesh_sizes({"data": 4, "tensor": 2}, 8)
        jax.tree.map(np.testing.assert_array_equal, *jax.device_get((trained, restored)))
        cascade = open_cascade(directory)
        ema = cascade.weights(cascade.stages[0])
        jax.tree.map(np.testing.assert_array_equal, *jax.device_get((ema, trained.ema)))


@pytest.mark.slow
def test_gradients_and_training_do_not_depend_on_the_mesh() -> None:
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]


if __name__ == "__main__":
    assert jax.device_count() == 8
    gradients_do_not_depend_on_the_mesh()
    training_goes_on_with_another_mesh()
