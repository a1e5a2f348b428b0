"""Compare the stored views of a shard with its plan and with the teacher's answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.dataset.arrays import decode_array, encode_array
from pipeline.dataset.layout import VIEWS
from pipeline.stages.answers import slack
from pipeline.stages.row_problems import ShardContent
from pipeline.synthesis.stored_views import FIELDS, draw_views

HALF = 1e-3  # relative deviation of a number in float16


def view_problems(content: ShardContent, logits: Tensor) -> Iterator[str]:
    """The first sample whose stored views differ from the planned ones.

    Args:
        content: the shard.
        logits: the teacher's logits of all views, float32 ``[N, K, classes]``.
    """
    planned = draw_views(content.config, content.shard)
    for (key, parts, _), views, expected in zip(content.samples, planned, logits, strict=True):
        sample = f"sample {key}: its .{VIEWS}"
        try:
            stored = decode_array(parts[VIEWS])
        except (KeyError, ValueError) as error:
            yield f"{sample}: {error}"
            return
        shape = len(views), len(FIELDS) + expected.shape[1]
        right_kind = stored.dtype == np.float16 and stored.shape == shape
        if not right_kind or encode_array(stored) != parts[VIEWS]:
            yield f"{sample} is not float16 [{shape[0]}, {shape[1]}]"
            return
        if stored[:, : len(FIELDS)].tobytes() != views.tobytes():
            yield f"{sample} describes other views than the plan"
            return
        if not same_logits(torch.from_numpy(stored[:, len(FIELDS) :].copy()), expected):
            yield f"{sample} differs from the teacher's logits"
            return


def same_logits(stored: Tensor, expected: Tensor) -> bool:
    """Whether logits in float16 are those of the teacher, on whatever device they were computed.

    Args:
        stored: float16 ``[N, K]``.
        expected: float32 ``[N, K]``.
    """
    allowed = slack(expected)[:, None] + HALF * expected.abs()
    same_infinity = stored == expected.half()  # float16 ends at 65504
    return bool((((stored.float() - expected).abs() <= allowed) | same_infinity).all())
