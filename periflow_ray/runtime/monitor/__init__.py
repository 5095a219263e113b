"""The job's one actor: attempts, checkpoints, threats and what follows them."""
