"""Corpora damaged at random, a few of each kind; `fuzz_corpora.py` runs more."""

from __future__ import annotations

import pytest
from fuzz_corpora import KINDS, fuzz


@pytest.mark.slow
def test_damaged_corpora_are_refused_or_counted() -> None:
    found, wrong = fuzz(10 * len(KINDS), seed=0)
    assert not wrong, wrong[0]
    assert {what for _, what in found} >= {"refused", "dropped", "whole"}
