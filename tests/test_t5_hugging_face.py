"""T5 encoders as Hugging Face lays them out: those that are known equal transformers', others are
refused by their names. The states are stored (tests/make_t5_reference.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from random_weights import random_tensor

from imagen_jax.errors import UserError
from imagen_jax.text import t5
from imagen_jax.text.t5_checkpoint import load_t5_encoder

REFERENCE = np.load(Path(__file__).parent / "testdata" / "t5_hugging_face.npz")
KINDS = ("t5 v1.0", "t5 v1.1", "ul2", "other buckets", "mt5", "umt5")
TOLERANCE = 1e-4  # of states that reach 4.8


def tensors_of(kind: str) -> dict[str, np.ndarray]:
    names = json.loads(str(REFERENCE[f"{kind} names"]))
    return {name: random_tensor(name, tuple(shape)) for name, shape in names.items()}


def config_of(kind: str) -> dict[str, Any]:
    return json.loads(str(REFERENCE[f"{kind} config"]))


def write(
    folder: Path, kind: str = "t5 v1.1", name: str = "model.safetensors",
    tensors: dict[str, np.ndarray] | None = None, **changes: Any,
) -> Path:  # fmt: skip
    folder.mkdir(exist_ok=True)
    config = {k: v for k, v in (config_of(kind) | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors or tensors_of(kind), folder / name)
    return folder


def states_of(folder: Path) -> np.ndarray:
    config, params = load_t5_encoder(folder)
    return np.asarray(t5.encode(params, config, REFERENCE["tokens"], REFERENCE["mask"]))


def error_of(kind: str, states: np.ndarray) -> float:
    mask = REFERENCE["mask"]
    return np.abs(states - REFERENCE[f"{kind} states"])[mask].max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(kind: str, tmp_path: Path) -> None:
    assert error_of(kind, states_of(write(tmp_path / "t5", kind))) < TOLERANCE


def test_config_json_decides_the_architecture(tmp_path: Path) -> None:
    """The weights of version 1.1 and of UL2 have the same shapes."""
    as_gelu = states_of(write(tmp_path / "a", "t5 v1.1"))
    as_silu = states_of(write(tmp_path / "b", "t5 v1.1", feed_forward_proj="gated-silu"))
    assert error_of("t5 v1.1", as_gelu) < TOLERANCE
    assert error_of("t5 v1.1", as_silu) > 0.01
    assert error_of("ul2", as_silu) < TOLERANCE, "the stored weights of both are the same"


def test_position_biases_of_every_layer(tmp_path: Path) -> None:
    config, params = load_t5_encoder(write(tmp_path / "umt5", "umt5"))
    assert not config.shared_bias
    biases = [params["encoder"][f"layers_{i}"]["relpos_bias"]["rel_embedding"] for i in range(3)]
    assert not np.array_equal(biases[0], biases[1])
    folder = write(tmp_path / "t5", "umt5", model_type="t5")
    with pytest.raises(UserError, match=r"does not belong to the weights.*position biases"):
        load_t5_encoder(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "longt5"}, r"model_type is 'longt5'; read are t5, mt5, umt5"),
        ({"model_type": "switch_transformers"}, "model_type is 'switch_transformers'"),
        ({"model_type": "t5gemma"}, "model_type is 't5gemma'"),
        ({"model_type": None}, "model_type is None"),
        ({"feed_forward_proj": "gated-swiglu"}, "is 'gated-swiglu'; choices: relu, gated-gelu"),
        ({"feed_forward_proj": "relu"}, "does not belong to the weights.*not of 2 parts"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantised weights"),
        ({"num_heads": 4}, "num_heads 4, not 3"),
        ({"num_layers": 24}, "num_layers 24, not 3"),
        ({"relative_attention_max_distance": 8}, "must be above 8"),
        ({"relative_attention_max_distance": "far"}, "is 'far'"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0"),
    ],
)
def test_others_are_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_t5_encoder(write(tmp_path / "t5", **changes))


def test_without_config_json(tmp_path: Path) -> None:
    folder = write(tmp_path / "t5")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no .*config\.json.*GELU in version 1\.1, SiLU in UL2"):
        load_t5_encoder(folder)
    with pytest.raises(UserError, match="put the model's"):
        load_t5_encoder(folder / "model.safetensors")
    (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"config\.json"):
        load_t5_encoder(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_floats_are_read_as_they_are_saved(dtype: Any, tmp_path: Path) -> None:
    tensors = {name: value.astype(dtype) for name, value in tensors_of("t5 v1.1").items()}
    _, params = load_t5_encoder(write(tmp_path / "t5", tensors=tensors))
    kernel = params["encoder"]["layers_1"]["mlp"]["wi_0"]["kernel"]
    name = "encoder.block.1.layer.1.DenseReluDense.wi_0.weight"
    if dtype is not np.float64:  # which JAX does not have
        assert kernel.dtype == dtype
    np.testing.assert_array_equal(np.asarray(kernel, np.float32), tensors[name].T.astype("f4"))


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int32, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
)
def test_quantised_weights_are_refused(dtype: Any, tmp_path: Path) -> None:
    tensors = tensors_of("t5 v1.1")
    name = "encoder.block.1.layer.1.DenseReluDense.wi_0.weight"
    tensors[name] = tensors[name].astype(dtype)
    with pytest.raises(UserError, match=r"quantised weights are not read|dtype that is not read"):
        load_t5_encoder(write(tmp_path / "t5", tensors=tensors))


def test_scales_of_quantised_weights_are_seen(tmp_path: Path) -> None:
    tensors = tensors_of("t5 v1.1")
    tensors["encoder.block.0.layer.0.SelfAttention.q.SCB"] = np.ones(48, np.float32)
    with pytest.raises(UserError, match=r"holds quantised weights .*SCB"):
        load_t5_encoder(write(tmp_path / "t5", tensors=tensors))


def halves(kind: str = "t5 v1.1") -> list[dict[str, np.ndarray]]:
    tensors = tensors_of(kind)
    names = sorted(tensors)
    return [{name: tensors[name] for name in names[i::2]} for i in (0, 1)]


def test_of_variants_one_is_read(tmp_path: Path) -> None:
    """Beside model.safetensors others of the same weights may lie: float16, and of 8 bits."""
    folder = write(tmp_path / "t5")
    wrong = {name: np.zeros_like(value) for name, value in tensors_of("t5 v1.1").items()}
    for name in ("model.fp16.safetensors", "model.8bit.safetensors", "model.q4.safetensors"):
        safetensors.numpy.save_file(wrong, folder / name)
    assert error_of("t5 v1.1", states_of(folder)) < TOLERANCE
    (folder / "model.safetensors").unlink()
    right = {k: v.astype(np.float16) for k, v in tensors_of("t5 v1.1").items()}
    safetensors.numpy.save_file(right, folder / "model.fp16.safetensors")
    assert error_of("t5 v1.1", states_of(folder)) < 0.2
    (folder / "model.fp16.safetensors").unlink()
    with pytest.raises(UserError, match=r"only quantised weights or unknown variants: model\.8bit"):
        load_t5_encoder(folder)


def test_parts_of_a_variant_belong_together(tmp_path: Path) -> None:
    first, second = halves()
    folder = write(tmp_path / "t5", tensors=first, name="model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match="has 1 of the parts model-00001-of-00002"):
        load_t5_encoder(folder)
    safetensors.numpy.save_file(second, folder / "model-00002-of-00002.safetensors")
    zeros = {name: np.zeros_like(value) for name, value in second.items()}
    safetensors.numpy.save_file(zeros, folder / "model.fp16-00002-of-00002.safetensors")
    assert error_of("t5 v1.1", states_of(folder)) < TOLERANCE
    safetensors.numpy.save_file(zeros, folder / "adapter.safetensors")
    with pytest.raises(UserError, match="give the one of these files"):
        load_t5_encoder(folder)


def test_files_that_are_no_encoder(tmp_path: Path) -> None:
    embedding = {"shared.weight": tensors_of("t5 v1.1")["shared.weight"]}
    with pytest.raises(UserError, match="the embedding of a T5 alone, and no layers"):
        load_t5_encoder(write(tmp_path / "a", tensors=embedding))
    with pytest.raises(UserError, match=r"no tensor `shared\.weight`"):
        load_t5_encoder(write(tmp_path / "b", tensors={"bert.weight": np.ones(3, np.float32)}))
    pointer = write(tmp_path / "c")
    (pointer / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"model\.safetensors is a pointer of Git LFS.*lfs pull"):
        load_t5_encoder(pointer)
    with pytest.raises(UserError, match="Hugging Face hub must be downloaded first"):
        load_t5_encoder("google/t5-v1_1-xxl")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin and GGUF are not read"):
        load_t5_encoder(tmp_path / "d")


def test_an_embedding_by_its_other_name(tmp_path: Path) -> None:
    tensors = tensors_of("t5 v1.1")
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    assert error_of("t5 v1.1", states_of(write(tmp_path / "t5", tensors=tensors))) < TOLERANCE
    tensors["shared.weight"] = tensors["encoder.embed_tokens.weight"]
    assert error_of("t5 v1.1", states_of(write(tmp_path / "both", tensors=tensors))) < TOLERANCE
