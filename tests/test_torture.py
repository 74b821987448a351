"""Training that is killed ends bit-identical; tests/torture.py does the same with more kills."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from torture import torture


@pytest.mark.slow
def test_killed_training_ends_bit_identical(tmp_path: Path) -> None:
    done = torture(tmp_path, tiny.embeddings(), kills=2, steps=50, seed=36)
    assert sum(done.statuses.values()) == 2
    assert len(done.statuses) == 2  # both kinds
    assert done.during_save > 0
