"""The dataset on disk: its layout, plan, tar shards, records and locks, and how it is read."""
