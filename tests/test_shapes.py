"""The checks of shapes.py, which all tests run under, catch what is wrong and nothing else."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from shapes import PACKAGE

from imagen_jax.diffusion import make_schedule, time_grid
from imagen_jax.diffusion.loss import loss_by_logsnr_bin
from imagen_jax.diffusion.parametrization import diffuse
from imagen_jax.models.attention import attend
from imagen_jax.train.step import drop_text
from imagen_jax.typing import TextEmbedding

IMAGE = np.zeros((2, 4, 4, 3), np.float32)
TEXT = TextEmbedding(jnp.ones((2, 5, 8)), jnp.ones((2, 5), bool))
QUERY = jnp.ones((2, 5, 1, 4))


def test_shapes_that_agree_pass() -> None:
    assert attend(QUERY, QUERY, QUERY).shape == QUERY.shape
    assert diffuse(IMAGE, IMAGE, 0.5).shape == IMAGE.shape  # NumPy's arrays and numbers, too
    assert time_grid(make_schedule("cosine"), 6, "karras").shape == (7,)
    assert drop_text(jax.random.key(0), TEXT, 0.1).states.shape == TEXT.states.shape
    assert len(loss_by_logsnr_bin(jnp.ones(5), jnp.zeros(5), jnp.arange(3.0))[0]) == 2


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (attend, (QUERY, QUERY[:1], QUERY[:1]), "k"),
        (diffuse, (IMAGE, IMAGE[:, :2], 0.5), "eps"),
        (diffuse, (IMAGE[0], IMAGE[0], 0.5), "x0"),
        (diffuse, (IMAGE.astype(int), IMAGE, 0.5), "x0"),
        (drop_text, (jax.random.key(0), TEXT._replace(mask=TEXT.mask[:, 1:]), 0.1), "text"),
    ],
)
def test_a_wrong_shape_is_caught(
    function: Callable[..., Any], arguments: tuple[Any, ...], name: str
) -> None:
    with pytest.raises(TypeCheckError, match=f"parameter '{name}'"):
        function(*arguments)


def test_every_module_that_names_shapes_is_checked() -> None:
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\w\[(Array|np\.ndarray), \"", path.read_text(encoding="utf-8"))
    ]
    loaders = {name: type(importlib.util.find_spec(name).loader) for name in names}
    assert len(names) > 20
    assert not [name for name, loader in loaders.items() if "jaxtyping" not in loader.__module__]
