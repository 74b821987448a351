"""Conversions between eps, v and x0: round trips within stated float32 bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

from imagen_jax.diffusion import PARAMETRIZATIONS, alpha_sigma, diffuse, target, to_eps, to_v, to_x0
from imagen_jax.diffusion.parametrization import expand_to

ROUNDOFF = 2.0**-24
CONVERSIONS = {"x0": to_x0, "eps": to_eps, "v": to_v}
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3]))


def amplification(kind: str, alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """By how much a prediction of this kind magnifies the rounding of x_t: equations (5) to (7)."""
    return {"eps": 1 / alpha, "x0": 1 / sigma, "v": np.ones_like(alpha)}[kind]


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
@pytest.mark.parametrize("wanted", PARAMETRIZATIONS)
def test_round_trip_over_the_whole_range(kind, wanted):
    """Error at most 8 roundings of (|x0| + |eps|), times 1/alpha from eps and 1/sigma from x0.

    Justification: x_t carries two roundings of its own and one or two of each amplitude; a
    conversion adds two more and, unless from v, divides by an amplitude. Measured: 4 at most.
    """
    keys = jax.random.split(jax.random.key(0))
    logsnr = jnp.linspace(-20.0, 20.0, 2001)
    x0 = jax.random.uniform(keys[0], (2001, 4, 4, 3), minval=-1.0)
    eps = jax.random.normal(keys[1], x0.shape)
    x_t, prediction = diffuse(x0, eps, logsnr), target(kind, x0, eps, logsnr)
    result = np.asarray(CONVERSIONS[wanted](kind, prediction, x_t, logsnr), np.float64)
    exact = np.asarray(target(wanted, x0, eps, logsnr), np.float64)
    if kind == wanted:
        np.testing.assert_array_equal(result, exact)
    alpha, sigma = (np.asarray(a, np.float64)[:, None, None, None] for a in alpha_sigma(logsnr))
    bound = 8 * ROUNDOFF * (np.abs(x0) + np.abs(eps)) * amplification(kind, alpha, sigma)
    assert np.all(np.abs(result - exact) <= bound)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
@settings(max_examples=30)
def test_round_trip_of_any_prediction(dtype, data):
    """A prediction of one kind, taken to any other and back, is itself; dtype and shape stay."""
    shape = data.draw(SHAPES)
    width = np.dtype(dtype).itemsize * 8
    images = hnp.arrays(dtype, shape, elements=st.floats(-4, 4, width=width))
    x_t, prediction = data.draw(images), data.draw(images)
    levels = data.draw(hnp.arrays(dtype, shape[:1], elements=st.floats(-20, 20, width=width)))
    kind, other = data.draw(st.permutations(PARAMETRIZATIONS))[:2]
    with jax.enable_x64(True):
        logsnr = jnp.asarray(levels)
        through = CONVERSIONS[other](kind, jnp.asarray(prediction), jnp.asarray(x_t), logsnr)
        back = CONVERSIONS[kind](other, through, jnp.asarray(x_t), logsnr)
        back = np.asarray(back)
        assert back.dtype == dtype
        assert back.shape == shape
        alpha, sigma = (np.asarray(a).reshape(-1, 1, 1, 1) for a in alpha_sigma(logsnr))
    # Both ways multiply by no more than 1 / (alpha sigma).
    bound = 16 * np.finfo(dtype).eps * 8 / (alpha * sigma)
    assert np.all(np.abs(back - prediction) <= bound)


def test_conversions_are_affine_with_weights_adding_up_to_one():
    """Hence guiding eps, v or x0 is the same: w a + (1 - w) b commutes with every conversion."""
    keys = jax.random.split(jax.random.key(1), 3)
    x_t, first, second = (jax.random.normal(key, (2, 3, 3, 1)) for key in keys)
    logsnr, w = jnp.array([-3.0, 4.0]), 7.5
    for kind in PARAMETRIZATIONS:
        for convert in CONVERSIONS.values():
            mixed = convert(kind, w * first + (1 - w) * second, x_t, logsnr)
            parts = [convert(kind, part, x_t, logsnr) for part in (first, second)]
            np.testing.assert_allclose(mixed, w * parts[0] + (1 - w) * parts[1], atol=2e-4)


def test_scalar_and_per_example_logsnr_agree():
    x_t = jax.random.normal(jax.random.key(2), (3, 2, 2, 3))
    for kind in PARAMETRIZATIONS:
        one = to_x0(kind, x_t, x_t, jnp.float32(1.5))
        many = to_x0(kind, x_t, x_t, jnp.full(3, 1.5))
        np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_gradients(kind):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(3))
        x_t, prediction = (jax.random.normal(k, (2, 2, 2, 1), jnp.float64) for k in keys)
        for convert in CONVERSIONS.values():
            arguments = (prediction, x_t, jnp.array([-2.0, 3.0]))
            check_grads(lambda p, x, levels, c=convert: c(kind, p, x, levels), arguments, order=1)


def test_errors():
    x = jnp.zeros((2, 2, 2, 1))
    for function in (to_x0, to_eps, to_v, target):
        with pytest.raises(ValueError, match=r"'noise'.*eps.*v.*x0"):
            function("noise", x, x, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"\(2, 2, 2, 1\).*\(3,\)"):
        expand_to(jnp.zeros(3), x)
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        diffuse(x, x, jnp.zeros((2, 1)))
