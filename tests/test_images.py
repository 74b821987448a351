"""Images of a corpus: kept to the byte, or changed and counted, or the reason why not."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from corpus_files import GOOD, SIZE, encoded, pixels
from PIL import Image, ImageCms

from imagen_jax.data.fitting import RecordImage, record_image
from imagen_jax.data.images import open_image, readable_formats
from imagen_jax.errors import UnusableError


def recorded(content: bytes, size: int = SIZE, fit: str = "exact") -> tuple[np.ndarray, list[str]]:
    found = record_image(content, size, fit)
    return np.asarray(Image.open(io.BytesIO(found.content))), found.changed


def test_images_as_they_are_recorded() -> None:
    wide = np.zeros((16, 24, 3), np.uint8)
    wide[:, 4:20] = np.kron(pixels(3, 4, 4), np.ones((4, 4, 1), np.uint8))
    assert record_image(encoded(wide), 4, "crop").side == 16
    found, changed = recorded(encoded(wide), 4, "crop")
    assert changed == ["reduced", "cropped"]
    np.testing.assert_array_equal(found, pixels(3, 4, 4))

    found, changed = recorded(encoded(pixels(0)[..., 0]))
    assert changed == ["converted to RGB"]
    np.testing.assert_array_equal(found, np.repeat(pixels(0)[..., :1], 3, -1))
    clear = np.concatenate([pixels(0), np.zeros((SIZE, SIZE, 1), np.uint8)], -1)
    found, changed = recorded(encoded(clear))
    assert (found == 255).all()
    assert changed == ["put on white"]

    for kind in ("JPEG", "PNG"):
        kept = encoded(pixels(0), kind)
        assert record_image(kept, SIZE, "exact") == RecordImage(kept, [], SIZE)
    jpeg = record_image(encoded(pixels(0, 16, 16), "JPEG"), SIZE, "crop").content
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
    with pytest.raises(UnusableError, match=r"smaller than 9 x 9 pixels \(8 x 8\)"):
        record_image(GOOD, 9, "crop")


@pytest.mark.parametrize("orientation", range(10))
def test_turned_images_are_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(pixels(1), exif=exif)
    found, changed = recorded(content)
    # By CIPA DC-008: what is shown as the first row and the first column.
    shown = pixels(1).swapaxes(0, 1) if 5 <= orientation <= 8 else pixels(1)
    shown = shown[::-1] if orientation in (3, 4, 7, 8) else shown
    shown = shown[:, ::-1] if orientation in (2, 3, 6, 7) else shown
    np.testing.assert_array_equal(found, shown)
    assert changed == (["turned upright"] if 2 <= orientation <= 8 else [])


@pytest.mark.parametrize(
    ("kind", "options", "becomes"),
    [
        ("WEBP", {"lossless": True}, "PNG"),
        ("WEBP", {"lossless": True, "exif": b"Exif\0\0"}, "PNG"),
        ("WEBP", {"quality": 90}, "JPEG"),
        ("MPO", {"save_all": True, "append_images": [Image.fromarray(pixels(2))]}, "JPEG"),
        ("BMP", {}, "PNG"),
        ("PPM", {}, "PNG"),
        ("TIFF", {}, "PNG"),
    ],
)
def test_other_formats_are_converted_and_counted(
    kind: str, options: dict[str, Any], becomes: str
) -> None:
    content = encoded(pixels(1), kind, **options)
    found = record_image(content, SIZE, "exact")
    assert found.changed == [f"converted from {kind}"]
    image = Image.open(io.BytesIO(found.content))
    assert image.format == becomes
    if becomes == "PNG":
        np.testing.assert_array_equal(np.asarray(image), pixels(1))


def test_pixels_of_more_than_8_bits_are_scaled() -> None:
    grey = pixels(1)[..., 0]
    found, changed = recorded(encoded(grey.astype(np.uint16) * 257))
    np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, -1))
    assert changed == ["converted to RGB"]
    with pytest.raises(UnusableError, match="pixels without a known range"):
        record_image(encoded(grey.astype(np.float32), "TIFF"), SIZE, "exact")


def tiff(photometric: int, bits: int, pixels: bytes, orientation: int) -> bytes:
    """A grey TIFF of 2 x 1 pixels."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8 + 2 + 12 * 10 + 4,
            274: orientation, 277: 1, 278: 1, 279: len(pixels)}  # fmt: skip
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


@pytest.mark.parametrize("orientation", [1, 2])
@pytest.mark.parametrize(
    ("photometric", "bits", "content"),
    [
        (1, 8, b"\x40\xff"), (1, 12, b"\x40\x4f\xff"), (1, 16, b"\x40\x40\xff\xff"),
        (0, 8, b"\xbf\0"), (0, 16, b"\xbf\xbf\0\0"),
    ],
)  # fmt: skip
def test_grey_of_tiff_is_scaled_from_its_own_range(
    photometric: int, bits: int, content: bytes, orientation: int
) -> None:
    """Of 8 to 16 bits, where white is the most or zero, as it lies or turned."""
    shown = np.asarray(open_image(tiff(photometric, bits, content, orientation)).image)[0, :, 0]
    np.testing.assert_array_equal(shown if orientation == 1 else shown[::-1], [64, 255])


@pytest.mark.parametrize(("most", "values"), [(65535, (0x4040, 65535)), (1023, (257, 1023))])
def test_grey_of_ppm_is_scaled_from_its_own_range(most: int, values: tuple[int, int]) -> None:
    content = b"P5 2 1 %d\n" % most + struct.pack(">HH", *values)
    opened = open_image(content)
    assert opened.changed == ["converted to RGB"]
    np.testing.assert_array_equal(np.asarray(opened.image)[0, :, 0], [64, 255])


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what is damaged
def test_damaged_images_are_unusable_and_nothing_else() -> None:
    """Whatever a decoder raises; and the reason is the same in every run."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    unusable = set()
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        options = {} if kind in ("GIF", "BMP") else {"exif": exif}
        sound = encoded(pixels(1), kind, **options)
        for _ in range(150):
            content = np.frombuffer(sound, np.uint8).copy()
            content[rng.integers(0, len(content), 3)] = rng.integers(0, 256, 3)
            try:
                record_image(content.tobytes(), SIZE, "crop")
            except UnusableError as error:
                unusable.add(str(error))
    assert len(unusable) > 10
    with pytest.raises(UnusableError) as first:
        record_image(b"no image", SIZE, "exact")
    assert str(first.value) == "image is text, which is not read"


CORPORA = Path(__file__).with_name("testdata") / "corpora"
QUADRANTS = {"TL": (16, 16), "TR": (16, 48), "BL": (48, 16), "BR": (48, 48)}
RIGHT = json.loads((CORPORA / "images" / "expected.json").read_text())


@pytest.mark.parametrize("name", RIGHT)
def test_icc_profiles_are_converted_to_srgb(name: str) -> None:
    """ICC profiles, colour keys, 16 bits: within 8 levels; or refused with the kind named."""
    content = (CORPORA / "images" / name).read_bytes()
    refused = {"photo.heic": ("HEIF", "HEIC"), "photo.jxl": ("JXL", "JPEG XL")}
    if name == "png_no_iend.png":
        with pytest.raises(UnusableError, match="PNG: cut off before its end"):
            open_image(content)
        return
    if name in refused and refused[name][0] not in readable_formats():
        with pytest.raises(UnusableError, match=f"is {refused[name][1]}, which is not read here"):
            open_image(content)
        return
    found, _ = recorded(content, 64, "crop")
    for corner, (y, x) in QUADRANTS.items():
        assert np.abs(found[y, x].astype(int) - RIGHT[name][corner]).max() <= 8, corner
    if "icc" in name:
        (profile,) = (note for note in open_image(content).changed if "converted" in note)
        assert profile == f"converted from Test {'A98' if 'a98' in name else 'P3'}"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("turned", [False, True])
def test_profiles_of_every_format_are_converted(kind: str, turned: bool) -> None:
    profile = Image.open(CORPORA / "images" / "jpeg_icc_p3_exact.jpg").info["icc_profile"]
    flat = np.full((SIZE, SIZE, 3), (40, 170, 60), np.uint8)
    options: dict[str, Any] = {"quality": 100} if kind in ("JPEG", "WEBP", "AVIF") else {}
    if turned:
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    opened = open_image(encoded(flat, kind, icc_profile=profile, **options))
    assert "converted from Test P3" in opened.changed
    assert ("turned upright" in opened.changed) == turned
    assert np.abs(np.asarray(opened.image, int) - (0, 175, 30)).max() <= 8


def test_srgb_profiles_are_no_change_and_unsuitable_ones_are_counted() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    kept = encoded(pixels(1), "JPEG", icc_profile=srgb)
    assert record_image(kept, SIZE, "exact") == RecordImage(kept, [], SIZE)
    for bad in (b"no profile", srgb[:200]):
        opened = open_image(encoded(pixels(1), "PNG", icc_profile=bad))
        assert opened.changed == ["colour profile ignored"]
        np.testing.assert_array_equal(np.asarray(opened.image), pixels(1))
    grey = open_image(encoded(pixels(1)[..., 0], "PNG", icc_profile=srgb))  # of RGB pixels
    assert grey.changed == ["colour profile ignored"]


def png(width: int, depth: int, colour: int, row: bytes, **chunks: bytes) -> bytes:
    """A PNG of one row."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(k.encode(), v) for k, v in chunks.items()),
             chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("content", "levels"),
    [
        (png(2, 1, 0, b"\x40", tRNS=b"\0\0"), [255, 255]),
        (png(4, 2, 0, b"\x1b", tRNS=b"\0\1"), [0, 255, 170, 255]),
        (png(2, 8, 0, b"\x40\x80", tRNS=b"\0\x40"), [255, 128]),
        (png(2, 16, 0, b"\x40\0\x80\x80", tRNS=b"\x40\0"), [255, 128]),
        (png(2, 8, 2, b"\x40" * 3 + b"\x80" * 3, tRNS=b"\0\x40" * 3), [255, 128]),
        (png(2, 16, 2, b"\x40\0" * 3 + b"\x80\x80" * 3, tRNS=b"\x40\0" * 3), [255, 128]),
        (png(2, 8, 3, b"\0\1", PLTE=b"\x40" * 3 + b"\x80" * 3, tRNS=b"\0"), [255, 128]),
        (png(2, 8, 4, b"\x40\0\x80\xff"), [255, 128]),
        (png(2, 16, 6, b"\x40\0" * 3 + b"\0\0" + b"\x80\x80" * 3 + b"\xff\xff"), [255, 128]),
    ],
)
def test_transparent_colours_show_white(content: bytes, levels: list[int]) -> None:
    opened = open_image(content)
    assert opened.changed == ["put on white"]
    np.testing.assert_array_equal(np.asarray(opened.image)[0], np.repeat(levels, 3).reshape(-1, 3))
    opacity = np.asarray(open_image(content, alpha=True).image)[0, :, 3]
    assert 0 in opacity


def test_images_kept_byte_for_byte_are_rgb_of_8_bits() -> None:
    """An opaque colour key or 16 bits would give training other arrays."""
    for content in (png(1, 8, 2, b"\1\2\3", tRNS=b"\0\x40" * 3), png(1, 16, 2, b"\1\2" * 3)):
        found = record_image(content, 1, "exact")
        assert found.changed == ["converted to RGB"]
        assert tf.io.decode_image(found.content).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(28), "PostScript"), (b"%PDF-1.7\n", "PDF"),
        (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer in"),
        (bytes(100), "zeros alone"), (b"8BPS\0\1", "Photoshop"), (b"not found", "text"),
    ],
)  # fmt: skip
def test_files_that_are_no_image_are_named_and_run_nothing(
    content: bytes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(UnusableError, match=f"image is {kind}"):
        open_image(content)


def test_damage_is_found_that_decoders_read_past() -> None:
    for kind, cut in (("PNG", 1), ("PNG", 12), ("JPEG", 1), ("JPEG", 2), ("JPEG", 40)):
        with pytest.raises(UnusableError, match="damaged image"):
            open_image(encoded(pixels(1), kind)[:-cut])
    content = bytearray(encoded(pixels(1)))
    content[content.index(b"IDAT") + 9] ^= 1
    with pytest.raises(UnusableError, match="wrong checksum of chunk b'IDAT'"):
        open_image(bytes(content))
    assert open_image(encoded(pixels(1), "JPEG") + b"trailer").changed == []
    with pytest.raises(UnusableError, match="image of 0 bytes"):
        open_image(b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
def test_images_of_too_many_pixels(kind: str) -> None:
    content = encoded(pixels(1, 40, 30), kind)
    assert open_image(content, max_pixels=1200).image.size == (30, 40)
    with pytest.raises(UnusableError, match=r"image of more than 1199 pixels \(30 x 40\)"):
        open_image(content, max_pixels=1199)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_kept_images_decode_in_training(kind: str) -> None:
    """Damaged at random: refused, or decoded by TensorFlow, too."""
    rng = np.random.default_rng(2)
    smooth = np.asarray(Image.fromarray(pixels(1)).resize((32, 32)))
    sources = [encoded(smooth, kind), encoded(smooth, kind, **{"progressive": True} if
                                              kind == "JPEG" else {"optimize": True})]  # fmt: skip
    kept = 0
    for i in range(300):
        content = bytearray(sources[i % 2])
        place = int(rng.integers(len(content)))
        some = rng.integers(0, 256, 4, np.uint8).tobytes()
        if i % 3 == 0:
            content[place : place + 1] = some[:1]
        elif i % 3 == 1:
            del content[place:]
        else:
            content[place : place + int(rng.integers(8))] = some
        try:
            found = record_image(bytes(content), 32, "exact")
        except UnusableError:
            continue
        if found.content == bytes(content):
            kept += 1
            assert tf.io.decode_image(found.content, expand_animations=False).shape == (32, 32, 3)
    assert kind == "PNG" or kept > 20
