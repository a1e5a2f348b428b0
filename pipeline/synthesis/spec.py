"""The spec of a shard: everything that its bytes depend on."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from pipeline.config.schema import Config
from pipeline.dataset.plan import ShardPlan, plan_of
from pipeline.objective.presets import Objective
from pipeline.redaction import redact
from pipeline.source_digest import package_digest
from pipeline.storage import digest_bytes, digest_json
from pipeline.teachers.networks import public_source

# The folders and files whose code decides the bytes of a shard. A change in one of them makes every
# shard stale. Left out are `config` (a spec holds its values), `execution` and `errors`.
SHARD_CODE = (
    "dataset",
    "device",
    "inversion",
    "objective",
    "synthesis",
    "teachers",
    "local_files.py",
    "procedural.py",
    "redaction.py",
    "source_digest.py",
    "storage.py",
)


def round_spec(
    config: Config, round_: int, teacher_digest: str, student: str | None
) -> dict[str, Any]:
    """The part of the spec that all shards of a round share, with the prefix of the keys.

    Args:
        config: all parameters.
        round_: 0, or the adaptive round.
        teacher_digest: the digest of the teacher.
        student: the digest of the weights of the round's student; None where there is none.
    """
    spec = _round_facts(config, round_, teacher_digest, student)
    return {**spec, "keys": key_prefix(config, teacher_digest)}


def key_prefix(config: Config, teacher_digest: str) -> str:
    """The first part of every sample key: eight hexadecimal digits that tell datasets apart.

    It is a digest of the teacher and of the parameters that all shards of the first round share.
    The number of images and the adaptive rounds do not count, so that a dataset keeps its keys
    when it grows. Code and versions do not count, so that the same pixels give the same tar.

    Args:
        config: all parameters.
        teacher_digest: the digest of the teacher.
    """
    synthesis = config.synthesis
    table = synthesis.images_per_class
    facts = {
        **_round_facts(config, 0, teacher_digest, None),
        "code": None,
        "torch": None,
        "seed": synthesis.seed,
        "shard_size": synthesis.shard_size,
        "batch_size": synthesis.batch_size,
        "table": sorted(table.items()) if isinstance(table, dict) else None,
    }
    return digest_json(facts)[:8]


def _round_facts(
    config: Config, round_: int, teacher_digest: str, student: str | None
) -> dict[str, Any]:
    """What the bytes of a round's shards depend on. :func:`round_spec` adds the keys.

    A dataset without stored views has no fact about them, so that its keys stay what they were
    before there were any.
    """
    views = {"views": config.synthesis.views} if config.synthesis.views else {}
    return {
        "round": round_,
        "class_names": digest_json(config.teacher.class_names),
        "iterations": config.iterations,
        "attempts": config.synthesis.attempts,
        "min_confidence": config.synthesis.min_confidence,
        "confirmed": config.synthesis.confirmed,
        "max_similarity": config.synthesis.max_similarity,
        "keep": config.synthesis.keep,
        "warm": config.adaptive.warm if round_ else 0.0,
        "objective": asdict(round_objective(config, round_)),
        "soft_labels": config.synthesis.soft_labels,
        "captions": config.synthesis.captions,
        **views,
        "threads": config.synthesis.threads,
        "precision": config.synthesis.precision,
        "compile": config.compiled,
        "checkpointing": config.synthesis.checkpointing,
        "teacher": teacher_digest,
        "student": student,
        "code": package_digest(SHARD_CODE),
        "torch": torch.__version__.partition("+")[0],
    }


def parameters_digest(config: Config, teacher_digest: str) -> str:
    """The digest of all parameters that decide the bytes of the dataset.

    Runs with the same digest may make ranges of its shards at the same time.
    """
    plan, rounds = plan_of(config), range(config.adaptive.rounds + 1)
    return digest_json(
        {
            "rounds": [round_spec(config, round_, teacher_digest, None) for round_ in rounds],
            "labels": digest_bytes(plan.labels.astype("<i2").tobytes()),
            "plan": [plan.bounds, plan.batch_size, plan.keep, plan.seed],
            "student": [
                public_source(config.student.source),
                config.student.arguments,
                config.adaptive.training.model_dump(mode="json"),
            ]
            if config.adaptive.rounds
            else None,
        }
    )


def changed_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The keys of two specs whose values differ, as ``objective.tv``, in order of their names."""
    keys: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            keys += changed_keys(before, after, f"{prefix}{key}.")
        elif digest_json(before) != digest_json(after):
            keys.append(prefix + key)
    return keys


def shard_spec(of_round: dict[str, Any], shard: ShardPlan) -> dict[str, Any]:
    """The spec of a shard: everything that its bytes depend on.

    Args:
        of_round: the part that all shards of its round share, from :func:`round_spec`.
        shard: the plan of the shard.
    """
    return {
        **of_round,
        "shard": shard.number,
        "first": shard.first,
        "labels": digest_bytes(shard.labels.astype("<i2").tobytes()),
        "batches": [[batch.size, batch.seed] for batch in shard.batches],
    }


def round_objective(config: Config, round_: int) -> Objective:
    """The objective of a round. Only adaptive rounds have a student to compete with."""
    base = config.objective
    if not round_:
        return replace(base, compete=0.0)
    adaptive = config.adaptive
    return replace(
        base,
        compete=config.compete,
        compete_until=base.compete_until if adaptive.until is None else adaptive.until,
        masked=adaptive.masked,
        temperature=adaptive.temperature,
        confident=adaptive.confident,
    )


def row_facts(config: Config, spec: dict[str, Any]) -> dict[str, Any]:
    """The facts in the metadata of a shard's Parquet schema.

    Args:
        config: all parameters.
        spec: the spec of the shard.
    """
    facts = teacher_facts(config)
    # The spec does not cover these two, so the bytes of a shard must not depend on them.
    del facts["license"], facts["input"]["interpolation"]
    return {"spec": spec, "teacher": facts}


def teacher_facts(config: Config) -> dict[str, Any]:
    """The teacher's configuration without secrets and the paths of this machine."""
    facts = config.teacher.model_dump(mode="json", exclude={"weights", "sha256"})
    arguments = redact(facts["arguments"])
    return {**facts, "source": public_source(config.teacher.source), "arguments": arguments}
