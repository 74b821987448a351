"""Checkpoints: whole or not at all, kept by policy, and safe from a disk that is full."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax import sharding
from imagen_jax.checkpoints.checksums import checksums
from imagen_jax.checkpoints.reading import (
    DamagedCheckpoint,
    best_checkpoint,
    checkpoint_steps,
    ema_digest,
    newest_checkpoint,
    restore_ema,
)
from imagen_jax.checkpoints.writing import DAMAGED, Checkpointer
from imagen_jax.errors import UserError
from imagen_jax.stage_config import ALL_CORRECT, VALIDATION_LOSS
from imagen_jax.train.state import TrainState

MESH = sharding.make_mesh()
SIZE = 200_000
"""Elements of the largest array: several times what the files beside the arrays take."""


def state_at(step: int) -> TrainState:
    """A state without a network."""
    rng = np.random.default_rng(step)

    def tree() -> Any:
        arrays = {"kernel": rng.normal(size=(SIZE // 10, 10)), "bias": rng.normal(size=3)}
        return jax.device_put(jax.tree.map(np.float32, arrays), sharding.replicated(MESH))

    scalar = jax.device_put(np.int32(step), sharding.replicated(MESH))
    return TrainState(scalar, tree(), tree(), {"mu": tree()}, {"0.5": tree()}, scalar)


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_at(0)
)


def open_checkpoints(
    directory: Path, said: list[str] | None = None, keep: int = 2, hours: float = 0.0, best: int = 0
) -> Checkpointer:
    return Checkpointer(
        directory,
        keep=keep,
        keep_every_hours=hours,
        keep_best=best,
        best_metric=VALIDATION_LOSS,
        report=([] if said is None else said).append,
    )


def save(directory: Path, *steps: int, keep: int = 2, hours: float = 0.0) -> None:
    with contextlib.closing(open_checkpoints(directory, keep=keep, hours=hours)) as checkpointer:
        for step in steps:
            checkpointer.save(step, state_at(step).items(), {"step": step})


def restore(
    directory: Path, fall_back: bool = False, said: list[str] | None = None
) -> TrainState | None:
    with contextlib.closing(open_checkpoints(directory, said)) as checkpointer:
        saved = checkpointer.restore(ABSTRACT.items(), fall_back)
    if saved is None:
        return None
    state = ABSTRACT.with_items(saved.items)
    assert saved.position == {"step": int(state.step)}
    return state


def assert_is(state: TrainState | None, step: int) -> None:
    jax.tree.map(np.testing.assert_array_equal, state, state_at(step))


def test_round_trip_and_the_checkpoints_that_are_kept(tmp_path: Path) -> None:
    assert restore(tmp_path / "none") is None
    for name, hours, kept in (("latest", 0.0, [3, 4]), ("all", 1e-7, [1, 2, 3, 4])):
        save(tmp_path / name, 1, 2, 3, 4, hours=hours)
        assert checkpoint_steps(tmp_path / name) == kept
        assert_is(restore(tmp_path / name), 4)
    for decay, expected in ((None, state_at(4).ema), (0.5, state_at(4).extra_ema["0.5"])):
        found = restore_ema(newest_checkpoint(tmp_path / "latest"), ABSTRACT.ema, decay)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(ValueError, match=r"no average of decay 0.9; .* there are: 0\.5"):
        restore_ema(newest_checkpoint(tmp_path / "latest"), ABSTRACT.ema, 0.9)


def test_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    losses = {1: 0.5, 2: 0.1, 3: 0.2, 4: None, 5: 0.3, 6: 0.4}
    with contextlib.closing(open_checkpoints(tmp_path, keep=1, best=2)) as checkpointer:
        for step, loss in losses.items():
            metrics = None if loss is None else {VALIDATION_LOSS: loss}
            checkpointer.save(step, state_at(step).items(), {}, metrics)
    assert checkpoint_steps(tmp_path) == [2, 3, 6]
    with contextlib.closing(open_checkpoints(tmp_path, keep=1, best=2)) as checkpointer:
        # A resumed run remembers how good the others are.
        checkpointer.save(7, state_at(7).items(), {}, {VALIDATION_LOSS: 0.15})
    assert checkpoint_steps(tmp_path) == [2, 7]
    newest, best = newest_checkpoint(tmp_path), best_checkpoint(tmp_path)
    assert (newest.name, best.name) == ("7", "2")
    for path, step in ((newest, 7), (best, 2)):
        found = restore_ema(path, ABSTRACT.ema)
        jax.tree.map(np.testing.assert_array_equal, found, state_at(step).ema)
    assert ema_digest(best) != ema_digest(newest)
    save(tmp_path / "other", 1)
    with pytest.raises(UserError, match=r"was measured; train with train\.keep_best"):
        best_checkpoint(tmp_path / "other")


def test_higher_all_correct_is_better(tmp_path: Path) -> None:
    checkpointer = Checkpointer(
        tmp_path, keep=1, keep_every_hours=0, keep_best=1, best_metric=ALL_CORRECT, report=print
    )
    with contextlib.closing(checkpointer):
        for step, share in {1: 0.25, 2: 0.75, 3: None, 4: 0.5}.items():
            measured = {} if share is None else {ALL_CORRECT: share}
            measured |= {VALIDATION_LOSS: 0.1 * step}
            checkpointer.save(step, state_at(step).items(), {}, measured)
    assert checkpoint_steps(tmp_path) == [2, 4]
    assert best_checkpoint(tmp_path).name == "2"


def test_checksums() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    plain = checksums({"x": jnp.asarray(x)})["['x']"]
    bits = x.view(np.uint32).ravel().astype(np.uint64)
    assert plain == int((bits * (2 * np.arange(24, dtype=np.uint64) + 1)).sum() % 2**32)
    for change in (x[::-1], x + np.float32(1e-6), np.where(x == 7, 0, x)):
        assert checksums({"x": jnp.asarray(change, jnp.float32)})["['x']"] != plain
    assert checksums({"x": jnp.asarray(3, jnp.bfloat16)})["['x']"] == 0x4040
    with jax.no_tracing():  # what was compiled for the first checkpoint serves for the others
        assert checksums({"x": jnp.asarray(x)})["['x']"] == plain
    spread = NamedSharding(Mesh(np.array(jax.devices()), "a"), PartitionSpec("a"))
    assert checksums({"x": jax.device_put(x, spread)})["['x']"] == plain


def largest(checkpoint: Path, item: str) -> Path:
    files = [path for path in (checkpoint / item).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(checkpoint: Path) -> None:
    path = largest(checkpoint, "state")
    os.truncate(path, path.stat().st_size // 2)


def flip_one_bit(checkpoint: Path) -> None:
    path = largest(checkpoint, "ema")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "one bit": flip_one_bit,
    "no file": lambda checkpoint: largest(checkpoint, "state").unlink(),
    "no average": lambda checkpoint: shutil.rmtree(checkpoint / "ema"),
    "no checksums": lambda checkpoint: shutil.rmtree(checkpoint / "checksums"),
    "no position": lambda checkpoint: shutil.rmtree(checkpoint / "data"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    save(directory, 1, 2)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named_and_falling_back_is_asked_for(
    saved: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    directory = tmp_path / "stage"
    shutil.copytree(saved, directory)
    newest = directory / "checkpoints" / "2"
    damage(newest)
    with pytest.raises(DamagedCheckpoint, match=rf"{newest}\b.*Older ones: 1; --fall-back"):
        restore(directory)
    assert checkpoint_steps(directory) == [1, 2]
    said: list[str] = []
    assert_is(restore(directory, fall_back=True, said=said), 1)
    assert len(said) == 1
    assert str(newest) in said[0]
    assert checkpoint_steps(directory) == [1]
    assert (directory / DAMAGED / "2").is_dir()
    save(directory, 2)
    assert_is(restore(directory), 2)


def test_all_checkpoints_are_damaged(saved: Path, tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    shutil.copytree(saved, directory)
    for path in (directory / "checkpoints").iterdir():
        flip_one_bit(path)
    with pytest.raises(DamagedCheckpoint, match="none of the checkpoints of steps 2, 1 is whole"):
        restore(directory, fall_back=True)


def test_damaged_ema_is_not_sampled_from(saved: Path, tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    shutil.copytree(saved, directory)
    flip_one_bit(directory / "checkpoints" / "2")
    with pytest.raises(DamagedCheckpoint, match="/2"):
        restore_ema(newest_checkpoint(directory), ABSTRACT.ema)


def test_unfinished_checkpoints_are_named_and_removed(saved: Path, tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    shutil.copytree(saved, directory)
    unfinished = directory / "checkpoints" / "3.orbax-checkpoint-tmp"
    shutil.copytree(directory / "checkpoints" / "2", unfinished)
    said: list[str] = []
    assert_is(restore(directory, said=said), 2)
    assert said == [
        f"3 in {directory / 'checkpoints'} was not written to its end when training was "
        "interrupted; it is removed"
    ]
    assert not unfinished.exists()


@contextlib.contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    """No file can grow beyond what the smallest ones need."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def unwritable(directory: Path) -> Iterator[None]:
    """Nothing can be created there, by the superuser neither."""
    checkpoints = directory / "checkpoints"
    mode, user = checkpoints.stat().st_mode, os.geteuid()
    checkpoints.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        checkpoints.chmod(mode)


@pytest.mark.parametrize("trouble", [full_disk, unwritable])
def test_a_failed_save_leaves_the_previous_checkpoint(
    saved: Path, tmp_path: Path, trouble: Callable[[Path], Any]
) -> None:
    directory = tmp_path / "stage"
    shutil.copytree(saved, directory)
    checkpointer = open_checkpoints(directory, keep=1)

    def fail() -> None:
        with trouble(directory):
            checkpointer.save(3, state_at(3).items(), {})
            checkpointer.close()

    with pytest.raises(OSError, match=r"(?i)cannot write .*(too large|denied).* as they were"):
        fail()
    assert checkpoint_steps(directory)[-1] == 2
    assert_is(restore(directory), 2)
