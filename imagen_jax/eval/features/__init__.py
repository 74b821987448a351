"""Frozen networks that see images, for distances and scores.

network.py       a network with its preprocessing, by name
mobilenet.py, inception.py, clip.py  the networks; layers.py: what the first two consist of
resize.py        resizing as the protocols demand it
tensors.py       weights of a file: torch_file.py (torch.save), graph_file.py (TensorFlow's graph
                 of Inception), or safetensors
clip_weights.py  CLIP from a directory of Hugging Face or open_clip
"""
