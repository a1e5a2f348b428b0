"""The frozen teacher: a network, the pixels it expects, and a digest of both."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.config import TeacherConfig
from pipeline.errors import UserError
from pipeline.sources import (
    build_network,
    digest_network,
    factory_digest,
    load_weights,
    public_source,
)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Between stored pixels (uint8) and the teacher's space, ``(pixel / 255 - mean) / std``.

    ``mean`` and ``std`` are ``[1, C, 1, 1]`` in float32.
    """

    mean: Tensor
    std: Tensor

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 ``[B, C, H, W]`` to float32 in the teacher's space."""
        return (pixels.to(torch.float32) / 255 - self.mean) / self.std

    def quantise(self, images: Tensor) -> Tensor:
        """The teacher's space to the nearest stored pixel, uint8."""
        return ((images * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def clamp(self, images: Tensor) -> Tensor:
        """Into the range that stored pixels can reach."""
        return torch.minimum(torch.maximum(images, -self.mean / self.std), self.highest)

    @property
    def highest(self) -> Tensor:
        return (1 - self.mean) / self.std

    def to(self, device: torch.device) -> Preprocessing:
        return Preprocessing(self.mean.to(device), self.std.to(device))


@dataclass(frozen=True, slots=True)
class Teacher:
    """A network in eval mode, without gradients for its weights, and what feeds it."""

    network: nn.Module
    preprocessing: Preprocessing
    shape: tuple[int, int, int]
    classes: int
    digest: str

    @property
    def device(self) -> torch.device:
        return self.preprocessing.mean.device


def load_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """Build, fill, freeze and check the teacher.

    Raises:
        UserError: the source, weights, input or class count do not fit together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a factory's own random weights are then the same in every process
        network = build_network(config.source, config.arguments, "teacher")
    if config.weights is not None:
        path = Path(config.weights)
        if config.sha256 is not None:
            _check_file(path, config.sha256)
        load_weights(network, path, "teacher")
    network.eval().requires_grad_(False)
    shape = (config.input.channels, config.input.height, config.input.width)
    check_classes(network, shape, config.classes)
    return Teacher(
        network=network.to(device),
        preprocessing=preprocessing(config).to(device),
        shape=shape,
        classes=config.classes,
        digest=_digest(config, network),
    )


@functools.lru_cache(maxsize=1)
def cached_teacher(section: str, digest: str, device: str) -> Teacher:
    """A worker serves many jobs with one teacher. ``section`` is its config as JSON."""
    loaded = load_teacher(TeacherConfig.model_validate_json(section), torch.device(device))
    if loaded.digest != digest:
        raise UserError(
            "the teacher is not the one that the run began with: run the same command again"
        )
    return loaded


def preprocessing(config: TeacherConfig) -> Preprocessing:
    """The teacher's normalisation, on the CPU."""
    mean, std = (
        torch.tensor(v, dtype=torch.float32) for v in (config.input.mean, config.input.std)
    )
    return Preprocessing(mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1))


def check_classes(
    network: nn.Module, shape: tuple[int, int, int], classes: int, role: str = "teacher"
) -> None:
    """One forward pass of a blank image: the output must be ``[B, classes]``."""
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, *shape))
    except Exception as error:
        text = str(error).strip().splitlines()
        raise UserError(
            f"the {role} cannot take images of teacher.input "
            f"{shape[0]}x{shape[1]}x{shape[2]}: {text[0] if text else type(error).__name__}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UserError(f"the {role} must return logits [batch, classes]")
    if logits.shape[1] != classes:
        raise UserError(
            f"teacher.classes is {classes}, but the {role} returns {logits.shape[1]} logits"
        )


def _digest(config: TeacherConfig, network: nn.Module) -> str:
    """Changes with anything that could change what the network computes."""
    library = version("torchvision") if config.source.startswith("torchvision:") else None
    facts = {
        "library": library,
        "source": public_source(config.source),
        "arguments": config.arguments,
        "input": config.input.model_dump(mode="json"),
        "weights": digest_network(network),
        "code": factory_digest(config.source, "teacher"),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise UserError(f"teacher.weights: there is no file {path}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.lower():
        raise UserError(
            f"teacher.weights {path} has sha256 {found}, teacher.sha256 says {expected}"
        )
