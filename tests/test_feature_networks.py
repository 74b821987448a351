"""Feature networks against pytorch-fid, torch-fidelity, torchvision, transformers and open_clip.

Their results are stored (tests/make_evaluation_reference.py); weights and images are drawn
again.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from random_weights import random_images, random_tensor

from imagen_jax.errors import UserError
from imagen_jax.eval.features import inception, mobilenet
from imagen_jax.eval.features.clip import encode_images, encode_texts
from imagen_jax.eval.features.clip_weights import read_clip
from imagen_jax.eval.features.graph_file import layer_names
from imagen_jax.eval.features.layers import Network, shapes
from imagen_jax.eval.features.network import load_network, text_features
from imagen_jax.eval.features.resize import KINDS, resize, resize_matrix
from imagen_jax.eval.features.tensors import read_tensors
from imagen_jax.eval.features.torch_file import read_torch_file

DATA = Path(__file__).parent / "testdata" / "evaluation"
REFERENCE = np.load(DATA / "reference.npz")
CLIP_TEXTS = np.array([[1, 5, 9, 4, 63], [1, 7, 63, 0, 0]])
NORMS = ("weight", "bias", "running_mean", "running_var")


def state_dict(network: Network, size: int) -> dict[str, np.ndarray]:
    """The weights that tests/make_evaluation_reference.py gave to torch's network."""
    shape_of: dict[str, tuple[int, ...]] = {}
    for names, shape in shapes(network, size).items():
        shape_of[f"{names.weight}.weight"] = (*shape[::-1][:2], *shape[:-2])
        if len(shape) == 2:
            shape_of[f"{names.weight}.bias"] = shape[-1:]
        else:
            shape_of |= {f"{names.norm}.{part}": shape[-1:] for part in NORMS}
    return {name: random_tensor(name, shape) for name, shape in shape_of.items()}


def close(ours: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    """Equal up to rtol of the features' size; float32 sums in another order."""
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=rtol, atol=rtol * np.abs(expected).mean())


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "random.safetensors"
    tensors = state_dict(inception.inception_v3, inception.SIZE)
    safetensors.numpy.save_file(tensors, path)
    return path


def test_inception_is_that_of_torch_fidelity(inception_file: Path) -> None:
    network = load_network("inception-v3", inception_file, "tf1")
    outputs = network.outputs(random_images(3, 64))
    close(outputs["features"][:, ::16], REFERENCE["inception_tf1_pool"], 2e-4)
    close(outputs["logits"][:, ::8], REFERENCE["inception_tf1_logits"], 2e-4)
    bias = random_tensor("fc.bias", (1008,))
    close(outputs["logits"] - outputs["logits_unbiased"], np.tile(bias, (3, 1)), 1e-3)
    assert network.name != "inception-v3", "random weights must not pass for those of 2015"


def test_inception_is_that_of_pytorch_fid(inception_file: Path) -> None:
    network = load_network("inception-v3", inception_file, "half-pixel")
    ours = network(random_images(3, 64))
    close(ours[:, ::16], REFERENCE["inception_half-pixel_pool"], 2e-4)


def test_mobilenet_is_that_of_torchvision(tmp_path: Path) -> None:
    images = random_images(3, 64)
    shipped = load_network("mobilenet-v2")
    close(shipped(images)[:, ::8], REFERENCE["mobilenet_shipped"], 1e-3)
    tensors = state_dict(mobilenet.mobilenet_v2, mobilenet.SIZE)
    safetensors.numpy.save_file(tensors, tmp_path / "random.safetensors")
    drawn = load_network("mobilenet-v2", tmp_path / "random.safetensors")
    close(drawn(images)[:, ::8], REFERENCE["mobilenet_random"], 1e-3)
    assert shipped.identity["weights"] != drawn.identity["weights"]


def test_numbers_of_64_bits_change_no_features(tmp_path: Path) -> None:
    """JAX_ENABLE_X64 makes float64 of what has no dtype."""
    images = random_images(1, 32)
    write_clip(tmp_path / "clip", "hf")
    for name, weights in (("mobilenet-v2", None), ("clip", tmp_path / "clip")):
        features = load_network(name, weights)(images)
        with jax.enable_x64(True):
            wide = load_network(name, weights)(images)
        assert wide.dtype == np.float32
        np.testing.assert_array_equal(wide, features)


def write_clip(folder: Path, layout: str) -> Path:
    """A small CLIP with random weights in one of the layouts."""
    folder.mkdir()
    names = [line.rsplit(" [", 1) for line in REFERENCE[f"clip_{layout}_names"]]
    tensors = {name: random_tensor(name, tuple(json.loads(f"[{shape}"))) for name, shape in names}
    if layout == "hf":
        config = {
            "vision_config": {"num_attention_heads": 2},
            "text_config": {"num_attention_heads": 2},
        }
        (folder / "config.json").write_text(json.dumps(config))
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    else:
        config = {"model_cfg": {"vision_cfg": {}, "text_cfg": {"heads": 2}}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        safetensors.numpy.save_file(tensors, folder / "open_clip_model.safetensors")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"<start>": 1, "a": 5, "red": 9, "cat": 4, "dog": 7, "<end>": 63}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 63)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("layout", ["hf", "open"])
def test_clip_is_that_of_transformers_and_of_open_clip(layout: str, tmp_path: Path) -> None:
    clip = read_clip(write_clip(tmp_path / "clip", layout))
    images = random_images(2, 32)
    x = images.astype(np.float32) / 127.5 - 1
    seen = jax.jit(lambda p, x: encode_images(p, x, clip.sizes))(clip.params, x)
    close(np.asarray(seen), REFERENCE[f"clip_{layout}_vision"], 2e-4)
    read = jax.jit(lambda p, ids: encode_texts(p, ids, clip.sizes))(clip.params, CLIP_TEXTS)
    close(np.asarray(read), REFERENCE[f"clip_{layout}_text"], 2e-4)
    np.testing.assert_array_equal(clip.tokenize(["a red cat", "dog"]), CLIP_TEXTS)
    close(text_features(clip, ["a red cat", "dog"]), np.asarray(read), 1e-5)
    with pytest.warns(UserWarning, match="reads the first 5 tokens of a text; 1 of 2 are longer"):
        cut = clip.tokenize(["a red cat dog dog", "dog"])
    np.testing.assert_array_equal(cut, CLIP_TEXTS)  # with the token that ends a text
    network = load_network("clip", tmp_path / "clip")
    assert network(images).shape == (2, 48)
    assert network.name == "clip-vit-w128-8-32"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["up", "down"])
def test_resizing_is_that_of_the_protocols(name: str, kind: str) -> None:
    image = random_images(3, 64)[0] if name == "up" else random_images(1, 640, 1)[0]
    ours = resize(image[None].astype(np.float32), 224 if kind == "8-bit" else 299, kind)[0]
    ours, expected = np.asarray(ours)[::7, ::5], REFERENCE[f"resize_{name}_{kind}"]
    if kind == "8-bit":
        # PIL multiplies in fixed point: a value near a half may round the other way.
        assert np.abs(ours - expected).max() <= 1
        assert np.mean(ours != expected) < 0.01
    else:
        np.testing.assert_allclose(ours, expected, atol=5e-3)  # torch places pixels in float32


def test_resizing_keeps_what_it_must() -> None:
    for kind in KINDS:
        matrix = resize_matrix(kind, 50, 20)
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
        flat = np.full((1, 50, 50, 3), 77, np.float32)
        np.testing.assert_allclose(resize(flat, 20, kind), 77, atol=1e-3)
    stripes = np.tile(np.float32([0, 255] * 32)[:, None], (1, 64, 1, 3))
    clean, aliased = (np.asarray(resize(stripes, 16, kind)) for kind in ("clean", "tf1"))
    np.testing.assert_allclose(clean[:, 2:-2, 2:-2], 127.5, atol=2)
    assert aliased.max() == 0, "every fourth row is a dark one"


def test_files_of_torch_are_read_in_both_forms() -> None:
    expected = np.load(DATA / "torch_files.npz")
    for form in ("zip", "legacy"):
        found = read_torch_file(DATA / f"{form}.pth")
        assert set(found) == set(expected)
        for name in found:
            np.testing.assert_array_equal(found[name].astype(np.float32), expected[name])
            assert found[name].shape == expected[name].shape


def test_the_graph_of_tensorflow_is_read(tmp_path: Path) -> None:
    from tensorboard.compat.proto import graph_pb2, types_pb2

    expected = state_dict(inception.inception_v3, inception.SIZE)
    graph = graph_pb2.GraphDef()

    def add(name: str, value: np.ndarray) -> None:
        node = graph.node.add(name=name, op="Const")
        tensor = node.attr["value"].tensor
        tensor.dtype = types_pb2.DT_FLOAT
        for size in value.shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_content = value.tobytes()

    parts = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
             "running_var": "moving_variance"}  # fmt: skip
    names = layer_names()
    for name, value in expected.items():
        layer, _, kind = name.rpartition(".")
        if layer == "fc":
            add(f"softmax/{'weights' if kind == 'weight' else 'biases'}", value.T)
        elif layer.endswith(".conv"):
            add(f"{names[layer.removesuffix('.conv')]}/conv2d_params", value.transpose(2, 3, 1, 0))
        else:
            add(f"{names[layer.removesuffix('.bn')]}/batchnorm/{parts[kind]}", value)
    # Sizes of layers of the graph, from the paper's table and figures 5 to 7.
    shapes_there = {n.name: [d.size for d in n.attr["value"].tensor.tensor_shape.dim]
                    for n in graph.node}  # fmt: skip
    assert shapes_there["conv_4/conv2d_params"] == [3, 3, 80, 192]
    assert shapes_there["mixed_2/tower_1/conv_2/conv2d_params"] == [3, 3, 96, 96]
    assert shapes_there["mixed_4/tower_1/conv_4/conv2d_params"] == [1, 7, 128, 192]
    assert shapes_there["mixed_8/tower_1/conv_3/conv2d_params"] == [3, 3, 192, 192]
    assert shapes_there["mixed_10/tower_1/mixed/conv_1/conv2d_params"] == [3, 1, 384, 384]
    path = tmp_path / "classify_image_graph_def.pb"
    path.write_bytes(graph.SerializeToString())
    found, _ = read_tensors(path)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    del graph.node[0]
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(ValueError, match="no constant 'conv/conv2d_params'"):
        read_tensors(path)
    path.write_bytes(b"no graph")
    with pytest.raises(ValueError, match="no frozen graph"):
        read_tensors(path)


class Harmful:
    def __reduce__(self) -> tuple:
        return print, ("code of the file has run",)


def test_files_that_hold_other_things_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def zipped(value: object, name: str) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(value))
        return tmp_path / name

    with pytest.raises(ValueError, match=r"asks for builtins\.print"):
        read_torch_file(zipped({"weight": Harmful()}, "harmful.pth"))
    with pytest.raises(ValueError, match="holds a list, not a dictionary"):
        read_torch_file(zipped([1], "list.pth"))
    (tmp_path / "text.pth").write_text("no weights at all")
    with pytest.raises(ValueError, match=r"no file of torch\.save"):
        read_torch_file(tmp_path / "text.pth")
    content = (DATA / "zip.pth").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(
        tmp_path / "cut.pth", "w"
    ) as cut:  # fmt: skip
        for name in whole.namelist():
            data = whole.read(name)
            cut.writestr(name, data[: len(data) // 2] if name.endswith("data/0") else data)
    with pytest.raises(ValueError, match="damaged"):
        read_torch_file(tmp_path / "cut.pth")
    assert "has run" not in capsys.readouterr().out


def test_weights_of_another_network_are_refused(tmp_path: Path, inception_file: Path) -> None:
    with pytest.raises(ValueError, match=r"no tensor 'features\.0\.0\.weight'"):
        load_network("mobilenet-v2", inception_file)
    with pytest.raises(ValueError, match=r"'vgg'; choices: mobilenet-v2, inception-v3, clip"):
        load_network("vgg")
    with pytest.raises(ValueError, match="'lanczos'; choices: clean"):
        load_network("inception-v3", inception_file, "lanczos")
    with pytest.raises(UserError, match="no package ships the weights of inception-v3"):
        load_network("inception-v3")
    with pytest.raises(UserError, match="holds no CLIP"):
        load_network("clip", tmp_path)
    tensors = state_dict(mobilenet.mobilenet_v2, mobilenet.SIZE)
    tensors["features.0.1.bias"] = np.full(32, np.nan, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match=r"'features\.0\.1\.bias' has values that are not finite"):
        load_network("mobilenet-v2", tmp_path / "nan.safetensors")
    tensors["features.0.1.bias"] = np.ones(31, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"'features.0.1.bias' has shape \[31\], expected \[32\]"):
        load_network("mobilenet-v2", tmp_path / "short.safetensors")
    with pytest.raises(UserError, match="unknown way to resize 'lanczos'; choices: clean, tf1"):
        resize_matrix("lanczos", 4, 2)


def test_clips_whose_files_do_not_fit(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip", "hf")
    tower, config = {"num_attention_heads": 2}, folder / "config.json"
    for vision, text, message in (
        (
            "relu6",
            "relu6",
            r"config\.json: activation 'relu6' is not known; choices: quick_gelu",
        ),
        ("gelu", "quick_gelu", r"towers have different activations: \['gelu', 'quick_gelu'\]"),
    ):
        config.write_text(json.dumps({"vision_config": tower | {"hidden_act": vision},
                                      "text_config": tower | {"hidden_act": text}}))  # fmt: skip
        with pytest.raises(UserError, match=message):
            read_clip(folder)
    config.write_text(json.dumps({"vision_config": tower, "text_config": tower}))
    tokenizer = folder / "tokenizer.json"
    words = json.loads(tokenizer.read_text())
    words["model"]["vocab"] |= {f"word{i}": 100 + i for i in range(80)}
    tokenizer.write_text(json.dumps(words))
    with pytest.raises(UserError, match=r"json has 86 tokens, but the network knows 64: they"):
        read_clip(folder)
    tokenizer.unlink()
    with pytest.raises(UserError, match=r"clip has no tokenizer\.json, CLIP's tokenizer"):
        read_clip(folder)
    tensors, _ = read_tensors(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"no tensor 'visual_projection\.weight': no CLIP ViT"):
        read_clip(folder)


def test_features_do_not_depend_on_the_number_of_devices(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip", "hf")
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import jax, numpy as np
from random_weights import random_images
from imagen_jax.eval.features.network import load_network
assert len(jax.devices()) == 4
network = load_network("clip", {str(folder)!r})
np.save({str(tmp_path / "four.npy")!r}, network(random_images(21, 32)))
"""
    devices = {"JAX_NUM_CPU_DEVICES": "4"}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | devices)
    one = load_network("clip", folder)(random_images(21, 32))
    close(np.load(tmp_path / "four.npy"), one, 1e-5)
