"""A saved position in the data gives back exactly the batches that would have come."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from embedding_shards import LENGTH, assert_equal, batches, order, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards [1]*"))


@pytest.mark.slow
@pytest.mark.parametrize("consumed", [0, 3, 9, 25])
def test_resumed_equals_uninterrupted(shards, consumed):
    iterator = batches(shards)
    for _ in range(consumed):
        next(iterator)
    position = json.loads(json.dumps(iterator.position()))
    uninterrupted = [next(iterator) for _ in range(30)]
    fresh = batches(shards)
    fresh.restore(position)
    # The iterator that the position is of can go back to it, too.
    iterator.restore(position)
    for expected in uninterrupted:
        assert_equal(next(fresh), expected)
        assert_equal(next(iterator), expected)


@pytest.mark.slow
def test_resumed_in_another_process(shards):
    iterator = batches(shards)
    order(iterator, 13)
    program = (
        "import sys, json; from embedding_shards import batches; it = batches(sys.argv[1]);"
        "it.restore(json.loads(sys.argv[2]));"
        "print([int(i) for _ in range(20) for i in next(it)['text_emb'][:, 0, 0]])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(shards), json.dumps(iterator.position())],
        capture_output=True,
        text=True,
        timeout=600,  # it must end, too, with batches read ahead
        cwd=Path(__file__).parent,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == order(iterator, 20)


@pytest.mark.slow
def test_a_position_resumes_on_any_number_of_hosts(shards):
    position = None
    for hosts, steps in ((2, 3), (4, 5), (1, 2)):
        together = [batches(shards, host=(i, hosts)) for i in range(hosts)]
        for host in together:
            if position is not None:
                host.restore(position)
            order(host, steps)
        positions = [host.position() for host in together]
        position = positions[0]
        assert all(other == position for other in positions)
    fresh = batches(shards)
    fresh.restore(position)
    assert fresh.step == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"batch_size": 2},
        {"image_size": 8},
        {"low_res_size": 8},
        {"crop": 8},
        {"text_length": LENGTH + 1},
        {"shuffle_records": 9},
        {"repeat": False},
    ],
)
def test_restore_refuses_other_arguments(shards, changed):
    position = batches(shards).position()
    ((name, value),) = changed.items()
    with pytest.raises(ValueError, match=f"{name}: saved .*, now {value}"):
        batches(shards, **changed).restore(position)


def test_restore_refuses_other_data_but_not_another_place(tmp_path):
    for name, salt in (("a", ""), ("moved", ""), ("b", "!")):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, salt=salt)
    position = batches(tmp_path / "a").position()
    with pytest.raises(ValueError, match="records: saved "):
        batches(tmp_path / "b").restore(position)
    moved = batches(tmp_path / "moved")
    moved.restore(position)
    assert_equal(next(moved), next(batches(tmp_path / "a")))


def test_a_split_can_be_added_while_another_trains(tmp_path):
    iterator = batches(write_shards(tmp_path))
    position = iterator.position()
    write_shards(tmp_path, split="test", files=2)
    resumed = batches(tmp_path)
    resumed.restore(position)
    assert_equal(next(resumed), next(iterator))
    assert len(order(batches(tmp_path, split="test"), 2)) == 8
