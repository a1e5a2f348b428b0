"""Runs with a model that exists only in this process: their parameters and their files."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.config.schema import Config
from pipeline.device.seeding import restored_generators
from pipeline.device.torch_state import usual_torch_state
from pipeline.errors import UserError
from pipeline.params import load_params, parse_params
from pipeline.storage import digest_bytes, digest_file, write_bytes
from pipeline.streams import with_stderr
from pipeline.teachers.checkpoints import WeightsFile
from pipeline.teachers.in_memory import register, registered

Input = Mapping[str, Any] | Sequence[Any]
"""A dict like ``teacher.input``, or ``(channels, height, width, mean, std)``."""
_INPUT_KEYS = ("channels", "height", "width", "mean", "std")
_HEADER = """\
# The parameters of the dataset next to this file. Its teacher is a model in memory: only the Python
# process that holds the model can make shards again, verify them or train students on them.
"""


_SEAL = "# sha256 of the lines above: "


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of a run with a model in memory: the dataset ``out``, and its neighbours.

    Raises:
        UserError: ``out`` is a URL or has no name.
    """

    out: Path

    @classmethod
    def of(cls, out: str | Path) -> RunFiles:
        if "://" in str(out):
            raise UserError(
                f"out {out} is a URL: a model in memory needs a local directory. Copy the dataset "
                "to the URL afterwards"
            )
        if Path(out).name in ("", ".."):
            raise UserError(f"out {out} has no name: write a directory such as data/mine")
        return cls(Path(out))

    def path(self, ending: str) -> Path:
        return self.out.with_name(f"{self.out.name}-{ending}")

    @property
    def weights(self) -> Path:
        return self.path("teacher.safetensors")

    @property
    def params(self) -> Path:
        return self.path("params.yaml")


def model_params(
    model: nn.Module,
    teacher: Mapping[str, Any],
    synthesis: Mapping[str, Any],
    device: str,
    student: str | Mapping[str, Any] | None = None,
    run_files: RunFiles | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Register ``model`` and return the checked parameters of a run with it.

    Args:
        model: the teacher.
        teacher: ``classes``, ``class_names`` and ``input``, as in a parameter file.
        synthesis: keys of the section ``synthesis``. By default images are not compiled, and use
            as many threads as torch does in this process.
        device: ``auto``, ``cpu`` or ``cuda``.
        student: a source, or the section ``student``; None for runs without a student.
        run_files: the files of the run; None where no file is written.
        overrides: ``section.key`` to value, as for :func:`pipeline.load_params`.

    Raises:
        UserError: a value is wrong.
    """
    source = register(model)
    given = {"source": student or source} if not isinstance(student, Mapping) else dict(student)
    threads = min(torch.get_num_threads(), 1024)
    values: dict[str, Any] = {
        "teacher": {
            "source": source,
            "weights": str(run_files.weights) if run_files else None,
            **teacher,
            "input": _input_section(teacher["input"]),
        },
        "student": given,
        "synthesis": {"threads": threads, "compile": False, **synthesis},
        "execution": {"device": device, "workers": 1, "retries": 0},
    }
    if run_files is not None:
        values["paths"] = {
            "dataset": str(run_files.out),
            "students": str(run_files.path("students")),
            "reports": str(run_files.path("reports")),
        }
    return parse_params(values, "pipeline", overrides)


def without_weights_file(config: Config) -> Config:
    """The same run with the weights that the registered model holds now."""
    teacher = config.teacher.model_copy(update={"weights": None})
    return config.model_copy(update={"teacher": teacher})


def save_run(config: Config, run_files: RunFiles, keep: bool = False) -> WeightsFile:
    """Write the model's state dict and the parameters next to the dataset.

    An existing file is replaced only if an earlier run wrote it: the parameters hold a digest of
    themselves and the digest of the weights.

    Args:
        config: all parameters.
        run_files: the files of the run.
        keep: refuse to replace the files of a run with another model or other parameters.

    Returns:
        The name of the file of weights, and the digest of the bytes that were written.

    Raises:
        UserError: ``keep`` is set and such files exist, the state dict holds values that are not
            tensors, or a file that no run wrote is
            in the way.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in registered(config.teacher.source).state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(f"model: its state dict holds {name}, which is not a tensor")
        # A clone: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().contiguous().clone()
    weights = save(tensors)
    text = json.dumps(config.model_dump(mode="json"), indent=1) + "\n"
    text = f"{_HEADER}# sha256 of the weights: {digest_bytes(weights)}\n{text}"
    params = f"{text}{_SEAL}{digest_bytes(text.encode())}\n".encode()
    written = _weights_digest(run_files.params)
    if run_files.params.exists() and written is None:
        raise _in_the_way(run_files.params)
    if run_files.weights.exists() and digest_file(run_files.weights) not in (
        written,
        digest_bytes(weights),
    ):
        raise _in_the_way(run_files.weights)
    if keep and run_files.params.exists() and run_files.params.read_bytes() != params:
        raise UserError(
            f"{run_files.params} is of a run with other parameters or another model, which keep "
            "protects: name another directory as out"
        )
    write_bytes(run_files.weights, weights)
    write_bytes(run_files.params, params)
    return WeightsFile(run_files.weights.name, digest_bytes(weights))


def _weights_digest(params: Path) -> str | None:
    """The digest of the weights that a run wrote; None if no run wrote the parameters."""
    if not params.is_file():
        return None
    text, _, seal = params.read_bytes().rpartition(_SEAL.encode())
    found = re.search(rb"# sha256 of the weights: ([0-9a-f]{64})\n", text)
    sealed = seal.strip() == digest_bytes(text).encode()
    return found[1].decode() if sealed and found else None


def _in_the_way(path: Path) -> UserError:
    return UserError(
        f"{path} was not written by pipeline.synthesize, or was changed since: move it elsewhere, "
        "or name another directory as out"
    )


def read_run(model: nn.Module, out: str | Path) -> Config:
    """The parameters that :func:`save_run` wrote next to ``out``, with ``model`` as their teacher.

    Raises:
        UserError: there are none, or they are those of a model of another class.
    """
    run_files = RunFiles.of(out)
    if not run_files.params.is_file():
        raise UserError(
            f"there is no {run_files.params}: name as out a dataset that "
            "pipeline.synthesize(model=...) wrote"
        )
    source = register(model)
    config = load_params(run_files.params)
    if config.teacher.source != source:
        raise UserError(f"model is {source}, and {out} was made with {config.teacher.source}")
    return config


def _input_section(given: Input) -> dict[str, Any]:
    if isinstance(given, Mapping):
        section = dict(given)
    elif isinstance(given, Sequence) and len(given) == len(_INPUT_KEYS):
        section = dict(zip(_INPUT_KEYS, given, strict=True))
    else:
        raise UserError(
            f"input is {given!r}: give a dict with {', '.join(_INPUT_KEYS)}, or these five values "
            "in this order"
        )
    for name in ("mean", "std"):
        value = section.get(name)
        # The check of all parameters reports a value that is neither a number nor a row of them.
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            if isinstance(value, int | float | np.number):
                section[name] = [float(value)] * int(section.get("channels", 1))
            elif value is not None and not isinstance(value, str):
                section[name] = [float(each) for each in value]
    return section


@contextlib.contextmanager
def unchanged_process() -> Iterator[None]:
    """Restore the random generators and the number of threads when the block ends.

    Inside, torch has its initial state, and stderr is a stream.
    """
    threads = torch.get_num_threads()
    try:
        with restored_generators(), usual_torch_state(), with_stderr():
            yield
    finally:
        torch.set_num_threads(threads)
