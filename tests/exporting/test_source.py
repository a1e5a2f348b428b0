"""A tar that is not the one of the provenance is refused before anything is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.api.dataset import Dataset
from pipeline.cli import main
from pipeline.errors import BadShardError, UserError
from tests.conftest import Params, dataset

FORMATS = ["npz", "imagefolder", "parquet"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_changed_tar_is_refused(
    capsys: pytest.CaptureFixture[str], made: Params, tmp_path: Path, name: str
) -> None:
    tar = dataset(made) / "train/000001.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    before = sorted(tmp_path.iterdir())
    assert main(["export", str(dataset(made)), "--to", name, str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]  # after the progress bar
    assert "train/000001.tar was changed: its sha256 is not that of provenance.json" in line
    assert sorted(tmp_path.iterdir()) == before


def test_a_missing_tar_is_refused(made: Params, tmp_path: Path) -> None:
    (dataset(made) / "train/000001.tar").unlink()
    with pytest.raises(UserError, match=r"000001\.tar is missing: run verify --repair"):
        Dataset(dataset(made)).export("npz", tmp_path / "out")


def test_a_tar_without_a_chosen_image_is_not_read(made: Params, tmp_path: Path) -> None:
    (dataset(made) / "train/000001.tar").unlink()
    Dataset(dataset(made)).export("npz", tmp_path / "out", images=12)


def test_a_damaged_provenance_is_refused(made: Params, tmp_path: Path) -> None:
    path = dataset(made) / "provenance.json"
    statement = json.loads(path.read_bytes())
    statement["subject"] = [{"name": "train/000000.tar"}]
    opened = Dataset(dataset(made))
    path.write_text(json.dumps(statement))
    with pytest.raises(UserError, match=r"provenance\.json is damaged"):
        opened.export("npz", tmp_path / "out")


@pytest.mark.parametrize("fault", ["key", "class", "number"])
def test_a_tar_of_other_samples_is_refused(made: Params, tmp_path: Path, fault: str) -> None:
    """Also where a forged provenance names it."""
    root = dataset(made)
    first, second = root / "train/000000.tar", root / "train/000001.tar"
    path = root / "provenance.json"
    statement = json.loads(path.read_bytes())
    if fault == "number":
        first.write_bytes(second.read_bytes())
    elif fault == "key":
        data = first.read_bytes()
        name = data[:100].rstrip(b"\0")
        changed = name.replace(b"-000000000", b"-000000099")
        assert changed != name
        first.write_bytes(_renamed(data, name, changed))
    else:
        synthesis = statement["predicate"]["buildDefinition"]["externalParameters"]["synthesis"]
        synthesis["seed"] += 1  # plans other labels
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    for subject in statement["subject"]:
        if subject["name"] == "train/000000.tar":
            subject["digest"]["sha256"] = digest
    path.write_text(json.dumps(statement))
    with pytest.raises(BadShardError, match=r"train/000000\.tar"):
        Dataset(root).export("imagefolder", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _renamed(data: bytes, old: bytes, new: bytes) -> bytes:
    """The tar with every member of one sample renamed, with the checksums of its headers."""
    stem, other = old.partition(b".")[0], new.partition(b".")[0]
    result = bytearray(data)
    place = data.find(stem)
    while place >= 0:
        if place % 512 == 0:
            header = bytearray(result[place : place + 512].replace(stem, other))
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            result[place : place + 512] = header
        place = data.find(stem, place + 1)
    return bytes(result)
