"""Pass images through a network, and keep its logits, features and BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.dataset.stream import ordered_batches
from pipeline.errors import UserError
from pipeline.objective.bn_statistics import FeatureStatistics, LayerStatistics
from pipeline.objective.feature import feature_loss
from pipeline.storage import Location
from pipeline.teachers.predict import predict
from pipeline.teachers.teacher import Teacher

BATCH = 250


@dataclass(frozen=True, slots=True)
class Seen:
    """Images, and what one network computes from them. Row ``n`` of each belongs to image ``n``.

    Attributes:
        pixels: uint8 ``[N, C, H, W]``.
        labels: ``[N]``.
        logits: ``[N, K]``.
        features: ``[N, D]``, the input of the network's last linear layer.
    """

    pixels: Tensor
    labels: Tensor
    logits: Tensor
    features: Tensor


def look(
    teacher: Teacher, shards: Sequence[Location], statistics: MergedStatistics | None = None
) -> Seen:
    """Pass the images of tars through a network, in order.

    Args:
        teacher: the network.
        shards: tars, which any program may have written.
        statistics: collects the BatchNorm statistics of all images, where given.

    Raises:
        UserError: the tars hold no image, or images of another size than the network takes.
    """
    pixels, labels, logits, features = [], [], [], []
    with FeatureStatistics(teacher.network) as layers, _LastInput(teacher.network) as last:
        for batch, targets in ordered_batches(shards, BATCH, teacher.labelled):
            _check_shape(teacher, batch)
            answer = predict(teacher.network, teacher.preprocessing, batch, BATCH)
            if statistics is not None:
                statistics.add(layers.collect(), len(batch))
            layers.collect()
            pixels.append(batch)
            labels.append(targets)
            logits.append(answer)
            features.append(last.take(answer).float().cpu())
    if not labels:
        raise UserError(f"{shards[0]} holds no image")
    return Seen(torch.cat(pixels), torch.cat(labels), torch.cat(logits), torch.cat(features))


class MergedStatistics:
    """The BatchNorm statistics of many batches, merged into those of all their images."""

    def __init__(self) -> None:
        self._count = 0
        self._layers: list[tuple[Tensor, Tensor, LayerStatistics]] = []

    def add(self, layers: list[LayerStatistics], count: int) -> None:
        """Add the mean and the mean square of each layer, weighted with the number of images."""
        sums = [(x.mean.double(), x.variance.double() + x.mean.double().square()) for x in layers]
        old = self._layers or [(torch.zeros(()), torch.zeros(()), layer) for layer in layers]
        self._layers = [
            (first + count * mean, second + count * square, layer)
            for (first, second, _), (mean, square), layer in zip(old, sums, layers, strict=True)
        ]
        self._count += count

    def gap(self) -> float | None:
        """``R_feature`` of all images, normalised; None for a network without BatchNorm."""
        if not self._layers:
            return None
        merged = []
        for first, second, layer in self._layers:
            mean = first / self._count
            variance = (second / self._count - mean.square()).clamp_min(0)
            merged.append(
                LayerStatistics(
                    mean.float(), variance.float(), layer.running_mean, layer.running_variance
                )
            )
        return float(feature_loss(merged, "normalised"))


def _check_shape(teacher: Teacher, pixels: Tensor) -> None:
    if tuple(pixels.shape[1:]) != teacher.shape:
        raise UserError(
            f"the images are {tuple(pixels.shape[1:])}, but the network takes {teacher.shape}: "
            "measure a dataset of the network's input"
        )


class _LastInput:
    """Records the input of a network's last linear layer, or its logits where there is none."""

    def __init__(self, network: nn.Module) -> None:
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        self._layer = linear[-1] if linear else None
        self._seen: Tensor | None = None

    def __enter__(self) -> _LastInput:
        if self._layer is not None:
            self._handle = self._layer.register_forward_pre_hook(self._record)
        return self

    def __exit__(self, *error: object) -> None:
        if self._layer is not None:
            self._handle.remove()

    def take(self, logits: Tensor) -> Tensor:
        seen, self._seen = self._seen, None
        return logits if seen is None else seen.flatten(1)

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen = inputs[0].detach()
