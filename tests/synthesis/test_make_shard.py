from __future__ import annotations

import io
import json
import math
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML

from pipeline.dataset.plan import make_plan
from pipeline.dataset.records import NULLABLE, SCHEMA
from pipeline.dataset.tar import decode_image, read_tar
from pipeline.distillation.job import distill
from pipeline.errors import UserError
from pipeline.execution.runner import JobsFailed
from pipeline.params import parse_params
from pipeline.stages import synthesize as synthesize_module
from pipeline.stages.distill import student_jobs
from pipeline.stages.synthesize import finalize, missing_jobs
from pipeline.stages.verify import verify
from pipeline.storage import digest_file
from pipeline.synthesis import make_shard as make_shard_module
from pipeline.synthesis.job import Competitor, ShardJob
from pipeline.synthesis.make_shard import make_shard
from pipeline.synthesis.shard_states import shard_states
from pipeline.synthesis.spec import round_objective
from tests.conftest import Params, changed, dataset, load, make, tree

WHOLE = ["README.md", "_info.json", "index.json", "provenance.json", "train/sizes.json"]
Row = dict[str, Any]


def shard_files(*numbers: int) -> list[str]:
    return [
        name
        for number in numbers
        for name in (
            f"metadata/{number:06d}.json",
            f"metadata/{number:06d}.parquet",
            f"train/{number:06d}.tar",
        )
    ]


def files(root: Path) -> list[str]:
    return list(tree(root))


def times(root: Path) -> dict[str, int]:
    """When the files of the shards and students were written."""
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for folder in ("train", "metadata", "students")
        for path in (root / folder).glob("0*")
    }


def states(params: Params) -> dict[int, str]:
    config, teacher = load(params)
    return shard_states(config, teacher.digest)


def rows(root: Path, number: int) -> list[Row]:
    found: list[Row] = pq.read_table(root / "metadata" / f"{number:06d}.parquet").to_pylist()
    return found


@pytest.fixture
def competing(tiny: Params) -> Params:
    """One adaptive round of 6 images after the 20 of the first synthesis."""
    return changed(tiny, {"adaptive.rounds": 1})


def test_the_files_of_a_finished_dataset(tiny: Params) -> None:
    assert make(tiny) == [0, 1]
    assert files(dataset(tiny)) == sorted([*WHOLE, *shard_files(0, 1)])


def test_a_second_run_makes_nothing(tiny: Params) -> None:
    make(tiny)
    before, written = tree(dataset(tiny)), times(dataset(tiny))
    assert make(tiny) == []
    assert tree(dataset(tiny)) == before
    assert times(dataset(tiny)) == written


@pytest.mark.parametrize("name", ["metadata/labels.csv", "README.md", "thesis.pdf"])
def test_a_directory_of_something_else_is_left_alone(tiny: Params, name: str) -> None:
    for file in (name, "train/000000.tar", "train/000007.tar"):
        (dataset(tiny) / file).parent.mkdir(parents=True, exist_ok=True)
        (dataset(tiny) / file).write_text("years of work")
    before = tree(dataset(tiny))
    with pytest.raises(UserError, match="holds other files"):
        make(tiny)
    assert tree(dataset(tiny)) == before


def test_a_first_run_that_was_killed_after_its_first_tar_goes_on(tiny: Params) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    for path in sorted(dataset(tiny).rglob("*")):
        if path.is_file() and path.name != "000000.tar":
            path.unlink()
    assert make(tiny) == [0, 1]
    assert tree(dataset(tiny)) == before


def test_a_licence_that_changed_and_changed_back_leaves_the_same_bytes(tiny: Params) -> None:
    named = changed(tiny, {"teacher.license": "mit"})
    make(named)
    before = tree(dataset(tiny))
    (dataset(tiny) / "train/000001.tar").unlink()
    assert make(changed(tiny, {"teacher.license": "apache-2.0"})) == [1]
    assert make(named) == []
    assert tree(dataset(tiny)) == before


def test_another_directory_gets_the_same_bytes(tiny: Params, tmp_path: Path) -> None:
    other = changed(tiny, {"paths.dataset": str(tmp_path / "deep" / "other")})
    make(tiny)
    make(other)
    assert tree(dataset(other)) == tree(dataset(tiny))


def test_another_home_of_the_teacher_gets_the_same_bytes(tiny: Params, tmp_path: Path) -> None:
    make(tiny)
    (tmp_path / "home").mkdir()
    for name in ("tinynet.py", "teacher.safetensors"):
        shutil.copy(tmp_path / name, tmp_path / "home" / name)
    moved = {
        "teacher.source": f"{tmp_path / 'home' / 'tinynet.py'}:classifier",
        "teacher.weights": str(tmp_path / "home" / "teacher.safetensors"),
    }
    assert make(changed(tiny, moved)) == []


def test_no_file_tells_where_it_was_made(competing: Params, tmp_path: Path) -> None:
    make(competing)
    for path in dataset(competing).rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize("folder", ["train", "metadata"])
def test_a_lost_file_brings_back_its_shard_alone(tiny: Params, folder: str) -> None:
    make(tiny)
    root = dataset(tiny)
    before, written = tree(root), times(root)
    for path in (root / folder).glob("000001.*"):
        content = path.read_bytes()
        path.unlink()
        assert states(tiny) == {0: "complete", 1: "missing" if path.suffix == ".json" else "stale"}
        assert make(tiny) == [1]
        assert path.read_bytes() == content
    assert tree(root) == before
    assert {n: t for n, t in times(root).items() if "000000" in n} == {
        n: t for n, t in written.items() if "000000" in n
    }


@pytest.mark.parametrize("name", ["train/000000.tar", "metadata/000000.parquet"])
def test_a_file_of_another_size_is_made_again(tiny: Params, name: str) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    with (dataset(tiny) / name).open("ab") as file:
        file.write(b"?")
    assert states(tiny) == {0: "stale", 1: "complete"}
    assert make(tiny) == [0]
    assert tree(dataset(tiny)) == before


def test_a_lost_file_of_the_whole_comes_back(tiny: Params) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    for name in WHOLE:
        (dataset(tiny) / name).unlink()
    assert make(tiny) == []
    assert tree(dataset(tiny)) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"shard": 1}'])
def test_a_record_that_cannot_be_read_is_no_record(tiny: Params, content: bytes) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    (dataset(tiny) / "metadata" / "000000.json").write_bytes(content)
    assert states(tiny) == {0: "missing", 1: "complete"}
    assert make(tiny) == [0]
    assert tree(dataset(tiny)) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("synthesis.iterations", 5),
        ("synthesis.seed", 1),
        ("synthesis.soft_labels", True),
        ("synthesis.batch_size", 3),
        ("synthesis.objective.tv", 0.5),
        ("teacher.class_names", ["a", "b", "c"]),
        ("teacher.input.std", [0.31]),
    ],
)
def test_what_changes_the_images_makes_every_shard_stale(
    tiny: Params, key: str, value: Any
) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    other = changed(tiny, {key: value})
    assert states(other) == {0: "stale", 1: "stale"}
    assert make(other) == [0, 1]
    assert states(other) == {0: "complete", 1: "complete"}
    after = tree(dataset(tiny))
    assert list(after) == list(before)
    assert not set(after.values()) & {before[name] for name in shard_files(0, 1)}
    assert make(tiny) == [0, 1]
    assert tree(dataset(tiny)) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("execution.device", "auto"),
        ("execution.retries", 7),
        ("execution.workers", 3),
        ("paths.reports", "elsewhere"),
        ("distillation.steps", 99),
        ("evaluation.data", "nowhere.tar"),
        ("teacher.sha256", None),
    ],
)
def test_what_does_not_change_the_images_makes_nothing(
    tiny: Params, key: str, value: Any, tmp_path: Path
) -> None:
    if key == "teacher.sha256":
        value = digest_file(tmp_path / "teacher.safetensors")
    make(tiny)
    before = tree(dataset(tiny))
    assert make(changed(tiny, {key: value})) == []
    assert tree(dataset(tiny)) == before


def test_another_teacher_makes_every_shard_stale(tiny: Params, tmp_path: Path) -> None:
    make(tiny)
    source = tmp_path / "tinynet.py"
    source.write_text(source.read_text().replace("nn.ReLU()", "nn.LeakyReLU()", 1))
    assert states(tiny) == {0: "stale", 1: "stale"}


def test_a_smaller_plan_leaves_no_orphan(tiny: Params) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    assert make(changed(tiny, {"synthesis.images": 12})) == []
    assert files(dataset(tiny)) == sorted([*WHOLE, *shard_files(0)])
    assert make(tiny) == [1]
    assert tree(dataset(tiny)) == before


def test_a_larger_plan_keeps_the_full_shards(tiny: Params) -> None:
    make(tiny)
    before = tree(dataset(tiny))
    assert make(changed(tiny, {"synthesis.images": 30})) == [1, 2]
    after = tree(dataset(tiny))
    assert {name: after[name] for name in shard_files(0)} == {
        name: before[name] for name in shard_files(0)
    }


def test_shard_ranges_add_up_to_the_whole(tiny: Params, tmp_path: Path) -> None:
    make(tiny)
    parts = changed(tiny, {"paths.dataset": str(tmp_path / "parts")})
    assert make(parts, range(0, 1)) == [0]
    assert files(tmp_path / "parts") == sorted(shard_files(0))
    assert make(parts, range(1, 2)) == [1]
    assert files(tmp_path / "parts") == sorted(shard_files(0, 1))
    finalize(*load(parts))
    assert tree(tmp_path / "parts") == tree(dataset(tiny))


def test_shard_ranges_in_another_order(tiny: Params, tmp_path: Path) -> None:
    make(tiny)
    parts = changed(tiny, {"paths.dataset": str(tmp_path / "parts")})
    assert make(parts, range(1, 2)) == [1]
    assert make(parts, range(1, 2)) == []
    assert files(tmp_path / "parts") == sorted(shard_files(1))
    assert make(parts, range(0, 2)) == [0]
    finalize(*load(parts))
    assert tree(tmp_path / "parts") == tree(dataset(tiny))


def test_finalize_names_what_is_missing(tiny: Params) -> None:
    params = changed(tiny, {"synthesis.shard_size": 4})
    make(params, range(1, 3))
    with pytest.raises(
        UserError, match=r"3 of 5 .*\(000000, 000003-000004\), the first 000000 \(missing\)"
    ):
        finalize(*load(params))
    assert files(dataset(params)) == sorted(shard_files(1, 2))
    other = changed(params, {"synthesis.iterations": 3})
    make(params)
    with pytest.raises(UserError, match=r"5 of 5 .*\(stale\)"):
        finalize(*load(other))


def test_the_last_range_may_reach_beyond_the_plan(tiny: Params) -> None:
    """An array of jobs of equal ranges overshoots, and its parts run in any order."""
    assert make(tiny, range(1, 8)) == [1]
    assert files(dataset(tiny)) == sorted(shard_files(1))
    with pytest.raises(UserError, match="the plan ends at 2"):
        make(tiny, range(8, 16))
    assert make(tiny, range(0, 1)) == [0]
    assert files(dataset(tiny)) == sorted(shard_files(0, 1))


def test_a_failed_shard_leaves_the_others_complete(
    tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = changed(tiny, {"synthesis.images": 30})
    make(three)
    again = changed(three, {"paths.dataset": str(tmp_path / "again")})
    real = make_shard

    def fragile(job: ShardJob, device: str, report: Any) -> Any:
        if job.number == 1:
            raise RuntimeError("out of luck")
        return real(job, device, report)

    with monkeypatch.context() as patch:
        patch.setattr(synthesize_module, "make_shard", fragile)
        with pytest.raises(JobsFailed, match="1 of 3 jobs failed; the first: out of luck"):
            make(again)
    assert states(again) == {0: "complete", 1: "missing", 2: "complete"}
    assert files(tmp_path / "again") == sorted(shard_files(0, 2))
    assert make(again) == [1]
    assert tree(tmp_path / "again") == tree(dataset(three))


def test_a_failed_shard_is_tried_again(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    real, attempts = make_shard, []

    def flaky(job: ShardJob, device: str, report: Any) -> Any:
        attempts.append(job.number)
        if attempts.count(1) == 1 and job.number == 1:
            raise RuntimeError("a bad moment")
        return real(job, device, report)

    monkeypatch.setattr(synthesize_module, "make_shard", flaky)
    assert make(changed(tiny, {"execution.retries": 1})) == [0, 1]
    assert attempts == [0, 1, 1]


def test_a_shard_is_not_made_again_when_only_the_answer_was_lost(
    tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stamps = make_shard, []

    def mute(job: ShardJob, device: str, report: Any) -> Any:
        made = real(job, device, report)
        tar = dataset(tiny) / "train" / f"{job.number:06d}.tar"
        stamps.append((tar.stat().st_ino, tar.stat().st_mtime_ns))
        if len(stamps) == 1:
            raise RuntimeError("died between the record and the answer")
        return made

    monkeypatch.setattr(synthesize_module, "make_shard", mute)
    assert make(changed(tiny, {"execution.retries": 1})) == [0, 1]
    assert len(stamps) == 3 and stamps[0] == stamps[1]


def test_a_crash_at_any_write_is_made_good(
    competing: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a stale dataset, the worst case: no file of it may pass for one of the new."""
    few = {
        "synthesis.images": 4,
        "synthesis.shard_size": 2,
        "synthesis.iterations": 1,
        "adaptive.images": 2,
        "adaptive.training.steps": 3,
        "adaptive.training.batch_size": 2,
    }
    competing = changed(competing, few)
    make(changed(competing, {"synthesis.iterations": 0}))
    stale = shutil.copytree(dataset(competing), tmp_path / "stale")
    make(competing)
    finished = tree(dataset(competing))
    real, crashes = os.replace, 0
    while True:
        root = dataset(competing)
        shutil.rmtree(root)
        shutil.copytree(stale, root)
        writes = 0

        def failing(source: str, target: str) -> None:
            nonlocal writes
            writes += 1
            if writes > crashes:  # noqa: B023
                raise OSError("the disk is full")
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            try:
                make(competing)
            except (JobsFailed, OSError) as error:
                assert "the disk is full" in str(error)
            else:
                break
        assert not list(root.rglob("*.tmp"))
        now = tree(root)
        for record in (root / "metadata").glob("0*.json"):
            for name, facts in json.loads(record.read_bytes())["files"].items():
                assert facts["sha256"] == now[name]
        for number, state in states(competing).items():
            if state == "complete":
                assert all(now[name] == finished[name] for name in shard_files(number))
        make(competing)
        assert tree(root) == finished
        crashes += 1
    old = tree(stale)
    assert crashes >= sum(
        old.get(name) != digest for name, digest in finished.items()
    )  # each failed once


def test_a_first_run_that_power_ended_goes_on(competing: Params) -> None:
    """With its first tar in place, and half of the first Parquet file; no marker is on the disk."""
    make(competing)
    root = dataset(competing)
    before = tree(root)
    for path in [path for path in root.rglob("*") if path.is_file()]:
        if path.name != "000000.tar":
            path.unlink()
    (root / "metadata" / ".000000.parquet.x1.tmp").write_bytes(b"half")
    make(competing)
    assert tree(root) == before


def test_leftovers_of_a_killed_run_are_swept_up(competing: Params) -> None:
    make(competing)
    root = dataset(competing)
    before = tree(root)
    for name in ("train/.000000.tar.x1.tmp", "metadata/.000001.json.y2.tmp", ".README.md.z3.tmp"):
        (root / name).write_bytes(b"half")
    (root / "students" / ".000001.safetensors.w4.tmp").write_bytes(b"half")
    make(competing)
    assert tree(root) == before


@pytest.mark.slow
def test_more_workers_make_the_same_bytes(competing: Params, tmp_path: Path) -> None:
    make(competing)
    two = changed(competing, {"execution.workers": 2, "paths.dataset": str(tmp_path / "two")})
    assert make(two) == [0, 1, 2]
    assert tree(tmp_path / "two") == tree(dataset(competing))


@pytest.mark.parametrize("soft_labels", [False, True])
def test_rows_and_samples_join_one_to_one(competing: Params, soft_labels: bool) -> None:
    params = changed(competing, {"synthesis.soft_labels": soft_labels})
    make(params)
    config, teacher = load(params)
    root = dataset(params)
    layout = make_plan(config.synthesis, config.adaptive, 3)
    joined = 0
    for shard in layout:
        data = (root / "train" / f"{shard.name}.tar").read_bytes()
        samples = list(read_tar(root / "train" / f"{shard.name}.tar"))
        batch_of = [i for i, batch in enumerate(shard.batches) for _ in range(batch.size)]
        for index, (row, (key, parts, offset)) in enumerate(
            zip(rows(root, shard.number), samples, strict=True)
        ):
            assert row["key"] == key == shard.key(index)
            assert (row["shard"], row["index"]) == (f"{shard.name}.tar", index)
            assert row["offset"] == offset
            assert data[row["offset"] : row["offset"] + row["size"]] == parts["png"]
            assert row["cls"] == int(parts["cls"]) == shard.labels[index]
            assert row["class_name"] == ["top", "middle", "bottom"][row["cls"]]
            assert row["round"] == shard.round
            assert row["batch"] == batch_of[index]
            assert row["seed"] == shard.batches[batch_of[index]].seed
            assert (row["iterations"], row["height"], row["width"]) == (4, 8, 8)
            facts = json.loads(parts["json"])
            assert facts["cls"] == row["cls"]
            assert facts["teacher_pred"] == row["teacher_pred"]
            pixels = torch.from_numpy(decode_image(parts["png"]).copy())[None]
            logits = teacher.network(teacher.preprocessing.normalise(pixels))[0]
            shares = logits.softmax(0)
            assert row["teacher_pred"] == logits.argmax().item()
            assert row["teacher_prob"] == pytest.approx(shares[row["cls"]].item(), abs=1e-4)
            entropy = -(shares * shares.log()).sum().item()
            assert row["teacher_entropy"] == pytest.approx(entropy, abs=1e-3)
            assert ("logits.npy" in parts) == soft_labels
            if soft_labels:
                stored = np.load(io.BytesIO(parts["logits.npy"]))
                assert np.allclose(stored, logits.numpy(), rtol=2e-3, atol=2e-2)
            joined += 1
    assert joined == 26


def test_the_losses_of_a_row_add_up(competing: Params) -> None:
    make(competing)
    config = parse_params(competing)
    for number in range(3):
        weights = round_objective(config, rows(dataset(competing), number)[0]["round"])
        for row in rows(dataset(competing), number):
            expected = (
                weights.classification * row["factor_classification"] * row["loss_classification"]
                + weights.tv * row["factor_tv"] * row["loss_tv"]
                + weights.l2 * row["loss_l2"]
                + weights.feature * row["loss_feature"]
                + weights.compete * (row["loss_compete"] or 0)
            )
            assert row["loss_total"] == pytest.approx(expected, rel=1e-4)
            nats = -math.log(row["teacher_prob"])
            assert row["loss_classification"] == pytest.approx(nats, rel=1e-3, abs=1e-5)


def test_the_parquet_schema(tiny: Params, tmp_path: Path) -> None:
    make(tiny)
    table = pq.read_table(dataset(tiny) / "metadata" / "000001.parquet")
    assert table.schema.equals(SCHEMA)
    for field in table.schema:
        assert field.metadata[b"description"]
        assert field.nullable == (field.name in NULLABLE)
    facts = json.loads(table.schema.metadata[b"dreamshard"])
    record = json.loads((dataset(tiny) / "metadata" / "000001.json").read_bytes())
    assert facts["spec"] == record["spec"]
    assert facts["teacher"]["classes"] == 3
    assert "weights" not in facts["teacher"]


def test_the_record_tells_the_truth_of_its_shard(tiny: Params) -> None:
    make(tiny)
    root = dataset(tiny)
    for number, images in ((0, 12), (1, 8)):
        record = json.loads((root / "metadata" / f"{number:06d}.json").read_bytes())
        found = rows(root, number)
        assert (record["images"], record["first"]) == (images, 12 * number)
        for name in (f"train/{number:06d}.tar", f"metadata/{number:06d}.parquet"):
            facts = record["files"].pop(name)
            assert facts == {
                "sha256": digest_file(root / name),
                "md5": digest_file(root / name, "md5"),
                "size": (root / name).stat().st_size,
            }
        assert record["files"] == {}
        for label in range(3):
            assert record["class_counts"][str(label)] == sum(r["cls"] == label for r in found)
        agree = sum(row["cls"] == row["teacher_pred"] for row in found) / images
        assert record["agreement"] == pytest.approx(agree, abs=1e-6)
        confidence = sum(row["teacher_prob"] for row in found) / images
        assert record["confidence"] == pytest.approx(confidence, abs=1e-5)
        assert [point["iteration"] for point in record["curve"]] == [0, 1, 2, 3, 4]


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
    sizes = json.loads((root / "train" / "sizes.json").read_bytes())
    assert sizes == {"000000.tar": 12, "000001.tar": 8}


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
    """Not those of whoever looks at them later, or completes them."""
    old, new = {"python": "3.11.1", "pillow": "11.0"}, {"python": "3.12.3", "pillow": "99.0"}
    monkeypatch.setattr(make_shard_module, "versions", lambda: old)
    make(tiny)
    monkeypatch.setattr(make_shard_module, "versions", lambda: new)
    assert make(tiny) == []
    assert verified(tiny) == []
    (dataset(tiny) / "train/000001.tar").unlink()
    assert make(tiny) == [1]
    assert verified(tiny) == []
    provenance = json.loads((dataset(tiny) / "provenance.json").read_bytes())
    found = provenance["predicate"]["buildDefinition"]["internalParameters"]["versions"]
    assert found == [old, new]


def test_images_per_class(tiny: Params) -> None:
    table = {"synthesis.images": None, "synthesis.images_per_class": {0: 9, 2: 5}}
    params = changed(tiny, table)
    assert make(params) == [0, 1]
    labels = [row["cls"] for number in (0, 1) for row in rows(dataset(params), number)]
    assert (labels.count(0), labels.count(1), labels.count(2)) == (9, 0, 5)


# Adaptive rounds.


def test_a_round_competes_with_a_student_of_its_own(competing: Params) -> None:
    assert make(competing) == [0, 1, 2]
    root = dataset(competing)
    students = [f"students/000001.{kind}" for kind in ("csv", "json", "safetensors")]
    assert files(root) == sorted([*WHOLE, *shard_files(0, 1, 2), *students])
    for number in (0, 1):
        for row in rows(root, number):
            assert row["round"] == 0
            assert all(row[name] is None for name in NULLABLE)
    competed = rows(root, 2)
    assert len(competed) == 6
    for row in competed:
        assert row["round"] == 1
        assert 0 <= row["js_divergence"] <= math.log(2) + 1e-6
        assert row["loss_compete"] == pytest.approx(1 - row["js_divergence"], abs=1e-6)
        assert row["student_pred"] in (0, 1, 2) and 0 <= row["student_prob"] <= 1
    with tarfile.open(root / "train" / "000002.tar") as tar:
        content = tar.extractfile("000000020.json")
        assert content is not None and json.loads(content.read())["round"] == 1


def test_a_second_run_of_rounds_makes_nothing(competing: Params) -> None:
    make(competing)
    before, written = tree(dataset(competing)), times(dataset(competing))
    assert make(competing) == []
    assert tree(dataset(competing)) == before
    assert times(dataset(competing)) == written


@pytest.mark.parametrize(
    ("lost", "made"),
    [
        (["train/000002.tar"], [2]),
        (["train/000000.tar"], [0]),
        (["students/000001.safetensors"], []),
        (["students/000001.csv"], []),
        (["students/000001.json", "metadata/000002.json"], [2]),
        (["train/000001.tar", "students/000001.safetensors", "train/000002.tar"], [1, 2]),
    ],
)
def test_what_is_lost_of_a_round_comes_back_the_same(
    competing: Params, lost: list[str], made: list[int]
) -> None:
    make(competing)
    before = tree(dataset(competing))
    for name in lost:
        (dataset(competing) / name).unlink()
    assert make(competing) == made
    assert tree(dataset(competing)) == before


def test_a_round_is_added_to_what_is_there_and_taken_away(tiny: Params) -> None:
    make(tiny)
    plain = tree(dataset(tiny))
    one, two = (changed(tiny, {"adaptive.rounds": rounds}) for rounds in (1, 2))
    assert make(one) == [2]
    after_one = tree(dataset(tiny))
    assert make(two) == [3]
    second = json.loads((dataset(tiny) / "students" / "000002.json").read_bytes())
    assert second["spec"]["start"] == after_one["students/000001.safetensors"]
    assert make(one) == []
    assert tree(dataset(tiny)) == after_one
    assert make(tiny) == []
    assert tree(dataset(tiny)) == plain


def test_another_student_makes_only_its_round_stale(competing: Params) -> None:
    make(competing)
    assert make(changed(competing, {"student.arguments": {"width": 5}})) == [2]
    assert make(changed(competing, {"adaptive.compete": 3.0})) == [2]
    assert make(changed(competing, {"adaptive.training.steps": 5})) == [2]


def test_a_student_that_would_be_another_today_makes_its_round_stale(competing: Params) -> None:
    """Also for those who only look, and before the student is trained anew."""
    make(competing)
    for change in ({"adaptive.training.steps": 5}, {"student.arguments": {"width": 5}}):
        other = changed(competing, change)
        assert states(other) == {0: "complete", 1: "complete", 2: "stale"}
        with pytest.raises(UserError, match=r"1 of 3 .* 000002 \(stale\)"):
            finalize(*load(other))
        assert any("shard 000002" in text for text in verified(other))
    assert verified(competing) == []


def test_a_student_that_another_run_trained_anew_is_not_competed_with(competing: Params) -> None:
    make(competing)
    config, teacher = load(competing)
    weights = dataset(competing) / "students/000001.safetensors"
    competitor = Competitor(weights, "0" * 64)
    (job,) = missing_jobs(config, teacher.digest, 1, competitor, [2])
    with pytest.raises(UserError, match="not the student that the round began with"):
        make_shard(job, "cpu", lambda images: None)


def test_a_checkpoint_of_a_stopped_round_to_other_parameters_is_swept_up(
    competing: Params,
) -> None:
    make(competing)
    before = tree(dataset(competing))
    (dataset(competing) / "students/000001.checkpoint").write_bytes(b"of 100,000 steps")
    assert make(competing) == []
    assert tree(dataset(competing)) == before


def verified(params: Params) -> list[str]:
    return verify(*load(params), 0.0, lambda images: None)


def test_rounds_in_shard_ranges(competing: Params, tmp_path: Path) -> None:
    make(competing)
    parts = changed(competing, {"paths.dataset": str(tmp_path / "parts")})
    with pytest.raises(UserError, match="make those first"):
        make(parts, range(1, 3))
    assert make(parts, range(0, 2)) == [0]
    assert files(tmp_path / "parts") == sorted(shard_files(0, 1))
    assert make(parts, range(2, 3)) == [2]
    finalize(*load(parts))
    assert tree(tmp_path / "parts") == tree(dataset(competing))


@pytest.mark.parametrize(
    "changes",
    [
        {"adaptive.training.batch_size": 21},
        {"student.source": "torch.nn:Nothing"},
        {"student.arguments": {"classes": 4}},
    ],
)
def test_what_a_round_cannot_do_is_said_before_any_work(
    competing: Params, changes: dict[str, Any]
) -> None:
    with pytest.raises(UserError):
        make(changed(competing, changes))
    assert not dataset(competing).exists() or files(dataset(competing)) == []


def test_masked_reaches_the_rounds_alone(tiny: Params) -> None:
    config = parse_params(changed(tiny, {"adaptive.rounds": 1, "adaptive.masked": True}))
    assert [round_objective(config, round_).masked for round_ in (0, 1)] == [False, True]


def test_jobs_compute_with_the_threads_they_are_to(made: Params) -> None:
    config, teacher = load(made)
    (student,) = student_jobs(config, teacher)
    torch.set_num_threads(2)
    try:
        distill(student, "cpu", lambda images: None)
        assert torch.get_num_threads() == 1
        (dataset(made) / "train/000001.tar").unlink()
        torch.set_num_threads(2)
        (shard,) = missing_jobs(config, teacher.digest, 0, None, range(2))
        make_shard(shard, "cpu", lambda images: None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
