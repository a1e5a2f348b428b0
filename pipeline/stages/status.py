"""The status of a dataset: the states of its shards, the speed, and the time that is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.config.schema import Config
from pipeline.dataset.layout import record_name, shard_name
from pipeline.dataset.run_markers import read_markers
from pipeline.quantities import show_seconds
from pipeline.stages.recorded_teacher import recorded_teacher
from pipeline.storage import listing, location
from pipeline.synthesis.shard_states import ranges, survey
from pipeline.synthesis.staleness import MOST, stale_reasons
from pipeline.teachers.teacher import Teacher

RECENT = 64  # shards, of which the speed is measured
PAUSE = 3600.0  # seconds between two shards: only what came after such a pause counts


@dataclass(frozen=True, slots=True)
class Status:
    """The status of a dataset.

    Attributes:
        shards: the numbers of the shards of each state: ``complete``, ``running``, ``failed``,
            ``stale`` or ``missing``.
        errors: the error of each failed shard.
        speed: in images a second; None where fewer than two shards were made lately.
        images_left: the images of all shards that are not complete.
        reasons: why shards are stale, in words, with the numbers of the shards.
    """

    shards: dict[str, list[int]]
    errors: dict[int, str]
    speed: float | None
    images_left: int
    reasons: dict[str, list[int]] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float | None:
        """The time that the images left take at ``speed``, or None without a speed."""
        return self.images_left / self.speed if self.speed else None


def dataset_status(config: Config, teacher: Teacher | None = None) -> Status:
    """Find the status of a dataset from its records, their times and the markers.

    Nothing is changed, and no tar is read.

    Args:
        config: The parameters.
        teacher: The teacher. None: it is not compared with the records, only the records with the
            first of them, and none of its code is imported.
    """
    root = location(config.paths.dataset)
    files = listing(root)
    students = None
    if teacher is None:
        recorded = recorded_teacher(config, files)
        config, students = recorded.config, recorded.students
        digest, parts = recorded.teacher_digest, recorded.teacher_parts
    else:
        digest, parts = teacher.digest, teacher.parts
    markers = read_markers(root, files)
    shards: dict[str, list[int]] = defaultdict(list)
    reasons: dict[str, list[int]] = defaultdict(list)
    errors: dict[int, str] = {}
    finished: list[tuple[float, int]] = []
    left = 0
    for found in survey(config, digest, files=files, students=students):
        number, images = found.shard.number, len(found.shard.labels)
        if found.state == "complete":
            shards["complete"].append(number)
            finished.append((files[record_name(number)].modified, images))
            continue
        kind, text = markers.get(number, (found.state, ""))
        shards[kind].append(number)
        left += images
        if kind == "failed":
            errors[number] = text
        if kind == "stale":
            for reason in stale_reasons(found, parts):
                reasons[reason].append(number)
    return Status(dict(shards), errors, _speed(sorted(finished)), left, dict(reasons))


def describe_status(status: Status) -> Iterator[str]:
    """The status as lines of text."""
    for state in ("complete", "running", "failed", "stale", "missing"):
        numbers = status.shards.get(state, [])
        if numbers:
            yield f"{len(numbers)} {state}" + (
                "" if state == "complete" else f": {ranges(numbers)}"
            )
    for reason, numbers in list(status.reasons.items())[:MOST]:
        yield f"stale because {reason}: {ranges(numbers)}"
    if len(status.reasons) > MOST:
        yield f"stale for {len(status.reasons) - MOST} more reasons"
    for number, error in list(status.errors.items())[:3]:
        yield f"shard {shard_name(number)} failed: {error}"
    if status.images_left and status.speed and status.seconds_left:
        yield (
            f"{status.speed:.3g} images/s lately, {status.images_left} images left: "
            f"{show_seconds(status.seconds_left)} at that speed"
        )


def _speed(finished: Sequence[tuple[float, int]]) -> float | None:
    """Images a second, from the times at which shards were finished and their images.

    Args:
        finished: sorted, oldest first.
    """
    recent = list(finished[-RECENT:])
    for index in range(len(recent) - 1, 0, -1):
        if recent[index][0] - recent[index - 1][0] > PAUSE:
            recent = recent[index:]
            break
    if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
        return None
    images = sum(images for _, images in recent[1:])  # the first shard only starts the clock
    return images / (recent[-1][0] - recent[0][0])
