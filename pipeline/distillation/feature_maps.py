"""Feature maps of the teacher that the student imitates in addition to the logits.

The loss is that of FitNets (Romero et al., ICLR 2015), applied to each size of feature map that
both networks have.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError

Size = tuple[int, int]
Maps = dict[Size, Tensor]


class FeatureMaps:
    """Records the last feature map ``[B, C, H, W]`` of each size in a network's forward pass.

    Use the object as a context manager: hooks record inside the ``with`` block only.

    Args:
        network: Network to observe.
        images: Images ``[B, C, H, W]`` for one forward pass, which finds the layers.

    Attributes:
        channels: Number of channels of each recorded size ``(height, width)``.

    Example::

        maps = FeatureMaps(network, images)
        with maps:
            network(images)
            last = maps.take()  # {(32, 32): Tensor, (16, 16): Tensor, ...}
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self._layers = _last_of_each_size(network, images)
        self.channels = {size: channels for size, (_, channels) in self._layers.items()}
        self._recorders = {size: self._recorder(size) for size in self._layers}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._maps: Maps = {}

    def __enter__(self) -> FeatureMaps:
        self._handles = [
            layer.register_forward_hook(self._recorders[size])
            for size, (layer, _) in self._layers.items()
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._maps = {}

    def take(self) -> Maps:
        """Return the maps of the last forward pass, and forget them."""
        maps, self._maps = self._maps, {}
        return maps

    def _recorder(self, size: Size) -> Callable[[nn.Module, Any, Tensor], None]:
        def record(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            height, width = output.shape[-2:]
            # One layer may be called several times, with maps of several sizes.
            if (height, width) == size:
                self._maps[size] = output

        return record


class Imitation(nn.Module):
    """The term ``R_imitate``: relative error of the student's feature maps.

    For each size ``l`` that both networks have, and for each image,
    ``||r_l(s_l) - t_l||^2 / ||t_l||^2``; the term is the mean over images and sizes. ``s_l`` and
    ``t_l`` are the maps of student and teacher. ``r_l`` is a learned 1x1 convolution where the
    numbers of channels differ, and the identity where they are equal. FitNets (Romero et al., ICLR
    2015) has the same term for one layer, without the denominator.

    Args:
        teacher: Recorder of the teacher's maps.
        student: Recorder of the student's maps.

    Raises:
        UserError: The networks have no common size of feature map.

    Example::

        maps = FeatureMaps(teacher, images), FeatureMaps(student, images)
        imitation = Imitation(*maps)
        with maps[0], maps[1]:
            teacher(images), student(images)
            loss = imitation()
    """

    def __init__(self, teacher: FeatureMaps, student: FeatureMaps) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student
        self.sizes = [size for size in student.channels if size in teacher.channels]
        if not self.sizes:
            raise UserError(
                "the student has no feature map of a size that the teacher has: set "
                "distillation.imitation to 0, or choose another student"
            )
        pairs = [(student.channels[size], teacher.channels[size]) for size in self.sizes]
        self.connectors = nn.ModuleList(
            nn.Identity() if own == wanted else nn.Conv2d(own, wanted, 1) for own, wanted in pairs
        )

    def forget(self) -> None:
        """Drop maps that were recorded outside of a training step."""
        self.teacher.take()
        self.student.take()

    def forward(self) -> Tensor:
        """Return the term, a scalar, for the last forward pass of both networks."""
        targets, maps = self.teacher.take(), self.student.take()
        errors = []
        for size, connect in zip(self.sizes, self.connectors, strict=True):
            target = targets[size].float()
            error = _sums((connect(maps[size]).float() - target).square())
            errors.append(error / _sums(target.square()).clamp_min(1e-6))
        return torch.stack(errors).mean()


def _sums(values: Tensor) -> Tensor:
    """Sum the values of each image. In this order compiled kernels for a CPU are fast."""
    return values.sum((2, 3)).sum(1)


def _last_of_each_size(network: nn.Module, images: Tensor) -> dict[Size, tuple[nn.Module, int]]:
    """Find the module that outputs the last map of each size, and its number of channels.

    One forward pass in eval mode finds them. Among nested modules the outermost counts. An output
    of one pixel is not a map.
    """
    layers: dict[Size, tuple[nn.Module, int]] = {}

    def record(layer: nn.Module, inputs: Any, output: object) -> None:
        if layer is not network and isinstance(output, Tensor) and output.ndim == 4:
            channels, height, width = output.shape[1:]
            if height * width > 1:
                layers[height, width] = layer, channels

    handles = [layer.register_forward_hook(record) for layer in network.modules()]
    training = network.training
    with torch.no_grad():
        network.eval()(images)
    network.train(training)
    for handle in handles:
        handle.remove()
    return layers
