"""Parameters that stay as they are, and averages that make sense."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict

from imagen_jax.train.optimizer import frozen_parameters, make_optimizer


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "muon"])
def test_frozen_parameters_stay(optimizer: str) -> None:
    kind = f"stages.base.train.optimizer={optimizer}"
    freeze = "stages.base.train.freeze=('conv_in/*', '*bias')"
    stage = tiny.stage("base", *tiny.ONE_LEVEL, kind, freeze)
    params = tiny.random_params(stage)
    transform = make_optimizer(stage)
    grads = jax.tree.map(lambda p: p + 0.01, params)
    updates, _ = transform.update(grads, transform.init(params), params)
    labels = frozen_parameters(params, stage.train.freeze)
    for name, label in flatten_dict(labels, sep="/").items():
        chosen = name.startswith("conv_in/") or name.endswith("bias")
        assert label == ("frozen" if chosen else "trained"), name
    jax.tree.map(lambda u, label: np.testing.assert_equal(bool((u != 0).any()), label == "trained"),
                 updates, labels)  # fmt: skip


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("('conv_im/*',)", r"no parameter's name matches 'conv_im/\*'; names begin with .*conv_in"),
        ("('*',)", "leave nothing to train"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything(freeze: str, message: str) -> None:
    stage = tiny.stage("base", *tiny.ONE_LEVEL, f"stages.base.train.freeze={freeze}")
    with pytest.raises(ValueError, match=message):
        make_optimizer(stage).init(tiny.random_params(stage))


@pytest.mark.parametrize("decays", ["(1.5,)", "(0.9, 0.9)", "(0.999,)"])
def test_ema_decays_that_make_no_sense(decays: str) -> None:
    with pytest.raises(ValueError, match=r"extra_ema_decays is .* ema_decay, 0\.999"):
        tiny.stage("base", f"stages.base.train.extra_ema_decays={decays}")
