"""Factory files that are scripts: each command says so, and none ends as if it were done."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.cli import main
from pipeline.errors import StopRequested, UserError
from pipeline.teachers.networks import build_network
from tests.conftest import FACTORY, Params, changed, write_params

ENDS = {
    "sys.exit(0)": "ends the program (sys.exit(0))",
    "sys.exit()": "ends the program (sys.exit())",
    "sys.exit('usage: train.py')": "ends the program (sys.exit('usage: train.py'))",
    "exit(3)": "ends the program (sys.exit(3))",
    "raise SystemExit": "ends the program",
    "raise KeyboardInterrupt": "raises KeyboardInterrupt",
    "raise GeneratorExit": "raises GeneratorExit",
    "raise type('Odd', (BaseException,), {})('no')": "raises Odd: no",
    "input('epochs? ')": "asks for input",
    "import argparse; argparse.ArgumentParser().parse_args(['--no'])": "ends the program",
    "print(sys.argv[1])": "IndexError",
    "sys.stdin.readline()[0]": "IndexError",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("where", ["import", "call"])
def test_a_factory_that_ends_the_program(
    capsys: pytest.CaptureFixture[str], tiny: Params, tmp_path: Path, end: str, where: str
) -> None:
    code = f"import sys\n{FACTORY}\n"
    code += f"{end}\n" if where == "import" else f"def classifier():\n    {end}\n"
    (tmp_path / "script.py").write_text(code)
    changes = {"teacher.source": f"{tmp_path / 'script.py'}:classifier"}
    params = write_params(changed(tiny, changes), tmp_path / "params.yaml")
    for command in ("synthesize", "verify", "probe"):
        assert main([command, "--params", str(params)]) == 2
        out, err = capsys.readouterr()
        last = err.splitlines()[-1]  # argparse and input print to stderr before
        assert out == "" and "dreamshard: " in last
        assert "script.py" in last and ENDS[end] in last


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_module_and_a_hub_folder_are_guarded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ending_module.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "hubconf.py").write_text("raise SystemExit(0)\n")
    for source in ("ending_module:net", f"hub:{tmp_path}:net"):
        with pytest.raises(UserError, match=f"{role}.source: .* ends the program"):
            build_network(source, {}, role)


def test_prints_of_a_factory_go_to_stderr_and_argv_returns(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = (list(sys.argv), sys.stdin)
    (tmp_path / "loud.py").write_text(f"print('hello')\nimport sys\nWORDS = sys.argv\n{FACTORY}")
    build_network(f"{tmp_path / 'loud.py'}:classifier", {}, "teacher")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")
    assert (sys.argv, sys.stdin) == before


def test_a_real_stop_during_the_factory_stops(
    capsys: pytest.CaptureFixture[str],
    tiny: Params,
    tmp_path: Path,
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a background job
    (tmp_path / "slow.py").write_text(
        f"import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n{FACTORY}"
    )
    changes = {"teacher.source": f"{tmp_path / 'slow.py'}:classifier"}
    params = write_params(changed(tiny, changes), tmp_path / "params.yaml")
    try:
        assert main(["synthesize", "--params", str(params)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Stopped" in capsys.readouterr().err
    assert issubclass(StopRequested, KeyboardInterrupt)


def test_a_training_script_gives_a_sentence_from_a_shell(tiny: Params, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"{FACTORY}\ndef main():\n    print('done')\nimport sys\nsys.exit(main())\n")
    params = write_params(
        changed(tiny, {"teacher.source": f"{script}:classifier"}), tmp_path / "params.yaml"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "synthesize", "--params", str(params)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "train.py ends the program" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("where", ["import", "call"])
def test_a_factory_that_changes_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Otherwise relative paths of the parameters would lead to other files afterwards."""
    (tmp_path / "elsewhere").mkdir()
    move = f"import os; os.chdir({str(tmp_path / 'elsewhere')!r})"
    code = f"{FACTORY}\nmake = classifier\n"
    code += f"{move}\n" if where == "import" else f"def classifier():\n    {move}; return make()\n"
    (tmp_path / "moving.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    build_network("moving.py:classifier", {}, "teacher")
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("command", ["synthesize", "verify", "distill"])
@pytest.mark.parametrize("code", ["", "0", "3", "'bye'"])
def test_a_network_that_ends_the_program(
    capsys: pytest.CaptureFixture[str], tiny: Params, tmp_path: Path, command: str, code: str
) -> None:
    network = "class Ending(nn.Sequential):\n    def forward(self, images):\n"
    network += f"        import sys\n        sys.exit({code})\n"
    factory = "make = classifier\ndef classifier():\n    return Ending(*make())\n"
    (tmp_path / "ending.py").write_text(f"{FACTORY}\n{network}\n{factory}")
    changes = {"teacher.source": f"{tmp_path / 'ending.py'}:classifier"}
    params = write_params(changed(tiny, changes), tmp_path / "params.yaml")
    assert main([command, "--params", str(params)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"sys.exit({code}) ended {command} before its work was done" in err


@pytest.mark.parametrize("where", ["import", "call"])
def test_a_factory_that_changes_the_defaults_of_torch(
    tiny: Params, tmp_path: Path, where: str
) -> None:
    lines = (
        "import torch, sys",
        "torch.set_grad_enabled(False)",
        "torch.set_default_dtype(torch.float64)",
        "torch.set_default_device('meta')",
        "sys.stderr = None",
    )
    if where == "import":
        code = "\n".join([FACTORY, *lines])
    else:
        body = "\n    ".join(["def changing():", "net = classifier()", *lines, "return net"])
        code = f"{FACTORY}\n{body}\nclassifier, changing = changing, classifier\n"
        code = code.replace("net = classifier()", "net = changing()")
    (tmp_path / "defaults.py").write_text(code)
    source = f"{tmp_path / 'defaults.py'}:classifier"
    for changes in ({"teacher.source": source}, {"student.source": source}):
        params = changed(tiny, {**changes, "student.arguments": {}, "adaptive.rounds": 1})
        path = write_params(params, tmp_path / "params.yaml")
        assert main(["synthesize", "--params", str(path)]) == 0
    state = (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled())
    assert state == (torch.float32, torch.device("cpu"), True)
