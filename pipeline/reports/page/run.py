"""The facts about one run: its parameters, its dataset and its reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.layout import PROVENANCE, SIGNATURE
from pipeline.distillation.job import sealed_facts
from pipeline.errors import UserError
from pipeline.params import load_command_params
from pipeline.redaction import redact, redact_text
from pipeline.reports.page.rows import Rows, read_columns
from pipeline.reports.page.saved import Saved, parse_csv, parse_logs, read_saved
from pipeline.reports.tally import RecordTally
from pipeline.storage import Location, digest_bytes, exists, location, read_bytes, read_many

PARAMS = "params.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The facts from which a page is made.

    Attributes:
        name: the name that the user gave, such as a parameter file.
        parameters: every parameter by its dotted name, without secrets.
        saved: the reports.
        dataset: the dataset; None where only a student is compared.
        tally: the sums over the records.
        rows: the rows.
        provenance: the content of ``provenance.json``; empty for an unfinished dataset.
        digest: the SHA-256 of ``provenance.json``, or of a student's weights; None if unknown.
        signed: whether the dataset has a signature.
        verify: the command that verifies the dataset.
        place: the dataset's folder or URL, without private parts.
        students: the folder or URL of the students, without private parts; empty if unknown.
    """

    name: str
    parameters: Mapping[str, Any]
    saved: Saved = field(default_factory=Saved)
    dataset: Dataset | None = None
    tally: RecordTally = field(default_factory=RecordTally)
    rows: Rows | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None
    signed: bool = False
    verify: str = "dreamshard verify"
    place: str = ""
    students: str = ""

    @property
    def labelled(self) -> bool:
        """Whether the images have classes; a student always has them."""
        return self.dataset is None or self.dataset.classes > 0

    def class_name(self, label: int) -> str:
        """The name of a class, or its number."""
        names = None if self.dataset is None else self.dataset.class_names
        return names[label] if names and 0 <= label < len(names) else str(label)


def run_of_config(config: Config, name: str, verify: str = "dreamshard verify") -> Run:
    """The run of a parameter file.

    Args:
        config: the parameters.
        name: the name of the run on the page.
        verify: the command that verifies the dataset.

    Raises:
        UserError: no shard is complete, or a report or a shard is damaged.
    """
    dataset = Dataset.planned(config)
    saved = read_saved(Path(config.paths.reports), config.evaluation.data is not None)
    parameters = _flat(redact(config.model_dump(mode="json")))
    hidden = ("paths.", "execution.")
    kept = {key: value for key, value in parameters.items() if not key.startswith(hidden)}
    students = redact_text(_public(config.paths.students))
    run = Run(name=name, parameters=kept, saved=saved, verify=verify, students=students)
    return _with_dataset(run, dataset)


def is_params(text: str) -> bool:
    """Whether a name is that of a parameter file."""
    return text.endswith((".yaml", ".yml", ".json"))


def open_run(text: str, config: Config | None = None) -> Run:
    """Open the run of a parameter file, a dataset, or a student.

    Args:
        text: a ``.yaml`` file, a student's ``.safetensors`` file, or the folder or URL of a
            dataset.
        config: the parameters of the file, if they are loaded already.

    Raises:
        UserError: there is nothing of these kinds, or it is damaged.
    """
    if is_params(text):
        config = config or located(load_command_params(text, {}), Path(text))
        return run_of_config(config, text, verify_command(text))
    if text.endswith(".safetensors"):
        return _run_of_student(text, location(text))
    root = location(text)
    if not exists(root / PROVENANCE):
        raise UserError(
            f"{text} is neither a parameter file (.yaml), nor a student (.safetensors), nor the "
            f"folder of a finished dataset, which holds {PROVENANCE}: check the path"
        )
    dataset = Dataset(root)
    parameters = _stated(_provenance(dataset)[0])
    verify = "dreamshard verify --params FILE  # the parameter file of this dataset"
    return _with_dataset(Run(name=text, parameters=parameters, verify=verify), dataset)


def located(config: Config, params: Path) -> Config:
    """Make the paths of a parameter file right for the current folder.

    Paths are relative to the folder in which a command runs. If the dataset is not found from the
    current folder, but from the folder of the file, all relative paths are taken from there.

    Args:
        config: the parameters of the file.
        params: the file.

    Returns:
        The parameters, with other paths if needed.
    """
    paths = config.paths.model_dump()
    moved = {
        name: str(params.parent / text)
        for name, text in paths.items()
        if isinstance(location(text), Path) and not Path(text).is_absolute()
    }
    here = "dataset" not in moved or Path(paths["dataset"]).exists()
    if here or not Path(moved["dataset"]).exists():
        return config
    return config.model_copy(update={"paths": config.paths.model_copy(update=moved)})


def verify_command(params: str, settings: Mapping[str, Any] | None = None) -> str:
    """The command that verifies the dataset of a parameter file.

    Args:
        params: the file.
        settings: the values of ``--set``, which replaced parameters of the file.
    """
    words = ["dreamshard verify"] + ([f"--params {_public(params)}"] if params != PARAMS else [])
    words += [f"--set {key}={redact(value, key)}" for key, value in (settings or {}).items()]
    return " ".join(words)


def _public(text: str) -> str:
    return str(redact(text))


def _with_dataset(run: Run, dataset: Dataset) -> Run:
    tally = RecordTally()
    for record in dataset.records():
        tally.add(record)
    if not tally.images:
        raise UserError(f"{dataset.root} has no complete shard: run synthesize first")
    provenance, digest = _provenance(dataset)
    return replace(
        run,
        name=_public(run.name),
        dataset=dataset,
        tally=tally,
        rows=read_columns(dataset),
        provenance=provenance,
        digest=digest,
        signed=exists(dataset.root / SIGNATURE),
        place=redact_text(_public(str(dataset.root))),
    )


def _provenance(dataset: Dataset) -> tuple[dict[str, Any], str | None]:
    (text,) = read_many([dataset.root / PROVENANCE])
    if text is None:
        return {}, None
    try:
        found: dict[str, Any] = json.loads(text)["predicate"]
        return {"definition": found["buildDefinition"]}, digest_bytes(text)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{dataset.root / PROVENANCE} is damaged: run finalize, which writes it again"
        ) from error


def _stated(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return _flat(provenance["definition"]["externalParameters"]) if provenance else {}


def _run_of_student(text: str, weights: Location) -> Run:
    record, log = weights.with_suffix(".json"), weights.with_suffix(".csv")
    facts = sealed_facts(record)
    if facts is None or not exists(log):
        raise UserError(
            f"{text} is no intact student of dreamshard: {record.name} and {log.name} must lie "
            "next to it. Run distill first"
        )
    name = f"{weights.parent.name}/{weights.stem}"
    rows = [{"student": weights.stem, **row} for row in parse_csv(read_bytes(log))]
    logs = parse_logs(rows, log)
    spec = {key: value for key, value in facts["spec"].items() if value is not None}
    return Run(
        name=name,
        parameters=_flat(redact(spec)),
        saved=Saved(logs=logs),
        digest=facts.get("sha256"),
    )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names; without values that are null."""
    if not isinstance(value, dict):
        return {} if value is None else {name: value}
    return {
        key: inner
        for part, below in value.items()
        for key, inner in _flat(below, f"{name}.{part}" if name else str(part)).items()
    }
