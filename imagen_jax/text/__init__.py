"""Frozen text encoders: captions -> token states.

encoder.py          TextEncoder, and the encoders by name
tokenizer.py        captions -> token ids; too long a caption is an error
minilm.py           MiniLM, a small BERT
t5.py               the encoder of T5 and its relatives
t5_checkpoint.py    their weights, from T5X
t5_hugging_face.py  the same from Hugging Face, as its config.json says
leaves.py           parameters of a checkpoint that are not read yet
t5_if.py            captions as DeepFloyd IF reads them
"""
