"""The findings of a probe: as text, and as values in the parameter file."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.estimation.probe import ProbeResult, Trial
from pipeline.quantities import show_seconds
from pipeline.storage import write_bytes


def findings_text(findings: ProbeResult, config: Config, workers: int) -> list[str]:
    """Describe the results in lines of text."""
    teacher, shape = config.teacher, config.teacher.input
    numbers = ["mean " + _row(shape.mean), "std " + _row(shape.std)]
    if findings.factor is not None:
        numbers.append(
            f"variance at the first BatchNorm {findings.factor:.2g} of the running variance"
        )
    per_image = findings.iterations / findings.speed
    plan = plan_of(config)
    images, busy = len(plan.labels), min(workers, len(plan))  # one worker makes a shard
    kept = "" if not findings.untrained else f", {findings.untrained} of them never trained"
    lines = [
        f"teacher    {teacher.source}: {findings.parameters / 1e6:.2f} M parameters, "
        f"{findings.layers} BatchNorm layers{kept}, "
        f"{f'{teacher.classes} classes' if teacher.labelled else 'no labels'}",
        f"input      {shape.channels} x {shape.height} x {shape.width}, {', '.join(numbers)}",
        f"objective  {config.preset}",
        f"speed      {findings.speed:.0f} image-iterations per second, in {findings.precision}, "
        "not compiled",
        f"memory     {findings.memory / 1e6:.1f} MB for each image of a batch",
    ]
    lines += [
        f"trial      {trial.iterations} iterations: {_outcome(trial, teacher.labelled)}, "
        f"{trial.seconds:.1f} s"
        for trial in findings.trials
    ]
    lines.append(f"verdict    {findings.verdict}")
    lines.append(
        f"suggested  synthesis.batch_size {findings.batch_size}, synthesis.iterations "
        f"{findings.iterations}: {1 / per_image:.2g} images per second for each worker"
    )
    lines.append(
        f"run        {images} images in about {show_seconds(images * per_image / busy)} "
        f"with {busy} worker{'s' if busy > 1 else ''}"
    )
    if busy < min(workers, images):
        lines.append(
            f"           {workers - busy} of {workers} workers would be idle: lower "
            "synthesis.shard_size for more shards"
        )
    if findings.checkpointing:
        lines.append(
            "           set synthesis.checkpointing to true: memory allows small batches only"
        )
    return lines


def _outcome(trial: Trial, labelled: bool) -> str:
    if not labelled:
        return f"R_feature {trial.feature:.3g}"
    return (
        f"the teacher confirms {trial.agreement:.0%} of labels, mean confidence "
        f"{trial.confidence:.0%}"
    )


def write_findings(path: Path, config: Config, findings: ProbeResult) -> None:
    """Write the suggested parameters, and facts of the teacher's source, into a parameter file.

    Comments and layout stay. Fields of ``teacher`` that the file sets stay too.

    Args:
        path: The parameter file.
        config: The configuration that was read from it.
        findings: Results of the trials.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    values = yaml.load(path)
    known = config.teacher.model_dump(mode="json")
    teacher = values["teacher"]
    if teacher.get("classes") is None and config.teacher.labelled:
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


def _row(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
