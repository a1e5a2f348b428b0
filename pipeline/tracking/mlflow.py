"""MLflow: log to the server of ``MLFLOW_TRACKING_URI``, or to a database file in the reports."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric, Run
from mlflow.tracking import MlflowClient
from mlflow.utils.time import get_current_time_millis

EXPERIMENT = "dreamshard"
TAG = "dreamshard.training"


class MLflowTracker:
    """Writes the metrics of one run, and leaves out the steps that the run already has."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self._client, self._run = client, run.info.run_id
        self._last = {name: self._last_step(name) for name in run.data.metrics}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = get_current_time_millis()
        new = [
            Metric(name, value, now, step)
            for name, value in values.items()
            if step > self._last.get(name, -1)
        ]
        if new:
            self._client.log_batch(self._run, metrics=new)

    def close(self) -> None:
        self._client.set_terminated(self._run)

    def _last_step(self, name: str) -> int:
        history = self._client.get_metric_history(self._run, name)
        return max((metric.step for metric in history), default=-1)


def begin(folder: str, name: str, run: str) -> MLflowTracker:
    """Begin a run, or continue the run of the same training if it was stopped.

    Args:
        folder: The folder ``live`` of ``paths.reports``.
        name: Name of the student.
        run: Digest of all that determines the training.
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    uri, place = os.environ.get("MLFLOW_TRACKING_URI"), None
    if uri is None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        uri, place = f"sqlite:///{folder}/mlflow.db", f"file://{folder}/mlflow"
    client = MlflowClient(uri)
    known = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    experiment = client.get_experiment_by_name(known)
    number = experiment.experiment_id if experiment else client.create_experiment(known, place)
    earlier = client.search_runs([number], f"tags.`{TAG}` = '{run}'", max_results=1)
    if earlier:
        client.update_run(earlier[0].info.run_id, "RUNNING")
        return MLflowTracker(client, earlier[0])
    return MLflowTracker(client, client.create_run(number, tags={TAG: run}, run_name=name))
