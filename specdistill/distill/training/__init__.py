"""The training loop: loss, held-out scores, checkpoints, callbacks, guard rails."""
