from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.evaluation import trial_student
from pipeline.evaluation.dataset_measures import measure
from pipeline.evaluation.trial_student import trial_agreement
from tests.conftest import Params, changed, load, make

LONGER = {
    "evaluation.trial_steps": 150,
    "distillation.batch_size": 32,
    "distillation.learning_rate": 0.2,
    "distillation.procedural": 0.5,  # a trial has none
}


def test_images_teach_more_than_black_ones(tiny: Params) -> None:
    config, teacher = load(changed(tiny, LONGER))
    generator = torch.Generator().manual_seed(0)
    varied = torch.randint(0, 256, (64, 1, 4, 4), generator=generator, dtype=torch.uint8)
    varied = varied.repeat_interleave(2, 2).repeat_interleave(2, 3)
    taught = trial_agreement(config, teacher, varied)
    assert taught == trial_agreement(config, teacher, varied)
    assert taught > 0.3 > 0.1 > trial_agreement(config, teacher, torch.zeros_like(varied))


def test_measure_has_a_trial_student_where_it_is_asked_for_and_quick(
    tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tiny)
    config, teacher = load(changed(tiny, {"evaluation.trial_steps": 3}))
    assert isinstance(measure(config, teacher)[0]["verdict"]["taught"], float)
    without, _ = load(changed(tiny, {"evaluation.trial_steps": 0}))
    assert measure(without, teacher)[0]["verdict"]["taught"] is None
    monkeypatch.setattr(trial_student, "MOST_IMAGES", 6)
    assert isinstance(measure(config, teacher)[0]["verdict"]["taught"], float)
    pixels, labels = torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64)
    one_class = replace(teacher, classes=1)  # always right by chance
    assert trial_student.verdict_with_trial(config, one_class, pixels, labels).signs.taught is None
    monkeypatch.setattr(trial_student, "SLOW_PIXELS", 63)
    assert measure(config, teacher)[0]["verdict"]["taught"] is None
