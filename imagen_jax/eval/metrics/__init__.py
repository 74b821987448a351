"""Distances between sets of features, in float64, and how sure they are.

moments.py    mean and covariance, gathered part by part
frechet.py    the Frechet distance
kernel.py     the kernel distance (MMD)
manifold.py   precision, recall, density, coverage
scores.py     CLIP score and Inception score
intervals.py  confidence intervals
"""
