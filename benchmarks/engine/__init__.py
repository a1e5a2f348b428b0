"""Benchmarks of the speed of the inversion loop."""
