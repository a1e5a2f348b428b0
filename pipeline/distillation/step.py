"""One training step of a student: augment, compare with the teacher, update the weights."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.distillation import DistillationConfig
from pipeline.dataset.plan import derive_seed
from pipeline.device.precision import channels_last, precision_on
from pipeline.distillation.adversarial import draw_distances
from pipeline.distillation.augmentation import augment
from pipeline.distillation.feature_maps import FeatureMaps, Imitation
from pipeline.distillation.loss_gradient import LossGradient
from pipeline.distillation.optimizers import WeightAverage, create_optimizers, learning_rate
from pipeline.distillation.procedural_share import ProceduralShare
from pipeline.distillation.shared_batchnorm import share_batchnorm
from pipeline.execution.torchrun import average_gradients, own_share
from pipeline.teachers.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Step:
    """The results of one training step.

    The next step may overwrite the tensors.

    Attributes:
        loss: The training loss, a scalar.
        logits: The student's logits on the augmented images, ``[B, K]``.
        target: The teacher's logits on the augmented images, ``[B, K]``.
    """

    loss: Tensor
    logits: Tensor
    target: Tensor


class Training:
    """A student in training, with its optimisers and the average of its weights.

    Take steps inside a ``with`` block, because hooks record feature maps there only.

    Args:
        teacher: The frozen teacher.
        student: The student. It moves to the teacher's device.
        config: How the student is trained.
        seed: Seed of augmentation and of random layers. Each step derives its own seed from it.
        graphs: Whether a compiled step on a GPU may become a CUDA graph.

    Raises:
        UserError: ``config.imitation`` is above 0, and the student has no feature map of a size
            that the teacher has.

    Example::

        training = Training(teacher, student, config, seed=0)
        with training:
            for number, (pixels, labels) in zip(range(config.steps), stream.endless()):
                step = training.step(number, pixels)
        trained = training.published()
    """

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        config: DistillationConfig,
        seed: int,
        graphs: bool = True,
    ) -> None:
        self.student = share_batchnorm(student).to(teacher.device)
        self.precision = precision_on(teacher.device, config.precision)
        if self.precision == "bfloat16":
            channels_last(self.student)
        self._teacher, self._config, self._seed, self._share = teacher, config, seed, own_share()
        self._space = teacher.space()
        self._average = WeightAverage(self.student, config.ema) if config.ema else None
        self._imitation = _connect(teacher, self.student) if config.imitation else None
        self._optimizers = create_optimizers(self.student, self._imitation, config)
        # A CUDA graph cannot contain the sums that several processes exchange.
        graphs = graphs and self._share.of == 1
        self._gradient = LossGradient(
            teacher, self.student, self._imitation, config, self.precision, graphs
        )
        self._pictures = ProceduralShare(
            config.procedural, derive_seed(seed, 0, 0), self._share, teacher.device.type == "cuda"
        )
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> Training:
        self._hooks.callback(self._pictures.close)
        if self._imitation is not None:
            self._hooks.enter_context(self._imitation.teacher)
            self._hooks.enter_context(self._imitation.student)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.close()

    def step(self, number: int, pixels: Tensor) -> Step:
        """Train on one batch.

        Nothing in this method waits for a GPU: the CPU prepares the next step's kernels while the
        GPU computes.

        Args:
            number: Number of the step, counted from 0.
            pixels: This process's share of the batch, uint8 ``[B, C, H, W]``.

        Returns:
            The loss and the logits of both networks.
        """
        device, config = self._teacher.device, self._config
        generator = torch.Generator().manual_seed(derive_seed(self._seed, number))
        pixels = self._pictures.replace(number, pixels)
        if device.type == "cuda":
            pixels = pixels.pin_memory()  # A copy from other memory would wait for the GPU.
        pixels = pixels.to(device, non_blocking=True)
        images = self._space.pixels.normalise(pixels)
        images = augment(images, config, generator, self._share)
        distances = draw_distances(len(images), config.adversarial, generator, self._share)
        distances = distances.to(device, non_blocking=True)
        self.student.train()
        # Random layers draw other numbers in each process.
        noise = derive_seed(self._seed, number, 1 + self._share.index)
        loss, logits, target = self._gradient.compute(images, distances, noise)
        average_gradients(self._learned())
        for optimizer in self._optimizers.values():
            optimizer.step(learning_rate(config, number))
        if self._average is not None:
            self._average.update(self.student, number)
        return Step(loss, logits, target)

    def network_input(self, pixels: Tensor) -> Tensor:
        """The input of student and teacher for images without augmentation.

        Args:
            pixels: uint8 ``[B, C, H, W]``.
        """
        images = self._space.pixels.normalise(pixels.to(self._teacher.device))
        return self._space.network_input(images)

    def published(self) -> nn.Module:
        """Return the trained network: the average of the weights where ``config.ema`` is set."""
        return self.student if self._average is None else self._average.network

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later steps depend on."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that :meth:`state_dict` returned.

        Args:
            state: State of a training with the same configuration.
        """
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        """Return the objects that have a state, by the names that a checkpoint gives them."""
        stateful: dict[str, Any] = {"student": self.student, **self._optimizers}
        if self._average is not None:
            stateful["average"] = self._average.network
        if self._imitation is not None:
            stateful["connectors"] = self._imitation
        return stateful

    def _learned(self) -> list[nn.Parameter]:
        connectors = [] if self._imitation is None else self._imitation.parameters()
        return [*self.student.parameters(), *connectors]


def _connect(teacher: Teacher, student: nn.Module) -> Imitation:
    images = torch.zeros(2, *teacher.shape, device=teacher.device)
    maps = (FeatureMaps(network, images) for network in (teacher.network, student))
    return Imitation(*maps).to(teacher.device)
