"""The gradient of the distillation loss with respect to a student's weights."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn

from pipeline.config.distillation import DistillationConfig
from pipeline.device.compiling import explain_compile_error
from pipeline.device.cuda_graphs import Graphs
from pipeline.device.precision import Precision
from pipeline.device.seeding import seed_all
from pipeline.distillation.adversarial import EVERY, compiled_perturb, perturb
from pipeline.distillation.feature_maps import Imitation
from pipeline.distillation.loss import compare, compiled_compare
from pipeline.execution.torchrun import own_share
from pipeline.teachers.teacher import Teacher

log = logging.getLogger(__name__)
Comparison = tuple[Tensor, Tensor, Tensor]
"""The loss (a scalar), the student's logits and the teacher's logits, ``[B, K]`` each."""


class LossGradient:
    """Computes the loss on a batch and puts its gradient into the weights' ``grad``.

    The computation is compiled where ``config.compile`` asks for it, and repeated as a CUDA graph
    where ``graphs`` allows it. Where compiling fails, the computation continues uncompiled.

    Args:
        teacher: The frozen teacher.
        student: The student, on the teacher's device.
        imitation: The term for feature maps, or None.
        config: How the student is trained.
        precision: Number format of both networks; the loss is always float32.
        graphs: Whether a compiled computation on a GPU may become a CUDA graph.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        imitation: Imitation | None,
        config: DistillationConfig,
        precision: Precision,
        graphs: bool,
    ) -> None:
        self._teacher, self._student = teacher, student
        self._imitation, self._config = imitation, config
        self._space = teacher.space()
        self._processes = own_share().of
        self._bfloat16 = precision == "bfloat16"
        self._layout = torch.channels_last if self._bfloat16 else torch.contiguous_format
        self._compare = compiled_compare() if config.compile else compare
        self._perturb = compiled_perturb() if config.compile else perturb
        on_gpu = teacher.device.type == "cuda"
        self._graphs = Graphs() if config.compile and graphs and on_gpu else None
        self._may_fail_to_compile = config.compile

    def compute(self, images: Tensor, distances: Tensor, seed: int) -> Comparison:
        """Compute the loss of one batch and its gradient.

        Args:
            images: Augmented images ``[B, C, H, W]`` in fixed units (:class:`ImageSpace`).
            distances: How far each image moves, ``[B, 1, 1, 1]``, see :func:`perturb`.
            seed: Seed of the random layers, such as dropout.

        Returns:
            The loss, the student's logits and the teacher's logits. The next call may overwrite
            these tensors.
        """
        seed_all(seed)
        if not self._may_fail_to_compile:
            return self._run(images, distances)
        self._may_fail_to_compile = False
        before = copy.deepcopy(self._student.state_dict())
        try:
            return self._run(images, distances)
        except Exception as error:
            log.warning(
                "the student does not compile on this machine and is trained uncompiled: %s",
                explain_compile_error(error),
            )
            # BatchNorm may have included this batch in its statistics before the error.
            self._student.load_state_dict(before)
            self._compare, self._perturb, self._graphs = compare, perturb, None
            seed_all(seed)
            return self._run(images, distances)

    def _run(self, images: Tensor, distances: Tensor) -> Comparison:
        if self._graphs is None:
            return self._backward(images, distances)
        return self._graphs.run(self._backward, images, distances)

    def _backward(self, images: Tensor, distances: Tensor) -> Comparison:
        if self._config.adversarial:
            images = self._perturb_some(images, distances)
        if self._imitation is not None:
            self._imitation.forget()
        loss, logits, target = self._evaluate(images, self._imitation)
        self._student.zero_grad(set_to_none=True)
        if self._imitation is not None:
            self._imitation.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach(), logits.detach(), target

    def _perturb_some(self, images: Tensor, distances: Tensor) -> Tensor:
        """Move every fourth image, or two of four, to where the networks differ more."""
        whole = len(images) * self._processes
        every = EVERY if whole > EVERY else 2  # BatchNorm needs two images.
        chosen = images[::every].clone().requires_grad_()
        weights = [weight for weight in self._student.parameters() if weight.requires_grad]
        try:
            # Only the images need a gradient here.
            for weight in weights:
                weight.requires_grad_(False)
            loss, _, _ = self._evaluate(chosen, None)
            (gradient,) = torch.autograd.grad(loss, chosen)
        finally:
            # After a compile error the caller tries again and needs the weights' gradients.
            for weight in weights:
                weight.requires_grad_(True)
        images = images.clone()
        images[::every] = self._perturb(chosen.detach(), gradient, distances[::every])
        return images

    def _evaluate(self, images: Tensor, imitation: Imitation | None) -> Comparison:
        images = self._space.network_input(images).contiguous(memory_format=self._layout)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._bfloat16):
            return self._compare(
                self._teacher.network,
                self._student,
                images,
                self._config.temperature,
                imitation,
                self._config.imitation,
            )
