"""All sections of a parameter file together, and the checks that span several of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Self

from pydantic import PrivateAttr, model_validator

from pipeline.config.adaptive import AdaptiveConfig
from pipeline.config.calibration import CalibrationConfig
from pipeline.config.distillation import StudentsConfig
from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.execution import ExecutionConfig
from pipeline.config.fields import AUTO, MOST_IMAGES, MOST_SHARDS, Section
from pipeline.config.label_keys import first_that_needs_labels
from pipeline.config.paths import PathsConfig
from pipeline.config.student import StudentConfig
from pipeline.config.synthesis import SynthesisConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.objective.presets import PRESETS, Objective, fitting_iterations

COMPILED_FROM, COMPILED_PIXELS = 100_000, 32 * 32
"""Image-iterations from which ``synthesis.compile: auto`` compiles, for images of so many pixels or
fewer. Larger images take as many times longer, and compile from as many times fewer on."""


class Config(Section):
    """All of ``params.yaml``. Made by :func:`pipeline.params.load_params`."""

    teacher: TeacherConfig
    """The trained network to invert."""

    student: StudentConfig
    """The network to train on the synthetic images."""

    synthesis: SynthesisConfig
    """The images to make, before any adaptive round."""

    adaptive: AdaptiveConfig = AdaptiveConfig()
    """Rounds of Adaptive DeepInversion after the first synthesis."""

    distillation: StudentsConfig = StudentsConfig()
    """The final students and how they are trained."""

    evaluation: EvaluationConfig = EvaluationConfig()
    """What dataset and students are measured with."""

    calibration: CalibrationConfig = CalibrationConfig()
    """How the teacher is quantised, by the command calibrate alone."""

    execution: ExecutionConfig = ExecutionConfig()
    """Where the work runs."""

    paths: PathsConfig = PathsConfig()
    """Where results are written."""

    _fitting_preset: Callable[[], str] | None = PrivateAttr(default=None)

    def with_fitting_preset(self, choose: Callable[[], str]) -> Config:
        """A copy that calls ``choose`` when the preset is ``auto`` and its name is needed."""
        copied = self.model_copy()
        copied._fitting_preset = choose
        return copied

    @property
    def preset(self) -> str:
        """The name of the objective's preset, never ``auto``.

        Raises:
            ValueError: The preset is ``auto`` and nothing chooses one.
        """
        name = self.synthesis.objective.preset
        if name != AUTO:
            return name
        if self._fitting_preset is None:
            raise ValueError(
                "synthesis.objective.preset is auto, and this Config cannot look at the teacher: "
                "make it with load_params or parse_params, or name a preset"
            )
        return self._fitting_preset()

    @property
    def images(self) -> int:
        """All images of the plan, adaptive rounds included."""
        table, classes = self.synthesis.images_per_class, self.teacher.classes
        first = sum(table.values()) if isinstance(table, dict) else classes * (table or 0)
        return (self.synthesis.images or first) + self.adaptive.rounds * self.adaptive.images

    @property
    def iterations(self) -> int:
        """Gradient steps for each image; ``auto`` is resolved by the size of the images."""
        given, shape = self.synthesis.iterations, self.teacher.input
        if isinstance(given, int):
            return given
        return fitting_iterations(shape.height, shape.width)

    @property
    def compiled(self) -> bool:
        """Whether the inversion uses torch.compile; ``auto`` is resolved.

        The answer decides the last bits of pixels. So it follows from the parameters alone, and is
        the same on every machine and for every number of workers.
        """
        if self.synthesis.compile == AUTO:
            pixels = self.teacher.input.height * self.teacher.input.width
            passes = self.images * self.iterations
            return passes * max(pixels, COMPILED_PIXELS) >= COMPILED_FROM * COMPILED_PIXELS
        return bool(self.synthesis.compile)

    @property
    def objective(self) -> Objective:
        """The resolved objective: the preset's values, replaced by those that the file gives.

        With the preset ``auto`` the first call looks at the teacher's network.
        """
        objective = self.synthesis.objective.over(self.preset)
        return objective if self.teacher.labelled else replace(objective, classification=0.0)

    @property
    def compete(self) -> float:
        """The weight of R_compete in the adaptive rounds."""
        given = self.adaptive.compete
        return self.objective.compete if given is None else given

    @model_validator(mode="after")
    def _labels_where_needed(self) -> Self:
        parts = self.synthesis, self.synthesis.objective, self.adaptive, self.evaluation
        if not self.teacher.labelled and (key := first_that_needs_labels(*parts)):
            raise ValueError(f"{key} needs labels, and teacher.labels is none: leave {key} out")
        return self

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
        weight, preset = self.adaptive.compete, self.synthesis.objective.preset
        if weight is None and preset != AUTO:  # each preset that auto chooses has a weight
            weight = PRESETS[preset].compete
        if self.adaptive.rounds and weight == 0:
            raise ValueError(
                f"adaptive.rounds needs a weight of R_compete, and the preset {preset} has none: "
                "set adaptive.compete"
            )
        return self

    @model_validator(mode="after")
    def _sizes_possible(self) -> Self:
        total = self.images
        if total > MOST_IMAGES:
            raise ValueError(f"synthesis asks for {total} images; the limit is {MOST_IMAGES}")
        shards = total // self.synthesis.shard_size + self.adaptive.rounds
        if shards > MOST_SHARDS:
            raise ValueError(
                f"synthesis.shard_size makes about {shards} shards; the limit is {MOST_SHARDS}: "
                "make shards larger"
            )
        return self

    @model_validator(mode="after")
    def _captions_have_names(self) -> Self:
        if self.synthesis.captions is not None and self.teacher.class_names is None:
            raise ValueError(
                "synthesis.captions needs the names of the classes, and the teacher has none: set "
                "teacher.class_names"
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
