"""The wheel, installed into a fresh environment, in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import pipeline

REPOSITORY = Path(__file__).parents[1]
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = [
    "--set=synthesis.images=30",
    "--set=synthesis.iterations=4",
    "--set=distillation.steps=4",
    "--set=distillation.batch_size=8",
    "--set=distillation.seeds=[0]",
    "--set=distillation.noise_baseline=false",
    "--set=distillation.procedural_baseline=false",
    "--set=execution.workers=1",
]

JOB = """
from pathlib import Path
import pipeline
from pipeline.cli import main
from pipeline.examples import digits

print(pipeline.__file__)
digits.EPOCHS = 2
digits.main(Path("data/digits"))
for command in ("synthesize", "distill", "evaluate", "summary"):
    assert main([command, *{small}]) == 0
import notebook
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the package's files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("pipeline", "flows", "examples", "tests"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(source)], check=True)
    (path,) = out.glob("dreamshard-*.whl")
    return path


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of an environment that has the wheel.

    The environment sees the libraries of this one, but not this clone.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    packages = next(home.glob("lib/python*/site-packages"))
    libraries = sysconfig.get_path("purelib")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(packages), str(wheel)], check=True)
    # `pip --target` writes programs beside the packages, with this interpreter in their first line.
    program = packages / "bin/dreamshard"
    text = program.read_text().partition("\n")[2]
    target = home / "bin/dreamshard"
    target.write_text(f"#!{home / 'bin/python'}\n{text}")
    target.chmod(0o755)
    # Unlike a .pth file that names the folder alone, this reads no .pth file of the libraries: an
    # editable installation of this clone stays invisible.
    (packages / "libraries.pth").write_text(f"import sys; sys.path.append({libraries!r})\n")
    return home / "bin"


def run(program: Path, *words: str, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PATH"] = f"{program.parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [program, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_a_wheel_holds(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.partition("/")[0] for name in names}
    assert folders == {"pipeline", "flows", f"dreamshard-{pipeline.__version__}.dist-info"}
    ours = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("pipeline", "flows")
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours <= set(names)
    metadata = next(name for name in names if name.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_citation_has_the_version() -> None:
    text = (REPOSITORY / "CITATION.cff").read_text()
    assert f"\nversion: {pipeline.__version__}\n" in text
    assert f"## [{pipeline.__version__}]" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_licence_is_named_once() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    licence = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License" in licence and "APPENDIX" in licence


@pytest.mark.slow
def test_an_empty_folder_becomes_the_default_job_and_the_notebook_example(
    commands: Path, tmp_path: Path
) -> None:
    program = commands / "dreamshard"
    assert run(program, "--version", folder=tmp_path) == f"dreamshard {pipeline.__version__}\n"
    run(program, "init", ".", "--example", "digits", folder=tmp_path)
    page = (REPOSITORY / "docs/api.md").read_text()
    memory = page[: page.index("## A parameter file")]
    (tmp_path / "notebook.py").write_text("\n".join(EXAMPLE.findall(memory)))
    # One process for all: importing torch takes longer than the work.
    (tmp_path / "job.py").write_text(JOB.format(small=SMALL))
    out = run(commands / "python", "job.py", folder=tmp_path).splitlines()
    assert Path(out[0]).is_relative_to(commands.parent)
    assert "made 1 shard in data/synthetic" in out
    assert "trained 1 student in data/students" in out
    assert any("on 540 real images" in line for line in out)
    assert (tmp_path / "data/mine/train/000000.tar").is_file()
