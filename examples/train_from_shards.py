"""Train a student from shards with stored views, without the teacher and without dreamshard.

    python examples/train_from_shards.py 'data/synthetic/train/*.tar' NETWORK STEPS weights.pt

NETWORK is a function that builds the student, such as torchvision.models:resnet18. The student
takes images `(pixel / 255 - 0.45) / 0.25`. docs/consumers.md explains stored views. This script
needs webdataset, and PyTorch from 2.9 on for Muon.
"""

import glob
import math
import pkgutil
import sys
from itertools import chain, repeat
from typing import Any

import torch
import webdataset as wds
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import BatchSampler, RandomSampler


def read(tar: str, channels: int) -> list[tuple[Tensor, int, Tensor]]:
    """For each view of a shard: all images of the shard, the number of its image, and the view."""
    data = wds.WebDataset(tar, shardshuffle=False).decode("torchrgb", only=["png", "views.npy"])
    pictures, views = zip(*data.to_tuple("png", "views.npy"), strict=True)
    images = torch.stack(pictures)[:, :channels]
    return [(images, i, v) for i in range(len(images)) for v in torch.from_numpy(views[i]).float()]


def reflected(first: int, side: int) -> Tensor:
    return side - 1 - (side - 1 - (torch.arange(side) + first).abs()).abs()


def make_view(images: Tensor, index: int, view: Tensor) -> Tensor:
    partner, top, left, height, width, down, right, flip = view[:8].int().tolist()
    other, box = images[(index + partner) % len(images)], torch.zeros(images.shape[2:])
    box[top : top + height, left : left + width] = 1
    image = torch.where(box == 1, other, view[8] * images[index] + (1 - view[8]) * other)
    image = image[:, reflected(down, len(box))][..., reflected(right, box.shape[1])]
    return image.flip(-1) if flip else image


def train(network: nn.Module, tars: list[str], steps: int) -> None:
    views = [v for tar in tars for v in read(tar, next(network.parameters()).shape[1])]
    batches = BatchSampler(RandomSampler(views), min(128, len(views)), drop_last=True)
    first, *hidden, last = [weight for weight in network.parameters() if weight.ndim > 1]
    matrices = [nn.Parameter(weight.detach().flatten(1)) for weight in hidden]  # the same memory
    others = [first, last, *(weight for weight in network.parameters() if weight.ndim < 2)]
    muon = torch.optim.Muon(matrices, lr=0.03, momentum=0.9, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=0.006, betas=(0.9, 0.95), weight_decay=0.017)
    rise = min(100, 0.5 * steps)
    scale = [min((n + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * n / steps)) for n in range(steps)]
    parts: list[Any] = [muon, adam, *(LambdaLR(o, [*scale, 0].__getitem__) for o in (muon, adam))]
    for _, batch in zip(range(steps), chain.from_iterable(repeat(batches)), strict=False):
        inputs = torch.stack([make_view(*views[number]) for number in batch])
        logits = torch.stack([views[number][2][9:] for number in batch])
        error = network((inputs - 0.45) / 0.25) - logits
        loss = (error - error.mean(1, keepdim=True)).square().mean() / 2
        network.zero_grad()
        loss.backward()
        for matrix, weight in zip(matrices, hidden, strict=True):
            matrix.grad = weight.grad.flatten(1)  # type: ignore[union-attr]
        for part in parts:
            part.step()


if __name__ == "__main__":
    student = pkgutil.resolve_name(sys.argv[2])()
    train(student, sorted(glob.glob(sys.argv[1])), steps=int(sys.argv[3]))
    torch.save(student.state_dict(), sys.argv[4])
