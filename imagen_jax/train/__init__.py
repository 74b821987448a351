"""Training of one cascade stage: state, optimiser, step, metrics, checkpoints, loop."""
