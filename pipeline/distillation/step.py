"""One step of a student: teacher and student on the same mixed images, Eq. 1, SGD, an average."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config.distillation import DistillationConfig
from pipeline.dataset.plan import derive_seed
from pipeline.device.compiling import refuse_full_disk
from pipeline.device.cuda_graphs import Graphs
from pipeline.device.memory import is_out_of_memory
from pipeline.device.precision import channels_last, precision_on
from pipeline.device.seeding import seed_all
from pipeline.distillation.adversarial import draw_distances, moved
from pipeline.distillation.augmentation import augment
from pipeline.distillation.feature_maps import FeatureMaps, Imitation
from pipeline.distillation.muon import Matrices, hidden_weights
from pipeline.distillation.shared_batchnorm import share_batchnorm
from pipeline.errors import first_line
from pipeline.execution.torchrun import average_gradients, own_share
from pipeline.teachers.teacher import Teacher

CONNECTING = 0.01  # the highest rate of Adam for the connectors of imitated maps
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """What a step saw: the loss, both networks' logits on the mixed images, and the clean ones.

    The next step may write over all but the last.
    """

    loss: Tensor
    logits: Tensor
    target: Tensor
    clean: Tensor


class Training:
    """A student on its way. :meth:`state_dict` is all that its future follows from.

    Take steps inside ``with``: hooks end with the block.

    Raises:
        UserError: the student has no feature map to imitate.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        config: DistillationConfig,
        seed: int,
    ) -> None:
        self.student = share_batchnorm(student).to(teacher.device)
        self.precision = precision_on(teacher.device, config.precision)
        self._layout = torch.contiguous_format
        if self.precision == "bfloat16":
            self._layout = torch.channels_last
            channels_last(self.student)
        self._teacher, self._config, self._seed, self._share = teacher, config, seed, own_share()
        self._average = copy.deepcopy(self.student).eval() if config.ema else None
        self._imitation = self._connect() if config.imitation else None
        hidden: list[nn.Parameter] = []
        self._matrices = None
        if config.optimizer == "muon" and (hidden := hidden_weights(self.student)):
            self._matrices = Matrices(hidden, config.momentum)
        others = [p for p in self.student.parameters() if not any(p is h for h in hidden)]
        self._optimizer = torch.optim.SGD(
            others,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )
        # Adam's steps do not grow with the weight of imitation; SGD's would make these diverge.
        self._connecting = None
        if connectors := self._connectors():
            self._connecting = torch.optim.Adam(connectors)
        self._judge = _compiled_loss() if config.compile else _loss
        on_gpu = teacher.device.type == "cuda"
        self._graphs = Graphs() if config.compile and on_gpu and self._share.of == 1 else None
        self._untried = config.compile
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> Training:
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
        """Step ``number``, counted from 0, on this process's share of a batch, uint8."""
        rate = learning_rate(self._config, number)
        self._set_rates(rate)
        generator = torch.Generator().manual_seed(derive_seed(self._seed, number))
        # Nothing in a step may wait for a GPU, which would then wait for the next step's kernels.
        if self._teacher.device.type == "cuda":  # what is not pinned is waited for all the same
            pixels = pixels.pin_memory()
        pixels = pixels.to(self._teacher.device, non_blocking=True)
        clean = self._teacher.preprocessing.normalise(pixels)
        images = augment(clean, self._config, generator, self._share)
        distances = draw_distances(len(images), self._config.adversarial, generator, self._share)
        distances = distances.to(self._teacher.device, non_blocking=True)
        self.student.train()
        # For dropout and its like; apart in each process.
        noise = derive_seed(self._seed, number, 1 + self._share.index)
        loss, logits, target = self._differentiate(images, distances, noise)
        average_gradients([*self.student.parameters(), *self._connectors()])
        self._optimizer.step()
        if self._matrices is not None:
            self._matrices.step(rate)
        if self._connecting is not None:
            self._connecting.step()
        if self._average is not None:
            decay = min(self._config.ema, (1 + number) / (10 + number))  # the first ones fade fast
            follow(self._average, self.student, decay)
        return Step(loss, logits, target, clean)

    def published(self) -> nn.Module:
        """The trained student: its average, if one is kept."""
        return self.student if self._average is None else self._average

    def state_dict(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "connectors": None if self._imitation is None else self._imitation.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "matrices": None if self._matrices is None else self._matrices.state_dict(),
            "connecting": None if self._connecting is None else self._connecting.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if self._imitation is not None:
            self._imitation.load_state_dict(state["connectors"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._matrices is not None:
            self._matrices.load_state_dict(state["matrices"])
        if self._connecting is not None:
            self._connecting.load_state_dict(state["connecting"])

    def _set_rates(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self._connecting is not None:
            for group in self._connecting.param_groups:
                group["lr"] = CONNECTING * rate / self._config.learning_rate

    def _connect(self) -> Imitation:
        images = torch.zeros(2, *self._teacher.shape, device=self._teacher.device)
        maps = (FeatureMaps(network, images) for network in (self._teacher.network, self.student))
        return Imitation(*maps).to(self._teacher.device)

    def _connectors(self) -> list[nn.Parameter]:
        return [] if self._imitation is None else list(self._imitation.parameters())

    def _differentiate(
        self, images: Tensor, distances: Tensor, noise: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, logits and target; gradients, too. Falls back to eager where compiling fails."""
        seed_all(noise)
        if not self._untried:
            return self._run(images, distances)
        self._untried = False
        before = copy.deepcopy(self.student.state_dict())
        try:
            return self._run(images, distances)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            refuse_full_disk(error)
            log.warning(
                "the student does not compile here, going on without: %s", first_line(error)
            )
            self.student.load_state_dict(before)  # its BatchNorm may have seen the batch already
            self._judge, self._graphs = _loss, None
            seed_all(noise)
            return self._run(images, distances)

    def _run(self, images: Tensor, distances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._graphs is None:
            return self._backward(images, distances)
        return self._graphs.run(self._backward, images, distances)

    def _backward(self, images: Tensor, distances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._config.adversarial:
            images = self._harden(images, distances)
        if self._imitation is not None:
            self._imitation.forget()  # what was seen outside of a step
        loss, logits, target = self._compare(images, self._imitation)
        self.student.zero_grad(set_to_none=True)
        if self._imitation is not None:
            self._imitation.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach(), logits.detach(), target

    def _harden(self, images: Tensor, distances: Tensor) -> Tensor:
        """Every second image moved to where the networks differ more."""
        chosen = images[::2].clone().requires_grad_()
        weights = [weight for weight in self.student.parameters() if weight.requires_grad]
        try:
            for weight in weights:  # their gradients would be computed in vain
                weight.requires_grad_(False)
            loss, _, _ = self._compare(chosen, None)
            (gradient,) = torch.autograd.grad(loss, chosen)
        finally:  # where this does not compile, it is tried again
            for weight in weights:
                weight.requires_grad_(True)
        images = images.clone()
        images[::2] = moved(chosen.detach(), gradient, distances[::2])
        return images

    def _compare(
        self, images: Tensor, imitation: Imitation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        config = self._config
        images = images.contiguous(memory_format=self._layout)
        bfloat16 = self.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
            return self._judge(
                self._teacher.network,
                self.student,
                images,
                config.temperature,
                imitation,
                config.imitation,
            )


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Eq. 1 of the paper, ``T^2 KL(p_T(x / T) || p_S(x / T))``, mean over the batch.

    ``[B, K], [B, K]`` to a scalar. ``T^2`` keeps the gradient's size over temperatures (Hinton et
    al. 2015).
    """
    log_student = F.log_softmax(student_logits.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def learning_rate(config: DistillationConfig, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = min(config.warmup, config.steps // 2)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def follow(average: nn.Module, student: nn.Module, decay: float) -> None:
    """``average = decay average + (1 - decay) student``; whole numbers are taken over."""
    ours, theirs = (_state(network) for network in (average, student))
    real = [tensor.is_floating_point() for tensor in ours]
    torch._foreach_lerp_(
        [tensor for tensor, is_real in zip(ours, real, strict=True) if is_real],
        [tensor for tensor, is_real in zip(theirs, real, strict=True) if is_real],
        1 - decay,
    )
    for own, other, is_real in zip(ours, theirs, real, strict=True):
        if not is_real:
            own.copy_(other)


def _state(network: nn.Module) -> list[Tensor]:
    """What is saved of it; once, where it has several names."""
    tensors = network.state_dict(keep_vars=True).values()
    return list({id(tensor): tensor for tensor in tensors}.values())


def _loss(
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor,
    temperature: float,
    imitation: Imitation | None,
    weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.set_grad_enabled(images.requires_grad):
        target = teacher(images)
    logits = student(images)
    loss = distillation_loss(logits, target, temperature)
    if imitation is not None:
        loss = loss + weight * imitation()
    return loss, logits, target


@functools.cache
def _compiled_loss() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """One function for all students, which so compile once."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # Not dynamic: a step's kernels must not depend on the sizes that came before it.
    return torch.compile(_loss, dynamic=False)
