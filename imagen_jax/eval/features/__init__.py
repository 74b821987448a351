"""Frozen networks that see images, for distances and scores; see network.py."""
