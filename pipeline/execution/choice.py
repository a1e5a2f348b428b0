"""The one place that chooses an executor. A new one has its branch in :func:`choose_executor`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.execution.executor import Executor, InProcess, PerDevice


@contextlib.contextmanager
def open_executor(
    config: Config, threads: int, outputs: Sequence[str] = ("dataset",)
) -> Iterator[Executor]:
    """Open the executor that ``config.execution`` asks for.

    Its workers end with the ``with`` statement.

    Args:
        config: The configuration.
        threads: CPU threads that each job uses.
        outputs: Fields of ``paths`` whose files the jobs read and write. Workers of a Dask cluster
            must see these directories.

    Raises:
        UserError: The devices or the Dask cluster cannot be used.
    """
    executor = choose_executor(config, threads, outputs)
    try:
        yield executor
    finally:
        executor.close()


def choose_executor(config: Config, threads: int, outputs: Sequence[str]) -> Executor:
    """Create the executor; see :func:`open_executor`.

    Returns:
        An executor on a Dask cluster if ``execution.dask_address`` names one. Otherwise
        :class:`InProcess` for one worker and :class:`PerDevice` for several.
    """
    execution = config.execution
    if execution.dask_address is not None:
        return _dask_cluster(execution.dask_address, config, outputs)
    device = find_device(execution.device)
    devices = worker_environments(device, execution.workers, threads)
    return InProcess(device) if len(devices) == 1 else PerDevice(devices, device)


def find_device(device: str) -> str:
    """Replace ``auto`` by ``cuda`` if this machine has a GPU, and by ``cpu`` otherwise.

    Raises:
        UserError: ``device`` is ``cuda`` and this machine has no CUDA device.
    """
    if device == "auto":
        return "cuda" if _cuda_devices() else "cpu"
    if device == "cuda" and not _cuda_devices():
        raise UserError(
            "execution.device is cuda, but this machine has no CUDA device: use cpu or auto"
        )
    return device


def worker_environments(device: str, workers: int | None, threads: int) -> list[dict[str, str]]:
    """The environment variables of each worker, which assign it to its device.

    Args:
        device: ``cpu`` or ``cuda``.
        workers: The number of workers, at most one for each GPU. None: one for each GPU, or as many
            as the CPU cores allow.
        threads: CPU threads that each job uses.
    """
    if device == "cuda":
        return [{"CUDA_VISIBLE_DEVICES": name} for name in _cuda_devices()][:workers]
    return [{} for _ in range(workers or max(1, _cores() // threads))]


def _dask_cluster(address: str, config: Config, outputs: Sequence[str]) -> Executor:
    try:
        from pipeline.execution.dask_cluster import DaskCluster
    except ImportError as error:
        raise UserError(
            f"execution.dask_address needs the extra `dask` ({error}): "
            "pip install -c constraints.txt -e '.[dask]', or set it to null"
        ) from error
    execution = config.execution
    places = {f"paths.{name}": str(getattr(config.paths, name)) for name in outputs}
    return DaskCluster(address, execution.device, execution.workers, places)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cuda_devices() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]
