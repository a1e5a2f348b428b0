"""The code that the page quotes loads the images and the student, as it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import nn

from pipeline.params import parse_params
from pipeline.reports.page.loading import loading_code, network_lines, student_code
from pipeline.reports.page.run import Run, run_of_config
from tests.conftest import Params, changed
from tests.reports.page.test_page import read


def loaded(code: str) -> list[Any]:
    """What each turn of the loop of a code gives."""
    code = code.replace("64)", "5)") + "\n    found.append((images, labels))"
    names: dict[str, Any] = {"found": [], "labels": None}
    exec(code.replace("num_workers=min(4, len(tars))", "num_workers=0"), names)
    found: list[Any] = names["found"]
    return found


def test_the_page_shows_code_that_reads_every_image(
    bare: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, reader = read(bare)
    monkeypatch.chdir(tmp_path)
    assert bare.place == "dataset" and loading_code(bare) in reader.text
    batches = loaded(loading_code(bare))
    assert sum(len(labels) for _, labels in batches) == 20
    images = batches[0][0]
    assert f"[64, {', '.join(map(str, images.shape[1:]))}]" in loading_code(bare)
    assert images.dtype.is_floating_point and images.min() >= 0 and images.max() <= 1
    by_package = loading_code(replace(bare, parameters={}))
    assert sum(len(labels) for _, labels in loaded(by_package)) == 20


def test_images_without_labels_are_read_too(
    without_labels: Run, unlabelled_dataset: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(unlabelled_dataset["paths"]["dataset"])
    monkeypatch.chdir(folder.parent)
    batches = loaded(loading_code(without_labels))
    assert sum(len(images) for images, _ in batches) == 20
    assert [name for name, _ in network_lines(without_labels)] == ["Teacher", "Input"]


def test_a_dataset_behind_a_url_is_read_by_the_package(bare: Run) -> None:
    assert "ds.Dataset('s3://a/b')" in loading_code(replace(bare, place="s3://a/b"))


def test_images_of_other_channels_are_arrays(bare: Run) -> None:
    five = replace(bare, parameters={**bare.parameters, "teacher.input.channels": 5})
    assert '.decode(only=["npy", "cls"]).to_tuple("npy", "cls")' in loading_code(five)
    assert "images, uint8: [64, 5," in loading_code(five)


def test_the_student_is_named_with_its_network(
    full: Run, made: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = student_code(full)
    assert "load_file('students/student-0.safetensors')" in code
    source = full.parameters["student.source"]
    assert f"the network that {source}" in code
    assert dict(network_lines(full))["Student"].startswith(source)
    (tmp_path / "students").mkdir()
    network = nn.Linear(1, 1)
    save_file(network.state_dict(), "students/student-0.safetensors")
    exec(code.replace("...  #", "given  #"), {"given": nn.Linear(1, 1)})
    assert student_code(replace(full, saved=replace(full.saved, logs={}))) == ""
    private = changed(made, {"student.arguments": {"token": "hf_abcdefgh1234"}})
    assert "hf_abcdefgh" not in str(network_lines(run_of_config(parse_params(private), "")))
