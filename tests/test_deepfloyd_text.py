"""Captions as DeepFloyd IF reads them, against transformers (tests/make_deepfloyd_reference.py)."""

from __future__ import annotations

from pathlib import Path

import deepfloyd_files as files
import numpy as np
import pytest

from imagen_jax.checkpoints.deepfloyd import _read_text
from imagen_jax.errors import UserError
from imagen_jax.text.encoder import load_encoder
from imagen_jax.text.tokenizer import CaptionTooLongError

STATES = np.load(Path(__file__).parent / "testdata" / "deepfloyd_text.npz")["states"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's directory with text_encoder/ and tokenizer/."""
    return files.write_text_encoder(tmp_path_factory.mktemp("pipeline"))


def test_all_77_states_are_those_of_transformers(pipeline: Path) -> None:
    encoder = load_encoder("t5-if", pipeline)
    rows = encoder.encode_tokens([row.astype(np.int32) for row in files.token_rows()])
    assert [row.shape for row in rows] == [(77, files.WIDTH)] * 4
    np.testing.assert_allclose(rows, STATES, rtol=0, atol=1e-5 * np.abs(STATES).max())
    narrow = load_encoder("t5-if", pipeline, dtype="bfloat16")
    near = narrow.encode_tokens([row.astype(np.int32) for row in files.token_rows()])
    assert np.abs(near - STATES).max() < 0.1 * np.abs(STATES).max()
    assert narrow.fingerprint == encoder.fingerprint
    assert narrow.params["token_embedder"]["embedding"].dtype == "bfloat16"


def test_captions_are_lowered_stripped_and_padded(pipeline: Path) -> None:
    encoder = load_encoder("t5-if", pipeline / "text_encoder")
    empty, plain, loud = encoder.tokenize(["", "a photo of a dog", "  A PHOTO of a Dog \n"])
    assert empty.tolist() == [1] + [0] * 76
    np.testing.assert_array_equal(plain, loud)
    assert plain.shape == (77,)
    assert plain.dtype == np.int32
    assert plain[-1] == 0
    text = encoder.encode(["a dog", ""])
    assert text.states.shape == (2, 77, files.WIDTH)
    assert bool(text.mask.all())
    assert encoder.knows_a_word(plain)
    assert not encoder.knows_a_word(empty)


def test_long_captions_are_refused(pipeline: Path) -> None:
    with pytest.raises(CaptionTooLongError, match="at most 77") as error:
        load_encoder("t5-if", pipeline).tokenize(["red " * 90])
    assert error.value.cut.shape == (77,)
    assert error.value.cut[-1] == 1


def test_t5_and_t5_if_are_different_encoders(pipeline: Path) -> None:
    vocabulary = str(pipeline / "tokenizer" / "spiece.model")
    t5 = load_encoder("t5", pipeline / "text_encoder", vocabulary)
    t5_if = load_encoder("t5-if", pipeline)
    assert t5.fingerprint != t5_if.fingerprint
    tokens = t5.tokenize(["a photo of a dog"])
    words = t5_if.encode_tokens(t5_if.tokenize(["a photo of a dog"]))[0][: len(tokens[0])]
    np.testing.assert_allclose(t5.encode_tokens(tokens)[0], words, atol=1e-5)


def test_missing_files(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'t5-if' needs its weights: the directory of a"):
        load_encoder("t5-if")
    (tmp_path / "text_encoder").mkdir()
    with pytest.raises(UserError, match=r"no vocabulary at .*tokenizer/spiece\.model"):
        load_encoder("t5-if", tmp_path)


def test_an_encoder_of_another_width_does_not_belong_to_the_networks(pipeline: Path) -> None:
    width = load_encoder("t5-if", pipeline / "text_encoder").width
    message = f"makes states of {width} channels, but the networks read 4096; they do not belong"
    with pytest.raises(UserError, match=message):
        _read_text(pipeline / "text_encoder", 4096)
