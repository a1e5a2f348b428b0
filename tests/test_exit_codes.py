"""Signals during the imports, readers that leave, and streams that are closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline import load_params, synthesize
from pipeline.cli import main
from pipeline.errors import StopRequested
from pipeline.exit_codes import STOPPED, STOPS, report_errors
from tests.conftest import Params, changed, write_params

ROOT = Path(__file__).parents[1]
STARTS = {
    "module": [sys.executable, "-m", "pipeline"],
    "console": [sys.executable, "-c", "import sys; from pipeline.__main__ import run; "
                "sys.exit(run())"],
    "flows": [sys.executable, "-m", "flows"],
}  # fmt: skip


def shell(command: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of bash in the repository; ``path`` comes first on Python's path."""
    env = {**os.environ, "PYTHONPATH": f"{path}:{ROOT}" if path else str(ROOT)}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("stop", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_during_the_imports_is_one_line(
    tmp_path: Path, start: str, stop: str, swallowed: bool
) -> None:
    """The library ``torch`` of this test sends the signal to its own process."""
    kill = f"os.kill(os.getpid(), signal.{stop})\ntime.sleep(60)\n"
    if swallowed:  # as numpy's import does
        kill = textwrap.indent(kill, "    ")
        kill = f"try:\n{kill}except BaseException:\n    raise ImportError('torch is broken')\n"
    (tmp_path / "torch.py").write_text(f"import os, signal, time\n{kill}")
    words = [*STARTS[start], *(["synthesize"] if start == "flows" else ["plan"])]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=_heed_signals,
    )
    assert done.returncode == (129 if stop == "SIGHUP" else 130)
    assert done.stderr == f"dreamshard: {STOPPED}\n"
    assert done.stdout == ""


def _heed_signals() -> None:
    """Undo what `nohup` or a background job of a script left to the tests."""
    for stop in STOPS:
        signal.signal(stop, signal.SIG_DFL)


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """As of `nohup`, and of a background job of a script."""
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise ImportError('went on')\n"
    (tmp_path / "torch.py").write_text(kill)
    done = shell("trap '' INT; python -m pipeline plan", tmp_path)
    assert "went on" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "words", "code"),
    [
        ("module", "plan --list --set synthesis.shard_size=1 | head -1", 141),
        ("module", "plan --list --set synthesis.shard_size=1 2>&1 | head -1", 141),
        ("console", "plan --list --set synthesis.shard_size=1 2>&1 | head -1", 141),
        ("module", "plan | true", 141),
        ("module", "--help | true", 141),
        ("console", "--help | true", 141),
        ("module", "plan >&-", 0),
        ("module", "plan <&- >&- 2>&-", 0),
        ("console", "plan <&- >&- 2>&-", 0),
        ("module", "plan --set a=1 2>&-", 2),
    ],
)
def test_a_stream_that_nothing_reads_is_no_error(start: str, words: str, code: int) -> None:
    if code == 141 and words.endswith("true"):
        words = words.replace("| true", "| sleep 0")
    program = " ".join(f"'{word}'" for word in STARTS[start])
    done = shell(f"{program} {words}")
    assert done.stderr == ""
    assert done.returncode == code


@pytest.mark.parametrize("words", ["plan", "--help", "--version", "plan --help", ""])
def test_a_full_disk_below_stdout_is_an_error(words: str) -> None:
    done = shell(f"{sys.executable} -m pipeline {words} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "dreamshard: [Errno 28] No space left on device\n" or (
        done.stderr.startswith("dreamshard: the output cannot be written: ")
    )


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (StopRequested(), 130, "Stopped"),
        (StopRequested(signal.SIGHUP), 129, "Stopped"),
        (MemoryError(), 1, "MemoryError"),
        (BrokenPipeError(32, "a worker's pipe"), 1, "a worker's pipe"),
        (OSError(36, "File name too long", "x" * 5000), 2, "x..."),
        (RecursionError("maximum recursion depth exceeded"), 1, "recursion"),
    ],
)
def test_errors_and_their_codes(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    with report_errors() as outcome:
        raise error
    assert outcome.code == code
    text = capsys.readouterr().err
    assert said in text and len(text) < 300


@pytest.mark.parametrize("key", ["paths.dataset", "paths.students", "teacher.weights"])
def test_a_path_of_5000_characters_is_wrong_input(
    tiny: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    params = write_params(changed(tiny, {key: "x" * 5000}), tmp_path / "params.yaml")
    command = "distill" if "students" in key else "synthesize"
    assert main([command, "--params", str(params)]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and len(said) < 400


def test_a_run_without_stderr(
    monkeypatch: pytest.MonkeyPatch, tiny: Params, tmp_path: Path
) -> None:
    """As after `2>&-`, and in programs with windows."""
    params = write_params(tiny, tmp_path / "params.yaml")
    monkeypatch.setattr(sys, "stderr", None)
    for command in ("synthesize", "verify", "distill"):
        words = ["--agreement", "0"] if command == "verify" else []
        assert main([command, "--params", str(params), *words]) == 0
        assert sys.stderr is None
    synthesize(load_params(params))


def test_lines_that_other_libraries_log_below_warnings_are_not_for_the_terminal() -> None:
    """Prefect sets its loggers to INFO for the Logs tab, and they pass lines on to the root."""
    code = (
        "import logging; from pipeline.exit_codes import report_errors\n"
        "with report_errors():\n"
        "    logging.getLogger('prefect').setLevel('INFO')\n"
        "    logging.getLogger('prefect.flow_runs').info('begins')\n"
        "    logging.getLogger('prefect.flow_runs').warning('fails')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "WARNING prefect.flow_runs: fails\n"
