"""Measurements of sampled images: against their prompts, and against real images.

Images and prompts:

    prompts.py            sets of prompts; scene_suite.py: one whose images can be checked exactly
    coco.py               captions with their images
    images.py             images that are measured: files, arrays, or built-in scenes
    job.py                sampling of many prompts, resumable and divided over processes

Scores:

    features/             frozen networks that see images
    feature_sets.py       features of a set of images
    reality.py            the reference set
    metrics/              distances of sets of features
    template_matching.py  what is in an image of a built-in scene; alignment.py: whether it is right
    open_matching.py      the same over all emoji; open_alignment.py: against captions that say part
    attributes.py         what both alignments share
    scenes.py             `imagen evaluate scenes`
    measure.py            everything that is measured on the images of a job

Protocols and reports:

    protocols.py          what is sampled, and compared with what
    sweep.py              sweeps over sampling settings; sweep_chart.py: as curves
    report.py             a job as an HTML file; page.py: its parts; summary.py: its scores as text
    vote_page.py          a page to vote on blindly; votes.py: the tally
"""
