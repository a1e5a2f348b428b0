from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.cli import main
from tests.command_line import printed, refused
from tests.conftest import Params, changed, dataset, write_blobs, write_params


@pytest.fixture
def params(made: Params, tmp_path: Path) -> Params:
    return changed(made, {"calibration.images": 4, "calibration.activation_bits": 4})


def test_the_report_has_a_row_of_noise_and_the_accuracy_where_real_images_are_set(
    capsys: pytest.CaptureFixture[str], params: Params, tmp_path: Path
) -> None:
    write_blobs(tmp_path / "real.tar", 40)
    real = changed(params, {"evaluation.data": str(tmp_path / "real.tar")})
    path = write_params(real, tmp_path / "params.yaml")
    before = (dataset(params) / "provenance.json").read_bytes()
    lines = printed(capsys, "calibrate", "--params", str(path))
    report = json.loads(Path(params["paths"]["reports"], "calibration.json").read_bytes())
    assert report["calibration"]["images"] == 4
    assert report["held_out_images"] == 16 and report["real_images"] == 40
    assert report["teacher_accuracy"] > 0.9
    for kind in ("synthetic", "noise"):
        assert set(report[kind]) == {"agreement", "accuracy", "real_agreement"}
        assert all(0 <= value <= 1 for value in report[kind].values())
    assert report["synthetic"]["real_agreement"] > 0.6
    text = "\n".join(lines)
    assert "8-bit weights, 4-bit activations, minmax" in text
    assert re.search(r"calibrated with 4 synthetic images +[\d.]+% +[\d.]+% +[\d.]+%", text)
    assert re.search(r"calibrated with 4 images of noise +[\d.]+% +[\d.]+% +[\d.]+%", text)
    assert (dataset(params) / "provenance.json").read_bytes() == before

    path = write_params(params, tmp_path / "params.yaml")
    lines = printed(capsys, "calibrate", "--params", str(path))
    again = json.loads(Path(params["paths"]["reports"], "calibration.json").read_bytes())
    assert "teacher_accuracy" not in again
    assert all(
        again[kind] == {"agreement": report[kind]["agreement"]} for kind in ("synthetic", "noise")
    )
    assert "accuracy" not in "\n".join(lines)


def test_a_dataset_without_images_to_compare_with_is_refused(
    capsys: pytest.CaptureFixture[str], params: Params, tmp_path: Path
) -> None:
    path = write_params(params, tmp_path / "params.yaml")
    text = refused(capsys, "calibrate", "--params", str(path), "--set", "calibration.images=5")
    assert "calibration.images is 5" in text and "has 20 images" in text


def test_a_missing_dataset_is_refused(
    capsys: pytest.CaptureFixture[str], params: Params, tmp_path: Path
) -> None:
    path = write_params(params, tmp_path / "params.yaml")
    options = ["--set", f"paths.dataset={tmp_path / 'none'}"]
    assert main(["calibrate", "--params", str(path), *options]) == 2
    assert "is not a finished dataset" in capsys.readouterr().err
