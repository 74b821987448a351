"""A small embedding directory, for the tests of the data pipeline."""

import dataclasses
import hashlib
import io
import json

import ml_dtypes
import numpy as np
from PIL import Image

from imagen_jax.data import records
from imagen_jax.data.features import View
from imagen_jax.data.iterator import train_batches
from imagen_jax.data.manifest import FORMAT, MANIFEST, manifest_fingerprint
from imagen_jax.data.records import Record
from imagen_jax.files import write_json

SIZE, WIDTH, LENGTH = 16, 6, 5
FILES, PER_FILE = 4, 9
EXAMPLES = FILES * PER_FILE


def encode(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def make_example(index, size=SIZE):
    """(pixels, token states); states[0, 0] is the index, by which tests recognise an example."""
    rng = np.random.default_rng(index)
    pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    states = rng.standard_normal((1 + index % LENGTH, WIDTH)).astype(ml_dtypes.bfloat16)
    states[0, 0] = index
    return pixels, states


def write_shards(
    directory, split="train", files=FILES, salt="", change=None, image_size=SIZE, stored="bfloat16"
):
    """Writes an embedding directory; `change` replaces fields of record 3, `salt` the captions."""
    names, index = [], 0
    for shard in range(files):
        names.append(records.shard_name(split, shard, files))
        with records.record_writer(directory / names[-1]) as writer:
            for _ in range(PER_FILE):
                pixels, states = make_example(index)
                record = Record(f"{split}/{index}", (f"a dog{salt}",), encode(pixels), (states,))
                if change and index == 3:
                    record = dataclasses.replace(record, **change)
                writer.write(records.serialize_record(record, stored))
                index += 1
    contents = [(directory / name).read_bytes() for name in names]
    entry = {
        "shards": names,
        "examples": index,
        "captions": files,
        "tokens": sum(1 + i % LENGTH for i in range(index)),
        "dropped": {},
        "changed": {},
        "sides": {},
        "bytes": sum(map(len, contents)),
        "shard_examples": [PER_FILE] * files,
        "shard_bytes": [len(content) for content in contents],
        "shard_sha256": [hashlib.sha256(content).hexdigest() for content in contents],
    }
    path = directory / MANIFEST
    old = json.loads(path.read_text()) if path.exists() else {"source": {}, "splits": {}}
    manifest = {
        "format": FORMAT,
        "encoder": {"name": "minilm", "fingerprint": "e", "width": WIDTH, "max_length": LENGTH},
        "source": {**old["source"], split: {"name": "examples"}},
        "states": stored,
        "image_size": image_size,
        "splits": {**old["splits"], split: entry},
    }
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    write_json(path, manifest)
    return directory


ARGUMENTS = {
    "image_size": SIZE,
    "low_res_size": 4,
    "text_length": LENGTH,
    "batch_size": 4,
    "seed": 0,
    "shuffle_records": 8,
}


def batches(directory, **arguments):
    arguments = {**ARGUMENTS, **arguments}
    view = View(**{
        name: arguments.pop(name)
        for name in ("image_size", "low_res_size", "text_length", "crop") if name in arguments
    })  # fmt: skip
    return train_batches(directory, view, **arguments)


def order(iterator, count):
    """Indices of the next `count` batches' examples."""
    return [int(i) for _ in range(count) for i in next(iterator)["text_emb"][:, 0, 0]]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True)
