"""Cascades on disk: trained in part, exported, still in training, or none at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from imagen_jax.cascade import Cascade
from imagen_jax.checkpoints.cascades import export_cascade, open_cascade
from imagen_jax.checkpoints.claim import open_origin
from imagen_jax.checkpoints.lora import export_lora
from imagen_jax.errors import UserError
from imagen_jax.tensor_files import open_safetensors
from imagen_jax.train.loop import train


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.workdir(), tmp_path / "workdir"))


def test_a_base_stage_alone_is_sampled_and_exported(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(workdir / "sr" / "checkpoints")
    cascade = Cascade.load(workdir)
    assert "not trained yet: sr; there is base" in capsys.readouterr().err
    assert cascade.size == tiny.BASE
    export_cascade(workdir, tmp_path / "exported", dtype="float32")
    made = [
        each.sample("a red image", seed=1, show_progress=False).images
        for each in (cascade, Cascade.load(tmp_path / "exported"))
    ]
    assert made[0].shape == (1, tiny.BASE, tiny.BASE, 3)
    np.testing.assert_array_equal(*made)


def test_further_training_changes_no_opened_cascade(workdir: Path) -> None:
    cascade = open_cascade(workdir)
    base = cascade.stages[0]
    before, fingerprint = cascade.weights(base), cascade.fingerprint(base)
    checkpoints = workdir / "base" / "checkpoints"
    shutil.copytree(workdir / "sr" / "checkpoints" / "2", checkpoints / "3")
    tiny.assert_identical(cascade.weights(base), before)
    assert cascade.fingerprint(base) == fingerprint
    assert open_cascade(workdir).fingerprint(base) != fingerprint
    shutil.rmtree(checkpoints / "2")
    assert cascade.fingerprint(base) == fingerprint
    with pytest.raises(UserError, match=rf"{checkpoints}/2 was removed since it was looked up"):
        cascade.weights(base)


def test_an_exported_file_that_changes_is_not_mixed_up(workdir: Path, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    export_cascade(workdir, exported)
    cascade = open_cascade(exported)
    base = cascade.stages[0]
    cascade.weights(base)
    fingerprint = cascade.fingerprint(base)
    shutil.copy(exported / "sr.safetensors", exported / "base.safetensors")
    assert cascade.fingerprint(base) == fingerprint
    with pytest.raises(UserError, match=r"base\.safetensors has changed since it was read first"):
        cascade.weights(base)


def test_an_export_overwrites_nothing(workdir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a work directory, with the stages base, sr; export"):
        export_cascade(workdir, workdir)
    assert not (workdir / "cascade.json").exists()
    export_cascade(workdir, tmp_path / "exported")
    with pytest.raises(UserError, match=r"has cascade\.json, base\.safetensors, sr.* already"):
        export_cascade(workdir, tmp_path / "exported")
    shutil.copy(tmp_path / "exported" / "cascade.json", workdir)
    with pytest.raises(
        UserError, match=r"holds both an exported cascade .* and stages in training"
    ):
        open_cascade(workdir)


def test_directories_that_are_no_cascade(workdir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"the folder of one stage; give the work .* {workdir}"):
        open_cascade(workdir / "base")
    with pytest.raises(UserError, match=r"s3://bucket/run is an address.* choices: gs://bucket/fo"):
        open_cascade("s3://bucket/run")
    with pytest.raises(UserError, match="no stage 'base64' to start from in demo; it has base"):
        open_origin("demo", "base64")
    exported = tmp_path / "exported"
    export_cascade(workdir, exported)
    record = (exported / "cascade.json").read_text()
    for changes, message in (
        ({"source": None}, "describes no cascade: TypeError: no stages, or no source"),
        ({"encoder": {}}, "describes no cascade: KeyError: 'name'"),
    ):
        (exported / "cascade.json").write_text(json.dumps(json.loads(record) | changes))
        with pytest.raises(UserError, match=message):
            open_cascade(exported)
    (exported / "cascade.json").write_text(record)
    shutil.copy(exported / "base.safetensors", exported / "sr.safetensors")
    cascade = open_cascade(exported)
    with pytest.raises(UserError, match=r"stage 'sr' .* do not fit its network \(there != wanted;"):
        cascade.weights(cascade.stages[1])
    shutil.copytree(workdir, tmp_path / "two")
    path = tmp_path / "two" / "sr" / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder": {"name": "other"}}))
    with pytest.raises(UserError, match=r"were trained with different text encoders: .*'other'"):
        open_cascade(tmp_path / "two")
    (exported / "base.safetensors").unlink()
    with pytest.raises(UserError, match=r"the cascade in .*exported lacks base\.safetensors"):
        cascade.weights(cascade.stages[0])
    assert open_origin("demo", "base").stages[0].name == "base"


def test_a_home_directory_is_expanded(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(workdir.parent))
    assert len(open_cascade("~/workdir").stages) == 2


@pytest.mark.slow
def test_what_is_applied_to_images_stays_with_weights_that_are_trained_on(tmp_path: Path) -> None:
    origin = tiny.write_cascade(tmp_path / "origin", tiny.encoder())
    record = json.loads((origin / "cascade.json").read_text())
    licence = {"attribution": "of somebody", "terms_shown": "2026-01-01"}
    record |= {"watermark": "watermark.png", "license": licence}
    (origin / "cascade.json").write_text(json.dumps(record))
    Image.new("RGBA", (62, 62), (255, 0, 0, 255)).save(origin / "watermark.png")
    lora = ("stages.base.train.lora_rank=2", "stages.base.train.ema_decay=0")
    config = tiny.config(*tiny.WITHOUT_SAMPLES, "text.max_length=32", *lora)
    for name, given in (("base", origin), ("base", None)):  # trained, and asked for once more
        train(config, name, tiny.embeddings(), tmp_path / "run", init_from=given)
    export_cascade(tmp_path / "run", tmp_path / "exported")
    for place in (tmp_path / "run", tmp_path / "exported"):
        cascade = open_cascade(place)
        assert cascade.safety is not None
        assert cascade.safety.watermark is not None
        assert cascade.safety.watermark.parent != origin
        assert cascade.safety.watermark.read_bytes() == (origin / "watermark.png").read_bytes()
        assert cascade.license == licence
    export_lora(tmp_path / "run", tmp_path / "change.safetensors")
    with open_safetensors(tmp_path / "change.safetensors") as file:
        assert json.loads(file.metadata()["license"]) == licence
