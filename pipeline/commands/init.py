"""The command init: write params.yaml and dvc.yaml into a directory."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.teachers.registry import FACTORY, find_source, source_forms
from pipeline.teachers.source import PRETRAINED, Description, Source

TEMPLATES = Path(__file__).parents[1] / "templates"
SOURCE, WEIGHTS, SHAPE = "path/to/nets.py:factory", "path/to/teacher.safetensors", (3, 32, 32)
IGNORED = {
    # Git keeps the `.dvc` files of `dvc add`; DVC's cache keeps data and reports. With `/data/*`
    # DVC would take `/data/` itself for ignored, and overlook the `.dvc` files in it.
    ".gitignore": "__pycache__/\n/data/?*\n!/data/*.dvc\n/reports/\n",
    ".dvcignore": "__pycache__/\n*.tmp\n.*.lock\n",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Project:
    """What the files of a directory say: its teacher, and the real images to evaluate with.

    Paths are relative to the directory. ``shape`` and ``classes`` are None where the teacher's
    library knows them. ``arguments`` are those of the factory, as YAML. ``whole`` is the file that
    holds both network and weights, where there is one, and ``described`` what it says of its input.
    """

    source: str
    weights: str | None
    classes: int | None
    shape: tuple[int, int, int] | None
    data: str | None
    arguments: str = "{}"
    whole: Path | None = None
    student: str | None = None
    described: Description | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Project:
        """The project that the options describe. A missing option becomes a placeholder."""
        directory = Path(options.directory)
        source = options.source or SOURCE
        if options.source and ":" not in source:
            raise UserError(f"--source {source} names no factory: write {source_forms()}")
        kind, name = find_source(source)
        if (file := kind.model_file(name)) is not None:
            return cls._of_file(options, kind, file)
        known = kind.random_without_weights  # such a library publishes weights and their input
        weights = options.weights or (PRETRAINED if known else None if options.source else WEIGHTS)
        origin, _, factory = source.rpartition(":")
        if kind is FACTORY and origin.endswith(".py"):
            source = f"{_moved(origin, directory)}:{factory}"
        sized = kind.classes_argument and options.classes and _is_file(weights)
        return cls(
            source=source,
            arguments=f"{{{kind.classes_argument}: {options.classes}}}" if sized else "{}",
            weights=_moved(weights, directory) if weights else None,
            classes=options.classes or (None if known else 10),
            shape=options.input or (None if known else SHAPE),
            data=_moved(options.data, directory) if options.data else None,
        )

    @classmethod
    def _of_file(cls, options: argparse.Namespace, kind: Source, file: Path) -> Project:
        """The project of a file that holds the network too, which is read."""
        directory = Path(options.directory)
        if options.weights:
            raise UserError(f"--source {options.source} holds the weights: leave --weights out")
        _, height, width = options.input or (None, None, None)
        arguments = {"height": height, "width": width} if height else {}
        said = kind.describe(str(file), arguments, None)
        shape = (said.channels or SHAPE[0], said.height or SHAPE[1], said.width or SHAPE[2])
        moved = _moved(str(file), directory)
        return cls(
            source=f"{options.source.partition(':')[0]}:{moved}",
            weights=None,
            classes=options.classes or said.classes or 10,
            shape=options.input or shape,
            data=_moved(options.data, directory) if options.data else None,
            whole=Path(moved),
            student=kind.student,
            arguments=_flow(arguments),
            described=said,
        )

    def params(self) -> str:
        """The text of params.yaml."""
        text = (TEMPLATES / "params.yaml").read_text(encoding="utf-8")
        classes = f"  classes: {self.classes}\n" if self.classes else ""
        values = {
            "source": _quoted(self.source),
            "arguments": self.arguments,
            "weights": _quoted(self.weights),
            "classes": classes,
            "input": _input_lines(self.shape, self.described) if self.shape else "",
            "student": _quoted(self.source),
            "student_arguments": self.arguments,
            "data": _quoted(self.data),
        }
        if self.whole is not None:  # a trained network, which no student can start from
            values["student"] = self.student or SOURCE
            values["student_arguments"] = _flow({"num_classes": self.classes})
        return _filled(text, values)

    def inputs(self, directory: Path) -> list[str]:
        """The files that make the teacher, as DVC's dependencies."""
        origin = self.source.rpartition(":")[0]
        found = []
        if self.weights and (Path(self.weights).suffix or (directory / self.weights).exists()):
            found.append("${teacher.weights}")
        if self.whole is not None:
            return [*found, str(self.whole)]
        module = f"{origin.replace('.', '/')}.py"
        if self.source == SOURCE:
            return found
        if origin.endswith(".py"):
            found.append(origin)
        elif (directory / module).is_file():
            found.append(module)
        return found


def run(options: argparse.Namespace) -> int:
    """Write the files and print the next commands."""
    directory = Path(options.directory)
    if options.example:
        _refuse_teacher(options)
        params = (TEMPLATES / "digits.yaml").read_text(encoding="utf-8")
        pipeline = _dvc(["${teacher.weights}"], evaluates=True, teacher=_part("teacher_stage"))
    else:
        project = Project.of(options)
        params = project.params()
        pipeline = _dvc(project.inputs(directory), evaluates=project.data is not None)
    written = _write(directory, {"params.yaml": params, "dvc.yaml": pipeline}, options.force)
    print(f"written    {', '.join(str(path) for path in written)}")
    for line in _next_steps(options):
        print(line)
    return 0


def _next_steps(options: argparse.Namespace) -> Iterable[str]:
    yield f"next       cd {options.directory}"
    if options.example:
        yield "           python -m pipeline.examples.digits data/digits   # trains the teacher"
    else:
        yield "           edit params.yaml: student.source, and teacher.input if it is there"
        yield "           dreamshard probe --write        # tries the teacher, fills in values"
    yield "           dreamshard synthesize && dreamshard distill"
    yield "or         git init && dvc init && dvc repro   # needs: pip install dvc"


def _refuse_teacher(options: argparse.Namespace) -> None:
    for name in ("source", "weights", "classes", "input", "data"):
        if getattr(options, name) is not None:
            raise UserError(f"--example brings its own teacher: leave --{name} out")


def _write(directory: Path, files: dict[str, str], force: bool) -> list[Path]:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: name a directory")
    present = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    for name in files:
        if name in present:
            raise UserError(
                f"{directory / name} exists, and init replaces no file: name another directory, "
                "or move the file away"
            )
    others = sorted(name for name in present if not name.startswith("."))
    if others and not force:
        raise UserError(
            f"{directory} holds other files ({others[0]}): name an empty or a new directory, or "
            "add --force to write next to them"
        )
    directory.mkdir(parents=True, exist_ok=True)
    files = {**files, **{name: text for name, text in IGNORED.items() if name not in present}}
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    return [directory / name for name in files]


def _dvc(inputs: list[str], evaluates: bool, teacher: str = "") -> str:
    listed = [f'"{name}"' for name in inputs]
    evaluate = _part("evaluate_stage") if evaluates else ""
    names = ("evaluation.json", "confusion.csv") if evaluates else ()
    results = "".join(f"      - ${{paths.reports}}/{name}\n" for name in names)
    filled = {"teacher": teacher, "evaluate": evaluate, "results": results}
    text = _filled(_part("stages"), filled)
    values = {"inputs,": "".join(f"{name}, " for name in listed), "inputs": ", ".join(listed)}
    return _filled(text, values).rstrip("\n") + "\n"


def _part(name: str) -> str:
    return (TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8")


def _filled(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _is_file(weights: str | None) -> bool:
    """Whether weights are the user's. Published weights have their own number of classes."""
    path = Path(weights or "")
    return path.is_file() or path.suffix.islower()


def _input_lines(shape: tuple[int, int, int], said: Description | None) -> str:
    channels, height, width = shape
    natural = channels == 3
    mean = [0.485, 0.456, 0.406] if natural else [0.5] * channels
    std = [0.229, 0.224, 0.225] if natural else [0.25] * channels
    if said is not None and said.mean and said.std:
        mean, std = list(said.mean), [float(f"{value:.9g}") for value in said.std]
    return (
        "  # The teacher takes (pixel / 255 - mean) / std: write the values of its training.\n"
        f"  input:\n    channels: {channels}\n    height: {height}\n    width: {width}\n"
        f"    mean: {mean}\n    std: {std}\n"
    )


def _flow(values: Mapping[str, object]) -> str:
    """A YAML mapping on one line."""
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


def _quoted(text: str | None) -> str:
    """A YAML value; quoted where it holds a space or begins like another YAML value."""
    if text is None:
        return "null"
    plain = text[0].isalnum() or text[0] in "./_"
    return text if plain and " " not in text and "#" not in text else f'"{text}"'


def _moved(path: str, directory: Path) -> str:
    """Rewrite a path as relative to ``directory`` if the path names a file; else keep it."""
    if not Path(path).exists() or Path(path).is_absolute():
        return path
    return Path(os.path.relpath(path, directory)).as_posix()
