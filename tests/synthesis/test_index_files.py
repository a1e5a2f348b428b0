from __future__ import annotations

import json

import pytest
from ruamel.yaml import YAML

from pipeline.dataset.tar import read_tar
from pipeline.storage import digest_file
from pipeline.synthesis import publish_shard as publish_shard_module
from tests.conftest import Params, changed, dataset, make, tree
from tests.synthesis.shards import rows, shard_files, verified


def test_the_index_files(tiny: Params) -> None:
    make(tiny)
    root = dataset(tiny)
    names = ["train/000000.tar", "train/000001.tar"]
    index = json.loads((root / "index.json").read_bytes())
    assert index["__kind__"] == "wids-shard-index-v1"
    assert index["shardlist"] == [
        {
            "url": name,
            "nsamples": images,
            "filesize": (root / name).stat().st_size,
            "md5sum": digest_file(root / name, "md5"),
        }
        for name, images in zip(names, (12, 8), strict=True)
    ]
    split = json.loads((root / "_info.json").read_bytes())["splits"]["train"]
    assert (split["filenames"], split["shard_lengths"]) == (names, [12, 8])
    assert split["num_samples"] == 20
    assert not (root / "train" / "sizes.json").exists()


def test_the_card_tells_where_the_images_are(tiny: Params) -> None:
    make(tiny)
    _, head, text = (dataset(tiny) / "README.md").read_text().split("---\n", 2)
    facts = YAML(typ="safe", pure=True).load(head)
    (config,) = facts["configs"]
    (split,) = config["data_files"]
    assert split["split"] == "train"
    assert len(list(dataset(tiny).glob(split["path"]))) == 2
    assert facts["size_categories"] == ["n<1K"]
    assert "20 images of 3 classes in 2 shards, 1 x 8 x 8" in text


def test_captions_and_the_sizes_for_open_clip_come_and_go_together(tiny: Params) -> None:
    root = dataset(tiny)
    captioned = changed(tiny, {"synthesis.captions": "the {} one"})
    make(captioned)
    sizes = json.loads((root / "train" / "sizes.json").read_bytes())
    assert sizes == {"000000.tar": 12, "000001.tar": 8}
    for number in (0, 1):
        samples = read_tar(root / "train" / f"{number:06d}.tar")
        for row, (_, parts, _) in zip(rows(root, number), samples, strict=True):
            assert parts["txt"].decode() == f"the {row['class_name']} one"
    assert verified(captioned) == []
    assert verified(tiny) != []
    assert make(tiny) == [0, 1]
    assert not (root / "train" / "sizes.json").exists()
    assert verified(tiny) == []


def test_provenance_names_every_shard_file_by_digest(competing: Params) -> None:
    make(competing)
    now = tree(dataset(competing))
    statement = json.loads((dataset(competing) / "provenance.json").read_bytes())
    subjects = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
    assert set(shard_files(0, 1, 2)) <= set(subjects)
    assert subjects == {name: now[name] for name in subjects}
    inputs = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [entry["name"] for entry in inputs] == ["teacher", "weights of the teacher", "student"]
    assert inputs[2]["digest"]["sha256"] == now["students/000001.safetensors"]


def test_provenance_names_the_versions_that_made_the_shards(
    tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later process that verifies or completes the dataset does not change these versions."""
    old, new = {"python": "3.11.1", "pillow": "11.0"}, {"python": "3.12.3", "pillow": "99.0"}
    monkeypatch.setattr(publish_shard_module, "versions", lambda: old)
    make(tiny)
    monkeypatch.setattr(publish_shard_module, "versions", lambda: new)
    assert make(tiny) == []
    assert verified(tiny) == []
    (dataset(tiny) / "train/000001.tar").unlink()
    assert make(tiny) == [1]
    assert verified(tiny) == []
    provenance = json.loads((dataset(tiny) / "provenance.json").read_bytes())
    found = provenance["predicate"]["buildDefinition"]["internalParameters"]["versions"]
    assert found == [old, new]
