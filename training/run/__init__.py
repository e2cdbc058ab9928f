"""A run's folder: checkpoints, resuming, its lock and its progress."""
