"""Find the shards of a dataset that must be made again."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config.schema import Config
from pipeline.dataset.plan import ShardPlan
from pipeline.stages.answers import Judges
from pipeline.stages.record_problems import changed_files
from pipeline.stages.shard_contents import read_shard
from pipeline.stages.shard_problems import shard_problems
from pipeline.storage import digest_json, listing, location
from pipeline.synthesis.shard_states import survey
from pipeline.teachers.teacher import Teacher


def damaged_shards(config: Config, teacher: Teacher) -> Iterator[ShardPlan]:
    """The plan of each shard that has a problem, after all of it was read again.

    Args:
        config: all parameters.
        teacher: the teacher.
    """
    root = location(config.paths.dataset)
    files, judges = listing(root), Judges(config, teacher, root)
    for found in survey(config, teacher.digest, files=files):
        if found.record is None:
            yield found.shard
        elif found.record.spec_sha256 == digest_json(found.spec):
            if shard_problems(found, files, judges).problems:
                yield found.shard
        else:  # stale, or made against a student that is damaged now and will be the same again
            images = len(found.shard.labels)
            contents = read_shard(root, found.shard.number, images, config)
            if any(changed_files(found.record, contents)):
                yield found.shard
