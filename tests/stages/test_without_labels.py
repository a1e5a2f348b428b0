"""A dataset of ``teacher.labels: none`` from the plan to the signature: no label anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import pipeline as ds
from pipeline.cli import main
from pipeline.dataset.records import LABEL_COLUMNS
from pipeline.dataset.stream import NO_LABEL
from pipeline.dataset.tar import read_tar
from pipeline.errors import BadShardError
from pipeline.execution.runner import open_runner
from pipeline.stages.repair import repair
from pipeline.stages.verify import verify
from tests.command_line import printed, refused
from tests.conftest import Params, changed, dataset, load, make, tree, write_params
from tests.stages.forging import rewrite_record, rewrite_rows


@pytest.fixture
def copied(unlabelled_dataset: Params, tmp_path: Path) -> Params:
    root = tmp_path / "copied"
    shutil.copytree(dataset(unlabelled_dataset), root / "dataset")
    names = ("dataset", "students", "reports")
    return changed(unlabelled_dataset, {f"paths.{name}": str(root / name) for name in names})


def problems(params: Params) -> list[str]:
    config, teacher = load(params)
    return verify(config, teacher, 0.9, lambda images: None)


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    return "\n".join(printed(capsys, *arguments))


def test_samples_rows_and_records_have_no_label(unlabelled_dataset: Params) -> None:
    root = dataset(unlabelled_dataset)
    for _, parts, _ in read_tar(root / "train/000000.tar"):
        assert set(parts) == {"json", "png"}
        assert json.loads(parts["json"]) == {"round": 0}
    rows = pq.read_table(root / "metadata/000000.parquet").to_pylist()
    for row in rows:
        assert all(row[name] is None for name in LABEL_COLUMNS)
        assert row["loss_feature"] > 0
        assert row["flaw"] is None
    record = ds.Dataset(root).record(0)
    assert (record.agreement, record.confidence, record.class_counts) == (None, None, {})
    assert "classification" not in record.curve[0]
    assert record.spec["objective"]["classification"] == 0


def test_the_columns_of_a_dataset_with_labels_are_never_null(made: Params) -> None:
    schema = pq.read_schema(dataset(made) / "metadata/000000.parquet")
    assert not any(schema.field(name).nullable for name in LABEL_COLUMNS)


def test_the_index_files_name_no_class(unlabelled_dataset: Params) -> None:
    root = dataset(unlabelled_dataset)
    card = (root / "README.md").read_text()
    assert "20 images without labels in 2 shards" in card
    for word in ("class", "label that", "answer"):
        assert word not in card.replace("without labels", "")
    croissant = json.loads((root / "croissant.json").read_text())
    assert croissant["description"].startswith("20 synthetic images without labels, made from the")
    teacher = json.loads((root / "provenance.json").read_text())["predicate"]["buildDefinition"]
    assert teacher["externalParameters"]["teacher"]["labels"] == "none"


def test_a_dataset_without_labels_opens_from_its_folder(unlabelled_dataset: Params) -> None:
    opened = ds.Dataset(dataset(unlabelled_dataset))
    assert (opened.classes, opened.class_names) == (0, None)
    assert "20 images without labels in 2 shards" in repr(opened)
    ((pixels, labels),) = opened.stream(batch_size=20, epochs=1)
    assert (tuple(pixels.shape), labels.tolist()) == ((20, 1, 8, 8), [NO_LABEL] * 20)
    ordered, _ = next(opened.batches(20))
    assert torch.equal(ordered.flatten(1).sum(1).sort()[0], pixels.flatten(1).sum(1).sort()[0])


def test_a_missing_label_is_damage_where_there_are_labels(
    unlabelled_dataset: Params, made: Params
) -> None:
    shutil.copy(dataset(unlabelled_dataset) / "train/000000.tar", dataset(made) / "train")
    with pytest.raises(BadShardError, match="has no part 'cls'"):
        next(ds.Dataset(dataset(made)).batches(5))


def test_it_verifies_and_damage_is_repaired(copied: Params) -> None:
    root = dataset(copied)
    assert problems(copied) == []
    before = tree(root)
    (root / "train/000001.tar").write_bytes(b"damage")
    assert problems(copied)
    config, teacher = load(copied)
    with open_runner(config) as run:
        assert repair(config, teacher, run) == ["shard 000001"]
    assert tree(root) == before


@pytest.mark.parametrize("column", LABEL_COLUMNS)
def test_a_forged_label_is_found(copied: Params, column: str) -> None:
    value = "a" if column == "class_name" else 0
    rewrite_rows(dataset(copied), 0, lambda rows: rows[2].update({column: value}))
    assert any(f"{column} is " in problem for problem in problems(copied))


def test_a_forged_class_member_is_found(copied: Params, made: Params) -> None:
    """A tar of labelled images in the place of one without labels."""
    name = "train/000000.tar"
    shutil.copy(dataset(made) / name, dataset(copied) / name)
    rewrite_record(dataset(copied), 0)
    assert any(p.startswith("shard 000000") for p in problems(copied))


def test_the_images_have_the_statistics_of_the_teacher(unlabelled: Params) -> None:
    def feature(iterations: int) -> float:
        params = changed(
            unlabelled,
            {
                "synthesis.iterations": iterations,
                "paths.dataset": f"{unlabelled['paths']['dataset']}-{iterations}",
            },
        )
        make(params)
        rows = pq.read_table(dataset(params) / "metadata/000000.parquet").to_pylist()
        return float(rows[0]["loss_feature"])

    assert feature(40) < 0.5 * feature(0)


def test_the_commands(
    unlabelled_dataset: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = changed(unlabelled_dataset, {"paths.reports": str(tmp_path / "reports")})
    path = str(write_params(params, tmp_path / "params.yaml"))
    assert "20 images without labels in 2 shards" in _printed(capsys, "plan", "--params", path)
    assert "images look" in _printed(capsys, "synthesize", "--params", path)
    assert not (tmp_path / "reports/classes.csv").exists()
    report = json.loads((tmp_path / "reports/synthesis.json").read_text())
    assert "teacher_agreement" not in report
    assert (tmp_path / "reports/grids/round-0.png").is_file()
    assert "2 complete" in _printed(capsys, "status", "--params", path)
    assert "statistics_gap" in _printed(capsys, "measure", "--params", path)
    summary = _printed(capsys, "summary", "--params", path)
    assert "20 images, no classes" in summary
    assert "students" not in summary
    probed = _printed(capsys, "probe", "--params", path, "--seconds", "1")
    assert "1 BatchNorm layers, no labels" in probed
    assert "R_feature" in probed
    for command, message in (
        ("distill", "distill trains students on the teacher's logits"),
        ("calibrate", "calibrate compares the classes of the teacher"),
        ("evaluate", "evaluate measures accuracies"),
    ):
        assert message in refused(capsys, command, "--params", path)


def test_a_signature_covers_it(copied: Params, tmp_path: Path) -> None:
    path = str(write_params(copied, tmp_path / "params.yaml"))
    key = str(tmp_path / "key")
    assert main(["sign", "--params", path, "--new-key", key]) == 0
    assert main(["authenticate", copied["paths"]["dataset"], "--key", f"{key}.pub"]) == 0
