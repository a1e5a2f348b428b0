from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import __version__
from pipeline.cli import build_parser, main
from pipeline.command_list import COMMANDS, Command
from pipeline.errors import TryAgainError, UserError
from pipeline.stages import synthesize as synthesize_module
from tests.command_line import refused, refused_with
from tests.conftest import Params


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dream"], "invalid choice: 'dream'"),
        (["plan", "--nonsense"], "--nonsense"),
        (["plan", "--shards", "0:1"], "--shards"),
        (["plan", "--devices", "0"], "'0' is not a number of devices"),
        (["plan", "--images-per-second", "nan"], "'nan' is not a number of images above 0"),
        (["plan", "--images-per-second", "3", "--probe"], "not allowed with"),
        (["plan", "--params"], "--params"),
        (["verify", "--agreement", "most"], "'most'"),
        (["plan", "--params", "nowhere.yaml"], "there is no parameter file nowhere.yaml"),
        (["plan", "--set", "synthesis"], "write section.key=value"),
    ],
)
def test_a_wrong_command_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in refused(capsys, *arguments)


@pytest.mark.parametrize("command", ["plan", "synthesize", "verify", "status", "distill"])
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("synthesis.imges=3", "unknown key synthesis.imges: did you mean images?"),
        ("synthesis.images=none", 'synthesis.images is "none"'),
        ("synthesis.objective.tv=.nan", "synthesis.objective.tv is NaN"),
        ("teacher.class_names=[a]", "class_names has 1 names for 3 classes"),
    ],
)
def test_a_wrong_parameter(
    capsys: pytest.CaptureFixture[str], params: Path, command: str, setting: str, said: str
) -> None:
    assert said in refused(capsys, command, "--params", str(params), "--set", setting)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher.weights": "nowhere.pt"}, "teacher.weights: there is no file nowhere.pt"),
        ({"teacher.source": "nowhere.py:net"}, "teacher.source: there is no file nowhere.py"),
        ({"teacher.source": "nowhere:net"}, "'nowhere' cannot be imported"),
        (
            {"teacher.arguments": {"width": 9}},
            "Set teacher.source and teacher.arguments to those",
        ),
        ({"teacher.sha256": "00" * 32}, "teacher.sha256 says 00"),
        (
            {"teacher.classes": 5, "teacher.class_names": None},
            "teacher.classes is 5, but the teacher returns 3 logits",
        ),
        ({"teacher.input.height": 9}, "the teacher cannot take images of teacher.input 1x9x8"),
    ],
)
def test_a_wrong_teacher(
    capsys: pytest.CaptureFixture[str],
    tiny: Params,
    tmp_path: Path,
    changes: dict[str, Any],
    said: str,
) -> None:
    assert said in refused_with(capsys, tiny, changes, tmp_path / "params.yaml")


def test_a_state_dict_with_other_keys(
    capsys: pytest.CaptureFixture[str], tiny: Params, tmp_path: Path
) -> None:
    state = load_file(tmp_path / "teacher.safetensors")
    named = {f"layer{name.replace('.', '-')}": tensor for name, tensor in state.items()}
    torch.save(named, tmp_path / "w.pt")
    changes = {"teacher.weights": str(tmp_path / "w.pt")}
    text = refused_with(capsys, tiny, changes, tmp_path / "params.yaml")
    assert "keys missing (first: 0.weight)" in text
    assert "unexpected (first: layer" in text


def test_help_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: dreamshard ")
    words = " ".join(out.split())
    assert all(f"{command.name} {command.summary}" in words for command in COMMANDS)


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], program="python -m pipeline") == 0
    assert capsys.readouterr().out.startswith("usage: python -m pipeline ")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dreamshard {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_command_explains_itself_and_its_example_parses(
    capsys: pytest.CaptureFixture[str], command: Command
) -> None:
    assert main([command.name, "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"example: dreamshard {command.example}" in out
    assert command.description in out
    assert ("--params FILE" in out) == command.reads_params
    parsed = build_parser("dreamshard").parse_args(command.example.split())
    module, _, function = parsed.function.partition(".")
    assert callable(getattr(importlib.import_module(f"pipeline.commands.{module}"), function))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "run the same command again"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (RuntimeError("two\nlines"), 1, "two lines"),
        (UserError("a wrong value"), 2, "a wrong value"),
        (TryAgainError("in use"), 1, "in use"),
        (FloatingPointError("the loss is nan"), 1, "the loss is nan"),
    ],
)
def test_what_goes_wrong_at_work_is_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str],
    params: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def failing(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(synthesize_module, "write_dataset_files", failing)
    assert main(["synthesize", "--params", str(params)]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dreamshard: ") and said in last
