"""`imagen import deepfloyd --from-hub`: by huggingface_hub, from a server that speaks so."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import deepfloyd_files as files
import pytest

from imagen_jax.checkpoints.hub import _wanted, download_pipeline
from imagen_jax.errors import UserError
from imagen_jax.main import main

COMMIT = "0123456789" * 4


class Hub(http.server.BaseHTTPRequestHandler):
    """Repositories below a folder; owner/gated is not given to anybody."""

    protocol_version = "HTTP/1.1"
    root: Path
    asked: list[str]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        if path.startswith("api/models/"):
            name = "/".join(path.split("/")[2:4])
            folder = self.root / name
            if name == "owner/gated":
                self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            elif not folder.is_dir():
                self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
            else:
                self.answer(200, json.dumps(self.listed(name, path)).encode())
            return
        owner, name, _, _, *rest = path.split("/")
        content = self.root.joinpath(owner, name, *rest).read_bytes()
        if self.command == "GET":
            self.asked.append("/".join((name, *rest)))
        self.answer(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    do_HEAD = do_GET

    def listed(self, name: str, path: str) -> object:
        """The hub's answer about a repository, or about its files."""
        folder = self.root / name
        found = {str(p.relative_to(folder)): p.read_bytes()
                 for p in sorted(folder.rglob("*")) if p.is_file()}  # fmt: skip
        if "/tree/" in path:
            return [{"type": "file", "path": file, "size": len(content),
                     "oid": hashlib.sha1(content).hexdigest()}
                    for file, content in found.items()]  # fmt: skip
        siblings = [{"rfilename": file} for file in found]
        return {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        sent = {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **(headers or {})}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """(environment of commands that use the server, files that were asked for)."""
    root = tmp_path / "hub"
    one = files.write_stage(root / "owner" / "one", "I", "float16", "fp16")
    files.write_stage(root / "owner" / "one", "I")
    files.write_text_encoder(one)
    (one / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    (one / "LICENSE.md").write_text("The licence.")
    two = files.write_stage(root / "owner" / "two", "II", "float16", "fp16", shards=3)
    files.write_text_encoder(two)
    asked: list[str] = []
    handler = type("OfThese", (Hub,), {"root": root, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        names = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"),
                 "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
        yield {**os.environ, **names}, asked
        server.shutdown()


def imagen(environment: dict[str, str], *argv: str) -> tuple[int, str]:
    """(exit status, output) of a command: huggingface_hub reads its variables when it is loaded."""
    done = subprocess.run(
        [sys.executable, "-m", "imagen_jax.main", *argv], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_import_from_the_hub(hub: tuple[dict[str, str], list[str]], tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    environment, asked = hub
    repositories = ["--from-hub", "owner/one", "owner/two", "--variant", "fp16"]
    output = str(tmp_path / "if")
    status, said = imagen(environment, "import", "deepfloyd", *repositories, "--output", output)
    assert status == 0, said
    record = json.loads((tmp_path / "if" / "cascade.json").read_text())
    assert record["config"]["cascade"] == ["base", "sr"]
    assert (tmp_path / "if" / "LICENSE.txt").read_text() == "The licence."
    assert any(name.startswith("one/text_encoder/") for name in asked)
    unwanted = ("one/unet/diffusion_pytorch_model.safetensors", ".bin", "two/text_encoder/")
    assert not [name for name in asked if any(part in name for part in unwanted)]
    asked.clear()
    other = str(tmp_path / "again")
    status, said = imagen(environment, "import", "deepfloyd", *repositories, "--output", other)
    assert status == 0, said
    assert asked == []  # all was there


FILES = [
    "LICENSE.md", "model_index.json", "safety_checker/model.safetensors", "scheduler/s.json",
    "text_encoder/config.json", "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model.fp16-00001-of-00002.safetensors", "text_encoder/pytorch_model.bin",
    "text_encoder/model.safetensors.index.json", "text_encoder/model.safetensors.index.fp16.json",
    "tokenizer/spiece.model", "unet/config.json", "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors", "unet/int8/diffusion_pytorch_model.bin",
]  # fmt: skip


def test_one_variant_is_downloaded() -> None:
    always = ["LICENSE.md", "scheduler/s.json", "unet/config.json"]
    half = [*always, "unet/diffusion_pytorch_model.fp16.safetensors"]
    assert sorted(_wanted(FILES, "fp16", text=False, safety=False)) == sorted(half)
    text = [FILES[4], FILES[6], FILES[9], FILES[10]]
    assert sorted(_wanted(FILES, "fp16", text=True, safety=False)) == sorted(half + text)
    plain = [*always, "unet/diffusion_pytorch_model.safetensors"]
    assert sorted(_wanted(FILES, None, text=False, safety=False)) == sorted(plain)
    text = [FILES[4], FILES[5], FILES[8], FILES[10]]
    assert sorted(_wanted(FILES, None, text=True, safety=False)) == sorted(plain + text)


def test_safety_checker_and_watermark_are_downloaded() -> None:
    more = ["safety_checker/config.json", "safety_checker/model.fp16.safetensors",
            "safety_checker/pytorch_model.bin", "watermarker/diffusion_pytorch_model.safetensors",
            "watermarker/config.json", "feature_extractor/preprocessor_config.json"]  # fmt: skip
    found = set(_wanted(FILES + more, "fp16", text=False, safety=True))
    found -= set(_wanted(FILES + more, "fp16", text=False, safety=False))
    assert found == {more[0], more[1], *more[3:]}, "the watermark has no such variant"


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ("owner/gated", "accept its licence on its page there, then log in"),
        ("owner/absent", "the hub has no repository owner/absent"),
        ("absent", "'absent' is no repository on the hub; it must be OWNER/NAME"),
    ],
)
def test_repositories_that_are_not_given(
    hub: tuple[dict[str, str], list[str]], repository: str, message: str, tmp_path: Path
) -> None:
    pytest.importorskip("huggingface_hub")
    output = str(tmp_path / "if")
    argv = ["import", "deepfloyd", "--from-hub", repository, "--output", output]
    status, said = imagen(hub[0], *argv)
    assert status == 64
    assert message in said
    assert not (tmp_path / "if").exists()


def test_a_hub_that_is_not_reached(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    names = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    argv = ["import", "deepfloyd", "--from-hub", "owner/one", "--output", str(tmp_path / "if")]
    status, said = imagen({**os.environ, **names}, *argv)
    assert status == 64
    assert "owner/one could not be downloaded" in said
    assert "the same command resumes" in said


def test_the_package_that_downloads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        download_pipeline("owner/one")


@pytest.mark.parametrize("argv", [[], ["one", "--from-hub", "owner/one"]])
def test_either_folders_or_repositories(
    argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["import", "deepfloyd", *argv, "--output", str(tmp_path / "if")]) == 64
    assert "give the folders of the files, or --from-hub" in capsys.readouterr().err
