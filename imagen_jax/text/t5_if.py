"""Captions as DeepFloyd IF reads them: 77 tokens of T5, padding included.

IF's networks attend to all 77 states. Within T5 the padding is masked, so that the states of words
do not depend on it; its own states, which T5 was never trained to make, IF has learned to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from imagen_jax.errors import UserError
from imagen_jax.paths import local_path
from imagen_jax.text import t5
from imagen_jax.text.tokenizer import SentencePiece

LENGTH = 77
PADDING = 0
"""Token that T5 is padded with."""
ENCODER, VOCABULARY = "text_encoder", "tokenizer/spiece.model"
"""Directory of the weights and file of the vocabulary in a pipeline of diffusers."""


class PaddedCaptions:
    """The tokenizer of IF: lower case without spaces around, and padded to LENGTH tokens.

    This is what diffusers' `encode_prompt` does. Its pipelines when called with a prompt also take
    out web addresses, markup and the like, which captions from web pages were full of.
    """

    def __init__(self, vocabulary: Path) -> None:
        """Reads the file; see SentencePiece."""
        self._tokenize = SentencePiece(vocabulary, LENGTH)
        self.vocab_size = self._tokenize.vocab_size
        self.wordless = self._tokenize.wordless | {PADDING}

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Tokenises captions: n int32 arrays [LENGTH]; see WordPiece."""
        if not isinstance(captions, str):
            captions = [caption.lower().strip() for caption in captions]
        rows = self._tokenize(captions)
        return [np.pad(row, (0, LENGTH - len(row)), constant_values=PADDING) for row in rows]


def find_files(weights: str | Path, vocabulary: str | None) -> tuple[Path, Path]:
    """The directory of the weights, and the file of the vocabulary.

    Args:
      weights: a pipeline's directory, with text_encoder/ and tokenizer/ in it; or text_encoder/
        itself.
      vocabulary: another file of the vocabulary; None for the one in tokenizer/.

    Raises:
      UserError: there is no vocabulary.
    """
    directory = local_path(weights)
    root = directory if (directory / ENCODER).is_dir() else directory.parent
    found = root / VOCABULARY if vocabulary is None else local_path(vocabulary)
    if not found.is_file():
        raise UserError(
            f"no vocabulary at {found}; DeepFloyd IF has it as {VOCABULARY}, beside "
            f"{ENCODER}/; give the directory with both, or the file by itself"
        )
    return root / ENCODER if root == directory else directory, found


def make_network(config: t5.T5Config) -> Callable[[Any, ArrayLike, ArrayLike], jax.Array]:
    """The function (params, ids [b, l], mask) -> states [b, l, d] that hides padding from words.

    Its mask is not read: which tokens are padding, the ids say.
    """

    def encode(params: Any, ids: ArrayLike, mask: ArrayLike) -> jax.Array:
        del mask
        ids = jnp.asarray(ids)
        return t5.encode(params, config, ids, ids != PADDING)

    return encode
