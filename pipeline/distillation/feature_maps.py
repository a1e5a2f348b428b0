"""Feature maps that a student imitates beside the logits: which, and how far it is from them.

FitNets (Romero et al., ICLR 2015), for every size of feature map that both networks have.
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
    """Keeps the last feature map ``[B, C, H, W]`` of each size that a network puts out.

    ``take``, after a forward pass inside ``with``, returns and forgets them.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self._layers = _last_of_each_size(network, images)
        self.channels = {size: channels for size, (_, channels) in self._layers.items()}
        self._recorders = {size: self._recorder(size) for size in self._layers}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._seen: Maps = {}

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
        self._seen = {}

    def take(self) -> Maps:
        seen, self._seen = self._seen, {}
        return seen

    def _recorder(self, size: Size) -> Callable[[nn.Module, Any, Tensor], None]:
        def record(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            height, width = output.shape[-2:]
            if (height, width) == size:  # a layer may be used for several
                self._seen[size] = output

        return record


class Imitation(nn.Module):
    """``R_imitate``: how far the student's feature maps are from the teacher's.

    For each size ``l`` that both have, ``||r_l(s_l) - t_l||^2 / ||t_l||^2`` of each image; the mean
    over images and sizes. ``r_l`` is a learned 1x1 convolution where the numbers of channels
    differ, else nothing.

    Args:
        teacher, student: the maps of both.

    Raises:
        UserError: no size is common to both.
    """

    def __init__(self, teacher: FeatureMaps, student: FeatureMaps) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student
        self.sizes = [size for size in student.channels if size in teacher.channels]
        if not self.sizes:
            raise UserError("the student has no feature map of a size that the teacher has")
        pairs = [(student.channels[size], teacher.channels[size]) for size in self.sizes]
        self.connectors = nn.ModuleList(
            nn.Identity() if ours == theirs else nn.Conv2d(ours, theirs, 1)
            for ours, theirs in pairs
        )

    def forget(self) -> None:
        self.teacher.take()
        self.student.take()

    def forward(self) -> Tensor:
        """Of the last forward pass of both networks. A scalar."""
        theirs, ours = self.teacher.take(), self.student.take()
        errors = []
        for size, connect in zip(self.sizes, self.connectors, strict=True):
            target = theirs[size].float()
            error = (connect(ours[size]).float() - target).square().flatten(1).sum(1)
            errors.append(error / target.square().flatten(1).sum(1).clamp_min(1e-6))
        return torch.stack(errors).mean()


def _last_of_each_size(network: nn.Module, images: Tensor) -> dict[Size, tuple[nn.Module, int]]:
    """The module that puts out the last map of each size, and its channels.

    Found by one forward pass in eval mode. Of nested modules the outermost counts; one pixel is no
    map.
    """
    found: dict[Size, tuple[nn.Module, int]] = {}

    def record(layer: nn.Module, inputs: Any, output: object) -> None:
        if layer is not network and isinstance(output, Tensor) and output.ndim == 4:
            channels, height, width = output.shape[1:]
            if height * width > 1:
                found[height, width] = layer, channels

    handles = [layer.register_forward_hook(record) for layer in network.modules()]
    training = network.training
    with torch.no_grad():
        network.eval()(images)
    network.train(training)
    for handle in handles:
        handle.remove()
    return found
