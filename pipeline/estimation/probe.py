"""A short trial of a teacher: a few small inversions, and what they say of a whole run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.dataset.plan import derive_seed, plan_of
from pipeline.device.memory import peak_memory
from pipeline.estimation.cost import show_seconds
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import Inverted, invert
from pipeline.objective.bn_statistics import batchnorm_layers, untrained_layers
from pipeline.reports.pictures import COLUMNS, ROWS, draw_cells
from pipeline.storage import write_bytes
from pipeline.teachers.batchnorm_check import range_factor
from pipeline.teachers.teacher import Teacher

LENGTHS = (25, 50, 100, 200, 400)  # iterations of the trials, as far as the time goes
BATCHES = (256, 128, 64, 32, 16, 8, 4, 2)
FEW, MANY = 4, 16  # images of the steps that are measured
LEAST = 200  # iterations that are suggested
CONFIRMED = 0.95  # of the labels: the teacher answers well enough from there on
MEMORY_SHARE = 0.6  # of what is free, for the batch of one worker


@dataclass(frozen=True, slots=True)
class Trial:
    """``iterations`` on a batch: the share of labels confirmed, and how surely."""

    iterations: int
    agreement: float
    confidence: float
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What the trials found. ``memory`` is bytes an image, ``speed`` image-iterations a second."""

    parameters: int
    precision: str
    layers: int
    untrained: int
    factor: float | None
    speed: float
    memory: float
    trials: list[Trial]
    batch_size: int
    iterations: int
    checkpointing: bool

    @property
    def agreement(self) -> float:
        """Of the longest trial; a run of more iterations is expected to reach it."""
        return self.trials[-1].agreement


def try_teacher(
    config: Config, teacher: Teacher, workers: int, seconds: float, picture: Path
) -> Findings:
    """Invert small batches for about ``seconds``, on the teacher's device; draw the last one.

    Nothing is compiled: that would take longer than all the rest.
    """
    deadline = time.monotonic() + seconds
    objective = config.objective
    engine = Engine(teacher, objective, config.synthesis.precision)
    labels = torch.from_numpy(plan_of(config).labels.astype(np.int64))
    with engine:
        step, memory = _measure(engine, labels)
        fits = _fitting(teacher.device, memory, workers)
        batch = max((size for size in BATCHES if size <= min(fits, len(labels))), default=2)
        size = min(batch, len(labels), _trial_size(step, seconds))
        trials, result = _trials(engine, labels[:size], step * size, deadline)
    _draw(result, labels[:size], config, picture)
    network = teacher.network
    return Findings(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        precision=engine.precision,
        layers=len(batchnorm_layers(network)),
        untrained=len(untrained_layers(network)),
        factor=range_factor(teacher),
        speed=trials[-1].iterations * size / trials[-1].seconds,
        memory=memory,
        trials=trials,
        batch_size=batch,
        iterations=_suggested(trials),
        checkpointing=batch < 32 <= len(labels),
    )


def findings_text(findings: Findings, config: Config, workers: int) -> list[str]:
    """The findings for a person, a line each."""
    teacher, shape = config.teacher, config.teacher.input
    numbers = ["mean " + _row(shape.mean), "std " + _row(shape.std)]
    if findings.factor is not None:
        numbers.append(f"variance at the first BatchNorm {findings.factor:.2g} of the trained")
    per_image = findings.iterations / findings.speed
    images = len(plan_of(config).labels)
    kept = "" if not findings.untrained else f", {findings.untrained} of them never trained"
    lines = [
        f"teacher    {teacher.source}: {findings.parameters / 1e6:.2f} M parameters, "
        f"{findings.layers} BatchNorm layers{kept}, {teacher.classes} classes",
        f"input      {shape.channels} x {shape.height} x {shape.width}, {', '.join(numbers)}",
        f"objective  {config.preset}",
        f"speed      {findings.speed:.0f} image-iterations a second, in {findings.precision}, "
        "not compiled",
        f"memory     {findings.memory / 1e6:.1f} MB an image of a batch",
    ]
    lines += [
        f"trial      {trial.iterations} iterations: {trial.agreement:.0%} of labels confirmed, "
        f"mean confidence {trial.confidence:.0%}, {trial.seconds:.1f} s"
        for trial in findings.trials
    ]
    lines.append(
        f"suggested  synthesis.batch_size {findings.batch_size}, synthesis.iterations "
        f"{findings.iterations}: about {findings.agreement:.0%} of labels confirmed, "
        f"{1 / per_image:.2g} images a second a worker"
    )
    lines.append(
        f"a run      {images} images in about {show_seconds(images * per_image / workers)} "
        f"with {workers} worker{'s' if workers > 1 else ''}"
    )
    if findings.checkpointing:
        lines.append(
            "           set synthesis.checkpointing to true: memory allows small batches only"
        )
    return lines


def write_findings(path: Path, config: Config, findings: Findings) -> None:
    """Put into a parameter file what was found, and what the teacher's source said.

    Comments and layout stay. Of the teacher only what the file leaves out is added.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    values = yaml.load(path)
    known = config.teacher.model_dump(mode="json")
    teacher = values["teacher"]
    if teacher.get("classes") is None:
        teacher["classes"] = known["classes"]
    if teacher.get("input") is None:
        teacher["input"] = {}
    for key, value in known["input"].items():
        if teacher["input"].get(key) is None and value is not None:
            teacher["input"][key] = value
    synthesis = values["synthesis"]
    synthesis["batch_size"] = findings.batch_size
    synthesis["iterations"] = findings.iterations
    if findings.checkpointing:
        synthesis["checkpointing"] = True
    text = StringIO()
    yaml.dump(values, text)
    write_bytes(path, text.getvalue().encode())


def _measure(engine: Engine, labels: Tensor) -> tuple[float, float]:
    """Seconds and bytes that one image takes in one step."""
    device = engine.teacher.device
    few, many = (labels[: min(count, len(labels))] for count in (FEW, MANY))
    peaks = []
    for part in (few, many):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        invert(engine, part, 0, 1)
        peaks.append(peak_memory(device))
    started = time.perf_counter()
    invert(engine, many, 0, 2)
    seconds = (time.perf_counter() - started) / 3 / len(many)  # judging is a forward pass
    return seconds, max(1.0, peaks[1] - peaks[0]) / max(1, len(many) - len(few))


def _fitting(device: torch.device, memory: float, workers: int) -> int:
    """Images of a batch that there is memory for."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // workers
    return int(MEMORY_SHARE * free / memory)


def _trial_size(step: float, seconds: float) -> int:
    """Images that can be given 100 iterations in a third of the time."""
    return max(4, min(64, int(seconds / 3 / 100 / step)))


def _trials(
    engine: Engine, labels: Tensor, step: float, deadline: float
) -> tuple[list[Trial], Inverted]:
    """Longer and longer ones, as far as the time goes; at least one."""
    trials: list[Trial] = []
    results = []
    for number, iterations in enumerate(LENGTHS):
        if trials and time.monotonic() + iterations * step > deadline:
            break
        started = time.perf_counter()
        result = invert(engine, labels, derive_seed(0, number), iterations)
        seconds = time.perf_counter() - started
        step = seconds / iterations
        confirmed = (result.logits.argmax(1) == labels).double().mean().item()
        trials.append(
            Trial(iterations, confirmed, result.confidence(labels).mean().item(), seconds)
        )
        results.append(result)
        if confirmed == 1 and trials[0].agreement >= CONFIRMED:
            break
    return trials, results[-1]


def _suggested(trials: list[Trial]) -> int:
    """Twice what the labels need, and not less than the default: what a student learns from the
    images still grows long after the teacher confirms their labels."""
    enough = [trial.iterations for trial in trials if trial.agreement >= CONFIRMED]
    return max(LEAST, 2 * (enough[0] if enough else trials[-1].iterations))


def _draw(result: Inverted, labels: Tensor, config: Config, path: Path) -> None:
    cells: dict[int, list[tuple[np.ndarray, float]]] = {}
    for pixels, label, sure in zip(
        result.pixels.numpy(), labels.tolist(), result.confidence(labels).tolist(), strict=True
    ):
        if label in cells or len(cells) < COLUMNS:
            column = cells.setdefault(label, [])
            if len(column) < ROWS:
                column.append((pixels, sure))
    draw_cells(dict(sorted(cells.items())), config.teacher.class_names, path)


def _row(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
