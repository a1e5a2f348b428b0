"""A teacher small enough to be inverted in a blink, parameters for it, and what tests share."""

from __future__ import annotations

import copy
import json
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pipeline.config.schema import Config
from pipeline.dataset.tar import Sample, write_tar
from pipeline.execution.runner import open_runner
from pipeline.params import parse_params
from pipeline.stages.synthesize import synthesize
from pipeline.storage import digest_file, replacing
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.networks import build_network
from pipeline.teachers.teacher import Teacher

Params = dict[str, Any]

CLASSES, SIDE = 3, 8
MEAN, STD = 0.4, 0.3

FACTORY = textwrap.dedent(
    """
    from torch import nn


    def classifier(width: int = 6, classes: int = 3, dropout: float = 0.0) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(32 * width, classes),
        )


    class Segmenter(nn.Module):
        # No classifier: it returns a dictionary of maps.
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(1, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()
            )
            self.head = nn.Conv2d(6, 2, 1)
            self.body[1].running_mean += 0.2
            self.body[1].running_var *= 0.5

        def forward(self, images):
            features = self.body(images)
            return {"out": self.head(features), "maps": [features]}


    def segmenter() -> nn.Module:
        return Segmenter()


    def without_batchnorm(classes: int = 3) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    """
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a factory file and of the weights of a teacher that knows its blobs."""
    root = tmp_path_factory.mktemp("trained")
    (root / "tinynet.py").write_text(FACTORY)
    torch.manual_seed(0)
    network = build_network(f"{root / 'tinynet.py'}:classifier", {}, "teacher").train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for step in range(40):
        pixels, labels = blobs(30, seed=step)
        images = (torch.from_numpy(pixels).float() / 255 - MEAN) / STD
        loss = F.cross_entropy(network(images), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file(network.state_dict(), root / "teacher.safetensors")
    return root


@pytest.fixture
def tiny(tmp_path: Path, trained: Path) -> Params:
    """Parameters of a run of 20 images in 2 shards, everything it reads and writes in tmp_path."""
    for name in ("tinynet.py", "teacher.safetensors"):
        shutil.copy(trained / name, tmp_path)
    return parameters(tmp_path, tmp_path)


@pytest.fixture
def params(tiny: Params, tmp_path: Path) -> Path:
    return write_params(tiny, tmp_path / "params.yaml")


@pytest.fixture(scope="session")
def finished(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Params:
    """The same run, done once: for :func:`made` to copy, and not to be changed."""
    params = parameters(trained, tmp_path_factory.mktemp("finished"))
    make(params)
    return params


@pytest.fixture
def made(finished: Params, tmp_path: Path) -> Params:
    """Parameters like ``tiny``, of a dataset in tmp_path that is there already."""
    shutil.copytree(dataset(finished), tmp_path / "dataset")
    names = ("dataset", "students", "reports")
    return changed(finished, {f"paths.{name}": str(tmp_path / name) for name in names})


@pytest.fixture
def unlabelled(trained: Path, tmp_path: Path) -> Params:
    """As ``tiny``, with a segmenter as the teacher and ``teacher.labels: none``."""
    shutil.copy(trained / "tinynet.py", tmp_path)
    return without_labels(parameters(tmp_path, tmp_path))


@pytest.fixture(scope="session")
def unlabelled_dataset(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Params:
    """The run of ``unlabelled``, done once: not to be changed."""
    params = without_labels(parameters(trained, tmp_path_factory.mktemp("unlabelled")))
    make(params)
    return params


def without_labels(params: Params) -> Params:
    """The parameters of a segmenter. A teacher without labels needs no student."""
    source = params["teacher"]["source"].replace("classifier", "segmenter")
    teacher = {"labels": "none", "source": source, "weights": None}
    others = {name: params[name] for name in ("synthesis", "execution", "paths")}
    return {"teacher": {**teacher, "input": params["teacher"]["input"]}, **others}


def parameters(teacher: Path, root: Path) -> Params:
    """Parameters of a run with the teacher of one directory and its results in another."""
    training = {
        "steps": 6,
        "batch_size": 5,
        "temperature": 4.0,
        "learning_rate": 0.1,
        "warmup": 2,
        "shift": 1,
        "flip": False,
        "procedural": 0.0,
        "adversarial": 0.0,
        "precision": "float32",
        "compile": False,
        "shuffle": 8,
        "checkpoint_every": 2,
    }
    return {
        "teacher": {
            "source": f"{teacher / 'tinynet.py'}:classifier",
            "weights": str(teacher / "teacher.safetensors"),
            "classes": CLASSES,
            "class_names": ["top", "middle", "bottom"],
            "input": {
                "channels": 1,
                "height": SIDE,
                "width": SIDE,
                "mean": [MEAN],
                "std": [STD],
            },
        },
        "student": {"source": f"{teacher / 'tinynet.py'}:classifier", "arguments": {"width": 4}},
        "synthesis": {
            "images": 20,
            "shard_size": 12,
            "batch_size": 6,
            "iterations": 4,
            "precision": "float32",
            "compile": False,
            "objective": {"jitter": 1, "flip": False},
        },
        "adaptive": {"rounds": 0, "images": 6, "training": {**training, "steps": 4}},
        "distillation": {**training, "seeds": [0]},
        "execution": {"device": "cpu", "workers": 1, "retries": 0},
        "paths": {
            "dataset": str(root / "dataset"),
            "students": str(root / "students"),
            "reports": str(root / "reports"),
        },
    }


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``[N, 1, 8, 8]`` with a bright band whose height is the class, and the labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    pixels = rng.integers(0, 90, (count, 1, SIDE, SIDE))
    for image, label in zip(pixels, labels, strict=True):
        image[0, 3 * label : 3 * label + 2] += rng.integers(90, 150)
    return pixels.astype(np.uint8), labels


def write_blobs(path: Path, count: int) -> None:
    """A tar of real images for the evaluation."""
    pixels, labels = blobs(count, seed=1234)
    with replacing(path) as file:
        write_tar(
            file,
            (
                Sample(f"{index:09d}", image, int(label), {"cls": int(label)})
                for index, (image, label) in enumerate(zip(pixels, labels, strict=True))
            ),
        )


def changed(params: Params, changes: Mapping[str, Any]) -> Params:
    """A copy of ``params``, each ``section.key`` set to its new value."""
    result = copy.deepcopy(params)
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = result
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return result


def tree(root: Path) -> dict[str, str]:
    """Every file below ``root``: its relative path to the SHA-256 of its content."""
    return {
        str(path.relative_to(root)): digest_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def dataset(params: Params) -> Path:
    return Path(params["paths"]["dataset"])


def make(params: Params, only: range | None = None) -> list[int]:
    """Synthesize; the numbers of the shards that this call made."""
    config, teacher = load(params)
    with open_runner(config) as run:
        return [made.number for made in synthesize(config, teacher, run, only)]


def load(params: Params) -> tuple[Config, Teacher]:
    """The checked config and its teacher."""
    config = parse_params(params)
    return config, load_checked_teacher(config)


def write_params(params: Params, path: Path) -> Path:
    """``params`` as a YAML file (of which JSON is a part)."""
    path.write_text(json.dumps(params))
    return path
