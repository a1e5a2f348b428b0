"""The contract: consumers load a dataset unmodified and see the same images and labels."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import mlcroissant
import numpy as np
import open_clip_train.data as open_clip
import pyarrow.parquet as pq
import pytest
import timm.data
import webdataset as wds
import wids
from PIL import Image

from pipeline.execution.runner import open_runner
from pipeline.params import parse_params
from pipeline.stages.synthesize import synthesize
from pipeline.storage import digest_file
from pipeline.synthesis.check import load_checked_teacher
from pipeline.synthesis.spec import key_prefix
from tests.conftest import Params, dataset, make
from tests.test_inputs import unlike

REPOSITORY = Path(__file__).parents[2]
Loaded = list[tuple[np.ndarray, int]]
# Each is a trap for a format: YAML 1.1, the end of a card's head, an escape, a repeated name.
NAMES = ["no", '1:30\n---\n"a": {b} #', "\u2028\x85\x07 \U0001f600 \\ '", "no"]


def parameters(path: Path, **settings: Any) -> dict[str, Any]:
    """Parameters of a dataset in ``path``, with other keys of the section ``synthesis``."""
    return {
        "teacher": {
            "source": "torchvision:resnet18",
            "arguments": {"num_classes": 4},
            "weights": None,
            "classes": 4,
            "input": {
                "channels": 3,
                "height": 16,
                "width": 16,
                "mean": [0.5] * 3,
                "std": [0.25] * 3,
            },
        },
        "student": {"source": "torchvision:resnet18"},
        "synthesis": {
            "images": 20,
            "shard_size": 8,
            "batch_size": 8,
            "iterations": 1,
            "precision": "float32",
            "compile": False,
            "soft_labels": True,
            "views": 2,
            **settings,
        },
        "execution": {"device": "cpu", "workers": 1},
        "paths": {"dataset": str(path)},
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of RGB images from an untrained torchvision teacher, soft labels included."""
    path = tmp_path_factory.mktemp("consumers")
    settings = {"class_names": NAMES}
    params = parameters(path / "synthetic", captions="a photo of a {}")
    params["teacher"] |= settings
    config = parse_params(params)
    with open_runner(config) as run:
        synthesize(config, load_checked_teacher(config), run)
    return path / "synthetic"


@pytest.fixture(scope="module")
def published(root: Path) -> Loaded:
    """What the tars hold, by the plainest means: the provenance's byte ranges."""
    found: Loaded = []
    for table in sorted((root / "metadata").glob("*.parquet")):
        for row in pq.read_table(table).to_pylist():
            tar = (root / "train" / row["shard"]).read_bytes()
            png = tar[row["offset"] : row["offset"] + row["size"]]
            found.append((np.asarray(Image.open(io.BytesIO(png))), row["cls"]))
    assert len(found) == 20
    return found


def assert_same(loaded: Loaded, published: Loaded) -> None:
    assert len(loaded) == len(published)
    for (image, label), (expected, expected_label) in zip(loaded, published, strict=True):
        np.testing.assert_array_equal(image, expected)
        assert label == expected_label


def tars(root: Path) -> str:
    return str(root / "train" / "{000000..000002}.tar")


def snippets(document: str, contains: str) -> list[str]:
    """The Python code of a document that contains a text."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    codes: list[str] = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [code for code in codes if contains in code]


def test_webdataset(root: Path, published: Loaded) -> None:
    urls, parts = tars(root), ["png", "cls"]
    stream = wds.WebDataset(urls, shardshuffle=False).decode("rgb8", only=parts).to_tuple(*parts)
    assert_same([(image, label) for image, label in stream], published)


def test_webdataset_soft_labels(root: Path) -> None:
    urls = tars(root)
    for sample in wds.WebDataset(urls, shardshuffle=False).decode():
        assert sample["logits.npy"].shape == (4,)
        assert sample["views.npy"].shape == (2, 9 + 4)
        assert sample["json"]["teacher_pred"] == int(sample["logits.npy"].argmax())


@pytest.fixture
def other(root: Path, tmp_path: Path) -> Path:
    """The dataset of another seed."""
    provenance = json.loads((root / "provenance.json").read_bytes())
    given = provenance["predicate"]["buildDefinition"]["externalParameters"]
    assert given["synthesis"]["seed"] == 0
    config = parse_params(parameters(tmp_path / "other", seed=1))
    with open_runner(config) as run:
        synthesize(config, load_checked_teacher(config), run)
    return tmp_path / "other"


def test_two_datasets_together(root: Path, other: Path) -> None:
    """Their keys differ, and merged rows join with merged samples, each with its own image."""
    tars = [str(path) for folder in (root, other) for path in sorted(folder.glob("train/*.tar"))]
    samples = {s["__key__"]: s["png"] for s in wds.WebDataset(tars, shardshuffle=False)}
    rows = [
        row
        for folder in (root, other)
        for path in sorted(folder.glob("metadata/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(samples) == len({row["key"] for row in rows}) == 40
    for row in rows:
        assert hashlib.sha256(samples[row["key"]]).digest() == row["sha256"]
    for folder in (root, other):
        keys = [key for key in samples if key[:8] == rows[0 if folder == root else 20]["key"][:8]]
        assert keys == sorted(keys)
        assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9]{9}", key) for key in keys)


def test_a_growing_dataset_keeps_its_keys(tmp_path: Path) -> None:
    prefixes = set()
    for images in (20, 21):
        config = parse_params(parameters(tmp_path, seed=0, images=images))
        prefixes.add(key_prefix(config, "teacher"))
    assert len(prefixes) == 1
    for changes in ({"seed": 2}, {"batch_size": 4}, {"iterations": 2}, {"shard_size": 5}):
        prefixes.add(key_prefix(parse_params(parameters(tmp_path, **changes)), "teacher"))
    prefixes.add(key_prefix(config, "another"))
    assert len(prefixes) == 6


class Touch:
    """An object whose unpickling would make a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_the_examples_run_no_code(root: Path, tmp_path: Path) -> None:
    """The snippets of the documentation on a tampered tar: its pickles stay closed."""
    tampered, payload = tmp_path / "tampered", pickle.dumps(Touch(tmp_path / "executed"))
    shutil.copytree(root, tampered)
    with tarfile.open(root / "train" / "000000.tar") as tar:
        members = [(member, tar.extractfile(member)) for member in tar.getmembers()]
        key = members[0][0].name.partition(".")[0]
        with tarfile.open(tampered / "train" / "000000.tar", "w") as new:
            for extension in ("pyd", "pickle", "pth", "png.pyd"):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(payload)
                new.addfile(info, io.BytesIO(payload))
            for member, content in members:
                new.addfile(member, content)
    text = (Path(__file__).parents[2] / "docs" / "consumers.md").read_text()
    for library in ("webdataset", "wids"):
        (snippet,) = re.findall(
            rf"```python\n((?:import glob\n)?import {library}.*?)```", text, re.S
        )
        snippet = snippet.replace("data/synthetic", str(tampered)).replace("1234", "0")
        exec(snippet.replace("{000000..000007}", "{000000..000002}"), {})
    assert not (tmp_path / "executed").exists()


def test_wids(root: Path, published: Loaded) -> None:
    index = wids.ShardListDataset(str(root / "index.json"), base=str(root), keep=True)
    loaded = [(np.asarray(index[i][".png"]), index[i][".cls"]) for i in range(len(index))]
    assert_same(loaded, published)


def test_timm(root: Path, published: Loaded) -> None:
    loaded_by_timm = timm.data.create_dataset("wds/dreamshard", root=str(root), split="train")
    assert_same([(np.asarray(image), label) for image, label in loaded_by_timm], published)


@pytest.mark.parametrize("how", ["folder", "webdataset"])
def test_hugging_face(
    root: Path, published: Loaded, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    arguments: dict[str, Any] = {"split": "train", "cache_dir": str(tmp_path)}
    if how == "folder":
        table = datasets.load_dataset(str(root), **arguments)
    else:
        files = str(root / "train" / "*.tar")
        table = datasets.load_dataset("webdataset", data_files=files, **arguments)
    assert_same([(np.asarray(row["png"]), row["cls"]) for row in table], published)


def test_one_shard_loads_too(root: Path, tmp_path: Path) -> None:
    """With a single tar beside ``sizes.json`` the card's `configs:` must decide, not the count."""
    import shutil

    copy = tmp_path / "one"
    shutil.copytree(root, copy)
    for number in (1, 2):
        (copy / "train" / f"{number:06d}.tar").unlink()
    table = datasets.load_dataset(str(copy), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.num_rows == 8


def test_hugging_face_knows_the_names_of_the_classes(root: Path, tmp_path: Path) -> None:
    table = datasets.load_dataset(str(root), split="train", cache_dir=str(tmp_path))
    assert table.features["cls"].names == ["no (0)", *NAMES[1:3], "no (3)"]
    assert isinstance(table.features["png"], datasets.Image)
    assert table[0]["json"]["class_name"] == NAMES[table[0]["cls"]]
    (rename,) = snippets("docs/consumers.md", "rename_columns")
    scope = {"data": table}
    exec(rename, scope)
    assert {"image", "label"} < set(scope["data"].column_names)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("names", [None, ["1", "on", ""]])
def test_the_card_states_what_hugging_face_would_find(
    tiny: Params, tmp_path: Path, channels: int, names: list[str] | None
) -> None:
    """Other than the class, whose names only the card knows."""
    changes = {"teacher.class_names": names, "synthesis.views": 2}
    params = unlike(tiny, tmp_path, channels, 3, **changes)
    make(params)
    arguments = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    stated = datasets.load_dataset(str(dataset(params)), **arguments)
    (dataset(params) / "README.md").unlink()
    files = str(dataset(params) / "train/*.tar")
    found = datasets.load_dataset("webdataset", data_files=files, **arguments)
    label = stated.features["cls"]
    assert label.names == (names or ["0", "1", "2"])
    assert {**stated.features, "cls": None} == {**found.features, "cls": None}
    assert stated["cls"][:] == found["cls"][:]


@pytest.fixture
def open_clip_arguments(root: Path) -> SimpleNamespace:
    return SimpleNamespace(
        train_data=tars(root),
        val_data=tars(root),
        train_num_samples=None,
        val_num_samples=None,
        train_data_upsampling_factors=None,
        batch_size=4,
        workers=0,
        world_size=1,
        seed=0,
    )


@pytest.mark.parametrize("training", [False, True])
def test_open_clip(
    open_clip_arguments: SimpleNamespace,
    published: Loaded,
    training: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its own loaders; the one of training needs the documented line with webdataset 1.x."""
    monkeypatch.setattr(open_clip, "tar_file_expander", open_clip.tar_file_expander)
    (line,) = snippets("docs/consumers.md", "open_clip_train")
    exec(line, {})
    info = open_clip.get_wds_dataset(
        open_clip_arguments, np.asarray, training, tokenizer=lambda text: [text]
    )
    batches = list(info.dataloader)
    loaded = [
        (np.asarray(image), text) for pair in batches for image, text in zip(*pair, strict=True)
    ]
    captions = [(image, f"a photo of a {NAMES[label]}") for image, label in published]
    if training:
        assert info.dataloader.num_samples == 20
        assert counted(loaded) == counted(captions)
    else:
        assert_same(loaded, captions)


def counted(samples: list[tuple[np.ndarray, str]]) -> Counter[tuple[bytes, str]]:
    return Counter((image.tobytes(), text) for image, text in samples)


def test_open_clip_does_not_wait_for_captions_that_are_not_there(
    open_clip_arguments: SimpleNamespace, made: Params
) -> None:
    """Without ``sizes.json`` it stops at once and says which option it lacks."""
    open_clip_arguments.train_data = str(dataset(made) / "train/000000.tar")
    with pytest.raises(RuntimeError, match="--train-num-samples"):
        open_clip.get_wds_dataset(open_clip_arguments, np.asarray, True)


def test_croissant(root: Path, published: Loaded) -> None:
    data = mlcroissant.Dataset(root / "croissant.json")
    assert data.metadata.issues.errors == set()
    rows = list(data.records("rows"))
    assert [row["rows/cls"] for row in rows] == [label for _, label in published]
    names = [row["rows/class_name"].decode() for row in rows]
    assert names == [NAMES[label] for _, label in published]
    listed = {
        node["contentUrl"]: node["sha256"]
        for node in json.loads((root / "croissant.json").read_bytes())["distribution"]
        if node["@type"] == "cr:FileObject"
    }
    found = [*root.glob("train/*.tar"), *root.glob("metadata/*.parquet")]
    assert listed == {str(path.relative_to(root)): digest_file(path) for path in found}


@pytest.mark.parametrize("document", ["README.md", "docs/consumers.md"])
@pytest.mark.parametrize("workers", ["min(4, len(tars))", "4"])
def test_the_loader_of_the_documents_has_more_workers_than_shards(
    root: Path, tmp_path: Path, document: str, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = sorted((root / "train").glob("*.tar"))[:2]
    (tmp_path / "data/synthetic/train").mkdir(parents=True)
    for shard in shards:
        (tmp_path / "data/synthetic/train" / shard.name).symlink_to(shard)
    monkeypatch.chdir(tmp_path)
    (code,) = snippets(document, "WebLoader")
    assert "num_workers=min(4, len(tars))" in code
    code = code.replace("min(4, len(tars))", workers).replace("...", "seen += labels.tolist()")
    seen: list[int] = []
    exec(code, {"seen": seen})
    assert Counter(seen) == Counter(labels_of(root)[:16])


def labels_of(root: Path) -> list[int]:
    tables = [pq.read_table(path) for path in sorted((root / "metadata").glob("*.parquet"))]
    return [label for table in tables for label in table["cls"].to_pylist()]
