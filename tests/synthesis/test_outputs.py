"""Files of a user survive, whatever their names, in each of the three output folders."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from pipeline.dataset.layout import CLAIM, LOCK
from pipeline.errors import UserError
from pipeline.execution.runner import open_runner
from pipeline.local_files import TEMPORARY
from pipeline.reports.files import report_synthesis
from pipeline.stages.distill import distill_students
from pipeline.stages.finalize import finalize
from pipeline.stages.repair import repair
from pipeline.synthesis.outputs import check_claim, claim_bytes
from tests.conftest import Params, changed, dataset, load, make, tree
from tests.synthesis.shards import shard_files, verified

NAMES = ["train/000000.tar", "train/000007.tar", "metadata/000000.json", "precious.txt"]


def write(root: Path, *names: str, content: str = '{"user": "mine"}') -> dict[str, str]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return tree(root)


def train(params: Params) -> None:
    config, teacher = load(params)
    with open_runner(config) as run:
        distill_students(config, teacher, run)


def mend(params: Params) -> None:
    config, teacher = load(params)
    with open_runner(config) as run:
        repair(config, teacher, run)


@pytest.mark.parametrize("names", [NAMES, NAMES[2:3], [".notes.tmp"], ["metadata/.x.json.1.tmp"]])
@pytest.mark.parametrize("work", [make, mend, lambda params: finalize(*load(params))])
def test_a_dataset_folder_of_a_user(tiny: Params, names: list[str], work: object) -> None:
    before = write(dataset(tiny), *names)
    with pytest.raises(UserError, match=r"paths\.dataset .* holds other files"):
        work(tiny)  # type: ignore[operator]
    assert tree(dataset(tiny)) == before


@pytest.mark.parametrize(
    "name", ["student-7.safetensors", "noise-3.json", "student-2024.csv", "student-0.checkpoint"]
)
def test_a_students_folder_of_a_user(made: Params, name: str) -> None:
    root = Path(made["paths"]["students"])
    before = write(root, name)
    with pytest.raises(UserError, match=rf"paths\.students .* holds other files \({name}\)"):
        train(made)
    assert tree(root) == before


def test_names_of_ours_are_replaced_only_in_a_claimed_folder(tiny: Params) -> None:
    make(tiny)
    train(tiny)
    for folder, name in (("dataset", "README.md"), ("students", "student-0.safetensors")):
        root = Path(tiny["paths"][folder])
        ours = (root / name).read_bytes()
        write(root, name, "notes.txt", content="mine")
        make(tiny)
        train(tiny)
        assert (root / name).read_bytes() == ours
        assert (root / "notes.txt").read_text() == "mine"
        unclaimed = {f"paths.{folder}": str(root.with_name(f"my-{folder}"))}
        before = write(root.with_name(f"my-{folder}"), name, content="mine")
        with pytest.raises(UserError, match="holds other files"):
            (make if folder == "dataset" else train)(changed(tiny, unclaimed))
        assert tree(root.with_name(f"my-{folder}")) == before


@pytest.mark.parametrize("name", ["synthesis.json", "grids/round-3.png", "accuracy.csv"])
def test_a_reports_folder_of_a_user(tiny: Params, name: str) -> None:
    root = Path(tiny["paths"]["reports"])
    before = write(root, name)
    with pytest.raises(UserError, match=rf"paths\.reports .* holds other files \({name}\)"):
        make(tiny)
    assert tree(root) == before and not list(dataset(tiny).glob("*"))


def test_a_user_adds_files_to_a_folder_of_ours(made: Params) -> None:
    """No record names their digests, though their names are those of surplus files."""
    strangers = ["train/000009.tar", "metadata/000009.json", "students/000004.json", ".mine.tmp"]
    write(dataset(made), *strangers)
    assert make(made) == []
    train(made)
    students = Path(made["paths"]["students"])
    write(students, "student-7.safetensors", "noise-3.json", "student-9.checkpoint")
    before = tree(students)
    train(made)
    assert tree(students) == before
    assert strangers == [name for name in strangers if (dataset(made) / name).exists()]
    report_synthesis(load(made)[0], [])
    grid = Path(made["paths"]["reports"]) / "grids" / "round-7.png"
    grid.write_text("a picture of a user")
    report_synthesis(load(made)[0], [])
    assert grid.exists()


def test_files_of_ours_are_deleted(tiny: Params, caplog: pytest.LogCaptureFixture) -> None:
    make(changed(tiny, {"adaptive.rounds": 1}))
    report_synthesis(load(changed(tiny, {"adaptive.rounds": 1}))[0], [])
    with caplog.at_level(logging.WARNING):
        make(changed(tiny, {"synthesis.images": 12}))
    assert "2 shards are deleted (the plan has fewer)" in caplog.text
    assert verified(changed(tiny, {"synthesis.images": 12})) == []
    assert not (dataset(tiny) / "students").exists()
    report_synthesis(load(changed(tiny, {"synthesis.images": 12}))[0], [])
    assert not (Path(tiny["paths"]["reports"]) / "grids" / "round-1.png").exists()


def test_a_surplus_tar_that_a_user_replaced_stays(tiny: Params) -> None:
    make(tiny)
    tar = dataset(tiny) / "train" / "000001.tar"
    tar.write_text("mine")
    make(changed(tiny, {"synthesis.images": 12}))
    assert tar.read_text() == "mine"
    assert not (dataset(tiny) / "metadata" / "000001.json").exists()


def test_a_seal_on_another_path_opens_no_file_outside(tiny: Params, tmp_path: Path) -> None:
    """A record may name any file, but only those of its shard are deleted."""
    make(tiny)
    outside = tmp_path / "outside"
    outside.write_text("mine")
    path = dataset(tiny) / "metadata" / "000001.json"
    facts = json.loads(path.read_bytes())
    facts["files"]["../outside"] = facts["files"].pop("train/000001.tar")
    path.write_bytes(resealed(facts))
    make(changed(tiny, {"synthesis.images": 12}))
    assert outside.read_text() == "mine"


def resealed(facts: dict[str, object]) -> bytes:
    """The bytes of a record with these facts and a seal that fits them."""
    from pipeline.storage import digest_json, json_bytes

    facts = {name: value for name, value in facts.items() if name != "sha256"}
    return json_bytes({**facts, "sha256": digest_json(facts)})


@pytest.mark.parametrize(
    "name", [".gitkeep", ".gitignore", LOCK, f"{TEMPORARY}{CLAIM}.0123456789ab.tmp"]
)
def test_a_folder_counts_as_empty(tiny: Params, name: str) -> None:
    write(dataset(tiny), name, content="")
    assert make(tiny) == [0, 1]
    assert verified(tiny) == []
    assert not (dataset(tiny) / LOCK).exists()


def test_a_dataset_of_an_earlier_version_gets_its_claim(made: Params) -> None:
    claim = dataset(made) / CLAIM
    claim.unlink()
    assert verified(made) == [f"{CLAIM} is missing"]
    assert make(made) == []
    assert claim.read_bytes() == claim_bytes("dataset")


def test_students_of_an_earlier_version_get_their_claim(made: Params) -> None:
    train(made)
    root = Path(made["paths"]["students"])
    before = tree(root)
    (root / CLAIM).unlink()
    train(made)
    assert tree(root) == before


def test_a_dataset_is_no_folder_for_students(made: Params, tmp_path: Path) -> None:
    shutil.copytree(dataset(made), tmp_path / "students")
    with pytest.raises(UserError, match=r"paths\.students .* holds other files"):
        train(made)


def test_a_changed_claim_proves_nothing(tiny: Params) -> None:
    write(dataset(tiny), *shard_files(0))
    claim = claim_bytes("dataset").replace(b"deletes", b"DELETES")
    (dataset(tiny) / CLAIM).write_bytes(claim)
    with pytest.raises(UserError, match="holds other files"):
        make(tiny)


@pytest.mark.parametrize("output", ["dataset", "students", "reports"])
def test_a_folder_in_the_place_of_the_claim(tmp_path: Path, output: str) -> None:
    write(tmp_path / CLAIM, "mine.txt")
    with pytest.raises(UserError, match=rf"paths\.{output} .*{CLAIM} is a folder.*move it"):
        check_claim(tmp_path, output)
    assert (tmp_path / CLAIM / "mine.txt").exists()
