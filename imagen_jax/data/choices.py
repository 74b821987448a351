"""Choices of an embedding job; in a module that loads nothing, for the command line.

The first of each is the default.
"""

FITS = ("exact", "crop")
"""Treatments of images of another size: left out, or reduced and cropped to the middle."""
LONG_CAPTIONS = ("drop", "truncate")
"""Treatments of captions of more tokens than the encoder takes: left out, or cut."""
CAPTIONS = ("separate", "drawn")
"""Treatments of several captions of one image: an example each; or one example, of which every
epoch draws a caption."""
STATES = ("bfloat16", "int8")
"""Storage formats of token states."""
DAMAGED_FILES = ("stop", "drop")
"""Treatments of a damaged file: an error, or its unreadable part is left out."""
CORPUS_KINDS = (
    "folder", "csv", "tsv", "jsonl", "json", "coco", "parquet", "arrow", "webdataset", "tfrecords",
    "tfds",
)  # fmt: skip
"""Kinds of corpora that are read; `corpora.open_corpus` recognises them."""
