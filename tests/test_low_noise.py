"""Errors of x0 by noise level, and the warning of sampling that ends where a network is bad."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from imagen_jax.cascade import Cascade
from imagen_jax.checkpoints.cascades import export_cascade
from imagen_jax.embed import embed
from imagen_jax.errors import UserError
from imagen_jax.files import write_json
from imagen_jax.low_noise import LEVELS, X0Errors, from_record, from_records, last_level
from imagen_jax.models.base import BaseNetwork
from imagen_jax.stage import make_stage
from imagen_jax.train.validation import x0_errors

IDENTITY = tuple(np.exp(-np.array(LEVELS) / 2).tolist())


class Zero(BaseNetwork):
    """Returns 0."""

    def __call__(self, x: Any, logsnr: Any, conditioning: Any, train: bool = False) -> Any:
        return jnp.zeros_like(x)


def zero_output(parametrization: str, name: str) -> X0Errors:
    """Errors of Zero."""
    stage = tiny.stage(name, f"stages.{name}.diffusion.parametrization={parametrization}")
    stage = stage.with_network(Zero())
    batch = tiny.batch(stage, 64)
    errors = jax.jit(lambda logsnr: x0_errors(stage, {}, batch, logsnr))
    found = np.array([errors(np.float32(level)) for level in LEVELS])
    return X0Errors(LEVELS, *map(tuple, found.T.tolist()))


@pytest.mark.parametrize("name", ["base", "sr"])
def test_errors_of_a_network_that_returns_zero(name: str) -> None:
    size = tiny.batch(tiny.stage(name), 64)["image"]
    rms = float(np.sqrt(np.mean(np.square(size))))
    logsnr = np.array(LEVELS)
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))
    eps, v, x0 = (zero_output(kind, name) for kind in ("eps", "v", "x0"))
    for found in (eps, v, x0):
        np.testing.assert_allclose(found.identity, IDENTITY, rtol=0.03)
    np.testing.assert_allclose(eps.network, eps.identity, rtol=1e-3)
    np.testing.assert_allclose(
        v.network, np.sqrt((sigma**2 * rms) ** 2 + (alpha * sigma) ** 2), rtol=0.05
    )
    np.testing.assert_allclose(x0.network, rms, rtol=1e-5)
    assert eps.fault(10.0) is v.fault(6.0) is None
    assert x0.fault(-8.0) is None
    assert "is worse than returning the noisy image as it is" in str(x0.fault(6.0))
    assert "Set end_logsnr to 0, where it does better" in str(x0.fault(6.0))


def test_faults_by_their_errors() -> None:
    good = X0Errors(LEVELS, tuple(0.3 * e for e in IDENTITY), IDENTITY)
    assert all(good.fault(level) is None for level in (*LEVELS, -9.0, 11.0, 3.3))
    # 0.07 from -8 to 0, twice as much at 2 and 4, where x_t / alpha has 0.37 and 0.14.
    grown = (0.07, 0.07, 0.07, 0.07, 0.13, 0.13, 0.04, 0.019, 0.006)
    grain = X0Errors(LEVELS, grown, IDENTITY)
    for level in (-4.0, 0.0, 6.0):
        assert grain.fault(level) is None
    fault = str(grain.fault(3.0))
    assert "has an error of 0.13, and 0.07 with more noise, at logsnr 3" in fault
    assert "Set end_logsnr to 0, where it does better" in fault
    assert "is worse than returning the noisy image as it is" in str(grain.fault(8.0))
    invisible = X0Errors(LEVELS, (*grown[:-1], 0.003), (*IDENTITY[:-1], 0.002))
    assert invisible.fault(10.0) is None  # half a grey level is 0.004


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": [{}, {}]}, "no errors of x0: TypeError: "),
        ({"network": [0.1]}, "no errors of x0: ValueError: .*inhomogeneous"),
        ({"levels": [1.0, 0.0]}, "levels must ascend, and errors be above 0"),
        ({"identity": [0.5, 0.0]}, "levels must ascend, and errors be above 0"),
    ],
)
def test_records_that_hold_no_errors(changes: dict[str, Any], message: str) -> None:
    record = {"levels": [0.0, 1.0], "network": [0.2, 0.1], "identity": [0.5, 0.4]}
    assert from_record(record) == X0Errors((0.0, 1.0), (0.2, 0.1), (0.5, 0.4))
    with pytest.raises(UserError, match=message):
        from_record(record | changes)


def test_a_network_that_returns_nan_is_warned_of(tmp_path: Path) -> None:
    """And so is a record that holds something else: neither keeps anybody from sampling."""
    nan = X0Errors((0.0, 1.0, 2.0), (0.2, np.nan, np.inf), (0.5, 0.4, 0.3))
    assert "not finite (NaN or infinity) at logsnr 1 and at 1 more" in str(nan.fault(0.0))
    write_json(tmp_path / "errors.json", {"base": dataclasses.asdict(nan), "sr": {"levels": 1}})
    records = json.loads((tmp_path / "errors.json").read_text())
    with pytest.warns(UserWarning, match="stage 'sr' in run: no errors of x0: KeyError"):
        found = from_records(records, Path("run"))
    assert list(found) == ["base"]
    np.testing.assert_equal(dataclasses.astuple(found["base"]), dataclasses.astuple(nan))


def test_the_level_of_the_last_call() -> None:
    stage = tiny.stage("base")
    for steps, end in ((4, None), (4, -3.0), (1, None)):
        settings = [f"stages.base.sample.steps={steps}", f"stages.base.sample.end_logsnr={end}"]
        of = tiny.stage("base", *settings)
        wanted = float(stage.schedule.logsnr(1 / steps)) if end is None else end
        assert last_level(of, of.sample) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.slow
def test_a_trained_stage_with_a_bad_end_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of x0 knows colours after some steps, and not how to keep the last digits."""
    from imagen_jax.train.loop import train

    data = tiny.embed_colours(tmp_path / "data")
    embed(tiny.Colours(), data, encoder=tiny.encoder(), split="validation", image_size=tiny.SR,
          num_shards=1)  # fmt: skip
    train_section = ["steps=30", "learning_rate=0.01", "sample_every=0", "validation_batches=1",
                     "checkpoint_every=30", "log_every=30"]  # fmt: skip
    run = [*tiny.ONE_LEVEL, "stages.base.diffusion.parametrization=x0",
           "stages.base.diffusion.weighting=x0", "cascade=('base',)",
           *(f"stages.base.train.{of}" for of in train_section)]  # fmt: skip

    config = tiny.config(*run, "stages.base.sample.steps=64")
    train(config, "base", str(data), tmp_path / "trained")
    said = capsys.readouterr().out
    stage = make_stage(config, "base")
    last = last_level(stage, stage.sample)
    assert "base: x0 error by logsnr, network/identity, of 255: -8: " in said
    assert "base: WARNING: the network is worse than returning the noisy image as it is" in said
    assert f"at logsnr {last:.3g}, where its sampling ends: expect grain" in said
    assert "Set end_logsnr to " in said

    metrics = tiny.metrics_of(tmp_path / "trained" / "base")[30]
    record = json.loads((tmp_path / "trained" / "base" / "x0_errors.json").read_text())
    for level in LEVELS:
        at = record["levels"].index(level)
        assert metrics[f"x0_error_logsnr_{level:g}"] == pytest.approx(record["network"][at])
        ratio = record["network"][at] / record["identity"][at]
        assert metrics[f"x0_error_over_identity_logsnr_{level:g}"] == pytest.approx(ratio)
    assert metrics["x0_error_over_identity_logsnr_10"] > 1
    assert metrics["x0_error_over_identity_logsnr_-4"] < 0.2

    # What validation found is known where the cascade is sampled, exported or not.
    export_cascade(tmp_path / "trained", tmp_path / "exported")
    for place in ("trained", "exported"):
        cascade = Cascade.load(tmp_path / place)
        with pytest.warns(UserWarning, match="stage 'base': the network is worse.*end_logsnr"):
            cascade.request(["a red image"])
        with warnings.catch_warnings(action="error"):
            cascade.request(["a red image"], end_logsnr=-4)
            cascade.request(["a red image"], steps=1)
