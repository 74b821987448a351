"""Damaged records: named, or counted and read past, as many as a host tolerates."""

import collections
import os
import re
import traceback

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from embedding_shards import EXAMPLES, WIDTH, batches, order, write_shards

from imagen_jax.data import records
from imagen_jax.data.manifest import load_manifest
from imagen_jax.errors import MachineError, UserError


def damage(directory, shard, places):
    """Changes a byte in the middle of some records of a shard."""
    path = directory / load_manifest(directory)["splits"]["train"]["shards"][shard]
    offsets, content = records.read_offsets(path), bytearray(path.read_bytes())
    for place in places:
        content[(int(offsets[place]) + int(offsets[place + 1])) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_a_damaged_record_is_named(tmp_path):
    write_shards(tmp_path)
    path = damage(tmp_path, 1, [4])
    message = (
        rf"{re.escape(str(path))}: record 4 is damaged.*corrupted record.*makes 1, and 0 of the 36"
    )
    with pytest.raises(ValueError, match=message):
        list(batches(tmp_path, repeat=False))


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 2])
def test_damaged_records_are_read_past_and_counted(tmp_path, hosts, capsys):
    write_shards(tmp_path, change={"image": b"not an image"})  # record 3
    path = damage(tmp_path, 1, [4, 8])  # records 13 and 17
    together = [batches(tmp_path, max_damaged=0.2, host=(i, hosts)) for i in range(hosts)]
    found = []
    for _ in range(EXAMPLES // 4):
        for host in together:
            found += [int(i) for i in next(host)["text_emb"][:, 0, 0]]
    # In their place come those after them, 4 and 14; after the last of a file its first.
    assert sorted(found) == sorted([*(set(range(EXAMPLES)) - {3, 13, 17}), 4, 14, 9])
    counted = sum((host.damage.by_file for host in together), collections.Counter())
    # Each host counts what it meets, in its windows of several batches.
    assert counted.keys() == {str(path), str(tmp_path / "train-00000-of-00004.tfrecord")}
    assert 3 <= counted.total() <= 3 * hosts
    assert f"{path}: record 4 is damaged" in capsys.readouterr().err


def test_more_damage_than_is_tolerated(tmp_path):
    write_shards(tmp_path)
    damage(tmp_path, 2, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="that makes 4, and 3 of the 36 that this host reads are"):
        list(batches(tmp_path, repeat=False, max_damaged=0.1))
    with pytest.raises(ValueError, match=r"max_damaged must be in \[0, 1\), got 1"):
        batches(tmp_path, max_damaged=1.0)


@pytest.mark.slow
def test_a_host_tolerates_damage_in_what_it_reads(tmp_path):
    """Not in what all hosts read: each would go on until there is as much on it alone."""
    write_shards(tmp_path)
    for shard in range(4):
        damage(tmp_path, shard, [0, 1, 2])  # a third of all
    with pytest.raises(ValueError, match="and 4 of the 18 that this host reads are tolerated"):
        list(batches(tmp_path, repeat=False, max_damaged=0.25, host=(0, 2)))
    # In later epochs it reads others, and may find the damage of all.
    endless = batches(tmp_path, max_damaged=0.6, host=(0, 2))
    order(endless, 36)
    assert endless.damage.by_file.total() > int(0.6 * 18)


def test_the_first_records_are_sound_and_of_all_files(tmp_path):
    write_shards(tmp_path)
    damage(tmp_path, 0, [1])
    iterator = batches(tmp_path, max_damaged=0.1)
    found = [int(record.states[0][0, 0]) for record in iterator.first_records(12)]
    assert found == [0, 2, *range(2, 12)]
    assert iterator.damage.by_file.total() == 1
    assert len(iterator.first_records(100)) == EXAMPLES
    with pytest.raises(ValueError, match=r"00000-of-00004\.tfrecord: record 1 is damaged"):
        batches(tmp_path).first_records(2)
    assert len(batches(tmp_path).first_records(1)) == 1
    spread = [int(record.states[0][0, 0]) for record in iterator.spread_records(9)]
    assert spread == [0, 4, 8, 12, 16, 20, 24, 28, 32]
    with pytest.raises(ValueError, match=r"37 examples are wanted, and .* has 36"):
        iterator.spread_records(37)


@pytest.mark.parametrize("suffix", ["offsets", "tfrecord"])
def test_the_first_host_looks_for_all_files_and_the_others_as_they_read(tmp_path, suffix):
    write_shards(tmp_path)
    for path in tmp_path.glob(f"*.{suffix}"):
        path.unlink()
    missing = rf"train-0000\d-of-00004\.{suffix} is missing, though manifest.json"
    with pytest.raises(UserError, match=missing):
        batches(tmp_path, host=(0, 2))
    second = batches(tmp_path, host=(1, 2))
    with pytest.raises(UserError, match=rf"^cannot read the embeddings in \S+: .*\.{suffix}"):
        next(second)


def test_storage_that_refuses_is_told_and_nothing_goes_on_reading(tmp_path):
    """As where too many files are open, or they may not be read any more."""
    write_shards(tmp_path)
    iterator = batches(tmp_path)
    for path in tmp_path.glob("*.tfrecord"):
        path.unlink()
        path.mkdir()
    with pytest.raises(UserError, match=r"cannot read .*Is a directory") as caught:
        next(iterator)
    frames = traceback.walk_tb(caught.value.__cause__.__traceback__)
    assert not [frame for frame, _ in frames if "tensorflow" in frame.f_code.co_filename]
    refusal = tf.errors.PermissionDeniedError(None, None, "x.tfrecord; Permission denied")
    iterator._batches = (_ for _ in [1] if raises(refusal))
    with pytest.raises(UserError, match=r"cannot read .*: x\.tfrecord; Permission denied"):
        next(iterator)


def raises(error):
    raise error


def test_shards_that_may_not_be_read_are_told_before_training(tmp_path, monkeypatch):
    write_shards(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, _: "00002" not in str(path))  # root may all
    with pytest.raises(MachineError, match=r"train-00002-of-00004\.tfrecord may not be read"):
        batches(tmp_path)


def test_offsets_that_were_cut(tmp_path):
    write_shards(tmp_path)
    for path in tmp_path.glob("*.offsets"):
        path.write_bytes(path.read_bytes()[:8])
    with pytest.raises(UserError, match=r"offsets has \d+ bytes; by manifest.json it has 80"):
        batches(tmp_path)
    with pytest.raises(UserError, match=r"\.offsets has no offset of record \d: it was cut"):
        next(batches(tmp_path, host=(1, 2)))


def test_a_file_without_a_sound_record(tmp_path):
    write_shards(tmp_path)
    path = damage(tmp_path, 1, range(9))
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} has no sound record"):
        list(batches(tmp_path, repeat=False, max_damaged=0.9))


@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
def test_token_states_that_are_not_finite_are_named(tmp_path, stored, capsys):
    states = np.ones((2, WIDTH), ml_dtypes.bfloat16)
    states[0, 0], states[1, 2] = 3, np.nan
    with np.errstate(invalid="ignore"):  # as whole numbers
        write_shards(tmp_path, change={"states": (states,)}, stored=stored)
    said = r"00000-of-00004\.tfrecord: record 3 is .*train/3\b.*has token states that are not fini"
    with pytest.raises(UserError, match=said):
        list(batches(tmp_path, repeat=False))
    assert len(list(batches(tmp_path, repeat=False, max_damaged=0.1))) == EXAMPLES // 4
    assert "record 3 is damaged or unsuitable" in capsys.readouterr().err
