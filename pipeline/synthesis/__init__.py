"""From parameters to shards: their specs, jobs and states, and the index files of the dataset."""
