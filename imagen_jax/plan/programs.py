"""The programs that a plan compiles: the train step and the sampler of a stage, as they are run."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax import sharding
from imagen_jax.diffusion.guidance import stack_conditioning
from imagen_jax.errors import UserError
from imagen_jax.flops import flops_of
from imagen_jax.sampling import whole_sampler
from imagen_jax.stage import Stage
from imagen_jax.stage_programs import StageInputs, stage_denoiser
from imagen_jax.text import t5
from imagen_jax.text.t5 import T5Config
from imagen_jax.train.state import abstract_state, count_parameters
from imagen_jax.train.step import batch_shapes, jit_train_step, model_flops
from imagen_jax.typing import Conditioning, TextEmbedding

EFFORT: dict[str, Any] = {
    "quick": {"exec_time_optimization_effort": -1.0},
    "full": {},
}
"""Options of XLA's TPU compiler: "quick" leaves out most of its searches for faster code, compiles
four times as fast; products are the same, traffic with the main memory up to twice as much. "full"
is what training runs."""

CUBLAS = {"xla_gpu_enable_triton_gemm": False}
NO_TILES = "Couldn't find output tile sizes"
"""Said by XLA's compiler for GPUs of a product of concatenated arrays (jaxlib 0.10.2)."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program and what is known of it without looking inside.

    Attributes:
      stage, job, where, settings, parameters, calls: see report.Plan.
      compiled: jax.stages.Compiled.
      seconds: seconds that lowering and compiling took.
      images: images of one call, over all devices.
      model_flops: floating-point operations of one call, over all devices: the products of the
        mathematics, without recomputation.
      arguments: bytes of the arguments on one device, by kind.
      mesh: mesh that it is compiled for.
    """

    stage: str
    job: str
    where: str
    settings: dict[str, Any]
    parameters: int
    calls: int
    compiled: Any
    seconds: float
    images: int
    model_flops: float
    arguments: dict[str, int]
    mesh: Mesh


def compile_for(mesh: Mesh, lowered: Any, effort: str) -> Any:
    """Compiles a program that was lowered for a mesh.

    What is compiled for devices that this machine does not have is not kept in JAX's compilation
    cache: JAX would write it there, tens of megabytes, and fail to read it. Where XLA's compiler
    for GPUs fails on a product of its own, cuBLAS's are compiled in their place, and said to be.

    Args:
      effort: key of EFFORT; for TPUs.
    """
    bound = "jax_persistent_cache_min_compile_time_secs"
    usual = getattr(jax.config, bound)
    if mesh.devices.flat[0] not in jax.devices():
        jax.config.update(bound, math.inf)
    try:
        return lowered.compile(compiler_options=EFFORT[effort])
    except jax.errors.JaxRuntimeError as error:
        if NO_TILES not in str(error):
            raise
        print("XLA fails on a product of its own; compiling with cuBLAS's", file=sys.stderr)
        return lowered.compile(compiler_options=EFFORT[effort] | CUBLAS)
    finally:
        jax.config.update(bound, usual)


def train_program(stage: Stage, mesh: Mesh, where: str, effort: str = "full") -> Program:
    """The train step of a stage, compiled for a mesh.

    Args:
      where: hardware of the mesh, for the report.
      effort: key of EFFORT; for TPUs.

    Raises:
      UserError: the batch does not divide over the mesh.
    """
    _check_divides(stage.train.batch_size, mesh, stage.train.accumulation)
    state, _ = abstract_state(stage, mesh)
    shardings_of = sharding.batch_shardings(mesh, stage.batch_names)
    batch = {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=shardings_of[name])
        for name, shape in batch_shapes(stage).items()
    }
    start = time.monotonic()
    lowered = jit_train_step(stage, mesh).lower(state, batch)
    compiled = compile_for(mesh, lowered, effort)
    seconds = time.monotonic() - start
    return Program(
        stage=stage.name,
        job="train",
        where=where,
        settings={
            "batch": stage.train.batch_size,
            "accumulation": stage.train.accumulation,
            "remat": stage.network.remat,
            "optimiser": stage.train.optimizer,
            "effort": effort,
        },
        parameters=count_parameters(state.params),
        calls=stage.train.steps,
        compiled=compiled,
        seconds=seconds,
        images=stage.train.batch_size,
        model_flops=model_flops(stage),
        arguments={
            "parameters": bytes_on_one_device(state.params),
            "EMA": bytes_on_one_device(state.ema),
            "optimiser": bytes_on_one_device((state.opt_state, state.step)),
            "batch": bytes_on_one_device(batch),
        },
        mesh=mesh,
    )


def bytes_on_one_device(tree: Any) -> int:
    """Bytes of a pytree of ShapeDtypeStructs with shardings, on one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total += leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
    return total


def _check_divides(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    divisor = sharding.batch_divisor(mesh) * parts
    if batch_size % divisor:
        raise UserError(
            f"a batch of {batch_size} cannot be divided over {sharding.batch_divisor(mesh)} "
            f"devices in {parts} part{'s' * (parts > 1)}"
        )


def sample_program(
    stage: Stage, mesh: Mesh, where: str, batch_size: int, effort: str = "full"
) -> Program:
    """The sampler of a stage with its default settings, compiled for a mesh.

    All steps are one program here, so that the compiler counts them all; what runs is the same step
    by step. Weights are copied to every device, in the network's dtype; images are divided.
    """
    everywhere = sharding.replicated(mesh)
    divided = NamedSharding(mesh, sharding.BATCH_SPEC)
    settings = stage.sample
    _check_divides(batch_size, mesh)
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, stage.network.dtype, sharding=everywhere),
        nn.unbox(jax.eval_shape(stage.init, jax.random.key(0))),
    )

    def shape(dims: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=divided)

    text = TextEmbedding(
        shape((batch_size, stage.text.max_length, stage.text.width), jnp.bfloat16),
        shape((batch_size, stage.text.max_length), jnp.bool_),
    )
    keys = shape((batch_size,), jax.eval_shape(lambda: jax.random.key(0)).dtype)
    low_res = None
    if stage.low_res is not None:
        low_res = shape((batch_size, stage.low_res, stage.low_res, 3), jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    guidance = None if settings.guidance == 1 else number
    inputs = StageInputs(text, keys, low_res)
    start = time.monotonic()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        sampler = jax.jit(whole_sampler(stage, settings))
        lowered = sampler.lower(params, inputs, guidance, number)
    compiled = compile_for(mesh, lowered, effort)
    seconds = time.monotonic() - start

    def one_step(params: Any, text: TextEmbedding, keys: Any, low_res: Any) -> Any:
        denoise = stage_denoiser(stage, params, text, keys, low_res, settings)
        x = jnp.zeros((batch_size, stage.resolution, stage.resolution, 3), "float32")
        return denoise(x, jnp.zeros((), "float32"))

    def text_alone(params: Any, text: TextEmbedding) -> Any:
        given = Conditioning(text)
        if settings.guidance != 1:
            given = stack_conditioning(given)
        return stage.cache_text(params, given).text_cache

    once = flops_of(text_alone, params, text)
    each = flops_of(one_step, params, text, keys, low_res) - once
    return Program(
        stage=stage.name,
        job="sample",
        where=where,
        settings={
            "batch": batch_size,
            "sampler": settings.sampler,
            "steps": settings.steps,
            "effort": effort,
        },
        parameters=count_parameters(params),
        calls=1,
        compiled=compiled,
        seconds=seconds,
        images=batch_size,
        model_flops=once + settings.steps * each,
        arguments={
            "parameters": bytes_on_one_device(params),
            "batch": bytes_on_one_device((text, keys, low_res)),
        },
        mesh=mesh,
    )


def embed_program(
    config: T5Config, mesh: Mesh, where: str, batch_size: int, length: int, effort: str = "full"
) -> Program:
    """T5's encoder over a batch of captions, its parameters divided over the whole mesh."""
    place = t5.shardings(mesh.devices.reshape(-1).tolist())
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(
            leaf.shape,
            config.dtype,
            sharding=place("/".join(key.key for key in path), leaf.shape),
        ),
        t5.abstract_params(config),
    )
    tokens = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((batch_size, length), jnp.bool_)
    everywhere = jax.tree.leaves(params)[0].sharding.mesh
    copied = NamedSharding(everywhere, PartitionSpec())

    def encode(params: Any, tokens: Any, mask: Any) -> Any:
        return t5.encode(params, config, tokens, mask)

    start = time.monotonic()
    lowered = jax.jit(
        encode,
        in_shardings=(jax.tree.map(lambda p: p.sharding, params), copied, copied),
        out_shardings=copied,
    ).lower(params, tokens, mask)
    compiled = compile_for(mesh, lowered, effort)
    return Program(
        stage="t5",
        job="embed",
        where=where,
        settings={"batch": batch_size, "tokens": length, "dtype": config.dtype, "effort": effort},
        parameters=count_parameters(params),
        calls=1,
        compiled=compiled,
        seconds=time.monotonic() - start,
        images=batch_size,
        model_flops=flops_of(encode, params, tokens, mask),
        arguments={
            "parameters": bytes_on_one_device(params),
            "batch": 5 * batch_size * length,
        },
        mesh=mesh,
    )
