"""Training runs: the loop, counted randomness, checkpoints, evaluation."""
