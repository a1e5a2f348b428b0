"""The dataset on disk: its layout, plan, shards, records and locks, and the type that opens it."""
