"""Teachers of several families on Fashion-MNIST: train, invert with the defaults, distil, measure.

    python -m benchmarks.teachers.fashion DATA OUT vgg mobilenet convnext vit

``DATA`` is the folder of the four IDX ``.gz`` files; ``OUT`` keeps everything, and a second call
goes on from it. For each teacher it prints its accuracy, the share of the images that an
independent CNN (``--judge``) gives the intended label, and the accuracy of a student trained from
scratch on the images, of the architecture ``--student``. ``--images``, ``--steps`` and
``--epochs`` make it a smaller trial.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import trange

from benchmarks.teachers.grey_networks import NETWORKS
from pipeline.config.schema import Config
from pipeline.dataset.stream import ordered_batches
from pipeline.dataset.tar import Sample, write_tar
from pipeline.device.precision import has_bfloat16
from pipeline.device.threads import keep_memory
from pipeline.evaluation.accuracy import evaluate
from pipeline.execution.runner import open_runner
from pipeline.exit_codes import report_errors
from pipeline.params import parse_overrides, parse_params
from pipeline.reports.files import report_synthesis
from pipeline.stages.distill import distill_students
from pipeline.stages.synthesize import synthesize
from pipeline.storage import digest_json, replacing
from pipeline.synthesis.check import load_checked_teacher

MEAN, STD, BATCH = 0.286, 0.353, 128
JUDGE = "judge"
NAMES = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "boot"),
)


def read_split(data: Path, name: str) -> tuple[Tensor, Tensor]:
    """``[N, 1, 28, 28]`` uint8 and ``[N]`` int64 of ``train`` or ``t10k``."""
    pixels = gzip.decompress((data / f"{name}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((data / f"{name}-labels-idx1-ubyte.gz").read_bytes())[8:]
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 1, 28, 28).copy()
    return torch.from_numpy(images), torch.from_numpy(np.frombuffer(labels, np.uint8).copy()).long()


def train(name: str, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """AdamW, one cycle, small shifts and flips, bfloat16 where that is fast."""
    keep_memory()
    torch.manual_seed(0)
    network = NETWORKS[name]().train().to(memory_format=torch.channels_last)
    compiled = torch.compile(network)
    # In bfloat16 the gradient of a depthwise weight is slow on a CPU, and on some all of it.
    dense = not any(getattr(module, "groups", 1) > 1 for module in network.modules())
    bfloat16 = dense and has_bfloat16(torch.device("cpu"))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in trange(epochs, desc=name, unit="epoch", mininterval=20):
        for index in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            batch = (images[index].float() / 255 - MEAN) / STD
            shift = torch.randint(-2, 3, (2,)).tolist()
            batch = torch.roll(batch, shift, (2, 3))
            flipped = torch.rand(len(batch), 1, 1, 1) < 0.5
            batch = torch.where(flipped, batch.flip(3), batch)
            batch = batch.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = compiled(batch)
            loss = F.cross_entropy(logits.float(), labels[index], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def accuracy(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """The share of uint8 images that ``network`` gives their label."""
    right = total = 0
    with torch.no_grad():
        for pixels, labels in batches:
            answers = network((pixels.float() / 255 - MEAN) / STD).argmax(1)
            right, total = right + int((answers == labels).sum()), total + len(labels)
    return right / total


def pairs(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Batches of both."""
    return list(zip(images.split(500), labels.split(500), strict=True))


def weights(name: str, data: Path, out: Path, epochs: int) -> Path:
    """The trained weights of a network, made if they are not there."""
    path = out / f"{name}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        trained = train(name, *read_split(data, "train"), epochs).state_dict()
        save_file({key: value.contiguous() for key, value in trained.items()}, path)
    return path


def load(name: str, path: Path) -> nn.Module:
    network = NETWORKS[name]()
    network.load_state_dict(load_file(path))
    return network.eval()


def parameters(name: str, out: Path, options: argparse.Namespace) -> Config:
    """Defaults only: what a user has to say, and nothing tuned; then ``--set``. Students of other
    changes have a folder of their own."""
    changes = f"-{digest_json(sorted(options.set))[:8]}" if options.set else ""
    return parse_params(
        {
            "teacher": {
                "source": f"benchmarks.teachers.grey_networks:{name}",
                "weights": str(out / f"{name}.safetensors"),
                "classes": 10,
                "class_names": list(NAMES),
                "input": {
                    "channels": 1,
                    "height": 28,
                    "width": 28,
                    "mean": [MEAN],
                    "std": [STD],
                },
            },
            "student": {"source": f"benchmarks.teachers.grey_networks:{options.student}"},
            "synthesis": {"images": options.images, "shard_size": 1024},
            "distillation": {"steps": max(1, options.steps)},
            "evaluation": {"data": str(out / "test.tar")},
            "execution": {"workers": options.workers},
            "paths": {
                "dataset": str(out / name / "synthetic"),
                "students": str(out / name / f"students-{options.student}{changes}"),
                "reports": str(out / name / "reports"),
            },
        },
        overrides=parse_overrides(options.set),
    )


def measure(name: str, data: Path, out: Path, options: argparse.Namespace) -> str:
    """One line for one teacher."""
    path = weights(name, data, out, options.epochs)
    judge = load(options.judge, weights(options.judge, data, out, options.epochs))
    config = parameters(name, out, options)
    teacher = load_checked_teacher(config, "dataset", "reports")
    with open_runner(config, config.synthesis.threads) as run:
        made = synthesize(config, teacher, run)
    report_synthesis(config, made)
    shards = sorted((Path(config.paths.dataset) / "train").glob("*.tar"))
    agreed = accuracy(judge, list(ordered_batches(shards, 256)))
    right = accuracy(load(name, path), pairs(*read_split(data, "t10k")))
    line = f"{name} ({path.stat().st_size / 4e6:.2f} M parameters, {right:.2%} on real images): "
    line += f"a {options.judge} confirms {agreed:.1%} of {options.images} images"
    if not options.steps:
        return line
    with open_runner(config, config.distillation.threads) as run:
        distill_students(config, teacher, run)
    report = evaluate(config, teacher)
    return f"{line}; a {options.student} as student {report['student_accuracy']:.2%}"


def write_test(data: Path, out: Path) -> None:
    images, labels = read_split(data, "t10k")
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "test.tar") as file:
        write_tar(
            file,
            (
                Sample(f"{index:09d}", pixels.numpy(), int(label), {"cls": int(label)})
                for index, (pixels, label) in enumerate(zip(images, labels, strict=True))
            ),
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("teachers", nargs="+", choices=[n for n in NETWORKS if n != JUDGE])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=3000, help="of the student; 0 for none")
    parser.add_argument("--judge", choices=list(NETWORKS), default=JUDGE)
    parser.add_argument("--student", choices=list(NETWORKS), default=JUDGE)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--epochs", type=int, default=10, help="of each teacher")
    parser.add_argument("--workers", type=int, default=None)
    with report_errors() as outcome:
        options = parser.parse_args()
        if not (options.out / "test.tar").is_file():
            write_test(options.data, options.out)
        for name in options.teachers:
            sys.stdout.write(measure(name, options.data, options.out, options) + "\n")
            sys.stdout.flush()
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
