"""`imagen doctor`: what works is told, and what does not is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from imagen_jax.main import main
from imagen_jax.plan import doctor


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*argv: str) -> tuple[int, str, str]:
        status = main(["doctor", *argv])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.mark.slow
def test_this_machine_works(said: Any, tmp_path: Path) -> None:
    (tmp_path / "one.tar").touch()
    status, out, err = said("--address", f"file://{tmp_path}")
    assert (status, err) == (0, "")
    lines = dict(line[2:].split(": ", 1) for line in out.splitlines() if ": " in line)
    assert all(line[0] == " " for line in out.splitlines()[:-1])
    assert f"jax {jax.__version__}" in lines["packages"]
    assert lines["devices"].startswith(f"{jax.device_count()} cpu")
    assert lines["kernels"].startswith("compiled for this processor")
    assert lines["storage"] == f"file://{tmp_path} can be listed: 1 entries, such as one.tar"
    assert "8 images: " in lines["train step"]
    assert "ms (median of 5)" in lines["train step"]
    assert out.splitlines()[-1] == "everything works"


def test_what_fails_is_named_and_the_rest_is_told(said: Any) -> None:
    def broken() -> Any:
        raise MemoryError("no room")

    slow = {"applies.return_value": False}
    with (
        mock.patch.object(doctor, "_train_step", broken),
        mock.patch.object(doctor, "winograd", mock.Mock(**slow)),
    ):
        status, out, err = said("--address", "nonsense://somewhere")
    assert status == 64
    assert "! kernels: XLA's own, which are slower: they do not apply here" in out
    assert "! storage: ValueError: Protocol not known: nonsense" in out
    assert "! a train step: MemoryError: no room" in out
    assert "  devices: " in out
    named = "something is wrong with kernels, storage, a train step: see above"
    assert err == f"imagen: error: {named}\n"


def test_hosts_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    gather = "jax.experimental.multihost_utils.process_allgather"
    monkeypatch.setattr(gather, lambda mine: np.stack([mine]))
    (found,) = doctor._hosts()
    assert found == doctor.Finding("hosts", "1 of 2 answer one another", works=False)
