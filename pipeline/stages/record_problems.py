"""Compare the record of a shard with its plan, its spec and its rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.dataset.plan import Batch, ShardPlan
from pipeline.dataset.records import ShardRecord
from pipeline.dataset.row_files import Row
from pipeline.inversion.batch_parts import partitions
from pipeline.storage import digest_bytes, digest_json
from pipeline.synthesis.rows import class_counts, mean_answers
from pipeline.synthesis.shard_states import Found


def record_problems(found: Found, record: ShardRecord) -> Iterator[str]:
    """What of the record differs from the shard's plan and from today's spec."""
    spec, shard = found.spec, found.shard
    if digest_json(record.spec) != record.spec_sha256:
        yield "its record contradicts itself: the digest of its spec is another"
    if record.spec_sha256 != digest_json(spec):
        old = {key for key in spec if digest_json(spec[key]) != digest_json(record.spec.get(key))}
        names = ", ".join(sorted(old - {"keys"} or old)) or "its spec"
        yield f"stale: {names} changed since it was made"
    elif found.state != "complete":
        yield "a file is missing or has another size"
    facts = {"round": shard.round, "first": shard.first, "images": len(shard.labels)}
    yield from _differing(record, facts)
    if spec["precision"] not in ("auto", record.precision):
        yield f"its record says precision {record.precision}, its spec {spec['precision']}"
    version = record.versions.get("torch")
    if version is not None and version.partition("+")[0] != record.spec.get("torch"):
        yield "its record names another version of torch than its spec"


def summary_problems(record: ShardRecord, shard: ShardPlan, rows: Sequence[Row]) -> list[str]:
    """What the record says of the rows and they do not: counts and means."""
    said = mean_answers(rows)
    facts: dict[str, Any] = {
        "class_counts": {} if said["agreement"] is None else class_counts(shard),
        "agreement": said["agreement"],
        "replaced": _counts(rows, "replaced"),
        "flaws": _counts(rows, "flaw"),
    }
    problems = list(_differing(record, facts))
    if not _close(record.confidence, said["confidence"]):
        problems.append("its record's confidence is not the mean of its rows")
    return problems


def _close(left: float | None, right: float | None) -> bool:
    """Whether two means are equal up to rounding. Without labels both are None."""
    return left is right if left is None or right is None else abs(left - right) <= 1e-5


def executed_batches(shard: ShardPlan, record: ShardRecord) -> list[Batch] | None:
    """The batches that were optimised together, which may be parts of the planned ones.

    Returns:
        The batches in the order of their images, or None where the sizes in the record are no
        division of the planned batches.
    """
    executed: list[Batch] = []
    for batch in shard.batches:
        place = len(executed)
        for parts in partitions(batch):
            sizes = [part.size for part in parts]
            if record.batches[place : place + len(parts)] == sizes:
                executed += parts
                break
        else:
            return None
    return executed if len(executed) == len(record.batches) else None


def changed_files(record: ShardRecord, contents: Mapping[str, bytes]) -> Iterator[str]:
    """The names of a shard's files that are missing or have other bytes than were recorded."""
    for name, facts in record.files.items():
        if name not in contents or digest_bytes(contents[name]) != facts["sha256"]:
            yield name


def _differing(record: ShardRecord, facts: Mapping[str, Any]) -> Iterator[str]:
    for name, value in facts.items():
        if getattr(record, name) != value:
            said = json.dumps(getattr(record, name))[:80]
            text = name.replace("_", " ")
            yield f"its {text} are not the recorded ones: its record says {said}"


def _counts(rows: Sequence[Row], column: str) -> dict[str, int]:
    return dict(Counter(row[column] for row in rows if row[column] is not None))
