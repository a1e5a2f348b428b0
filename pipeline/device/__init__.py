"""How tensors are computed on a CPU or GPU: precision, threads, memory, seeds, compiling."""
