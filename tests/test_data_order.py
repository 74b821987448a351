"""The global order: permutations, hosts, mixtures, and that any step can be asked for alone."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import seqio
from embedding_shards import EXAMPLES, assert_equal, batches, order, write_shards

from imagen_jax.data.order import BLOCK, GlobalOrder, Permutation, ShuffledSource
from imagen_jax.data.tasks import register_embeddings_task

SIZES = [(36, 4, 2), (36, 5, 3), (16, 4, 1024), (1000, 64, 4), (1001, 48, 7), (17, 3, 1),
         (5, 8, 2), (1, 1, 1), (4096, 128, 4)]  # fmt: skip


@pytest.mark.parametrize(("examples", "batch", "window_steps"), SIZES)
def test_every_epoch_is_a_permutation(examples: int, batch: int, window_steps: int) -> None:
    source = ShuffledSource(examples, batch, window_steps, seed=7)
    epochs = source.records(np.arange(3 * examples)).reshape(3, examples)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(examples), (3, 1)))
    if examples > 17:
        assert len({tuple(epoch) for epoch in epochs}) == 3
        other = ShuffledSource(examples, batch, window_steps, seed=8)
        assert (other.records(np.arange(examples)) != epochs[0]).any()


def test_any_part_can_be_asked_for_alone() -> None:
    mixed = GlobalOrder([100, 50, 1000], [0.2, 0.3, 0.5], 30, 4, seed=0)
    whole = mixed.records(range(40), range(30))
    for steps, rows in ((range(1), range(30)), (range(7, 9), range(3, 20)), (range(39, 40), [29])):
        rows = range(rows[0], rows[-1] + 1)
        alone = GlobalOrder([100, 50, 1000], [2, 3, 5], 30, 4, seed=0).records(steps, rows)
        np.testing.assert_array_equal(alone, whole[steps.start : steps.stop][:, list(rows)])


def test_records_are_spread() -> None:
    """Neighbours in the data are not neighbours in the order, and every part comes everywhere."""
    epoch = ShuffledSource(2**16, 64, 64, seed=0).records(np.arange(2**16))
    assert np.mean(np.abs(np.diff(epoch)) < BLOCK) < 0.01
    # 16 parts of the order, in each of which the mean record is near the middle of all.
    means = epoch.reshape(16, -1).mean(1) / 2**16
    assert np.abs(means - 0.5).max() < 5 / np.sqrt(12 * 2**16 / 16 / BLOCK)
    batch_means = epoch.reshape(-1, 64).mean(1) / 2**16
    assert batch_means.std() == pytest.approx(1 / np.sqrt(12 * 64), rel=0.1)


@pytest.mark.parametrize("count", [*range(1, 40), 255, 256, 257, 5000])
def test_permutation_and_its_inverse(count: int) -> None:
    permutation = Permutation(count, (3, 1))
    places = permutation(np.arange(count))
    np.testing.assert_array_equal(np.sort(places), np.arange(count))
    np.testing.assert_array_equal(permutation.inverse(places), np.arange(count))


@pytest.mark.slow
def test_permutations_are_as_uniform_as_drawn_ones() -> None:
    """Chi-square of where each of 10 numbers, and each pair of neighbours, lands in 4,000."""
    drawn = np.stack([Permutation(10, (seed, 0))(np.arange(10)) for seed in range(4000)])
    places = np.stack([np.bincount(column, minlength=10) for column in drawn.T])
    assert ((places - 400) ** 2 / 400).sum() < 81 + 5 * np.sqrt(2 * 81)
    pairs = np.bincount(drawn[:, 4] * 10 + drawn[:, 5], minlength=100).reshape(10, 10)
    assert (pairs.diagonal() == 0).all()
    expected = 4000 / 90
    assert ((pairs[~np.eye(10, dtype=bool)] - expected) ** 2 / expected).sum() < 89 + 5 * np.sqrt(
        178
    )


def test_an_order_of_a_trillion_records_takes_no_memory() -> None:
    examples = 10**12 + 5
    first = ShuffledSource(examples, 2048, 2, seed=0)
    last = ShuffledSource(examples, 2048, 2, seed=0)
    first.records(np.arange(1))  # loads what it needs of NumPy
    tracemalloc.start()
    found = first.records(np.arange(2 * examples - 4096, 2 * examples + 4096))
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    assert len(np.unique(found[:4096])) == 4096
    assert found.min() >= 0
    assert found.max() < examples
    np.testing.assert_array_equal(
        last.records(np.arange(2 * examples, 2 * examples + 7)), found[4096:4103]
    )


def test_hosts_read_whole_blocks() -> None:
    """Of what all hosts read, little is read twice."""
    source = GlobalOrder([10**6], [1.0], 2048, 2, seed=0)
    for hosts in (1, 8, 64):
        share = 2048 // hosts
        blocks = [
            np.unique(source.records(range(2), range(h * share, (h + 1) * share)) // BLOCK)
            for h in range(hosts)
        ]
        assert sum(map(len, blocks)) * BLOCK <= 1.5 * 2 * 2048


def test_rates_hold_in_every_batch() -> None:
    rates = np.array([0.15, 0.05, 0.8])
    mixed = GlobalOrder([1000, 2000, 3000], rates, 33, 1, seed=0)
    source = np.digitize(mixed.records(range(200), range(33)), [1000, 3000])
    counts = np.stack([(source == k).sum(1) for k in range(3)], 1)
    assert np.abs(counts - 33 * rates).max() < 2
    assert np.abs(np.cumsum(counts, 0) - 33 * rates * np.arange(1, 201)[:, None]).max() <= 1
    # Each source goes through its own epochs.
    first = mixed.records(range(203), range(33))
    of_first = first[first < 1000]
    assert sorted(of_first[:1000]) == list(range(1000))


def test_orders_that_cannot_be_made() -> None:
    with pytest.raises(ValueError, match=r"0\.04 examples of source 1 to a batch"):
        GlobalOrder([10, 10], [0.99, 0.01], 4, 1, 0)
    with pytest.raises(ValueError, match=r"rates must be above 0, got \[1, 0\]"):
        GlobalOrder([10, 10], [1, 0], 4, 1, 0)
    with pytest.raises(ValueError, match="1 sources have 2 rates"):
        GlobalOrder([10], [1, 1], 4, 1, 0)
    with pytest.raises(ValueError, match="at least 1, got 0, 4 and 1"):
        ShuffledSource(0, 4, 1, 0)


# through the pipeline


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards [1]*"))


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_batches_are_the_same_on_any_number_of_hosts(shards: Path, hosts: int) -> None:
    alone = batches(shards, batch_size=8)
    together = [batches(shards, batch_size=8, host=(i, hosts))
                for i in range(hosts)]  # fmt: skip
    for _ in range(2 * EXAMPLES // 8 + 1):
        shares = [next(host) for host in together]
        joined = {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
        assert_equal(joined, next(alone))


@pytest.mark.slow
def test_seek_gives_the_batch_of_any_step(shards: Path) -> None:
    expected = [next(iterator) for iterator in [batches(shards)] for _ in range(30)]
    for step in (0, 1, 7, 29):
        iterator = batches(shards, host=(1, 2))
        iterator.seek(step)
        batch = next(iterator)
        assert_equal(batch, {name: value[2:] for name, value in expected[step].items()})
        assert iterator.step == step + 1


@pytest.mark.slow
def test_mixtures_are_read_in_the_global_order(shards: Path, tmp_path: Path) -> None:
    other = write_shards(tmp_path, files=2, salt="!")
    register_embeddings_task("order_test_a", str(shards))
    register_embeddings_task("order_test_b", str(other))
    seqio.MixtureRegistry.add("order_test", [("order_test_a", 3), ("order_test_b", 1)])
    found = order(batches("order_test"), 36)
    # Images of the same number are the same in both.
    counts = np.bincount(found, minlength=EXAMPLES)
    assert counts.sum() == 4 * 36
    assert (counts[18:] == 3).all()  # 108 of the first are three epochs
    assert (counts[:18] == 5).all()  # and 36 of the second two
    assert order(batches(f"{shards}=0.75,{other}=0.25"), 36) == found
    assert order(batches("order_test_a"), 9) == order(batches(shards), 9)
    mixture = batches("order_test")
    assert [part["rate"] for part in mixture.manifest["source"]["train"]["parts"]] == [3, 1]
    with pytest.raises(ValueError, match="records: saved"):
        batches(f"{shards}=0.5,{other}=0.5").restore(mixture.position())


def test_mixtures_that_do_not_fit_together(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no such directory, and as a mixture .* 'a=often' is not"
    ):
        batches("a=often,b=0.5")
    with pytest.raises(ValueError, match="mixes sources, which have no common epoch"):
        batches(f"{shards}=1,{shards}=1", repeat=False)
    with pytest.raises(ValueError, match=r"cannot be mixed: image_size: 16 != 8"):
        batches(f"{shards}=1,{write_shards(tmp_path, image_size=8)}=1")
