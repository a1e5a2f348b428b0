"""Turn a trained image classifier into a sharded, class-balanced, provenance-tracked dataset."""
