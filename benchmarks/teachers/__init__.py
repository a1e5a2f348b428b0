"""Teachers of many sources and architectures, for benchmarks."""
