"""Safety checker and watermark of DeepFloyd IF beside diffusers' own, where that is installed.

Run with torch 2.13.0, diffusers 0.42.1 and transformers 5.24.0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from deepfloyd_safety_files import CONFIG, HEADS, checker_weights, mark, write_safety
from PIL import Image
from safetensors.numpy import save_file

from imagen_jax.cascade.safety import add_watermark, clip_input, read_checker, scores
from imagen_jax.eval.features.clip import Sizes

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


def test_scores_are_those_of_diffusers(tmp_path: Path) -> None:
    from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker

    rng = np.random.default_rng(0)
    shapes = [(16, 16), (40, 40), (24, 48), (48, 32), (64, 64), (37, 53)]
    images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    weights = checker_weights()
    write_safety(tmp_path, weights)
    theirs = IFSafetyChecker(transformers.CLIPConfig(**CONFIG)).eval()
    left = theirs.load_state_dict(
        {name: torch.from_numpy(x) for name, x in weights.items()}, strict=False
    )
    assert not left.unexpected_keys
    assert all("position_ids" in name for name in left.missing_keys)
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "feature_extractor")

    def their_scores(image: np.ndarray) -> np.ndarray:
        x = processor(images=[Image.fromarray(image)], return_tensors="pt").pixel_values
        with torch.no_grad():
            features = theirs.vision_model(x)[0]
            return np.array([float(head(features)) for head in (theirs.p_head, theirs.w_head)])

    save_file(weights, tmp_path / "checker.safetensors")
    params = read_checker(tmp_path / "checker.safetensors")
    sizes = Sizes(HEADS, 0, "quick_gelu")
    ours = [np.asarray(scores(params, clip_input(params, image), sizes))[0] for image in images]
    expected = [their_scores(image) for image in images]
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (256, 256), (256, 1024), (1024, 1024)])
def test_the_watermark_is_that_of_diffusers(height: int, width: int) -> None:
    from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker

    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    theirs = IFWatermarker()
    theirs.watermark_image = torch.from_numpy(mark())
    (expected,) = theirs.apply_watermark([Image.fromarray(image)], min(height, width))
    ours = add_watermark(image, Image.fromarray(mark(), "RGBA"))
    np.testing.assert_array_equal(ours, np.asarray(expected))
