"""The encoder of T5 in Flax, with the parameter names and the semantics of T5X.

Raffel et al. 2019 (arXiv:1910.10683): pre-norm blocks without biases,
  h <- h + Attention(norm(h));  h <- h + Mlp(norm(h));  then a last norm,
with RMS norms, no 1/sqrt(d) in attention (it is in the initialisation), and a learned bias on the
logits by bucket of relative position. Version 1.0 has an MLP relu(x wi) wo; version 1.1, mT5 and
ByT5 have gelu(x wi_0) * (x wi_1) with the tanh form of gelu (Shazeer 2020, arXiv:2002.05202), UL2
has silu in its place (Tay et al. 2022, arXiv:2205.05131), and UMT5 a bias in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from imagen_jax.errors import UserError

Params = dict[str, Any]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,  # the tanh form
    "silu": nn.silu,
    "swish": nn.silu,  # as T5X calls it
    "linear": lambda x: x,
}


@dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 encoder.

    Attributes:
      vocab_size: rows of the embedding.
      width: channels of a token state (emb_dim in T5X; 4096 in XXL).
      heads, head_width: heads of attention and their width; the product need not be the width.
      mlp_width: hidden channels of the MLP.
      layers: number of blocks.
      mlp_activations: ("relu",) in version 1.0; ("gelu", "linear") in 1.1, mT5, UMT5 and ByT5;
        ("silu", "linear") in UL2.
      shared_bias: one table of relative position biases for all layers, as everywhere but in UMT5
        and in the scanned layout of T5X, which have one for each.
      relative_buckets, max_distance: number of buckets of relative positions, and the distance from
        which on all positions are in the last one.
      norm_epsilon: added to mean squares in norms.
      dtype: dtype of activations; parameters keep their own, norms and softmax are float32.
    """

    vocab_size: int
    width: int
    heads: int
    head_width: int
    mlp_width: int
    layers: int
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    shared_bias: bool = True
    relative_buckets: int = 32
    max_distance: int = 128
    norm_epsilon: float = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"


def relative_position_bucket(
    distance: Int[np.ndarray, "q k"], buckets: int = 32, max_distance: int = 128
) -> Int[np.ndarray, "q k"]:
    """Bucket of a signed distance, key minus query, for attention in both directions.

    Half of the buckets are for keys behind the query. In each half, half of them are exact, the
    others grow logarithmically up to max_distance, beyond which all fall into the last one
    (Raffel et al. 2019, section 2.1, for 32 buckets up to 128).
    """
    half = buckets // 2
    exact = half // 2
    length = np.abs(distance)
    # float32, as in T5X: a distance on a boundary must fall into the same bucket.
    log_ratio = np.log(length.astype(np.float32) / exact + np.finfo(np.float32).eps)
    logarithmic = exact + (log_ratio / math.log(max_distance / exact) * (half - exact)).astype(
        np.int32
    )
    bucket = np.where(length < exact, length, np.minimum(logarithmic, half - 1))
    return bucket + half * (distance > 0)


class RMSNorm(nn.Module):
    """Division by the root mean square over channels, in float32, and a learned scale."""

    dtype: jnp.dtype
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (y * scale.astype(jnp.float32)).astype(self.dtype)


class RelativeBias(nn.Module):
    """Learned bias on attention logits, by bucket of relative position."""

    config: T5Config

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "h l l"]:
        c = self.config
        table = self.param(
            "rel_embedding", nn.initializers.normal(1.0), (c.heads, c.relative_buckets)
        )
        position = np.arange(length)
        distance = position[None, :] - position[:, None]
        buckets = relative_position_bucket(distance, c.relative_buckets, c.max_distance)
        return table.astype(jnp.float32)[:, buckets]


def _dense(features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
    return nn.Dense(
        features, use_bias=False, dtype=dtype, precision=jax.lax.Precision.HIGHEST, name=name
    )


class Attention(nn.Module):
    """Self-attention of all tokens to the tokens that are not masked."""

    config: T5Config

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"], bias: Float[Array, "h l l"]
    ) -> Float[Array, "b l d"]:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        b, length, _ = x.shape
        q, k, v = (
            _dense(c.heads * c.head_width, dtype, name)(x).reshape(b, length, c.heads, c.head_width)
            for name in ("query", "key", "value")
        )
        precision = jax.lax.Precision.HIGHEST
        logits = jnp.einsum(
            "bqhc,bkhc->bhqk", q, k, precision=precision, preferred_element_type=jnp.float32
        )
        logits = jnp.where(mask[:, None, None, :], logits + bias, -1e10)
        weights = nn.softmax(logits).astype(dtype)
        attended = jnp.einsum("bhqk,bkhc->bqhc", weights, v, precision=precision)
        return _dense(c.width, dtype, "out")(attended.reshape(b, length, -1))


class Mlp(nn.Module):
    """One or, multiplied, two activated projections, and one back."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        hidden = jnp.ones((), dtype)
        for i, activation in enumerate(c.mlp_activations):
            name = "wi" if len(c.mlp_activations) == 1 else f"wi_{i}"
            hidden = hidden * ACTIVATIONS[activation](_dense(c.mlp_width, dtype, name)(x))
        return _dense(c.width, dtype, "wo")(hidden)


class Layer(nn.Module):
    """One block."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l d"],
        mask: Bool[Array, "b l"],
        bias: Float[Array, "h l l"] | None,
    ) -> Float[Array, "b l d"]:
        dtype = jnp.dtype(self.config.dtype)
        if bias is None:
            bias = RelativeBias(self.config, name="relpos_bias")(x.shape[1])
        epsilon = self.config.norm_epsilon
        y = RMSNorm(dtype, epsilon, name="pre_attention_layer_norm")(x)
        x = x + Attention(self.config, name="attention")(y, mask, bias)
        y = RMSNorm(dtype, epsilon, name="pre_mlp_layer_norm")(x)
        return x + Mlp(self.config, name="mlp")(y)


class Blocks(nn.Module):
    """All blocks and the last norm."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        c = self.config
        bias = None
        if c.shared_bias:
            bias = RelativeBias(c, name="relpos_bias")(x.shape[1])
        for i in range(c.layers):
            x = Layer(c, name=f"layers_{i}")(x, mask, bias)
        return RMSNorm(jnp.dtype(c.dtype), c.norm_epsilon, name="encoder_norm")(x)


class T5Encoder(nn.Module):
    """T5's encoder: parameters token_embedder and encoder, named as in T5X."""

    config: T5Config

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b l d"]:
        """States of the last layer.

        Args:
          tokens: [b, l] ids in [0, vocab_size); any id where masked.
          mask: [b, l] True at real tokens.

        Returns:
          [b, l, width] states in the config's dtype; meaningless where masked.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        x = nn.Embed(c.vocab_size, c.width, dtype=dtype, name="token_embedder")(tokens)
        return Blocks(c, name="encoder")(x, mask)


def encode(
    params: Params, config: T5Config, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]
) -> Float[Array, "b l d"]:
    """Token states of a T5 encoder; jit with `config` static. See T5Encoder.

    Args:
      params: as load_t5_encoder gives them.
      config: sizes, and the dtype of activations.
      tokens: [b, l] int32 ids.
      mask: [b, l] True at real tokens.

    Raises:
      UserError: tokens and mask differ in shape.
    """
    if tokens.shape != mask.shape or tokens.ndim != 2:
        raise UserError(
            f"tokens and mask must have one shape [b, l], got {tokens.shape} and {mask.shape}"
        )
    return T5Encoder(config).apply({"params": params}, tokens, mask)  # type: ignore[return-value]


def config_of(params: Params) -> T5Config:
    """The sizes that parameters in T5X's names have, read from their shapes.

    Raises:
      UserError: a parameter is missing, is not known, or has a shape that does not fit the others;
        the message names it.
    """
    import flax.traverse_util

    shapes = {
        name: tuple(leaf.shape)
        for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()
    }

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in shapes:
            raise UserError(f"no parameter {name!r}; this is not a T5 encoder in T5X's names")
        if len(shapes[name]) != rank:
            raise UserError(f"{name} has shape {shapes[name]}; it must have {rank} axes")
        return shapes[name]

    vocab_size, width = shape("token_embedder/embedding", 2)
    shared = "encoder/relpos_bias/rel_embedding" in shapes
    bias = "encoder/relpos_bias" if shared else "encoder/layers_0/relpos_bias"
    heads, buckets = shape(f"{bias}/rel_embedding", 2)
    if heads < 1 or buckets < 4 or buckets % 2:
        raise UserError(f"{bias} has the shape {(heads, buckets)}; it must be of heads and buckets")
    joined = shape("encoder/layers_0/attention/query/kernel", 2)[1]
    if joined % heads:
        raise UserError(
            f"queries of {joined} channels cannot be divided into the {heads} heads of {bias}"
        )
    gated = "encoder/layers_0/mlp/wi_0/kernel" in shapes
    mlp_width = shape(f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel", 2)[1]
    layers = len({name.split("/")[1] for name in shapes if name.startswith("encoder/layers_")})
    config = T5Config(
        vocab_size, width, heads, joined // heads, mlp_width, layers,
        ("gelu", "linear") if gated else ("relu",), shared, buckets,
    )  # fmt: skip
    expected = {
        name: tuple(leaf.shape)
        for name, leaf in flax.traverse_util.flatten_dict(abstract_params(config), sep="/").items()
    }
    for name in sorted(expected.keys() | shapes.keys()):
        if shapes.get(name) != expected.get(name):
            raise UserError(
                f"parameter {name} has shape {shapes.get(name, 'none: it is missing')}; a T5 "
                f"encoder of this size has {expected.get(name, 'no such parameter')}"
            )
    return config


def shardings(
    devices: Sequence[jax.Device],
) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Shardings under which no device holds the whole encoder (XXL is 18 GB in float32).

    Heads and hidden channels of the MLP are divided over the devices, and the channels of the
    embedding. What they do not divide, norms and position biases are on every device.

    Returns:
      The argument `shardings` of load_t5_encoder.
    """
    mesh = Mesh(np.asarray(devices), ("model",))

    def sharding(name: str, shape: tuple[int, ...]) -> NamedSharding:
        part = name.split("/")[-2]
        axis = {"out": 0, "wo": 0}.get(part, 1)
        is_matrix = len(shape) == 2 and not name.endswith("rel_embedding")
        if not is_matrix or shape[axis] % len(devices):
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*(["model"] if axis == 0 else [None, "model"])))

    return sharding


def abstract_params(config: T5Config) -> Params:
    """ShapeDtypeStructs of the parameters of a config."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 2), jnp.bool_)
    return jax.eval_shape(T5Encoder(config).init, jax.random.key(0), tokens, mask)["params"]  # type: ignore[return-value]
