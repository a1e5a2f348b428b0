"""Where jobs run: in this process, in one process a device, on a Dask cluster, under torchrun."""
