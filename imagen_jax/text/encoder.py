"""The interface of a frozen text encoder, and the encoders by name."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from imagen_jax.chips import configure_jax
from imagen_jax.errors import UserError
from imagen_jax.files import differences
from imagen_jax.paths import as_path, local_path
from imagen_jax.text import minilm, t5, t5_if
from imagen_jax.text.tokenizer import Bytes, SentencePiece, WordPiece
from imagen_jax.typing import TextEmbedding

LENGTH_BUCKETS = (8, 12, 16, 20, 24, 32, 48, 64, 77, 96, 128)
"""Token counts that the network is compiled for: fine steps, since padded tokens cost as much."""
BATCH_BUCKETS = (8, 64)
"""Batch sizes that the network is compiled for."""
RESULT_LENGTHS = (8, 16, 32, 64, 77, 128)
"""Lengths that `encode` pads to: coarse steps, so that few programs are compiled downstream."""

IN_FLIGHT = 2
"""Batches that are computed while the next one is put together."""
MAX_LENGTH = 128
"""Most tokens of a caption, for all encoders; Imagen's T5 reads as many."""
RANDOM_SEED = 0
T5_VOCABULARY_FILE = "spiece.model"
BYTES = "bytes"
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A frozen text encoder: any tokenizer and network with these fields.

    Attributes:
      name: key in `ENCODERS`.
      width: channels d of the token states.
      max_length: most tokens a caption may have, special tokens included.
      fingerprint: sha256 over the weights and the tokenizer; two encoders with the same
        fingerprint give the same states.
      tokenize: n captions -> n int32 arrays [l_i]; raises UserError for more than max_length.
      network: (params, ids [b, l] int32, mask [b, l] bool) -> states [b, l, d].
      params: weights of the network.
      dtype: dtype of the network's activations; not part of the fingerprint, since states differ by
        rounding only.
    """

    name: str
    width: int
    max_length: int
    fingerprint: str
    tokenize: Callable[[Sequence[str]], list[np.ndarray]]
    network: Callable[[Any, ArrayLike, ArrayLike], jax.Array] = field(repr=False)
    params: Any = field(repr=False)
    dtype: str = "float32"

    def knows_a_word(self, tokens: np.ndarray) -> bool:
        """Return False if the tokenizer knows no word of a caption with these tokens."""
        wordless: frozenset[int] = getattr(self.tokenize, "wordless", frozenset())
        return not set(tokens.tolist()) <= wordless

    def encode(self, captions: Sequence[str]) -> TextEmbedding:
        """Encodes captions for immediate use.

        Args:
          captions: n >= 1 strings; the empty string is allowed.

        Returns:
          states [n, l, d] float32 and mask [n, l] bool, with l the one of RESULT_LENGTHS
          that holds the longest caption. States are 0 where masked.

        Raises:
          UserError: no captions, or one is too long (named with its token count).
        """
        rows = self.encode_tokens(
            self.tokenize(captions), name_of=lambda i: repr(shorten(captions[i], 200))
        )
        if not rows:
            raise UserError("no captions to encode: the list is empty")
        length = _bucket(max(len(row) for row in rows), RESULT_LENGTHS)
        states = np.zeros((len(rows), length, self.width), np.float32)
        mask = np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            states[i, : len(row)] = row
            mask[i, : len(row)] = True
        return TextEmbedding(jnp.asarray(states), jnp.asarray(mask))

    def encode_tokens(
        self,
        tokens: Sequence[np.ndarray],
        on_progress: Callable[[int], None] = lambda captions: None,
        name_of: Callable[[int], str] = lambda number: f"caption {number}",
    ) -> list[np.ndarray]:
        """Encodes many tokenised captions, without padding in the result.

        Captions are sorted by length, so that few of the padded tokens are computed in vain.

        Args:
          tokens: n int32 arrays [l_i], from `tokenize`.
          on_progress: called with the number of captions that each batch finished.
          name_of: says which caption `tokens[i]` is, for an error.

        Returns:
          n float32 arrays [l_i, d], in the order of `tokens`.

        Raises:
          UserError: states that are not finite.
        """
        result: list[np.ndarray] = [np.zeros((0, self.width), np.float32)] * len(tokens)
        running: deque[tuple[list[int], Any]] = deque()

        def finish() -> None:
            members, states = running.popleft()
            rows = np.asarray(states)[: len(members)].astype(np.float32, copy=False)
            if not np.isfinite(rows).all():
                first = members[int(np.isfinite(rows).all((1, 2)).argmin())]
                raise UserError(
                    f"the text encoder {self.name!r} returns NaN or infinity, first for "
                    f"{name_of(first)}: its weights are damaged, or its dtype is too narrow for "
                    "them (--encoder-dtype float32)"
                )
            for i, row in zip(members, rows, strict=True):
                result[i] = row[: len(tokens[i])].copy()
            on_progress(len(members))

        for shape, members in self.batches([len(row) for row in tokens]):
            running.append((members, self._start([tokens[i] for i in members], shape)))
            if len(running) > IN_FLIGHT:
                finish()
        while running:
            finish()
        return result

    def batches(self, lengths: Sequence[int]) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """Batches of captions of these lengths: ((b, l) that the network runs on, indices)."""
        by_bucket: dict[int, list[int]] = {}
        for i, size in enumerate(lengths):
            by_bucket.setdefault(_bucket(size, LENGTH_BUCKETS), []).append(i)
        for length, members in sorted(by_bucket.items()):
            for start in range(0, len(members), BATCH_BUCKETS[-1]):
                chunk = members[start : start + BATCH_BUCKETS[-1]]
                yield (_bucket(len(chunk), BATCH_BUCKETS), length), chunk

    def _start(self, rows: list[np.ndarray], shape: tuple[int, int]) -> Any:
        """States of a batch, which may still be computed."""
        ids = np.zeros(shape, np.int32)
        mask = np.zeros(shape, bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = True
        return self.network(self.params, ids, mask)


def load_encoder(
    name: str,
    weights: str | Path | None = None,
    vocabulary: str | None = None,
    dtype: str = "float32",
) -> TextEncoder:
    """Loads a frozen text encoder.

    Args:
      name: "minilm" (pretrained), "minilm-random": the same architecture and tokenizer with
        weights as drawn before training, the baseline for what pretraining buys; "minilm-words":
        the pretrained word embeddings without the transformer, a bag of words, the baseline for
        what context and order buy; "t5": any T5 encoder, its sizes read from the weights; or
        "t5-if": the same, with captions as DeepFloyd IF reads them, see t5_if.
      weights: for MiniLM, a directory with the weights and the tokenizer, or None for the installed
        package; for T5, a checkpoint as load_t5_encoder reads it; for t5-if, see t5_if.find_files.
      vocabulary: for T5 only: the file of its SentencePiece model, "bytes" for ByT5, or None
        for the spiece.model beside the weights (as Hugging Face lays them out).
      dtype: dtype of weights and activations, "float32" or, of T5 only, "bfloat16": several times
        faster on accelerators.

    Raises:
      UserError: unknown name or dtype, T5 without weights, MiniLM with a vocabulary, a vocabulary
        with more tokens than the weights embed, or files that are damaged.
      UserError: the weights or the vocabulary are not there; says what to do.
    """
    configure_jax()
    if name not in ENCODERS:
        raise UserError(f"unknown text encoder {name!r}; choose one of {', '.join(ENCODERS)}")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r} of a text encoder; choices: {', '.join(DTYPES)}")
    return ENCODERS[name](weights, vocabulary, dtype)


def fingerprint(params: Any, *files: Path) -> str:
    """sha256 (hex) over names, shapes and values of the weights, and the bytes of files."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        hash_array(digest, jax.tree_util.keystr(path), leaf)
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def hash_array(digest: Any, name: str, values: ArrayLike) -> None:
    """Update a hash by the name, the dtype, the shape and the values of an array."""
    array = np.ascontiguousarray(values)
    digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
    digest.update(array)


def _minilm(
    name: str,
    read: Callable[[Path], minilm.Params],
    network: Callable[[minilm.Params, ArrayLike, ArrayLike], jax.Array],
    weights: str | Path | None,
    vocabulary: str | None,
    dtype: str,
) -> TextEncoder:
    if vocabulary is not None:
        raise UserError(f"encoder {name!r} brings its own vocabulary; give none")
    if dtype != "float32":
        raise UserError(f"encoder {name!r} computes in float32 only, not in {dtype}")
    if weights is None:
        weights_file, tokenizer_file = minilm.PACKAGE.files()
    else:
        weights_file, tokenizer_file = (
            local_path(weights) / file for file in minilm.PACKAGE.sha256
        )
    for file in (weights_file, tokenizer_file):
        if not file.is_file():
            raise UserError(f"no {file.name} in {weights}; it is needed for encoder {name!r}")
    params = read(weights_file)
    return TextEncoder(
        name=name,
        width=minilm.MINILM_L6.width,
        max_length=MAX_LENGTH,
        fingerprint=fingerprint(params, tokenizer_file),
        tokenize=WordPiece(tokenizer_file, MAX_LENGTH),
        network=jax.jit(network),
        params=jax.device_put(params),
    )


def _transformer(params: minilm.Params, ids: ArrayLike, mask: ArrayLike) -> jax.Array:
    states: Any = minilm.Bert(minilm.MINILM_L6).apply({"params": params}, ids, mask)
    return states


def _t5(weights: str | Path | None, vocabulary: str | None, dtype: str) -> TextEncoder:
    if weights is None:
        raise UserError(
            "encoder 't5' needs its weights: the directory of a T5X checkpoint "
            "(.../checkpoint_1000000) or of Hugging Face safetensors"
        )
    weights = as_path(weights)
    files: list[Path] = []
    tokenize: Bytes | SentencePiece
    if vocabulary == BYTES:
        tokenize = Bytes(MAX_LENGTH)
    else:
        files = [weights / T5_VOCABULARY_FILE if vocabulary is None else as_path(vocabulary)]
        if not files[0].is_file():
            raise UserError(
                f"no vocabulary at {files[0]}; give the SentencePiece model that the weights were "
                f"trained with, or {BYTES!r} for ByT5"
            )
        tokenize = SentencePiece(files[0], MAX_LENGTH)
    config, params, digest = _read_t5(weights, tokenize.vocab_size, files, dtype)
    return TextEncoder(
        name="t5",
        width=config.width,
        max_length=MAX_LENGTH,
        fingerprint=digest,
        tokenize=tokenize,
        network=jax.jit(lambda params, ids, mask: t5.encode(params, config, ids, mask)),
        params=params,
        dtype=dtype,
    )


def _t5_if(weights: str | Path | None, vocabulary: str | None, dtype: str) -> TextEncoder:
    if weights is None:
        raise UserError(
            "encoder 't5-if' needs its weights: the directory of a DeepFloyd IF pipeline, with "
            "text_encoder/ and tokenizer/ in it"
        )
    directory, file = t5_if.find_files(weights, vocabulary)
    tokenize = t5_if.PaddedCaptions(file)
    config, params, digest = _read_t5(directory, tokenize.vocab_size, [file], dtype)
    return TextEncoder(
        name="t5-if",
        width=config.width,
        max_length=t5_if.LENGTH,
        fingerprint=hashlib.sha256(f"t5-if {digest}".encode()).hexdigest(),
        tokenize=tokenize,
        network=jax.jit(t5_if.make_network(config)),
        params=params,
        dtype=dtype,
    )


def _read_t5(
    weights: str | Path, vocab_size: int, files: Sequence[Path], dtype: str
) -> tuple[t5.T5Config, t5.Params, str]:
    """The encoder of a checkpoint in a dtype, and the fingerprint of its weights and files.

    Every parameter is cast as it is read: no second copy of all is in memory.
    """
    # Imported here: its libraries would slow down the start of all that reads no checkpoint.
    from imagen_jax.text.t5_checkpoint import load_t5_encoder

    digest = hashlib.sha256()

    def take(name: str, array: np.ndarray) -> np.ndarray:
        hash_array(digest, "".join(f"[{part!r}]" for part in name.split("/")), array)
        return array.astype(jnp.bfloat16) if dtype == "bfloat16" else array

    config, params = load_t5_encoder(weights, t5.shardings(jax.local_devices()), take)
    if vocab_size > config.vocab_size:
        raise UserError(
            f"the vocabulary has {vocab_size} tokens, but the weights in {weights} embed "
            f"only {config.vocab_size}; they do not belong together"
        )
    for file in files:
        digest.update(file.read_bytes())
    found = digest.hexdigest()
    # What weights do not say, where it is not what they are usually for.
    usual = t5.config_of(params)
    if differing := differences(dataclasses.asdict(usual), dataclasses.asdict(config)):
        found = hashlib.sha256("\n".join([found, *differing]).encode()).hexdigest()
    if dtype == "bfloat16":
        config = dataclasses.replace(config, dtype="bfloat16")
    return config, params, found


def _bucket(size: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds `size`."""
    return next(bucket for bucket in buckets if bucket >= size)


ENCODERS: Mapping[str, Callable[[str | Path | None, str | None, str], TextEncoder]] = {
    "minilm": functools.partial(_minilm, "minilm", minilm.read_params, _transformer),
    "minilm-random": functools.partial(
        _minilm, "minilm-random", lambda _: minilm.random_params(RANDOM_SEED), _transformer
    ),
    "minilm-words": functools.partial(
        _minilm,
        "minilm-words",
        lambda path: {"word": minilm.read_params(path)["word"]},
        lambda params, ids, mask: minilm.word_states(params, jnp.asarray(ids)),
    ),
    "t5": _t5,
    "t5-if": _t5_if,
}
