"""How a CPU or GPU computes: precision, threads, memory, seeds, compiling, CUDA graphs."""
