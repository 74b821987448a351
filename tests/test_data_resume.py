"""A saved position in the data gives back exactly the batches that would have come."""

import json
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest
from embedding_shards import ARGUMENTS, LENGTH, assert_equal, batches, order, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards [1]*"))


@pytest.mark.parametrize("consumed", [0, 3, 9, 25])
def test_resumed_equals_uninterrupted(shards, tmp_path, consumed):
    iterator = batches(shards)
    for _ in range(consumed):
        next(iterator)
    iterator.save(tmp_path)
    uninterrupted = [next(iterator) for _ in range(30)]
    fresh = batches(shards)
    fresh.restore(tmp_path)
    # A position can also be taken up again by the iterator that has gone on from it.
    iterator.restore(tmp_path)
    for expected in uninterrupted:
        assert_equal(next(fresh), expected)
        assert_equal(next(iterator), expected)


def test_resumed_in_another_process(shards, tmp_path):
    iterator = batches(shards)
    order(iterator, 13)
    iterator.save(tmp_path)
    program = (
        "import sys, json; from imagen_jax.data.iterator import train_batches;"
        "it = train_batches(sys.argv[1], **json.loads(sys.argv[3])); it.restore(sys.argv[2]);"
        "print([int(i) for _ in range(20) for i in next(it)['text_emb'][:, 0, 0]])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(shards), str(tmp_path), json.dumps(ARGUMENTS)],
        capture_output=True,
        text=True,
        timeout=120,  # it must end, too, with batches read ahead
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == order(iterator, 20)


def test_a_position_is_that_of_any_number_of_hosts(shards, tmp_path):
    for hosts, steps in ((2, 3), (4, 5), (1, 2)):
        together = [batches(shards, shard_index=i, num_shards=hosts) for i in range(hosts)]
        for host in together:
            if steps > 3:
                host.restore(tmp_path)
            order(host, steps)
        for host in together[1:]:
            host.save(tmp_path / "nowhere")  # left to the first
        assert not (tmp_path / "nowhere").exists()
        together[0].save(tmp_path)
    fresh = batches(shards)
    fresh.restore(tmp_path)
    assert fresh.step == 2
    with pytest.raises(FileNotFoundError, match=r"no data position position\.json .*no files"):
        fresh.restore(tmp_path / "nowhere")


class PositionHandler(ocp.CheckpointHandler):
    """The least that Orbax needs to keep a position beside the train state."""

    def save(self, directory, args):
        args.iterator.save(directory)

    def restore(self, directory, args):
        args.iterator.restore(directory)


@ocp.args.register_with_handler(PositionHandler, for_save=True, for_restore=True)
class PositionArgs(ocp.args.CheckpointArgs):
    def __init__(self, iterator):
        self.iterator = iterator


def test_position_lives_in_an_orbax_checkpoint(shards, tmp_path):
    iterator = batches(shards)
    with ocp.CheckpointManager(tmp_path, item_names=("state", "data")) as manager:
        for step in (2, 5):
            order(iterator, 3)
            state = ocp.args.StandardSave({"step": np.array(step)})
            args = ocp.args.Composite(state=state, data=PositionArgs(iterator))
            manager.save(step, args=args)
        manager.wait_until_finished()
        fresh = batches(shards)
        manager.restore(5, args=ocp.args.Composite(data=PositionArgs(fresh)))
    assert_equal(next(fresh), next(iterator))


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
def test_restore_refuses_other_arguments(shards, tmp_path, changed):
    batches(shards).save(tmp_path)
    ((name, value),) = changed.items()
    with pytest.raises(ValueError, match=f"{name}: saved .*, now {value}"):
        batches(shards, **changed).restore(tmp_path)


def test_restore_refuses_other_data_but_not_another_place(tmp_path):
    for name, salt in (("a", ""), ("moved", ""), ("b", "!")):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, salt=salt)
    batches(tmp_path / "a").save(tmp_path / "position")
    with pytest.raises(ValueError, match="records: saved "):
        batches(tmp_path / "b").restore(tmp_path / "position")
    moved = batches(tmp_path / "moved")
    moved.restore(tmp_path / "position")
    assert_equal(next(moved), next(batches(tmp_path / "a")))


def test_a_split_can_be_added_while_another_trains(tmp_path):
    iterator = batches(write_shards(tmp_path))
    iterator.save(tmp_path / "position")
    write_shards(tmp_path, split="test", files=2)
    resumed = batches(tmp_path)
    resumed.restore(tmp_path / "position")
    assert_equal(next(resumed), next(iterator))
    assert len(order(batches(tmp_path, split="test"), 2)) == 8
