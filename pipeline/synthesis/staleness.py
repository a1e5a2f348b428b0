"""Say in words why a shard is stale: which part of its spec changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.dataset.records import TeacherParts
from pipeline.synthesis.shard_states import Found
from pipeline.synthesis.spec import changed_keys

MOST = 5  # reasons in one sentence
_ADAPTIVE = {
    *("warm", "objective.compete", "objective.compete_until", "objective.masked"),
    *("objective.temperature", "objective.confident"),
}
_PLAN = {"round", "shard", "first", "labels", "batches"}
_TEACHER = {
    "weights": "the teacher's weights changed",
    "code": "the code of the teacher's factory changed",
    "arguments": "teacher.arguments changed",
    "input": "teacher.input changed",
    "files": "the teacher's ONNX file changed",
}


def stale_reasons(found: Found, teacher: TeacherParts | None) -> list[str]:
    """Why a shard is stale, in words; empty where it is not.

    Args:
        found: The shard.
        teacher: The parts of today's teacher; None where they are not known.
    """
    if found.state != "stale":
        return []
    return changes(found, teacher) or ["a file of the shard is missing or has another size"]


def changes(found: Found, teacher: TeacherParts | None) -> list[str]:
    """What of the spec of a shard changed since it was made, in words.

    Args:
        found: The shard. One without a record has no changes.
        teacher: The parts of today's teacher; None where they are not known.
    """
    if found.record is None:
        return []
    old, new = found.record.spec, found.spec
    names = changed_keys(old, new)
    reasons = []
    if "teacher" in names:
        reasons += _teacher_changes(found.record.teacher_parts, teacher)
    if "student" in names:
        reasons.append(f"the student of round {found.shard.round} changed")
    reasons += _plan_changes(old, new, names)
    of_values = [name for name in names if name not in {"teacher", "student", "keys", *_PLAN}]
    reasons += [_value_change(name, old, new) for name in of_values]
    if names and not reasons:
        reasons.append("synthesis.shard_size, batch_size or images_per_class changed")
    return reasons


def describe_state(found: Found, teacher: TeacherParts | None) -> str:
    """The state of a shard, and why it is stale."""
    reasons = stale_reasons(found, teacher)
    return f"{found.state}: {joined(reasons)}" if reasons else found.state


def joined(reasons: Sequence[str]) -> str:
    """Reasons as one text, the first ``MOST`` of them."""
    more = [f"and {len(reasons) - MOST} more"] if len(reasons) > MOST else []
    return ", ".join([*reasons[:MOST], *more])


def _teacher_changes(old: TeacherParts | None, new: TeacherParts | None) -> list[str]:
    """Which parts of the teacher changed. Records of earlier versions do not hold its parts."""
    if not old or not new:
        return ["the teacher changed"]
    reasons = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name in _TEACHER:
            reasons.append(_TEACHER[name])
        elif name == "library":
            reasons.append(f"the teacher's library changed from version {before} to {after}")
        else:
            reasons.append(f"teacher.{name} changed from {before} to {after}")
    return reasons or ["the teacher changed"]


def _plan_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]
) -> list[str]:
    """Which keys of the parameters changed the labels and batches of a shard."""
    if not _PLAN & set(names):
        return []
    same_place = not {"round", "shard"} & set(names)
    if same_place and _first_seed(old) != _first_seed(new):
        return ["synthesis.seed changed"]
    if {"round", "first", "labels"} & set(names):
        return ["the number of images or their classes changed"]
    return [] if "keep" in names else ["synthesis.batch_size changed"]


def _first_seed(spec: Mapping[str, Any]) -> Any:
    """The seed of a shard's first batch, which depends on its round, number and dataset's seed."""
    batches = spec.get("batches")
    return batches[0][1] if batches else None


def _value_change(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if name == "code":
        return "dreamshard's own code changed"
    if name == "class_names":
        return "teacher.class_names changed"
    shown = name if name == "torch" else f"synthesis.{name}"
    if name in _ADAPTIVE:
        shown = f"adaptive.{name.removeprefix('objective.')}"
    before, after = (_shown(spec, name) for spec in (old, new))
    if before is None or after is None:
        return f"{shown} changed"
    return f"{shown} changed from {before} to {after}"


def _shown(spec: Mapping[str, Any], name: str) -> str | None:
    """A value of a spec as text; None where the spec lacks it, or where it is long."""
    value: Any = spec
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else None
