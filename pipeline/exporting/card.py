"""The card of an export: what the files hold, and then the card of the dataset."""

from __future__ import annotations

import re

from pipeline.dataset.layout import PROVENANCE
from pipeline.dataset.plan import counted_images
from pipeline.exporting.source import Source
from pipeline.storage import digest_bytes

_HEAD = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)


def export_card(source: Source, loading: str, card: str) -> str:
    """Write the card of an export.

    Args:
        source: what was exported.
        loading: Markdown: what the files hold, and how to load them.
        card: the card of the dataset. The YAML at its head describes the shards and is left out.
    """
    dataset = source.dataset
    task = "task_categories:\n- image-classification\n" if source.labelled else ""
    values = "The pixels and the labels are" if source.labelled else "The pixels are"
    return f"""---
license: other
license_name: as-the-teacher
{task}tags:
- synthetic
- deepinversion
---
# {len(source)} synthetic images, exported from a dataset of dreamshard

{len(source)} of {counted_images(len(dataset), dataset.classes)}: {source.which}. {values} \
those of the dataset.

{loading}

`{PROVENANCE}` is that of the whole dataset. Its SHA-256 is `{digest_bytes(source.provenance)}`.

The card of the dataset follows. It describes the files from which these were exported.

{_HEAD.sub("", card, count=1)}"""
