"""A run's folder: records, checkpoints, on disk and in object storage."""
