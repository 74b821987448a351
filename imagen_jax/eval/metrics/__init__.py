"""Distances between sets of features, in float64, and how sure they are."""
