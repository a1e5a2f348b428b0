from __future__ import annotations

import json
from pathlib import Path

from flows.calibrate import calibrate
from tests.conftest import Params, write_params


def test_the_flow_writes_the_report_and_returns_the_table(made: Params, tmp_path: Path) -> None:
    path = write_params(made, tmp_path / "params.yaml")
    table = calibrate.fn(str(path), {"calibration.images": 4, "calibration.method": "percentile"})
    report = json.loads(Path(made["paths"]["reports"], "calibration.json").read_bytes())
    assert report["calibration"]["method"] == "percentile"
    assert "calibrated with 4 images of noise" in table
