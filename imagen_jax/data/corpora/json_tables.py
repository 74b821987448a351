"""Tables in JSON, held in memory, in any of the forms that people write; COCO's among them."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imagen_jax.data.corpora import storage, unfolding
from imagen_jax.data.corpora.captions import (
    CAPTION_KEYS,
    IMAGE_KEYS,
    all_values,
    decode,
    find_key,
    load_json,
)
from imagen_jax.data.corpora.text_tables import LOOKED_AT, Fault, JsonLines, Line, damage_named
from imagen_jax.errors import UnusableError, UserError

_NOT_BLANK = re.compile(r"\S")


class JsonTable:
    """Rows of a JSON file that is held in memory.

    It may be a list of objects; objects one after another; an object with one list of objects in
    it; one of columns, also as pandas writes them; one from names of images to captions or to
    objects; or COCO's annotations, images and annotations by id.

    Raises:
      UserError: another form; names what is there.
    """

    def __init__(self, place: str, encoding: str = "utf-8"):
        self.place = place
        with unfolding.unfolded(place) as file, damage_named(place, encoding):
            content = file.read()
        if not content:
            raise UserError(f"{place} is empty")
        self.sha256 = storage.sha256(content)
        try:
            found = _json_values(decode(content, encoding))
        except UnusableError as error:
            other = storage.utf16_of(content)
            advice = (
                f"--encoding {other} reads it" if other else "--encoding names another encoding"
            )
            raise UserError(f"{place} is not in {encoding}: {error.detail}; {advice}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not JSON: {error}") from error
        self.coco = isinstance(found, dict) and is_coco(found)
        self._rows = _json_rows(place, found)
        self.columns: dict[str, Any] = {}
        for row in self._rows[:LOOKED_AT]:
            if isinstance(row, dict):
                self.columns = {**row, **self.columns}

    def index(self, on_fault: str) -> None:
        """With "stop", looks for what is no row.

        Raises:
          UserError: a caption of no image.
        """
        for row in self._rows if self.coco and on_fault == "stop" else ():
            if isinstance(row, Fault):
                raise UserError(
                    f"{self.place}: {row.reason}: {row.detail}; to leave out such captions, "
                    "counted and listed: --damaged-files drop"
                )

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, start: int, end: int) -> Iterator[Line]:
        """Rows from `start` up to `end`."""
        for number in range(start, end):
            row = self._rows[number]
            fault = Fault("row is not a JSON object", type(row).__name__)
            yield Line(number, row if isinstance(row, dict | Fault) else fault)


def _json_values(text: str) -> Any:
    """The value of a JSON text, or a list of all of several: they may be divided by lines alone.

    Raises:
      ValueError: it is not JSON.
    """
    try:
        return load_json(text)
    except ValueError as error:
        if not text.lstrip().startswith("{") or "Extra data" not in str(error):
            raise
    decoder = json.JSONDecoder(object_pairs_hook=all_values)
    values: list[Any] = []
    end = 0
    while found := _NOT_BLANK.search(text, end):
        value, end = decoder.raw_decode(text, found.start())
        values.append(value)
    return values


def _json_rows(place: str, found: Any) -> Sequence[Any]:
    if isinstance(found, list):
        return found
    if not isinstance(found, dict):
        raise UserError(f"{place} holds one {type(found).__name__}; rows are wanted")
    if is_coco(found):
        return _coco_rows(place, found)
    if isinstance(found.get("columns"), list) and isinstance(found.get("data"), list):
        rows = found["data"]  # of pandas, orient="split"
        if all(isinstance(row, list) and len(row) == len(found["columns"]) for row in rows):
            return [dict(zip(found["columns"], row, strict=True)) for row in rows]
    keyed = bool(find_key(found, CAPTION_KEYS) and find_key(found, IMAGE_KEYS))
    if keyed and isinstance(found[find_key(found, IMAGE_KEYS) or ""], str):
        return [found]
    lists = {
        key: value for key, value in found.items()
        if isinstance(value, list) and any(isinstance(row, dict) for row in value)
    }  # fmt: skip
    complete = [rows for rows in lists.values() if any(
        isinstance(row, dict) and find_key(row, IMAGE_KEYS) and find_key(row, CAPTION_KEYS)
        for row in rows[:LOOKED_AT])]  # fmt: skip
    if len(lists) == 1 or len(complete) == 1:
        return complete[0] if complete else next(iter(lists.values()))
    if found and all(isinstance(value, str | list) for value in found.values()) and not lists:
        columns = [value for value in found.values() if isinstance(value, list)]
        if len(columns) == len(found) and find_key(found, CAPTION_KEYS):
            if len({len(column) for column in columns}) > 1:
                raise UserError(
                    f"{place} has columns of different lengths: "
                    + ", ".join(f"{key!r} of {len(column)}" for key, column in found.items())
                )
            return [dict(zip(found, row, strict=True)) for row in zip(*columns, strict=True)]
        return [{"image": name, "caption": value} for name, value in found.items()]
    if found and all(isinstance(value, dict) for value in found.values()):
        numbers = list(next(iter(found.values())))
        if keyed and all(list(value) == numbers for value in found.values()):
            # Columns, each by the number of the row: pandas' default.
            return [{name: column[n] for name, column in found.items()} for n in numbers]
        return [{"image": name, **value} for name, value in found.items()]
    keys = ", ".join(map(repr, list(found)[:20])) or "(none)"
    raise UserError(
        f"{place} has the keys {keys}; it must be a list of objects, an object with one such list, "
        "or COCO's images and annotations"
    )


def is_coco(found: Mapping[str, Any]) -> bool:
    """Has it the form of COCO's captions_*.json?"""
    notes = found.get("annotations")
    return (
        isinstance(found.get("images"), list)
        and isinstance(notes, list)
        and any(isinstance(note, dict) and "caption" in note for note in notes)
    )


def _coco_rows(place: str, found: Mapping[str, Any]) -> list[dict[str, Any] | Fault]:
    """A row for each image, with all its captions, and a fault for each caption of no image."""
    try:
        images = {image["id"]: image for image in found["images"]}
        if len(images) < len(found["images"]):
            twice, _ = Counter(image["id"] for image in found["images"]).most_common(1)[0]
            raise UserError(f"{place}: the image id {twice!r} comes twice")
        captions: dict[Any, list[str]] = {key: [] for key in images}
        faults = []
        for note in found["annotations"]:
            key, caption = note["image_id"], note["caption"]
            if key in captions:
                captions[key].append(caption)
            else:
                detail = f"there is no image of the id {key!r}: {str(caption)[:60]!r}"
                faults.append(Fault("caption of an image that is not listed", detail))
        rows = [
            {"image": image["file_name"], "caption": captions[key], "id": key}
            for key, image in images.items()
        ]
        return [*rows, *faults]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{place} is not of the form of COCO's captions_train2017.json: {error!r}"
        ) from error


def coco_folder(table: JsonTable, folder: str, image_key: str) -> str:
    """Find the folder of COCO's images: train2017 beside annotations, say."""
    first = next((row[image_key] for row in table._rows if isinstance(row, dict)), "")
    stem = os.path.splitext(os.path.basename(table.place))[0]
    split = re.sub(r"^captions_", "", stem)
    above = storage.folder_of(folder) if folder else ".."
    candidates = [
        folder,
        *(storage.join(place, name) for place in (folder, above, storage.join(above, "images"))
          for name in (split, "images", "")),
    ]  # fmt: skip
    return next((c for c in candidates if storage.exists(storage.join(c, str(first)))), folder)


def json_lines(place: str, encoding: str) -> JsonLines | JsonTable:
    """A file of JSON lines; or of JSON over several lines, under the name of one."""
    fault: UserError | None = None
    try:
        lines = JsonLines(place, encoding)
        if lines.begins_with_a_row():
            return lines
    except UserError as error:
        fault = error
    try:
        table = JsonTable(place, encoding)
    except UserError:
        table = None
    if table is not None and table.columns:
        return table
    if fault is not None:
        raise fault
    return lines
