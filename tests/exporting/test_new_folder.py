"""The folder of an export is complete or absent, and nothing is overwritten."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.api.dataset import Dataset
from pipeline.errors import StopRequested, UserError
from pipeline.exporting.source import Source
from tests.conftest import Params, dataset, tree

KILLED = """
import os, sys
from pipeline.api.dataset import Dataset
from pipeline.exporting import new_folder, source

name, root, out, moment = sys.argv[1:]
if moment == "writing":
    def samples(self, read=source.Source.samples):
        for number, sample in enumerate(read(self)):
            if number == 15:
                os._exit(9)
            yield sample
    source.Source.samples = samples
else:
    new_folder._rename = lambda *names: os._exit(9)
Dataset(root).export(name, out)
"""


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_a_killed_export_leaves_nothing_under_the_name(
    made: Params, tmp_path: Path, moment: str
) -> None:
    out = tmp_path / "out"
    words = ["imagefolder", str(dataset(made)), str(out), moment]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], stderr=subprocess.DEVNULL)
    assert done.returncode == 9
    assert not out.exists()
    Dataset(dataset(made)).export("imagefolder", out)  # the leftover is in nobody's way
    assert len(list(out.glob("train/*/*.png"))) == 20


@pytest.mark.parametrize("error", [StopRequested(), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("name", ["npz", "imagefolder", "parquet"])
def test_a_failed_export_leaves_no_file(
    made: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: BaseException,
) -> None:
    read = Source.samples

    def samples(self: Source):  # type: ignore[no-untyped-def]
        for number, sample in enumerate(read(self)):
            if number == 15:
                raise error
            yield sample

    monkeypatch.setattr(Source, "samples", samples)
    before = tree(tmp_path)
    with pytest.raises(type(error)):
        Dataset(dataset(made)).export(name, tmp_path / "out")
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "empty", "link", "dangling"])
def test_nothing_is_overwritten(made: Params, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind in ("folder", "empty"):
        out.mkdir()
        if kind == "folder":
            (out / "mine").write_text("mine")
    else:
        (tmp_path / "other").mkdir()
        out.symlink_to(tmp_path / ("other" if kind == "link" else "nowhere"))
    before = tree(tmp_path)
    with pytest.raises(UserError, match="out exists: name a new folder"):
        Dataset(dataset(made)).export("npz", out)
    assert tree(tmp_path) == before


def test_a_folder_made_in_the_meantime_is_kept(
    made: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    read = Source.samples

    def samples(self: Source):  # type: ignore[no-untyped-def]
        out.mkdir()
        (out / "mine").write_text("mine")
        yield from read(self)

    monkeypatch.setattr(Source, "samples", samples)
    with pytest.raises(UserError, match="made by another program"):
        Dataset(dataset(made)).export("npz", out)
    assert tree(out).keys() == {"mine"}
    assert not list(tmp_path.glob(".dreamshard.*"))


def test_a_place_that_is_no_new_folder(
    made: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Dataset(dataset(made))
    with pytest.raises(UserError, match="is a URL: name a local folder"):
        opened.export("npz", "s3://bucket/out")
    with pytest.raises(UserError, match="lies in the dataset"):
        opened.export("npz", dataset(made) / "train/out")
    monkeypatch.chdir(tmp_path)
    opened.export("npz", "new/folder")
    assert (tmp_path / "new/folder/data.npz").is_file()


def test_the_permissions_are_those_of_a_new_folder(made: Params, tmp_path: Path) -> None:
    Dataset(dataset(made)).export("npz", tmp_path / "out")
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert os.access(tmp_path / "out/data.npz", os.R_OK)


def test_a_dataset_at_a_url(made: Params, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(dataset(made)), "/export-test", recursive=True)
    try:
        Dataset("memory://export-test").export("npz", tmp_path / "remote")
    finally:
        memory.rm("/export-test", recursive=True)
    Dataset(dataset(made)).export("npz", tmp_path / "local")
    assert tree(tmp_path / "remote") == tree(tmp_path / "local")
