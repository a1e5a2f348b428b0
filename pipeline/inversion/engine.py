"""One step of an inversion: the objective's gradient to the images, compiled or eager."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType

import torch
from torch import Tensor, nn

from pipeline.device.checkpointing import checkpointed
from pipeline.device.compiling import compile_function, refuse_full_disk
from pipeline.device.cuda_graphs import Graphs
from pipeline.device.depthwise import UnitStride
from pipeline.device.memory import is_out_of_memory
from pipeline.device.precision import PrecisionChoice, channels_last, precision_on
from pipeline.errors import first_line
from pipeline.inversion.capacity import Capacity
from pipeline.objective.bn_statistics import FeatureStatistics
from pipeline.objective.presets import Objective
from pipeline.objective.terms import TermInputs, Terms, evaluate_terms, reported_names
from pipeline.teachers.teacher import Teacher

log = logging.getLogger(__name__)
_Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The terms of a batch and the outputs of the networks for it.

    ``logits`` are the teacher's. Both logits are float32 ``[B, K]``. ``student_logits`` are None
    where there is no student.
    """

    terms: Terms
    logits: Tensor
    student_logits: Tensor | None


class Engine:
    """Teacher, student and objective together, for many batches. It compiles once for each shape.

    Use it inside ``with``: its hooks on the teacher end with the block. BatchNorm statistics and
    losses are float32 always.

    Args:
        teacher: The network to invert.
        objective: The weights of the terms.
        precision: ``bfloat16`` runs the networks under autocast. ``auto`` is bfloat16 where the
            hardware supports it, else float32.
        compiled: Whether to use torch.compile.
        student: The network that R_compete compares with, on the teacher's device. None switches
            the term off.
        checkpointing: Whether to save memory with a second forward pass. Steps are then eager.
        graphs: Whether a GPU repeats a compiled step as one CUDA graph.

    Attributes:
        space: The units of the images.
        capacity: The batch sizes that the memory was found to hold.

    Example::

        with Engine(teacher, PRESETS["normalised"]) as engine:
            images = invert(engine, labels, seed=0, iterations=200)
    """

    def __init__(
        self,
        teacher: Teacher,
        objective: Objective,
        precision: PrecisionChoice = "float32",
        compiled: bool = False,
        student: nn.Module | None = None,
        checkpointing: bool = False,
        graphs: bool = True,
    ) -> None:
        self.precision = precision_on(teacher.device, precision)
        self._layout = torch.contiguous_format
        if self.precision == "bfloat16":
            self._layout = torch.channels_last  # makes bfloat16 convolutions faster
            # Copy the network: its memory layout changes the last bits of results, and other users
            # of the same network must not depend on whether an engine was built before.
            teacher = replace(teacher, network=channels_last(copy.deepcopy(teacher.network)))
        self.teacher = teacher
        self.objective = objective
        self.space = teacher.space(objective.units)
        self._student = student
        self._statistics = FeatureStatistics(teacher.network, teacher.preprocessing.expected())
        self._taken: dict[tuple[int, int], bool] = {}
        self._totals: dict[bool, _Step] = {True: self._total, False: self._total_alone}
        self._compiled: dict[bool, _Step] = {}
        # Whether images of a size compiled, with and without competition.
        self._compiles: dict[tuple[bool, torch.Size], bool] = {}
        self._graphs: list[Graphs] = []
        self._checkpointing = checkpointing
        self.capacity = Capacity()
        self._open = contextlib.ExitStack()
        if compiled and not checkpointing:
            for competes, total in self._totals.items():
                step = functools.partial(self._differentiate, compile_function(total))
                if graphs and teacher.device.type == "cuda":
                    self._graphs.append(Graphs())
                    step = functools.partial(self._graphs[-1].run, step)
                self._compiled[competes] = step

    def __enter__(self) -> Engine:
        self._open.enter_context(self._statistics)
        if self.precision == "bfloat16" and self.teacher.device.type == "cpu":
            self._open.enter_context(UnitStride())
        if self._checkpointing:
            self._open.enter_context(checkpointed(self.teacher.network))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def step(
        self, images: Tensor, labels: Tensor, factors: Tensor, competes: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Compute the gradient of the mean objective to the images.

        A shape that does not compile runs eagerly, whatever other shapes do.

        Args:
            images: ``[B, C, H, W]`` in the units of :attr:`space`.
            labels: Classes ``[B]`` or probabilities ``[B, K]``.
            factors: The images' factors, ``[B, F]`` (:func:`draw_factors`).
            competes: Whether R_compete counts.

        Returns:
            The gradient, ``[B, C, H, W]``, and the means of the unweighted terms in the order of
            :attr:`names`. The next step may overwrite both.

        Raises:
            OSError: The disk is full, so compiling failed.
        """
        images = images.contiguous(memory_format=self._layout)
        competes = competes or self._student is None  # without a student both are the same
        size = competes, images.shape
        if self._compiled and self._compiles.get(size, True):
            try:
                result = self._compiled[competes](images, labels, factors)
                self._compiles[size] = True
                return result
            except Exception as error:
                if size in self._compiles or is_out_of_memory(error):
                    raise
                refuse_full_disk(error)
                self._run_eagerly(size, error)
        return self._differentiate(self._totals[competes], images, labels, factors)

    def judge(self, images: Tensor, labels: Tensor, factors: Tensor) -> Judgement:
        """Evaluate the terms of finished images: eagerly, in float32, without gradients.

        The arguments are those of :meth:`step`.
        """
        with torch.no_grad():
            return self._judge(images, labels, factors)

    def answers(self, images: Tensor) -> Tensor:
        """The teacher's logits of images ``[B, C, H, W]``, float32 ``[B, K]``. No gradients."""
        with torch.no_grad():
            logits: Tensor = self.teacher.network(self.space.network_input(images))
        self._statistics.collect()
        return logits.float()

    def takes(self, sides: tuple[int, int]) -> bool:
        """Whether teacher and student accept images of ``sides``, another height and width."""
        if sides not in self._taken:
            images = torch.zeros(2, self.teacher.shape[0], *sides, device=self.teacher.device)
            try:
                with torch.no_grad():
                    networks = filter(None, (self.teacher.network, self._student))
                    answers = [network(images) for network in networks]
                # A network that flattens its input may read two small images as one.
                self._taken[sides] = all(len(answer) == len(images) for answer in answers)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                # Any other error means that the network does not accept this size.
                self._taken[sides] = False
            self._statistics.collect()
        return self._taken[sides]

    def forget(self) -> None:
        """Drop everything that a failed step left behind, and give back its memory."""
        self._statistics.collect()
        for graphs in self._graphs:
            graphs.forget()

    @property
    def names(self) -> list[str]:
        """The names of the means that :meth:`step` returns: ``total``, then the terms."""
        return reported_names(self._student is not None)

    def _run_eagerly(self, size: tuple[bool, torch.Size], error: Exception) -> None:
        """Note that steps of ``size`` do not compile, and warn at the first such size."""
        if all(self._compiles.values()):
            log.warning(
                "torch.compile failed for the teacher, so its steps run uncompiled and slower: %s",
                first_line(error),
            )
        self._compiles[size] = False
        self._statistics.collect()

    def _differentiate(
        self, total_of: _Step, images: Tensor, labels: Tensor, factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradient of ``total_of`` to the images, and the means of the terms."""
        images = images.detach().requires_grad_()
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        ):
            total, means = total_of(images, labels, factors)
        (gradient,) = torch.autograd.grad(total, images)
        return gradient, means

    def _total(
        self, images: Tensor, labels: Tensor, factors: Tensor, competes: bool = True
    ) -> tuple[Tensor, Tensor]:
        objective = self.objective if competes else replace(self.objective, compete=0.0)
        terms = self._judge(images, labels, factors).terms
        total = terms.total(objective).mean()
        return total, terms.means(total)

    def _total_alone(
        self, images: Tensor, labels: Tensor, factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self._total(images, labels, factors, competes=False)

    def _judge(self, images: Tensor, labels: Tensor, factors: Tensor) -> Judgement:
        if self._checkpointing:
            self._statistics.collect()  # the second forward pass of the last gradient recorded too
        shown = self.space.network_input(images)
        logits = self.teacher.network(shown)
        layers = self._statistics.collect()
        student_logits = None if self._student is None else self._student(shown)
        inputs = TermInputs(images, labels, logits, layers, student_logits, self.objective)
        terms = evaluate_terms(inputs, factors)
        return Judgement(
            terms, logits.float(), None if student_logits is None else student_logits.float()
        )
