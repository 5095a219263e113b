"""Where bytes live: one storage root with jobs, checkpoints, metrics, logs, events, experiments and datasets."""
