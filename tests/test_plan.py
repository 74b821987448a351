"""Plans against closed forms, and the command on tiny stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny

from imagen_jax.config import load_config
from imagen_jax.flops import jaxpr_flops
from imagen_jax.main import main
from imagen_jax.plan import collectives, cost, hlo
from imagen_jax.plan.jobs import t5_of_width
from imagen_jax.pretrained import abstract_params
from imagen_jax.stage import make_stage
from imagen_jax.text import t5
from imagen_jax.train.state import count_parameters

SIZE, CHANNELS, LAYERS = 8, 16, 4
TINY = str(Path(__file__).with_name("tiny_config.py"))


def convolutions(kernels: Any, x: Any, loop: bool) -> Any:
    """A row of 3 x 3 convolutions, as a loop or one by one."""

    def layer(x: Any, kernel: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(y), None

    if loop:
        return jax.lax.scan(layer, x, kernels)[0]
    for kernel in kernels:
        x, _ = layer(x, kernel)
    return x


SHAPES = (
    jax.ShapeDtypeStruct((LAYERS, 3, 3, CHANNELS, CHANNELS), jnp.float32),
    jax.ShapeDtypeStruct((2, SIZE, SIZE, CHANNELS), jnp.float32),
)
# Rows and columns at the border meet one third of the window's zeros: 3 n - 2 pairs along a side.
EXACT = LAYERS * 2 * 2 * (3 * SIZE - 2) ** 2 * CHANNELS**2


@pytest.mark.parametrize("loop", [True, False])
def test_flops_of_convolutions(loop: bool) -> None:
    jaxpr = jax.make_jaxpr(lambda *a: convolutions(*a, loop))(*SHAPES).jaxpr
    assert jaxpr_flops(jaxpr) == EXACT
    compiled = jax.jit(lambda *a: convolutions(*a, loop)).lower(*SHAPES).compile()
    assert cost.program_cost(hlo.parse(compiled.as_text())).flops == EXACT


def test_flops_of_gradients_are_three_times_those_of_the_forward_pass() -> None:
    def loss(kernels: Any, x: Any) -> Any:
        return jnp.sum(convolutions(kernels, x, True) ** 2)

    # The derivative by the first input is part of a loop's body, needed or not.
    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(*SHAPES).jaxpr
    assert jaxpr_flops(jaxpr) == 3 * EXACT
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*SHAPES).compile()
    assert cost.program_cost(hlo.parse(compiled.as_text())).flops == 3 * EXACT


def test_flops_of_a_whole_stage_agree_with_xla() -> None:
    stage = tiny.stage("base")
    params = abstract_params(stage)
    inputs = jax.eval_shape(lambda: stage.dummy_inputs(2))
    compiled = jax.jit(stage.apply).lower(params, *inputs).compile()
    ours = cost.program_cost(hlo.parse(compiled.as_text())).flops
    analysis = compiled.cost_analysis()
    assert ours == jaxpr_flops(jax.make_jaxpr(stage.apply)(params, *inputs).jaxpr)
    # XLA's figure also counts additions, which are a small part.
    assert 0.6 * analysis["flops"] < ours < analysis["flops"]


def test_shapes_are_padded_to_tiles() -> None:
    (shape,) = hlo.parse_shapes("bf16[16,256,256,6]{3,0,2,1:T(8,128)(2,1)}")
    assert shape.size == 16 * 256 * 256 * 6 * 2
    assert shape.padded == 256 * 256 * 16 * 128 * 2
    assert not shape.on_chip
    (vector,) = hlo.parse_shapes("f32[100]{0:T(128)S(1)}")
    assert (vector.padded, vector.on_chip) == (512, True)


HLO = """HloModule test

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %y = f32[8,128]{1,0:T(8,128)} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %t = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%i, %y)
}

%condition (p: (s32[], f32[8,128])) -> pred[] {
  %p = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[8,128]) -> (s32[], f32[8,128]) {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%zero, %a)
  ROOT %loop = (s32[], f32[8,128]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
}
"""


def test_collectives_of_a_loop() -> None:
    size = 8 * 128 * 4
    inside = cost.program_cost(hlo.parse(HLO)).links["all-reduce"]
    assert inside == [5, 5 * 2 * size * 3 / 4, 0]
    across = cost.program_cost(hlo.parse(HLO), slice_devices=2).links["all-reduce"]
    assert across == [5, 0, 5 * 2 * size * 3 / 4]
    assert cost.program_cost(hlo.parse(HLO)).hbm_bytes == pytest.approx(5 * 2 * size, rel=0.01)


@pytest.mark.parametrize(
    ("attributes", "members"),
    [
        ("replica_groups={{0,2},{1,3}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", 4),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_replica_groups(attributes: str, members: int) -> None:
    assert collectives.replica_group(attributes, None) == (members, False)


@pytest.mark.parametrize(("name", "millions"), [("base64", 2000), ("sr256", 600), ("sr1024", 400)])
def test_parameters_of_the_papers_stages(name: str, millions: int) -> None:
    stage = make_stage(load_config(name), None)
    assert stage.name == name
    parameters = count_parameters(jax.eval_shape(stage.init, jax.random.key(0)))
    assert abs(parameters / 1e6 - millions) < 0.05 * millions


@pytest.mark.parametrize("name", ["base64_small", "finetune"])
def test_parameters_of_the_small_base(name: str) -> None:
    stage = make_stage(load_config(name), None)
    assert 300e6 < count_parameters(jax.eval_shape(stage.init, jax.random.key(0))) < 500e6


def test_t5_xxl_has_its_published_size() -> None:
    parameters = count_parameters(t5.abstract_params(t5_of_width(4096)))
    assert 4.5e9 < parameters < 4.8e9  # Imagen, section 2.1: 4.6B


def test_plan_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Muon multiplies matrices of its own; Adam does not.
    changes = [*tiny.ONE_LEVEL, "stages.base.train.optimizer=adam"]
    args = ["plan", "--config", TINY, "--stage", "base", "--set", *changes]
    assert main([*args, "--json", str(tmp_path / "plan.json"), "--chart", f"{tmp_path}/p.png"]) == 0
    assert "TFLOP" in capsys.readouterr().out
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fits"]
    assert plan["model_flops"] == pytest.approx(plan["flops"], rel=0.05)
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_plan_of_a_sampler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--set", *tiny.ONE_LEVEL, "--job", "sample", "--batch", "2"]
    args += ["--json", str(tmp_path / "plan.json")]
    assert main(["plan", "--config", TINY, "--stage", "sr", *args]) == 0
    assert "sample" in capsys.readouterr().out
    plan = json.loads((tmp_path / "plan.json").read_text())
    # The text's keys and values are computed once, not in every step.
    assert plan["model_flops"] == pytest.approx(plan["flops"], rel=0.02)


@pytest.mark.slow
def test_plan_for_a_tpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler is for Linux x86_64")
    args = ["plan", "--config", TINY, "--stage", "base", "--topology", "v4:2x2x1"]
    args += ["--set", *tiny.ONE_LEVEL, "--mesh", "fsdp=2", "data=2", "--json", f"{tmp_path}/p"]
    assert main(args) == 0
    assert "MFU" in capsys.readouterr().out
    plan = json.loads((tmp_path / "p").read_text())
    assert plan["devices"] == 4
    assert plan["collectives"]
    assert plan["memory_limit"] == 32 * 2**30
    assert plan["terms"]["memory"] > 0


def test_search_ranks_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """On one device there is one mesh, and without limits of memory the first accumulation fits."""
    args = ["plan", "--config", TINY, "--stage", "base", "--set", *tiny.ONE_LEVEL, "--search"]
    assert main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["none", "products", "blocks"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--topology", "v9:2x2"], "generation"),
        (["--topology", "v4:big"], "generation"),
        (["--mesh", "rows=2"], "slice, data, fsdp, spatial, tensor"),
        (["--mesh", "data=7"], "does not use the 1 devices"),
        (["--remat", "some"], "none, products, blocks"),
        (["--slices", "2"], "topology"),
        (["--accumulation", "3"], "accumulation"),
        (["--job", "embed"], "no T5 v1.1 encoder is 8 wide"),
    ],
)
def test_mistakes(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", TINY, "--stage", "base", *args]) == 2
    assert message in capsys.readouterr().err
