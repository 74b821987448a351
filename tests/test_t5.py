"""T5's encoder equals T5X's own outputs from checkpoints in all layouts; damage is an error.

tests/testdata/t5x holds what T5X itself wrote and computed (README.txt there).
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.text import t5
from imagen_jax.text.t5_checkpoint import load_t5_encoder

DATA = Path(__file__).parent / "testdata" / "t5x"
LAYOUTS = ("t5x", "t5x_scan", "t5x_orbax")
TOLERANCE = 2e-5
CONFIG = t5.T5Config(256, 32, 4, 8, 64, 2)


@functools.cache
def golden() -> dict[str, np.ndarray]:
    with np.load(DATA / "golden.npz") as arrays:
        return dict(arrays)


def checkpoint(layout: str) -> Path:
    return DATA / layout / "checkpoint_7"


def copy(layout: str, directory: Path) -> Path:
    target = directory / "checkpoint_7"
    shutil.copytree(checkpoint(layout), target)
    return target


def assert_states(states: jax.Array, expected: np.ndarray, mask: np.ndarray, atol: float) -> None:
    """Equal where the mask is True; elsewhere states mean nothing."""
    difference = np.abs(np.asarray(states, np.float32) - expected)[mask]
    assert difference.max() <= atol
    assert np.abs(expected[mask]).max() > 1  # so that the tolerance says something


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_t5x(layout: str) -> None:
    config, params = load_t5_encoder(checkpoint(layout))
    assert config == t5.T5Config(256, 32, 4, 8, 64, 2, shared_bias=layout != "t5x_scan")
    encode = jax.jit(t5.encode, static_argnums=1)
    for length in ("short", "long"):
        tokens, mask = golden()[f"tokens_{length}"], golden()[f"mask_{length}"]
        states = encode(params, config, tokens, mask)
        assert_states(states, golden()[f"encoded_{length}"], mask, TOLERANCE)


@pytest.mark.slow
def test_equals_t5x_from_bfloat16_weights() -> None:
    config, params = load_t5_encoder(checkpoint("t5x_bf16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    tokens, mask = golden()["tokens_short"], golden()["mask_short"]
    states = t5.encode(params, config, tokens, mask)
    assert_states(states, golden()["encoded_short_from_bf16_ckpt"], mask, TOLERANCE)


def test_equals_t5x_with_bfloat16_activations() -> None:
    _, params = load_t5_encoder(checkpoint("t5x"))
    config = t5.T5Config(256, 32, 4, 8, 64, 2, dtype="bfloat16")
    tokens, mask = golden()["tokens_short"], golden()["mask_short"]
    states = t5.encode(params, config, tokens, mask)
    assert states.dtype == jnp.bfloat16
    assert_states(states, golden()["encoded_short_bf16_activations"], mask, 0.1)


@pytest.mark.slow
def test_padding_does_not_reach_the_states() -> None:
    config, params = load_t5_encoder(checkpoint("t5x"))
    tokens, mask = golden()["tokens_short"], golden()["mask_short"]
    other = np.where(mask, tokens, 17)
    longer = np.pad(tokens, ((0, 0), (0, 9))), np.pad(mask, ((0, 0), (0, 9)))
    states = np.asarray(t5.encode(params, config, tokens, mask))
    np.testing.assert_array_equal(
        np.asarray(t5.encode(params, config, other, mask))[mask], states[mask]
    )
    assert_states(t5.encode(params, config, *longer)[:, :16], states, mask, TOLERANCE)


def test_every_process_reads_only_its_part() -> None:
    """A sharding's callback is asked for its slices, of joined heads too."""
    from imagen_jax.text.t5_checkpoint import _leaves

    for layout in LAYOUTS:
        for name, leaf in _leaves(str(checkpoint(layout))).items():
            whole = leaf.read(tuple(slice(0, n) for n in leaf.shape))
            assert whole.shape == leaf.shape, name
            for axis, size in enumerate(leaf.shape):
                for start, stop in ((0, size // 2), (size // 2, size), (1, size - 1)):
                    index = tuple(
                        slice(start, stop) if a == axis else slice(None)
                        for a in range(len(leaf.shape))
                    )
                    np.testing.assert_array_equal(leaf.read(index), whole[index], err_msg=name)


def test_relative_position_buckets() -> None:
    """Raffel et al. 2019: 8 exact ones a side, then logarithmic to 128, one for the rest."""
    distance = np.arange(-400, 401)[None]
    bucket = t5.relative_position_bucket(distance)[0]
    assert bucket[400] == 0
    np.testing.assert_array_equal(bucket[400 - 7 : 401], np.arange(7, -1, -1))
    np.testing.assert_array_equal(bucket[401 : 401 + 7], 16 + np.arange(1, 8))
    behind, ahead = bucket[:400][::-1], bucket[401:]
    np.testing.assert_array_equal(ahead, behind + 16)
    assert np.all(np.diff(behind) >= 0)
    assert np.all(behind[127:] == 15)
    assert behind[7] == 8


# other names and other versions


def placeholder_layout(directory: Path) -> Path:
    """The legacy checkpoint rewritten with placeholders in place of descriptions."""
    target = copy("t5x", directory)
    tree = flax.serialization.msgpack_restore((target / "checkpoint").read_bytes())
    flat = flax.traverse_util.flatten_dict(
        tree["optimizer"]["target"], is_leaf=lambda _, v: "driver" in v, sep="/"
    )
    named = {
        name: f"PLACEHOLDER://target.{name.replace('/', '.')}"
        for name in flat
        if name.startswith(("encoder", "token_embedder"))
    }
    tree = {"target": flax.traverse_util.unflatten_dict(named, sep="/")}
    (target / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    return target


def test_placeholder_layout(tmp_path: Path) -> None:
    _, expected = load_t5_encoder(checkpoint("t5x"))
    _, params = load_t5_encoder(placeholder_layout(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_arrays_in_the_msgpack_itself(tmp_path: Path) -> None:
    config, expected = load_t5_encoder(checkpoint("t5x"))
    tree = {"optimizer": {"target": jax.tree.map(np.asarray, expected)}}
    (tmp_path / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    found, params = load_t5_encoder(tmp_path)
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder/encoder_norm/scale", np.ones(32, np.int32),
         "parameter encoder/encoder_norm/scale is of dtype int32: weights are floats"),
        ("encoder/encoder_norm/scale", 3.0,
         r"parameter encoder/encoder_norm/scale is neither an array nor a path: 3\.0"),
        ("encoder/encoder_norm/scale", np.ones((4, 8), np.float32),
         r"encoder_norm/scale has shape \(4, 8\)"),
        ("encoder/encoder/mlp/wo/kernel", np.ones(3, np.float32), r"\(3,\) has no axis of layers"),
        ("encoder/encoder/mlp/wo/kernel", np.ones((1, 9999), np.float32),
         "is of 9999 layers; at most 1000 are read"),
        ("token_embedder/embedding", np.ones(3, np.float32),
         r"token_embedder/embedding has shape \(3,\); it must have 2 axes"),
        ("encoder/relpos_bias/rel_embedding", np.ones((4, 31), np.float32),
         r"relpos_bias has the shape \(4, 31\); it must be of heads and buckets"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_weights(
    name: str, value: object, message: str, tmp_path: Path
) -> None:
    _, params = load_t5_encoder(checkpoint("t5x"))
    flat = flax.traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/")
    target = flax.traverse_util.unflatten_dict(flat | {name: value}, sep="/")
    content = flax.serialization.msgpack_serialize({"optimizer": {"target": target}})
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_t5_encoder(tmp_path)


def hugging_face(params: t5.Params) -> dict[str, np.ndarray]:
    """The tensors of transformers' T5EncoderModel with these parameters."""
    names = {
        "token_embedder/embedding": "shared.weight",
        "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
        "encoder/relpos_bias/rel_embedding":
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    }  # fmt: skip
    parts = {
        "attention/query/kernel": "0.SelfAttention.q",
        "attention/key/kernel": "0.SelfAttention.k",
        "attention/value/kernel": "0.SelfAttention.v",
        "attention/out/kernel": "0.SelfAttention.o",
        "pre_attention_layer_norm/scale": "0.layer_norm",
        "mlp/wi/kernel": "1.DenseReluDense.wi",
        "mlp/wi_0/kernel": "1.DenseReluDense.wi_0",
        "mlp/wi_1/kernel": "1.DenseReluDense.wi_1",
        "mlp/wo/kernel": "1.DenseReluDense.wo",
        "pre_mlp_layer_norm/scale": "1.layer_norm",
    }
    tensors = {}
    for name, value in flax.traverse_util.flatten_dict(params, sep="/").items():
        if name not in names:
            layer, part = name.removeprefix("encoder/layers_").split("/", 1)
            names[name] = f"encoder.block.{layer}.layer.{parts[part]}.weight"
        array = np.asarray(value)
        turned = array.ndim == 2 and name != "token_embedder/embedding"
        tensors[names[name]] = np.ascontiguousarray(array.T if turned else array)
    return tensors


@pytest.mark.parametrize("activations", [("gelu", "linear"), ("relu",)])
def test_hugging_face_names(activations: tuple[str, ...], tmp_path: Path) -> None:
    import safetensors.numpy

    config = t5.T5Config(50, 24, 3, 16, 56, 3, activations)  # heads wider than the model
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), t5.abstract_params(config)
    )
    tensors = hugging_face(params)
    said = {"model_type": "t5", "feed_forward_proj": "-".join(["gated"] * (len(activations) - 1)
                                                              + [activations[0]])}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(said))
    half = len(tensors) // 2
    for i, names in enumerate((sorted(tensors)[:half], sorted(tensors)[half:])):
        part = {name: tensors[name] for name in names}
        part["decoder.final_layer_norm.weight"] = np.ones(24, np.float32)
        safetensors.numpy.save_file(part, tmp_path / f"model-0000{i + 1}-of-00002.safetensors")
    found, read = load_t5_encoder(tmp_path)
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_equals_transformers(tmp_path: Path) -> None:
    """Against the encoder of Hugging Face, where torch is installed."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for kind in ("gated-gelu", "relu", "gated-silu"):
        torch.manual_seed(0)
        sizes = transformers.T5Config(
            vocab_size=100, d_model=24, d_kv=16, d_ff=56, num_layers=3, num_heads=3,
            feed_forward_proj=kind, dropout_rate=0.0,
        )  # fmt: skip
        model = transformers.T5EncoderModel(sizes).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / kind, safe_serialization=True)
        tokens = np.random.default_rng(0).integers(1, 100, (4, 40)).astype(np.int32)
        mask = np.arange(40)[None] < np.array([[3], [17], [33], [40]])
        with torch.no_grad():
            expected = model(
                torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(mask)
            ).last_hidden_state.numpy()
        config, params = load_t5_encoder(tmp_path / kind)
        assert_states(t5.encode(params, config, tokens, mask), expected, mask, TOLERANCE)


# damage


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no T5 checkpoint in .*directory of one step"):
        load_t5_encoder(tmp_path)
    with pytest.raises(ValueError, match="only local paths and gs://"):
        load_t5_encoder("s3://bucket/checkpoint_7")


NAME = "target.encoder.layers_1.mlp.wi_0.kernel"


@pytest.mark.parametrize("layout", ["t5x", "t5x_bf16"])
def test_a_missing_chunk_is_not_zeros(layout: str, tmp_path: Path) -> None:
    target = copy(layout, tmp_path)
    (target / NAME / "0.0").unlink()
    with pytest.raises(ValueError, match=r"encoder/layers_1/mlp/wi_0/kernel cannot be read"):
        load_t5_encoder(target)


def test_a_truncated_chunk(tmp_path: Path) -> None:
    target = copy("t5x", tmp_path)
    chunk = target / NAME / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"encoder/layers_1/mlp/wi_0/kernel cannot be read"):
        load_t5_encoder(target)


def test_a_missing_array(tmp_path: Path) -> None:
    target = copy("t5x", tmp_path)
    shutil.rmtree(target / NAME)
    with pytest.raises(ValueError, match=r"encoder/layers_1/mlp/wi_0/kernel cannot be opened"):
        load_t5_encoder(target)


def test_missing_files_of_an_orbax_checkpoint(tmp_path: Path) -> None:
    target = copy("t5x_orbax", tmp_path)
    for file in (target / "state").rglob("d/*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"parameter .* cannot be (opened|read)"):
        load_t5_encoder(target)


def test_a_damaged_msgpack(tmp_path: Path) -> None:
    target = copy("t5x", tmp_path)
    content = (target / "checkpoint").read_bytes()
    (target / "checkpoint").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="checkpoint is damaged"):
        load_t5_encoder(target)
    (target / "checkpoint").write_bytes(flax.serialization.msgpack_serialize({"step": 1}))
    with pytest.raises(ValueError, match="no T5X checkpoint"):
        load_t5_encoder(target)


def change_spec(target: Path, name: str, **changes: object) -> None:
    tree = flax.serialization.msgpack_restore((target / "checkpoint").read_bytes())
    node = tree["optimizer"]["target"]
    for key in name.split("/"):
        node = node[key]
    node.update(changes)
    (target / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))


@pytest.mark.parametrize("path", ["../secret/", "/etc/", "a/../../b/", "", "a//b/", "a\\..\\b/"])
def test_hostile_paths(path: str, tmp_path: Path) -> None:
    target = copy("t5x", tmp_path)
    name = "encoder/encoder_norm/scale"
    change_spec(target, name, kvstore={"driver": "file", "path": path})
    with pytest.raises(ValueError, match=f"parameter {name}: the checkpoint names the path"):
        load_t5_encoder(target)


def test_another_driver(tmp_path: Path) -> None:
    target = copy("t5x", tmp_path)
    change_spec(target, "encoder/encoder_norm/scale", driver="http")
    with pytest.raises(ValueError, match="driver 'http' is not zarr"):
        load_t5_encoder(target)


def test_shapes_that_disagree(tmp_path: Path) -> None:
    target = copy("t5x", tmp_path)
    change_spec(target, "encoder/encoder_norm/scale", metadata={"shape": [31]})
    with pytest.raises(ValueError, match=r"the checkpoint says \(31,\), the stored array .*32"):
        load_t5_encoder(target)


def test_parameters_that_do_not_fit_together() -> None:
    _, params = load_t5_encoder(checkpoint("t5x"))
    params["encoder"]["layers_1"]["mlp"]["wi_0"]["kernel"] = jnp.zeros((32, 48))
    with pytest.raises(ValueError, match=r"layers_1/mlp/wi_0/kernel has shape \(32, 48\).*32, 64"):
        t5.config_of(params)
    del params["encoder"]["layers_1"]["mlp"]["wi_0"]
    with pytest.raises(ValueError, match="layers_1/mlp/wi_0/kernel has shape none: it is missing"):
        t5.config_of(params)
    with pytest.raises(ValueError, match="no parameter 'token_embedder/embedding'"):
        t5.config_of({"encoder": params["encoder"]})


@pytest.mark.usefixtures("unchecked_shapes")
def test_tokens_and_mask_of_other_shapes() -> None:
    _, params = load_t5_encoder(checkpoint("t5x"))
    with pytest.raises(ValueError, match=r"one shape \[b, l\], got \(2, 3\) and \(2, 4\)"):
        t5.encode(params, CONFIG, jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 4), bool))


def zarray(target: Path, shape: list[int], chunks: list[int]) -> None:
    path = target / NAME / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": shape, "chunks": chunks}))


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [([2**20, 2**20], [32, 64]), ([2**20, 2**20], [2**20, 2**20]), ([32, 64], [2**20, 2**20]),
     ([2**62, 64], [32, 64]), ([-1, 64], [32, 64])],
)  # fmt: skip
def test_arrays_that_say_they_are_larger_than_memory(
    shape: list[int], chunks: list[int], tmp_path: Path
) -> None:
    """TensorStore would end the process where it finds no memory."""
    target = placeholder_layout(tmp_path)
    zarray(target, shape, chunks)
    with pytest.raises(UserError, match=r"wi_0/kernel|shape"):
        load_t5_encoder(target)


def test_chunks_of_scanned_arrays_that_say_they_are_larger_than_memory(tmp_path: Path) -> None:
    target = copy("t5x_scan", tmp_path)
    name = "target.encoder.encoder.pre_attention_layer_norm.scale"
    path = target / name / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chunks": [32, 2**31]}))
    with pytest.raises(UserError, match="in chunks of 68,719,476,736 numbers"):
        load_t5_encoder(target)


@pytest.mark.parametrize(
    "content",
    [b"\x81" * 100_000, b"\xdf\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"", b"\x93\x01\x02",
     b"\xc1", b"\x81\xa9optimizer\x01"],
)  # fmt: skip
def test_msgpack_of_strangers(content: bytes, tmp_path: Path) -> None:
    target = copy("t5x", tmp_path)
    (target / "checkpoint").write_bytes(content)
    with pytest.raises(UserError):
        load_t5_encoder(target)


@pytest.mark.parametrize("content", ["[" * 100_000, "{}", "[]", "null", '{"tree_metadata": 1}',
                                     '{"tree_metadata": {"a": {"key_metadata": 3}}}'])  # fmt: skip
def test_metadata_of_strangers(content: str, tmp_path: Path) -> None:
    target = copy("t5x_orbax", tmp_path)
    (target / "state" / "_METADATA").write_text(content)
    with pytest.raises(UserError):
        load_t5_encoder(target)


@pytest.mark.parametrize("content", ["[" * 100_000, "{}", "null", "{", "\x00"])
def test_descriptions_of_arrays_of_strangers(content: str, tmp_path: Path) -> None:
    target = placeholder_layout(tmp_path)
    (target / NAME / ".zarray").write_text(content)
    with pytest.raises(UserError, match="wi_0/kernel"):
        load_t5_encoder(target)


def test_activations_of_the_training_beside(tmp_path: Path) -> None:
    """T5X keeps its config beside its checkpoints; UL2's is gated by SiLU."""
    target = copy("t5x", tmp_path)
    assert load_t5_encoder(target)[0].mlp_activations == ("gelu", "linear")
    (tmp_path / "config.gin").write_text(
        "network.T5Config:\n  mlp_activations = ('silu', 'linear')"
    )
    assert load_t5_encoder(target)[0].mlp_activations == ("silu", "linear")
    (tmp_path / "config.gin").write_text("mlp_activations = ('geglu', 'linear')")
    with pytest.raises(UserError, match=r"config\.gin: mlp_activations are \('geglu', 'linear'\)"):
        load_t5_encoder(target)
