"""Tally of votes: how often people preferred either of two cascades."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.eval.metrics.intervals import clopper_pearson_interval, wilson_interval
from imagen_jax.files import read_json

QUESTIONS = {
    "alignment": "Which shows more exactly what the text says?",
    "fidelity": "Which is the better image, whatever the text says?",
}
ANSWERS = ("left", "none", "right")


def tally(key_file: str | Path, vote_files: Sequence[str | Path]) -> dict[str, Any]:
    """Tally the votes.

    Args:
      key_file: key.json beside the page.
      vote_files: files downloaded from the page; one for each person.

    Returns:
      "models", "people", and for each of QUESTIONS: category (and "all") -> {"a", "none", "b"
      (votes), "a_rate", "low", "high" (share of a among votes with a preference, Wilson), "prompts"
      (prompts with a majority), "a_prompts", "prompts_low", "prompts_high" (Clopper-Pearson)}.

    Raises:
      UserError: votes of another page, or damaged ones.
    """
    key = _read_key(key_file)
    votes: dict[str, dict[str, Counter[str]]] = {question: {} for question in QUESTIONS}
    people = set()
    for path in vote_files:
        person, given = _read_votes(path, key, key_file)
        if person in people:
            raise UserError(f"{path}: votes of {person!r} are given twice")
        people.add(person)
        for pair, question, answer in given:
            choice = "none" if answer == "none" else key["pairs"][pair]["left"]
            if answer == "right":
                choice = "a" if choice == "b" else "b"
            votes[question].setdefault(pair, Counter())[choice] += 1
    if not people:
        raise UserError("no votes were given")
    result: dict[str, Any] = {"models": key["models"], "people": len(people)}
    for question, by_pair in votes.items():
        groups: dict[str, list[Counter[str]]] = {"all": list(by_pair.values())}
        for pair, counts in by_pair.items():
            groups.setdefault(key["pairs"][pair]["category"], []).append(counts)
        result[question] = {name: _rates(counts) for name, counts in groups.items()}
    return result


def _read_key(path: str | Path) -> dict[str, Any]:
    key = read_json(path, "key of a page")
    try:
        _ = str(key["id"]), f"{key['models']['a']} {key['models']['b']}"
        whole = all(
            pair["left"] in ("a", "b") and isinstance(pair["category"], str)
            for pair in key["pairs"].values()
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no key of a page: {type(error).__name__}: {error}") from error
    if not whole:
        raise UserError(f"{path} is no key of a page: a pair has no category, or no left model")
    return key


def _read_votes(
    path: str | Path, key: Mapping[str, Any], key_file: str | Path
) -> tuple[str, list[tuple[str, str, str]]]:
    """(person, votes as (pair, question, answer)) of a file that somebody sent."""
    content = read_json(path, "file of votes")
    if content.get("id") != key["id"]:
        raise UserError(
            f"{path} holds votes on page {content.get('id')!r}, but {key_file} is of {key['id']!r}"
        )
    person, given = content.get("person"), content.get("votes")
    if not isinstance(person, str) or not isinstance(given, dict):
        raise UserError(f"{path} is no file of votes: it needs a person's name, and votes")
    votes = []
    for pair, answers in given.items():
        if not isinstance(answers, dict):
            raise UserError(f"{path}: pair {pair} has {answers!r} for its votes")
        for question, answer in answers.items():
            known = question in QUESTIONS and isinstance(answer, str) and answer in ANSWERS
            if not known or pair not in key["pairs"]:
                raise UserError(f"{path}: no such vote: pair {pair}, {question}: {answer!r}")
            votes.append((pair, question, answer))
    return person, votes


def _rates(counts: Sequence[Counter[str]]) -> dict[str, float]:
    total = sum(counts, Counter[str]())
    decided = total["a"] + total["b"]
    row: dict[str, float] = {name: total[name] for name in ("a", "none", "b")}
    if decided:
        low, high = wilson_interval(total["a"], decided)
        row |= {"a_rate": total["a"] / decided, "low": low, "high": high}
    # Votes of several people on one pair are not independent; majorities on pairs are.
    majorities = [c["a"] > c["b"] for c in counts if c["a"] != c["b"]]
    row |= {"prompts": len(majorities), "a_prompts": sum(majorities)}
    if majorities:
        low, high = clopper_pearson_interval(sum(majorities), len(majorities))
        row |= {"prompts_low": low, "prompts_high": high}
    return row


def table(result: Mapping[str, Any]) -> str:
    """A tally as text."""
    lines = [f"a = {result['models']['a']}, b = {result['models']['b']}, "
             f"{result['people']} people"]  # fmt: skip
    for question, text in QUESTIONS.items():
        lines += ["", text]
        lines.append(
            f"{'':<22}{'a':>6}{'none':>6}{'b':>6}{'a, % of preferences':>26}"
            f"{'a, % of pairs by majority':>32}"
        )
        for name, row in result[question].items():
            by_vote = by_pair = "-"
            if "a_rate" in row:
                by_vote = _percent(row["a_rate"], row["low"], row["high"])
            if row["prompts"]:
                share = row["a_prompts"] / row["prompts"]
                by_pair = _percent(share, row["prompts_low"], row["prompts_high"])
            lines.append(
                f"{name:<22}{row['a']:>6}{row['none']:>6}{row['b']:>6}{by_vote:>26}{by_pair:>32}"
            )
    return "\n".join(lines)


def _percent(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} ({100 * low:.1f}-{100 * high:.1f})"
