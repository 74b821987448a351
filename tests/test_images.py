"""Images of a corpus: kept to the byte, or changed and counted, or the reason why not."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from corpus_files import GOOD, SIZE, encoded, pixels
from PIL import Image

from imagen_jax.data.images import RecordImage, UnusableError, record_image


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
    assert (recorded(encoded(clear))[0] == 255).all()

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
    with pytest.raises(UnusableError, match="pixels of mode F have no known range"):
        record_image(encoded(grey.astype(np.float32), "TIFF"), SIZE, "exact")


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
    assert str(first.value) == "undecodable image (of no known format)"
