"""Trains one student on shards: losses, augmentations, optimisers, the training step, the job."""
