"""Training of classifiers on real CIFAR-10 images, in minutes on a GPU that holds all images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.pieces import Pieces
from pipeline.dataset.plan import derive_seed
from pipeline.dataset.stream import ordered_batches
from pipeline.device.cuda_graphs import Graphs
from pipeline.storage import replacing
from pipeline.teachers.preprocessing import Preprocessing

CHECKPOINT_EVERY = 5  # Epochs. A killed call loses at most so many.


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """SGD with Nesterov momentum, at a rate that rises for ``rise`` of all steps and falls to zero.

    Labels are not smoothed, because students learn from a teacher's logits of the wrong classes
    (Mueller, Kornblith and Hinton 2019).
    """

    epochs: int = 80
    batch: int = 256
    rate: float = 0.2
    rise: float = 0.15
    weight_decay: float = 5e-4
    smoothing: float = 0.0
    shift: int = 4
    hole: int = 8
    compiled: bool = True
    bfloat16: bool = True


def read_images(tars: Sequence[Path], device: torch.device) -> tuple[Tensor, Tensor]:
    """Read all images of tars, uint8 ``[N, C, H, W]``, and their labels, to the device."""
    pixels, labels = zip(*ordered_batches(tars, 1000), strict=True)
    return torch.cat(pixels).to(device), torch.cat(labels).to(device)


def train(
    network: nn.Module,
    preprocessing: Preprocessing,
    real: tuple[Tensor, Tensor],
    recipe: Recipe,
    checkpoint: Path,
    pieces: Pieces,
) -> None:
    """Train ``network`` on the device of ``real``, from ``checkpoint`` if it exists.

    Raises:
        OutOfTime: The time budget is used up. The checkpoint holds all finished epochs.
    """
    network.to(real[0].device, memory_format=_layout(recipe))  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        _groups(network, recipe), lr=recipe.rate, momentum=0.9, nesterov=True
    )
    first = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
    function: Callable[[Tensor], Tensor] = network
    if recipe.compiled:
        function = torch.compile(network, dynamic=False)

    def differentiate(images: Tensor, labels: Tensor) -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.bfloat16):
            logits = function(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()

    step: Callable[[Tensor, Tensor], None] = differentiate
    if recipe.compiled and real[0].is_cuda:
        step = functools.partial(Graphs().run, differentiate)
    for epoch in range(first, recipe.epochs):
        network.train()
        _epoch(step, optimizer, preprocessing, real, recipe, epoch)
        done = epoch + 1
        if done < recipe.epochs and (pieces.over or done % CHECKPOINT_EVERY == 0):
            with replacing(checkpoint) as file:
                parts = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({"epoch": done, **parts}, file)
            pieces.check()
    network.eval()


def rate(recipe: Recipe, done: float) -> float:
    """Return the learning rate after the share ``done`` of all steps."""
    return recipe.rate * min(done / recipe.rise, (1 - done) / (1 - recipe.rise))


def augmented(pixels: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Shift each image by up to ``shift`` pixels, mirror half of them, and cut a grey hole."""
    count, _, height, width = pixels.shape
    device = pixels.device

    def drawn(most: int) -> Tensor:
        return torch.randint(0, most, (count, 1), generator=generator, device=device)

    shift = recipe.shift
    padded = F.pad(pixels.float(), (shift,) * 4, mode="reflect").to(torch.uint8)
    rows = drawn(2 * shift + 1) + torch.arange(height, device=device)
    columns = drawn(2 * shift + 1) + torch.arange(width, device=device)
    columns = torch.where(drawn(2) == 1, columns.flip(1), columns)
    index = torch.arange(count, device=device)[:, None, None]
    # Indices on both sides of a slice put the channels last, which is also the wanted layout.
    moved = padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if recipe.hole:
        hole = _hole(drawn(height), height, recipe.hole)[:, None, :, None]
        hole = hole & _hole(drawn(width), width, recipe.hole)[:, None, None, :]
        moved = moved.masked_fill(hole, 120)  # Nearly the mean of all pixels.
    return moved


def accuracy(
    network: nn.Module, preprocessing: Preprocessing, real: tuple[Tensor, Tensor]
) -> float:
    """Compute the share of images that ``network`` assigns to their label."""
    network.eval()
    with torch.no_grad():
        answers = [network(preprocessing.normalise(part)).argmax(1) for part in real[0].split(1000)]
    return float((torch.cat(answers) == real[1]).double().mean())


def _epoch(
    differentiate: Callable[[Tensor, Tensor], None],
    optimizer: torch.optim.SGD,
    preprocessing: Preprocessing,
    real: tuple[Tensor, Tensor],
    recipe: Recipe,
    epoch: int,
) -> None:
    """Train one epoch, whose random choices depend on its number alone.

    A smaller last batch is left out.
    """
    device, labels = real[0].device, real[1]
    generator = torch.Generator(device).manual_seed(derive_seed(0, epoch))
    images = augmented(real[0], recipe, generator)
    order = torch.randperm(len(labels), generator=generator, device=device)
    steps = max(1, len(labels) // recipe.batch)
    for step, index in enumerate(order.split(recipe.batch)[:steps]):
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, (epoch + (step + 1) / steps) / recipe.epochs)
        batch = preprocessing.normalise(images[index])
        batch = batch.contiguous(memory_format=_layout(recipe))
        differentiate(batch, labels[index])
        optimizer.step()


def _layout(recipe: Recipe) -> torch.memory_format:
    """Choose channels-last for bfloat16, where it is fast, and the default layout for float32.

    In float32 on AVX2, oneDNN 3.12's gradient of a strided 1x1 convolution of fewer than 8 channels
    writes outside of its memory (oneDNN issue 6035).
    """
    return torch.channels_last if recipe.bfloat16 else torch.contiguous_format


def _hole(centre: Tensor, length: int, side: int) -> Tensor:
    """Return ``[N, length]``: whether a place lies within ``side`` around each of ``[N, 1]``."""
    start = centre - side // 2
    place = torch.arange(length, device=centre.device)
    return (place >= start) & (place < start + side)


def _groups(network: nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """Apply weight decay to weights of inputs, and none to biases and BatchNorm."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
