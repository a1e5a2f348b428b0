"""``synthesize`` and ``verify``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from tqdm import tqdm

from pipeline.api.in_process import (
    Input,
    RunFiles,
    model_params,
    read_run,
    save_run,
    unchanged_process,
    without_weights_file,
)
from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.errors import UserError
from pipeline.evaluation.verdict import dataset_verdict
from pipeline.execution.runner import open_runner
from pipeline.reports.files import report_synthesis
from pipeline.stages.synthesize import synthesize as make_missing_shards
from pipeline.stages.verify import verify as find_problems
from pipeline.synthesis.check import load_checked_teacher

if TYPE_CHECKING:
    from pipeline.api.dataset import Dataset


def synthesize(
    params: Config | None = None,
    *,
    model: nn.Module | None = None,
    classes: int | None = None,
    input: Input | None = None,
    images: int | None = None,
    out: str | Path | None = None,
    class_names: list[str] | None = None,
    labels: str = "class",
    student: str | Mapping[str, Any] | None = None,
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    keep: bool = False,
    **settings: Any,
) -> Dataset:
    """Make the shards that are missing or stale, and return the dataset.

    Give either ``params``, or ``model`` with ``classes``, ``input``, ``images`` and ``out``. A run
    with ``model`` uses one device and this process. RunFiles ``out`` it writes
    ``out-teacher.safetensors`` (the state dict), ``out-params.yaml``, and ``out-reports``.

    Args:
        params: the parameters of :func:`load_params`.
        model: a trained classifier that returns logits ``[B, classes]``. It is copied, not changed.
        classes: the number of its classes; None counts the model's outputs.
        input: a dict like ``teacher.input``, or ``(channels, height, width, mean, std)``, where the
            model takes ``(pixel / 255 - mean) / std``.
        images: how many images to make.
        out: the directory of the dataset: a new one, or one of an earlier run.
        class_names: one name a class.
        labels: ``class``, or ``none`` as ``teacher.labels``: ``model`` is then any network with
            BatchNorm.
        student: the source of the adaptive rounds' student, as in ``nets.py:factory``.
        device: ``auto``, ``cpu`` or ``cuda``.
        overrides: other sections, as in ``{"adaptive.rounds": 1}``.
        keep: refuse to replace a dataset that other parameters made.
        settings: keys of the section ``synthesis``, as in ``iterations=200``.

    Raises:
        UserError: before any work, if a value is wrong or does not fit the model.

    Example:
        >>> synthesize(model=net, classes=10, input=(3, 32, 32, 0.5, 0.25), images=1000,
        ...            out="data/mine", iterations=200)
    """
    from pipeline.api.dataset import Dataset

    if (params is None) == (model is None):
        raise UserError("synthesize needs one of params and model")
    with unchanged_process():
        if model is None:
            given = {"classes": classes, "input": input, "images": images, "out": out, **settings}
            _refuse_extra(given)
            assert params is not None
            config = params
            teacher = load_checked_teacher(config, "dataset", "reports")
        else:
            if out is None:
                raise UserError("out is missing: name the directory of the dataset")
            run_files = RunFiles.of(out)
            section = {"classes": classes, "input": input, "class_names": class_names}
            section["labels"] = labels
            synthesis = {"images": images, **settings}
            config = model_params(model, section, synthesis, device, student, run_files, overrides)
            teacher = load_checked_teacher(without_weights_file(config), "dataset", "reports")
            teacher = replace(teacher, weights=(save_run(config, run_files, keep),))
        with open_runner(config, config.synthesis.threads) as run:
            made = make_missing_shards(config, teacher, run, keep=keep)
        report_synthesis(config, made, dataset_verdict(config, teacher).report())
    return Dataset(config.paths.dataset)


def verify(
    params: Config | None = None,
    *,
    model: nn.Module | None = None,
    out: str | Path | None = None,
    agreement: float = 0.9,
) -> list[str]:
    """Read the dataset again and compare it with its records and with the teacher.

    Give either ``params``, or ``model`` and ``out`` as given to :func:`synthesize`.

    Args:
        params: the parameters of :func:`load_params`.
        model: the model in memory that the dataset was made with.
        out: the dataset's directory.
        agreement: the least share of labels that the teacher must confirm, from 0 to 1.

    Returns:
        One line for each problem; empty where the dataset is sound.

    Raises:
        UserError: a value is wrong.
    """
    if not 0 <= agreement <= 1:
        raise UserError(f"agreement is {agreement}: give a share from 0 to 1")
    if (params is None) == (model is None) or (model is None) != (out is None):
        raise UserError("verify needs either params, or both model and out")
    with unchanged_process():
        config = params
        if model is not None and out is not None:
            config = read_run(model, out)
        assert config is not None
        teacher = load_checked_teacher(config)
        with tqdm(total=len(plan_of(config).labels), desc="verify", unit="img") as bar:
            return find_problems(config, teacher, agreement, bar.update)


def _refuse_extra(given: Mapping[str, Any]) -> None:
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise UserError(
            f"synthesize(params) takes no {extra[0]}: give it to load_params, as in "
            'load_params(path, {"synthesis.images": 100})'
        )
