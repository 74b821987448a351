"""Weights of one part of a diffusers pipeline, such as unet/: found by variant, read by slices.

A part is a directory with config.json and one file, NAME.safetensors or NAME.VARIANT.safetensors,
or several, NAME-00001-of-00002.safetensors and so on, with an index. Pickled files are never read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.files import read_json

DTYPES = ("F16", "F32")
NUMPY = {"F16": "float16", "F32": "float32", "U8": "uint8"}
STEM = "diffusion_pytorch_model"

Lazy = tuple[str, np.dtype[Any], tuple[int, ...], Callable[[], np.ndarray]]
"""Name, dtype and shape of a tensor, and what reads it."""


class Tensors:
    """Tensors by name, none of which is read before it is asked for.

    Attributes:
      shapes: shape of every tensor.
      dtypes: dtype of every tensor, a key of NUMPY.
    """

    def __init__(
        self,
        files: Mapping[Path, set[str] | None],
        dtypes: Collection[str] = DTYPES,
        unread: Collection[str] = (),
    ) -> None:
        """Opens the files.

        Args:
          files: path -> the tensors that it must have; None for whatever it has.
          dtypes: those that tensors may have.
          unread: names of tensors that are passed over.

        Raises:
          UserError: a file is damaged, holds a tensor of another dtype, or lacks one.
        """
        from safetensors import safe_open

        self._slices: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for path, wanted in files.items():
            if not path.is_file():
                raise UserError(f"there is no {path}, which the index beside it names")
            try:
                content = safe_open(str(path), framework="numpy")
            except Exception as error:  # SafetensorError is no ValueError
                raise UserError(f"{path} is damaged: {error}; download it again") from error
            names = set(content.keys()) - set(unread)
            if wanted is not None and (missing := sorted(wanted - names)):
                raise UserError(f"{path} lacks {missing[0]}, which the index says that it has")
            for name in sorted(names if wanted is None else wanted):
                part = content.get_slice(name)
                if part.get_dtype() not in dtypes:
                    raise UserError(
                        f"{path}: {name} is {part.get_dtype()}; weights are read from "
                        f"{' and '.join(dtypes)} alone. Quantised variants need what they were "
                        "quantised with: take the plain one, or the variant fp16"
                    )
                self._slices[name] = part
                self.shapes[name] = tuple(part.get_shape())
                self.dtypes[name] = part.get_dtype()

    def read(self, name: str) -> np.ndarray:
        """One tensor, from the disk."""
        part = self._slices[name]
        return np.asarray(part[tuple(slice(None) for _ in self.shapes[name])])

    def read_finite(self, name: str) -> np.ndarray:
        """One tensor, from the disk.

        Raises:
          UserError: some of its values are not finite.
        """
        values = self.read(name)
        if not np.isfinite(values).all():
            raise UserError(f"{name} holds values that are not finite; download the file again")
        return values

    def dtype(self, name: str) -> np.dtype[Any]:
        """NumPy's dtype of a tensor."""
        return np.dtype(NUMPY[self.dtypes[name]])


def write_tensors(file: BinaryIO, tensors: Iterator[Lazy]) -> None:
    """Write a safetensors file tensor by tensor: a header of names, dtypes, shapes and offsets, and
    the values one after another."""
    codes = {NUMPY[code]: code for code in DTYPES}
    listed = list(tensors)
    header: dict[str, Any] = {}
    end = 0
    for name, dtype, shape, _ in listed:
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": codes[dtype.name], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, dtype, _, read in listed:
        file.write(np.ascontiguousarray(read(), dtype).data)


def open_weights(
    directory: Path,
    variant: str | None,
    *,
    stem: str = STEM,
    fall_back: bool = False,
    dtypes: Collection[str] = DTYPES,
    unread: Collection[str] = (),
) -> Tensors:
    """The weights of a part.

    Args:
      directory: such as unet/.
      variant: such as "fp16"; None is the plain one, or else the only one that is there.
      stem: beginning of the files' names.
      fall_back: take None for a variant that is not there.
      dtypes, unread: see Tensors.

    Raises:
      UserError: there are none, there is none of that variant, or files are damaged.
    """
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    found: dict[str, str] = {}
    one = re.compile(rf"{stem}(?:\.(\w+))?\.safetensors")
    index = re.compile(rf"{stem}\.safetensors\.index(?:\.(\w+))?\.json")
    for pattern in (one, index):
        for name in names:
            if match := pattern.fullmatch(name):
                found.setdefault(match[1] or "", name)
    choices = ", ".join(repr(name) for name in found if name) or "none"
    if not found:
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        raise UserError(
            f"there is no {stem}.safetensors in {directory}"
            + (
                f"; {pickled[0]} is a pickle, which can run code when it is read and is not. "
                "Download the .safetensors of the same repository"
                if pickled
                else ""
            )
        )
    if fall_back and variant not in found:
        variant = None
    if variant is not None and variant not in found:
        raise UserError(f"{directory} has no variant {variant!r} of the weights; it has {choices}")
    if variant is None and "" not in found and len(found) > 1:
        raise UserError(f"{directory} has several variants of the weights: {choices}; choose one")
    name = found[variant or ("" if "" in found else next(iter(found)))]
    if one.fullmatch(name):
        return Tensors({directory / name: None}, dtypes, unread)
    files: dict[Path, set[str] | None] = {}
    placed = read_json(directory / name, "index of weights").get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise UserError(f"{directory / name} is damaged: it has no weight_map")
    for tensor, file in placed.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise UserError(f"{directory / name} names {file!r}, which is no file beside it")
        wanted = files.setdefault(directory / file, set())
        assert wanted is not None
        wanted.add(tensor)
    return Tensors(files, dtypes, unread)
