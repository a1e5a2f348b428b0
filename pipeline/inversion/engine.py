"""One function from images to the objective's value, compiled where that is asked for."""

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
from pipeline.device.compiling import refuse_full_disk
from pipeline.device.cuda_graphs import Graphs
from pipeline.device.depthwise import UnitStride
from pipeline.device.memory import is_out_of_memory
from pipeline.device.precision import PrecisionChoice, channels_last, precision_on
from pipeline.errors import first_line
from pipeline.objective.bn_statistics import FeatureStatistics
from pipeline.objective.presets import Objective
from pipeline.objective.terms import Terms, evaluate_terms
from pipeline.teachers.teacher import Teacher

COMPILED_SIZES = 64
log = logging.getLogger(__name__)
_Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Everything the networks say of a batch. Logits are float32 ``[B, K]``."""

    terms: Terms
    logits: Tensor
    student_logits: Tensor | None


class Engine:
    """Teacher, student and objective together. Use it inside ``with``: hooks end with the block.

    One engine serves many batches and compiles once. With ``bfloat16`` the networks run under
    autocast; BatchNorm statistics and losses are float32 always. ``checkpointing`` saves memory for
    a second forward pass, and is not compiled. With ``graphs`` a GPU repeats a compiled step as one
    CUDA graph. ``held`` is the largest batch that the device was found to hold, ``too_large`` the
    smallest that it does not.
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
        if self.precision == "bfloat16":  # whose convolutions are faster so
            self._layout = torch.channels_last
            # A copy: layout moves last bits, and others' must not depend on who was first.
            teacher = replace(teacher, network=channels_last(copy.deepcopy(teacher.network)))
        self.teacher = teacher
        self.objective = objective
        self._student = student
        self._statistics = FeatureStatistics(teacher.network, teacher.preprocessing.expected())
        self._taken: dict[tuple[int, int], bool] = {}
        self._compiled: _Step | None = None
        self._compiles: dict[torch.Size, bool] = {}  # of each size that was tried
        self._graphs: Graphs | None = None
        self._checkpointing = checkpointing
        self.held = 0
        self.too_large: int | None = None
        self._open = contextlib.ExitStack()
        if compiled and not checkpointing:
            from torch._dynamo import config as dynamo

            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            # Not dynamic: a batch's kernels must not depend on the sizes that came before it, nor
            # on how many came: what is over the limit is not compiled.
            dynamo.recompile_limit = COMPILED_SIZES
            total = torch.compile(self._total, dynamic=False)
            self._compiled = functools.partial(self._differentiate, total)
            if graphs and teacher.device.type == "cuda":
                self._graphs = Graphs()
                self._compiled = functools.partial(self._graphs.run, self._compiled)

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

    def step(self, images: Tensor, labels: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the mean objective to ``images``, and the unweighted terms' means.

        ``labels`` are classes ``[B]`` or probabilities ``[B, K]``; ``factors`` are those of
        :class:`Terms`. The means are ordered as :attr:`names`. The next step may write over both.
        Where a size does not compile it is eager, whatever came before it.
        """
        images = images.contiguous(memory_format=self._layout)
        size = images.shape
        if self._compiled is not None and self._compiles.get(size, True):
            try:
                result = self._compiled(images, labels, factors)
                self._compiles[size] = True
                return result
            except Exception as error:
                if size in self._compiles or is_out_of_memory(error):
                    raise
                refuse_full_disk(error)
                self._go_without(size, error)
        return self._differentiate(self._total, images, labels, factors)

    def judge(self, images: Tensor, labels: Tensor, factors: Tensor) -> Judgement:
        """The final word on a batch: eager, float32, without gradients."""
        with torch.no_grad():
            return self._judge(images, labels, factors)

    def takes(self, sides: tuple[int, int]) -> bool:
        """Whether the networks answer images of another height and width."""
        if sides not in self._taken:
            images = torch.zeros(2, self.teacher.shape[0], *sides, device=self.teacher.device)
            try:
                with torch.no_grad():
                    networks = filter(None, (self.teacher.network, self._student))
                    answers = [network(images) for network in networks]
                # One that flattens anything may take two small images for one.
                self._taken[sides] = all(len(answer) == len(images) for answer in answers)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                # Otherwise it is what a network says to a size that it was not made for.
                self._taken[sides] = False
            self._statistics.collect()
        return self._taken[sides]

    def forget(self) -> None:
        """Drop what a step that failed has left behind."""
        self._statistics.collect()
        if self._graphs is not None:  # those of a larger batch hold memory
            self._graphs.forget()

    @property
    def names(self) -> list[str]:
        """Of the values that :meth:`step` reports."""
        compete = ["compete"] if self._student is not None else []
        return ["total", "classification", "tv", "l2", "feature", *compete]

    def _go_without(self, size: torch.Size, error: Exception) -> None:
        """Images of ``size`` do not compile, which is said once for all sizes."""
        if all(self._compiles.values()):
            log.warning(
                "the teacher does not compile here, going on without: %s", first_line(error)
            )
        self._compiles[size] = False
        self._statistics.collect()

    def _differentiate(
        self, total_of: _Step, images: Tensor, labels: Tensor, factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        images = images.detach().requires_grad_()
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        ):
            total, means = total_of(images, labels, factors)
        (gradient,) = torch.autograd.grad(total, images)
        return gradient, means

    def _total(self, images: Tensor, labels: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        terms = self._judge(images, labels, factors).terms
        total = terms.total(self.objective).mean()
        return total, torch.stack([part.detach().mean() for part in (total, *terms.unweighted())])

    def _judge(self, images: Tensor, labels: Tensor, factors: Tensor) -> Judgement:
        if self._checkpointing:
            self._statistics.collect()  # what the last gradient computed again
        logits = self.teacher.network(images)
        layers = self._statistics.collect()
        student_logits = None if self._student is None else self._student(images)
        terms = evaluate_terms(
            images, labels, logits, layers, student_logits, self.objective, factors
        )
        return Judgement(
            terms, logits.float(), None if student_logits is None else student_logits.float()
        )
