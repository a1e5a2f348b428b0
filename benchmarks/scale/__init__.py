"""Benchmarks with many shards, workers and readers."""
