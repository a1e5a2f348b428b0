"""From parameters to shards: their specs, jobs and states, and the dataset-level files."""
