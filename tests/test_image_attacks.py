"""Images of strangers reach nothing but image decoders, wherever they come in."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from imagen_jax.cascade import read_image, read_mask, read_record
from imagen_jax.data.fitting import record_image
from imagen_jax.data.images import read_file
from imagen_jax.errors import UserError
from imagen_jax.eval.images import list_images, side_of
from imagen_jax.eval.images import read_image as read_measured

POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 64
%%EndComments
(ran) print
showpage
%%EOF
"""
READERS: dict[str, Callable[[Path], object]] = {
    "an uploaded image": lambda path: read_image(read_file(path)),
    "--image": read_image,
    "--mask": read_mask,
    "--from": read_record,
    "an image of a corpus": lambda path: record_image(read_file(path), 64, "crop"),
    "a measured image": lambda path: read_measured(path, 64, "crop"),
    "the first measured image": side_of,
}
"""Entry point of an image -> function that reads it."""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Log of a fake Ghostscript on the path."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit\necho "$@" >> {tmp_path}/log\nexit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it is looked for once
    return tmp_path / "log"


@pytest.mark.parametrize("reader", READERS)
def test_postscript_reaches_no_ghostscript(reader: str, tmp_path: Path, log: Path) -> None:
    holiday = tmp_path / "holiday.png"
    holiday.write_bytes(POSTSCRIPT)
    with Image.open(holiday) as opened, pytest.raises(subprocess.CalledProcessError):
        opened.load()
    assert log.exists(), "left to itself, Pillow runs it: this test sees when"
    log.unlink()
    with pytest.raises(UserError):
        READERS[reader](holiday)
    assert not log.exists()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["ICO", "PCX", "TGA", "ICNS", "PDF", "FLI"])
def test_unmaintained_formats_are_refused(kind: str, reader: str, tmp_path: Path) -> None:
    path = tmp_path / "holiday.png"
    if kind == "FLI":
        path.write_bytes(bytes(4) + b"\x12\xaf" + bytes(122))
    else:
        Image.new("RGB", (64, 64)).save(path, kind)
    with pytest.raises(UserError):
        READERS[reader](path)


def test_an_image_of_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "holiday.png"
    Image.new("1", (2**14, 2**14)).save(path, compress_level=1)
    for name, reader in READERS.items():
        if name != "--from":  # which reads no pixels
            with pytest.raises(UserError, match="of more than"):
                reader(path)


def test_a_webp_of_many_pixels_takes_no_memory(tmp_path: Path) -> None:
    """Its decoder takes a gigabyte for these when it is opened."""
    path = tmp_path / "holiday.png"
    Image.new("RGB", (8, 8)).save(path, "WEBP", lossless=True)
    side = (2**14 - 1).to_bytes(3, "little")
    chunks = b"WEBP" + b"VP8X" + (10).to_bytes(4, "little") + bytes(4) + side + side
    chunks += path.read_bytes()[12:]
    path.write_bytes(b"RIFF" + len(chunks).to_bytes(4, "little") + chunks)
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_image_attacks import READERS, UserError, Path
status = dict(line.split(":") for line in open("/proc/self/status"))
used = 1024 * int(status["VmData"].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (used + 2**29, used + 2**29))
for name, reader in READERS.items():
    try:
        reader(Path({str(path)!r}))
    except UserError as error:
        assert "of more than" in str(error), (name, error)
    else:
        raise AssertionError(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


@pytest.mark.parametrize("reader", READERS)
def test_devices_and_endless_files_are_not_read(reader: str, tmp_path: Path) -> None:
    path = tmp_path / "holiday.png"
    path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is no file"):
        READERS[reader](path)
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(2**40)  # of a file system that stores holes, as archives do
    with pytest.raises(UserError, match="of more than 1 GiB"):
        READERS[reader](path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="is no file"):
        READERS[reader](path)


def test_text_chunks_that_unfold_are_not_read(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("imagen", "x" * 2**26, zip=True)
    path = tmp_path / "record.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match=r"record\.png is damaged"):
        read_record(path)


def test_links_and_folders_are_told(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    for path in list_images(tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            side_of(path)


def test_a_png_is_read_exactly(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "PNG")
    (tmp_path / "holiday.png").write_bytes(file.getvalue())
    np.testing.assert_array_equal(read_image(tmp_path / "holiday.png"), drawn)
    np.testing.assert_array_equal(read_measured(tmp_path / "holiday.png", 64, "exact"), drawn)
    assert read_mask(tmp_path / "holiday.png").shape == (64, 64)
