"""State, step, loop, optimiser, checkpoints."""
