"""The example that trains a student from the shards alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from pipeline.teachers.networks import build_network
from tests.conftest import Params, blobs, changed, dataset, make

SCRIPT = Path(__file__).parents[1] / "examples" / "train_from_shards.py"
# A module that is None cannot be imported.
WITHOUT_US = (
    "import runpy, sys; sys.modules['pipeline'] = None; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def test_a_student_learns_from_the_shards_alone(tiny: Params, tmp_path: Path) -> None:
    """No teacher is there any more, and nothing of this project can be imported."""
    changes = {"images": 120, "shard_size": 60, "batch_size": 60, "iterations": 30, "views": 4}
    params = changed(tiny, {f"synthesis.{name}": value for name, value in changes.items()})
    make(params)
    (tmp_path / "teacher.safetensors").unlink()
    pattern, output = dataset(params) / "train" / "*.tar", tmp_path / "student.pt"
    arguments = [str(SCRIPT), str(pattern), "tinynet:classifier", "60", str(output)]
    command = [sys.executable, "-c", WITHOUT_US, *arguments]
    environment = {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    student = build_network(f"{tmp_path / 'tinynet.py'}:classifier", {}, "student").eval()
    student.load_state_dict(torch.load(output, weights_only=True))
    pixels, labels = blobs(90, seed=1)
    images = (torch.from_numpy(pixels).float() / 255 - 0.45) / 0.25
    right = float(np.mean(student(images).argmax(1).numpy() == labels))
    assert right > 0.8


def test_the_example_is_forty_lines_of_plain_pytorch() -> None:
    """Imports, docstrings, comments and blank lines do not count."""
    tree = ast.parse(SCRIPT.read_text())
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node):
            del node.body[0]
    roots = {name.partition(".")[0] for name in imported}
    assert roots - set(sys.stdlib_module_names) == {"torch", "webdataset"}
    lines = ast.unparse(tree).splitlines()
    assert len([s for s in lines if s and not s.startswith(("import ", "from "))]) <= 40
