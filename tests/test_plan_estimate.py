"""Estimates of a program's time against closed forms, on programs written here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from imagen_jax import sharding
from imagen_jax.chips import CHIPS, Chip
from imagen_jax.main import main
from imagen_jax.plan import hlo
from imagen_jax.plan.cost import program_cost
from imagen_jax.plan.estimate import Estimate, estimate
from imagen_jax.plan.programs import Program, compile_for
from imagen_jax.plan.report import format_plan, make_plan
from imagen_jax.plan.search import _rank
from imagen_jax.plan.topology import topology_devices

# A cycle is 1 ms; a byte takes 1 ms on the memory, 2 ms on the links.
CHIP = Chip(2e3, 1e9, 1e3, 500.0, 100.0, "", multipliers=1)
TIME = 1e-3
ROW = "f32[2]{0:T(2)}"
SCOPE = "jit(train_step)/transpose(jvp(UNet))/while/body/closed_call"


def kernel(name: str, operand: str, cycles: int | str, body: str = "sum", source: str = "") -> str:
    """A fused kernel on eight bytes."""
    return (
        f"%{name} = {ROW} fusion(%{operand}), kind=kLoop, calls=%{body}, "
        f'metadata={{op_name="{source}"}}, '
        f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
    )


BODIES = f"""
%inner (p: f32[2]) -> f32[2] {{
  %p.in = {ROW} parameter(0)
  ROOT {kernel("nested", "p.in", 7_000, "none")}
}}

%none (p: f32[2]) -> f32[2] {{
  %p.none = {ROW} parameter(0)
  ROOT %double = {ROW} add(%p.none, %p.none)
}}

%sum (p: f32[2]) -> f32[2] {{
  %p.sum = {ROW} parameter(0)
  %part = {ROW} fusion(%p.sum), kind=kLoop, calls=%inner
  ROOT %total = {ROW} add(%p.sum, %part), backend_config={{"estimated_cycles":"900"}}
}}

%convolve (p: f32[2]) -> f32[2] {{
  %p.conv = f32[1,2,1,1] parameter(0)
  ROOT %conv = f32[1,2,1,1] convolution(%p.conv, %p.conv), window={{size=2x1 pad=0_1x0_0}}, \
dim_labels=b01f_01io->b01f, metadata={{op_name="{SCOPE}/up_3_0_stack/conv_in/conv_general_dilated"}}
}}

%move (p: f32[2]) -> f32[2] {{
  %p.move = {ROW} parameter(0)
  ROOT %turned = {ROW} reshape(%p.move)
}}

%body (s: (s32[], f32[2])) -> (s32[], f32[2]) {{
  %s = (s32[], {ROW}) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %x = {ROW} get-tuple-element(%s), index=1
  {kernel("step", "x", 10, "convolve", f"{SCOPE}/up_3_0_stack/add")}
  ROOT %made = (s32[], {ROW}) tuple(%n, %step)
}}

%cond (s: (s32[], f32[2])) -> pred[] {{
  %s.c = (s32[], {ROW}) parameter(0)
  ROOT %go = pred[] constant(true)
}}

%outer_body (s: (s32[], f32[2])) -> (s32[], f32[2]) {{
  %s.o = (s32[], {ROW}) parameter(0)
  %again = (s32[], {ROW}) while(%s.o), condition=%cond, body=%body, \
backend_config={{"known_trip_count":{{"n":"3"}}}}
  ROOT %kept = (s32[], {ROW}) tuple(%again, %again)
}}

%cheap (p: f32[2]) -> f32[2] {{
  %p.cheap = {ROW} parameter(0)
  ROOT {kernel("little", "p.cheap", 5)}
}}

%dear (p: f32[2]) -> f32[2] {{
  %p.dear = {ROW} parameter(0)
  ROOT {kernel("much", "p.dear", 50)}
}}
"""


def program(*lines: str) -> str:
    """A program of these lines, which may use the parameters %a and %i."""
    inside = "\n".join(f"  {line}" for line in lines)
    text = f"HloModule test, is_scheduled=true\n{BODIES}\nENTRY %main (a: f32[2]) -> f32[2] {{\n"
    return text + f"  %a = {ROW} parameter(0)\n  %i = s32[] parameter(1)\n{inside}\n}}\n"


def estimated(*lines: str) -> Estimate:
    """The estimate of such a program."""
    found = estimate(hlo.parse(program(*lines)), CHIP)
    assert found is not None
    assert sum(found.by_category.values()) == pytest.approx(found.seconds)
    assert sum(found.by_place.values()) == pytest.approx(found.seconds)
    return found


LOOP = (
    f"%start = (s32[], {ROW}) tuple(%i, %a)",
    f"%loop = (s32[], {ROW}) while(%start), condition=%cond, body=%outer_body, "
    'backend_config={"known_trip_count":{"n":"4"}}',
)


def test_what_is_fused_into_a_kernel_counts_once_with_it() -> None:
    assert estimated(f"ROOT {kernel('one', 'a', 40)}").seconds == pytest.approx(40 * TIME)


def test_kernels_of_nested_loops_count_by_both_trip_counts() -> None:
    found = estimated(kernel("one", "a", 40), *LOOP)
    assert found.seconds == pytest.approx((40 + 4 * 3 * 10) * TIME)
    dearest = found.kernels[0]
    assert (dearest.name, dearest.times, dearest.result) == ("step", 12, "f32[2]")
    assert dearest.seconds == pytest.approx(10 * TIME)
    assert (dearest.category, dearest.place) == ("convolutions", "up_3")


def test_kernels_that_are_alike_are_listed_as_one() -> None:
    names = ("one", "two", "three")
    found = estimated(*(kernel(name, "a", 7 if name == "two" else 40) for name in names))
    assert [(k.name, k.times) for k in found.kernels] == [("one", 2), ("two", 1)]
    assert found.seconds == pytest.approx(87 * TIME)


def test_a_conditional_counts_as_its_dearest_branch() -> None:
    found = estimated(
        f"%either = {ROW} conditional(%i, %a, %a), branch_computations={{%cheap, %dear}}"
    )
    assert found.seconds == pytest.approx(50 * TIME)


@pytest.mark.parametrize("cycles", [2**63 - 1, 2**63, 2**60])
def test_estimates_that_overflowed_are_left_out_and_counted(cycles: int) -> None:
    found = estimated(kernel("one", "a", 40), kernel("two", "one", cycles))
    assert found.seconds == pytest.approx(40 * TIME)
    assert found.saturated == 1


GATHER = "replica_groups={{0,1}}, dimensions={0}"
PAIR = "(f32[2]{0:T(2)}, f32[4]{0:T(2)})"


def test_collectives_run_beside_the_kernels_between_start_and_done() -> None:
    """Eight bytes take 16 ms on the links."""
    start = f"%sent = {PAIR} all-gather-start(%a), {GATHER}"
    done = "%got = f32[4]{0:T(2)} all-gather-done(%sent)"
    hidden = estimated(start, kernel("one", "a", 40), done)
    assert hidden.seconds == pytest.approx(40 * TIME)
    assert hidden.hidden == pytest.approx(16 * TIME)
    waited = estimated(start, kernel("one", "a", 6), done)
    assert waited.seconds == pytest.approx(16 * TIME)
    assert waited.by_category == pytest.approx(
        {"collectives": 10 * TIME, "other elementwise": 6 * TIME}
    )
    # Two at once: the second starts on the links when the first is over.
    more = (start.replace("%sent", "%sent.1"), done.replace("%sent", "%sent.1"))
    both = estimated(start, more[0], kernel("one", "a", 6), done, more[1].replace("got", "got.1"))
    assert both.seconds == pytest.approx(32 * TIME)
    assert both.modelled == pytest.approx(26 * TIME)


STEPS = f"""
%begin (p: f32[2]) -> (f32[2], f32[4], u32[]) {{
  %p.begin = {ROW} parameter(0)
  %gather.0 = f32[4]{{0:T(2)}} all-gather(%p.begin), channel_id=7, {GATHER}
  ROOT %begun = ({ROW}, f32[4]{{0:T(2)}}, u32[]) custom-call(%gather.0), \
custom_call_target="AsyncCollectiveStart"
}}

%async_collective_fusion.1 (p: f32[2], q: f32[2]) -> (f32[2], f32[2]) {{
  %p.steps = {ROW} parameter(0)
  %q.steps = {ROW} parameter(1)
  %gather.1 = f32[4]{{0:T(2)}} all-gather(%p.steps), channel_id=7, {GATHER}
  ROOT %both = ({ROW}, {ROW}) tuple(%p.steps, %q.steps)
}}

%end (p: f32[2]) -> f32[4] {{
  %p.end = {ROW} parameter(0)
  %gather.2 = f32[4]{{0:T(2)}} all-gather(%p.end), channel_id=7, {GATHER}
  ROOT %ended = f32[4]{{0:T(2)}} custom-call(%p.end, %gather.2), \
custom_call_target="AsyncCollectiveDone"
}}
"""


@pytest.mark.parametrize(("cycles", "seconds"), [(40, 40 * TIME), (6, 16 * TIME)])
def test_collectives_whose_steps_are_fused_into_a_kernel(
    monkeypatch: pytest.MonkeyPatch, cycles: int, seconds: float
) -> None:
    """Start, kernel and end all name the collective, which runs once."""
    monkeypatch.setattr(f"{__name__}.BODIES", BODIES + STEPS)
    lines = (
        f"%started = ({ROW}, f32[4]{{0:T(2)}}, u32[]) fusion(%a), kind=kCustom, calls=%begin",
        f"%first = {ROW} get-tuple-element(%started), index=0",
        f"%beside = ({ROW}, {ROW}) fusion(%first, %a), kind=kCustom, "
        "calls=%async_collective_fusion.1, "
        f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}',
        f"%second = {ROW} get-tuple-element(%beside), index=0",
        "ROOT %over = f32[4]{0:T(2)} fusion(%second), kind=kCustom, calls=%end",
    )
    found = estimated(*lines)
    assert found.seconds == pytest.approx(seconds)
    assert found.hidden == pytest.approx(min(16, cycles) * TIME)
    module = hlo.parse(program(*lines))
    assert program_cost(module).links["all-gather"] == [1, 8, 0]


def test_collectives_and_copies_that_are_not_asynchronous_take_their_bytes() -> None:
    gather = estimated(kernel("one", "a", 40), f"%all = f32[4]{{0:T(2)}} all-gather(%a), {GATHER}")
    assert gather.by_category["collectives"] == pytest.approx(16 * TIME)
    copied = estimated(kernel("one", "a", 40), f"%two = {ROW} copy(%one)")
    assert copied.by_category["copies and layout"] == pytest.approx((8 + 8) * TIME)


@pytest.mark.parametrize(
    ("stated", "cycles", "unstated"),
    [
        ('{"flops":"400","bytes_accessed":"16"}', 200, 0),  # 2 operations a cycle
        ('{"flops":8,"transcendentals":0,"bytes_accessed":64}', 64, 0),
        (None, 16, 1),
    ],
)
def test_pallas_kernels_take_their_operations_or_their_bytes(
    stated: str | None, cycles: int, unstated: int
) -> None:
    config = '"body":"x"' + (f', "cost_estimate":{stated}' if stated else "")
    found = estimated(
        kernel("one", "a", 40),
        f'%flash = {ROW} custom-call(%a), custom_call_target="tpu_custom_call", '
        f'backend_config={{"custom_call_config":{{{config}}}}}',
        f'%buffer = {ROW} custom-call(), custom_call_target="AllocateBuffer"',
    )
    assert found.by_category["custom calls"] == pytest.approx(cycles * TIME)
    assert found.unstated == unstated


@pytest.mark.parametrize(
    ("phase", "results", "products"),
    [
        ("fwd", "(f32[2,1024,128], bf16[2,4,1024,64])", 2),
        ("dkv", "(f32[2,8,64], bf16[2,1,4,1024,64], bf16[2,4,1280,64], bf16[2,4,1280,64])", 5),
        ("dkv", "(f32[2,8,64], bf16[2,4,1280,64], bf16[2,4,1280,64])", 4),
        ("dq", "bf16[2,4,1024,64]", 3),
    ],
)
def test_splash_attention_takes_its_products(phase: str, results: str, products: int) -> None:
    """Heads of 64 channels fill half of the lanes; metadata of lines of its own is read over."""
    lines = (
        "%q = bf16[2,4,64,1024] parameter(2)",
        "%k = bf16[2,4,64,1280] parameter(3)",
        f"%splash_mha_{phase}_segmented_residuals.1 = {results} custom-call(%a, %q, %k, %k), "
        'custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={',
        '"xprof_metadata":"{}"\n}}, metadata={op_name="jit(f)/UNet/up_1/attention/pallas_call"}',
        f"ROOT {kernel('one', 'a', 40)}",
    )
    found = estimated(*lines)
    flops = 2 * products * 2 * 4 * 1024 * 1280 * 64
    assert found.by_category["custom calls"] == pytest.approx(2 * flops / CHIP.flops)
    assert found.by_place["up_1"] == found.by_category["custom calls"]
    assert found.by_category["other elementwise"] == pytest.approx(40 * TIME)
    assert found.unstated == 0
    assert program_cost(hlo.parse(program(*lines))).flops == flops


@pytest.mark.parametrize(
    ("source", "body", "category", "place"),
    [
        ("jvp(UNet)/while/body/down_1_0_stack/residual/norm_in/mul", "sum", "norms", "down_1"),
        ("UNet/middle_attention/vmap()/sub", "sum", "softmax", "middle"),
        ("T5Encoder/encoder/layers_9/attention/sub", "sum", "softmax", "layers"),
        ("UNet/up_0_0/attention/add", "sum", "other elementwise", "up_0"),
        ("UNet/up_0_resample/jit(silu)/mul", "sum", "other elementwise", "up_0"),
        ("UNet/conditioning/pool/vmap(BNTS,BSNH->BTNH)/dot_general", "sum",
         "attention's products", "conditioning"),
        ("UNet/concatenate", "move", "copies and layout", "between blocks"),
        ("optimiser/jit(_where)/select_n", "sum", "optimiser and EMA", "optimiser"),
        ("optimiser/norm/mul", "convolve", "optimiser and EMA", "optimiser"),
        ("jit(clip)/max", "sum", "other elementwise", "around the network"),
        ("", "sum", "other elementwise", "unnamed"),
    ],
)  # fmt: skip
def test_categories_and_places(source: str, body: str, category: str, place: str) -> None:
    name = f"jit(train_step)/{source}" if source else ""
    (found,) = estimated(kernel("one", "a", 40, body, name)).kernels
    assert (found.category, found.place) == (category, place)


def test_programs_without_cycles_have_no_estimate() -> None:
    text = "HloModule test\n\nENTRY %main (a: f32[2]) -> f32[2] {\n"
    text += f"  %a = {ROW} parameter(0)\n  ROOT %two = {ROW} add(%a, %a)\n}}\n"
    assert estimate(hlo.parse(text), CHIP) is None
    assert estimate(hlo.parse(text), CHIPS["h100"]) is None


@pytest.mark.parametrize(
    ("name", "gigahertz"),
    [("v4", 1.05), ("v5e", 1.5), ("v5p", 1.75), ("v6e", 1.75), ("tpu7x", 2.2), ("h100", None)],
)
def test_clocks(name: str, gigahertz: float | None) -> None:
    clock = CHIPS[name].clock
    assert clock == (None if gigahertz is None else pytest.approx(gigahertz * 1e9, rel=3e-3))


def page(job: str, effort: str, topology: str = "v4", devices: int = 4) -> str:
    """The page of a program of one kernel, 1.05e6 cycles, for 8 images at 36 a chip-hour."""
    analysed = dict.fromkeys(("argument", "output", "alias", "temp", "generated_code"), 0)
    compiled = SimpleNamespace(
        as_text=lambda: program(f"ROOT {kernel('one', 'a', 1_050_000, 'convolve')}"),
        memory_analysis=lambda: SimpleNamespace(
            **{f"{kind}_size_in_bytes": size for kind, size in analysed.items()}
        ),
    )
    mesh: Any = SimpleNamespace(size=devices, shape={"data": devices})
    settings, calls = {"effort": effort}, 3_600_000 if job == "train" else 1
    made = Program(
        "base", job, topology, settings, 1, calls, compiled, 1.0, 8, 4.0, {"batch": 1}, mesh
    )
    plan = make_plan(made, CHIPS[topology])
    return format_plan(dataclasses.replace(plan, price=36.0))


def test_pages_say_time_and_cost() -> None:
    """A call takes a millisecond."""
    text = page("train", "full")
    assert "1 ms a step, 7,99" in text
    assert "3,600,000 steps: 0.0 days, 4 chip-hours, 144.13 at 36 each" in text
    assert "convolutions" in text
    assert "1 x convolutions" in text
    assert "0.000125 s an image" in page("sample", "full")
    assert "captions/s" in page("embed", "full")
    assert "1,000,000 captions, 0.139 chip-hours, 5.00 at 36 each" in page("embed", "full")
    assert "(8 devices of 4 chips: data 8)" in page("train", "full", "tpu7x", 8)


def test_quick_plans_have_no_estimate() -> None:
    text = page("train", "quick")
    assert "use --effort full" in text
    assert "cost model" not in text


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The part of a plan that a ranking sees."""

    fits: bool
    seconds: float
    estimate: Any
    flops: float = 1.0
    terms: Any = dataclasses.field(default_factory=dict)


def test_searches_rank_by_the_estimate() -> None:
    slow, fast, large = (
        Ranked(fits, seconds, dataclasses.replace(ESTIMATE, seconds=expected))
        for fits, seconds, expected in ((True, 1.0, 9.0), (True, 2.0, 5.0), (False, 0.5, 1.0))
    )
    assert sorted([large, slow, fast], key=_rank) == [fast, slow, large]  # type: ignore[arg-type]


ESTIMATE = Estimate(1.0, {}, {}, 0.0, 0.0, 0, 0, [])


@pytest.mark.slow
def test_devices_of_tpu7x_are_half_a_chip() -> None:
    """The product's estimate is between its bound and half of that rate."""
    pytest.importorskip("libtpu", reason="the TPU compiler is for Linux x86_64")
    assert len(topology_devices("tpu7x:1x1x1")) == 2
    devices = topology_devices("tpu7x:2x2x1")
    chips = [(tuple(device.coords), device.core_on_chip) for device in devices]
    assert len(set(chips)) == 8
    assert len({chip for chip, _ in chips}) == 4
    size = 8192
    mesh = sharding.make_mesh({"data": 8}, devices)
    rows, everywhere = (
        NamedSharding(mesh, spec) for spec in (sharding.BATCH_SPEC, PartitionSpec())
    )
    left = jax.ShapeDtypeStruct((8 * size, size), jnp.bfloat16, sharding=rows)
    right = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=everywhere)
    compiled = compile_for(mesh, jax.jit(lambda a, b: a @ b).lower(left, right), "full")
    found = estimate(hlo.parse(compiled.as_text()), CHIPS["tpu7x"])
    assert found is not None
    assert found.by_category["dense layers"] == pytest.approx(found.seconds, rel=0.2)
    bound = 2 * size**3 / CHIPS["tpu7x"].flops
    assert bound < found.seconds < 2 * bound


@pytest.mark.slow
def test_estimate_of_a_train_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three equal blocks on the way down and four on the way up are loops."""
    pytest.importorskip("libtpu", reason="the TPU compiler is for Linux x86_64")
    config = str(Path(__file__).with_name("tiny_config.py"))
    args = ["plan", "--config", config, "--stage", "base", "--topology", "v4:2x2x1"]
    args += ["--set", *tiny.ONE_LEVEL, "stages.base.network.blocks=(3,)", "--mesh", "fsdp=4"]
    args += ["--json", f"{tmp_path}/p.json", "--chart", f"{tmp_path}/p.png"]
    assert main([*args, "--effort", "full", "--chip-price", "3.22"]) == 0
    page = capsys.readouterr().out
    assert "by the compiler's cost model, not measured" in page
    assert "at 3.22 each" in page
    plan = json.loads((tmp_path / "p.json").read_text())
    made = plan["estimate"]
    assert sum(made["by_category"].values()) == pytest.approx(made["seconds"])
    assert sum(made["by_place"].values()) == pytest.approx(made["seconds"])
    assert made["seconds"] > plan["seconds"]
    assert {"optimiser", "down_0", "up_0", "middle", "conditioning"} <= made["by_place"].keys()
    assert any(kernel["times"] % trips == 0 for kernel in made["kernels"] for trips in (3, 4))
    assert plan["mfu_estimate"] < plan["mfu_bound"]
