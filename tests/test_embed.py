"""The embedding job: what it writes, and that interruptions and other jobs cannot spoil it."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import tiny
from PIL import Image

from imagen_jax.data import records
from imagen_jax.data.manifest import MANIFEST, check_encoder, load_manifest
from imagen_jax.data.sources import SceneSource
from imagen_jax.embed import embed
from imagen_jax.errors import UserError
from imagen_jax.text.encoder import TextEncoder, load_encoder
from imagen_jax.text.tokenizer import CaptionTooLongError

SIZE = 8
WIDTH = 4
MAX_LENGTH = 6


class FakeExample(NamedTuple):
    id: str
    caption: str
    image: np.ndarray | None


def make_example(index: int) -> FakeExample:
    image = np.random.default_rng(index).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    return FakeExample(f"example-{index}", " ".join(["word"] * (1 + index % 3)), image)


@dataclasses.dataclass
class FakeSource:
    """Examples 0..count - 1, by stride; stops with `error` before example `error_at`."""

    count: int = 20
    name: str = "fake"
    special: dict[int, FakeExample] = dataclasses.field(default_factory=dict)
    error_at: int | None = None
    error: type[BaseException] = KeyboardInterrupt
    shards_read: list[int] = dataclasses.field(default_factory=list)

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[FakeExample]:
        self.shards_read.append(shard)
        for index in range(shard, self.count, num_shards):
            if index == self.error_at:
                raise self.error
            yield self.special.get(index) or make_example(index)

    def describe(self) -> dict:
        return {"name": self.name, "count": self.count}

    def __len__(self) -> int:
        return self.count


def fake_encoder(**overrides) -> TextEncoder:
    """One token per word plus two; the states of a token are its position and the length."""

    def tokenize(captions):
        ids = [np.arange(len(caption.split()) + 2, dtype=np.int32) for caption in captions]
        for caption, row in zip(captions, ids, strict=True):
            if len(row) > MAX_LENGTH:
                raise CaptionTooLongError(caption, len(row), MAX_LENGTH, row[:MAX_LENGTH])
        return ids

    def network(params, ids, mask):
        return np.stack([ids, mask.sum(1, keepdims=True) + 0 * ids, ids / 3, ids / 7], -1)

    fields = {
        "name": "fake",
        "width": WIDTH,
        "max_length": MAX_LENGTH,
        "fingerprint": "f" * 64,
        "tokenize": tokenize,
        "network": network,
        "params": None,
    }
    return TextEncoder(**{**fields, **overrides})


def run(directory, source=None, encoder=None, **arguments):
    defaults = {"split": "train", "image_size": SIZE, "num_shards": 3}
    return embed(
        FakeSource() if source is None else source,
        directory,
        encoder=encoder or fake_encoder(),
        **{**defaults, **arguments},
    )


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_records_hold_what_the_source_yields(tmp_path):
    encoder = fake_encoder()
    manifest = run(tmp_path, encoder=encoder)
    assert manifest == load_manifest(tmp_path)
    split = manifest["splits"]["train"]
    assert split["shards"] == [f"train-{shard:05d}-of-00003.tfrecord" for shard in range(3)]
    assert split["examples"] == 20
    assert split["bytes"] == sum((tmp_path / name).stat().st_size for name in split["shards"])
    assert manifest["source"] == {"train": {"name": "fake", "count": 20}}
    assert manifest["encoder"] == {
        "name": "fake", "fingerprint": "f" * 64, "width": WIDTH, "max_length": MAX_LENGTH,
        "dtype": "float32",
    }  # fmt: skip
    for shard, name in enumerate(split["shards"]):
        read = list(records.read_records(tmp_path / name))
        assert len(read) == split["shard_examples"][shard]
        # Where each begins: behind the 12 bytes before it, there it is.
        content, offsets = (tmp_path / name).read_bytes(), records.read_offsets(tmp_path / name)
        assert offsets[-1] == len(content)
        for start, end in zip(offsets, offsets[1:], strict=False):
            assert records.parse_record(content[start + 12 : end - 4]).id == read.pop(0).id
        read = list(records.read_records(tmp_path / name))
        for record, index in zip(read, range(shard, 20, 3), strict=True):
            example = make_example(index)
            assert (record.id, record.captions) == (example.id, (example.caption,))
            image = Image.open(io.BytesIO(record.image))
            assert image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image), example.image)
            states, mask = encoder.encode([example.caption])
            expected = np.asarray(states[0][mask[0]]).astype(ml_dtypes.bfloat16)
            np.testing.assert_array_equal(record.states[0], expected)


def test_identical_captions_are_encoded_once_per_shard(tmp_path):
    encoded = []
    encoder = fake_encoder()

    def network(params, ids, mask):
        encoded.extend(mask.any(1))
        return encoder.network(params, ids, mask)

    # Three captions, all of them in each of the two shards.
    manifest = run(tmp_path, FakeSource(200), fake_encoder(network=network), num_shards=2)
    assert manifest["splits"]["train"]["captions"] == sum(encoded) == 6


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_restart_continues_and_gives_the_same_bytes(tmp_path, error):
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    run(whole)
    with pytest.raises(error):
        run(interrupted, FakeSource(error_at=7, error=error))  # in the middle of shard 1
    done = ["train-00000-of-00003.offsets", "train-00000-of-00003.tfrecord"]
    assert sorted(contents(interrupted)) == done
    with pytest.raises(UserError, match=r"no manifest\.json: embedding has not finished"):
        load_manifest(interrupted)
    # What a killed process leaves.
    (interrupted / "train-00001-of-00003.tfrecord.1.tmp").write_bytes(b"half")
    source = FakeSource()
    run(interrupted, source)
    assert source.shards_read == [1, 2]
    assert contents(interrupted) == contents(whole)


def test_a_finished_directory_is_not_written_to(tmp_path):
    first = run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.*")}
    source = FakeSource()
    assert run(tmp_path, source) == first
    assert source.shards_read == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.*")} == before


def test_a_shortened_shard_is_found_and_made_again(tmp_path):
    run(tmp_path)
    before = contents(tmp_path)
    shard = tmp_path / "train-00002-of-00003.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"00002-of-00003\.tfrecord has .* bytes; by manifest"):
        load_manifest(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00002.*tfrecord is missing, though"):
        load_manifest(tmp_path)
    run(tmp_path)
    assert contents(tmp_path) == before
    offsets = records.offsets_path(shard)
    for damage in (offsets.unlink, lambda: offsets.write_bytes(offsets.read_bytes()[:-8])):
        damage()
        run(tmp_path)
        assert contents(tmp_path) == before


def test_an_old_list_of_dropped_examples_is_removed(tmp_path):
    run(tmp_path)
    before = contents(tmp_path)
    shard = tmp_path / "train-00002-of-00003.tfrecord"
    shard.unlink()
    shard.with_suffix(".dropped").write_text("{}\n")
    run(tmp_path)
    assert contents(tmp_path) == before


def test_processes_share_the_shards(tmp_path):
    run(tmp_path / "one")
    assert run(tmp_path / "many", shards=range(0, 3, 2)) is None
    assert not (tmp_path / "many" / MANIFEST).exists()
    assert run(tmp_path / "many", shards=range(1, 3, 2)) is not None
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": fake_encoder(name="t5")}, r"encoder\.name: 'fake' != 't5'"),
        ({"encoder": fake_encoder(width=5)}, r"encoder\.width: 4 != 5"),
        ({"encoder": fake_encoder(fingerprint="0")}, r"encoder\.fingerprint: 'f+' != '0'"),
        ({"source": FakeSource(21)}, r"source\.count: 20 != 21"),
        ({"num_shards": 4}, r"num_shards: 3 != 4"),
        ({"image_size": 16}, r"image_size: 8 != 16"),
        ({"image_size": 16, "split": "test"}, r"image_size: 8 != 16"),
    ],
)
def test_a_directory_of_another_job_is_refused(tmp_path, finished, arguments, message):
    run(tmp_path, shards=None if finished else [0])
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)holds other embeddings.*" + message):
        run(tmp_path, **arguments)
    assert contents(tmp_path) == before


def test_splits_join_one_manifest(tmp_path):
    train = run(tmp_path)
    both = run(tmp_path, FakeSource(5, "other"), split="test", num_shards=1)
    assert both == load_manifest(tmp_path)
    assert both["splits"]["train"] == train["splits"]["train"]
    assert both["splits"]["test"]["examples"] == 5
    assert both["source"]["test"] == {"name": "other", "count": 5}
    assert both["fingerprint"] != train["fingerprint"]


def test_unusable_examples_are_left_out_and_counted(tmp_path):
    good = make_example(0).image
    special = {
        1: FakeExample("a", "", good),
        2: FakeExample("b", " \n", good),
        3: FakeExample("c", "one two three four five", good),
        4: FakeExample("d", "one two three four five", good),
        5: FakeExample("e", "dog", None),
        6: FakeExample("f", "dog", good[:, :4]),
        7: FakeExample("g", "dog", good.astype(np.float32)),
        8: FakeExample("h", "dog", good[..., 0]),
    }
    manifest = run(tmp_path, FakeSource(20, special=special), num_shards=2)
    split = manifest["splits"]["train"]
    assert split["examples"] == 12
    assert split["dropped"] == {
        "empty caption": 2,
        "caption of more than 6 tokens": 2,
        "no image": 1,
        "image is not of 8 x 8 pixels, uint8": 3,
    }
    listed = [json.loads(line) for path in sorted(tmp_path.glob("*.dropped"))
              for line in path.read_text().splitlines()]  # fmt: skip
    assert sorted(entry["id"] for entry in listed) == list("abcdefgh")
    details = {entry["id"]: entry.get("detail") for entry in listed}
    assert details["c"] == "7 tokens"
    assert [details[i] for i in "fgh"] == ["uint8 [8, 4, 3]", "float32 [8, 8, 3]", "uint8 [8, 8]"]
    ids = [r.id for name in split["shards"] for r in records.read_records(tmp_path / name)]
    assert sorted(ids) == sorted(f"example-{i}" for i in range(20) if i not in special)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"shards \[3\] are not in 0\.\.2"):
        run(tmp_path, shards=[3])
    with pytest.raises(ValueError, match="must be at least 1, and max_tokens 2; got 0"):
        run(tmp_path, num_shards=0)
    with pytest.raises(UserError, match="fit is 'stretch'; choices: exact, crop"):
        run(tmp_path, fit="stretch")
    with pytest.raises(ValueError, match="no example of split 'train' could be used"):
        run(tmp_path, FakeSource(0))


def test_manifest_errors(tmp_path):
    with pytest.raises(UserError, match="no embedding directory"):
        load_manifest(tmp_path / "nowhere")
    run(tmp_path)
    path = tmp_path / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(ValueError, match="has format 1, this version reads format 2; embed"):
        load_manifest(tmp_path)
    path.write_text(json.dumps({**manifest, "image_size": 16}))
    with pytest.raises(ValueError, match="changed after it was written"):
        load_manifest(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_manifest(tmp_path)


def test_nothing_is_added_to_embeddings_that_lost_their_notes(tmp_path):
    run(tmp_path)
    shutil.rmtree(tmp_path / "progress")
    with pytest.raises(ValueError, match="holds finished embeddings, to which nothing can be add"):
        run(tmp_path)


def test_a_split_has_a_plain_name(tmp_path):
    with pytest.raises(ValueError, match=r"split is 'a/b'; it must be of letters"):
        run(tmp_path / "new", split="a/b")
    assert not (tmp_path / "new").exists()


def test_check_encoder_shows_what_differs(tmp_path):
    manifest = run(tmp_path)
    encoder = fake_encoder()
    check_encoder(manifest, encoder.name, encoder.width, encoder.fingerprint)
    check_encoder(manifest, width=WIDTH)
    with pytest.raises(ValueError, match=r"another text encoder.* width: 4 != 384"):
        check_encoder(manifest, width=384)
    with pytest.raises(ValueError, match=r"name: 'fake' != 'minilm'"):
        check_encoder(manifest, name="minilm", width=WIDTH)


@pytest.mark.slow
def test_scenes_with_minilm(tmp_path):
    directory = tmp_path / "scenes"
    manifest = tiny.embed_scenes("quickstart", 10, 16, 3, "minilm", directory, num_shards=3)
    encoder = load_encoder("minilm")
    check_encoder(manifest, "minilm", 384, encoder.fingerprint)
    source = SceneSource("quickstart", "train", 3, 10, 16)
    expected = [example for shard in range(3) for example in source.examples_of_shard(shard, 3)]
    assert expected[-1].id == list(source.examples_of_shard(0, 1))[9].id
    split = manifest["splits"]["train"]
    read = [r for name in split["shards"] for r in records.read_records(directory / name)]
    assert [(r.id, r.captions[0]) for r in read] == [(e.id, e.caption) for e in expected]
    states, mask = encoder.encode([record.captions[0] for record in read])
    for i, record in enumerate(read):
        assert record.states[0].shape == (mask[i].sum(), 384)
        np.testing.assert_allclose(
            record.states[0].astype(np.float32), states[i][mask[i]], atol=1e-4, rtol=2**-8
        )
    with pytest.raises(ValueError, match=r"source\.seed: 3 != 4"):
        tiny.embed_scenes("quickstart", 10, 16, 4, "minilm", directory, num_shards=3)
    with pytest.raises(ValueError, match="unknown level 'huge'"):
        tiny.embed_scenes("huge", 10, 16, 3, "minilm", tmp_path / "other")
    with pytest.raises(ValueError, match="8 shards of 7 examples: choose at most 7 shards"):
        tiny.embed_scenes("quickstart", 7, 16, 3, "minilm", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_reading_a_manifest_needs_no_tensorflow(tmp_path):
    run(tmp_path)
    code = (
        "import sys; from imagen_jax.data.manifest import load_manifest; import imagen_jax.embed; "
        f"load_manifest({str(tmp_path)!r}); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_captions_whose_states_are_not_finite_are_named(tmp_path: Path) -> None:
    """In whatever batch and shard; nothing that training would read is written of them."""
    whole = tiny.encoder()

    def network(table: Any, ids: Any, mask: Any) -> Any:
        states = np.array(whole.network(table, ids, mask))
        states[np.asarray(ids)[:, 1] == spoiled] = np.inf
        return states

    spoiled = int(whole.tokenize(["green"])[0][0])
    encoder = dataclasses.replace(whole, network=network)
    said = r"'tiny' returns NaN or infinity, first for 'a green image' of example 2: its weights"
    with pytest.raises(UserError, match=said):
        embed(tiny.Colours(), tmp_path, encoder=encoder, image_size=tiny.SR, num_shards=2)
    assert not list(tmp_path.glob("*.tfrecord*"))
    assert not (tmp_path / MANIFEST).exists()
