"""The types of a sample's members, as Hugging Face ``datasets`` reads them from the card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ruamel.yaml.scalarstring import DoubleQuotedScalarString as Quoted

from pipeline.config.schema import Config
from pipeline.dataset.layout import CAPTION, CLASS, FACTS, LOGITS, NPY, VIEWS
from pipeline.dataset.tar import image_kind

_FACTS = {
    "class_name": "string",
    "cls": "int64",
    "round": "int64",
    "teacher_pred": "int64",
    "teacher_prob": "float64",
}


def features(config: Config) -> list[dict[str, Any]]:
    """One entry for each member of a sample: the content of ``dataset_info.features``.

    The class, where images have one, is a ``ClassLabel`` with names. Other types are those that
    ``datasets`` would find without the card.
    """
    teacher, synthesis = config.teacher, config.synthesis
    names = teacher.class_names or [str(label) for label in range(teacher.classes)]
    # Quoted: the readers of cards use YAML 1.1, where a plain `no` is false and 1:30 is 90.
    labels = {Quoted(str(i)): Quoted(name) for i, name in enumerate(distinct(names))}
    image = image_kind(teacher.input.channels)
    entries: list[dict[str, Any]] = []
    facts = _FACTS if teacher.labelled else {"round": _FACTS["round"]}
    if teacher.labelled:
        entries.append({"name": CLASS, "dtype": {"class_label": {"names": labels}}})
    entries.append({"name": FACTS, "struct": [{"name": n, "dtype": t} for n, t in facts.items()]})
    if synthesis.soft_labels:
        entries.append({"name": LOGITS, "list": "float16"})
    if image == NPY:
        entries.append({"name": image, "list": {"list": {"list": "uint8"}}})
    else:
        entries.append({"name": image, "dtype": "image"})
    if synthesis.captions is not None:
        entries.append({"name": CAPTION, "dtype": "string"})
    if synthesis.views:
        entries.append({"name": VIEWS, "list": {"list": "float16"}})
    return [*entries, *({"name": name, "dtype": "string"} for name in ("__key__", "__url__"))]


def distinct(names: Sequence[str]) -> list[str]:
    """The names of the classes, each a different one, as ``ClassLabel`` needs them.

    A name of several classes gets the index of its class: ``crane (134)``, ``crane (517)``.
    """
    counts = Counter(names)
    result = [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names)]
    if len(set(result)) == len(result):
        return result
    return [f"{name} ({i})" for i, name in enumerate(names)]
