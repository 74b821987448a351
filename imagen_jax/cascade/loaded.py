"""Loaded: stages, their weights and their text encoder, in memory when they are needed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack

from jax.sharding import Mesh

from imagen_jax.cascade.prompts import Prompt, encode, no_text
from imagen_jax.cascade.stages import Settings, choose_stages, stage_settings
from imagen_jax.checkpoints.cascades import open_cascade, tell_untrained
from imagen_jax.checkpoints.pretrained import Pretrained
from imagen_jax.chips import configure_jax
from imagen_jax.errors import UserError
from imagen_jax.sharding import make_mesh
from imagen_jax.stage_config import SampleConfig
from imagen_jax.text.encoder import TextEncoder, load_encoder
from imagen_jax.typing import TextEmbedding

if TYPE_CHECKING:
    from imagen_jax.cascade.safety import SafetyFilter


class Loaded:
    """Stages of one cascade, their weights and the text encoder: all of a Cascade but requests.

    Attributes: see Cascade.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        load_text_encoder: Callable[[], TextEncoder],
        *,
        stages: Sequence[str] | None = None,
        dtype: str | None = None,
        low_memory: bool = False,
        mesh: Mesh | None = None,
        safety_checker: bool = True,
    ):
        """Args:
        pretrained: the cascade on disk.
        load_text_encoder: loads the frozen encoder that the stages were trained with.
        stages, dtype, low_memory, mesh, safety_checker: as for load.

        Raises:
          UserError: stages that are not there, do not follow one another or read different text.
        """
        if dtype not in (None, "float32", "bfloat16"):
            raise UserError(f"dtype is {dtype!r}; choices: float32, bfloat16, or None")
        self.stages = [
            stage if dtype is None else stage.with_network(stage.network.with_dtype(dtype))
            for stage in choose_stages(pretrained.stages, stages)
        ]
        configure_jax()
        if stages is None:
            tell_untrained(pretrained)
        self.dtype = dtype
        self.low_memory = low_memory
        self._mesh = mesh
        self.source = pretrained.source
        self._pretrained = pretrained
        self._load_text_encoder = load_text_encoder
        self._encoder: TextEncoder | None = None
        self._weights: dict[str, Any] = {}
        self._safety = pretrained.safety
        if not safety_checker:
            if self._safety is None or self._safety.checker is None:
                raise UserError("the safety checker cannot be turned off: the cascade has none")
            self._safety = dataclasses.replace(self._safety, checker=None)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        encoder_weights: str | None = None,
        vocabulary: str | None = None,
        *,
        stages: Sequence[str] | None = None,
        lora: Mapping[str | Path, float] | None = None,
        dtype: str | None = None,
        low_memory: bool = False,
        lazy: bool = False,
        mesh: Mesh | None = None,
        safety_checker: bool = True,
    ) -> Self:
        """Load a cascade.

        Args:
          path: a work directory of `imagen train`, or what `imagen export` wrote; None is the small
            cascade that comes with the package.
          encoder_weights, vocabulary: files of the text encoder, see `load_encoder`; needed by
            cascades that were trained with T5.
          stages: names of those to use, one after another in the cascade; None is all. A later
            one as the first needs an image to start from.
          lora: files of changes of the weights that `imagen export --format lora` wrote, each with
            its strength, such as {"mine.safetensors": 1.0}.
          dtype: dtype of weights and activations, "float32" or "bfloat16"; None is float32 weights,
            and activations as the config says.
          low_memory: load the encoder, if there is a text to encode, and the weights of a stage
            when their turn comes, and free them after it, so that no more than one of them is in
            memory; else all are loaded now and kept.
          lazy: leave loading to load_rest, so that a request with a mistake is answered at once.
          mesh: devices; None is all of them, each with all weights and a part of every batch.
            Weights are divided over its axes fsdp and tensor, see sharding.LOGICAL_AXIS_RULES.
          safety_checker: False leaves out the safety checker of a cascade that has one, as those
            imported from DeepFloyd IF do; records of images say so.

        Raises:
          UserError: no cascade is there, or a stage has no checkpoint yet; stages that do not
            belong together, or another text encoder than they were trained with.
        """
        pretrained = open_cascade(path, lora=lora)
        recorded = pretrained.encoder

        def load_text_encoder() -> TextEncoder:
            encoder = load_encoder(recorded["name"], encoder_weights, vocabulary)
            if encoder.fingerprint != recorded["fingerprint"]:
                raise UserError(
                    f"the cascade was trained with embeddings of encoder {recorded['name']!r} with "
                    f"fingerprint {recorded['fingerprint']}, but the one here has "
                    f"{encoder.fingerprint}; use the weights and vocabulary that it was trained "
                    "with"
                )
            return encoder

        cascade = cls(
            pretrained, load_text_encoder, stages=stages, dtype=dtype, low_memory=low_memory,
            mesh=mesh, safety_checker=safety_checker,
        )  # fmt: skip
        if not lazy:
            cascade.load_rest()
        return cascade

    def load_rest(self) -> None:
        """Load what is not in memory, unless low_memory loads each part when its turn comes.

        Raises:
          UserError: another text encoder than the stages were trained with, or damaged weights.
        """
        if not self.low_memory:
            _ = self.encoder
            for stage in self.stages:
                self.weights(stage.name)
            if self.safety_filter is not None:
                self.safety_filter.load()

    @property
    def size(self) -> int:
        """Pixels per side of the images that the cascade makes unless asked for another size."""
        return self.stages[-1].resolution

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Devices that batches are divided over, and weights laid out on."""
        return make_mesh() if self._mesh is None else self._mesh

    @property
    def encoder(self) -> TextEncoder:
        """The text encoder, loaded unless it is in memory."""
        if self._encoder is None:
            self._encoder = self._load_text_encoder()
        return self._encoder

    def weights(self, name: str) -> Any:
        """Return the weights of a stage on the mesh, loaded unless they are in memory."""
        if name not in self._weights:
            (stage,) = (stage for stage in self.stages if stage.name == name)
            self._weights[name] = self._pretrained.weights(stage, self.mesh, self.dtype)
        return self._weights[name]

    @property
    def applied(self) -> dict[str, str | None] | None:
        """Hashes of all that is applied to images that are done, see Request.safety."""
        return None if self._safety is None else self._safety.digests

    @functools.cached_property
    def safety_filter(self) -> SafetyFilter | None:
        """Applies safety checker and watermark to images; None for a cascade without both."""
        if self._safety is None:
            return None
        from imagen_jax.cascade.safety import SafetyFilter

        return SafetyFilter(self._safety)

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Stage name -> hash of all that decides its images, see Pretrained.fingerprint."""
        return {stage.name: self._pretrained.fingerprint(stage) for stage in self.stages}

    def without_weights(self) -> Self:
        """Return the same to make requests with, not their images.

        It can be pickled, is small, and uses no device: a process that takes requests asks another
        one, which has the weights, to run them.
        """
        digests = {stage: self._pretrained.digest(stage) for stage in self.stages}
        pretrained = dataclasses.replace(
            self._pretrained, read=_without_weights, digest=digests.__getitem__
        )
        encoder = dataclasses.replace(self.encoder, network=_without_weights, params=None)
        stages = [stage.name for stage in self.stages]
        safety = self._safety
        if safety is not None:
            _ = safety.digests  # while the files are there
        made = type(self)(pretrained, functools.partial(_same, encoder), stages=stages)
        made._safety = safety
        return made

    def settings(self, **overrides: Unpack[Settings]) -> dict[str, SampleConfig]:
        """Return the settings of every stage: its defaults, replaced by what is not None.

        Args:
          **overrides: fields of SampleConfig; a value holds for all stages, a mapping from stage
            names to values for those stages.

        Raises:
          UserError: an unknown field or stage, or a value of another type or out of range.
        """
        return stage_settings(self.stages, overrides)

    def encode(self, prompts: Sequence[Prompt]) -> TextEmbedding:
        """Return token states of prompts, as `sample` takes them for its text; see prompts.encode.

        Raises:
          UserError: a prompt is too long, or the two of a blend do not have equally many tokens.
        """
        config = self.stages[0].text
        if not any(prompts):  # precomputed text needs no encoder
            return no_text(len(prompts), config.max_length, config.width)
        text = encode(self.encoder, prompts, config.max_length)
        if self.low_memory:
            self._encoder = None
        return text


def _without_weights(*_: Any) -> NoReturn:
    raise RuntimeError("this cascade has no weights: it makes requests alone")


def _same(encoder: TextEncoder) -> TextEncoder:
    return encoder
