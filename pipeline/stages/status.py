"""How far a dataset is, from its records, their times and the markers of the runs at work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.config.schema import Config
from pipeline.dataset.run_markers import read_markers
from pipeline.quantities import show_seconds
from pipeline.storage import listing, location
from pipeline.synthesis.shard_states import ranges, survey

RECENT, PAUSE = 64, 3600.0  # the speed is that of so many last shards, since the last long pause


@dataclass(frozen=True, slots=True)
class Status:
    """Shard numbers by state: ``complete``, ``running``, ``failed``, ``stale`` or ``missing``.

    ``errors`` says of the failed shards why; ``speed`` is in images a second, None where there is
    nothing to tell it from; ``images_left`` counts those of shards that are not complete.
    """

    shards: dict[str, list[int]]
    errors: dict[int, str]
    speed: float | None
    images_left: int

    @property
    def seconds_left(self) -> float | None:
        return self.images_left / self.speed if self.speed else None


def dataset_status(config: Config, teacher_digest: str) -> Status:
    """Read everything but the shards themselves; starts and changes nothing."""
    root = location(config.paths.dataset)
    files = listing(root)
    markers = read_markers(root, files)
    shards: dict[str, list[int]] = defaultdict(list)
    errors: dict[int, str] = {}
    finished: list[tuple[float, int]] = []
    left = 0
    for found in survey(config, teacher_digest, files=files):
        number, images = found.shard.number, len(found.shard.labels)
        if found.state == "complete":
            shards["complete"].append(number)
            finished.append((files[f"metadata/{number:06d}.json"].modified, images))
            continue
        kind, text = markers.get(number, (found.state, ""))
        shards[kind].append(number)
        left += images
        if kind == "failed":
            errors[number] = text
    return Status(dict(shards), errors, _speed(sorted(finished)), left)


def describe_status(status: Status) -> Iterator[str]:
    """The status in lines for a person."""
    for state in ("complete", "running", "failed", "stale", "missing"):
        numbers = status.shards.get(state, [])
        if numbers:
            yield f"{len(numbers)} {state}" + (
                "" if state == "complete" else f": {ranges(numbers)}"
            )
    for number, error in list(status.errors.items())[:3]:
        yield f"shard {number:06d} failed: {error}"
    if status.images_left and status.speed and status.seconds_left:
        yield (
            f"{status.speed:.3g} images/s lately, {status.images_left} images left: "
            f"{show_seconds(status.seconds_left)} at that speed"
        )


def _speed(finished: Sequence[tuple[float, int]]) -> float | None:
    """Images a second, from the times at which shards were finished, oldest first."""
    recent = list(finished[-RECENT:])
    for index in range(len(recent) - 1, 0, -1):
        if recent[index][0] - recent[index - 1][0] > PAUSE:
            recent = recent[index:]
            break
    if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
        return None
    images = sum(images for _, images in recent[1:])  # the first began before its time
    return images / (recent[-1][0] - recent[0][0])
