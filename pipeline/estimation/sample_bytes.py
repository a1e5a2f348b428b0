"""The bytes of an image in its tar, for `plan`."""

from __future__ import annotations

import io

import numpy as np

from pipeline.config.schema import Config
from pipeline.dataset.tar import Sample, write_tar
from pipeline.synthesis.rows import caption
from pipeline.synthesis.stored_views import FIELDS


def sample_bytes(config: Config) -> int:
    """Compute the most bytes that an image takes in its tar.

    The image is noise, which PNG cannot compress.
    """
    shape, count = config.teacher.input, 2
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (count, shape.channels, shape.height, shape.width), np.uint8)
    facts = {"class_name": "0", "cls": 0, "round": 0, "teacher_pred": 0, "teacher_prob": 0.123456}
    logits = np.zeros(config.teacher.classes, np.float16) if config.synthesis.soft_labels else None
    views = np.zeros((config.synthesis.views, len(FIELDS) + config.teacher.classes), np.float16)
    names = config.teacher.class_names or ("",)
    text = caption(config.synthesis.captions, max(names, key=len))
    samples = (
        Sample(f"{index:09d}", image, 0, facts, logits, text, views if len(views) else None)
        for index, image in enumerate(noise)
    )
    first, second = write_tar(io.BytesIO(), samples)
    return second.offset - first.offset
