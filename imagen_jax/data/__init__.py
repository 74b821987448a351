"""From captioned images to training batches.

Corpora, as `imagen embed` reads them:

    corpora/     files of others: folders, tables, tars, TFRecords, TFDS
    scenes/      built-in scenes
    sources.py   Source: what an embedding job reads
    images.py    the one way to open an image that someone else has made; image_bytes.py: what
                 its bytes say before a decoder sees them
    fitting.py   images -> encoded squares of one size, or the reason why not
    preview.py   a look at a corpus before it is embedded; advice.py: why examples are left out
    choices.py   choices of an embedding job, for the command line

Embeddings, as training reads them:

    records.py   an embedding directory and its records
    manifest.py  its manifest, read and checked; manifest_form.py: of which form that must be
    order.py     the global order: (sizes, seed, step) -> records, as arithmetic
    reading.py   the one reader of shards, in such an order; fetching.py: of shards in a bucket
    tasks.py     embedding directories and mixtures, opened for training and for seqio
    features.py  a record -> {"image", "text_emb", "text_mask", "low_res"?}, in a stage's View
    damage.py    damaged records: found, counted and read past
    iterator.py  train_batches: all of this, as an iterator whose position is a number
    report.py    a report on an embedding directory; pages.py: pieces of such pages
"""
