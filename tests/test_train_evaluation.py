"""Evaluation of samples while a stage trains, on real images in the place of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from scipy import ndimage

from imagen_jax import sharding
from imagen_jax.data.scenes.levels import get_level
from imagen_jax.data.scenes.render import render
from imagen_jax.data.scenes.sampling import sample_scene
from imagen_jax.data.sources import SceneSource
from imagen_jax.embed import embed
from imagen_jax.eval.feature_sets import compare, compute_features
from imagen_jax.eval.features.network import load_network
from imagen_jax.eval.images import RenderedScenes
from imagen_jax.stage import Stage
from imagen_jax.train.evaluation import Evaluation
from imagen_jax.train.samples import FixedSampler

SIDE, COUNT, LONGEST = 64, 20, 40
LEVEL = get_level("quickstart")


def stage(*changes: str) -> Stage:
    return tiny.stage(
        "base", f"stages.base.resolution={SIDE}", f"stages.base.schedule.image_size={SIDE}",
        f"text.max_length={LONGEST}", "stages.base.train.evaluate_every=2",
        f"stages.base.train.evaluate_images={COUNT}",
        *(f"stages.base.train.{change}" for change in changes),
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of which training sees other compositions, in the split "validation"."""
    directory = tmp_path_factory.mktemp("evaluation") / "embeddings"
    source = SceneSource("quickstart", "heldout", 3, 2 * COUNT, SIDE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "MAX_TOKENS", LONGEST)
        embed(
            source, directory, encoder=tiny.encoder(), split="validation", image_size=SIDE,
            num_shards=3,
        )  # fmt: skip
    return directory


@pytest.mark.slow
def test_real_images_reach_the_floor_and_the_ceiling(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = [sample_scene(LEVEL, "heldout", 3, i) for i in range(2 * COUNT)]
    true = np.stack([render(scene, SIDE) for scene in scenes[::2]])
    evaluation = Evaluation(stage("best_metric=all_correct"), str(data), sharding.make_mesh())

    def of(images: np.ndarray) -> dict[str, float]:
        monkeypatch.setattr(FixedSampler, "__call__", lambda self, params: images)
        return evaluation({})

    found = of(true)
    assert set(found) == {
        "frechet_mobilenet_v2", "frechet_mobilenet_v2_floor", "kernel_mobilenet_v2",
        "kernel_mobilenet_v2_floor", "all_correct", "all_correct_ceiling",
    }  # fmt: skip
    network = load_network("mobilenet-v2")
    captioned, others = (
        compute_features(network, RenderedScenes(str(i), scenes[i::2], SIDE)) for i in range(2)
    )
    expected = compare(captioned, others, None, resamples=2)
    for name in ("frechet", "kernel"):
        value = found[f"{name}_mobilenet_v2"]
        assert value == found[f"{name}_mobilenet_v2_floor"]
        assert value == pytest.approx(expected[name]["value"], rel=1e-4, abs=1e-4)
    assert found["all_correct"] == found["all_correct_ceiling"] > 0.9

    swapped = of(np.roll(true, 1, axis=0))
    assert swapped["all_correct"] < 0.2 < swapped["all_correct_ceiling"]
    assert swapped["frechet_mobilenet_v2"] == pytest.approx(found["frechet_mobilenet_v2"], rel=1e-4)
    blurred = of(ndimage.gaussian_filter(true, (0, 3, 3, 0)))
    for name in ("frechet_mobilenet_v2", "kernel_mobilenet_v2"):
        assert blurred[name] > found[name] == blurred[f"{name}_floor"]


def test_data_that_cannot_be_evaluated_on(data: Path, tmp_path: Path) -> None:
    mesh = sharding.make_mesh()
    with pytest.raises(ValueError, match=r"evaluate_images is 21, .*: 42 .* wanted.* has 40"):
        Evaluation(stage("evaluate_images=21"), str(data), mesh)
    colours = tiny.embed_colours(tmp_path / "colours")
    small = ("base", "stages.base.train.evaluate_every=2", "stages.base.train.evaluate_images=8")
    with pytest.raises(ValueError, match=r"evaluate_every is 2.*embed --split validation"):
        Evaluation(tiny.stage(*small), str(colours), mesh)
    embed(
        tiny.Colours(), colours, encoder=tiny.encoder(),
        split="validation", image_size=tiny.SR, num_shards=1,
    )  # fmt: skip
    chosen = tiny.stage(*small, "stages.base.train.best_metric=all_correct")
    with pytest.raises(ValueError, match="'all_correct', which is measured on built-in scenes"):
        Evaluation(chosen, str(colours), mesh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["best_metric=fid"], "best_metric is 'fid'; choices: validation_loss, frechet_mobilen"),
        (["evaluate_every=3"], "evaluate_every is 3; it must be a multiple of checkpoint_every, 2"),
        (["keep_best=1"], "keep_best is 1, but validation_batches is 0: .* validation_loss"),
        (
            ["keep_best=1", "best_metric=all_correct", "evaluate_every=0"],
            "keep_best is 1, but evaluate_every is 0: .* all_correct",
        ),
    ],
)
def test_settings_that_do_not_fit_together(changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stage(*changes)
