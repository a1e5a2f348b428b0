"""One student trained on shards: the training step, its losses and optimisers, and the job."""
