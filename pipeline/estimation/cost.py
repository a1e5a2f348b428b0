"""The cost of a plan, computed from shard sizes and the speed of one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.quantities import show_seconds

ROW_BYTES = 130  # One row of a Parquet file, measured on CIFAR-10.
# Upper bound for the record, the frame of the Parquet file and the padding of the tar, which take
# 15 kB for the digits.
SHARD_BYTES = 35_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSpeed:
    """The speed of one device in one round.

    Attributes:
        image: Seconds for each image, encoding and writing included.
        start: Seconds before the first shard, to load and compile.
        student: Seconds to train the round's student on one device; 0 in round 0.
    """

    image: float
    start: float = 0.0
    student: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of a plan on several devices.

    Attributes:
        devices: Number of devices.
        images: Number of images.
        waves: How many times all devices start a shard together.
        wall: Wall time in seconds.
        busy: Seconds in which devices compute, summed over devices.
    """

    devices: int
    images: int
    waves: int
    wall: float
    busy: float

    @property
    def held(self) -> float:
        """Device-seconds of the whole run, idle ones included. A provider charges these."""
        return self.devices * self.wall

    @property
    def efficiency(self) -> float:
        """Share of the held time in which devices compute, in [0, 1]."""
        return self.busy / self.held


def cost(rounds: Sequence[Sequence[int]], speeds: Sequence[RoundSpeed], devices: int) -> Cost:
    """Compute the cost of a plan on equal devices.

    All shards of a round have the same size, except a smaller last one, so that the devices work in
    waves. Some devices may be idle in the last wave. A round starts after the round before it and
    after its student, which trains on one device while the others wait.

    Args:
        rounds: Images of each shard, for each round.
        speeds: Speed of one device in each round.
        devices: Number of devices.

    Example::

        cost([[250] * 8], [RoundSpeed(image=0.02)], devices=4).wall  # 10.0 seconds
    """
    waves, wall, busy = 0, 0.0, 0.0
    for sizes, speed in zip(rounds, speeds, strict=True):
        images = sum(sizes)
        of_round = -(-len(sizes) // devices)
        # A smaller last shard shortens the last wave only if it is alone in that wave.
        alone = len(sizes) % devices == 1 or devices == 1
        longest = (of_round - 1) * sizes[0] + (sizes[-1] if alone else sizes[0])
        waves += of_round
        wall += speed.student + speed.start + longest * speed.image
        busy += speed.student + min(devices, len(sizes)) * speed.start + images * speed.image
    return Cost(devices=devices, images=sum(map(sum, rounds)), waves=waves, wall=wall, busy=busy)


def cost_table(
    bounds: Sequence[tuple[int, int, int]], speeds: Sequence[RoundSpeed], devices: Sequence[int]
) -> list[str]:
    """Format the cost on each number of devices as a table.

    Args:
        bounds: For each shard its round, its first image and the image after its last.
        speeds: Speed of one device in each round.
        devices: Numbers of devices, one line each.

    Returns:
        The lines, a head line first.
    """
    rounds = [
        [end - first for of_round, first, end in bounds if of_round == round_]
        for round_ in range(len(speeds))
    ]
    names = ("devices", "images/s", "waves", "wall time", "device-hours", "busy")
    lines = ["{:>8} {:>9} {:>6} {:>12} {:>13} {:>5}".format(*names)]
    for count in devices:
        estimate = cost(rounds, speeds, count)
        lines.append(
            f"{count:>8} {estimate.images / estimate.wall:>9.4g} {estimate.waves:>6} "
            f"{show_seconds(estimate.wall):>12} {estimate.held / 3600:>13.4g} "
            f"{estimate.efficiency:>5.0%}"
        )
    return lines


def dataset_bytes(images: int, shards: int, sample: float) -> int:
    """Estimate the bytes of a dataset whose images take ``sample`` bytes each in their tar."""
    return round(images * (sample + ROW_BYTES) + shards * SHARD_BYTES)


def show_bytes(count: float) -> str:
    """Write a number of bytes in decimal units, such as ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
