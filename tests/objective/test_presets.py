from __future__ import annotations

import pickle
from dataclasses import fields, replace

import pytest
from pydantic import ValidationError

from pipeline.config.objective import _KEYS_OF_ADAPTIVE
from pipeline.config.synthesis import ObjectiveConfig
from pipeline.objective.presets import PRESETS, Objective

# One norm over the published batch of 256 against a mean of norms: sqrt(256) = 16.
PUBLISHED = {
    "cifar10": Objective(
        tv=16 * 2.5e-5, l2=16 * 3e-8, feature=10.0, feature_form="published", start="white",
        units="teacher",
        learning_rate=0.05, betas=(0.9, 0.999), warmup=0, schedule="constant", jitter=2,
        flip=False, clamp=False, compete=0.0, compete_until=1.0,
    ),
    "imagenet": Objective(
        tv=16 * 1e-4, l2=16 * 1e-5, feature=0.01, feature_form="published", start="white",
        units="teacher",
        learning_rate=0.25, betas=(0.5, 0.9), warmup=100, schedule="cosine", jitter=30, flip=True,
        clamp=True, compete=0.0, compete_until=1.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "compete"), [("cifar10", 10.0), ("imagenet", 0.2)])
def test_presets_are_the_published_ones(data: str, compete: float) -> None:
    whole = PUBLISHED[data]
    assert PRESETS[f"deepinversion-{data}"] == whole
    assert PRESETS[f"deepdream-{data}"] == replace(whole, feature=0.0)
    assert PRESETS[f"adaptive-{data}"] == replace(whole, compete=compete)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_alone_resolves_to_itself(preset: str) -> None:
    assert ObjectiveConfig(preset=preset).over(preset) == PRESETS[preset]


def test_given_values_replace_those_of_the_preset() -> None:
    config = ObjectiveConfig(
        preset="deepinversion-imagenet", tv=0.0, betas=(0.1, 0.2), flip=False, feature=3.0
    )
    expected = replace(
        PRESETS["deepinversion-imagenet"], tv=0.0, betas=(0.1, 0.2), flip=False, feature=3.0
    )
    assert config.over("deepinversion-imagenet") == expected


def test_every_field_of_an_objective_is_a_key_of_the_parameters() -> None:
    """The key has the docstring of the field and refuses the same values."""
    keys = ObjectiveConfig.model_fields
    names = {field.name for field in fields(Objective)}
    assert keys.keys() == {"preset", *names} - set(_KEYS_OF_ADAPTIVE)
    for name, field in Objective.__pydantic_fields__.items():
        assert field.description
        assert name not in keys or keys[name].description == field.description


@pytest.mark.parametrize(
    ("name", "value"),
    [("tv", -1.0), ("tv_spread", 11.0), ("betas", (0.5, 1.0)), ("jitter", 0.5), ("start", "black")],
)
def test_values_outside_of_their_range_are_refused(name: str, value: object) -> None:
    for section in (Objective, ObjectiveConfig):
        with pytest.raises(ValidationError, match=f"{name}"):
            section(**{name: value})


def test_a_section_reaches_another_process() -> None:
    section = ObjectiveConfig(tv=0.5)
    assert pickle.loads(pickle.dumps(section)) == section
