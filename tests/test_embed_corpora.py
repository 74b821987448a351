"""Embedding a corpus: what is left out, the report, the estimate, and the command's mistakes."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from corpus_files import CAPTIONS, GOOD, IMAGES, SIZE, Pairs, embed_pairs, encoded, pixels

from imagen_jax.data import records
from imagen_jax.data.choices import STATES
from imagen_jax.embed.estimate import Chip, estimate, report
from imagen_jax.embed.prepare import Handling, prepare
from imagen_jax.main import main


def test_dropped_examples_are_counted_and_listed(tmp_path: Path) -> None:
    big = encoded(pixels(1, 16, 24), "JPEG")
    words = " ".join("abcdefgh")
    pairs = [("a dog", GOOD), ("", GOOD), ("a cat", None), ("a cat", GOOD[:60]), ("a cat", b"x"),
             ("a cat", encoded(pixels(0, 8, 7))), ("a cat", big), (words, GOOD),
             ("\u200b \u2060", GOOD)]  # fmt: skip
    split = embed_pairs(tmp_path / "exact", *pairs)["splits"]["train"]
    assert (split["examples"], split["captions"], split["tokens"]) == (1, 1, 2)
    assert split["dropped"] == {
        "empty caption": 2, "no image": 1, "damaged image": 1,
        "image is text, which is not read": 1,
        "image is smaller than 8 x 8 pixels": 1, "image is larger than 8 x 8 pixels": 1,
        "caption of more than 7 tokens": 1,
    }  # fmt: skip
    (listing,) = (tmp_path / "exact").glob("*.dropped")
    listed = {line["id"]: line for line in map(json.loads, listing.read_text().splitlines())}
    assert listed.keys() == set("12345678")
    assert listed["5"]["detail"] == "7 x 8"
    assert listed["7"]["detail"] == "8 tokens"

    split = embed_pairs(tmp_path / "crop", *pairs, fit="crop", long_captions="truncate")["splits"][
        "train"
    ]
    assert split["examples"] == 3
    assert split["changed"] == {"reduced": 1, "cropped": 1, "caption cut to 7 tokens": 1}
    last = list(records.read_records(tmp_path / "crop" / split["shards"][0]))[-1]
    encoder = tiny.encoder()
    expected = encoder.encode_tokens(encoder.tokenize([" ".join("abcdefg")]))[0]
    np.testing.assert_array_equal(last.states[0], expected.astype(last.states[0].dtype))
    assert last.captions == (words,)


def test_the_report_shows_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [("a <b> dog", GOOD), ("two blue cats", encoded(pixels(1, 20, 30), "JPEG")), ("", GOOD)]
    embed_pairs(tmp_path / "data", *pairs, fit="crop", num_shards=2)
    report_file = tmp_path / "report.html"
    assert main(["data", "inspect", str(tmp_path / "data"), "--output", str(report_file)]) == 0
    assert "from 2 examples" in capsys.readouterr().out
    assert main(["data", "inspect", str(tmp_path / "data")]) == 64
    assert "--output is missing: the HTML file with the report on" in capsys.readouterr().err
    text = report_file.read_text()
    for expected in (
        "a &lt;b&gt; dog", "two blue cats", "1 empty caption", "1 cropped; 1 reduced", "8-15",
        "16-31", "2, in 2 shards of 1 to 1", "6, 3.0 to an example", "8 x 8 pixels",
    ):  # fmt: skip
        assert expected in text, expected
    assert text.count("<img") == 2
    assert base64.b64encode(GOOD).decode() in text


def test_an_estimate_is_what_embedding_gives(tmp_path: Path) -> None:
    pairs = [(caption, image) for caption, image in zip(CAPTIONS, IMAGES, strict=True)]
    chip = Chip(tflops=2.0, utilisation=0.5, price=3.0)
    handling = Handling(SIZE, "exact", "drop")
    found = estimate(Pairs(*pairs, ("", GOOD)), tiny.encoder(), handling, 1000, chip)
    assert (found.sampled, found.usable, found.distinct) == (5, 0.8, 0.75)
    assert found.tokens == np.mean([len(caption.split()) for caption in CAPTIONS])
    for states in STATES:
        split = embed_pairs(tmp_path / states, *pairs, states=states)["splits"]["train"]
        framed = split["bytes"] / split["examples"] - 16
        assert found.bytes_of[states] == pytest.approx(framed, rel=1e-6)
    assert found.chip_hours == pytest.approx(
        1000 * 0.8 * 0.75 * found.flops * 6 / (2e12 * 0.5) / 3600
    )
    assert found.cost == pytest.approx(3 * found.chip_hours)
    text = report(found, chip)
    assert "for 1,000 examples" in text
    assert "dropped: 1 empty caption" in text
    with pytest.raises(ValueError, match="none of the first 1 examples can be used"):
        estimate(Pairs(("", GOOD)), tiny.encoder(), handling, 10, chip)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--scenes", "demo", "--count", "9"], "--output is missing"),
        (["--scenes", "demo", "--output", "o"], "--scenes needs --count"),
        (["t.csv", "--count", "9", "--output", "o"], "--count belongs to --scenes"),
        (
            ["coco", "--kind", "tfds", "--output", "o"],
            "coco/2014/1.1.0 has no split 'train'; it has []",
        ),
        (["absent/*.tfrecord", "--output", "o"], "no file or folder matches 'absent/*.tfrecord'"),
        (
            ["--scenes", "demo", "--image-key", "jpg", "--output", "o"],
            "--image-key belongs to a corpus",
        ),
        (["t.csv", "--seed", "1", "--output", "o"], "--seed belongs to --scenes"),
        (["t.csv", "--scenes", "demo", "--output", "o"], "give a corpus, as in imagen embed"),
        (["--output", "o"], "give a corpus, as in imagen embed photos/, or --scenes LEVEL"),
        (["t.csv", "--output", "o"], "no such file or folder as 't.csv'"),
    ],
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", *argv]) == 64
    assert message in capsys.readouterr().err


def test_chunks_are_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[prepare.__module__]
    monkeypatch.setattr(module, "CHUNK_EXAMPLES", 3)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1000)
    large = encoded(pixels(0, 20, 20))
    assert 1000 < len(large) < 2000
    images = [GOOD, GOOD, GOOD, GOOD, large, large, None, GOOD, GOOD, GOOD]
    pairs = Pairs(*((f"number {i}", image) for i, image in enumerate(images)))
    handling = Handling(SIZE, "crop", "drop")
    chunks = list(prepare([(0, pairs.examples_of_shard(0, 1))], tiny.encoder(), handling))
    assert [chunk.seen for chunk in chunks] == [3, 2, 1, 3, 1]
    ids = [name for chunk in chunks for name, *_ in chunk.examples]
    assert ids == list("012345789")
