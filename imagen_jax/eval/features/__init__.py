"""Frozen networks that see pictures, for distances and scores; see network.py."""
