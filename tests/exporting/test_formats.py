"""Each format loads in the programs that it is for: the same images and labels as the shards."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torchvision.datasets import ImageFolder

import pipeline as ds
from pipeline.cli import main
from pipeline.config.teacher import InputConfig
from pipeline.errors import UserError
from pipeline.exporting import parquet
from pipeline.exporting.formats import FORMATS
from pipeline.teachers.preprocessing import Preprocessing
from tests.command_line import printed, refused
from tests.conftest import Params, changed, dataset, make, tree
from tests.exporting.conftest import NAMES, Loaded, assert_same
from tests.test_inputs import unlike

DISTINCT = ["../../no (0)", *NAMES[1:3], "../../no (3)"]
FOLDERS = ["0_no_0", "1_no_a_b_---", "2_no", "3_no_3"]


def test_npz(rgb: Path, published: Loaded, tmp_path: Path) -> None:
    ds.Dataset(rgb).export("npz", tmp_path / "out")
    data = np.load(tmp_path / "out/data.npz")
    assert set(data) == {"images", "labels", "keys", "class_names"}
    assert (data["images"].dtype, data["labels"].dtype) == (np.uint8, np.int64)
    assert data["images"].shape == (20, 3, 6, 10)
    images = data["images"].transpose(0, 2, 3, 1)
    assert_same(list(zip(images, data["labels"].tolist(), strict=True)), published)
    assert data["class_names"].tolist() == DISTINCT
    assert data["keys"][7].endswith("-000000007")


def test_npz_as_the_teacher_sees_it(rgb: Path, tmp_path: Path) -> None:
    opened = ds.Dataset(rgb)
    opened.export("npz", tmp_path / "out", normalised=True)
    opened.export("npz", tmp_path / "last", normalised=True, layout="nhwc")
    (pixels, _) = next(opened.batches(20))
    shape = InputConfig(channels=3, height=6, width=10, mean=(0.4,) * 3, std=(0.3,) * 3)
    expected = Preprocessing.of(shape).normalise(pixels)
    images = np.load(tmp_path / "out/data.npz")["images"]
    assert images.dtype == np.float32
    assert torch.equal(torch.from_numpy(images), expected)
    channels_last = np.load(tmp_path / "last/data.npz")["images"]
    assert np.array_equal(channels_last, images.transpose(0, 2, 3, 1))
    with pytest.raises(UserError, match="write one of nchw, nhwc"):
        opened.export("npz", tmp_path / "other", layout="chwn")
    assert not (tmp_path / "other").exists()


def test_the_same_images_give_the_same_bytes(rgb: Path, tmp_path: Path) -> None:
    for name in ("npz", "imagefolder", "parquet"):
        for number in (1, 2):
            ds.Dataset(rgb).export(name, tmp_path / f"{name}{number}", images=8)
        assert tree(tmp_path / f"{name}1") == tree(tmp_path / f"{name}2")


def test_torchvision_reads_the_class_folders(rgb: Path, published: Loaded, tmp_path: Path) -> None:
    ds.Dataset(rgb).export("imagefolder", tmp_path / "out")
    data = ImageFolder(str(tmp_path / "out/train"))
    assert data.classes == FOLDERS
    order = sorted(range(20), key=lambda index: (published[index][1], index))
    loaded = [(np.asarray(image), label) for image, label in data]
    assert_same(loaded, [published[index] for index in order])


def test_a_class_without_images_keeps_the_numbers_of_the_others(rgb: Path, tmp_path: Path) -> None:
    ds.Dataset(rgb).export("imagefolder", tmp_path / "out", images=2)
    data = ImageFolder(str(tmp_path / "out/train"), allow_empty=True)
    first = ds.Dataset(rgb).plan.labels[:2].tolist()
    assert data.targets == sorted(first)


def test_hugging_face_reads_the_class_folders(rgb: Path, tmp_path: Path) -> None:
    ds.Dataset(rgb).export("imagefolder", tmp_path / "out")
    cache = str(tmp_path / "cache")
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=cache)
    assert data.features["label"].names == FOLDERS
    assert np.bincount(data["label"][:]).tolist() == [5, 5, 5, 5]


def test_hugging_face_reads_parquet(rgb: Path, published: Loaded, tmp_path: Path) -> None:
    ds.Dataset(rgb).export("parquet", tmp_path / "out")
    cache = str(tmp_path / "cache")
    for where in ({"path": str(tmp_path / "out")}, {"path": "parquet", "data_files": "file"}):
        if "data_files" in where:
            where["data_files"] = str(tmp_path / "out/train.parquet")
        data = datasets.load_dataset(**where, split="train", cache_dir=cache)
        assert isinstance(data.features["image"], datasets.Image)
        assert data.features["label"].names == DISTINCT
        assert_same([(np.asarray(row["image"]), row["label"]) for row in data], published)
        assert data[3]["key"].endswith("-000000003")


@pytest.mark.parametrize("limits", [{"MOST_ROWS": 6}, {"MOST_BYTES": 1000}])
def test_the_row_groups_of_parquet_are_bounded(
    rgb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(parquet, name, value)
    ds.Dataset(rgb).export("parquet", tmp_path / "out")
    file = pq.ParquetFile(tmp_path / "out/train.parquet")
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert sum(sizes) == 20 and len(sizes) > 1
    assert max(sizes) <= limits.get("MOST_ROWS", 10)


@pytest.mark.parametrize("name", ["npz", "imagefolder", "parquet"])
def test_card_and_provenance_lie_beside_the_images(rgb: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(rgb, copy)
    (copy / "provenance.json.dsse").write_text("a signature")
    said = ds.Dataset(copy).export(name, tmp_path / "out", images=8)
    assert said.endswith(
        f"{tmp_path / 'out'}: the first 2 images of each class, in the order of the keys"
    )
    out = tmp_path / "out"
    provenance = (rgb / "provenance.json").read_bytes()
    assert (out / "provenance.json").read_bytes() == provenance
    assert (out / "provenance.json.dsse").read_text() == "a signature"
    card = (out / "README.md").read_text()
    assert "8 of 20 images of 4 classes: the first 2 images of each class" in card
    assert hashlib.sha256(provenance).hexdigest() in card
    assert (rgb / "README.md").read_text().partition("---\n# ")[2] in card
    assert "configs:" not in card  # those of the shards


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels(tiny: Params, tmp_path: Path, channels: int) -> None:
    params = unlike(tiny, tmp_path, channels, 3)
    make(params)
    opened = ds.Dataset(dataset(params))
    opened.export("npz", tmp_path / "npz")
    (pixels, labels) = next(opened.batches(20))
    data = np.load(tmp_path / "npz/data.npz")
    assert np.array_equal(data["images"], pixels.numpy())
    assert np.array_equal(data["labels"], labels.numpy())
    for name in ("imagefolder", "parquet"):
        if channels == 2:
            with pytest.raises(UserError, match="no images of 2 channels: export to npz"):
                opened.export(name, tmp_path / name)
            assert not (tmp_path / name).exists()
        else:
            opened.export(name, tmp_path / name)
    if channels != 2:
        folders = sorted(path.name for path in (tmp_path / "imagefolder/train").iterdir())
        assert folders == ["0", "1", "2"]
        files = str(tmp_path / "parquet/train.parquet")
        data = datasets.load_dataset(
            "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
        )
        image = np.asarray(data[0]["image"])
        assert np.array_equal(image[None] if channels == 1 else image.transpose(2, 0, 1), pixels[0])


def test_the_command(capsys: pytest.CaptureFixture[str], made: Params, tmp_path: Path) -> None:
    root, out = str(dataset(made)), str(tmp_path / "out")
    words = ["export", root, "--to", "npz", out, "--images", "7", "--normalised"]
    assert printed(capsys, *words) == [
        f"exported 7 of 20 images to {out}: the first 2 or 3 images of each class, in the order "
        "of the keys"
    ]
    data = np.load(tmp_path / "out/data.npz")
    assert data["images"].dtype == np.float32 and len(data["labels"]) == 7
    assert "nothing is overwritten" in refused(capsys, *words)
    wrong: list[tuple[list[str], str]] = [
        (["--to", "tfrecord"], f"write one of {', '.join(FORMATS)}"),
        (["--to", "parquet", "--layout", "nhwc"], "parquet has no option layout: it takes no"),
        (["--to", "hub", "--normalised"], "hub has no option normalised: it takes only public"),
        (["--to", "npz", "--images", "21"], "from 1 to 20"),
        (["--to", "npz", "--images", "0"], "not a whole number above 0"),
    ]
    for options, said in wrong:
        assert said in refused(capsys, "export", root, str(tmp_path / "other"), *options)
    assert "not a finished dataset" in refused(
        capsys, "export", str(tmp_path), "--to", "npz", str(tmp_path / "other")
    )
    assert not (tmp_path / "other").exists()


def test_the_examples_of_the_page(
    rgb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs/consumers.md"
    text = page.read_text(encoding="utf-8").partition("## Export\n")[2].partition("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    shutil.copytree(rgb, "data/synthetic")
    commands = [line.split("#")[0].split() for line in text.splitlines() if "--to " in line]
    commands = [words for words in commands if words[:1] == ["dreamshard"]]
    assert len(commands) == 4
    for words in commands[:3]:
        assert main([word.replace("256", "16") for word in words[1:]]) == 0
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["images"].shape == (16, 3, 6, 10)
    assert len(names["folders"]) == names["rows"].num_rows == 20


def test_the_help_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    *others, last = FORMATS
    assert f"{', '.join(others)} or {last}" in words


def test_a_format_of_the_user(
    made: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labels(source: Any, out: str, *, end: str = "") -> str:
        Path(out).write_text(" ".join(str(sample.label) for sample in source.samples()) + end)
        return out

    monkeypatch.setitem(FORMATS, "labels", labels)
    opened = ds.Dataset(dataset(made))
    opened.export("labels", tmp_path / "labels.txt", end="!")
    expected = " ".join(str(label) for label in opened.plan.labels) + "!"
    assert (tmp_path / "labels.txt").read_text() == expected


def test_synthesize_returns_a_dataset_that_exports(tiny: Params, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(changed(tiny, {"synthesis.iterations": 1})))
    ds.synthesize(ds.load_params(path)).export("npz", tmp_path / "out", images=3)
    assert np.load(tmp_path / "out/data.npz")["labels"].size == 3
