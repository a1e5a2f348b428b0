"""The frozen teacher: its network, the normalisation of its input, and a digest of both."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from pipeline.config.teacher import TeacherConfig
from pipeline.device.seeding import restored_generators, seed_all
from pipeline.device.threads import one_thread
from pipeline.errors import TryAgainError
from pipeline.objective.presets import Units
from pipeline.storage import digest_json
from pipeline.teachers.checkpoints import WeightsFile
from pipeline.teachers.fixed_function import (
    check_classes,
    check_fixed_function,
    check_weights_exist,
)
from pipeline.teachers.networks import (
    LoadedWeights,
    build_network,
    digest_network,
    factory_digest,
    load_weights,
    public_source,
    weights_file,
)
from pipeline.teachers.preprocessing import ImageSpace, Preprocessing, image_space
from pipeline.teachers.registry import find_source
from pipeline.teachers.unlabelled import Unlabelled, check_statistics

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Teacher:
    """A trained network in eval mode, whose weights have no gradients.

    Attributes:
        network: From images ``[B, C, H, W]`` in the teacher's space to logits ``[B, classes]``. A
            teacher without labels is a :class:`~pipeline.teachers.unlabelled.Unlabelled`.
        preprocessing: Converts between pixels and the teacher's space.
        shape: Channels, height and width of an image.
        classes: Number of classes; 0 without labels.
        digest: SHA-256 of everything that decides the network's answers: of ``parts``.
        weights: The files of weights that were read, with the digests of the bytes read.
        parts: What decides the network's answers, mostly as digests, to say which of it changed.
    """

    network: nn.Module
    preprocessing: Preprocessing
    shape: tuple[int, int, int]
    classes: int
    digest: str
    weights: tuple[WeightsFile, ...] = ()
    parts: Mapping[str, str | None] = field(default_factory=dict, compare=False)  # not hashable

    @property
    def labelled(self) -> bool:
        """Whether the network is a classifier, so that images have labels."""
        return self.classes > 0

    def space(self, units: Units = "image") -> ImageSpace:
        """The units in which images are optimised and augmented, on the network's device."""
        return image_space(self.preprocessing, units)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.preprocessing.mean.device

    def to(self, device: torch.device) -> Teacher:
        """Move the network to another device; returns the teacher there."""
        return replace(
            self, network=self.network.to(device), preprocessing=self.preprocessing.to(device)
        )


@one_thread()
def load_teacher(config: TeacherConfig, device: torch.device, role: str = "teacher") -> Teacher:
    """Build the network, load its weights, freeze it and check its output.

    A process should call this once, by :func:`pipeline.synthesis.check.load_checked_teacher`, and
    hand the result on. Workers use :func:`cached_teacher`.

    Args:
        config: The section ``teacher`` or ``evaluation.verifier``.
        device: The device of the network.
        role: The section that error messages name.

    Raises:
        UserError: The source, weights, input and number of classes do not fit together, or the
            network is not a fixed function of one image.
    """
    teacher, weights = _load(config, role)
    if weights is not None and weights.note:
        level = logging.WARNING if weights.doubtful else logging.INFO
        log.log(level, "%s.weights %s: %s", role, config.weights, weights.note)
    if (origin := find_source(config.source)[0].origin(teacher.network)) is not None:
        origin.tell(f"{role}.source {config.source}")
    if teacher.labelled:
        check_classes(teacher.network, teacher.shape, config.classes, role)
        check_fixed_function(teacher.network, teacher.shape, teacher.preprocessing.normalise, role)
    else:
        check_statistics(teacher.network, teacher.shape, teacher.preprocessing.normalise)
    return teacher.to(device)


def _load(config: TeacherConfig, role: str) -> tuple[Teacher, LoadedWeights | None]:
    """The teacher on the CPU, before any of its answers was checked."""
    with restored_generators():
        seed_all(0)  # random weights of a factory are then equal in all processes
        network = build_network(config.source, config.arguments, role, config.weights)
    weights: LoadedWeights | None = None
    files: tuple[WeightsFile, ...] = ()
    if (origin := find_source(config.source)[0].origin(network)) is not None:
        files = origin.checked_files(network, config.source, config.sha256, role)
    if config.weights is not None:
        path = weights_file(config.source, config.weights, role)
        weights = load_weights(network, path, role, config.weights_key, config.sha256)
        files = _public_files(config.weights, weights.files)
    check_weights_exist(network, role)
    network.eval().requires_grad_(False)
    parts = _parts(config, network)  # before any forward pass, which may change a counter
    teacher = Teacher(
        network=network if config.labelled else Unlabelled(network).eval(),
        preprocessing=Preprocessing.of(config.input),
        shape=(config.input.channels, config.input.height, config.input.width),
        classes=config.classes,
        digest=digest_json(parts),
        weights=files,
        parts=parts,
    )
    return teacher, weights


def _public_files(weights: str, files: tuple[WeightsFile, ...]) -> tuple[WeightsFile, ...]:
    """The files under names without folders: their own, or the name of published weights."""
    if Path(weights).is_file():
        return files
    if len(files) == 1:
        return (replace(files[0], name=weights),)
    return tuple(replace(file, name=f"{weights}/{file.name}") for file in files)


@functools.lru_cache(maxsize=1)
def cached_teacher(section: str, digest: str, device: str) -> Teacher:
    """The teacher of a worker process, kept for the jobs that follow.

    Args:
        section: The section ``teacher`` as JSON.
        digest: The digest of the teacher that the run loaded.
        device: The worker's device.

    Raises:
        TryAgainError: The teacher's files changed since the run began.
    """
    loaded, _ = one_thread()(_load)(TeacherConfig.model_validate_json(section), "teacher")
    if loaded.digest != digest:
        raise TryAgainError(
            "the teacher's files changed since the run began: run the same command again"
        )
    return loaded.to(torch.device(device))


def _parts(config: TeacherConfig, network: nn.Module) -> dict[str, str | None]:
    """What decides the network's answers, without the modules that its factory imports."""
    kind, _ = find_source(config.source)
    found = {
        "library": kind.version(),
        "source": public_source(config.source),
        "arguments": digest_json(config.arguments),
        "input": digest_json(config.input.model_dump(mode="json", exclude={"interpolation"})),
        "weights": digest_network(network),
        "code": factory_digest(config.source, "teacher"),
    }
    if not config.labelled:
        found["labels"] = config.labels
    if (origin := kind.origin(network)) is not None:  # its files hold the architecture too
        found["files"] = digest_json([file.sha256 for file in origin.files])
    return found
