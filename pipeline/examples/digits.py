"""The default teacher: a classifier of scikit-learn's digits, trained in a few seconds.

``python -m pipeline.examples.digits OUT`` trains the classifier on
1,257 of the 1,797 images and writes

    OUT/teacher.safetensors   the weights, which is all that later stages read
    OUT/heldout.tar           the other 540 images, which only the evaluation reads
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import trange

from pipeline.dataset.tar import Sample, write_tar
from pipeline.storage import replacing, write_bytes

MEAN, STD = 0.306, 0.377  # Of the training images in [0, 1]. params.yaml has the same numbers.
EPOCHS, BATCH = 40, 64


def classifier(width: int = 32, classes: int = 10) -> nn.Module:
    """Build the network: four 3x3 convolutions with BatchNorm, for 1x8x8 images.

    Args:
        width: Channels of the first two convolutions, which work at 8x8. The last two work at 4x4
            with twice as many channels.
        classes: Number of classes.
    """
    layers: list[nn.Module] = []
    for inputs, outputs, stride in (
        (1, width, 1),
        (width, width, 1),
        (width, 2 * width, 2),
        (2 * width, 2 * width, 1),
    ):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes)
    )


def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split the digits.

    Returns:
        Training images, training labels, held-out images and held-out labels. Images are uint8
        ``[N, 1, 8, 8]``.
    """
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    parts = train_test_split(
        pixels, digits.target, test_size=0.3, stratify=digits.target, random_state=0
    )
    images, heldout, labels, heldout_labels = (torch.from_numpy(part) for part in parts)
    return images, labels.long(), heldout, heldout_labels.long()


def train(images: Tensor, labels: Tensor) -> nn.Module:
    """Train the teacher with cross-entropy, random shifts of a pixel, and one cycle of SGD."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = classifier()
    optimizer = torch.optim.SGD(
        network.parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)
    inputs = (images.float() / 255 - MEAN) / STD
    for _ in trange(EPOCHS, desc="teacher", unit="epoch"):
        for index in torch.randperm(len(inputs)).split(BATCH)[: len(inputs) // BATCH]:
            top, left = torch.randint(0, 3, (2,)).tolist()
            padded = F.pad(inputs[index], (1, 1, 1, 1), value=-MEAN / STD)
            batch = padded[:, :, top : top + 8, left : left + 8]
            loss = F.cross_entropy(network(batch), labels[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def main(out: Path) -> None:
    """Train the teacher and write its weights and the held-out images into ``out``."""
    images, labels, heldout, heldout_labels = split()
    weights = train(images, labels).state_dict()
    samples = (
        Sample(f"{index:09d}", pixels.numpy(), int(label), {"cls": int(label)})
        for index, (pixels, label) in enumerate(zip(heldout, heldout_labels, strict=True))
    )
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "heldout.tar") as file:
        write_tar(file, samples)
    write_bytes(out / "teacher.safetensors", save(weights))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
