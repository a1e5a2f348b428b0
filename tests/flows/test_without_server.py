"""`python -m flows` where no Prefect server is needed, or where none answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Params, changed, dataset, make, tree, write_params

ROOT = Path(__file__).parents[2]


def run_flow(
    home: Path, flow: str, params: Params, **more: str
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-m", "flows", flow, "--params", write_params(params, home / "p.yaml")],
        cwd=ROOT,
        env={**kept, "PREFECT_HOME": str(home / "prefect"), **more},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
@pytest.mark.parametrize("flow", ["synthesize", "dream"])
def test_a_run_without_jobs_starts_no_server(made: Params, tmp_path: Path, flow: str) -> None:
    if flow == "dream":
        params = write_params(made, tmp_path / "params.yaml")
        words = [sys.executable, "-m", "pipeline", "distill", "--params", params]
        subprocess.run(words, cwd=ROOT, check=True, timeout=240)
    before = tree(dataset(made))
    # A server at this address would be asked, and would be missed.
    done = run_flow(tmp_path, flow, made, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 0
    assert "WARNING" not in done.stderr and "Prefect" not in done.stderr
    assert tree(dataset(made)) == before
    assert not list(tmp_path.rglob("prefect.db"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [
        {"PREFECT_API_URL": "http://127.0.0.1:9/api"},
        {"PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////nowhere/prefect.db"},
    ],
    ids=["unreachable", "broken"],
)
def test_the_work_goes_on_without_a_server(
    tiny: Params, tmp_path: Path, broken: dict[str, str]
) -> None:
    reference = changed(tiny, {"paths.dataset": str(tmp_path / "reference")})
    make(reference)
    broken = {**broken, "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "5"}
    done = run_flow(tmp_path, "synthesize", tiny, **broken)
    assert done.returncode == 0, done.stderr
    assert "the same work goes on without a record in Prefect" in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(dataset(tiny)) == tree(dataset(reference))


@pytest.mark.slow
def test_bad_input_is_one_line_before_any_server(tiny: Params, tmp_path: Path) -> None:
    done = run_flow(tmp_path, "distill", tiny)  # there is no dataset
    assert done.returncode == 2
    assert "run synthesize first" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("prefect.db"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("1", "false")),
        ({"DO_NOT_TRACK": "1"}, ("1", "false")),
        ({"PREFECT_SERVER_ANALYTICS_ENABLED": "false"}, ("1", "false")),
        ({"PREFECT_SERVER_ANALYTICS_ENABLED": "true"}, ("None", "true")),
        ({"DO_NOT_TRACK": "0"}, ("0", "None")),
    ],
)
def test_no_usage_data_unless_the_user_asked(
    given: dict[str, str], expected: tuple[str, str]
) -> None:
    names = ("DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    code = f"import os, flows; print(*(os.environ.get(name) for name in {names}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**kept, **given},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert tuple(done.stdout.split()) == expected


def test_a_logging_level_of_the_user_is_kept() -> None:
    code = "import os, flows; print(os.environ.get('PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL'))"
    for level, console in (("DEBUG", "None"), (None, "WARNING")):
        kept = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
        env = {**kept, "PREFECT_LOGGING_LEVEL": level} if level else kept
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.stdout.strip() == console
