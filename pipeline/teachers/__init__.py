"""Teachers and students as networks: where they come from, their weights, checks and digests."""
