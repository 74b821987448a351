"""T5's encoder against T5X itself on random weights, where the extra `t5x` is installed."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.text import t5


@pytest.mark.parametrize("activations", [("gelu", "linear"), ("relu",)])
def test_equals_t5x(activations: tuple[str, ...]) -> None:
    network = pytest.importorskip("t5x.examples.t5.network")
    sizes = network.T5Config(
        vocab_size=100, dtype=jnp.float32, emb_dim=24, num_heads=3, num_encoder_layers=3,
        num_decoder_layers=1, head_dim=16, mlp_dim=56, mlp_activations=activations,
        dropout_rate=0.0,
    )  # fmt: skip
    model = network.Transformer(sizes)
    mask = np.arange(40)[None] < np.array([[3], [17], [33], [40]])
    tokens = np.where(mask, np.random.default_rng(0).integers(1, 100, mask.shape), 0)
    one = jnp.ones((4, 2), jnp.int32)
    variables = model.init(jax.random.key(0), tokens, one, one, enable_dropout=False)
    params = nn.meta.unbox(variables["params"])
    expected = model.apply({"params": params}, tokens, enable_dropout=False, method=model.encode)
    ours = {name: params[name] for name in ("token_embedder", "encoder")}
    states = t5.encode(ours, t5.config_of(ours), tokens.astype(np.int32), mask)
    assert np.abs(np.asarray(states) - np.asarray(expected))[mask].max() <= 2e-5
