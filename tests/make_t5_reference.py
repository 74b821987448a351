"""Makes tests/testdata/t5_hugging_face.npz: states of transformers' own T5 encoders.

Their weights are small and random; the tests draw them again by their names, as
tests/random_weights.py does.

    pip install torch==2.13.0 transformers==5.23.0
    python tests/make_t5_reference.py

It was made with these versions.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from random_weights import random_tensor

SIZES = {"vocab_size": 60, "d_model": 24, "d_kv": 16, "d_ff": 56, "num_layers": 3, "num_heads": 3}
KINDS = {
    "t5 v1.0": ("t5", {"feed_forward_proj": "relu"}),
    "t5 v1.1": ("t5", {"feed_forward_proj": "gated-gelu"}),
    "ul2": ("t5", {"feed_forward_proj": "gated-silu"}),
    "other buckets": ("t5", {"feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-3,
                             "relative_attention_num_buckets": 12,
                             "relative_attention_max_distance": 20}),
    "mt5": ("mt5", {"feed_forward_proj": "gated-gelu"}),
    "umt5": ("umt5", {"feed_forward_proj": "gated-gelu"}),
}  # fmt: skip
CLASSES = {
    "t5": (transformers.T5Config, transformers.T5EncoderModel),
    "mt5": (transformers.MT5Config, transformers.MT5EncoderModel),
    "umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel),
}


def main() -> None:
    tokens = np.random.default_rng(0).integers(1, 60, (3, 40)).astype(np.int32)
    mask = np.arange(40)[None] < np.array([[3], [17], [40]])
    arrays = {"tokens": tokens, "mask": mask}
    for kind, (model_type, changes) in KINDS.items():
        config_class, model_class = CLASSES[model_type]
        config = config_class(**SIZES, **changes, dropout_rate=0.0)
        model = model_class(config).eval()
        names = {}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                names[name] = list(parameter.shape)
                parameter.copy_(
                    torch.from_numpy(random_tensor(name, tuple(parameter.shape)).copy())
                )
            states = model(torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(mask))
        arrays[f"{kind} states"] = states.last_hidden_state.numpy()
        arrays[f"{kind} names"] = np.array(json.dumps(names))
        said = config.to_dict()
        kept = {name: said[name] for name in (
            "model_type", "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads",
            "feed_forward_proj", "relative_attention_num_buckets",
            "relative_attention_max_distance", "layer_norm_epsilon")}  # fmt: skip
        arrays[f"{kind} config"] = np.array(json.dumps(kept))
        print(kind, np.abs(arrays[f"{kind} states"]).max(), len(names))
    path = Path(__file__).parent / "testdata" / "t5_hugging_face.npz"
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main()
