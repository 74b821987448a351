"""Flax networks of the cascade.

base.py            the contract of a network; a config may name any class that keeps it
networks.py        the classes that a config names by a short key
unet.py            the base U-Net of improved DDPM / ADM with text
efficient_unet.py  the Efficient U-Net of the super-resolution stages
jit.py             a plain transformer over large patches of pixels
deepfloyd_unet.py  the U-Nets of DeepFloyd IF, for its public weights
conditioning.py    (logsnr, text, aug_level) to a vector and text tokens
blocks.py          residual blocks of both U-Nets
stack.py           rows of identical blocks, compiled once, and rematerialisation
attention.py       attention to the image and to text, and pooling of text
tpu_attention.py   attention that never writes its weights, on TPUs
layers.py          dense layers, convolutions, norms and resampling with logical axes
winograd.py        3x3 convolutions on CPUs
"""
