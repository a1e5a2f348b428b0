"""What a plan will cost: arithmetic on shard sizes and on the speed of one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# A row of a Parquet file, measured on CIFAR-10; and a bound of what a shard takes beside its images
# and rows: record, frame of the Parquet file, padding of the tar (15 kB for the digits).
ROW_BYTES, SHARD_BYTES = 130, 35_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSpeed:
    """One device in one round: seconds before its first shard, then seconds an image.

    ``image`` is a finished image, its share of the shard's encoding and writing included;
    ``student`` is the training of the round's student on one device, none in round 0.
    """

    image: float
    start: float = 0.0
    student: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What ``devices`` devices need. Times are in seconds; ``busy`` is summed over devices."""

    devices: int
    images: int
    waves: int
    wall: float
    busy: float

    @property
    def held(self) -> float:
        """Device-seconds from the first image to the last, idle ones too: what is paid for."""
        return self.devices * self.wall

    @property
    def efficiency(self) -> float:
        """The share of the held time in which the devices compute."""
        return self.busy / self.held


def cost(rounds: Sequence[Sequence[int]], speeds: Sequence[RoundSpeed], devices: int) -> Cost:
    """The cost of shards of ``rounds[r][i]`` images at ``speeds[r]``, on like devices.

    All shards of a round but its last are of one size, so that the devices work in waves; the last
    wave may leave devices without work. A round waits for the one before it and for its student,
    which trains on one device while the others wait.
    """
    waves, wall, busy = 0, 0.0, 0.0
    for sizes, speed in zip(rounds, speeds, strict=True):
        images = sum(sizes)
        of_round = -(-len(sizes) // devices)
        # A smaller last shard shortens the last wave only where it has that wave to itself.
        alone = len(sizes) % devices == 1 or devices == 1
        longest = (of_round - 1) * sizes[0] + (sizes[-1] if alone else sizes[0])
        waves += of_round
        wall += speed.student + speed.start + longest * speed.image
        busy += speed.student + min(devices, len(sizes)) * speed.start + images * speed.image
    return Cost(devices=devices, images=sum(map(sum, rounds)), waves=waves, wall=wall, busy=busy)


def cost_table(
    bounds: Sequence[tuple[int, int, int]], speeds: Sequence[RoundSpeed], devices: Sequence[int]
) -> list[str]:
    """A line for each number of devices, for shards of ``(round, first, end)``."""
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
    """Bytes of a dataset whose images take ``sample`` bytes each in their tar."""
    return round(images * (sample + ROW_BYTES) + shards * SHARD_BYTES)


def show_bytes(count: float) -> str:
    """``1.4 GB``: decimal units, as storage is sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def show_seconds(seconds: float) -> str:
    """``2 d 3 h``, ``3 h 20 min``, ``12 min``: as exact as an estimate deserves."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
