"""`imagen import deepfloyd`: files in diffusers' layout become a cascade; others are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepfloyd_files as files
import numpy as np
import pytest
import safetensors.numpy

import imagen_jax.main as main_lib
from imagen_jax.cascade import Cascade
from imagen_jax.checkpoints.cascades import export_cascade, open_cascade
from imagen_jax.checkpoints.deepfloyd import ATTRIBUTION, TERMS, import_deepfloyd
from imagen_jax.checkpoints.exported import flat_weights
from imagen_jax.errors import UserError


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stage I with T5 and a licence, and stage II, as a user downloads them."""
    parent = tmp_path_factory.mktemp("hub")
    one = files.write_stage(parent / "one", "I")
    files.write_text_encoder(one)
    (one / "LICENSE.md").write_text("The licence.")
    return one, files.write_stage(parent / "two", "II", "float16", "fp16", shards=3)


@pytest.fixture(scope="module")
def imported(pipelines: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("imported") / "cascade"
    argv = ["import", "deepfloyd", *map(str, pipelines), "--output", str(output)]
    assert main_lib.main(argv) == 0
    return output


@pytest.fixture
def copies(pipelines: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The pipelines, to be damaged."""
    one, two = (Path(shutil.copytree(path, tmp_path / path.name)) for path in pipelines)
    return one, two


@pytest.mark.slow
def test_imported_weights_are_those_of_the_files(imported: Path) -> None:
    cascade = open_cascade(imported)
    base, sr = cascade.stages
    assert (base.resolution, base.low_res, sr.resolution, sr.low_res) == (8, None, 32, 8)
    assert base.sample.threshold_cap == 1.5
    assert (base.sample.threshold, sr.sample.threshold) == ("dynamic", "static")
    assert (base.sample.percentile, base.sample.guidance, sr.sample.guidance) == (95.0, 7.0, 4.0)
    flat = flat_weights(cascade.weights(base))
    kernel = files.unet_weights("I")["down_blocks.1.resnets.0.conv1.weight"]
    np.testing.assert_array_equal(
        flat["down_1_0/residual/conv_in/conv/kernel"], kernel.transpose(2, 3, 1, 0)
    )
    states = np.load(Path(__file__).parent / "testdata" / "deepfloyd_text.npz")["states"]
    np.testing.assert_allclose(flat["conditioning/null_text"], states[0], atol=5e-5)
    stored = safetensors.numpy.load_file(imported / "sr.safetensors")
    assert stored["conv_in/conv/kernel"].dtype == np.float16
    assert stored["conv_in/conv/kernel"].shape == (3, 3, 6, 32)
    narrow = cascade.weights(sr, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in flat_weights(narrow).values()} == {"bfloat16"}


@pytest.mark.slow
def test_the_licence_is_shown_recorded_and_handed_on(
    imported: Path, pipelines: tuple[Path, Path], tmp_path: Path
) -> None:
    assert (imported / "LICENSE.txt").read_text() == "The licence."
    assert ATTRIBUTION in (imported / "NOTICE.txt").read_text()
    record = json.loads((imported / "cascade.json").read_text())
    assert record["license"]["attribution"] == ATTRIBUTION
    assert record["license"]["terms_shown"].startswith("20")
    shown: list[str] = []
    second = import_deepfloyd(
        [pipelines[1]], tmp_path / "sr", text_encoder=pipelines[0], show=shown.append
    )
    unchecked = "not found, images go unchecked; watermark: not found, images get none"
    assert shown == [TERMS, f"safety checker: {unchecked}"]
    assert "no LICENSE" in (tmp_path / "sr" / "NOTICE.txt").read_text()
    assert [path.name for path in second] == ["cascade.json", "NOTICE.txt", "sr.safetensors"]
    export_cascade(imported, tmp_path / "again", dtype="float32")
    again = json.loads((tmp_path / "again" / "cascade.json").read_text())
    assert again["license"] == record["license"]


@pytest.mark.slow
def test_sampling_editing_and_enlarging(imported: Path, pipelines: tuple[Path, Path]) -> None:
    cascade = Cascade.load(imported, str(pipelines[0]))
    few = {"steps": 2, "show_progress": False}
    made = cascade.sample(["A photo of a dog"], seed=3, negative_prompts="snow", **few)
    assert made.images.shape == (1, 32, 32, 3)
    again = cascade.sample(["a photo of a dog "], seed=3, negative_prompts="snow", **few)
    np.testing.assert_array_equal(made.images, again.images)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    edited = cascade.sample(["two cats"], image=made.images[0], mask=mask, **few)
    np.testing.assert_array_equal(edited.images[0][~mask], made.images[0][~mask])
    alone = Cascade.load(imported, str(pipelines[0]), stages=["sr"])
    small = np.full((8, 8, 3), 90, np.uint8)
    larger = alone.sample(
        ["two cats"], image=small, sampler="dpmpp_2m", time_grid="uniform_t", **few
    )
    assert larger.images.shape == (1, 32, 32, 3)


@pytest.mark.slow
def test_one_variant_is_read(copies: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = copies
    files.write_stage(two, "II", "float32", "ema")
    with pytest.raises(UserError, match=r"several variants .*'ema', 'fp16'; choose one"):
        import_deepfloyd([two], tmp_path / "out", text_encoder=one)
    with pytest.raises(UserError, match="no variant 'fp8' of the weights"):
        import_deepfloyd([two], tmp_path / "out", text_encoder=one, variant="fp8")
    import_deepfloyd([two], tmp_path / "out", text_encoder=one, variant="ema")
    kernel = safetensors.numpy.load_file(tmp_path / "out" / "sr.safetensors")["conv_in/conv/kernel"]
    assert kernel.dtype == np.float32


def tensors_of(one: Path) -> tuple[Path, dict[str, np.ndarray]]:
    path = one / "unet" / "diffusion_pytorch_model.safetensors"
    return path, safetensors.numpy.load_file(path)


def truncated(one: Path, two: Path) -> None:
    path, _ = tensors_of(one)
    path.write_bytes(path.read_bytes()[:-100])


def pickled(one: Path, two: Path) -> None:
    path, _ = tensors_of(one)
    path.rename(path.with_suffix(".bin"))


def changed(one: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    path, tensors = tensors_of(one)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def missing(one: Path, two: Path) -> None:
    changed(one, lambda tensors: tensors.pop("conv_in.bias"))


def unknown(one: Path, two: Path) -> None:
    changed(one, lambda tensors: tensors.update(extra=np.zeros(2, np.float32)))


def wrong_shape(one: Path, two: Path) -> None:
    changed(one, lambda tensors: tensors.update({"conv_in.bias": np.zeros(7, np.float32)}))


def quantised(one: Path, two: Path) -> None:
    changed(one, lambda tensors: tensors.update({"conv_in.bias": np.zeros(32, np.int8)}))


def not_finite(one: Path, two: Path) -> None:
    bad = np.full(32, np.nan, np.float32)
    changed(one, lambda tensors: tensors.update({"conv_in.bias": bad}))


def no_config(one: Path, two: Path) -> None:
    (one / "unet" / "config.json").unlink()


def damaged_config(one: Path, two: Path) -> None:
    (one / "unet" / "config.json").write_text("{")


def other_scheduler(one: Path, two: Path) -> None:
    path = one / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(files.SCHEDULER | {"beta_schedule": "linear"}))


def no_text_encoder(one: Path, two: Path) -> None:
    shutil.rmtree(one / "text_encoder")


def hostile_index(one: Path, two: Path) -> None:
    index = next((two / "unet").glob("*.json.index*"), None) or next(
        (two / "unet").glob("*index*.json")
    )
    record = json.loads(index.read_text())
    record["weight_map"]["conv_in.bias"] = "../../one/unet/diffusion_pytorch_model.safetensors"
    index.write_text(json.dumps(record))


def change_index(two: Path, change: Callable[[dict[str, str]], Any]) -> None:
    (index,) = (two / "unet").glob("*index*.json")
    record = json.loads(index.read_text())
    change(record["weight_map"])
    index.write_text(json.dumps(record))


def empty_index(one: Path, two: Path) -> None:
    change_index(two, lambda placed: placed.clear())


def index_of_more(one: Path, two: Path) -> None:
    change_index(two, lambda placed: placed.update(more=placed["conv_in.bias"]))


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def other_width(one: Path, two: Path) -> None:
    change_config(two, encoder_hid_dim=16)


def no_size(one: Path, two: Path) -> None:
    change_config(one, sample_size="large")


def lost_shard(one: Path, two: Path) -> None:
    next((two / "unet").glob("*-00002-of-00003.safetensors")).unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "is damaged: .*download it again"),
        (pickled, r"diffusion_pytorch_model\.bin is a pickle"),
        (missing, r"nothing for conv_in/conv/bias \[32\]"),
        (unknown, r"extra \[2\] has no place"),
        (wrong_shape, r"conv_in\.bias \[7\] does not fit conv_in/conv/bias \[32\]"),
        (quantised, r"conv_in\.bias is I8; .*Quantised"),
        (not_finite, r"conv_in\.bias holds values that are not finite"),
        (no_config, r"no unet/config\.json in"),
        (damaged_config, r"config\.json is not JSON"),
        (other_scheduler, r"beta_schedule is 'linear'"),
        (no_text_encoder, r"none of the given directories has text_encoder/"),
        (hostile_index, r"names '\.\./\.\./one/.*', which is no file beside it"),
        (empty_index, r"index.*json is damaged: it has no weight_map"),
        (index_of_more, r"lacks more, which the index says that it has"),
        (other_width, "the stages read text of different widths; they do not belong together"),
        (no_size, r"config\.json: sample_size is 'large'; it must be a whole number from 1"),
        (lost_shard, r"there is no .*-00002-of-00003\.safetensors, which the index"),
    ],
)
def test_damaged_and_hostile_files(
    damage: Callable[[Path, Path], None], message: str, copies: tuple[Path, Path], tmp_path: Path
) -> None:
    damage(*copies)
    with pytest.raises(UserError, match=message):
        import_deepfloyd(copies, tmp_path / "out", show=lambda text: None)
    assert not list(tmp_path.glob("out/*"))


def test_stages_are_told_apart(pipelines: tuple[Path, Path], tmp_path: Path) -> None:
    one, _ = pipelines
    with pytest.raises(UserError, match=r"one of each; got .*\(stage I\), .*\(stage I\)"):
        import_deepfloyd([one, one / "unet"], tmp_path / "out")


def test_an_import_overwrites_nothing(imported: Path, pipelines: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"has cascade\.json, .* already"):
        import_deepfloyd(pipelines, imported)
