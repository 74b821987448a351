"""Blind votes: the page hides which is which, and the tally finds it again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen_jax.errors import UserError
from imagen_jax.eval.vote_page import write_vote
from imagen_jax.eval.votes import QUESTIONS, table, tally

PROMPTS = [["a red </script> cat", "Colors"], ["two dogs", "Counting"], ["a pear", "Colors"]]


def write_run(folder: Path, shade: int) -> Path:
    """Output folder of `imagen evaluate prompts`, with images of one gray."""
    (folder / "images" / "0000").mkdir(parents=True)
    for i in range(6):
        image = np.full((8, 8, 3), shade + i, np.uint8)
        Image.fromarray(image).save(folder / "images" / "0000" / f"{i:06d}.png")
    record = {"prompts": "same", "per_prompt": 2, "job": shade, "scores": {"count": 6}}
    (folder / "scores.json").write_text(json.dumps(record))
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return write_run(tmp_path / "model-one", 50), write_run(tmp_path / "model-two", 150)


def page_data(page: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(found)


def shade(url: str) -> int:
    import base64
    import io

    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return int(np.asarray(image)[0, 0, 0])


def votes_for(data: dict[str, Any], wanted: str, person: str) -> dict[str, Any]:
    """Someone who sees which image is darker: model one; "none" has no preference."""
    votes = {}
    for i, pair in enumerate(data["pairs"]):
        darker = "left" if shade(pair["left"]) < shade(pair["right"]) else "right"
        lighter = "right" if darker == "left" else "left"
        answer = {"one": darker, "two": lighter, "none": "none"}[wanted]
        votes[str(i)] = dict.fromkeys(QUESTIONS, answer)
    return {"id": data["id"], "person": person, "votes": votes}


def test_votes_go_to_the_model_that_was_meant(runs: tuple[Path, Path], tmp_path: Path) -> None:
    assert write_vote(*runs, tmp_path / "vote", seed=3) == 6
    page = (tmp_path / "vote" / "for-voters" / "vote.html").read_text()
    data = page_data(page)
    assert "model-one" not in page
    assert "model-two" not in page
    darker_left = [shade(p["left"]) < shade(p["right"]) for p in data["pairs"]]
    assert 0 < sum(darker_left) < 6, "sides are mixed"
    assert sorted(p["text"] for p in data["pairs"]) == sorted(2 * [text for text, _ in PROMPTS])
    for pair in data["pairs"]:
        left, right = shade(pair["left"]) % 50, shade(pair["right"]) % 50
        assert left == right, "both show the same prompt and repetition"
        assert PROMPTS[left % 3][0] == pair["text"]

    files = []
    for person, wanted in (("ann", "one"), ("bob", "one"), ("cem", "none"), ("dee", "two")):
        files.append(tmp_path / f"votes-{person}.json")
        files[-1].write_text(json.dumps(votes_for(data, wanted, person)))
    result = tally(tmp_path / "vote" / "key.json", files)
    assert result["people"] == 4
    for question in QUESTIONS:
        row = result[question]["all"]
        assert (row["a"], row["none"], row["b"]) == (12, 6, 6)
        assert row["a_rate"] == pytest.approx(2 / 3)
        assert row["low"] < 2 / 3 < row["high"]
        assert (row["prompts"], row["a_prompts"]) == (6, 6)
        assert row["prompts_low"] == pytest.approx(0.025 ** (1 / 6))
        assert set(result[question]) == {"all", "Colors", "Counting"}
        assert result[question]["Counting"]["a"] == 4
    printed = table(result)
    assert "66.7 (" in printed
    assert all(text in printed for text in QUESTIONS.values())


def test_votes_of_another_page_or_damaged_ones_are_refused(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    write_vote(*runs, tmp_path / "vote")
    key = tmp_path / "vote" / "key.json"
    data = page_data((tmp_path / "vote" / "for-voters" / "vote.html").read_text())
    path = tmp_path / "votes.json"

    def refused(message: str, *files: Path, **changes: Any) -> None:
        path.write_text(json.dumps(votes_for(data, "one", "ann") | changes))
        with pytest.raises(ValueError, match=message):
            tally(key, files or [path])

    with pytest.raises(UserError, match="holds another vote, and its key is not overwritten"):
        write_vote(*runs, tmp_path / "vote")
    refused("votes on page 'other'", id="other")
    refused("given twice", path, path)
    refused("no such vote: pair 9", votes={"9": {"alignment": "left"}})
    refused("alignment: 'up'", votes={"0": {"alignment": "up"}})
    refused("it needs a person's name, and votes", person=1)
    refused("pair 0 has 'left' for its votes", votes={"0": "left"})
    with pytest.raises(ValueError, match="no votes"):
        tally(key, [])
    record = json.loads(key.read_text())
    for changes, message in (
        ({"pairs": {"0": {"left": "c", "category": "Text"}}}, "a pair has no category, or no left"),
        ({"pairs": {"0": {"left": "a"}}}, "KeyError: 'category'"),
    ):
        key.write_text(json.dumps(record | changes))
        with pytest.raises(UserError, match=rf"key\.json is no key of a page: {message}"):
            tally(key, [path])


def test_sides_cannot_be_computed(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Neither from the public code, nor from another page of the same runs."""
    keys = []
    for name in ("one", "two", "three"):
        write_vote(*runs, tmp_path / name)
        keys.append(json.loads((tmp_path / name / "key.json").read_text()))
        page = (tmp_path / name / "for-voters" / "vote.html").read_text()
        assert str(keys[-1]["seed"]) not in page
        assert [p.name for p in (tmp_path / name / "for-voters").iterdir()] == ["vote.html"]
    assert len({key["seed"] for key in keys}) == 3
    assert all(key["seed"] >= 2**64 for key in keys)
    write_vote(*runs, tmp_path / "again", seed=keys[0]["seed"])
    assert json.loads((tmp_path / "again" / "key.json").read_text()) == keys[0]


@pytest.mark.parametrize("content", [
    "[]", "null", "1", '"votes"', "{}", "[" * 100_000, '{"id": ', "\x00",
    '{"id": ID, "person": 1, "votes": {}}', '{"id": ID, "person": "a", "votes": []}',
    '{"id": ID, "person": "a", "votes": {"0": "left"}}', '{"id": ID, "person": ["a"], "votes": {}}',
    '{"id": ID, "person": "a", "votes": {"0": {"alignment": ["left"]}}}',
    '{"id": ID, "person": "a", "votes": {"0": {"alignment": null}}}',
    '{"id": ID, "votes": {}}', '{"id": ID, "person": "a"}', '{"id": [ID]}',
])  # fmt: skip
def test_votes_that_are_something_else_are_one_error(
    runs: tuple[Path, Path], tmp_path: Path, content: str
) -> None:
    write_vote(*runs, tmp_path / "vote", seed=1)
    key = tmp_path / "vote" / "key.json"
    identity = json.dumps(json.loads(key.read_text())["id"])
    path = tmp_path / "votes.json"
    path.write_text(content.replace("ID", identity))
    with pytest.raises(UserError, match=r"votes\.json"):
        tally(key, [path])
    with pytest.raises(UserError, match=r"votes\.json"):
        tally(path, [path])


def test_runs_that_differ_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = runs
    record = json.loads((two / "scores.json").read_text())
    (two / "scores.json").write_text(json.dumps(record | {"prompts": "others"}))
    with pytest.raises(ValueError, match="different prompts"):
        write_vote(one, two, tmp_path / "vote")
    (two / "scores.json").write_text(json.dumps(record))
    (two / "images" / "0000" / "000005.png").unlink()
    with pytest.raises(ValueError, match="has 6 images of 8 pixels"):
        write_vote(one, two, tmp_path / "vote")
    with pytest.raises(ValueError, match="hold the same images"):
        write_vote(one, one, tmp_path / "vote")
    with pytest.raises(UserError, match=r"no scores\.json"):
        write_vote(one, tmp_path, tmp_path / "vote")
