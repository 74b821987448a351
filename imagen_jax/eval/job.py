"""Sampling of many prompts, and their features: resumable, and divided over processes.

<directory>/job.json               what is sampled, and from what; another job is refused
<directory>/images/0001/001234.png
<directory>/images/0001/001234.black       why the safety checker made it black, if it did
<directory>/features/<network>/00019.npy   of the images of part 19

Images are sampled CHUNK at a time, always the same ones together, so that what comes after a kill
is what would have come without it. Parts of PART images go to processes in turn; whichever
process finds everything there goes on to the scores.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from imagen_jax.cascade import Cascade, Request, Settings, count_black
from imagen_jax.errors import UserError
from imagen_jax.eval.feature_sets import FeatureSet
from imagen_jax.eval.features.network import FeatureNetwork
from imagen_jax.eval.images import Files
from imagen_jax.eval.metrics.moments import Moments, merge_all
from imagen_jax.files import (
    atomic_path,
    differences,
    fingerprint,
    in_turn,
    only_writer,
    unused_name,
    write_json,
)
from imagen_jax.paths import as_path, those_there
from imagen_jax.progress import progress

CHUNK = 16
PART = 4 * CHUNK


class Unfinished(Exception):
    """Another process has not finished its part: scores are for whoever comes last."""


class ImageStore:
    """The sampled images of a directory; `Images`.

    Args:
      directory: directory of the job.
      prompts: texts, one for each image.
      seeds: seeds of the noise, one for each image.
      side: pixels per side.
      process: (which of several processes this is, how many there are).
    """

    made = "as they are"

    def __init__(
        self,
        directory: str | Path,
        prompts: Sequence[str],
        seeds: Sequence[int],
        side: int,
        process: tuple[int, int] = (0, 1),
    ):
        self.directory, self.side = as_path(directory), side
        self.name = f"sampled in {self.directory}"
        self.prompts, self.seeds = list(prompts), list(seeds)
        self._process = process

    def __len__(self) -> int:
        return len(self.prompts)

    def path(self, index: int) -> Path:
        """Path of an image, present or not."""
        return self.directory / "images" / f"{index // 1000:04d}" / f"{index:06d}.png"

    def read(self, start: int, end: int) -> np.ndarray:
        """See Images."""
        paths = [self.path(i) for i in range(start, end)]
        return Files(self.name, paths, self.side).read(0, len(paths))

    def fingerprint(self) -> str:
        """Of what determines the images."""
        return fingerprint(self._job())

    @property
    def parts(self) -> list[tuple[int, int]]:
        """(start, end) of every part."""
        return [(i, min(i + PART, len(self))) for i in range(0, len(self), PART)]

    def sample(
        self,
        cascade: Cascade,
        networks: Sequence[FeatureNetwork] = (),
        settings: Settings | None = None,
    ) -> None:
        """Samples what is not there yet of this process's parts, and computes their features.

        Raises:
          UserError: the directory holds images of another job; a prompt is too long; no stage of
            the cascade makes images from text alone.
          Unfinished: parts of other processes are not there yet.
        """
        if cascade.stages[0].low_res is not None:
            raise UserError(
                f"stage {cascade.stages[0].name!r} enlarges images, and an evaluation begins with "
                "none; train the base stage, too"
            )
        request = cascade.request(self.prompts, seed=self.seeds, **(settings or {}))
        lock = self.directory / "processes" / f"{self._process[0]:05d}"
        with only_writer(lock, "imagen evaluate"):
            self._claim(request)
            self._sample(cascade, request, networks)
        if absent := len(self) - len(those_there(self.path(i) for i in range(len(self)))):
            raise Unfinished(
                f"this process's part is done; {absent} of {len(self)} images of others are not "
                "there yet, and the process that finds them all computes the scores"
            )
        if any(black := self.black()):
            warnings.warn(f"{count_black(black)}, and count in all scores", stacklevel=2)

    def black(self) -> list[str]:
        """For each image why the safety checker of the cascade made it black, "" where it did
        not; [] for a cascade without one."""
        if not self._job().get("safety", {}).get("safety_checker"):
            return []
        paths = [self.path(i).with_suffix(".black") for i in range(len(self))]
        there = those_there(paths)
        return [path.read_text("utf-8") if path in there else "" for path in paths]

    def _sample(
        self, cascade: Cascade, request: Request, networks: Sequence[FeatureNetwork]
    ) -> None:
        process, processes = self._process
        chunks = [
            range(i, min(i + CHUNK, end))
            for start, end in self.parts[process::processes]
            for i in range(start, end, CHUNK)
        ]
        there = those_there(self.path(i) for chunk in chunks for i in chunk)
        missing = [c for c in chunks if not all(self.path(i) in there for i in c)]
        self._sweep({i for chunk in missing for i in chunk})
        done = sum(map(len, chunks)) - sum(map(len, missing))
        total = sum(map(len, chunks))
        with progress(total, "images", "images", done, disable=not missing) as bar:
            for chunk in missing:
                part = request.rows(chunk.start, chunk.stop)
                samples = cascade.run(part, show_progress=False)
                for i, image, black in zip(chunk, samples.images, samples.black, strict=True):
                    self.path(i).parent.mkdir(parents=True, exist_ok=True)
                    if black:
                        self.path(i).with_suffix(".black").write_text(black, "utf-8")
                    with atomic_path(self.path(i)) as temporary:
                        PILImage.fromarray(image).save(temporary, "PNG")
                bar.update(len(chunk))
        for network in networks:
            numbers = range(process, len(self.parts), processes)
            with progress(len(numbers), network.name, "parts") as bar:
                for number in numbers:
                    self._part_features(network, number)
                    bar.update()

    def _sweep(self, numbers: set[int]) -> None:
        """Remove what a killed run left of these images, which nobody else writes."""
        for folder in {self.path(i).parent for i in numbers}:
            for part in folder.glob("[0-9]*.png.*.tmp"):
                if int(part.name.partition(".")[0]) in numbers:
                    part.unlink()

    def features(self, network: FeatureNetwork) -> FeatureSet:
        """Features of all images; those that are there already are read."""
        parts = [self._part_features(network, number) for number in range(len(self.parts))]
        identity = network.identity | {"side": self.side}
        data = {"name": self.name, "made": self.made, "sha256": self.fingerprint()}
        moments = merge_all(Moments.of(part) for part in parts)
        return FeatureSet(np.concatenate(parts), identity, data, moments)

    def _part_features(self, network: FeatureNetwork, number: int) -> np.ndarray:
        identity = network.identity | {"side": self.side}
        folder = self.directory / "features" / f"{network.name}-{fingerprint(identity)[:8]}"
        path = folder / f"{number:05d}.npy"
        if not path.is_file():
            features = network(self.read(*self.parts[number]))
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.save(file, features)
        with path.open("rb") as file:
            return np.load(file)

    def _job(self) -> dict[str, Any]:
        return json.loads((self.directory / "job.json").read_bytes())

    def _claim(self, request: Request) -> None:
        stages = request.stages
        job: dict[str, Any] = {
            "cascade": {asked.name: asked.fingerprint for asked in stages},
            "pixels": {asked.name: asked.size[0] for asked in stages},
            "settings": {asked.name: dataclasses.asdict(asked.settings) for asked in stages},
            "prompts": fingerprint(self.prompts),
            "seeds": fingerprint([int(seed) for seed in self.seeds]),
            "count": len(self),
        }
        if request.safety is not None:
            job["safety"] = dict(request.safety)
        path = self.directory / "job.json"
        with in_turn(self.directory / "processes"):  # of processes that start at once
            if not path.is_file():
                write_json(path, job)
        if lines := differences(self._job(), json.loads(json.dumps(job))):
            raise UserError(
                f"{self.directory} holds images of another job (there != now): "
                + "; ".join(lines)
                + ". Choose another --output, or remove it"
            )


def keep_earlier(paths: Sequence[Path], record: bytes) -> None:
    """Give results of an earlier call other names, unless they say what is to be written now.

    Args:
      paths: files that are to be written, the record first: report.html becomes report-2.html, or
        the next number that is free.
      record: content of the first.
    """
    if not paths[0].is_file() or paths[0].read_bytes() == record:
        return
    for path in paths:
        if path.is_file():
            kept = unused_name(path, 2)
            path.rename(kept)
            print(f"{path} of an earlier call is now {kept.name}")
