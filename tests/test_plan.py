"""Plans against closed forms, and the command on tiny stages."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax import chips, sharding
from imagen_jax.checkpoints.pretrained import abstract_params
from imagen_jax.chips import CHIPS, local_chip
from imagen_jax.config import load_config
from imagen_jax.errors import UserError
from imagen_jax.flops import flops_of, jaxpr_flops
from imagen_jax.main import main
from imagen_jax.models.attention import attend
from imagen_jax.native import compiling, winograd
from imagen_jax.plan import collectives, cost, hlo, products, programs
from imagen_jax.plan.gpus import GPUS
from imagen_jax.plan.jobs import t5_of_width
from imagen_jax.plan.programs import Program, compile_for
from imagen_jax.plan.search import choices
from imagen_jax.plan.topology import topology_devices
from imagen_jax.stage import Stage, make_stage
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


@pytest.mark.slow
def test_flops_of_a_whole_stage_agree_with_xla() -> None:
    stage = tiny.stage("base")
    params = abstract_params(stage)
    inputs = jax.eval_shape(lambda: stage.dummy_inputs(2))
    with jax.sharding.use_abstract_mesh(chips.no_platform()):
        compiled = jax.jit(stage.apply).lower(params, *inputs).compile()
    ours = cost.program_cost(hlo.parse(compiled.as_text())).flops
    analysis = compiled.cost_analysis()
    assert ours == flops_of(stage.apply, params, *inputs)
    # XLA's figure also counts additions, which are a small part.
    assert 0.6 * analysis["flops"] < ours < analysis["flops"]


@pytest.mark.skipif(not any(map(shutil.which, compiling.COMPILERS)), reason="needs a C++ compiler")
def test_flops_of_our_kernels() -> None:
    x, kernel = jnp.ones((2, 8, 12, 16)), jnp.ones((3, 3, 16, 32))
    q, k = jnp.ones((2, 6, 4, 8)), jnp.ones((2, 5, 4, 8))
    convolution = lambda x, kernel: jnp.sum(winograd.convolve(x, kernel) ** 2)  # noqa: E731
    attention = lambda q, k: jnp.sum(attend(q, k, k) ** 2)  # noqa: E731
    tiles, pairs = 2 * 8 * 12 / 16, 2 * 4 * 6 * 5
    for function, inputs, flops in (
        (convolution, (x, kernel), 3 * 2 * tiles * 36 * 16 * 32),
        (attention, (q, k), (2 + 5) * 2 * pairs * 8),
    ):
        compiled = jax.jit(jax.grad(function, (0, 1))).lower(*inputs).compile()
        assert cost.program_cost(hlo.parse(compiled.as_text())).flops == flops


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


# What XLA makes of a convolution of [2,8,8,4] with 6 kernels of 3 x 3, of its gradients, and of a
# product of [8,16] and [16,32], for a GPU: calls of cuDNN and cuBLAS.
GPU_HLO = """HloModule test

ENTRY %main (x: bf16[2,8,8,4], k: bf16[6,3,3,4], y: bf16[2,8,8,6]) -> () {
  %x = bf16[2,8,8,4]{3,2,1,0} parameter(0)
  %k = bf16[6,3,3,4]{3,2,1,0} parameter(1)
  %y = bf16[2,8,8,6]{3,2,1,0} parameter(2)
  %a = bf16[8,16]{1,0} parameter(3)
  %b = bf16[16,32]{1,0} parameter(4)
  %call = CALL
  ROOT %none = () tuple()
}
"""
WINDOW = "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f"
UNTUNED = 'backend_config={"cudnn_conv_backend_config":{"algorithm":{"algo_id":"-1"}}}'
FORWARD = 2 * 2 * (3 * 8 - 2) ** 2 * 4 * 6


@pytest.mark.parametrize(
    ("call", "flops"),
    [
        (
            f"(bf16[2,8,8,6]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %k), {WINDOW}, "
            f'custom_call_target="__cudnn$convForward", {UNTUNED}',
            FORWARD,
        ),
        (
            f"(bf16[2,8,8,4]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%y, %k), {WINDOW}, "
            f'custom_call_target="__cudnn$convBackwardInput", {UNTUNED}',
            FORWARD,
        ),
        (
            f"(bf16[6,3,3,4]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %y), {WINDOW}, "
            f'custom_call_target="__cudnn$convBackwardFilter", {UNTUNED}',
            FORWARD,
        ),
        (
            "(bf16[8,32]{1,0}, s8[4194304]{0}) custom-call(%a, %b), "
            'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
            '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
            2 * 8 * 16 * 32,
        ),
        ('() custom-call(%a), custom_call_target="Sharding"', 0),
    ],
)
def test_flops_of_calls_of_gpu_libraries(call: str, flops: int) -> None:
    module = hlo.parse(GPU_HLO.replace("CALL", call))
    assert cost.program_cost(module).flops == flops
    assert products.untuned_convolutions(module.computations["main"]) == (UNTUNED in call)


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


@pytest.mark.parametrize("name", ["base64_small", "finetune"])
def test_parameters_of_the_small_base(name: str) -> None:
    stage = make_stage(load_config(name), None)
    assert 300e6 < count_parameters(jax.eval_shape(stage.init, jax.random.key(0))) < 500e6


def test_t5_xxl_has_its_published_size() -> None:
    parameters = count_parameters(t5.abstract_params(t5_of_width(4096)))
    assert 4.5e9 < parameters < 4.8e9  # Imagen, section 2.1: 4.6B


@pytest.mark.slow
def test_plan_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["plan", "--config", TINY, "--stage", "base", "--set", *tiny.ONE_LEVEL]
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


def test_programs_for_other_machines_are_not_cached() -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler is for Linux x86_64")
    mesh = Mesh(topology_devices("v4:1x1x1"), "data")
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    unlike_any_before = time.time() % 10_000  # a float32 tells milliseconds apart
    bound = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # reading it would fail
            for _ in range(2):
                program = jax.jit(lambda x: x @ x + unlike_any_before)
                compile_for(mesh, program.lower(x), "quick")
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", bound)


def gpu_compiler() -> bool:
    """True if JAX's plugin for CUDA is installed."""
    return bool(importlib.util.find_spec("jax_plugins")) and any(
        importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13)
    )


@pytest.mark.skipif(not gpu_compiler(), reason="needs JAX's plugin for CUDA, but no GPU")
def test_program_compiled_for_gpus() -> None:
    """Gradients of a convolution and a product, of 16 examples on 8 cards."""
    mesh = sharding.make_mesh({"data": 8}, topology_devices("h100:8"))

    def loss(x: Any, kernel: Any, w: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum((jnp.tanh(y) @ w).astype(jnp.float32))

    def shape(dims: tuple[int, ...], *axes: str) -> Any:
        place = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=place)

    x, kernel, w = shape((16, 32, 32, 64), "data"), shape((3, 3, 64, 64)), shape((64, 64))
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel, w).compile()
    module = hlo.parse(compiled.as_text())
    counted = cost.program_cost(module)
    # On each card 2 examples: the convolution, its two gradients, and the product's by its input.
    products_of_a_card = 3 * 2 * 2 * (3 * 32 - 2) ** 2 * 64**2 + 2 * 2 * 32**2 * 64**2
    assert counted.flops == products_of_a_card
    # The kernel's gradient is summed in a ring.
    assert counted.links == {"all-reduce": [1, 2 * 7 / 8 * 3 * 3 * 64 * 64 * 2, 0]}
    assert sum(map(products.untuned_convolutions, module.computations.values())) == 3
    assert compiled.memory_analysis().temp_size_in_bytes > 0


@pytest.mark.skipif(gpu_compiler(), reason="the compiler is there")
def test_plan_for_gpus_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["plan", "--config", TINY, "--stage", "base", "--topology", "h100:8"]
    assert main(args) == 64
    assert "pip install 'jax[cuda13]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        *((gpu.kind, name) for name, gpu in GPUS.items()),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 PCIe", None),
        ("cpu", None),
    ],
)
def test_rates_of_a_device(kind: str, chip: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    assert local_chip() == (None if chip is None else CHIPS[chip])


def test_search_starts_with_the_stages_own_choice_and_keeps_what_is_given() -> None:
    stage = make_stage(load_config("sr256"), None)
    own = {"data": 8, "fsdp": 16}
    tried = choices(stage, 128)
    assert tried[0] == (own, "products", (1, 2, 4))
    assert len(tried) == len({str(choice) for choice in tried}) == 10 * 3
    assert choices(stage, 128, ("mesh", "accumulation")) == [
        (own, remat, (1,)) for remat in ("products", "none", "blocks")
    ]


@pytest.mark.slow
def test_search_ranks_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """On one device there is one mesh, and without limits of memory the first accumulation fits."""
    args = ["plan", "--config", TINY, "--stage", "base", "--set", *tiny.ONE_LEVEL, "--search"]
    assert main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[2] for line in lines[1:]} == {"none", "products", "blocks"}


def test_a_search_that_is_stopped_ranks_what_it_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []

    def compile_or_stop(stage: Stage, mesh: Mesh, where: str, effort: str) -> Program:
        calls.append((stage, mesh))
        if len(calls) > 1:
            raise KeyboardInterrupt
        settings = {"remat": stage.network.remat, "accumulation": stage.train.accumulation}
        product = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32))
        return Program(
            "base", "train", where, settings, 1, 1, product.compile(), 1.0, 1, 1.0, {}, mesh
        )

    monkeypatch.setattr("imagen_jax.plan.search.train_program", compile_or_stop)
    args = ["plan", "--config", TINY, "--stage", "base", "--set", *tiny.ONE_LEVEL, "--search"]
    assert main(args) == 0
    header, first, stopped = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["mesh", "remat"]
    assert first.split()[2] == "none"
    assert stopped.endswith("remat products accumulation 1 and what follows it: stopped")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--topology", "v9:2x2"], "generation"),
        (["--topology", "v4:big"], "generation"),
        (["--topology", "h100:2x4"], "how many of them"),
        (["--search", "--job", "sample"], "not for --job sample"),
        (["--mesh", "rows=2"], "slice, data, fsdp, spatial, tensor"),
        (["--mesh", "data=7"], "does not use the 1 devices"),
        (["--remat", "some"], "none, products, blocks"),
        (["--slices", "2"], "topology"),
        (["--accumulation", "3"], "accumulation"),
        (["--job", "embed"], "no T5 v1.1 encoder is 8 wide"),
    ],
)
def test_mistakes(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", TINY, "--stage", "base", *args]) == 64
    assert message in capsys.readouterr().err


def test_programs_that_cannot_be_counted() -> None:
    def until_it_is_large(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ y, x)

    with pytest.raises(UserError, match="a loop of unknown length contains products"):
        jaxpr_flops(jax.make_jaxpr(until_it_is_large)(jnp.ones((2, 2))).jaxpr)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ENTRY %main () -> f32[] {\n  ROOT %a = f32[] add(f32[] %b, (\n}", "unbalanced paren"),
        ("HloModule nothing", "this is no HLO text: it has no ENTRY computation"),
        ("ENTRY %main () -> f99[] {\n  ROOT %a = f99[2] parameter(0)\n}", "type 'f99' in"),
    ],
)
def test_text_of_a_program_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        hlo.parse(text)


def test_what_cannot_be_counted_is_named() -> None:
    x, kernel = SHAPES[1], jax.ShapeDtypeStruct((3, 3, CHANNELS, CHANNELS), jnp.float32)
    names = ("NHWC", "HWIO", "NHWC")
    convolve = jax.jit(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=names)
    )
    text = convolve.lower(x, kernel).compile().as_text()
    with pytest.raises(UserError, match=r"convolution \S+ has no dim_labels"):
        cost.program_cost(hlo.parse(text.replace("dim_labels", "labels")))
    until = jax.jit(lambda x: jax.lax.while_loop(lambda x: jnp.sum(x) < 3, lambda x: x + 1, x))
    text = until.lower(jnp.zeros(3)).compile().as_text()
    with pytest.raises(UserError, match=r"loop \S+ runs for a number of times that is not known"):
        cost.program_cost(hlo.parse(text))


def test_plans_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["plan", "--config", TINY, "--stage", "base"]
    assert main([*args, "--topology", "v9:2x2"]) == 64
    assert "topology is 'v9:2x2'; it must be a TPU generation (v4, " in capsys.readouterr().err
    monkeypatch.setattr("imagen_jax.plan.search.search", lambda *_, **__: ([], []))
    assert main([*args, "--search"]) == 64
    assert capsys.readouterr().err == "imagen: error: nothing could be compiled\n"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([*args, "--topology", "v4:2x2x1"]) == 64
    said = capsys.readouterr().err
    assert "the TPU compiler libtpu is missing" in said
    assert "[plan]" in said


def test_batches_that_cannot_be_divided() -> None:
    devices = [SimpleNamespace(id=i) for i in range(3)]
    with (
        mock.patch("imagen_jax.sharding.batch_divisor", return_value=len(devices)),
        pytest.raises(UserError, match="a batch of 8 cannot be divided over 3 devices in 2 parts"),
    ):
        programs._check_divides(8, None, 2)


def test_products_that_xla_cannot_compile_are_those_of_cublas(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failures = [
        jax.errors.JaxRuntimeError("INTERNAL: Couldn't find output tile sizes that satisfy ..."),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"),
    ]
    mesh = sharding.make_mesh()
    compile_ = mock.Mock(side_effect=[failures[0], "compiled"])
    assert compile_for(mesh, SimpleNamespace(compile=compile_), "full") == "compiled"
    assert [call.kwargs["compiler_options"] for call in compile_.mock_calls] == [
        {}, {"xla_gpu_enable_triton_gemm": False}
    ]  # fmt: skip
    assert "compiling with cuBLAS's" in capsys.readouterr().err
    refused = mock.Mock(side_effect=failures[1])
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE"):
        compile_for(mesh, SimpleNamespace(compile=refused), "full")
    refused.assert_called_once()
