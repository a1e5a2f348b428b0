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

from pipeline.config.networks import TeacherConfig
from pipeline.device.seeding import seed_all
from pipeline.device.threads import one_thread
from pipeline.errors import TryAgainError, UserError
from pipeline.teachers.libraries import split
from pipeline.teachers.networks import (
    build_network,
    digest_network,
    factory_digest,
    load_weights,
    public_source,
    weights_file,
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

    def expected(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of real images in the teacher's space, each ``[C]``: a guess.

        They are 0 and 1 where the normalisation was taken from data. No data in [0, 1] has a
        standard deviation much above 0.4, so that a larger ``std`` only sets a range: natural
        images, about 0.45 and 0.25, stand in then.
        """
        ranges = self.std.flatten() > 0.4
        mean = torch.where(ranges, (0.45 - self.mean.flatten()) / self.std.flatten(), 0.0)
        deviation = torch.where(ranges, 0.25 / self.std.flatten(), 1.0)
        return mean, deviation.square()

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


@one_thread()
def load_teacher(config: TeacherConfig, device: torch.device, role: str = "teacher") -> Teacher:
    """Build, fill, freeze and check the teacher, or what ``role`` says, for errors.

    Raises:
        UserError: the source, weights, input or class count do not fit together.
    """
    with torch.random.fork_rng(devices=[]):
        seed_all(0)  # a factory's own random weights are then the same in every process
        network = build_network(config.source, config.arguments, role, config.weights)
    if config.weights is not None:
        path = weights_file(config.source, config.weights, role)
        if config.sha256 is not None:
            _check_file(path, config.sha256)
        load_weights(network, path, role)
    network.eval().requires_grad_(False)
    shape = (config.input.channels, config.input.height, config.input.width)
    check_classes(network, shape, config.classes, role)
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
        raise TryAgainError(
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
    """One forward pass of a blank image: the output must be logits ``[B, classes]``."""
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, *shape))
    except Exception as error:
        raise UserError(_refusal(network, shape, role, error)) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        kind = f"{logits.ndim} dimensions" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"the {role} must return logits [batch, classes], and returns {kind}: let its factory "
            "wrap it"
        )
    if logits.shape[1] != classes:
        raise UserError(
            f"teacher.classes is {classes}, but the {role} returns {logits.shape[1]} logits"
        )
    if not torch.isfinite(logits).all():
        raise UserError(f"the {role} answers a blank image with NaN or infinite logits")
    if classes > 1 and logits.min() >= 0 and (logits.sum(1) - 1).abs().max() < 1e-5:
        raise UserError(
            f"the {role} returns probabilities where logits are needed: leave its softmax out"
        )


def _refusal(network: nn.Module, shape: tuple[int, int, int], role: str, error: Exception) -> str:
    """Why a network does not take its input, in its own words where nothing plainer is known."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    if first is not None and first.in_channels != shape[0]:
        return (
            f"teacher.input.channels is {shape[0]}, but the first convolution of the {role} takes "
            f"{first.in_channels}"
        )
    text = str(error).strip().splitlines()
    return (
        f"the {role} cannot take images of teacher.input {shape[0]}x{shape[1]}x{shape[2]}: "
        f"{text[0] if text else type(error).__name__}"
    )


def _digest(config: TeacherConfig, network: nn.Module) -> str:
    """Changes with what the network computes; not with modules that its factory imports."""
    package = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}.get(
        split(config.source)[0]
    )
    facts = {
        "library": version(package) if package else None,
        "source": public_source(config.source),
        "arguments": config.arguments,
        "input": config.input.model_dump(mode="json", exclude={"interpolation"}),
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
