"""What may be chosen about an embedding job; in a module that loads nothing, for the command line.

The first of each is the default.
"""

FITS = ("exact", "crop")
"""What is done with images of another size: left out, or reduced and cropped to the middle."""
LONG_CAPTIONS = ("drop", "truncate")
"""What is done with captions of more tokens than the encoder takes: left out, or cut."""
STATES = ("bfloat16", "int8")
"""How token states are stored."""
DAMAGED_FILES = ("stop", "drop")
"""What is done with a damaged file of a corpus: an error, or what cannot be read is left out."""
CORPUS_KINDS = (
    "folder", "csv", "tsv", "jsonl", "json", "coco", "parquet", "arrow", "webdataset", "tfrecords",
    "tfds",
)  # fmt: skip
"""Kinds of corpora that are read; `corpora.open_corpus` recognises them."""
