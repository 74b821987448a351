"""Images as files that say how they were made, and images made again from their files."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from imagen_jax.cascade.prompts import Blend
from imagen_jax.cascade.request import VERSION, Request, hash_of
from imagen_jax.config import build
from imagen_jax.data.images import check_webp, read_file, readable_formats
from imagen_jax.errors import UnusableError, UserError
from imagen_jax.files import atomic_path, given_file
from imagen_jax.paths import as_path
from imagen_jax.stage_config import SampleConfig

if TYPE_CHECKING:
    from imagen_jax.cascade.cascade import Cascade

FORMATS = ("png", "webp")
KEY = "imagen"
"""PNG text chunk that holds the record as JSON; in WebP it is EXIF's ImageDescription."""
BLACK = "black"
"""Key of a record that says why the safety checker made an image black; most have none."""
_DESCRIPTION = 0x010E


def save_image(image: np.ndarray, record: dict[str, Any], path: str | Path) -> Path:
    """Writes an image with its record in its metadata, without loss.

    Args:
      image: [h, w, 3] uint8.
      record: result of Request.record, perhaps with BLACK.
      path: its ending is one of FORMATS.

    Raises:
      UserError: another ending.
    """
    path = as_path(path)
    said = json.dumps(record)  # ASCII, as EXIF needs it
    options: dict[str, Any]
    if path.suffix == ".png":
        info = PngInfo()
        info.add_itxt(KEY, said)
        options = {"format": "png", "pnginfo": info}
    elif path.suffix == ".webp":
        exif = Image.Exif()
        exif[_DESCRIPTION] = said
        options = {"format": "webp", "lossless": True, "exif": exif}
    else:
        raise UserError(f"{path} must end in one of {', '.join('.' + name for name in FORMATS)}")
    with atomic_path(path) as part:
        Image.fromarray(image).save(part, **options)
    return path


def read_record(path: str | Path) -> dict[str, Any]:
    """Record in an image's file of how it was sampled.

    Raises:
      UserError: there is no such file, it is no image, or says nothing that can be read.
    """
    try:
        kinds = [kind for kind in readable_formats() if kind.lower() in FORMATS]
        with given_file(path, "image") as local:
            content = read_file(local)
        check_webp(content)
        with Image.open(io.BytesIO(content), formats=kinds) as opened:
            said = opened.info.get(KEY) or opened.getexif().get(_DESCRIPTION)
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no image of a kind that can be read") from error
    except UnusableError as error:
        raise UserError(f"{path}: {error}") from error
    except UserError:
        raise
    except Exception as error:  # of whatever kind a decoder raises on damage
        if isinstance(error, OSError) and error.errno is not None:  # of the system
            raise
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    try:
        record = json.loads(said or "")
        version = record["version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{path} does not say how it was made; only PNG and WebP files written by imagen-jax do"
        ) from error
    if version != VERSION:
        raise UserError(f"{path} has a record of version {version!r}; this code reads {VERSION}")
    return record


def repeat(
    cascade: Cascade, record: dict[str, Any], image: Any = None, mask: Any = None
) -> Request:
    """Return the request that makes the image of a record again; Cascade.run makes it.

    It is the same to the bit on the same kind of device in a batch of the same size, and differs
    by rounding else.

    Args:
      cascade: the one that made it, with the same dtype.
      record: result of read_record or Request.record.
      image, mask: the edited image and its mask; None without an edit.

    Raises:
      UserError: another cascade, image or mask than the record tells of, or one that was made of
        token states, which it does not hold; or a record that is damaged.
    """
    try:
        stages, given = record["stages"], record["given"]
        sections = {
            name: (s["fingerprint"], s["settings"], s["edit"]) for name, s in stages.items()
        }
        size = tuple(list(stages.values())[-1]["size"])
        prompt, negative = record["prompt"], record["negative_prompt"]
        seed, dtype = record["seed"], record["dtype"]
        prompt = Blend(**prompt) if isinstance(prompt, dict) else prompt
        edits = {
            name: (edit["strength"], edit["resamples"], edit["jump"])
            for name, (_, _, edit) in sections.items()
            if edit is not None
        }
        objects = (given, *(said for _, said, _ in sections.values()))
        if not all(isinstance(value, dict) for value in objects):
            raise TypeError("what was given, or the settings of a stage, is no object")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"the record is damaged: {type(error).__name__}: {error}") from error
    _check_cascade(cascade, {name: said for name, (said, _, _) in sections.items()}, dtype)
    if record.get("safety") != cascade.applied:
        raise UserError(
            "the image was made with another safety checker or watermark (there != here): "
            f"{record.get('safety')} != {cascade.applied}"
        )
    if "text" in given:
        raise UserError(
            "the image was made of token states that were given; its record does not hold them"
        )
    for name, array in (("image", image), ("mask", mask)):
        if (array is None) != (name not in given):
            raise UserError(
                f"the image was made with{'out' * (name not in given)} {name}; give "
                + ("none" if name not in given else f"the same {name} again")
            )
        if array is not None and hash_of(np.asarray(array)) != given[name]:
            raise UserError(
                f"the {name} is not the one that the image was made with: its hash is "
                f"{hash_of(np.asarray(array))}, not {given[name]}"
            )
    _, resamples, jump = next(iter(edits.values()), (None, 1, 1))
    settings = {name: build(SampleConfig, said, name) for name, (_, said, _) in sections.items()}
    request = cascade.request(
        [prompt],
        seed=[seed],
        negative_prompts=[negative],
        size=size,
        image=image,
        mask=mask,
        strength={name: strength for name, (strength, _, _) in edits.items()} or None,
        resamples=resamples,
        jump=jump,
        start_stage=next(iter(stages)),
        guidance={name: of_stage.guidance for name, of_stage in settings.items()},
    )
    # As recorded, and not as None, for what the config says today.
    return dataclasses.replace(
        request,
        stages=tuple(
            dataclasses.replace(asked, settings=settings[asked.name]) for asked in request.stages
        ),
    )


def _check_cascade(cascade: Cascade, recorded: dict[str, str], dtype: str | None) -> None:
    names = [stage.name for stage in cascade.stages]
    if list(recorded) != names[len(names) - len(recorded) :]:
        raise UserError(
            f"the image was made by stages {', '.join(recorded)}, but the cascade has "
            f"{', '.join(names)}"
        )
    for name, fingerprint in recorded.items():
        if cascade.fingerprints[name] != fingerprint:
            raise UserError(
                f"the image was made by another cascade: its stage {name!r} has the fingerprint "
                f"{fingerprint}, the one here {cascade.fingerprints[name]}"
            )
    if cascade.dtype != dtype:
        raise UserError(f"the image was made with dtype {dtype}, not with {cascade.dtype}")
