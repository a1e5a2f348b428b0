"""How the pipeline does with many shards, workers and readers."""
