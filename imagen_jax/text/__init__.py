"""Frozen text encoders: captions -> token states."""
