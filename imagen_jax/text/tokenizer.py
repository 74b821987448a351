"""Captions -> token ids, with a refusal to truncate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


class WordPiece:
    """The tokenizer of BERT, read from a `tokenizer.json` of Hugging Face's `tokenizers`.

    Normalisation and pre-tokenisation (lower case, accents stripped, punctuation split) are those
    that the file states. Its truncation and padding are switched off.
    """

    def __init__(self, path: str | Path, max_length: int) -> None:
        """Reads the file.

        Args:
          path: the tokenizer.json.
          max_length: most tokens a caption may have, [CLS] and [SEP] included.
        """
        from tokenizers import Tokenizer

        self.max_length = max_length
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Tokenises captions.

        Args:
          captions: n strings; the empty string gives [CLS] [SEP].

        Returns:
          n int32 arrays [l_i] of token ids, 2 <= l_i <= max_length.

        Raises:
          TypeError: captions is a single string.
          ValueError: a caption is too long; the message names it and its token count.
        """
        if isinstance(captions, str):
            raise TypeError(f"captions must be a list of strings, got the string {captions!r}")
        encodings = self._tokenizer.encode_batch(list(captions))
        ids = [np.asarray(encoding.ids, np.int32) for encoding in encodings]
        for caption, tokens in zip(captions, ids, strict=True):
            if len(tokens) > self.max_length:
                raise CaptionTooLongError(caption, len(tokens), self.max_length)
        return ids


class CaptionTooLongError(ValueError):
    """A caption has more tokens than the encoder takes."""

    def __init__(self, caption: str, tokens: int, max_length: int) -> None:
        shown = caption if len(caption) <= 200 else caption[:200] + "..."
        super().__init__(
            f"caption has {tokens} tokens ([CLS] and [SEP] included), the encoder takes at most "
            f"{max_length}; shorten it: {shown!r}"
        )
        self.tokens = tokens
