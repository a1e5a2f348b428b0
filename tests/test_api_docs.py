"""The examples of ``docs/api.md`` run, in their order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Params, changed, write_params

PAGE = Path(__file__).parents[1] / "docs/api.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_api_page(
    tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(changed(tiny, {"paths.reports": "reports"}), tmp_path / "params.yaml")
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 9
    names: dict[str, Any] = {"__name__": "notebook"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    images, labels, logits = names["result"]
    assert images.dtype == torch.uint8 and images.shape == (20, 3, 16, 16)
    assert labels.shape == (20,) and logits.shape == (20, 10)
    assert (tmp_path / "data/mine-teacher.safetensors").is_file()
    assert [student.name for student in names["students"]] == ["student-0"]
