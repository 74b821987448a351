"""Low-rank changes of weights: what is trained, its file, and the weights that it changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import tiny
from flax.traverse_util import flatten_dict

from imagen_jax.cascade import Cascade
from imagen_jax.checkpoints.cascades import export_cascade, open_cascade
from imagen_jax.checkpoints.lora import export_lora, read_lora
from imagen_jax.checkpoints.pretrained import Pretrained
from imagen_jax.errors import UserError
from imagen_jax.main import main, make_parser
from imagen_jax.tensor_files import read_safetensors
from imagen_jax.train.loop import train
from imagen_jax.train.lora import adapted_layers, low_rank
from imagen_jax.train.optimizer import make_optimizer

pytestmark = pytest.mark.slow  # all need a cascade that was trained or made first

LORA = ("stages.base.train.lora_rank=2", "stages.base.train.ema_decay=0",
        "stages.base.train.learning_rate=0.01")  # fmt: skip


def weights(cascade: Pretrained) -> dict[str, np.ndarray]:
    return flatten_dict(jax.device_get(cascade.weights(cascade.stages[0])), sep="/")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory with a base stage whose change was trained for two steps, and its file."""
    directory = tmp_path_factory.mktemp("lora")
    settings = tiny.config(*tiny.WITHOUT_SAMPLES, *LORA)
    train(settings, "base", tiny.embeddings(), directory / "run", init_from=tiny.workdir())
    export_lora(directory / "run", directory / "change.safetensors", "float32")
    return directory


def test_factors_move_as_if_they_were_the_parameters() -> None:
    """Against gradients by the factors themselves, through W_0 + A B, in float64."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(3, 3, 4, 5))
    start = {"x": {"kernel": rng.normal(size=(3, 3, 4, 5)), "bias": rng.normal(size=5)},
             "y_stack": {"kernel": rng.normal(size=(2, 6, 3))}}  # fmt: skip

    def loss(params: Any) -> Any:
        sines = jnp.sin(params["x"]["kernel"] - target) * params["x"]["bias"]
        return jnp.sum(sines**2) + jnp.sum(jnp.cos(params["y_stack"]["kernel"]))

    with jax.enable_x64(True):
        start = jax.tree.map(jnp.asarray, start)
        adam = optax.adam(0.05)
        optimizer = low_rank(adam, rank=2, layers=("*",), seed=0)
        params, state = start, optimizer.init(start)
        factors = jax.tree.map(lambda leaf: leaf.astype("float64"), state.factors)
        state = optimizer.init(start)._replace(factors=factors, inner=adam.init(factors))
        moments = adam.init(factors)

        def changed(factors: Any) -> Any:
            a, b = factors["a"], factors["b"]
            change = {name: a[name] @ b[name] for name in a}
            return {
                "x": start["x"] | {"kernel": start["x"]["kernel"]
                                   + change["x/kernel"].reshape(3, 3, 4, 5)},
                "y_stack": {"kernel": start["y_stack"]["kernel"] + change["y_stack/kernel"]},
            }  # fmt: skip

        for _ in range(20):
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
            steps, moments = adam.update(jax.grad(lambda f: loss(changed(f)))(factors), moments)
            factors = optax.apply_updates(factors, steps)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
                     (params, state.factors), (changed(factors), factors))  # fmt: skip
        assert float(jnp.abs(factors["b"]["x/kernel"]).max()) > 0.1


@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "muon"])
def test_chosen_kernels_alone_change_and_by_the_rank(optimizer: str) -> None:
    kind = f"stages.base.train.optimizer={optimizer}"
    stage = tiny.stage("base", *tiny.ONE_LEVEL, *LORA, kind, "stages.base.train.warmup_steps=0")
    params = tiny.random_params(stage)
    transform = make_optimizer(stage)
    grads = jax.tree.map(jnp.ones_like, params)
    state, after = transform.init(params), params
    for _ in range(3):
        updates, state = transform.update(grads, state, after)
        after = optax.apply_updates(after, updates)
    before, now = (flatten_dict(tree, sep="/") for tree in (params, after))
    chosen = adapted_layers(before, stage.train.lora_layers)
    assert chosen
    assert all("attention" in name for name in chosen)
    for name, value in now.items():
        change = np.asarray(value - before[name])
        assert bool(change.any()) == (name in chosen), name
        if name in chosen:
            size = np.linalg.svd(change.reshape(-1, change.shape[-1]), compute_uv=False)
            assert (size[2:] < 1e-4 * size[0] + 2e-7).all(), name  # the weights' own rounding


def test_a_file_changes_the_weights_as_training_did(adapted: Path, tmp_path: Path) -> None:
    change = adapted / "change.safetensors"
    export_lora(adapted / "run", tmp_path / "half.safetensors")
    halves, whole = (read_lora(path) for path in (tmp_path / "half.safetensors", change))
    assert (tmp_path / "half.safetensors").stat().st_size < change.stat().st_size
    for of_half, of_whole in zip(
        jax.tree.leaves(halves.factors), jax.tree.leaves(whole.factors), strict=True
    ):
        np.testing.assert_allclose(of_half, of_whole, rtol=5e-4, atol=1e-7)
    trained, base = open_cascade(adapted / "run"), open_cascade(tiny.workdir())
    of_file = weights(open_cascade(tiny.workdir(), lora={change: 1.0}))
    for name, value in weights(trained).items():
        np.testing.assert_allclose(of_file[name], value, rtol=0, atol=3e-7, err_msg=name)
    before = weights(base)
    assert any((of_file[name] != before[name]).any() for name in before)
    tiny.assert_identical(weights(open_cascade(tiny.workdir(), lora={change: 0.0})), before)
    half = weights(open_cascade(tiny.workdir(), lora={change: 0.5}))
    for name, value in half.items():
        middle = (before[name] + of_file[name]) / 2
        np.testing.assert_allclose(value, middle, rtol=0, atol=3e-7, err_msg=name)


def test_merged_weights_and_a_file_beside_them_make_equal_images(
    adapted: Path, tmp_path: Path
) -> None:
    change = {adapted / "change.safetensors": 1.0}
    export_cascade(tiny.workdir(), tmp_path / "merged", dtype="float32", lora=change)
    merged = Cascade.load(tmp_path / "merged", stages=["base"])
    beside = Cascade.load(tiny.workdir(), stages=["base"], lora=change)
    plain = Cascade.load(tiny.workdir(), stages=["base"])
    images = [of.sample(["a red image"], seed=3).images for of in (merged, beside, plain)]
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0] != images[2]).any()
    assert beside.fingerprints != plain.fingerprints


def test_weights_that_it_was_not_trained_on_are_told(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = {adapted / "change.safetensors": 1.0}
    open_cascade(tiny.workdir(), lora=change)
    assert "trained on other weights" not in capsys.readouterr().err
    open_cascade(adapted / "run", lora=change)
    assert "was trained on other weights of stage 'base'" in capsys.readouterr().err


def test_training_goes_on_where_it_was(adapted: Path, tmp_path: Path) -> None:
    settings = tiny.config(*tiny.WITHOUT_SAMPLES, *LORA, "stages.base.train.checkpoint_every=1")

    def at_one(measured: Any) -> bool:
        return measured.step == 1

    arguments = (settings, "base", tiny.embeddings(), tmp_path)
    train(*arguments, init_from=tiny.workdir(), hooks=[at_one])
    resumed = train(*arguments).state
    whole = open_cascade(adapted / "run")
    params = flatten_dict(jax.device_get(resumed.params), sep="/")
    tiny.assert_identical(params, weights(whole))


def test_a_change_needs_weights_to_change(tmp_path: Path) -> None:
    settings = tiny.config(*tiny.WITHOUT_SAMPLES, *LORA)
    with pytest.raises(UserError, match=r"lora_rank is 2: .* name them with --init-from"):
        train(settings, "base", tiny.embeddings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ema_decay=0.5", "set ema_decay to 0"),
        ("freeze=('conv_in/*',)", r"freeze to \(\)"),
        ("lora_rank=-1", "lora_rank is -1"),
    ],
)
def test_settings_that_do_not_go_together(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny.stage("base", *LORA, f"stages.base.train.{change}")


def test_layers_that_are_not_there() -> None:
    stage = tiny.stage("base", *LORA, "stages.base.train.lora_layers=('*atention*',)")
    with pytest.raises(UserError, match=r"no kernel's name matches '\*atention\*'; names begin"):
        make_optimizer(stage).init(tiny.random_params(stage))


def test_files_that_are_no_change(adapted: Path, tmp_path: Path) -> None:
    whole = read_safetensors(adapted / "change.safetensors")
    told = {"format": "imagen-jax lora", "trained_on": '{"base": "0"}'}
    name = next(of for of in whole if of.endswith("/a"))
    pair = {name: whole[name], name[:-1] + "b": whole[name[:-1] + "b"]}
    wide = {
        name: np.zeros((100_000, 1), np.float32),
        name[:-1] + "b": np.zeros((1, 100_000), np.float32),
    }
    other = {f"base/nowhere/kernel/{of}": np.zeros((3, 3), np.float32) for of in "ab"}
    cases: list[tuple[dict[str, np.ndarray], dict[str, str], str]] = [
        (pair, {}, "holds no change of weights"),
        ({name: whole[name]}, told, "is no factor of a pair"),
        (pair | {name: np.zeros((2, 7), np.float32)}, told, "have shapes"),
        (pair, {"format": "imagen-jax lora"}, "does not say what it was trained on"),
        (
            {f"sr2/{of[5:]}": pair[of] for of in pair},
            told,
            "changes a stage 'sr2'; the cascade has",
        ),
        ({of: pair[of].astype(np.int32) for of in pair}, told, "must be finite numbers in float16"),
        ({of: np.full_like(pair[of], np.nan) for of in pair}, told, "must be finite numbers"),
        (wide, told, "by a matrix"),
        (other, told, "changes nowhere/kernel, and stage 'base' has none"),
    ]
    for number, (arrays, metadata, message) in enumerate(cases):
        path = tmp_path / f"{number}.safetensors"
        safetensors.numpy.save_file(arrays, path, metadata)
        with pytest.raises(UserError, match=message):
            weights(open_cascade(tiny.workdir(), lora={path: 1.0}))
    with pytest.raises(UserError, match=r"strength of .* is nan; it must be a finite number"):
        open_cascade(tiny.workdir(), lora={adapted / "change.safetensors": float("nan")})
    with pytest.raises(UserError, match="no file of weights"):
        open_cascade(tiny.workdir(), lora={tmp_path / "absent.safetensors": 1.0})


def test_on_the_command_line(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--workdir", str(adapted / "run")]
    export = ["export", "--format", "lora", "--output", str(tmp_path / "x.safetensors")]
    assert main([*export, *run]) == 0
    assert "x.safetensors" in capsys.readouterr().out
    for line, message in {
        (*export, *run): "x.safetensors is there already",
        (*export[:-1], str(tmp_path / "x"), *run): r"a \.safetensors file",
        (*export,): "needs the --workdir",
        (*export[:-1], str(tmp_path / "y.safetensors"), "--workdir", str(tiny.workdir())):
            "no stage with a checkpoint that was trained with train.lora_rank",
        (*export, *run, "--best"): "takes --workdir, --output and --dtype alone",
    }.items():  # fmt: skip
        assert main([*line]) == 64
        assert re.search(message, capsys.readouterr().err)
    parsed = make_parser().parse_args(["sample", "x", "--lora", "a=b.safetensors", "c=0.5"])
    assert parsed.lora == {"a=b.safetensors": 1.0, "c": 0.5}
    with pytest.raises(SystemExit):
        make_parser().parse_args(["sample", "x", "--lora", "a", "a=0.5"])
    assert "a is given twice" in capsys.readouterr().err
