"""The command ``probe``: short inversions of a teacher, and the parameters that they suggest."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.dataset.plan import derive_seed, plan_of
from pipeline.device.memory import peak_memory
from pipeline.evaluation.verdict import Verdict, judge_images
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import Inverted, invert
from pipeline.objective.bn_statistics import batchnorm_layers, untrained_layers
from pipeline.objective.presets import fitting_iterations
from pipeline.reports.pictures import COLUMNS, ROWS, column_names, draw_cells
from pipeline.teachers.batchnorm_check import range_factor
from pipeline.teachers.teacher import Teacher

LENGTHS = (25, 50, 100, 200, 400)  # Iterations of the trials, as far as the time allows.
BATCHES = (256, 128, 64, 32, 16, 8, 4, 2)  # Batch sizes that may be suggested.
FEW, MANY = 4, 16  # Images of the two steps whose memory is measured.
CONFIRMED = 0.95  # Share of confirmed labels from which a trial counts as long enough.
MEMORY_SHARE = 0.6  # Share of the free memory that the batch of one worker may take.


@dataclass(frozen=True, slots=True)
class Trial:
    """One inversion of a batch.

    Attributes:
        iterations: Number of iterations.
        agreement: Share of the labels that the teacher confirms, in [0, 1].
        confidence: Mean probability that the teacher gives to the labels, in [0, 1].
        seconds: Wall time.
        feature: R_feature of the images.
    """

    iterations: int
    agreement: float
    confidence: float
    seconds: float
    feature: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeResult:
    """The results of the trials, and the suggested parameters.

    Attributes:
        parameters: Number of the teacher's parameters.
        precision: Number format of the trials.
        layers: Number of the teacher's BatchNorm layers.
        untrained: Number of BatchNorm layers that were never trained.
        factor: Variance at the first BatchNorm layer, relative to its running variance; None
            without such a layer.
        speed: Image-iterations per second.
        memory: Bytes for each image of a batch.
        trials: The trials, shortest first.
        batch_size: Suggested ``synthesis.batch_size``.
        iterations: Suggested ``synthesis.iterations``.
        checkpointing: Whether ``synthesis.checkpointing`` is suggested.
        verdict: How usable the images of the last trial look.
    """

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
    verdict: Verdict


def try_teacher(
    config: Config, teacher: Teacher, workers: int, seconds: float, picture: Path
) -> ProbeResult:
    """Invert small batches on the teacher's device, and draw the last one.

    Nothing is compiled, because compiling would take longer than the trials.

    Args:
        config: The configuration.
        teacher: The checked teacher.
        workers: Number of workers that will share the memory of a CPU.
        seconds: Approximate duration of all trials.
        picture: PNG file to write.
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
    return ProbeResult(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        precision=engine.precision,
        layers=len(batchnorm_layers(network)),
        untrained=len(untrained_layers(network)),
        factor=range_factor(teacher),
        speed=trials[-1].iterations * size / trials[-1].seconds,
        memory=memory,
        trials=trials,
        batch_size=batch,
        iterations=_suggested(trials, fitting_iterations(*teacher.shape[1:])),
        checkpointing=batch < 32 <= len(labels),
        verdict=judge_images(teacher, result.pixels, labels[:size]),
    )


def _measure(engine: Engine, labels: Tensor) -> tuple[float, float]:
    """Measure the seconds and bytes that one image takes in one step."""
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
    # Two steps and a judgement, which is a forward pass, count as three steps.
    seconds = (time.perf_counter() - started) / 3 / len(many)
    return seconds, max(1.0, peaks[1] - peaks[0]) / max(1, len(many) - len(few))


def _fitting(device: torch.device, memory: float, workers: int) -> int:
    """Compute the largest batch that the memory of one worker holds."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // workers
    return int(MEMORY_SHARE * free / memory)


def _trial_size(step: float, seconds: float) -> int:
    """Compute how many images can have 100 iterations in a third of the time; 4 to 64."""
    return max(4, min(64, int(seconds / 3 / 100 / step)))


def _trials(
    engine: Engine, labels: Tensor, step: float, deadline: float
) -> tuple[list[Trial], Inverted]:
    """Make longer and longer trials until the deadline; at least one."""
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
        sure = result.confidence(labels).mean().item()
        feature = result.terms["feature"].mean().item()
        trials.append(Trial(iterations, confirmed, sure, seconds, feature))
        results.append(result)
        if engine.teacher.labelled and confirmed == 1 and trials[0].agreement >= CONFIRMED:
            break
    return trials, results[-1]


def _suggested(trials: list[Trial], least: int) -> int:
    """Suggest twice the iterations after which the teacher confirms the labels, at least ``least``.

    Images become more useful to a student long after the teacher confirms their labels. Without
    labels nothing is to confirm, and it is ``least``.
    """
    enough = [trial.iterations for trial in trials if trial.agreement >= CONFIRMED]
    return max(least, 2 * (enough[0] if enough else trials[-1].iterations))


def _draw(result: Inverted, labels: Tensor, config: Config, path: Path) -> None:
    cells: dict[int, list[tuple[np.ndarray, float | None]]] = {}
    sure_of: list[float | None] = list(result.confidence(labels).tolist())
    if not config.teacher.labelled:
        labels, sure_of = torch.arange(len(labels)) % COLUMNS, [None] * len(labels)
    for pixels, label, sure in zip(result.pixels.numpy(), labels.tolist(), sure_of, strict=True):
        if label in cells or len(cells) < COLUMNS:
            column = cells.setdefault(label, [])
            if len(column) < ROWS:
                column.append((pixels, sure))
    draw_cells(dict(sorted(cells.items())), column_names(config.teacher), path)
