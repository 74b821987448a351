"""DeepFloyd IF's safety checker and watermark: imported, applied to images, and handed on."""

from __future__ import annotations

import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepfloyd_files as files
import numpy as np
import pytest
import safetensors.numpy
from deepfloyd_safety_files import (
    HEADS,
    LAYERS,
    PATCH,
    SIDE,
    TOWER,
    WIDTH,
    checker_weights,
    mark,
    write_safety,
)
from PIL import Image

from imagen_jax.cascade import Cascade, Folder, read_record, repeat
from imagen_jax.cascade.compiled import export_stages
from imagen_jax.cascade.safety import SafetyFilter, add_watermark, clip_input, read_checker, scores
from imagen_jax.checkpoints.cascades import export_cascade, open_cascade
from imagen_jax.checkpoints.deepfloyd import import_deepfloyd
from imagen_jax.checkpoints.safety import Safety
from imagen_jax.errors import UserError
from imagen_jax.eval.features.clip import MEAN, STDDEV, Sizes
from imagen_jax.eval.features.resize import resize
from imagen_jax.eval.job import ImageStore
from imagen_jax.main import main
from imagen_jax.page.jobs import Job
from imagen_jax.page.messages import Made, Stepped

pytestmark = pytest.mark.slow  # all need a cascade that was trained or made first


def expected_scores(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """(nsfw, watermark) of one preprocessed image [SIDE, SIDE, 3], written out in float64."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}

    def norm(name: str, h: np.ndarray) -> np.ndarray:
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        return h * w[f"{TOWER}.{name}.weight"] + w[f"{TOWER}.{name}.bias"]

    def dense(name: str, h: np.ndarray) -> np.ndarray:
        return h @ w[f"{TOWER}.{name}.weight"].T + w[f"{TOWER}.{name}.bias"]

    kernel = w[f"{TOWER}.embeddings.patch_embedding.weight"]
    rows = [w[f"{TOWER}.embeddings.class_embedding"]]
    for top in range(0, SIDE, PATCH):
        for left in range(0, SIDE, PATCH):
            patch = x[top : top + PATCH, left : left + PATCH].astype(np.float64)
            rows.append(np.einsum("ochw,hwc->o", kernel, patch))
    h = np.stack(rows) + w[f"{TOWER}.embeddings.position_embedding.weight"]
    h = norm("pre_layrnorm", h)
    each = WIDTH // HEADS
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}"
        y = norm(f"{layer}.layer_norm1", h)
        q, k, v = (dense(f"{layer}.self_attn.{name}_proj", y) for name in "qkv")
        attended = []
        for head in range(HEADS):
            part = slice(head * each, (head + 1) * each)
            logits = q[:, part] @ k[:, part].T / np.sqrt(each)
            chances = np.exp(logits - logits.max(1, keepdims=True))
            attended.append(chances / chances.sum(1, keepdims=True) @ v[:, part])
        h = h + dense(f"{layer}.self_attn.out_proj", np.concatenate(attended, 1))
        y = dense(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", h))
        h = h + dense(f"{layer}.mlp.fc2", y / (1 + np.exp(-1.702 * y)))  # quick_gelu
    features = w["vision_model.visual_projection.weight"] @ norm("post_layernorm", h[0])
    return np.array(
        [w[f"{h}.weight"][0] @ features + w[f"{h}.bias"][0] for h in ("p_head", "w_head")]
    )


def preprocessed(image: np.ndarray) -> np.ndarray:
    """A square image [h, h, 3] as CLIP takes it, by the resizing of evaluation, which is ours."""
    resized = np.asarray(resize(image[None].astype(np.float32), SIDE, "8-bit"))[0]
    return (resized / 255 - np.array(MEAN)) / np.array(STDDEV)


SMALL = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
ASKED: dict[str, Any] = {"image": SMALL, "steps": 1, "show_progress": False}
PROMPTS = ["snow", "two cats", "a photo of a dog"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Stage II without and with both, of which the checker dislikes the second image alone."""
    parent = tmp_path_factory.mktemp("safety")
    one = files.write_text_encoder(files.write_stage(parent / "one", "I"))
    two = files.write_stage(parent / "two", "II")
    import_deepfloyd([two], parent / "plain", text_encoder=one, show=lambda text: None)
    images = Cascade.load(parent / "plain", str(one)).sample(PROMPTS, **ASKED).images
    weights = checker_weights()
    found = np.stack([expected_scores(weights, preprocessed(image)) for image in images])
    others = np.delete(found[:, 0], 1).mean()
    weights["p_head.weight"] *= np.sign(found[1, 0] - others)
    found[:, 0] *= np.sign(found[1, 0] - others)
    rest = np.delete(found[:, 0], 1).max()
    assert found[1, 0] > rest + 1e-3, "the images do not differ enough for this test"
    weights["p_head.bias"][:] = 0.5 - (found[1, 0] + rest) / 2
    weights["w_head.bias"][:] = 0.4 - found[:, 1].max()
    write_safety(two, weights)
    said: list[str] = []
    import_deepfloyd([two], parent / "safe", text_encoder=one, show=said.append)
    return {"one": one, "two": two, "plain": parent / "plain", "safe": parent / "safe",
            "images": images, "weights": weights, "said": said}  # fmt: skip


def test_scores_are_those_written_out(tmp_path: Path) -> None:
    weights = checker_weights()
    safetensors.numpy.save_file(weights, tmp_path / "checker.safetensors")
    params = read_checker(tmp_path / "checker.safetensors")
    for side in (SIDE, 48, 11):
        image = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
        x = clip_input(params, image)
        np.testing.assert_allclose(np.asarray(x)[0], preprocessed(image), atol=1 / 255 / 0.26)
        ours = np.asarray(scores(params, x, Sizes(HEADS, 0, "quick_gelu")))[0]
        expected = expected_scores(weights, np.asarray(x)[0])
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_middle_square_is_seen() -> None:
    params = {"vision": {"patch": np.zeros((PATCH, 1, 1, 1)), "position": np.zeros((17, 1))}}
    image = np.random.default_rng(0).integers(0, 256, (SIDE, 2 * SIDE, 3), np.uint8)
    middle = image[:, SIDE // 2 : SIDE // 2 + SIDE]
    np.testing.assert_array_equal(clip_input(params, image), clip_input(params, middle))
    turned = image.transpose(1, 0, 2)
    np.testing.assert_array_equal(
        clip_input(params, turned), clip_input(params, middle.transpose(1, 0, 2))
    )


@pytest.mark.parametrize(
    ("shape", "side", "margin"), [((256, 256), 15, 3), ((512, 768), 37, 8), ((1024, 1024), 62, 14)]
)
def test_the_watermark_is_pasted(shape: tuple[int, int], side: int, margin: int) -> None:
    image = np.full((*shape, 3), 80, np.uint8)
    marked = add_watermark(image, Image.fromarray(mark(), "RGBA")).astype(int)
    bottom, right = shape[0] - margin, shape[1] - margin
    box = np.zeros(shape, bool)
    box[bottom - side : bottom, right - side : right] = True
    assert (marked[~box] == 80).all()
    inside = marked[bottom - side : bottom, right - side : right]
    third = side // 3
    assert (inside[:, :third] == [200, 0, 0]).all()
    half = np.array([200, 0, 0]) * 128 / 255 + 80 * 127 / 255
    assert np.abs(inside[:, -third:] - half).max() <= 1


def test_an_image_is_made_black_and_said_to_be(made: dict[str, Any], tmp_path: Path) -> None:
    assert made["said"][1] == (
        f"safety checker: found in {made['two'] / 'safety_checker'}; "
        f"watermark: found in {made['two'] / 'watermarker'}"
    )
    cascade = Cascade.load(made["safe"], str(made["one"]))
    with pytest.warns(UserWarning, match=r"^1 of 3 images were made black .*\(1 nsfw\)$"):
        samples = cascade.sample(PROMPTS, intermediates=True, **ASKED)
    assert samples.black == ["", "nsfw", ""]
    for i, image in enumerate(samples.images):
        clean = np.zeros_like(image) if i == 1 else made["images"][i]
        np.testing.assert_array_equal(image[:31], clean[:31])
        np.testing.assert_array_equal(image[:, :31], clean[:, :31])
        assert image[31, 31, 0] > 100, "the watermark, of one pixel"
    assert not samples.intermediates["sr"][:, 1].any()
    assert samples.intermediates["sr"][:, 0].any()
    assert samples[1:].black == ["nsfw", ""]
    assert "black: nsfw" in samples._repr_html_()
    samples.save(tmp_path / "out")
    said = [read_record(tmp_path / "out" / f"000{i}.png") for i in range(3)]
    assert [record.get("black") for record in said] == [None, "nsfw", None]
    assert all(len(said[0]["safety"][name]) == 16 for name in ("safety_checker", "watermark"))
    with Folder(tmp_path / "out", [samples.request]) as folder:  # resumes, and counts again
        folder.make(cascade, show_progress=False)
        assert (folder.written, folder.black()) == ([], ["", "nsfw", ""])
    again = cascade.run(repeat(cascade, said[1], SMALL), show_progress=False)
    np.testing.assert_array_equal(again.images[0], samples.images[1])
    with pytest.raises(UserError, match="made with another safety checker or watermark"):
        repeat(Cascade.load(made["safe"], str(made["one"]), safety_checker=False), said[1], SMALL)


def test_the_checker_can_be_left_out(
    made: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(SMALL).save(tmp_path / "small.png")
    argv = ["sample", "--workdir", str(made["safe"]), "--encoder-weights", str(made["one"]),
            "--image", str(tmp_path / "small.png"), "--steps", "1", *PROMPTS]  # fmt: skip
    assert main([*argv, "--output", str(tmp_path / "on")]) == 0
    assert "1 of 3 images were made black by the safety checker" in capsys.readouterr().out
    assert main([*argv, "--output", str(tmp_path / "off"), "--no-safety-checker"]) == 0
    assert "black" not in capsys.readouterr().out
    record = read_record(tmp_path / "off" / "0001.png")
    assert record["safety"]["safety_checker"] is None
    assert record["safety"]["watermark"] is not None
    seen = np.asarray(Image.open(tmp_path / "off" / "0001.png"))
    np.testing.assert_array_equal(seen[:31], made["images"][1][:31])
    with pytest.raises(UserError, match="cannot be turned off: the cascade has none"):
        Cascade.load(made["plain"], str(made["one"]), safety_checker=False)


def test_other_cascades_have_neither(made: dict[str, Any]) -> None:
    cascade = Cascade.load(made["plain"], str(made["one"]))
    assert (cascade.applied, cascade.safety_filter) == (None, None)
    request = cascade.request(["snow"], image=SMALL)
    assert "safety" not in request.record(0)
    assert cascade.run(request, show_progress=False).black == [""]


def test_low_memory_frees_the_checker(made: dict[str, Any]) -> None:
    cascade = Cascade.load(made["safe"], str(made["one"]), low_memory=True)
    request = cascade.request(PROMPTS, image=SMALL, steps=1)
    assert cascade.run(request, show_progress=False).black == ["", "nsfw", ""]
    assert cascade.safety_filter is not None
    assert cascade.safety_filter._params is None


def test_export_hands_both_on(made: dict[str, Any], tmp_path: Path) -> None:
    written = export_cascade(made["safe"], tmp_path / "again", dtype="float32")
    assert [path.name for path in written] == [
        "cascade.json", "sr.safetensors", "safety_checker.safetensors", "watermark.png",
    ]  # fmt: skip
    one, two = open_cascade(made["safe"]).safety, open_cascade(tmp_path / "again").safety
    assert one is not None
    assert two is not None
    assert (one.digests, one.record()) == (two.digests, two.record())
    (tmp_path / "again" / "watermark.png").unlink()
    with pytest.raises(UserError, match=r"lacks watermark\.png, which is applied to its images"):
        open_cascade(tmp_path / "again")
    with pytest.warns(UserWarning, match="the programs apply neither"):
        export_stages(open_cascade(made["safe"]), tmp_path / "compiled")


def test_an_evaluation_counts_black_images(made: dict[str, Any], tmp_path: Path) -> None:
    cascade = Cascade.load(made["safe"], str(made["one"]))
    request = cascade.request(PROMPTS, image=SMALL, steps=1)
    # Stage II alone, as if it made the images from text.
    cascade.request = lambda *_, **__: request  # type: ignore[method-assign]
    text = cascade.stages[0].text
    cascade.stages = [types.SimpleNamespace(low_res=None, text=text)]  # type: ignore[list-item]
    store = ImageStore(tmp_path, PROMPTS, [0, 0, 0], 32)
    for _ in range(2):  # the second finds the images there
        with pytest.warns(UserWarning, match="1 of 3 .*, and count in all scores"):
            store.sample(cascade)
    assert store.black() == ["", "nsfw", ""]


def test_the_page_keeps_nothing_of_a_black_image(made: dict[str, Any]) -> None:
    cascade = Cascade.load(made["safe"], str(made["one"]))
    job = Job(None, cascade.request(PROMPTS[:2], image=SMALL))  # type: ignore[arg-type]
    black = np.zeros((8, 8, 3), np.uint8)
    shown = {0: "seen 0", 1: "seen 1"}
    job.take(Stepped("base", 1, 1, shown))
    job.take(Made("base", False, {0: SMALL, 1: SMALL}, shown, shown, {}))
    job.take(Stepped("sr", 1, 1, shown))
    job.take(Made("sr", True, {0: SMALL, 1: black}, {0: "a", 1: "b"}, {}, {1: "nsfw"}))
    assert [[frame.url for frame in row] for row in job.frames] == [["seen 0"] * 2, ["b"]]
    assert job.stages["base"].keys() == job.urls["base"].keys() == {0}
    assert (job.record(1)["black"], "black" in job.record(0)) == ("nsfw", False)


def test_weights_in_float16_are_read(tmp_path: Path) -> None:
    one = files.write_text_encoder(files.write_stage(tmp_path / "one", "I"))
    write_safety(one, checker_weights(), "float16")
    shutil.rmtree(one / "watermarker")
    said: list[str] = []
    paths = import_deepfloyd([one], tmp_path / "out", variant=None, show=said.append)
    assert paths[-1].name == "safety_checker.safetensors"
    assert said[1].endswith("watermark: not found, images get none")
    stored = safetensors.numpy.load_file(paths[-1])
    assert {str(x.dtype) for x in stored.values()} == {"float16"}
    safety = open_cascade(tmp_path / "out").safety
    assert safety is not None
    assert safety.watermark is None
    _, reasons = SafetyFilter(safety)(np.zeros((2, 8, 8, 3), np.uint8))
    assert len(reasons) == 2


def change(path: Path, of: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = safetensors.numpy.load_file(path)
    of(tensors)
    safetensors.numpy.save_file(tensors, path)


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


MODEL, MARK = "safety_checker/model.safetensors", "watermarker/diffusion_pytorch_model.safetensors"
DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda p: (p / MODEL).rename(p / "safety_checker/pytorch_model.bin"),
     r"no model\.safetensors .*pytorch_model\.bin is a pickle"),
    (lambda p: (p / MARK).rename(p / "watermarker/diffusion_pytorch_model.bin"), "is a pickle"),
    (lambda p: (p / MODEL).write_bytes((p / MODEL).read_bytes()[:-9]), "damaged: .*again"),
    (lambda p: change(p / MODEL, lambda x: x.update({"p_head.bias": np.zeros(1, np.int8)})),
     r"p_head\.bias is I8; .*Quantised"),
    (lambda p: change(p / MODEL, lambda x: x.update({"p_head.bias": np.full(1, np.nan, "f4")})),
     r"p_head\.bias holds values that are not finite"),
    (lambda p: change(p / MODEL, lambda x: x.pop("w_head.bias")), r"nothing for w_head\.bias"),
    (lambda p: change(p / MODEL, lambda x: x.update(more=np.zeros(1, "f4"))), "more .* no place"),
    (lambda p: change(p / MODEL, lambda x: x.update({"p_head.weight": np.zeros((1, 9), "f4")})),
     r"p_head\.weight is \[1, 9\], not \[1, 12\]"),
    (lambda p: rewrite(p / "safety_checker/config.json", vision_config=None), "no vision_config"),
    (lambda p: rewrite(p / "safety_checker/config.json", vision_config={"hidden_size": "wide"}),
     "hidden_size is 'wide'"),
    (lambda p: rewrite(p / "safety_checker/config.json", vision_config={"hidden_act": "relu"}),
     "hidden_act is 'relu'; choices: quick_gelu, gelu"),
    (lambda p: rewrite(p / "feature_extractor/preprocessor_config.json", resample=2),
     "resample is 2, and CLIP's is 3"),
    (lambda p: change(p / MARK, lambda x: x.update(watermark_image=np.zeros((9, 9, 4), "u1"))),
     r"a watermark is watermark_image \[62, 62, 4\]"),
    (lambda p: change(p / MARK, lambda x: x.update(
        watermark_image=np.full((62, 62, 4), 300, "f4"))), "not in 0 ... 255"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_files(
    damage: Callable[[Path], Any], message: str, made: dict[str, Any], tmp_path: Path
) -> None:
    two = Path(shutil.copytree(made["two"], tmp_path / "two"))
    damage(two)
    with pytest.raises(UserError, match=message):
        import_deepfloyd([two], tmp_path / "out", text_encoder=made["one"], show=lambda text: None)
    assert not list(tmp_path.glob("out/*"))


def test_a_damaged_watermark_of_a_cascade(tmp_path: Path) -> None:
    (tmp_path / "watermark.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    safety = Safety(None, 1, "", tmp_path / "watermark.png")
    with pytest.raises(UserError, match="is damaged, or no PNG"):
        SafetyFilter(safety)(np.zeros((1, 64, 64, 3), np.uint8))
