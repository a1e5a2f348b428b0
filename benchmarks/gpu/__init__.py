"""Benchmarks for one GPU, in parts that fit a time limit."""
