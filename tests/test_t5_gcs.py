"""T5X checkpoints are read from gs:// as from a folder: against a server that speaks like GCS."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from gcs_server import Bucket

from imagen_jax.errors import UserError
from imagen_jax.text.t5_checkpoint import load_t5_encoder

DATA = Path(__file__).parent / "testdata" / "t5x"


@pytest.mark.slow
def test_layouts_are_read_from_a_bucket(bucket: Bucket) -> None:
    bucket.put_folder("t5", DATA)
    for layout in ("t5x", "t5x_bf16", "t5x_scan", "t5x_orbax"):
        local = load_t5_encoder(DATA / layout / "checkpoint_7")
        config, params = load_t5_encoder(f"gs://bucket/t5/{layout}/checkpoint_7")
        assert config == local[0]
        jax.tree.map(np.testing.assert_array_equal, params, local[1])
    with pytest.raises(UserError, match="checkpoint_8"):
        load_t5_encoder("gs://bucket/t5/t5x/checkpoint_8")
