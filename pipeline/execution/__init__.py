"""Executors and runners: jobs in this process, a process per device, Dask or torchrun."""
