"""Whatever is given to a cascade ends in images or in a ValueError that says what is wrong."""

from __future__ import annotations

import dataclasses
import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

from imagen_jax.cascade import (
    Axis,
    Blend,
    Cascade,
    crop_to,
    cut_prompts,
    read_image,
    read_mask,
    sweep,
)
from imagen_jax.cascade.compiled import export_stages
from imagen_jax.cascade.files import save_image
from imagen_jax.cascade.folder import Folder
from imagen_jax.cascade.images import resize, resize_mask
from imagen_jax.cascade.stages import choose_stages, size_step
from imagen_jax.checkpoints.cascades import export_cascade
from imagen_jax.errors import UserError
from imagen_jax.main import main
from imagen_jax.typing import TextEmbedding


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_cascade(tmp_path_factory.mktemp("inputs") / "cascade")


@pytest.fixture(scope="module")
def cascade(directory: Path) -> Cascade:
    """Of MiniLM's tokenizer, with random weights."""
    return Cascade.load(directory)


def fuzzed_prompts(count: int) -> list[str]:
    """Strings of all planes of Unicode, surrogates included, of many kinds and lengths."""
    rng = np.random.default_rng(0)
    kinds = [
        range(0x20), range(0x20, 0x7F), range(0x80, 0x2000), range(0x2000, 0x2070),
        range(0x590, 0x700), range(0x4E00, 0x9FFF), range(0xD800, 0xE000), range(0xFE00, 0xFFFF),
        range(0x1F300, 0x1FAFF), range(0x110000),
    ]  # fmt: skip

    def text() -> str:
        length = int(rng.choice([0, 1, 2, 5, 12, 40, 200, 10_000], p=[.05, .1, .1, .3, .3, .1, .04,
                                                                      .01]))  # fmt: skip
        chosen = rng.choice(len(kinds), size=int(rng.integers(1, 3)), replace=False)
        bounds = np.array([(kinds[i][0], kinds[i][-1] + 1) for i in rng.choice(chosen, length)])
        return "".join(map(chr, rng.integers(*bounds.reshape(-1, 2).T)))

    return [text() for _ in range(count)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:prompt:UserWarning")
def test_any_prompt_is_encoded_or_refused(cascade: Cascade) -> None:
    accepted, refused = [], {}
    for prompt in fuzzed_prompts(1000):
        try:
            checked = cascade.request([prompt]).prompts
        except ValueError as error:
            refused[prompt] = str(error)
        else:
            accepted += checked
    assert len(accepted) > 300
    kinds = ("is empty", "tokens; this cascade", "not valid Unicode")
    for message in refused.values():
        assert len(message) < 2500
        assert any(kind in message for kind in kinds), message
    assert all(any(kind in message for message in refused.values()) for kind in kinds)
    text = cascade.encode(accepted)
    assert np.isfinite(text.states).all()
    assert text.mask.any(axis=1).all()


PROMPTS = [
    "a", "\0", "a\0b\x1b[31m", "\u202eright to left\u202c", "שלום עולם", "👩‍👩‍👧‍👦 🇨🇭 ✈️",
    "e" + "\u0301" * 20, "'; -- <script>", "\ufeff\u200b", "ﷺ",
]  # fmt: skip


def test_a_prompt_without_a_known_word_is_warned_of(cascade: Cascade) -> None:
    for prompt in ("🦄🐙", "ꙮ ꙮ", "ﷺ"):
        with pytest.warns(UserWarning, match="has no word that the text encoder knows"):
            cascade.request(["a cat", prompt])
    with pytest.warns(UserWarning, match=r"'🦄'.* \(2 other prompts have none, either\)$") as said:
        cascade.request(["🦄", "a cat", "🐙", "ꙮ"])
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cascade.request(["a cat", "🦄 cat", "שלום"], negative_prompts="")


def test_long_prompts_are_cut_after_words(cascade: Cascade) -> None:
    long = "a red apple left of a dog " * 40
    texts = [
        "a red apple",
        "word " * 30,
        "word " * 31,
        long,
        "x" * 500,
        "word " * 29 + "hypersaturation",
    ]
    cut = cut_prompts(cascade.encoder, texts, 32)
    assert cut[:3] == ["a red apple", "word " * 30, ("word " * 30).strip()]
    assert cut[5] == ("word " * 29).strip()  # not "hyper"
    assert cut[3] == " ".join(long.split()[:30])
    assert set(cut[4]) == {"x"}
    for text in cut:
        assert len(cascade.encoder.tokenize([text])[0]) <= 32


@pytest.mark.slow
def test_odd_prompts_become_images_and_files(cascade: Cascade, tmp_path: Path) -> None:
    samples = cascade.sample(PROMPTS, show_progress=False)
    assert len(samples.save(tmp_path)) == 1 + len(PROMPTS)


SQUARE = np.zeros((tiny.SR, tiny.SR, 3), np.uint8)
ALL = np.ones((tiny.SR, tiny.SR), bool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "no prompts were given"),
        ({"prompts": ["a", " \n"]}, "prompt 1 is empty"),
        ({"prompts": ["a", 3]}, "prompt 1 must be a text, got 3"),
        ({"prompts": "a\ud800"}, "prompt 0 is not valid Unicode"),
        ({"prompts": "word " * 60}, "has 62 tokens; this cascade was trained with at most 32"),
        ({"prompts": "word " * 9999}, "has 10001 tokens; this cascade was trained with at most 32"),
        ({"negative_prompts": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"negative_prompts": "a", "guidance": 1}, "changes nothing: guidance is 1"),
        ({"seed": -1}, "seeds must be whole numbers in"),
        ({"seed": 2**32}, "seeds must be whole numbers in"),
        ({"seed": 0.5}, "seeds must be whole numbers in"),
        ({"prompts": ["a", "b"], "seed": [1, 2, 3]}, "3 seeds for 2 prompts; need as many"),
        ({"seed": "1"}, "seeds must be whole numbers in"),
        ({"per_prompt": 0}, "per_prompt must be in [1, 2**32], got 0"),
        ({"per_prompt": 10**30}, "per_prompt must be in [1, 2**32]"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"size": 7}, "must be multiples of 2; the nearest is 8 x 8"),
        ({"size": (0, 8)}, "cannot make images of 0 x 8"),
        ({"size": (8, 8, 3)}, "size must be a whole number, or height and width"),
        ({"size": 1000}, "too large for a cascade that was trained for 8 pixels: sides may be 4"),
        ({"size": 8.0}, "size must be a whole number, or height and width"),
        ({"guidance": float("nan")}, "guidance is nan; it must be in"),
        ({"guidance": "3"}, "guidance must be of type float, got '3'"),
        ({"steps": 2.5}, "steps must be of type int, got 2.5"),
        ({"steps": True}, "steps must be of type int, got True"),
        ({"steps": 0}, "steps is 0; it must be in"),
        ({"sampler": "euler"}, "sampler is 'euler'; choices: "),
        ({"threshold": "hard"}, "threshold is 'hard'; choices: "),
        ({"aug_level": 1.5}, "aug_level is 1.5; it must be in"),
        ({"colour": 1}, "unknown argument 'colour'; choices: prompts, seed, per_prompt, negative"),
        ({"guidence": 1}, "unknown argument 'guidence' (did you mean 'guidance'?); choices: "),
        ({"sampler": "ddim(etta=1)"}, "did you mean 'eta'"),
        ({"guidance_min_logsnr": 3, "guidance_max_logsnr": 1}, "guidance_min_logsnr is 3.0; it"),
        ({"threshold_cap": 0.5}, "threshold_cap is 0.5; it must be in [1, inf)"),
        ({"end_logsnr": 21}, "end_logsnr is 21.0; it must be in [-20, 20]"),
        ({"pad": -1}, "pad is -1; it must be in"),
        ({"pad": {"sr": 1.5}}, "sr.pad must be of type int, got 1.5"),
        ({"steps": {"top": 1}}, "steps: unknown stage 'top'; choices: base, sr"),
        ({"start_stage": "top"}, "unknown start_stage 'top'; choices: base, sr"),
        ({"start_stage": "sr"}, "starts from an image of 4 pixels, which no"),
        ({"mask": ALL}, "mask was given without an image"),
        ({"strength": 0.5}, "strength was given without an image"),
        ({"resamples": 2}, "they need a mask"),
        ({"image": SQUARE, "start_stage": "base"}, "give strength or mask to edit"),
        ({"image": SQUARE.astype(float), "strength": 0.5}, "image must be uint8"),
        ({"image": SQUARE[..., 0], "strength": 0.5}, "image must be uint8"),
        ({"image": SQUARE[None].repeat(2, 0), "strength": 0.5}, "2 images for 1 prompts"),
        ({"image": SQUARE, "strength": 0.0}, "strength is 0.0; it must be in"),
        ({"image": SQUARE, "strength": 1.01}, "strength is 1.01; it must be in"),
        ({"image": SQUARE, "strength": "1"}, "strength must be a number, got '1'"),
        ({"image": SQUARE, "strength": {"top": 1}}, "strength: unknown stage 'top'"),
        ({"image": SQUARE[:6], "strength": 0.5}, "6 x 8 pixels has another aspect ratio than 8 x"),
        ({"image": SQUARE[:6], "size": 16}, "another aspect ratio than 16 x 16"),
        ({"image": SQUARE, "mask": ~ALL}, "nothing to paint: it is False everywhere"),
        ({"image": SQUARE, "mask": ALL[:4]}, "the mask has 4 x 8 pixels, the image 8 x 8"),
        ({"image": SQUARE, "mask": 255 * ALL}, "mask must be bool"),
        ({"image": SQUARE, "mask": ALL[None].repeat(3, 0)}, "3 masks for 1 prompts"),
        ({"image": SQUARE, "mask": ALL, "resamples": 0}, "must be at least 1"),
    ],
)
def test_arguments_that_do_not_fit(cascade: Cascade, options: dict[str, Any], message: str) -> None:
    options = {"prompts": "a cat", "show_progress": False} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        cascade.sample(**options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, d: next(c.stream(c.request(["a"]), chunk=0)), "chunk must be at least 1, got 0"),
        (lambda c, d: Cascade.load(d, dtype="half"), "dtype is 'half'; choices: float32, bfloat16"),
        (lambda c, d: Cascade.load(d, stages=[]), "no stage was chosen; choices: base, sr"),
        (lambda c, d: Cascade.load(d, stages=["top"]), "unknown stage 'top'; choices: base, sr"),
        (lambda c, d: Cascade.load(d, stages=["sr", "base"]),
         "stage 'base' starts from noise, but the one before it, 'sr', makes images of 8 pixels"),
        (lambda c, d: c.settings(colour=1), "unknown setting 'colour'; choices: sampler, steps"),
        (lambda c, d: sweep(c, "a", [Axis("steps", [1])], steps=2),
         "steps is swept over and was given, too"),
        (lambda c, d: sweep(c, "a", [Axis("seed", [1])], seed=0),
         "seed is swept over and was given, too"),
        (lambda c, d: sweep(c, "a", [Axis("steps", [1])], guidence=2),
         "unknown argument 'guidence' (did you mean 'guidance'?)"),
        (lambda c, d: Folder(d, [], "gif"), "format is 'gif'; choices: png, webp"),
        (lambda c, d: save_image(SQUARE, {}, d / "a.gif"), "a.gif must end in one of .png, .webp"),
        (lambda c, d: c.request(["a"], text=TextEmbedding(np.zeros((1, 3, 9)), np.ones((1, 3)))),
         "text must have states [1, l, 384] and a mask [1, l] with l at most 32; got"),
        (lambda c, d: export_stages(c._pretrained, d, platforms=["abacus"]),
         "unknown platform 'abacus'; choices: "),
        (lambda c, d: choose_stages([c.stages[0], dataclasses.replace(
            c.stages[1], text=dataclasses.replace(c.stages[1].text, max_length=9))], None),
         "the stages read different text: 'sr' TextConfig(encoder='minilm-random', width"),
        (lambda c, d: export_cascade(d, d / "o", dtype="int8"), "dtype is 'int8'; choices: f"),
    ],
)  # fmt: skip
def test_calls_that_do_not_fit(
    cascade: Cascade, directory: Path, call: Callable[[Cascade, Path], Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        call(cascade, directory)


def test_words_of_a_cascade_that_knows_none(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "words", "--workdir", str(directory)]) == 64
    assert (
        "this cascade was not trained on scenes; the words it knows are" in capsys.readouterr().err
    )


def test_sizes_are_those_that_all_stages_can_make() -> None:
    stages = [tiny.stage("base"), tiny.stage("sr")]  # multiples of 2 and 4, and twice the base's
    assert size_step(stages) == 4
    assert size_step(stages[1:]) == 4
    assert size_step(stages[:1]) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blend("a", "b", 1.5), "weight is 1.5"),
        (lambda: Blend("a", "b", 0.5, "cubic"), "choices: slerp, lerp"),
        (lambda: Axis("colour", [1]), "cannot sweep over 'colour'"),
        (lambda: Axis("steps", []), "needs values, got none"),
        (lambda: Axis("seed", [1], "sr"), "a seed is of all stages"),
        (lambda: sweep(None, "a", []), "1 or 2 axes, got 0"),  # type: ignore[arg-type]
    ],
)
def test_descriptions_that_say_nothing(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# files


def encoded(file_format: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (9, 6)).save(file, file_format, **options)
    return file.getvalue()


def claimed_size(side: int) -> bytes:
    """A PNG that claims to be large."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT", b"IEND"]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
              for chunk in chunks]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "image of 0 bytes"),
        (b"\x89PNG\r\n\x1a\n", "damaged image"),
        (b"<svg></svg>", "image is SVG, which is not read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image is PostScript"),
        (encoded("PNG")[:45], "damaged image"),
        (encoded("JPEG")[:300], "damaged image"),
        (claimed_size(9_000), "image of more than .* pixels"),
        (claimed_size(60_000), "image of more than .* pixels"),
    ],
)
def test_files_that_are_no_images(
    read: Callable[[Any], Any], content: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read(content)
    (tmp_path / "file.png").write_bytes(content)
    with pytest.raises(ValueError, match=f"file.png.*{message}"):
        read(tmp_path / "file.png")


def test_damaged_files_are_refused_or_read() -> None:
    """Bytes that were changed at random."""
    rng = np.random.default_rng(1)
    read = 0
    for file_format in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        whole = np.frombuffer(encoded(file_format), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[rng.integers(len(whole), size=3)] = rng.integers(256, size=3)
            try:
                assert read_image(damaged.tobytes()).shape[-1] == 3
                read += 1
            except ValueError:
                continue
    assert 0 < read < 200


def test_images_are_read_upright_and_on_white() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        assert read_image(encoded("PNG", mode)).shape == (6, 9, 3)
    assert (read_image(encoded("PNG", "RGBA")) == 255).all(), "transparent"
    assert (read_image(encoded("PNG", "RGB")) == 0).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert read_image(encoded("JPEG", exif=exif)).shape == (9, 6, 3)
    with pytest.raises(UserError, match=r"black everywhere; .*what is transparent"):
        read_mask(encoded("PNG", "RGBA"))
    file = io.BytesIO()
    Image.fromarray(np.uint8([[0, 255, 255]])).save(file, "PNG")
    np.testing.assert_array_equal(read_mask(file.getvalue()), [[False, True, True]])


def test_a_mask_is_cut_at_half_and_says_so() -> None:
    """A JPEG has values near 0 where it was black: they paint nothing."""
    y, x = np.mgrid[:32, :32]
    drawn = np.uint8(np.where(np.hypot(x - 16, y - 16) < 10, 255, 0))
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "JPEG", quality=60)
    assert (read_image(file.getvalue())[drawn == 0] > 0).any()
    with pytest.warns(UserWarning, match=r"\d% of the mask is neither black nor white"):
        mask = read_mask(file.getvalue())
    np.testing.assert_array_equal(mask, drawn > 0)
    file = io.BytesIO()
    Image.fromarray(np.uint8([[127, 128]])).save(file, "PNG")
    with pytest.warns(UserWarning, match=r"100.0% of the mask"):
        np.testing.assert_array_equal(read_mask(file.getvalue()), [[False, True]])


def test_cropping_and_resizing() -> None:
    wide = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9)
    np.testing.assert_array_equal(crop_to(wide, (1, 1)), wide[:, 1:7])
    assert crop_to(wide, (1, 3)).shape == (3, 9)
    assert crop_to(wide, (5, 1)).shape == (6, 1)
    steps = np.repeat(np.repeat(np.uint8([[10, 200], [90, 30]]), 3, 0), 3, 1)
    steps = np.stack([steps] * 3, axis=-1)[None]
    np.testing.assert_array_equal(resize(steps, (2, 2)), steps[:, ::3, ::3])
    mask = np.zeros((1, 6, 6), bool)
    mask[0, 4, 1] = True
    np.testing.assert_array_equal(resize_mask(mask, (2, 2)), [[[False, False], [True, False]]])
    assert resize_mask(mask, (12, 12)).sum() == 4
    assert resize_mask(mask, (4, 4)).sum() == 4, "it lies in two rows and two columns of them"
