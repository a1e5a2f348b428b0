"""All sections of ``params.yaml`` together, and the checks that span several of them."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from pipeline.config.distillation import AdaptiveConfig, StudentsConfig
from pipeline.config.fields import MOST_IMAGES, MOST_SHARDS, Section
from pipeline.config.networks import StudentConfig, TeacherConfig
from pipeline.config.run import EvaluationConfig, ExecutionConfig, PathsConfig
from pipeline.config.synthesis import SynthesisConfig


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
