"""One training step: a pure function from (state, batch) to (state, metrics)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from imagen_jax import sharding
from imagen_jax.diffusion.augment import augment_low_res, sample_aug_level, upsample_low_res
from imagen_jax.diffusion.loss import DiffusionLoss, diffusion_loss
from imagen_jax.flops import flops_of
from imagen_jax.stage import Stage
from imagen_jax.train.optimizer import learning_rate_schedule, make_optimizer
from imagen_jax.train.state import TrainState, abstract_state
from imagen_jax.typing import Conditioning, TextEmbedding

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def drop_text(key: jax.Array, text: TextEmbedding, rate: float) -> TextEmbedding:
    """Drops the whole caption of each example with probability `rate` (Imagen, section 2.2).

    Args:
      key: PRNG key.
      text: states [b, l, d] and mask [b, l].
      rate: in [0, 1].

    Returns:
      The same shapes; dropped examples have zero states and a mask that is all False.
    """
    keep = jax.random.bernoulli(key, 1 - rate, (text.mask.shape[0], 1))
    return TextEmbedding(jnp.where(keep[..., None], text.states, 0), text.mask & keep)


def batch_conditioning(
    stage: Stage, batch: Batch, text: TextEmbedding, key: jax.Array
) -> Conditioning:
    """Conditioning of a training batch: text, and the augmented low-resolution image.

    aug_level is uniform per example (Imagen, section 2.2 and algorithm 1 of appendix A.3).
    """
    if stage.low_res is None:
        return Conditioning(text)
    level_key, noise_key = jax.random.split(key)
    low_res = upsample_low_res(batch["low_res"], (stage.train_resolution,) * 2, stage.align_corners)
    aug_level = stage.train.max_aug_level * sample_aug_level(level_key, low_res.shape[0])
    noised = augment_low_res(noise_key, low_res, aug_level)
    return Conditioning(text, noised, aug_level)


def stage_loss(
    stage: Stage, params: Any, batch: Batch, key: jax.Array, train: bool = True
) -> DiffusionLoss:
    """Diffusion loss of every example of a batch.

    Args:
      stage: the stage to train.
      params: parameters of the stage's network.
      batch: image [b, h, w, 3] in [-1, 1], text_emb [b, l, d], text_mask [b, l] and, for a
        super-resolution stage, low_res.
      key: drives caption dropout, augmentation, time and noise.
      train: captions and units are dropped; False for validation.
    """
    text_key, condition_key, loss_key, dropout_key = jax.random.split(key, 4)
    text = TextEmbedding(batch["text_emb"].astype(jnp.float32), batch["text_mask"])
    if train:
        text = drop_text(text_key, text, stage.train.text_dropout)
    conditioning = batch_conditioning(stage, batch, text, condition_key)
    return diffusion_loss(
        lambda x, logsnr, c: stage.apply(params, x, logsnr, c, train, dropout_key),
        batch["image"],
        conditioning,
        loss_key,
        schedule=stage.schedule,
        parametrization=stage.parametrization,
        weighting=stage.diffusion.weighting,
        time_sampling=stage.diffusion.time_sampling,
    )


def loss_and_gradients(
    stage: Stage, params: Any, batch: Batch, key: jax.Array
) -> tuple[jax.Array, DiffusionLoss, Any]:
    """Mean loss of a batch, the loss of its examples, and the gradients of the mean.

    With accumulation, the batch is taken in parts one after another, and their gradients averaged;
    every part has a key of its own.
    """

    def mean_loss(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, DiffusionLoss]:
        loss = stage_loss(stage, params, batch, key)
        return jnp.mean(loss.per_example), loss

    value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)
    parts = stage.train.accumulation
    if parts == 1:
        (loss, detail), grads = value_and_grad(params, batch, key)
        return loss, detail, grads

    # Part i has every parts-th example, so that each device keeps the examples that it has.
    divided = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def accumulate(
        total: tuple[jax.Array, Any], part: tuple[Batch, jax.Array]
    ) -> tuple[tuple[jax.Array, Any], DiffusionLoss]:
        (loss, detail), grads = value_and_grad(params, *part)
        return jax.tree.map(jnp.add, total, (loss, grads)), detail

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, details = jax.lax.scan(accumulate, zero, (divided, jax.random.split(key, parts)))
    loss, grads = jax.tree.map(lambda x: x / parts, total)
    detail = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), details)
    return loss, detail, grads


def batch_shapes(stage: Stage) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch over all hosts."""
    b, size, length = stage.train.batch_size, stage.train_resolution, stage.text.max_length
    shapes = {
        "image": jax.ShapeDtypeStruct((b, size, size, 3), jnp.float32),
        "text_emb": jax.ShapeDtypeStruct((b, length, stage.text.width), jnp.bfloat16),
        "text_mask": jax.ShapeDtypeStruct((b, length), jnp.bool_),
    }
    if stage.low_res is not None:
        small = stage.train_low_res
        shapes["low_res"] = jax.ShapeDtypeStruct((b, small, small, 3), jnp.float32)
    return shapes


def model_flops(stage: Stage) -> float:
    """FLOPs of the products that a step's loss and gradients ask for, over the whole batch.

    What is computed a second time to save memory does not count, nor does the optimiser: this is
    what model FLOPs utilisation (MFU, Chowdhery et al. 2022, appendix B) is a share of.
    """
    plain = dataclasses.replace(
        stage,
        network=stage.network.with_remat("none"),
        train=dataclasses.replace(stage.train, accumulation=1),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = nn.unbox(jax.eval_shape(plain.init, key))
    return flops_of(
        lambda *args: loss_and_gradients(plain, *args), params, batch_shapes(plain), key
    )


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """Decay at `step`, ramped up as min(decay, (1 + step) / (10 + step)) so that the average does
    not remember initialisation (the warmup of tf.train.ExponentialMovingAverage)."""
    return jnp.minimum(decay, (1 + step) / (10 + step))


def make_train_step(stage: Stage) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step function of a stage, to be jitted with donated state.

    A step whose loss, gradients or updates are not finite counts, and changes nothing else.

    Metrics are scalars of the global batch: loss, grad_norm, update_norm, learning_rate and finite
    (bool), and per-example loss [b] with its logsnr [b] for curves over the noise level.
    """
    schedule = learning_rate_schedule(stage.train)
    optimizer = make_optimizer(stage)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(stage.train.seed + 1), state.step)

        loss, detail, grads = loss_and_gradients(stage, state.params, batch, key)
        with jax.named_scope("optimiser"):  # `imagen plan` tells its kernels by it
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)

            def average(ema: Any, highest: float) -> Any:
                decay = ema_decay(state.step, highest)
                return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)

            grad_norm, update_norm = optax.global_norm(grads), optax.global_norm(updates)
            finite = jnp.isfinite(jnp.stack([loss, grad_norm, update_norm])).all()
            moved = dataclasses.replace(
                state,
                params=params,
                opt_state=opt_state,
                ema=average(state.ema, stage.train.ema_decay),
                extra_ema={name: average(e, float(name)) for name, e in state.extra_ema.items()},
            )
            kept = dataclasses.replace(state, skipped=state.skipped + 1)
            after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, kept)
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            # The optimiser's own count has not moved in skipped steps.
            "learning_rate": jnp.asarray(schedule(state.step - state.skipped)),
            "finite": finite,
            "loss_per_example": detail.per_example,
            "logsnr": detail.logsnr,
        }
        return dataclasses.replace(after, step=state.step + 1), metrics

    return train_step


@functools.lru_cache(maxsize=4)
def jit_train_step(stage: Stage, mesh: Mesh) -> Any:
    """The step function compiled for a mesh: the state is donated and keeps its shardings, and
    every host can read the metrics. A stage that is trained again in one process compiles once."""
    _, shardings = abstract_state(stage, mesh)
    return jax.jit(
        sharding.on_mesh(make_train_step(stage), mesh),
        in_shardings=(shardings, sharding.batch_shardings(mesh, stage.batch_names)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
