"""Benchmarks of what students learn from a dataset."""
