"""Captioned images of every common kind, opened by `open_corpus`.

opening       recognises what lies at a place
storage       names of files: globs, braces, addresses; what is odd about one that is missing;
              bucket_files: those at gs://
unfolding     compressed files, up to a limit
captions      what counts as a caption, the same everywhere
rows          corpora of numbered rows, and images by path, in a cell or in base64
tables        CSV, TSV, JSON (also COCO's), parquet and Arrow by row:
              text_tables, json_tables and arrow_tables read the files
folders       images with captions in files beside them
files         corpora of files that are not divided: tars (WebDataset) and tfrecords
tfds          prepared datasets of TensorFlow Datasets
"""

from imagen_jax.data.corpora.opening import Corpus, looks_like_corpus, open_corpus
from imagen_jax.data.corpora.rows import CorpusExample, StoredImage

__all__ = ["Corpus", "CorpusExample", "StoredImage", "looks_like_corpus", "open_corpus"]
