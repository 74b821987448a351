"""Distances against pytorch-fid, clean-fid, torch-fidelity and prdc, and identities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from random_weights import random_features

from imagen_jax.eval.metrics.frechet import frechet_distance, frechet_of_features
from imagen_jax.eval.metrics.intervals import (
    bootstrap_error,
    clopper_pearson_interval,
    frechet_interval,
    mean_interval,
    wilson_interval,
)
from imagen_jax.eval.metrics.kernel import kernel_distance
from imagen_jax.eval.metrics.manifold import manifold_scores
from imagen_jax.eval.metrics.moments import Moments, merge_all
from imagen_jax.eval.metrics.scores import clip_scores, inception_score

REFERENCE = np.load(Path(__file__).parent / "testdata" / "evaluation" / "reference.npz")
SIZES = {"full": (200, 24), "singular": (40, 96)}


def features(rank: str) -> tuple[np.ndarray, np.ndarray]:
    return random_features(*SIZES[rank], 1), random_features(*SIZES[rank], 2)


def value(name: str) -> float:
    return float(REFERENCE[name])


@pytest.mark.parametrize("peer", ["pytorch-fid", "clean-fid", "torch-fidelity"])
@pytest.mark.parametrize(("rank", "rtol"), [("full", 1e-8), ("singular", 1e-6)])
def test_frechet_distance_is_that_of_others(rank: str, rtol: float, peer: str) -> None:
    x, y = features(rank)
    expected = value(f"{rank}_frechet_{peer}")
    np.testing.assert_allclose(frechet_of_features(x, y), expected, rtol=rtol)
    np.testing.assert_allclose(frechet_distance(Moments.of(x), Moments.of(y)), expected, rtol=rtol)


@pytest.mark.parametrize("rank", SIZES)
def test_kernel_distance_is_that_of_others(rank: str) -> None:
    x, y = features(rank)
    ours, spread = kernel_distance(x, y, subsets=1, subset_size=len(x))
    assert spread == 0
    for peer in ("clean-fid", "torch-fidelity"):
        np.testing.assert_allclose(ours, value(f"{rank}_kernel_{peer}"), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("rank", SIZES)
def test_manifold_scores_are_those_of_others(rank: str) -> None:
    ours = manifold_scores(*features(rank))
    assert ours.precision == pytest.approx(value(f"{rank}_precision_torch-fidelity"), abs=1e-6)
    assert ours.recall == pytest.approx(value(f"{rank}_recall_torch-fidelity"), abs=1e-6)
    assert ours.density == pytest.approx(value(f"{rank}_density_prdc"), abs=1e-9)
    assert ours.coverage == pytest.approx(value(f"{rank}_coverage_prdc"), abs=1e-9)


@pytest.mark.parametrize("rank", SIZES)
def test_inception_score_is_that_of_torch_fidelity(rank: str) -> None:
    ours, _ = inception_score(features(rank)[0], splits=1)
    assert ours == pytest.approx(value(f"{rank}_isc_torch-fidelity"), rel=1e-9)


def test_moments_do_not_depend_on_how_the_data_is_split() -> None:
    x = random_features(300, 16, 3) + 1e4  # far from zero, where naive sums cancel
    whole = Moments.of(x)
    rng = np.random.default_rng(0)
    for _ in range(5):
        cuts = np.sort(rng.choice(299, rng.integers(1, 40), replace=False)) + 1
        parts = [Moments.of(part) for part in np.split(x, cuts)]
        rng.shuffle(parts)
        merged = merge_all(parts)
        assert merged.count == 300
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
        np.testing.assert_allclose(merged.covariance, np.cov(x.astype("f8"), rowvar=False),
                                   rtol=1e-8, atol=1e-10)  # fmt: skip
    y = Moments.of(random_features(300, 16, 4) + 1e4)
    assert frechet_distance(merged, y) == pytest.approx(frechet_distance(whole, y), rel=1e-10)


def test_frechet_distance_of_diagonal_gaussians_has_a_closed_form() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6))
    x -= x.mean(0)
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False)), x.T).T  # covariance 1
    a, b = rng.uniform(0, 2, (2, 6))
    a[0] = 0  # a singular covariance
    shift = rng.normal(size=6)
    expected = (shift**2).sum() + ((a - b) ** 2).sum()
    assert frechet_of_features(x * a, x * b + shift) == pytest.approx(expected, rel=1e-10)
    assert frechet_of_features(x, x) == pytest.approx(0, abs=1e-10)


def test_weights_count_images_as_often_as_they_say() -> None:
    for n, width in ((30, 8), (12, 40)):
        x, y = random_features(n, width, 1), random_features(n, width, 2)
        wx, wy = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 2)
        expected = frechet_of_features(np.repeat(x, wx, 0), np.repeat(y, wy, 0))
        assert frechet_of_features(x, y, wx, wy) == pytest.approx(expected, rel=1e-6)


def test_manifold_scores_tell_fidelity_from_diversity() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(300, 4))
    same = manifold_scores(real, rng.normal(size=(300, 4)))
    assert min(same.precision, same.recall, same.coverage) > 0.85
    assert same.density == pytest.approx(1, abs=0.15)
    narrow = manifold_scores(real, 0.1 * rng.normal(size=(300, 4)))
    assert narrow.precision > 0.95
    assert narrow.recall < 0.2 > narrow.coverage
    apart = manifold_scores(real, rng.normal(size=(300, 4)) + 20)
    assert apart == (0, 0, 0, 0)


def test_kernel_distance_has_no_bias() -> None:
    rng = np.random.default_rng(0)
    values = [
        kernel_distance(*rng.normal(size=(2, 20, 5)), subsets=1, subset_size=20)[0]
        for _ in range(300)
    ]
    assert np.mean(values) == pytest.approx(0, abs=3 * np.std(values) / np.sqrt(300))
    x, y = rng.normal(size=(2, 200, 5))
    mean, _ = kernel_distance(x, y + 1, subsets=50, subset_size=40)
    whole, _ = kernel_distance(x, y + 1, subsets=1, subset_size=200)
    assert mean == pytest.approx(whole, rel=0.1)


def test_interval_of_a_distance_is_as_wide_as_distances_scatter() -> None:
    def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        return rng.normal(size=(60, 8)), rng.normal(size=(60, 8)) * 1.5 + 0.5

    true = np.std([frechet_of_features(*draw(seed)) for seed in range(1, 60)])
    x, y = draw(0)
    distance = frechet_of_features(x, y)
    low, high = frechet_interval(x, y, distance, resamples=60)
    assert low < distance < high
    assert (high - low) / (2 * 1.96) == pytest.approx(true, rel=0.4)
    of_mean = bootstrap_error(lambda a, b: float(a @ x[:, 0] / 60), (60, 1), 400)
    assert of_mean == pytest.approx(np.std(x[:, 0]) / np.sqrt(60), rel=0.15)


def test_intervals_of_proportions_hold_them_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    for share in (0.03, 0.5, 0.9):
        counts = rng.binomial(50, share, 2000)
        for interval, least in ((wilson_interval, 0.92), (clopper_pearson_interval, 0.945)):
            hits = [low <= share <= high for low, high in (interval(int(k), 50) for k in counts)]
            assert np.mean(hits) >= least
    assert wilson_interval(0, 10)[0] == clopper_pearson_interval(0, 10)[0] == 0
    assert wilson_interval(10, 10)[1] == clopper_pearson_interval(10, 10)[1] == 1
    # Clopper and Pearson 1934: with no success in n, the upper end is 1 - (level / 2)^(1 / n).
    assert clopper_pearson_interval(0, 10)[1] == pytest.approx(1 - 0.025 ** (1 / 10))


def test_clip_scores_are_cosines_and_their_interval_holds_the_mean() -> None:
    x = random_features(40, 12, 1)
    assert clip_scores(x, 3 * x) == pytest.approx(np.ones(40))
    assert clip_scores(x, -x) == pytest.approx(-np.ones(40))
    scores = clip_scores(x, random_features(40, 12, 2))
    low, high = mean_interval(scores)
    assert low < scores.mean() < high
    assert (high - low) / 3.92 == pytest.approx(scores.std() / np.sqrt(40), rel=0.15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_of_features(np.ones((5, 2)), np.ones((5, 3))), "2 and 3 channels"),
        (lambda: frechet_of_features(np.ones((1, 2)), np.ones((5, 2))), "at least 2 images"),
        (lambda: frechet_of_features(np.ones((1, 9)), np.ones((5, 9))), "2 images, got 1"),
        (lambda: Moments.of(np.full((3, 2), np.nan)), "image 0 are not finite"),
        (lambda: Moments.of(np.ones((0, 2))), r"\[0, 2\]"),
        (lambda: merge_all([]), "no parts"),
        (lambda: kernel_distance(np.ones((5, 2)), np.ones((4, 2)), 1, 5), "subsets of 5"),
        (lambda: manifold_scores(np.ones((5, 2)), np.ones((9, 2))), "needs more than 5 of each"),
        (lambda: inception_score(np.ones((3, 2)), 4), "4 splits of 3"),
        (lambda: clip_scores(np.ones((3, 2)), np.ones((2, 2))), r"\[3, 2\]"),
        (lambda: wilson_interval(3, 2), "3 of 2"),
        (lambda: clopper_pearson_interval(0, 0), "0 of 0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
