"""Embedding shards to batches: exact values, order, hosts, and one clear error per fault."""

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
    batches,
    encode,
    make_example,
    order,
    write_shards,
)

from imagen_jax.data import records
from imagen_jax.data.features import TASK_FEATURE_LENGTHS, ImagenFeatureConverter
from imagen_jax.data.tasks import embeddings_task, register_embeddings_task


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards [1]*"))


def box(pixels, factor):
    """Area average in float64, in [-1, 1]."""
    h, w, c = pixels.shape
    blocks = pixels.astype(np.float64).reshape(h // factor, factor, w // factor, factor, c)
    return blocks.mean((1, 3)) / 127.5 - 1


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


@pytest.mark.parametrize("shuffle_records", [8, 1000])
def test_every_epoch_is_another_permutation(shards, shuffle_records):
    iterator = batches(shards, shuffle_records=shuffle_records)
    epochs = [order(iterator, EXAMPLES // 4) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(EXAMPLES))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_seed_fixes_the_order(shards):
    first = order(batches(shards), 20)
    assert order(batches(shards), 20) == first
    assert order(batches(shards, threads=1), 20) == first
    assert order(batches(shards, image_size=8), 20) == first
    assert order(batches(shards, seed=1), 20) != first


def test_batches_without_repeat_end(shards):
    assert len(list(batches(shards, batch_size=5, repeat=False))) == EXAMPLES // 5


PIXELS, STATES = make_example(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"png": encode(PIXELS[:8])}, r"record train/3 has a picture of size 8 16 3 expected 16"),
        ({"png": encode(PIXELS[..., 0])}, r"record train/3 has a picture of size 16 16 1"),
        ({"png": encode(np.dstack([PIXELS, PIXELS[..., :1]]))}, r"train/3 .* size 16 16 4"),
        ({"png": b"not a picture"}, "(?i)unknown image"),
        (
            {"states": np.zeros((LENGTH + 1, WIDTH))},
            r"record train/3 has 6 tokens, text_length allows 1 to 5",
        ),
        ({"states": STATES[:0]}, r"record train/3 has 0 tokens"),
        ({"states": STATES[:, 1:]}, r"train/3 has an embedding of 40 bytes, expected 48"),
    ],
)
def test_unsuitable_records_are_named(tmp_path, change, message):
    iterator = batches(write_shards(tmp_path, change=change), repeat=False)
    with pytest.raises(ValueError, match=message) as error:
        list(iterator)
    assert str(tmp_path) in str(error.value)


def test_jpeg_is_read(tmp_path):
    flat = np.full((SIZE, SIZE, 3), (200, 100, 50), np.uint8)
    write_shards(tmp_path, change={"png": encode(flat, "JPEG")})
    for batch in batches(tmp_path, repeat=False):
        for index, image in zip(batch["text_emb"][:, 0, 0], batch["image"], strict=True):
            if index == 3:
                np.testing.assert_allclose(image, flat / 127.5 - 1, atol=0.03)


def test_damaged_shard_is_an_error(tmp_path):
    write_shards(tmp_path)
    path = tmp_path / records.load_manifest(tmp_path)["splits"]["train"]["shards"][1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="corrupted record"):
        list(batches(tmp_path, repeat=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 6}, r"image_size 6 does not divide .* 16; choose .* \[1, 2, 4, 8, 16\]"),
        ({"image_size": 32}, "image_size 32 does not divide the recorded picture size 16"),
        ({"image_size": 8, "low_res_size": 3}, r"low_res_size 3 does not divide image_size 8"),
        ({"text_width": 384}, "width: 6 != 384"),
        ({"text_length": 0}, "text_length must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1 .*, got 0"),
        ({"split": "test"}, r"unknown split 'test'; the manifest has \['train'\]"),
        ({"num_shards": 3}, "multiple of the 3 hosts, got 4"),
        ({"num_shards": 2, "shard_index": 2}, "shard_index 2 is not in 0 .. 1"),
    ],
)
def test_bad_arguments(shards, arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(shards, **arguments)


def test_missing_and_unfinished_directories(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no embedding directory .*nowhere"):
        batches(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="embedding has not finished"):
        batches(tmp_path)
    write_shards(tmp_path)
    (tmp_path / "train-00002-of-00004.tfrecord").unlink()
    with pytest.raises(FileNotFoundError, match="train-00002-of-00004"):
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
        ImagenFeatureConverter(SIZE, 8, 4, LENGTH, WIDTH),
        shuffle=False,
        batch_size=EXAMPLES,
    )
    (batch,) = ds.as_numpy_iterator()
    assert sorted(batch["text_emb"][:, 0, 0].astype(int)) == list(range(EXAMPLES))
    assert batch["image"].shape == (EXAMPLES, 8, 8, 3)
    with pytest.raises(ValueError, match="pipeline_test"):
        register_embeddings_task("pipeline_test", str(shards))


def test_records_stay_compressed_until_after_the_shuffle(shards):
    ds = embeddings_task("compressed", str(shards)).get_dataset(TASK_FEATURE_LENGTHS, seed=0)
    assert ds.element_spec["image"] == tf.TensorSpec([], tf.string)
