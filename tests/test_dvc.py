"""DVC across revisions: experiments, comparisons, and a clone that pulls instead of making."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from tests.conftest import CLASSES, Params, tree

REPOSITORY = Path(__file__).parents[1]
METRICS = ["distillation.json", "measures.json", "student-0.json", "synthesis.json"]


@dataclass(frozen=True)
class Project:
    """A project of ``dreamshard init`` in a Git repository."""

    root: Path
    environment: dict[str, str]

    def run(self, *words: str) -> str:
        done = subprocess.run(
            words, cwd=self.root, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def git(self, *words: str) -> str:
        return self.run("git", *words)

    def dvc(self, *words: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *words)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "state")

    def clone(self, target: Path) -> Project:
        subprocess.run(["git", "clone", "--quiet", str(self.root), str(target)], check=True)
        return Project(target, self.environment)

    def experiments(self) -> dict[str, dict[str, Any]]:
        """The metrics by file of the commit and of each experiment, by its name."""
        (commit,) = (
            entry
            for entry in json.loads(self.dvc("exp", "show", "--json"))
            if entry["rev"] != "workspace"
        )
        revisions = [revision for group in commit["experiments"] for revision in group["revs"]]
        return {entry["name"]: entry["data"]["metrics"] for entry in [commit, *revisions]}


@pytest.fixture
def project(tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A few images of a tiny teacher, whose weights DVC tracks."""
    root = tmp_path / "project"
    (root / "data").mkdir(parents=True)
    for name, place in (("tinynet.py", root), ("teacher.safetensors", root / "data")):
        (tmp_path / name).rename(place / name)
    monkeypatch.chdir(root)
    teacher = ["--source", "tinynet.py:classifier", "--weights", "data/teacher.safetensors"]
    options = ["--classes", str(CLASSES), "--input", "1x8x8", "--force"]
    assert main(["init", ".", *teacher, *options]) == 0
    shorten(root / "params.yaml")
    project = Project(root, environment(tmp_path))
    project.git("init", "--quiet", "--initial-branch", "main")
    project.dvc("init", "--quiet")
    project.dvc("config", "core.autostage", "true")
    project.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    project.dvc("add", "data/teacher.safetensors")
    project.commit()
    return project


def shorten(params: Path) -> None:
    text = params.read_text()
    for old, new in {
        "images: 1000": "images: 12",
        "iterations: auto": "iterations: 4",
        "compile: auto": "compile: false",
        "steps: 3000": "steps: 4\n  batch_size: 4\n  compile: false",
        "paths:": "execution: {device: cpu, workers: 1}\n\npaths:",
    }.items():
        assert old in text
        text = text.replace(old, new)
    params.write_text(text)


def environment(root: Path) -> dict[str, str]:
    """Where ``dreamshard`` is this code, and Git and DVC read no configuration of the user."""
    command = root / "bin/dreamshard"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipeline "$@"\n')
    command.chmod(0o755)
    (root / "gitconfig").write_text("[user]\n\tname = Test\n\temail = test@example.org\n")
    return {
        **os.environ,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(root / "dvc-global"),
        "DVC_SYSTEM_CONFIG_DIR": str(root / "dvc-system"),
        "DVC_SITE_CACHE_DIR": str(root / "dvc-site"),
        "GIT_CONFIG_GLOBAL": str(root / "gitconfig"),
        "GIT_CONFIG_NOSYSTEM": "1",
    }


def names(paths: Sequence[str]) -> list[str]:
    return sorted(Path(path).name for path in paths)


def test_dvc_reads_this_repository(tmp_path: Path) -> None:
    """DVC reads every file named ``dvc.yaml``, in any folder: a template needs another name."""
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for folder in ("pipeline", "flows"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    project = Project(tmp_path, environment(tmp_path))
    project.dvc("init", "--quiet", "--no-scm")
    planned = project.dvc("repro", "--dry", "teacher")
    assert "Running stage 'teacher'" in planned


@pytest.mark.slow
def test_experiments_are_compared_and_a_clone_makes_nothing_again(
    project: Project, tmp_path: Path
) -> None:
    project.dvc("repro", "--quiet")
    project.commit()
    project.dvc("exp", "run", "--name", "6-steps", "-S", "distillation.steps=6")

    experiments = project.experiments()
    assert set(experiments) == {"main", "6-steps"}
    for name, metrics in experiments.items():
        assert names(list(metrics)) == METRICS, name
        assert all("data" in metric and "error" not in metric for metric in metrics.values()), name
    changes = json.loads(project.dvc("metrics", "diff", "HEAD", "--json"))
    student = changes["reports/distillation.json"]
    assert student["students.student-0.step"] == {"old": 4, "new": 6, "diff": 2}
    live = changes["reports/live/metrics/student-0.json"]  # by DVCLive, the default in a stage
    assert live["step"] == {"old": 4, "new": 6, "diff": 2}
    plots = json.loads(project.dvc("plots", "show", "--json"))["data"]
    (curve,) = plots["reports/live/plots/student-0/metrics/loss.tsv"]
    assert [row["step"] for row in curve["content"]["data"]["values"]] == list("123456")

    project.git("checkout", "--quiet", "--force", "main")
    project.dvc("checkout", "--quiet")
    project.dvc("push", "--quiet")
    clone = project.clone(tmp_path / "clone")
    clone.dvc("pull", "--quiet")
    for name in ("data/synthetic", "data/students", "reports"):
        assert tree(clone.root / name) == tree(project.root / name) != {}
    assert json.loads(clone.dvc("status", "--json")) == {}
    assert "Running stage" not in clone.dvc("repro")
    assert clone.git("status", "--porcelain") == ""
