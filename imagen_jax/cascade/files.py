"""Images as files that say how they were made, and images made again from their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from imagen_jax.cascade.prompts import Blend
from imagen_jax.cascade.samples import VERSION, CascadeSamples, Finished, hash_of
from imagen_jax.errors import UserError
from imagen_jax.grid import labelled_grid

if TYPE_CHECKING:
    from imagen_jax.cascade.cascade import Cascade

FORMATS = ("png", "webp")
KEY = "imagen"
"""PNG text chunk that holds the record as JSON; in WebP it is EXIF's ImageDescription."""
_DESCRIPTION = 0x010E


def save_image(image: np.ndarray, record: dict[str, Any], path: str | Path) -> Path:
    """Writes an image with its record in its metadata, without loss.

    Args:
      image: [h, w, 3] uint8.
      record: what CascadeSamples.record returns.
      path: its ending is one of FORMATS.

    Raises:
      UserError: another ending.
    """
    path = Path(path)
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
    # Under another name first, so that an interruption leaves no half of an image.
    part = path.with_name(path.name + ".part")
    Image.fromarray(image).save(part, **options)
    return part.replace(path)


class Writer:
    """Writes images as they are done; to be given to sample as on_finished.

    Attributes:
      written: files of the images that are done.
      grids: the last grid that was written.
    """

    def __init__(self, output: str | Path, file_format: str = "png"):
        """Args:
        output: directory, made when there is something to write.
        file_format: one of FORMATS.
        """
        self.written: list[Path] = []
        self.grids: Path | None = None
        self._output = Path(output)
        self._format = file_format
        self._before = 0
        self._earlier: list[Finished] = []

    def __call__(self, finished: Finished) -> None:
        """Writes them if their stage is the last one; else keeps them until that has run."""
        if not finished.is_last:
            self._earlier.append(finished)
            return
        self.written += self._save(finished, "")
        if len(finished.recipe.prompts) == finished.rows[-1] + 1:
            self._before += len(finished.recipe.prompts)
            self._earlier = []

    def _save(self, finished: Finished, stage: str) -> list[Path]:
        self._output.mkdir(parents=True, exist_ok=True)
        return [
            save_image(
                image,
                finished.recipe.record(row),
                self._output / f"{self._before + row:04d}{stage}.{self._format}",
            )
            for row, image in zip(finished.rows, finished.images, strict=True)
        ]

    def save_grid(self, grid: Image.Image, name: str = "grid.png") -> None:
        """Writes a grid beside the images."""
        self._output.mkdir(parents=True, exist_ok=True)
        self.grids = self._output / name
        grid.save(self.grids)

    def interrupted(self) -> str:
        """Writes what earlier stages made of images that are not done; says what there is."""
        done = len(self.written) - self._before
        earlier: list[Path] = []
        for finished in self._earlier:
            left = finished.rows >= done
            rest = finished._replace(rows=finished.rows[left], images=finished.images[left])
            earlier += self._save(rest, f".{finished.stage}")
        said = f"; {len(self.written)} images are done"
        if self.written:
            said += f", in {self._output}"
        if earlier:
            said += (
                f"; {len(earlier)} of earlier stages are kept, such as {earlier[-1]}: go on with "
                "one of them by --image"
            )
        return said


def save_samples(
    samples: CascadeSamples, output: str | Path, file_format: str = "png"
) -> list[Path]:
    """Writes grid.png, labelled, and one file per image with its record in its metadata.

    Returns:
      Paths of the written files, the grid first.
    """
    writer = Writer(output, file_format)
    rows = np.arange(len(samples.images))
    writer(Finished("", rows, samples.images, samples, is_last=True))
    writer.save_grid(grid_of(samples))
    return [Path(output) / "grid.png", *writer.written]


def grid_of(samples: CascadeSamples) -> Image.Image:
    """All images, labelled with their prompts."""
    scale = max(1, 192 // samples.images.shape[1])
    columns = min(len(samples.images), 4)
    labels = [str(prompt) for prompt in samples.prompts]
    return labelled_grid(samples.images, labels, columns=columns, scale=scale)


def read_record(path: str | Path) -> dict[str, Any]:
    """What an image that was written here says of how it was made.

    Raises:
      OSError: there is no such file.
      UserError: it is no image, or says nothing that can be read.
    """
    try:
        with Image.open(path) as opened:
            said = opened.info.get(KEY) or opened.getexif().get(_DESCRIPTION)
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no image of a kind that can be read") from error
    try:
        record = json.loads(said or "")
        version = record["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} does not say how it was made; only PNG and WebP files written by imagen-jax do"
        ) from error
    if version != VERSION:
        raise UserError(f"{path} has a record of version {version!r}; this code reads {VERSION}")
    return record


def repeat(
    cascade: Cascade,
    record: dict[str, Any],
    image: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    **options: Any,
) -> CascadeSamples:
    """Makes the image of a record again.

    It is the same to the bit on the same kind of device in a batch of the same size, and differs
    by rounding else.

    Args:
      cascade: the one that made it, with the same dtype.
      record: what read_record or CascadeSamples.record returns.
      image, mask: what was edited, if something was.
      **options: of Cascade.sample_each that do not change the image, such as show_progress.

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
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"the record is damaged: {type(error).__name__}: {error}") from error
    _check_cascade(cascade, {name: said for name, (said, _, _) in sections.items()}, dtype)
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
    edits = {name: edit for name, (_, _, edit) in sections.items() if edit is not None}
    of_edit = next(iter(edits.values()), {"resamples": 1, "jump": 1})
    settings: dict[str, Any] = {}
    for name, (_, values, _) in sections.items():
        for field, value in values.items():
            settings.setdefault(field, {})[name] = value
    return cascade.sample_each(
        [prompt],
        [seed],
        negative_prompts=[negative],
        size=size,
        image=image,
        mask=mask,
        strength={name: edit["strength"] for name, edit in edits.items()} or None,
        resamples=of_edit["resamples"],
        jump=of_edit["jump"],
        start_stage=next(iter(stages)),
        **settings,
        **options,
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
