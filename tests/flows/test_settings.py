"""The form of a run: typed fields with the descriptions of the parameter file's keys."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from flows.distill import distill
from flows.dream import dream
from flows.running import run_name
from flows.settings import Settings
from flows.synthesize import synthesize
from pipeline.config.schema import Config
from pipeline.params import parse_params
from tests.conftest import Params, changed

VALUES: dict[str, Any] = {
    "images": 12,
    "iterations": 3,
    "batch_size": 4,
    "min_confidence": 0.5,
    "seed": 7,
    "rounds": 1,
    "steps": 9,
    "seeds": [3, 4],
    "noise_baseline": True,
    "procedural_baseline": True,
    "data": "real.tar",
    "device": "cpu",
    "workers": 2,
    "dataset": "a/dataset",
    "students": "a/students",
    "reports": "a/reports",
}


@pytest.mark.parametrize("flow", [synthesize, distill, dream])
def test_the_form_has_a_typed_field_with_a_description_for_each_setting(flow: Any) -> None:
    schema = flow.parameters.model_dump()
    assert schema["properties"]["settings"]["default"] == {}
    fields = schema["definitions"]["Settings"]["properties"]
    assert fields.keys() == VALUES.keys()
    for name, field in fields.items():
        assert field["type"] in ("integer", "number", "boolean", "string", "array"), name
        assert field["description"].endswith(".") and "default" not in field
    assert fields["images"]["minimum"] == 1
    assert fields["device"]["enum"] == ["auto", "cpu", "cuda"]
    assert fields["iterations"]["description"] == (
        "Gradient steps for each image, at least 0. `auto`: 400 for images whose shorter side has "
        '96 pixels or more, else 200. Empty: the value of the parameter file, or "auto" if it has '
        "none."
    )
    assert {"params", "overrides", "keep"} <= schema["properties"].keys()  # as in version 0.1


def test_each_setting_is_a_key_of_the_parameter_file(tiny: Params) -> None:
    settings = Settings.model_validate(VALUES)
    overrides = settings.overrides({"synthesis.seed": 8, "synthesis.keep": 0.5})
    config = parse_params(tiny, overrides=overrides)
    assert len(overrides) == len(VALUES) + 1
    expected = {**VALUES, "seed": 8, "seeds": (3, 4)}  # an override wins
    for name, value in expected.items():
        section, _, key = str(Settings.model_fields[name].title).partition(".")
        assert getattr(getattr(config, section), key) == value, name
    assert config.synthesis.keep == 0.5
    assert Settings().overrides() == {}


def test_a_wrong_value_is_refused() -> None:
    for wrong in ({"images": 0}, {"device": "tpu"}, {"nowhere": 1}):
        with pytest.raises(ValidationError):
            Settings.model_validate(wrong)


def test_a_run_is_named_after_its_teacher_and_its_size(tiny: Params) -> None:
    def named(source: str) -> str:
        config: Config = parse_params(changed(tiny, {}))
        teacher = config.teacher.model_copy(update={"source": source})
        return run_name("dream", config.model_copy(update={"teacher": teacher}))

    assert named("path/to/nets.py:digits") == "dream nets:digits, 20 images of 8x8"
    assert named("examples.digits:classifier") == "dream digits:classifier, 20 images of 8x8"
    assert named("hf:google/vit") == "dream hf:vit, 20 images of 8x8"
    assert named("onnx:models/net.onnx") == "dream onnx:net.onnx, 20 images of 8x8"
