"""What the kinds of :mod:`benchmarks.faults.run` share: a tiny teacher, its runs, and a tally."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pipeline.config.schema import Config
from pipeline.params import parse_params
from pipeline.storage import digest_file
from pipeline.synthesis.check import load_checked_teacher
from pipeline.synthesis.shard_states import shard_states
from pipeline.teachers.networks import build_network

Params = dict[str, Any]
Stamps = dict[str, tuple[int, int]]

PROJECT = Path(__file__).parents[2]
LIMIT = 600  # seconds that a run may take before it counts as hanging

FACTORY = """from torch import nn


def classifier(width: int = 6, classes: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * width, classes),
    )
"""


@dataclass
class Outcome:
    """What one kind of fault did: how often it struck, what broke, and what else was seen."""

    faults: int = 0
    problems: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


def make_teacher(root: Path) -> None:
    """``tinynet.py`` and ``teacher.safetensors``: three classes of bright bands, 8 x 8 pixels."""
    root.mkdir(parents=True)
    (root / "tinynet.py").write_text(FACTORY)
    torch.manual_seed(0)
    network = build_network(f"{root / 'tinynet.py'}:classifier", {}, "teacher").train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    labels = torch.arange(30) % 3
    for _ in range(40):
        images = torch.rand(30, 1, 8, 8) - 1
        for image, label in zip(images, labels.tolist(), strict=True):
            image[0, 3 * label : 3 * label + 2] += 1.5
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file(network.state_dict(), root / "teacher.safetensors")


def parameters(place: Path, changes: Mapping[str, Any] | None = None) -> Params:
    """24 shards: 16, and 8 of an adaptive round; 2 workers; a shard takes 0.1 to 0.3 s."""
    teacher = place / "teacher"
    if not teacher.exists():
        make_teacher(teacher)
    source = f"{teacher / 'tinynet.py'}:classifier"
    training = {
        "steps": 40,
        "batch_size": 16,
        "warmup": 2,
        "learning_rate": 0.1,
        "shift": 1,
        "flip": False,
        "shuffle": 32,
        "checkpoint_every": 10,
    }
    params: Params = {
        "teacher": {
            "source": source,
            "weights": str(teacher / "teacher.safetensors"),
            "classes": 3,
            "input": {"channels": 1, "height": 8, "width": 8, "mean": [0.4], "std": [0.3]},
        },
        "student": {"source": source, "arguments": {"width": 4}},
        "synthesis": {
            "images": 96,
            "shard_size": 6,
            "batch_size": 6,
            "iterations": 20,
            "precision": "float32",
            "compile": False,
            "objective": {"jitter": 1, "flip": False},
        },
        "adaptive": {"rounds": 1, "images": 48, "training": training},
        "execution": {"device": "cpu", "workers": 2, "retries": 0},
        "paths": {name: str(place / name) for name in ("dataset", "students", "reports")},
    }
    return changed(params, changes or {})


def changed(params: Params, changes: Mapping[str, Any]) -> Params:
    """A copy of ``params``, each ``section.key`` set to its new value."""
    result = copy.deepcopy(params)
    for key, value in changes.items():
        section, name = key.split(".")
        result[section][name] = value
    return result


def at(params: Params, root: Path) -> Params:
    """The same run with its results below ``root``."""
    return changed(
        params, {f"paths.{n}": str(root / n) for n in ("dataset", "students", "reports")}
    )


def dataset(params: Params) -> Path:
    return Path(params["paths"]["dataset"])


def tree(root: Path) -> dict[str, str]:
    """Every file below ``root``: its relative path to the SHA-256 of its content."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): digest_file(path) for path in paths}


def difference(found: dict[str, str], expected: dict[str, str]) -> str:
    """The names under which two trees differ, or nothing."""
    names = sorted(n for n in found | expected if found.get(n) != expected.get(n))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def load(params: Params) -> tuple[Config, str]:
    """The checked config and the teacher's digest."""
    config = parse_params(params)
    return config, load_checked_teacher(config).digest


def complete(params: Params, digest: str) -> list[int]:
    """The numbers of the shards that a run would not make."""
    states = shard_states(parse_params(params), digest)
    return [number for number, state in states.items() if state == "complete"]


def shard_stamps(params: Params, digest: str) -> dict[int, Stamps]:
    """Of each complete shard: which files it consists of, and since when."""
    names = ("metadata/{:06d}.json", "metadata/{:06d}.parquet", "train/{:06d}.tar")
    found = {}
    for number in complete(params, digest):
        paths = [dataset(params) / name.format(number) for name in names]
        found[number] = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}
    return found


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would send Prefect elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**kept, "DO_NOT_TRACK": "1", "PYTHONDONTWRITEBYTECODE": "1", **more}


@contextlib.contextmanager
def running(
    params: Params, module: str = "pipeline", env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m MODULE synthesize`` in a process group of its own, ended with the block.

    Its output goes to ``run.log`` beside the dataset.
    """
    home = dataset(params).parent
    home.mkdir(parents=True, exist_ok=True)
    (home / "params.yaml").write_text(json.dumps(params))
    arguments = [sys.executable, "-m", module, "synthesize", "--params", str(home / "params.yaml")]
    with (home / "run.log").open("wb") as log:
        process = subprocess.Popen(
            arguments,
            cwd=PROJECT,
            env=env or environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            kill_tree(process)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and to all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(params: Params, module: str = "pipeline", env: dict[str, str] | None = None) -> int:
    """Run to the end, undisturbed; the exit code."""
    with running(params, module, env) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LIMIT)
        return -1 if process.poll() is None else process.returncode


def undisturbed(params: Params, root: Path) -> tuple[dict[str, str], float]:
    """The tree that nobody disturbed, made below ``root``, and how long it took."""
    started = time.monotonic()
    calm = at(params, root)
    if finish(calm) != 0:
        raise RuntimeError(f"the undisturbed run failed: {log_end(calm)}")
    return tree(dataset(calm)), time.monotonic() - started


def log_end(params: Params) -> str:
    """The last line that a run said."""
    text = (dataset(params).parent / "run.log").read_text(errors="replace").strip()
    return text[-300:].splitlines()[-1] if text else "nothing"
