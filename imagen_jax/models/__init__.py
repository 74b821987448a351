"""Flax networks of the cascade: the base U-Net and the Efficient U-Net, over shared blocks."""
