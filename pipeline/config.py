"""The parameters of a run: one model for each section of ``params.yaml``, and nothing else.

Every field is checked when the file is read. A mistake becomes one :class:`UserError` that names
the key, what was given, and what is allowed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.completion import complete_teacher, fitting_preset
from pipeline.errors import UserError
from pipeline.objective import PRESETS, FeatureForm, Objective, Schedule, Start
from pipeline.precision import PrecisionChoice

Count = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Few = Annotated[int, Field(ge=1, le=1024)]
Side = Annotated[int, Field(ge=1, le=4096)]
Weight = Annotated[float, Field(ge=0)]
Spread = Annotated[float, Field(ge=0, le=10)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Between = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _no_credentials(text: str) -> str:
    """Whatever is in a parameter ends in files and logs, so no secret may be."""
    _, separator, rest = text.partition("://")
    if separator and any(character in rest for character in "@?#"):
        raise ValueError(
            "a URL (not shown) must hold no credentials and no query: write "
            "protocol://bucket/prefix and give credentials by the environment"
        )
    return text


Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$"), AfterValidator(_no_credentials)]

AUTO = "auto"
MOST_IMAGES, MOST_SHARDS = 100_000_000, 900_000


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # it may be a URL with credentials
    )


class InputConfig(Section):
    """What the teacher sees: ``(pixel / 255 - mean) / std``, one mean and std a channel.

    ``interpolation`` is how real images are brought to this size; nothing is made with it.
    """

    channels: Annotated[int, Field(ge=1, le=256)]
    height: Side
    width: Side
    mean: tuple[float, ...]
    std: tuple[Rate, ...]
    interpolation: Name | None = None

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} must have one value for each of {self.channels} channels")
        if max(map(abs, self.mean)) > 3 or max(self.std) > 10:
            raise ValueError(
                "mean and std are of pixels / 255, and these look like values for pixels of 0 to "
                "255: divide both by 255"
            )
        return self


class TeacherConfig(Section):
    """The model to invert."""

    source: Name
    arguments: dict[str, Any] = {}
    weights: Name | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    classes: Annotated[int, Field(ge=1, le=32767)]
    class_names: tuple[str, ...] | None = None
    license: Name | None = None
    input: InputConfig

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(
                f"class_names has {len(self.class_names)} names for {self.classes} classes"
            )
        return self

    @model_validator(mode="after")
    def _digest_of_a_file(self) -> Self:
        if self.sha256 is not None and self.weights is None:
            raise ValueError("sha256 is that of a weights file, and weights is null")
        return self


class StudentConfig(Section):
    """The architecture to train, by name; its weights start from scratch."""

    source: Name
    arguments: dict[str, Any] = {}


class ObjectiveConfig(Section):
    """A preset, and any of its values to replace; null keeps the preset's.

    ``auto`` becomes the preset that fits the teacher as soon as the parameters are read.
    """

    preset: str = AUTO
    classification: Weight | None = None
    classification_spread: Spread | None = None
    tv: Weight | None = None
    tv_spread: Spread | None = None
    l2: Weight | None = None
    feature: Weight | None = None
    feature_form: FeatureForm | None = None
    start: Start | None = None
    learning_rate: Rate | None = None
    betas: tuple[Decay, Decay] | None = None
    warmup: Count | None = None
    schedule: Schedule | None = None
    jitter: Count | None = None
    flip: bool | None = None
    clamp: bool | None = None
    colour: Weight | None = None
    zoom: Share | None = None
    zoom_schedule: Schedule | None = None
    coarse: Fraction | None = None
    ambiguity: Fraction | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.preset not in (AUTO, *PRESETS):
            raise ValueError(f"preset {self.preset!r} is not one of {', '.join((AUTO, *PRESETS))}")
        return self

    def resolve(self) -> Objective:
        """The preset with the given values in place."""
        given = {f.name: getattr(self, f.name, None) for f in fields(Objective)}
        changes = {name: value for name, value in given.items() if value is not None}
        return replace(PRESETS["normalised" if self.preset == AUTO else self.preset], **changes)


class SynthesisConfig(Section):
    """The dataset to make, before any adaptive round."""

    images: Positive | None = None
    images_per_class: Positive | dict[int, Count] | None = None
    shard_size: Positive = 1000
    batch_size: Annotated[int, Field(ge=2)] = 256
    iterations: Count = 200
    min_confidence: Fraction = 0.0
    confirmed: bool = False
    max_similarity: Between | None = None
    keep: Share = 1.0
    attempts: Few = 3
    seed: Seed = 0
    threads: Few = 1
    precision: PrecisionChoice = "auto"
    compile: bool = True
    checkpointing: bool = False
    soft_labels: bool = False
    objective: ObjectiveConfig = ObjectiveConfig()

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.images is None) == (self.images_per_class is None):
            raise ValueError("set one of images and images_per_class, and leave the other null")
        return self

    @model_validator(mode="after")
    def _keeps_some(self) -> Self:
        if self.batch_size * self.keep < 1:
            raise ValueError(
                f"keep {self.keep} leaves no image of a batch_size of {self.batch_size}"
            )
        return self


class DistillationConfig(Section):
    """How a student learns from shards."""

    steps: Positive = 3000
    batch_size: Annotated[int, Field(ge=2)] = 128
    temperature: Rate = 50.0
    imitation: Weight = 0.0
    optimizer: Literal["sgd", "muon"] = "muon"
    learning_rate: Rate = 0.2
    momentum: Decay = 0.9
    weight_decay: Weight = 5e-4
    warmup: Count = 100
    shift: Count = 4
    flip: bool = True
    mixup: Fraction = 0.5
    cutmix: Fraction = 0.7
    cutout: Count = 0
    adversarial: Weight = 0.0
    ema: Decay = 0.0
    precision: PrecisionChoice = "auto"
    compile: bool = True
    shuffle: Positive = 2000
    threads: Few = 1
    checkpoint_every: Positive = 500

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.adversarial and self.batch_size < 4:
            raise ValueError("adversarial moves half a batch: batch_size must be 4 or more")
        return self


class StudentsConfig(DistillationConfig):
    """The final students: one for each seed, and optionally one that saw only noise."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    noise_baseline: bool = False

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds are those of different students, and one is there twice")
        return self


class RoundTrainingConfig(DistillationConfig):
    """How the student learns that the next round competes with."""

    steps: Positive = 1000


class AdaptiveConfig(Section):
    """Rounds of Adaptive DeepInversion after the first synthesis."""

    rounds: Annotated[int, Field(ge=0, le=32767)] = 0
    images: Positive = 1000
    compete: Weight | None = None
    masked: bool = False
    warm: Fraction = 0.0
    training: RoundTrainingConfig = RoundTrainingConfig()


class EvaluationConfig(Section):
    """What only the last stages read, and nothing is made or trained with: real, labelled images, a
    tar of ``png`` and ``cls``; images of another recipe, a shard of them; and an independent
    network of the same classes."""

    data: Name | None = None
    foreign: Name | None = None
    verifier: TeacherConfig | None = None


class ExecutionConfig(Section):
    """Where the work runs. Nothing here changes what is made."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Few | None = None
    dask_address: Name | None = None
    retries: Annotated[int, Field(ge=0, le=1000)] = 2


class PathsConfig(Section):
    """Where results go: local directories, or for all but the reports any URL of fsspec's."""

    dataset: Name = "data/synthetic"
    students: Name = "data/students"
    reports: Name = "reports"

    @model_validator(mode="after")
    def _places(self) -> Self:
        if "://" in self.reports:
            raise ValueError(f"reports is {self.reports}, and must be a local directory")
        for name in ("dataset", "students"):
            protocol, separator, rest = getattr(self, name).partition("://")
            enough = "/" in rest.strip("/") or (protocol in ("memory", "file") and rest.strip("/"))
            if separator and not (protocol.isalnum() and enough):
                raise ValueError(f"{name} is {getattr(self, name)}: write protocol://bucket/prefix")
        return self

    @model_validator(mode="after")
    def _apart(self) -> Self:
        paths = [Path(p).resolve() for p in (self.dataset, self.students, self.reports)]
        if len(set(paths)) < 3:
            raise ValueError("dataset, students and reports must be three directories")
        noise = paths[0].with_name(f"{paths[0].name}-noise")
        for name, path in (("students", paths[1]), ("reports", paths[2])):
            if path == noise:
                raise ValueError(f"{name} must not be {noise.name}: that is for images of noise")
            if paths[0] in path.parents:
                raise ValueError(f"{name} must not lie in dataset, which holds just its own files")
        return self

    @model_validator(mode="after")
    def _plain(self) -> Self:
        for name in ("dataset", "students", "reports"):
            if getattr(self, name).startswith("~"):
                raise ValueError(f"{name}: ~ has no meaning here, write the whole path")
        return self


class Config(Section):
    """All of ``params.yaml``."""

    teacher: TeacherConfig
    student: StudentConfig
    synthesis: SynthesisConfig
    adaptive: AdaptiveConfig = AdaptiveConfig()
    distillation: StudentsConfig = StudentsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    execution: ExecutionConfig = ExecutionConfig()
    paths: PathsConfig = PathsConfig()

    @model_validator(mode="after")
    def _verifier_fits(self) -> Self:
        verifier, teacher = self.evaluation.verifier, self.teacher
        if verifier is None:
            return self
        if verifier.classes != teacher.classes:
            raise ValueError(
                f"evaluation.verifier has {verifier.classes} classes, the teacher {teacher.classes}"
            )
        sizes = [(v.channels, v.height, v.width) for v in (verifier.input, teacher.input)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"evaluation.verifier takes images of {sizes[0]}, the teacher of {sizes[1]}"
            )
        return self

    @model_validator(mode="after")
    def _rounds_compete(self) -> Self:
        if self.adaptive.rounds and not self.compete:
            raise ValueError(
                f"adaptive.rounds needs a weight of R_compete, and the preset "
                f"{self.synthesis.objective.preset} has none: set adaptive.compete"
            )
        return self

    @property
    def compete(self) -> float:
        """The weight of R_compete in the adaptive rounds."""
        given = self.adaptive.compete
        return self.synthesis.objective.resolve().compete if given is None else given

    @model_validator(mode="after")
    def _sizes_possible(self) -> Self:
        table, classes = self.synthesis.images_per_class, self.teacher.classes
        first = sum(table.values()) if isinstance(table, dict) else classes * (table or 0)
        first = self.synthesis.images or first
        total = first + self.adaptive.rounds * self.adaptive.images
        if total > MOST_IMAGES:
            raise ValueError(f"synthesis asks for {total} images; at most {MOST_IMAGES} can be")
        shards = total // self.synthesis.shard_size + self.adaptive.rounds
        if shards > MOST_SHARDS:
            raise ValueError(
                f"synthesis.shard_size makes about {shards} shards; at most {MOST_SHARDS} can be"
            )
        return self

    @model_validator(mode="after")
    def _classes_exist(self) -> Self:
        table = self.synthesis.images_per_class
        if isinstance(table, dict):
            beyond = [c for c in table if not 0 <= c < self.teacher.classes]
            if beyond:
                raise ValueError(
                    f"synthesis.images_per_class names class {beyond[0]}, "
                    f"but teacher.classes is {self.teacher.classes}"
                )
            if not any(table.values()):
                raise ValueError("synthesis.images_per_class asks for no image at all")
        return self


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read and check a parameter file, ``overrides`` (``section.key`` to value) laid over it.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is wrong.
    """
    if not path.is_file():
        raise UserError(f"there is no parameter file {path}: name one with --params")
    try:
        values = YAML(typ="safe", pure=True).load(path)
    except (YAMLError, ValueError) as error:  # such as a date of month 13
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections (teacher:, synthesis:, ...)")
    return parse_config(values, str(path), overrides)


def parse_config(
    values: Mapping[str, Any], name: str = "params", overrides: Mapping[str, Any] | None = None
) -> Config:
    """Check values that are already in memory, ``overrides`` laid over them; ``name`` says in
    errors where they came from.

    What the teacher's source knows itself is filled in, so that the result says everything.
    """
    changed = deepcopy(dict(values))
    for key, value in (overrides or {}).items():
        _set(changed, key, value)
    _check_keys(changed, name)
    values = complete_teacher(changed)
    try:
        # JSON mode is strict and yet takes lists for tuples and text for integer keys.
        return _with_preset(Config.model_validate_json(json.dumps(values, default=str)))
    except ValidationError as error:
        raise UserError(f"{name}: {_explain(_most_specific(error.errors()))}") from error


def _with_preset(config: Config) -> Config:
    objective = config.synthesis.objective
    if objective.preset != AUTO:
        return config
    shape = (config.teacher.input.height, config.teacher.input.width)
    preset = fitting_preset(config.teacher.source, config.teacher.arguments, shape)
    chosen = objective.model_copy(update={"preset": preset})
    synthesis = config.synthesis.model_copy(update={"objective": chosen})
    return config.model_copy(update={"synthesis": synthesis})


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``section.key=value`` strings, each value read as YAML."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set {pair!r}: write section.key=value")
        try:
            overrides[key] = YAML(typ="safe", pure=True).load(text)
        except (YAMLError, ValueError) as error:
            raise UserError(f"--set {key}: what follows = is not valid YAML") from error
    return overrides


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise UserError(f"--set {key}: {section} is a value, not a section")
        values = inner
    values[last] = value


def _check_keys(values: Any, name: str) -> None:
    """YAML allows keys that no parameter has, such as dates."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, dict | list | tuple):
            _check_keys(value, name)
    for key in values if isinstance(values, dict) else ():
        if not isinstance(key, str | int):
            raise UserError(f"{name}: {key} is a {type(key).__name__}, which cannot be a key")


def _most_specific(errors: list[ErrorDetails]) -> ErrorDetails:
    """Of what is said of the first wrong key: where it may have several forms, the one meant."""
    first = errors[0]["loc"][:2]
    return max((e for e in errors if e["loc"][:2] == first), key=lambda e: len(e["loc"]))


def _explain(error: ErrorDetails) -> str:
    # Pydantic adds parts that name its own types, as in `dict[int,...]` or `constrained-int`.
    location = [str(part) for part in error["loc"]]
    named = [part for part in location if "[" not in part and "constrained-" not in part]
    key = ".".join(named)
    given = json.dumps(error["input"], default=str)
    given = "not shown" if "://" in given else given  # it may hold credentials
    given = given if len(given) <= 60 else given[:57] + "..."
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {key}{_nearest(location)}"
        case "missing":
            return f"{key} is missing"
        case "value_error":
            text = error["msg"].removeprefix("Value error, ")
            return f"{key}: {text}" if key else text
        case _:
            return f"{key} is {given}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _nearest(location: list[str]) -> str:
    model: type[BaseModel] = Config
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    known = list(model.model_fields)
    close = difflib.get_close_matches(location[-1], known, n=1)
    return f": did you mean {close[0]}?" if close else f": the keys here are {', '.join(known)}"
