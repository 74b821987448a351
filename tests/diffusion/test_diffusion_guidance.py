"""Guidance and thresholding: identities, and float64 NumPy for the percentile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from imagen_jax.diffusion import (
    PARAMETRIZATIONS,
    DynamicThreshold,
    IntervalGuidance,
    dynamic_threshold,
    guided_denoiser,
    static_threshold,
    to_eps,
    to_x0,
)
from imagen_jax.diffusion.guidance import absolute_percentile
from imagen_jax.typing import Conditioning, TextEmbedding

BATCH, LENGTH, WIDTH = 3, 4, 5
SHAPE = (BATCH, 4, 4, 3)


def text(seed, batch=BATCH, length=LENGTH):
    states = jax.random.normal(jax.random.key(seed), (batch, length, WIDTH))
    return TextEmbedding(states, jnp.ones((batch, length), bool))


def network(x_t, logsnr, conditioning):
    """Depends on all that it is given; the text through its masked sum."""
    states, mask = conditioning.text
    pooled = jnp.sum(jnp.where(mask[..., None], states, 0.0), axis=(1, 2))
    level = (0.3 * pooled + 0.1 * logsnr)[:, None, None, None]
    prediction = jnp.sin(x_t + level)
    if conditioning.low_res is not None:
        prediction += conditioning.low_res * conditioning.aug_level[:, None, None, None]
    return prediction


def conditioning():
    low_res = jax.random.normal(jax.random.key(11), SHAPE)
    return Conditioning(text(1), low_res, jnp.array([0.1, 0.5, 0.9]))


def unconditional(given_conditioning):
    """The same, without text."""
    empty = TextEmbedding(
        jnp.zeros_like(given_conditioning.text.states), jnp.zeros((BATCH, LENGTH), bool)
    )
    return given_conditioning._replace(text=empty)


X_T = jax.random.normal(jax.random.key(12), SHAPE)
LOGSNR = jnp.array([-2.0, 0.5, 3.0])


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_guidance_1_is_the_conditional_model_bit_for_bit(kind):
    calls = []

    def counting(x_t, logsnr, given_conditioning):
        calls.append(x_t.shape[0])
        return network(x_t, logsnr, given_conditioning)

    for one in (1, 1.0):
        result = guided_denoiser(counting, conditioning(), one, kind, "none")(X_T, LOGSNR)
        expected = to_x0(kind, network(X_T, LOGSNR, conditioning()), X_T, LOGSNR)
        np.testing.assert_array_equal(result, expected)
    assert calls == [BATCH, BATCH]
    # An array of ones does not skip the unconditional half; the weights still cancel it exactly.
    result = guided_denoiser(network, conditioning(), jnp.ones(BATCH), kind, "none")(X_T, LOGSNR)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_guiding_in_x0_equals_guiding_in_eps(kind):
    """The paper's formula in eps, and the same in x0, against one batched call."""
    w = 7.5
    with_text = network(X_T, LOGSNR, conditioning())
    without = network(X_T, LOGSNR, unconditional(conditioning()))
    eps = w * to_eps(kind, with_text, X_T, LOGSNR) + (1 - w) * to_eps(kind, without, X_T, LOGSNR)
    x0 = w * to_x0(kind, with_text, X_T, LOGSNR) + (1 - w) * to_x0(kind, without, X_T, LOGSNR)
    result = guided_denoiser(network, conditioning(), w, kind, "none")(X_T, LOGSNR)
    # Weights of 7.5 and -6.5, then up to 1 / alpha = 2.9 or 1 / sigma = 4.6: ~100 roundings.
    np.testing.assert_allclose(result, x0, atol=1e-5)
    np.testing.assert_allclose(result, to_x0("eps", eps, X_T, LOGSNR), atol=3e-5)


def test_one_batched_call_with_zeroed_text_in_the_second_half():
    seen = []

    def recording(x_t, logsnr, given_conditioning):
        seen.append((x_t, logsnr, given_conditioning))
        return network(x_t, logsnr, given_conditioning)

    given_conditioning = conditioning()
    guided_denoiser(recording, given_conditioning, 3.0, "v", "dynamic")(X_T, jnp.float32(0.7))
    ((x_t, logsnr, both),) = seen
    np.testing.assert_array_equal(x_t, jnp.concatenate([X_T, X_T]))
    np.testing.assert_array_equal(logsnr, jnp.full(2 * BATCH, 0.7))
    np.testing.assert_array_equal(both.text.states[:BATCH], given_conditioning.text.states)
    np.testing.assert_array_equal(both.text.states[BATCH:], 0.0)
    np.testing.assert_array_equal(both.text.mask[:BATCH], True)
    np.testing.assert_array_equal(both.text.mask[BATCH:], False)
    for half in (slice(0, BATCH), slice(BATCH, None)):
        np.testing.assert_array_equal(both.low_res[half], given_conditioning.low_res)
        np.testing.assert_array_equal(both.aug_level[half], given_conditioning.aug_level)


def test_one_weight_per_prompt():
    weights = jnp.array([1.0, 3.0, 9.0])
    together = guided_denoiser(network, conditioning(), weights, "v", "none")(X_T, LOGSNR)
    for i, weight in enumerate(weights):
        alone = guided_denoiser(network, conditioning(), float(weight), "v", "none")(X_T, LOGSNR)
        np.testing.assert_allclose(together[i], alone[i], atol=1e-6)


def test_weights_by_logsnr():
    interval = IntervalGuidance(weight=5.0, logsnr_low=-1.0, logsnr_high=1.0)
    result = guided_denoiser(network, conditioning(), interval, "v", "none")(X_T, LOGSNR)
    inside = guided_denoiser(network, conditioning(), 5.0, "v", "none")(X_T, LOGSNR)
    outside = guided_denoiser(network, conditioning(), 1, "v", "none")(X_T, LOGSNR)
    np.testing.assert_array_equal(result[1], inside[1])
    np.testing.assert_array_equal(result[0], outside[0])
    np.testing.assert_array_equal(result[2], outside[2])
    ramp = lambda logsnr: 1.0 + 0.5 * jax.nn.sigmoid(logsnr)  # noqa: E731
    ramped = guided_denoiser(network, conditioning(), ramp, "v", "none")(X_T, LOGSNR)
    array = guided_denoiser(network, conditioning(), ramp(LOGSNR), "v", "none")(X_T, LOGSNR)
    np.testing.assert_array_equal(ramped, array)


@pytest.mark.parametrize(("batch", "length"), [(BATCH, LENGTH), (1, LENGTH), (BATCH, 2), (1, 7)])
def test_negative_prompt_takes_the_place_of_no_text(batch, length):
    negative = text(2, batch, length)
    w = 4.0
    result = guided_denoiser(network, conditioning(), w, "eps", "none", negative)(X_T, LOGSNR)
    states = jnp.broadcast_to(negative.states, (BATCH, length, WIDTH))
    other = conditioning()._replace(text=TextEmbedding(states, jnp.ones((BATCH, length), bool)))
    eps = w * network(X_T, LOGSNR, conditioning()) + (1 - w) * network(X_T, LOGSNR, other)
    np.testing.assert_allclose(result, to_x0("eps", eps, X_T, LOGSNR), atol=3e-5)


def test_negative_prompt_equal_to_the_prompt_is_guidance_off():
    denoise = guided_denoiser(network, conditioning(), 9.0, "v", "none", conditioning().text)
    expected = guided_denoiser(network, conditioning(), 1, "v", "none")(X_T, LOGSNR)
    np.testing.assert_allclose(denoise(X_T, LOGSNR), expected, atol=5e-6)


def test_scalar_and_per_example_logsnr_agree_and_low_precision_networks_are_lifted():
    def half(x_t, logsnr, given_conditioning):
        return network(x_t, logsnr, given_conditioning).astype(jnp.bfloat16)

    denoise = guided_denoiser(half, conditioning(), 2.0, "v", "static")
    scalar = denoise(X_T, jnp.float32(1.0))
    np.testing.assert_array_equal(scalar, denoise(X_T, jnp.ones(BATCH)))
    assert scalar.dtype == jnp.float32
    assert np.abs(scalar).max() <= 1.0


@settings(max_examples=60)
@given(
    x0=hnp.arrays(
        np.float32,
        st.sampled_from([(1, 1, 1, 1), (2, 3, 2, 3), (1, 9, 9, 3)]),
        elements=st.floats(-100, 100, width=32, allow_subnormal=False),
    ),
    percentile=st.sampled_from([0.1, 50.0, 90.0, 99.5, 100.0]),
    cap=st.sampled_from([None, 1.0, 2.5]),
)
def test_dynamic_threshold_equals_numpy_in_float64(x0, percentile, cap):
    """Relative error of the percentile: 4 roundings."""
    absolute = np.abs(x0.astype(np.float64)).reshape(x0.shape[0], -1)
    exact = np.percentile(absolute, percentile, axis=1)
    np.testing.assert_allclose(absolute_percentile(x0, percentile), exact, rtol=2.5e-7, atol=1e-37)
    scale = np.minimum(np.maximum(exact, 1.0), np.inf if cap is None else cap)
    scale = scale.reshape(-1, 1, 1, 1)
    reference = np.clip(x0.astype(np.float64), -scale, scale) / scale
    result = np.asarray(dynamic_threshold(x0, percentile, cap))
    np.testing.assert_allclose(result, reference, rtol=5e-7, atol=1e-37)
    assert np.abs(result).max() <= 1.0


def test_dynamic_threshold_of_a_large_image():
    """3 million numbers per example: positions in the order no longer fit in float32."""
    x0 = np.random.default_rng(0).standard_cauchy((1, 1024, 1024, 3)).astype(np.float32)
    for percentile in (99.5, 99.99):
        exact = np.percentile(np.abs(x0.astype(np.float64)), percentile)
        np.testing.assert_allclose(absolute_percentile(x0, percentile)[0], exact, rtol=2.5e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_percentile_of_narrow_types_is_exact(dtype):
    """It lies between two numbers of the type, which a result of the type would be rounded to."""
    x0 = (3 * jax.random.normal(jax.random.key(0), (3, 8, 8, 3))).astype(dtype)
    wide = np.asarray(x0, np.float64)
    exact = np.percentile(np.abs(wide).reshape(3, -1), 99.5, axis=1)
    found = absolute_percentile(x0, 99.5)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=2.5e-7)
    scale = exact.reshape(3, 1, 1, 1)
    result = dynamic_threshold(x0, 99.5)
    assert result.dtype == dtype
    rounding = float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_allclose(
        np.asarray(result, np.float64), np.clip(wide, -scale, scale) / scale, rtol=1.1 * rounding
    )


def test_threshold_leaves_images_in_range_alone():
    x0 = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3), minval=-1.0)
    np.testing.assert_array_equal(static_threshold(x0), x0)
    np.testing.assert_array_equal(dynamic_threshold(x0, 99.5), x0)


def test_threshold_is_per_example():
    x0 = (
        jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
        * jnp.array([1.0, 20.0])[:, None, None, None]
    )
    together = dynamic_threshold(x0, 95.0)
    for i in range(2):
        np.testing.assert_array_equal(together[i], dynamic_threshold(x0[i : i + 1], 95.0)[0])


def test_threshold_objects_and_names_agree():
    by_name = guided_denoiser(network, conditioning(), 15.0, "eps", "dynamic")(X_T, LOGSNR)
    threshold = DynamicThreshold(percentile=99.5)
    by_object = guided_denoiser(network, conditioning(), 15.0, "eps", threshold)(X_T, LOGSNR)
    np.testing.assert_array_equal(by_name, by_object)


def test_nan_stays_within_its_example():
    x0 = jnp.ones((2, 2, 2, 1)).at[0, 0, 0, 0].set(jnp.nan)
    for threshold in (static_threshold, DynamicThreshold(99.5)):
        result = np.asarray(threshold(x0))
        assert np.isnan(result[0]).any()
        np.testing.assert_array_equal(result[1], 1.0)


def test_errors():
    good = conditioning()
    for percentile in (0.0, -1.0, 100.5, float("nan")):
        with pytest.raises(ValueError, match=f"percentile.*{percentile}"):
            dynamic_threshold(X_T, percentile)
    with pytest.raises(ValueError, match=r"cap.*0\.5"):
        dynamic_threshold(X_T, 99.0, cap=0.5)
    with pytest.raises(ValueError, match=r"cap.*0\.5"):
        DynamicThreshold(99.0, cap=0.5)
    with pytest.raises(ValueError, match=r"'dynamics'.*dynamic.*none.*static"):
        guided_denoiser(network, good, 2.0, "v", "dynamics")
    with pytest.raises(ValueError, match=r"'u'.*eps.*v.*x0"):
        guided_denoiser(network, good, 2.0, "u", "none")
    with pytest.raises(ValueError, match=r"\(2, 4, 5\).*\(3, 4, 5\)"):
        guided_denoiser(network, good, 2.0, "v", "none", text(2, batch=2))
    with pytest.raises(ValueError, match=r"\(2,\)"):
        guided_denoiser(network, good, jnp.ones(2), "v", "none")(X_T, LOGSNR)
    with pytest.raises(ValueError, match=r"logsnr_low=1\.0"):
        IntervalGuidance(2.0, logsnr_low=1.0, logsnr_high=-1.0)
