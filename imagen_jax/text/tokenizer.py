"""Captions -> token ids, with a refusal to truncate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.files import given_file
from imagen_jax.paths import as_path, local_copy


class WordPiece:
    """The tokenizer of BERT, read from a `tokenizer.json` of Hugging Face's `tokenizers`.

    Normalisation and pre-tokenisation (lower case, accents stripped, punctuation split) are those
    that the file states. Its truncation and padding are switched off.

    Attributes:
      wordless: tokens that stand for no word: unknown and special ones.
    """

    def __init__(self, path: str | Path, max_length: int) -> None:
        """Reads the file.

        Args:
          path: the tokenizer.json.
          max_length: most tokens a caption may have, [CLS] and [SEP] included.

        Raises:
          UserError: the file is no tokenizer.
        """
        self.max_length = max_length
        self._tokenizer = read_tokenizer(path)
        special = (self._tokenizer.token_to_id(token) for token in ("[UNK]", "[CLS]", "[SEP]"))
        self.wordless = frozenset(token for token in special if token is not None)

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Tokenises captions.

        Args:
          captions: n strings; the empty string gives [CLS] [SEP].

        Returns:
          n int32 arrays [l_i] of token ids, 2 <= l_i <= max_length.

        Raises:
          TypeError: captions is a single string.
          UserError: a caption is too long; the message names it and its token count.
        """
        captions = _list_of(captions)
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(captions)]
        return _arrays(captions, ids, self.max_length)


def read_tokenizer(path: str | Path) -> Any:
    """Return the `tokenizers.Tokenizer` of a `tokenizer.json`, which neither cuts off nor pads.

    Raises:
      UserError: the file is none.
    """
    from tokenizers import Tokenizer

    try:
        with local_copy(as_path(path)) as local:
            tokenizer = Tokenizer.from_file(str(local))
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # where Rust panics, it is no Exception
        raise UserError(f"{path} is no tokenizer of Hugging Face: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class SentencePiece:
    """The tokenizer of T5 and mT5 (Kudo & Richardson 2018), read from its model file.

    Ids are those of seqio.SentencePieceVocabulary, with the end-of-sentence token appended as in
    training. TensorFlow is not imported.
    """

    def __init__(self, path: str | Path, max_length: int) -> None:
        """Reads the file.

        Args:
          path: the model, `sentencepiece.model` or `spiece.model`.
          max_length: most tokens a caption may have, the end of the sentence included.

        Raises:
          UserError: the file is no SentencePiece model, or one without an end of sentence.
        """
        from sentencepiece import SentencePieceProcessor

        self.max_length = max_length
        try:
            with given_file(path, "vocabulary") as local:
                if not (content := local.read_bytes()):  # of which it makes a tokenizer of nothing
                    raise RuntimeError("it is empty")
                self._processor = SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise UserError(f"{path} is not a SentencePiece model: {error}") from error
        self.vocab_size = self._processor.vocab_size()
        self._end = self._processor.eos_id()
        if self._end < 0:
            raise UserError(f"{path} has no end-of-sentence token; it is not a vocabulary of T5")
        space = self._processor.piece_to_id("\u2581")
        self.wordless = frozenset({self._processor.unk_id(), self._end, space})

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Tokenises captions: n int32 arrays [l_i], 1 <= l_i <= max_length; see WordPiece."""
        captions = _list_of(captions)
        ids = [[*row, self._end] for row in self._processor.encode(captions)]
        return _arrays(captions, ids, self.max_length)


class Bytes:
    """The tokenizer of ByT5 (Xue et al. 2021): UTF-8 bytes, moved up by its 3 special tokens."""

    SPECIAL = 3
    END = 1

    def __init__(self, max_length: int) -> None:
        """Args:
        max_length: most bytes a caption may have, plus 1 for the end of the sentence.
        """
        self.max_length = max_length
        self.vocab_size = 256 + self.SPECIAL

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Tokenises captions: n int32 arrays [l_i], 1 <= l_i <= max_length; see WordPiece."""
        captions = _list_of(captions)
        ids = [[*(b + self.SPECIAL for b in c.encode()), self.END] for c in captions]
        return _arrays(captions, ids, self.max_length)


def _list_of(captions: Sequence[str]) -> list[str]:
    if isinstance(captions, str):
        raise TypeError(f"captions must be a list of strings, got the string {captions!r}")
    return list(captions)


def _arrays(captions: list[str], ids: list[list[int]], max_length: int) -> list[np.ndarray]:
    for caption, tokens in zip(captions, ids, strict=True):
        if len(tokens) > max_length:
            # What ends a sentence ends the shortened one, too.
            cut = np.asarray([*tokens[: max_length - 1], tokens[-1]], np.int32)
            raise CaptionTooLongError(caption, len(tokens), max_length, cut)
    return [np.asarray(tokens, np.int32) for tokens in ids]


class CaptionTooLongError(UserError):
    """A caption has more tokens than the encoder takes.

    Attributes:
      caption: the caption.
      tokens: number of its tokens.
      cut: int32 [max_length], its first tokens and the special token that ends a caption.
    """

    def __init__(self, caption: str, tokens: int, max_length: int, cut: np.ndarray) -> None:
        shown = caption if len(caption) <= 200 else caption[:200] + "..."
        super().__init__(
            f"caption has {tokens} tokens (special tokens included), the encoder takes at most "
            f"{max_length}; shorten it: {shown!r}"
        )
        self.caption = caption
        self.tokens = tokens
        self.cut = cut
