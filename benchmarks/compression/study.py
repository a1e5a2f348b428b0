"""What both studies share: their images, their training loop, and rows that are measured once."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.calibration.cifar10 import read, teacher_of
from benchmarks.calibration.rows import cell, gap
from pipeline.consumers.images import calibration_images
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.tar import Pixels
from pipeline.device.threads import use_threads
from pipeline.exporting.subset import choose
from pipeline.storage import replacing, write_json
from pipeline.teachers.predict import predict
from pipeline.teachers.teacher import Teacher

SOURCES = ("real", "synthetic", "noise")
CHECKPOINT_EVERY = 200  # steps
CHUNK = 500  # test images in a forward pass

Row = dict[str, float]


class Training(Protocol):
    """A network in training."""

    def step(self, number: int, pixels: Tensor) -> object:
        """Train on one batch, uint8 ``[B, C, H, W]``."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""


def take_steps(
    training: Training, pixels: Pixels, steps: int, batch: int, seed: int, checkpoint: Path
) -> None:
    """Take the steps that ``checkpoint`` does not hold yet. The images are shuffled by the seed."""
    first = 0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        first = saved["step"]
        training.load_state_dict(saved["training"])
    each = len(pixels) // batch  # batches of an epoch
    if not each:
        raise SystemExit(f"{len(pixels)} images are less than a batch of {batch}: lower --batch")
    for number in range(first, steps):
        epoch, place = divmod(number, each)
        order = np.random.default_rng([seed, epoch]).permutation(len(pixels))
        chosen = order[place * batch : (place + 1) * batch]
        training.step(number, torch.from_numpy(pixels[chosen]))
        if (number + 1) % CHECKPOINT_EVERY == 0:
            with replacing(checkpoint) as file:
                torch.save({"step": number + 1, "training": training.state_dict()}, file)


@dataclass(frozen=True, slots=True)
class Images:
    """The images of each source, and the real images that measure.

    Attributes:
        teacher: the network to compress.
        options: ``dataset``, ``real``, ``images`` and ``test`` of the command line.
    """

    teacher: Teacher
    options: argparse.Namespace

    def of(self, source: str, seed: int) -> Pixels:
        """Images of a source, uint8 ``[N, C, H, W]``, in balance; the seed draws them."""
        count = self.options.images
        if source == "synthetic":
            return calibration_images(Dataset(self.options.dataset), count, seed=seed).pixels
        if source == "noise":
            shape = (count, *self.teacher.shape)
            return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        pixels, labels = _train(self.options.real)
        return pixels[choose(labels.astype(np.int16), count, seed)]

    def accuracy(self, network: nn.Module) -> float:
        """Share of the real test images that the network gets right, in per cent."""
        pixels, labels = _test(self.options.real)
        tested = torch.from_numpy(pixels[: self.options.test])
        found = predict(network.eval(), self.teacher.preprocessing, tested, CHUNK).argmax(1)
        return round(100 * float((found.numpy() == labels[: self.options.test]).mean()), 2)


@functools.cache
def _train(real: Path) -> tuple[Pixels, Pixels]:
    """The real training images: all tars ``train-*.tar``."""
    parts = [read(tar) for tar in sorted(real.glob("train-*.tar"))]
    pixels, labels = zip(*parts, strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


@functools.cache
def _test(real: Path) -> tuple[Pixels, Pixels]:
    return read(real / "test-00000.tar")


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a study, in ``rows.json`` of a folder.

    Attributes:
        out: the folder.
        settings: everything that decides a row besides variant, source and seed.
    """

    out: Path
    settings: str

    def measure(
        self,
        variants: Sequence[str],
        sources: Sequence[str],
        seeds: Sequence[int],
        work: Callable[[str, str, int, Path], Row],
    ) -> None:
        """Measure the rows that ``rows.json`` lacks, and write each at once.

        Args:
            variants: what is compared, such as bit widths.
            sources: of :data:`SOURCES`.
            seeds: one row for each.
            work: gets the variant, the source, the seed and the checkpoint of a row.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            for variant in variants:
                for source in sources:
                    key = self._key(variant, source, seed)
                    if key in self.known():
                        continue
                    began, checkpoint = time.process_time(), self.out / f"{key}.checkpoint"
                    row = work(variant, source, seed, checkpoint)
                    spent = time.process_time() - began
                    sys.stderr.write(f"{key}: {row} ({spent:.0f} s of CPU time)\n")
                    write_json(self.out / "rows.json", {**self.known(), key: row})
                    checkpoint.unlink(missing_ok=True)

    def known(self) -> dict[str, Row]:
        """All rows that were measured."""
        path = self.out / "rows.json"
        return json.loads(path.read_bytes()) if path.is_file() else {}

    def table(self, variants: Sequence[str], seeds: Sequence[int], field: str) -> Iterator[str]:
        """Means of a field over the seeds, with the lowest and the highest, in Markdown."""
        known = self.known()
        yield f"| {field} | {' | '.join(SOURCES)} | synthetic - real | noise - real |"
        yield f"|---|{'---|' * (len(SOURCES) + 2)}"
        for variant in variants:
            found = {
                source: [
                    known[key][field]
                    for seed in seeds
                    if (key := self._key(variant, source, seed)) in known
                ]
                for source in SOURCES
            }
            cells = [cell(values) for values in found.values()]
            gaps = [gap(found[source], found["real"]) for source in ("synthetic", "noise")]
            yield f"| {variant} | {' | '.join(cells + gaps)} |"

    def _key(self, variant: str, source: str, seed: int) -> str:
        return f"{variant} {source} seed {seed}, {self.settings}"


def parser(text: str | None, steps: int, rate: float) -> argparse.ArgumentParser:
    """The options that both studies have.

    Args:
        text: the description of the study.
        steps: of the training, by default.
        rate: the highest learning rate, by default.
    """
    form = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=text, formatter_class=form)
    options.add_argument("out", type=Path, help="folder of rows.json; a second call continues")
    options.add_argument("--weights", type=Path, required=True, help="of the ResNet-20")
    options.add_argument("--dataset", type=Path, required=True, help="the synthetic dataset")
    options.add_argument("--real", type=Path, required=True, help="train-*.tar, test-00000.tar")
    options.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--images", type=int, default=5120)
    options.add_argument("--steps", type=int, default=steps)
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--rate", type=float, default=rate, help="highest learning rate")
    options.add_argument("--test", type=int, default=10_000, help="real test images")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    return options


def loaded(options: argparse.Namespace) -> Images:
    """The images of the study, with the teacher on its device."""
    use_threads(1)
    return Images(teacher_of(options.weights).to(torch.device(options.device)), options)


def settings(options: argparse.Namespace, *names: str) -> str:
    """The options that decide a row, as part of its key."""
    every = ("images", "steps", "batch", "rate", "test", *names)
    return ", ".join(f"{name} {getattr(options, name)}" for name in every)
