"""The encoder of a T5 in the layout of Hugging Face: config.json beside safetensors.

Weights alone do not say how they are to be used: the activation of a gated MLP is GELU in version
1.1 and SiLU in UL2, and the weights are of the same shapes. So config.json is read, and an
architecture that is not known is refused by its name.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.files import read_json
from imagen_jax.tensor_files import open_safetensors
from imagen_jax.text.leaves import Leaf
from imagen_jax.text.t5 import T5Config

MODEL_TYPES = ("t5", "mt5", "umt5")
"""model_type of T5 v1.0 and v1.1, Flan-T5, ByT5, UL2 and Flan-UL2; of mT5; of UMT5."""
ACTIVATIONS = {
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
}
"""feed_forward_proj -> activations of T5Config."""
FLOATS = ("F64", "F32", "F16", "BF16")
VARIANTS = ("", "fp32", "bf16", "fp16")
"""Of the same weights in one folder, the first that is there is read."""
CONFIG = "config.json"

_NAMES = (
    (r"shared\.weight|encoder\.embed_tokens\.weight", "token_embedder/embedding"),
    (r"encoder\.final_layer_norm\.weight", "encoder/encoder_norm/scale"),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
     r"encoder/layers_\1/relpos_bias/rel_embedding"),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.q\.weight",
     r"encoder/layers_\1/attention/query/kernel"),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.k\.weight",
     r"encoder/layers_\1/attention/key/kernel"),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.v\.weight",
     r"encoder/layers_\1/attention/value/kernel"),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.o\.weight",
     r"encoder/layers_\1/attention/out/kernel"),
    (r"encoder\.block\.(\d+)\.layer\.0\.layer_norm\.weight",
     r"encoder/layers_\1/pre_attention_layer_norm/scale"),
    (r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.(wi|wi_0|wi_1|wo)\.weight",
     r"encoder/layers_\1/mlp/\2/kernel"),
    (r"encoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight",
     r"encoder/layers_\1/pre_mlp_layer_norm/scale"),
)  # fmt: skip
"""Names of transformers' T5EncoderModel -> T5X's; matrices are transposed but for the embedding."""
_FIRST_BIAS = "encoder/layers_0/relpos_bias/rel_embedding"
_SHARED_BIAS = "encoder/relpos_bias/rel_embedding"
_FILE = re.compile(
    r"(?P<stem>.+?)(\.(?P<variant>[a-z0-9_]+))?(-(\d+)-of-(?P<count>\d+))?\.safetensors"
)
_QUANTISED = re.compile(r".*\.(SCB|weight_format|scale_weight|weight_scale|quant_state.*|absmax)")


def read_leaves(path: Path) -> dict[str, Leaf]:
    """Return all parameters of the encoder by T5X's names.

    Args:
      path: directory, or one of its files.

    Raises:
      UserError: a file is damaged or missing, or holds something else than floating-point weights
        of a T5 encoder.
    """
    leaves: dict[str, Leaf] = {}
    for file in _files(path):
        with open_safetensors(file) as opened:
            for key in opened.keys():  # noqa: SIM118
                name = _t5x_name(key)
                if _QUANTISED.fullmatch(key):
                    raise UserError(
                        f"{file} holds quantised weights ({key}); give those in float32, bfloat16 "
                        "or float16"
                    )
                if name is None or (name in leaves and key != "shared.weight"):
                    continue
                part = opened.get_slice(key)
                if part.get_dtype() not in FLOATS:
                    raise UserError(
                        f"{file} holds {key} as {part.get_dtype()}: quantised weights are not "
                        "read, give those in float32, bfloat16 or float16"
                    )
                turned = name.endswith(("/kernel", "/rel_embedding"))
                leaves[name] = _tensor(file, key, tuple(part.get_shape()), turned)
    if "token_embedder/embedding" not in leaves:
        raise UserError(f"{path} holds no T5 encoder: there is no tensor `shared.weight`")
    if not any(name.startswith("encoder/layers_") for name in leaves):
        raise UserError(
            f"{path} holds the embedding of a T5 alone, and no layers: other files are missing"
        )
    biases = [name for name in leaves if name.endswith("/rel_embedding")]
    if biases == [_FIRST_BIAS]:  # one for all layers; in UMT5 each has its own
        leaves[_SHARED_BIAS] = leaves.pop(_FIRST_BIAS)
    return leaves


def read_config(path: Path, config: T5Config) -> T5Config:
    """Return a config with what config.json says, which shapes do not.

    Args:
      path: directory of the checkpoint, or one of its files.
      config: sizes, as read from the shapes of the weights.

    Raises:
      UserError: there is no config.json, it is of another architecture, or it contradicts the
        weights; the message says which.
    """
    file = (path if path.is_dir() else path.parent) / CONFIG
    if not file.is_file():
        raise UserError(
            f"there is no {file}: the weights alone do not say which T5 this is (a gated MLP is "
            "GELU in version 1.1, SiLU in UL2); put the model's config.json beside them"
        )
    given = read_json(file, "config of a T5")
    kind = given.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(
            f"{file}: model_type is {kind!r}; read are {', '.join(MODEL_TYPES)} (T5 v1.0 and v1.1, "
            "Flan-T5, ByT5, UL2, mT5, UMT5)"
        )
    if "quantization_config" in given:
        raise UserError(f"{file} is of quantised weights, which are not read")
    projection = given.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")
    if projection not in ACTIVATIONS:
        raise UserError(
            f"{file}: feed_forward_proj is {projection!r}; choices: {', '.join(ACTIVATIONS)}"
        )
    activations = ACTIVATIONS[projection]
    sizes: Mapping[str, Any] = {
        "vocab_size": config.vocab_size, "d_model": config.width, "num_heads": config.heads,
        "d_kv": config.head_width, "d_ff": config.mlp_width, "num_layers": config.layers,
        "relative_attention_num_buckets": config.relative_buckets,
    }  # fmt: skip
    wrong = [f"{name} {given[name]!r}, not {size}" for name, size in sizes.items()
             if name != "vocab_size" and given.get(name, size) != size]  # fmt: skip
    if len(activations) != len(config.mlp_activations):
        wrong.append(
            f"feed_forward_proj {projection!r}, not of {len(config.mlp_activations)} parts"
        )
    if config.shared_bias != (kind != "umt5"):
        wrong.append(f"model_type {kind!r}, which has position biases in every layer, or does not")
    if wrong:
        raise UserError(f"{file} does not belong to the weights beside it: {'; '.join(wrong)}")
    distance = given.get("relative_attention_max_distance", config.max_distance)
    epsilon = given.get("layer_norm_epsilon", config.norm_epsilon)
    exact = config.relative_buckets // 4
    if type(distance) is not int or distance <= exact:
        raise UserError(
            f"{file}: relative_attention_max_distance is {distance!r}; it must be above {exact}"
        )
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1 or not math.isfinite(epsilon):
        raise UserError(
            f"{file}: layer_norm_epsilon is {epsilon!r}; it must be above 0 and below 1"
        )
    return dataclasses.replace(
        config, mlp_activations=activations, max_distance=distance, norm_epsilon=float(epsilon)
    )


def _files(path: Path) -> list[Path]:
    """The files of one variant of the weights, all of its shards."""
    if path.suffix == ".safetensors":
        return [path]
    groups: dict[tuple[str, str], list[tuple[Path, int]]] = {}
    for file in sorted(path.glob("*.safetensors")):
        match = _FILE.fullmatch(file.name)
        assert match is not None
        key = match["stem"], match["variant"] or ""
        groups.setdefault(key, []).append((file, int(match["count"] or 1)))
    known = {key: files for key, files in groups.items() if key[1] in VARIANTS}
    stems = sorted({stem for stem, _ in known})
    if len(stems) != 1:
        there = ", ".join(sorted(file.name for files in groups.values() for file, _ in files)[:9])
        raise UserError(
            f"{path} holds {there}: give the one of these files that has the weights"
            if known
            else f"{path} holds only quantised weights or unknown variants: {there}"
        )
    variant = next(name for name in VARIANTS if (stems[0], name) in known)
    files = known[stems[0], variant]
    counts = {count for _, count in files}
    if len(counts) != 1 or len(files) != counts.pop():
        raise UserError(
            f"{path} has {len(files)} of the parts {files[0][0].name} and following; download all"
        )
    return [file for file, _ in files]


def _t5x_name(name: str) -> str | None:
    """T5X's name of a tensor of transformers; None for the decoder and for copies."""
    for pattern, replacement in _NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None


def _tensor(file: Path, key: str, shape: tuple[int, ...], turned: bool) -> Leaf:
    """A tensor of safetensors, transposed or as it is; its file is opened when it is read."""

    def read(index: tuple[slice, ...]) -> Any:
        with open_safetensors(file) as opened:
            return opened.get_slice(key)[index]

    if turned:
        return Leaf(shape[::-1], lambda index: read(index[::-1]).T)
    return Leaf(shape, read)
