"""The optimisers of a student, their learning rate, and the average of the student's weights."""

from __future__ import annotations

import copy
import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.config.distillation import DistillationConfig
from pipeline.distillation.feature_maps import Imitation
from pipeline.distillation.muon import Muon, hidden_weights

CONNECTOR_RATE = 0.01  # The highest learning rate of Adam for the connectors of feature maps.
# Adam's learning rate next to Muon, as a multiple of the learning rate.
ADAM_RATE, ADAM_DECAY = 0.03, 0.95


class Optimizer(Protocol):
    """Updates some of the weights in each step."""

    def step(self, learning_rate: float) -> None:
        """Update the weights along their gradients, at the schedule's rate of this step."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later steps depend on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that :meth:`state_dict` returned."""


class Sgd:
    """SGD with Nesterov momentum and weight decay.

    Args:
        weights: Parameters to update.
        config: Fields ``momentum`` and ``weight_decay``.
    """

    def __init__(self, weights: list[nn.Parameter], config: DistillationConfig) -> None:
        self._sgd = torch.optim.SGD(
            weights,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )

    def step(self, learning_rate: float) -> None:
        _set_rate(self._sgd, learning_rate)
        self._sgd.step()

    def state_dict(self) -> dict[str, Any]:
        return self._sgd.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sgd.load_state_dict(state)


class Adam:
    """AdamW at a rate that follows the schedule.

    Adam's steps do not grow with the gradient. SGD's steps do: with the number of features that the
    last layer sees, with few classes, or with the weight of the imitation term. Some students and
    all connectors of :class:`Imitation` would then diverge.

    Args:
        weights: Parameters to update.
        factor: Adam's rate as a multiple of the schedule's.
        betas: The decays of the averages of gradients and of their squares.
        decay: Each step shrinks the weights by this share of the schedule's rate.
    """

    def __init__(
        self,
        weights: list[nn.Parameter],
        factor: float,
        betas: tuple[float, float] = (0.9, 0.999),
        decay: float = 0.0,
    ) -> None:
        self._factor = factor
        self._adam = torch.optim.AdamW(
            weights, betas=betas, weight_decay=decay / factor, fused=True
        )

    def step(self, learning_rate: float) -> None:
        _set_rate(self._adam, self._factor * learning_rate)
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        return self._adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state)


def create_optimizers(
    student: nn.Module, imitation: Imitation | None, config: DistillationConfig
) -> dict[str, Optimizer]:
    """Create the optimisers that together update every weight once.

    Args:
        student: The student.
        imitation: The term for feature maps, or None.
        config: How the student is trained.

    Returns:
        Optimisers by the name under which a checkpoint keeps their state. With ``muon`` they are
        Muon for the hidden weights and Adam (``others``) for the student's other weights. With
        ``sgd`` it is SGD for all weights. ``adam`` is Adam for the connectors if there are
        any.

    Example::

        optimizers = create_optimizers(student, None, config)
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step(learning_rate(config, step))
    """
    optimizers: dict[str, Optimizer] = {}
    if config.optimizer == "sgd":
        optimizers["sgd"] = Sgd(list(student.parameters()), config)
    else:
        hidden = hidden_weights(student)
        others = [p for p in student.parameters() if not any(p is weight for weight in hidden)]
        betas = config.momentum, ADAM_DECAY
        optimizers["others"] = Adam(others, ADAM_RATE, betas, config.weight_decay)
        if hidden:
            optimizers["muon"] = Muon(hidden, config.momentum)
    connectors = [] if imitation is None else list(imitation.parameters())
    if connectors:
        factor = CONNECTOR_RATE / config.learning_rate
        optimizers["adam"] = Adam(connectors, factor)
    return optimizers


def learning_rate(config: DistillationConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to zero.

    Args:
        config: Fields ``learning_rate`` (the highest rate), ``warmup`` and ``steps``. The warm-up
            takes at most half of the steps.
        step: Number of the step, counted from 0.
    """
    warmup = min(config.warmup, config.steps // 2)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class WeightAverage:
    """An exponential moving average of a student's weights and BatchNorm statistics.

    ``average <- d average + (1 - d) student`` after each step, with
    ``d = min(decay, (1 + step) / (10 + step))``: a small ``d`` in the first steps drops the
    initial weights quickly.

    Args:
        student: The student. The average starts as a copy of it.
        decay: ``decay`` in [0, 1).
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(student).eval()
        self._decay = decay

    def update(self, student: nn.Module, step: int) -> None:
        """Include the student's weights after step number ``step``, counted from 0."""
        update_average(self.network, student, min(self._decay, (1 + step) / (10 + step)))


@torch.no_grad()
def update_average(average: nn.Module, student: nn.Module, decay: float) -> None:
    """Set ``average`` to ``decay average + (1 - decay) student``; integers are copied.

    Args:
        average: Network that is changed.
        student: Network of the same architecture.
        decay: Weight of the old average, in [0, 1].
    """
    own, new = (_tensors(network) for network in (average, student))
    real = [tensor.is_floating_point() for tensor in own]
    torch._foreach_lerp_(
        [tensor for tensor, is_real in zip(own, real, strict=True) if is_real],
        [tensor for tensor, is_real in zip(new, real, strict=True) if is_real],
        1 - decay,
    )
    for target, source, is_real in zip(own, new, real, strict=True):
        if not is_real:
            target.copy_(source)


def _tensors(network: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers; a tensor with several names is returned once."""
    tensors = network.state_dict(keep_vars=True).values()
    return list({id(tensor): tensor for tensor in tensors}.values())


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
