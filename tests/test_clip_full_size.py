"""CLIP at its real size with its real vocabulary, where open_clip and transformers are installed.

pip install torch==2.14.1 torchvision==0.29.1 transformers ftfy regex
pip install --no-deps open_clip_torch timm
pytest tests/test_clip_full_size.py
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from random_weights import random_images

from imagen_jax.eval.features.clip import encode_images, encode_texts, preprocess
from imagen_jax.eval.features.clip_weights import Clip, read_clip
from imagen_jax.eval.features.network import load_network

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

TEXTS = [
    "a red apple left of a blue circle",
    "A storefront with 'Hello World' written on it!!",
    "naïve café, 3.14159 — déjà-vu & pneumonoultramicroscopicsilicovolcanoconiosis",
    "",
    "two  spaces\tand a tab; 東京 in the rain",
]


def write_tokenizer(folder: Path) -> None:
    """CLIP's vocabulary, which comes with open_clip, in the form of Hugging Face."""
    packed = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    own = open_clip.tokenizer.SimpleTokenizer()
    ids = dict(own.encoder)
    for theirs, ours in (("start", "<|startoftext|>"), ("end", "<|endoftext|>")):
        ids[ours] = ids.pop(f"<{theirs}_of_text>")
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    slow = transformers.CLIPTokenizerFast.from_pretrained(folder)
    slow.backend_tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module", params=["transformers", "open_clip"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """(their network, our reading of the weights that they saved), ViT-B/32, random weights."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    if request.param == "transformers":
        network = transformers.CLIPModel(transformers.CLIPConfig()).eval()
        network.save_pretrained(folder)
    else:
        from safetensors.torch import save_file

        network = open_clip.create_model("ViT-B-32", pretrained=None).eval()
        save_file(network.state_dict(), folder / "open_clip_model.safetensors")
        config = {"model_cfg": open_clip.get_model_config("ViT-B-32")}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return network, read_clip(folder), folder


def test_features(both: tuple[torch.nn.Module, Clip, Path]) -> None:
    network, clip, folder = both
    images = random_images(2, 224)
    x = np.asarray(preprocess(images.astype(np.float32)))
    ids = clip.tokenize(TEXTS)
    # Behind the end of a text open_clip has zeros, and transformers is told by a mask.
    with torch.no_grad():
        seen, read = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(ids).long()
        if hasattr(network, "encode_image"):
            expected = network.encode_image(seen), network.encode_text(read)
        else:
            expected = (
                network.visual_projection(network.vision_model(seen).pooler_output),
                network.text_projection(network.text_model(read).pooler_output),
            )
    ours = (
        jax.jit(lambda p, x: encode_images(p, x, clip.sizes))(clip.params, x),
        jax.jit(lambda p, ids: encode_texts(p, ids, clip.sizes))(clip.params, ids),
    )
    for mine, theirs in zip(ours, expected, strict=True):
        size = np.abs(theirs.numpy()).mean()
        error = np.abs(np.asarray(mine) - theirs.numpy()).max() / size
        print(f"largest difference {error:.1e} of the mean size of features")
        assert error < 1e-3
    assert load_network("clip", folder).name == "clip-vit-b-32"


def test_tokens(both: tuple[torch.nn.Module, Clip, Path]) -> None:
    _, clip, _ = both
    theirs = open_clip.get_tokenizer("ViT-B-32")(TEXTS).numpy()
    np.testing.assert_array_equal(clip.tokenize(TEXTS), theirs)
