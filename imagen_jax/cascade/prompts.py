"""Prompts, blends of two prompts, negative prompts; and their token states."""

from __future__ import annotations

import bisect
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.stage_config import TextConfig
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.tokenizer import CaptionTooLongError
from imagen_jax.typing import TextEmbedding

HOW = ("slerp", "lerp")
_SHOWN = 80
"""Characters of a prompt that messages show."""


@dataclasses.dataclass(frozen=True)
class Blend:
    """A text between two prompts, to be given in place of a prompt.

    Token by token, the states of the two are interpolated: "lerp" on the straight line, "slerp" on
    the arc, lengths linearly (Shoemake 1985). The prompts must have equally many tokens, since it
    has no meaning to be half a token long.

    Attributes:
      first, second: the prompts.
      weight: share of the second, in [0, 1].
      how: one of HOW.
    """

    first: str
    second: str
    weight: float
    how: str = "slerp"

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise UserError(f"a blend's how is {self.how!r}; choices: {', '.join(HOW)}")
        if not 0.0 <= self.weight <= 1.0:
            raise UserError(f"a blend's weight is {self.weight}; it must be in [0, 1]")

    def __str__(self) -> str:
        return f"{1 - self.weight:.0%} {self.first} + {self.weight:.0%} {self.second}"


Prompt = str | Blend


def check_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """The prompts, stripped.

    Raises:
      UserError: none were given, or one is empty or no text.
    """
    if isinstance(prompts, str | Blend):
        prompts = [prompts]
    checked = [_checked(prompt, f"prompt {i}") for i, prompt in enumerate(prompts)]
    if not checked:
        raise UserError("no prompts were given; pass at least one")
    for i, prompt in enumerate(checked):
        if not (prompt if isinstance(prompt, str) else prompt.first and prompt.second):
            raise UserError(f"prompt {i} is empty")
    return checked


def check_negative_prompts(negative: str | Sequence[str] | None, count: int) -> list[str]:
    """One negative prompt for each of `count` prompts, stripped; "" is none.

    Raises:
      UserError: another number of them, or one is no text.
    """
    if negative is None or isinstance(negative, str):
        negative = [negative or ""] * count
    if len(negative) != count:
        raise UserError(
            f"{len(negative)} negative prompts for {count} prompts; give one for all, or one each"
        )
    return [str(_checked(text, f"negative prompt {i}")) for i, text in enumerate(negative)]


def _checked(prompt: Prompt, which: str) -> Prompt:
    if isinstance(prompt, Blend):
        first, second = (str(_checked(p, which)) for p in (prompt.first, prompt.second))
        return dataclasses.replace(prompt, first=first, second=second)
    if not isinstance(prompt, str):
        raise UserError(f"{which} must be a text, got {prompt!r}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{which} is not valid Unicode: {error}") from error
    return prompt.strip()


def tokenize(encoder: TextEncoder, prompts: Sequence[Prompt], length: int) -> dict[str, np.ndarray]:
    """Token ids [l_i] of every distinct text in the prompts; "" has none.

    Raises:
      UserError: a text has more than `length` tokens.
    """
    texts = dict.fromkeys(
        text
        for prompt in prompts
        for text in ([prompt] if isinstance(prompt, str) else [prompt.first, prompt.second])
        if text
    )
    try:
        tokens = dict(zip(texts, encoder.tokenize(list(texts)), strict=True))
    except CaptionTooLongError as error:
        raise _too_long(error.caption, error.tokens, min(length, encoder.max_length)) from error
    for text, row in tokens.items():
        if len(row) > length:
            raise _too_long(text, len(row), length)
    return tokens


def _too_long(text: str, tokens: int, most: int) -> UserError:
    return UserError(
        f"prompt {_shown(text)} has {tokens} tokens; this cascade was trained with at most {most}. "
        "Shorten the prompt."
    )


def cut_prompts(encoder: TextEncoder, prompts: Sequence[str], length: int) -> list[str]:
    """Prompts with as many of their first words as have at most `length` tokens together.

    Of a first word that has more alone, its first characters are kept.
    """

    def fits(text: str) -> bool:
        try:
            return len(encoder.tokenize([text])[0]) <= length
        except CaptionTooLongError:
            return False

    def cut(prompt: str) -> str:
        if fits(prompt):
            return prompt
        end = bisect.bisect_left(range(len(prompt)), True, key=lambda n: not fits(prompt[:n])) - 1
        words = prompt[:end].rsplit(maxsplit=1)
        within = not any(map(str.isspace, prompt[end - 1 : end + 1]))  # the last word
        return words[0] if within and len(words) > 1 else prompt[:end].rstrip()

    return [cut(prompt) for prompt in prompts]


def check_words(encoder: TextEncoder, prompts: Sequence[Prompt], length: int) -> None:
    """Raise UserError for prompts that are too long, see tokenize.

    Warns:
      UserWarning: prompts without any word that the encoder knows.
    """
    tokens = tokenize(encoder, prompts, length)
    unknown = [text for text, row in tokens.items() if not encoder.knows_a_word(row)]
    if unknown:
        others = f" ({len(unknown) - 1} other prompts have none, either)" if unknown[1:] else ""
        warnings.warn(
            f"prompt {_shown(unknown[0])} has no word that the text encoder knows: what it makes "
            f"has nothing to do with it{others}",
            stacklevel=3,
        )


def encode(encoder: TextEncoder, prompts: Sequence[Prompt], length: int) -> Any:
    """Token states of prompts; every distinct text is encoded once.

    Args:
      encoder: encoder that the cascade was trained with.
      prompts: n; "" is no text at all: its mask is all False and its states are 0.
      length: length that the stages were trained with.

    Returns:
      TextEmbedding, in NumPy: states [n, length, d], 0 where masked, and mask [n, length].

    Raises:
      UserError: a prompt has more tokens than that, or the two of a blend not equally many.
    """
    tokens = tokenize(encoder, prompts, length)
    states = dict(zip(tokens, encoder.encode_tokens(list(tokens.values())), strict=True))

    def of(prompt: Prompt) -> np.ndarray:
        if isinstance(prompt, Blend):
            return blend(prompt, states[prompt.first], states[prompt.second])
        return states[prompt] if prompt else np.zeros((0, encoder.width), np.float32)

    text = no_text(len(prompts), length, encoder.width)
    for i, prompt in enumerate(prompts):
        row = of(prompt)
        text.states[i, : len(row)] = row
        text.mask[i, : len(row)] = True
    return text


def no_text(count: int, length: int, width: int) -> Any:
    """The TextEmbedding, in NumPy, of `count` empty texts: all masked."""
    return TextEmbedding(
        np.zeros((count, length, width), np.float32),  # type: ignore[arg-type]
        np.zeros((count, length), bool),  # type: ignore[arg-type]
    )


def check_text(text: TextEmbedding, count: int, config: TextConfig) -> Any:
    """Given token states of `count` prompts, padded as `encode` does.

    Raises:
      UserError: states or a mask of another shape.
    """
    states, mask = (np.asarray(x) for x in text)
    length, width = config.max_length, config.width
    fits = states.ndim == 3 and states.shape[0] == count and states.shape[2] == width
    if not fits or mask.shape != states.shape[:2] or mask.shape[1] > length:
        raise UserError(
            f"text must have states [{count}, l, {width}] and a mask [{count}, l] with l at most "
            f"{length}; got {list(states.shape)} and {list(mask.shape)}"
        )
    padded = no_text(count, length, width)
    padded.states[:, : mask.shape[1]] = np.where(mask[..., None], states, 0)
    padded.mask[:, : mask.shape[1]] = mask
    return padded


def blend(what: Blend, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Token states [l, d] between those of two prompts.

    Raises:
      UserError: they do not have equally many tokens.
    """
    if len(first) != len(second):
        raise UserError(
            f"only prompts with equally many tokens can be blended; {_shown(what.first)} has "
            f"{len(first)} and {_shown(what.second)} has {len(second)}"
        )
    w = np.float32(what.weight)
    straight = (1 - w) * first + w * second
    if what.how == "lerp":
        return straight
    lengths = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (first, second)]
    u, v = (x / np.maximum(n, 1e-12) for x, n in zip((first, second), lengths, strict=True))
    angle = np.arccos(np.clip((u * v).sum(-1, keepdims=True), -1, 1))
    # On arcs too short or too long for the sines, and for zero states, the straight line.
    defined = (np.sin(angle) > 1e-3) & (lengths[0] > 0) & (lengths[1] > 0)
    sine = np.where(defined, np.sin(angle), 1)
    direction = (np.sin((1 - w) * angle) * u + np.sin(w * angle) * v) / sine
    return np.where(defined, ((1 - w) * lengths[0] + w * lengths[1]) * direction, straight)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
