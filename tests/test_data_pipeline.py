"""Embedding shards to batches: exact values, order, hosts, and one clear error per fault."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import seqio
import tensorflow as tf
from embedding_shards import (
    EXAMPLES,
    LENGTH,
    SIZE,
    WIDTH,
    assert_equal,
    batches,
    encode,
    make_example,
    order,
    write_shards,
)

from imagen_jax.data import records
from imagen_jax.data.features import TASK_FEATURE_LENGTHS, ImagenFeatureConverter, View
from imagen_jax.data.manifest import MANIFEST, load_manifest, manifest_fingerprint
from imagen_jax.data.scenes.render import RENDERING
from imagen_jax.data.tasks import (
    EmbeddingShards,
    embeddings_task,
    open_data,
    register_embeddings_task,
)
from imagen_jax.errors import UserError
from imagen_jax.files import write_json


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards [1]*"))


def box(pixels, factor):
    """Area average in float64, in [-1, 1]."""
    h, w, c = pixels.shape
    blocks = pixels.astype(np.float64).reshape(h // factor, factor, w // factor, factor, c)
    return blocks.mean((1, 3)) / 127.5 - 1


@pytest.mark.slow
@pytest.mark.parametrize(("image_size", "low_res_size"), [(16, 4), (8, 2), (4, None), (16, 16)])
def test_values_are_those_recorded(shards, image_size, low_res_size):
    iterator = batches(shards, image_size=image_size, low_res_size=low_res_size)
    seen = set()
    for _ in range(EXAMPLES // 4):
        batch = next(iterator)
        spec = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
        assert spec == iterator.element_spec
        assert ("low_res" in batch) == (low_res_size is not None)
        assert batch["image"].dtype == np.float32
        assert batch["text_emb"].dtype == ml_dtypes.bfloat16
        for row in range(4):
            index = int(batch["text_emb"][row, 0, 0])
            seen.add(index)
            pixels, states = make_example(index)
            expected = box(pixels, SIZE // image_size)
            np.testing.assert_allclose(batch["image"][row], expected, rtol=0, atol=1.2e-7)
            if low_res_size is not None:
                expected = box(pixels, SIZE // low_res_size)
                np.testing.assert_allclose(batch["low_res"][row], expected, rtol=0, atol=1.2e-7)
            mask = np.arange(LENGTH) < len(states)
            np.testing.assert_array_equal(batch["text_mask"][row], mask, strict=True)
            np.testing.assert_array_equal(batch["text_emb"][row][mask], states, strict=True)
            assert not batch["text_emb"][row][~mask].any()
    assert seen == set(range(EXAMPLES))


def test_uint8_levels_survive_the_way_to_unit_range_and_back(shards):
    batch = next(batches(shards))
    back = np.round((batch["image"] + 1) * 127.5).astype(np.uint8)
    for row, index in enumerate(batch["text_emb"][:, 0, 0]):
        np.testing.assert_array_equal(back[row], make_example(int(index))[0])


@pytest.mark.slow
@pytest.mark.parametrize("shuffle_records", [8, 1000])
def test_every_epoch_is_another_permutation(shards, shuffle_records):
    iterator = batches(shards, shuffle_records=shuffle_records)
    epochs = [order(iterator, EXAMPLES // 4) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(EXAMPLES))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.slow
def test_the_seed_fixes_the_order(shards):
    first = order(batches(shards), 20)
    assert order(batches(shards), 20) == first
    assert order(batches(shards, threads=1), 20) == first
    assert order(batches(shards, image_size=8), 20) == first
    assert order(batches(shards, seed=1), 20) != first


def test_batches_without_repeat_end(shards):
    assert len(list(batches(shards, batch_size=5, repeat=False))) == EXAMPLES // 5


PIXELS, STATES = make_example(3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": encode(PIXELS[:8])}, r"record train/3 has an image of size 8 16 expected 16 16"),
        ({"image": encode(PIXELS[..., 0])}, r"record train/3 has an image of size 16 16 1"),
        ({"image": encode(np.dstack([PIXELS, PIXELS[..., :1]]))}, r"train/3 .* size 16 16 4"),
        ({"image": b"not an image"}, "train/3 has an image that is neither PNG nor JPEG"),
        (
            {"states": (np.zeros((LENGTH + 1, WIDTH)),)},
            r"record train/3 has captions of 6 tokens, text_length allows 1 to 5",
        ),
        ({"states": (STATES[:0],)}, r"record train/3 has captions of 0 tokens"),
        ({"states": (STATES, STATES[:0])}, r"record train/3 has captions of 4 0 tokens"),
        ({"states": (STATES[:, 1:],)}, r"train/3 has an embedding of 40 bytes, expected 48"),
    ],
)
def test_unsuitable_records_are_named(tmp_path, change, message):
    iterator = batches(write_shards(tmp_path, change=change), repeat=False)
    with pytest.raises(ValueError, match=message) as error:
        list(iterator)
    assert str(tmp_path) in str(error.value)


def test_jpeg_is_read(tmp_path):
    flat = np.full((SIZE, SIZE, 3), (200, 100, 50), np.uint8)
    write_shards(tmp_path, change={"image": encode(flat, "JPEG")})
    for batch in batches(tmp_path, repeat=False):
        for index, image in zip(batch["text_emb"][:, 0, 0], batch["image"], strict=True):
            if index == 3:
                np.testing.assert_allclose(image, flat / 127.5 - 1, atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("image_size", "crop"), [(16, 8), (8, 4), (16, 4)])
def test_crops_are_squares_of_the_image(shards, image_size, crop):
    """Of the image and of its small version, the same one, at places of all kinds."""
    whole = batches(shards, image_size=image_size, low_res_size=image_size // 4)
    cropped = batches(shards, image_size=image_size, low_res_size=image_size // 4, crop=crop)
    places = set()
    for _ in range(18):
        full, part = next(whole), next(cropped)
        np.testing.assert_array_equal(full["text_emb"], part["text_emb"])
        assert part["image"].shape[1:] == (crop, crop, 3)
        for row in range(4):
            found = [
                (y, x)
                for y in range(0, image_size - crop + 1, 4)
                for x in range(0, image_size - crop + 1, 4)
                if np.array_equal(
                    part["image"][row], full["image"][row, y : y + crop, x : x + crop]
                )
            ]
            ((y, x),) = found
            places.add((y, x))
            low_res = full["low_res"][row, y // 4 : (y + crop) // 4, x // 4 : (x + crop) // 4]
            np.testing.assert_allclose(part["low_res"][row], low_res, atol=1.2e-7)
    assert len(places) == ((image_size - crop) // 4 + 1) ** 2


@pytest.mark.slow
def test_crops_are_those_of_the_position(shards):
    """A resumed or divided run crops as the uninterrupted one does."""
    alone = batches(shards, crop=8)
    expected = [next(alone) for _ in range(6)]
    second = batches(shards, crop=8, host=(1, 2))
    second.seek(5)
    assert_equal(next(second), {name: value[2:] for name, value in expected[5].items()})
    assert (next(batches(shards, crop=8, seed=1))["image"] != expected[0]["image"]).any()


def test_int8_states_are_within_half_a_scale(tmp_path):
    write_shards(tmp_path, stored="int8")
    for batch in batches(tmp_path, repeat=False):
        for index, states, mask in zip(
            batch["text_emb"][:, 0, 0], batch["text_emb"], batch["text_mask"], strict=True
        ):
            _, expected = make_example(round(float(index)))
            expected = expected.astype(np.float32)
            scale = np.abs(expected).max(1, keepdims=True) / 127
            rounding = 2**-8 * np.abs(expected)  # of bfloat16
            error = np.abs(states[mask].astype(np.float32) - expected)
            assert (error <= scale / 2 + rounding + 1e-6).all()
    path = tmp_path / "train-00000-of-00004.tfrecord"
    for index, record in enumerate(records.read_records(path)):
        numbers, scale = records.quantise(make_example(index)[1])
        assert numbers.dtype == np.int8
        assert np.abs(numbers).max() == 127
        expected = (numbers * scale[:, None]).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(record.states[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
def test_a_caption_of_several_is_drawn_in_every_epoch(tmp_path, stored):
    of_captions = [np.full((length, WIDTH), length, ml_dtypes.bfloat16) for length in (2, 5, 3)]
    change = {"captions": ("a", "b", "c"), "states": tuple(of_captions)}
    write_shards(tmp_path, change=change, stored=stored)

    def drawn(rows):
        """(step, row) -> the tokens of the caption that the changed example has there."""
        host = (rows.start // len(rows), 4 // len(rows))
        iterator, found = batches(tmp_path, host=host), {}
        for step in range(30 * EXAMPLES // 4):
            batch = next(iterator)
            for row, name in enumerate(iterator.ids):
                if name == "train/3":
                    length = batch["text_mask"][row].sum()
                    expected = np.zeros((LENGTH, WIDTH))
                    expected[:length] = length
                    np.testing.assert_allclose(batch["text_emb"][row].astype(float), expected, 0.01)
                    found[step, rows.start + row] = int(length)
        return found

    found = drawn(range(4))
    counts = [list(found.values()).count(length) for length in (2, 5, 3)]
    assert sum(counts) == 30  # once in every epoch
    assert min(counts) >= 4  # of 10; less by chance with one seed of 50
    assert drawn(range(2)) | drawn(range(2, 4)) == found


def test_files_that_were_written_anew_are_read_anew(tmp_path):
    write_shards(tmp_path)
    before = order(batches(tmp_path), EXAMPLES // 4)
    write_shards(tmp_path, salt=" that is much longer")
    assert order(batches(tmp_path), EXAMPLES // 4) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image_size": 6, "low_res_size": 3},
            r"image_size 6 does not divide .* 16; choose .* \[1, 2, 4, 8, 16\]",
        ),
        ({"image_size": 32}, "image_size 32 does not divide the recorded image size 16"),
        ({"image_size": 8, "low_res_size": 3}, r"low_res_size 3 does not divide image_size 8"),
        ({"crop": 6}, r"crop 6 must be a multiple of 4 .* and at most image_size 16"),
        ({"text_length": 0}, "image_size and text_length must be at least 1, got 16 and 0"),
        ({"batch_size": 0}, "batch_size must be at least 1 .*, got 0"),
        ({"split": "test"}, r"unknown split 'test'; the manifest has \['train'\]"),
        ({"host": (0, 3)}, "multiple of the 3 hosts, got 4"),
        ({"host": (2, 2)}, "host 2 is not in 0 .. 1"),
    ],
)
def test_bad_arguments(shards, arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(shards, **arguments)


def test_missing_and_unfinished_directories(tmp_path):
    with pytest.raises(UserError, match=r"no embedding directory .*nowhere"):
        batches(tmp_path / "nowhere")
    with pytest.raises(UserError, match="embedding has not finished"):
        batches(tmp_path)
    write_shards(tmp_path)
    (tmp_path / "train-00002-of-00004.tfrecord").unlink()
    with pytest.raises(UserError, match="train-00002-of-00004"):
        batches(tmp_path)
    write_shards(tmp_path)
    (tmp_path / "train-00002-of-00004.tfrecord").write_bytes(b"half")
    with pytest.raises(ValueError, match="has 4 bytes"):
        batches(tmp_path)
    write_shards(tmp_path)
    offsets = tmp_path / "train-00002-of-00004.offsets"
    offsets.write_bytes(offsets.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"00002-of-00004\.offsets has 79 bytes; by .* it has 80"):
        batches(tmp_path)


def test_registered_task_is_read_by_name(shards):
    register_embeddings_task("pipeline_test", str(shards))
    ds = seqio.get_dataset(
        "pipeline_test",
        TASK_FEATURE_LENGTHS,
        ImagenFeatureConverter(View(8, 4, LENGTH), load_manifest(shards)),
        shuffle=False,
        batch_size=EXAMPLES,
    )
    (batch,) = ds.as_numpy_iterator()
    assert sorted(batch["text_emb"][:, 0, 0].astype(int)) == list(range(EXAMPLES))
    assert batch["image"].shape == (EXAMPLES, 8, 8, 3)
    with pytest.raises(ValueError, match="pipeline_test"):
        register_embeddings_task("pipeline_test", str(shards))


def test_a_task_of_another_source_is_no_data() -> None:
    source = seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=("train",))
    seqio.TaskRegistry.add("not_embeddings", source, output_features={})
    message = "'not_embeddings' names a task that does not read an embedding directory"
    with pytest.raises(UserError, match=message):
        open_data("not_embeddings")


def test_records_stay_compressed_until_after_the_shuffle(shards):
    ds = embeddings_task("compressed", str(shards)).get_dataset(TASK_FEATURE_LENGTHS, seed=0)
    assert ds.element_spec["image"] == tf.TensorSpec([], tf.string)


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 5])
def test_seqio_reads_every_record_once_on_any_number_of_hosts(shards, hosts):
    source = EmbeddingShards(shards)

    def ids(**arguments):
        found = []
        for host in range(hosts):
            info = seqio.ShardInfo(host, hosts)
            ds = source.get_dataset("train", shard_info=info, **arguments)
            found.append([records.parse_record(e["record"].numpy()).id for e in ds])
        return found

    in_files = [f"train/{i}" for i in range(EXAMPLES)]
    assert ids(shuffle=False) == [in_files[host::hosts] for host in range(hosts)]
    shuffled = ids(seed=1)
    assert sorted(id_ for of_host in shuffled for id_ in of_host) == sorted(in_files)
    assert shuffled == ids(seed=1) != ids(seed=2)
    assert shuffled != ids(shuffle=False)


def test_scenes_of_another_rendering_are_refused(tmp_path):
    write_shards(tmp_path)
    path = tmp_path / MANIFEST
    manifest = json.loads(path.read_text())
    for rendering, refused in ((RENDERING, False), (RENDERING - 1, True), (None, True)):
        description = {"name": "scenes", "level": "demo"}
        if rendering is not None:
            description["rendering"] = rendering
        manifest["source"] = {"train": description}
        manifest["fingerprint"] = manifest_fingerprint(manifest)
        write_json(path, manifest)
        if refused:
            message = (
                f"drawn by version {rendering} of the renderer, and this is version {RENDERING}"
            )
            with pytest.raises(ValueError, match=message):
                batches(tmp_path)
        else:
            batches(tmp_path)
