"""T5 as a text encoder: its tokenizers, its files, and a cascade from embeddings to an image."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import seqio
import tiny
from sentencepiece import SentencePieceTrainer

from imagen_jax.cascade import Cascade
from imagen_jax.data.records import read_records
from imagen_jax.errors import UserError
from imagen_jax.text import t5
from imagen_jax.text.encoder import load_encoder
from imagen_jax.text.t5_checkpoint import load_t5_encoder
from imagen_jax.text.tokenizer import Bytes, CaptionTooLongError, SentencePiece

WEIGHTS = Path(__file__).parent / "testdata" / "t5x" / "t5x" / "checkpoint_7"
CAPTIONS = ["a drawing of a red circle left of a dog", "two cats, flat icon", "", "naïve ☕ 猫"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with the special tokens of T5's, and fewer tokens than the weights."""
    prefix = tmp_path_factory.mktemp("vocabulary") / "sentencepiece"
    SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20), model_prefix=str(prefix), vocab_size=60,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return prefix.with_suffix(".model")


# tokens


def test_pieces_are_those_of_seqio(vocabulary: Path) -> None:
    expected = seqio.SentencePieceVocabulary(str(vocabulary))
    ids = SentencePiece(vocabulary, 128)(CAPTIONS)
    assert [row.tolist() for row in ids] == [[*expected.encode(c), 1] for c in CAPTIONS]
    assert expected.eos_id == 1
    assert {row.dtype for row in ids} == {np.dtype(np.int32)}


def test_bytes_are_those_of_seqio() -> None:
    expected = seqio.ByteVocabulary()
    ids = Bytes(128)(CAPTIONS)
    assert [row.tolist() for row in ids] == [
        [*expected.encode(c), expected.eos_id] for c in CAPTIONS
    ]


def test_long_captions_are_named(vocabulary: Path) -> None:
    assert len(Bytes(5)(["abcd"])[0]) == 5
    for tokenizer in (Bytes(5), SentencePiece(vocabulary, 5)):
        with pytest.raises(CaptionTooLongError, match=r"at most 5; shorten it: 'a b c d e f'"):
            tokenizer(["a", "a b c d e f"])
        with pytest.raises(TypeError, match="list of strings"):
            tokenizer("a red circle")


def test_captions_without_a_known_word(vocabulary: Path) -> None:
    tokenizer = SentencePiece(vocabulary, 128)
    unknown, known = tokenizer(["ꙮ ꙮ", "a ꙮ circle"])
    assert set(unknown.tolist()) <= tokenizer.wordless
    assert not set(known.tolist()) <= tokenizer.wordless


def test_files_that_are_no_vocabulary(vocabulary: Path, tmp_path: Path) -> None:
    broken = tmp_path / "sentencepiece.model"
    for content in (vocabulary.read_bytes()[:100], b"", bytes(100), b"\xff" * 100):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=r"sentencepiece\.model is not a SentencePiece model"):
            SentencePiece(broken, 128)
    SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20), model_prefix=str(tmp_path / "endless"),
        vocab_size=60, eos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"endless\.model has no end-of-sentence token"):
        SentencePiece(tmp_path / "endless.model", 128)


# the encoder


@pytest.mark.slow
def test_states_are_those_of_the_network(vocabulary: Path) -> None:
    encoder = load_encoder("t5", WEIGHTS, str(vocabulary))
    config, params = load_t5_encoder(WEIGHTS)
    assert (encoder.name, encoder.width, encoder.max_length) == ("t5", 32, 128)
    states, mask = encoder.encode(CAPTIONS)
    for caption, row, seen in zip(CAPTIONS, states, mask, strict=True):
        ids = SentencePiece(vocabulary, 128)([caption])[0]
        assert seen.tolist() == [True] * len(ids) + [False] * (len(seen) - len(ids))
        alone = t5.encode(params, config, ids[None], np.ones((1, len(ids)), bool))[0]
        np.testing.assert_allclose(row[: len(ids)], alone, atol=2e-5)
        assert not row[len(ids) :].any()


def test_fingerprint_covers_weights_and_vocabulary(vocabulary: Path, tmp_path: Path) -> None:
    first = load_encoder("t5", WEIGHTS, str(vocabulary)).fingerprint
    same_weights = WEIGHTS.parent.parent / "t5x_orbax" / WEIGHTS.name
    assert load_encoder("t5", same_weights, str(vocabulary)).fingerprint == first
    other = tmp_path / "other.model"
    SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20), model_prefix=str(other.with_suffix("")),
        vocab_size=50, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    assert load_encoder("t5", WEIGHTS, str(other)).fingerprint != first
    bfloat16 = WEIGHTS.parent.parent / "t5x_bf16" / WEIGHTS.name
    assert load_encoder("t5", bfloat16, str(vocabulary)).fingerprint != first


def test_files_that_are_missing_or_do_not_fit(vocabulary: Path) -> None:
    with pytest.raises(ValueError, match="'t5' needs its weights"):
        load_encoder("t5")
    with pytest.raises(UserError, match=r"no vocabulary at .*checkpoint_7/spiece\.model"):
        load_encoder("t5", WEIGHTS)
    with pytest.raises(ValueError, match=r"vocabulary has 259 tokens, .* embed only 256"):
        load_encoder("t5", WEIGHTS, "bytes")
    with pytest.raises(ValueError, match="'minilm' brings its own vocabulary"):
        load_encoder("minilm", None, str(vocabulary))
    with pytest.raises(UserError, match="unknown dtype 'float16' of a text encoder; choices: fl"):
        load_encoder("t5", WEIGHTS, str(vocabulary), dtype="float16")
    with pytest.raises(UserError, match="'minilm' computes in float32 only, not in bfloat16"):
        load_encoder("minilm", dtype="bfloat16")


def test_states_that_are_not_finite(vocabulary: Path) -> None:
    encoder = load_encoder("t5", WEIGHTS, str(vocabulary))
    damaged = jax.tree.map(lambda leaf: leaf * np.nan, encoder.params)
    with pytest.raises(UserError, match="'t5' returns NaN or infinity, first for 'a dog': its"):
        dataclasses.replace(encoder, params=damaged).encode(["a dog"])


def test_large_parameters_are_divided_over_devices() -> None:
    sharding = t5.shardings(jax.local_devices() * 4)  # laid out, but nothing is put there
    assert len(jax.local_devices()) == 1
    shapes = {
        "token_embedder/embedding": ((256, 32), (None, "model")),
        "encoder/layers_0/attention/query/kernel": ((32, 32), (None, "model")),
        "encoder/layers_0/attention/out/kernel": ((32, 32), ("model",)),
        "encoder/layers_0/mlp/wi_0/kernel": ((32, 64), (None, "model")),
        "encoder/layers_0/mlp/wo/kernel": ((64, 32), ("model",)),
        "encoder/layers_1/mlp/wo/kernel": ((66, 32), ()),
        "encoder/relpos_bias/rel_embedding": ((4, 32), ()),
        "encoder/encoder_norm/scale": ((32,), ()),
    }
    for name, (shape, spec) in shapes.items():
        assert tuple(sharding(name, shape).spec) == spec, name


# from embeddings to an image


@pytest.mark.slow
def test_embeddings_and_a_cascade_on_t5(vocabulary: Path, tmp_path: Path) -> None:
    files = {"weights": str(WEIGHTS), "vocabulary": str(vocabulary)}
    data, directory = tmp_path / "data", tmp_path / "cascade"
    manifest = tiny.embed_scenes("quickstart", 8, tiny.SR, 0, "t5", data, 2, **files)
    encoder = load_encoder("t5", **files)
    described = (encoder.name, encoder.width, encoder.fingerprint)
    assert tuple(manifest["encoder"][key] for key in ("name", "width", "fingerprint")) == described
    caption = next(read_records(data / manifest["splits"]["train"]["shards"][0]))
    expected = encoder.encode_tokens(encoder.tokenize(caption.captions))[0]
    np.testing.assert_allclose(caption.states[0], expected, atol=0.02)  # bfloat16

    tiny.write_cascade(directory, encoder)
    with pytest.raises(ValueError, match="'t5' needs its weights"):
        Cascade.load(directory)
    bfloat16 = str(WEIGHTS.parent.parent / "t5x_bf16" / WEIGHTS.name)
    with pytest.raises(ValueError, match=r"trained with embeddings of encoder 't5'.*but the one"):
        Cascade.load(directory, bfloat16, str(vocabulary))
    cascade = Cascade.load(directory, str(WEIGHTS), str(vocabulary))
    images = cascade.sample(["a red circle"], show_progress=False).images
    assert images.shape == (1, tiny.SR, tiny.SR, 3)
