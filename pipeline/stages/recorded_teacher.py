"""The teacher that a dataset was made with, from its records: no code of a user is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

from pipeline.config.fields import AUTO
from pipeline.config.schema import Config
from pipeline.dataset.layout import Layout
from pipeline.dataset.plan import plan_of
from pipeline.dataset.record_files import records_of
from pipeline.dataset.records import ShardRecord, TeacherParts
from pipeline.objective.presets import PRESETS
from pipeline.storage import Stat, digest_file, exists, location
from pipeline.synthesis.spec import round_objective


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a spec needs of the teacher and of the round students, as the records have it.

    Attributes:
        config: The parameters. The preset ``auto`` is the one of the first record.
        teacher_digest: The teacher of the first record; empty without a record.
        teacher_parts: The parts of this teacher; None where the record does not hold them.
        students: The digest of the weights of each round student that exists.
    """

    config: Config
    teacher_digest: str
    teacher_parts: TeacherParts | None
    students: dict[int, str]


def recorded_teacher(config: Config, files: Mapping[str, Stat]) -> Recorded:
    """Take the teacher from the first sound record of a dataset.

    Shards of two teachers then still differ: those of the other one are stale.

    Args:
        config: The parameters.
        files: The listing of the dataset's folder.
    """
    root = location(config.paths.dataset)
    sound = (record for _, record, _ in records_of(root, range(len(plan_of(config))), files))
    first = next(filter(None, sound), None)
    if config.synthesis.objective.preset == AUTO:
        name = _preset(config, first)
        config = config.with_fitting_preset(lambda: name)
    paths = {n: Layout(root).student(n) for n in range(1, config.adaptive.rounds + 1)}
    return Recorded(
        config,
        first.spec.get("teacher", "") if first else "",
        first.teacher_parts if first else None,
        {number: digest_file(path) for number, path in paths.items() if exists(path)},
    )


def _preset(config: Config, record: ShardRecord | None) -> str:
    """The preset whose objective the record has. Any other one makes its shard stale."""
    if record is not None:
        wanted = json.dumps(record.spec.get("objective"), sort_keys=True)
        for name in PRESETS:
            named = config.with_fitting_preset(partial(str, name))
            chosen = round_objective(named, record.round)
            if json.dumps(asdict(chosen), sort_keys=True) == wanted:
                return name
    return next(iter(PRESETS))
