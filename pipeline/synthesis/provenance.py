"""The content of the provenance: what a dataset was made from, by digest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.config.schema import Config
from pipeline.config.teacher import TeacherConfig
from pipeline.redaction import redact
from pipeline.synthesis.entries import Entry
from pipeline.synthesis.spec import teacher_facts
from pipeline.teachers.checkpoints import WeightsFile
from pipeline.teachers.networks import public_source
from pipeline.teachers.teacher import Teacher

BUILDER = "dreamshard"


def provenance(
    config: Config, entries: Sequence[Entry], teacher: Teacher, others: Mapping[str, str]
) -> dict[str, Any]:
    """The provenance of the dataset: an in-toto statement with SLSA provenance v1.

    :class:`~pipeline.dataset.dataset.Dataset` reads its ``externalParameters``.

    Args:
        config: all parameters.
        entries: one for each shard, in order.
        teacher: the teacher. Its digest and those of its files of weights are written.
        others: the name and the SHA-256 of each file that belongs to no shard, without the
            provenance itself.
    """
    inputs = [
        {
            "name": "teacher",
            "uri": public_source(config.teacher.source),
            "digest": {"sha256": teacher.digest},
        },
        *_weights(config.teacher, teacher.weights),
    ]
    students = sorted({entry.student for entry in entries if entry.student})
    inputs += [
        {
            "name": "student",
            "uri": public_source(config.student.source),
            "digest": {"sha256": digest},
        }
        for digest in students
    ]
    subjects = [
        {"name": name, "digest": {"sha256": digest}}
        for entry in entries
        for name, digest in entry.digests[:-1]
    ]
    subjects += [
        {"name": name, "digest": {"sha256": digest}}
        for name, digest in (entry.digests[-1] for entry in entries)
    ]
    subjects += [
        {"name": name, "digest": {"sha256": digest}} for name, digest in sorted(others.items())
    ]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": "https://slsa.dev/provenance/v1",
        "subject": subjects,
        "predicate": {
            "buildDefinition": {
                "buildType": "dreamshard/synthesis/v1",
                "externalParameters": {
                    "teacher": teacher_facts(config),
                    "student": {
                        "source": public_source(config.student.source),
                        "arguments": redact(config.student.arguments),
                    },
                    "synthesis": _synthesis_facts(config),
                    "objective": asdict(config.objective),
                    "adaptive": config.adaptive.model_dump(mode="json"),
                },
                "resolvedDependencies": inputs,
                "internalParameters": {
                    "code": entries[0].code,
                    "versions": [json.loads(v) for v in sorted({e.versions for e in entries})],
                },
            },
            "runDetails": {"builder": {"id": BUILDER}},
        },
    }


def _synthesis_facts(config: Config) -> dict[str, Any]:
    """The section ``synthesis``, with the name of the preset where the file says ``auto``."""
    facts = config.synthesis.model_dump(mode="json")
    facts["objective"]["preset"] = config.preset
    facts["compile"] = config.compiled
    return facts


def _weights(config: TeacherConfig, files: Sequence[WeightsFile]) -> list[dict[str, Any]]:
    """The files of the teacher's weights, with the digests of the bytes that were read."""
    return [
        {
            "name": "weights of the teacher",
            "uri": redact(file.name),
            "digest": {"sha256": file.sha256},
            "annotations": {"license": config.license or "not stated by its source"},
        }
        for file in files
    ]
