"""Spread, repeats and likeness, on sets whose values are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.cli import main
from pipeline.dataset.stream import ordered_batches
from pipeline.distillation.loss import distillation_loss
from pipeline.distillation.train_student import distill
from pipeline.errors import UserError
from pipeline.evaluation.accuracy import evaluate, load_student, share
from pipeline.evaluation.dataset_measures import measure
from pipeline.evaluation.inputs import check_evaluation
from pipeline.evaluation.similarity import (
    frechet_distance,
    likeness,
    mean_cosine,
    nearest,
    vendi_score,
)
from pipeline.evaluation.student_measures import on_foreign
from pipeline.params import parse_params
from pipeline.stages.final_students import STUDENT, student_jobs
from tests.conftest import Params, changed, dataset, load, write_blobs, write_params


def test_spread_of_known_sets() -> None:
    same, apart = torch.ones(8, 3), torch.eye(5)
    assert mean_cosine(same) == pytest.approx(1)
    assert vendi_score(same) == pytest.approx(1)
    assert mean_cosine(apart) == pytest.approx(0)
    assert vendi_score(apart) == pytest.approx(5)
    assert vendi_score(apart.repeat(4, 1)) == pytest.approx(5)  # repeats add nothing
    assert math.isnan(mean_cosine(torch.ones(1, 3)))


def test_mean_cosine_is_the_mean_over_pairs() -> None:
    rows = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    unit = rows / rows.norm(dim=1, keepdim=True)
    pairs = [float(unit[i] @ unit[j]) for i in range(7) for j in range(7) if i != j]
    assert mean_cosine(rows) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_nearest_across_chunks() -> None:
    rows = torch.randn(2100, 16, generator=torch.Generator().manual_seed(0))
    rows[2050] = 3 * rows[7]
    values, where = nearest(rows)
    assert where[7] == 2050 and where[2050] == 7
    assert values[7] == pytest.approx(1, abs=1e-5)
    assert int((values > 0.999).sum()) == 2


def test_frechet_distance_of_gaussians() -> None:
    """Between N(0, I) and N(m, s^2 I) it is ``|m|^2 + D (1 - s)^2``."""
    rows = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0)).double()
    rows = (rows - rows.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(rows.T)).T)
    moved = 3 * rows + torch.tensor([1.0, 2.0, 0.0, 0.0])
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(rows, moved) == pytest.approx(5 + 4 * 4, rel=1e-3)


def test_likeness_of_a_set_to_itself_to_half_of_it_and_to_another() -> None:
    real = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    itself = likeness(real, real)
    assert (itself.precision, itself.recall, itself.coverage) == (1, 1, 1)
    far = likeness(real, real + 100)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    half = likeness(real, real[real[:, 0] > 0])
    assert half.precision == 1
    assert 0.4 < half.coverage < 0.75 and half.recall < 0.8


def test_measures_of_a_dataset(made: Params, tmp_path: Path) -> None:
    write_blobs(tmp_path / "real.tar", 30)
    judged = changed(
        made,
        {
            "evaluation.data": str(tmp_path / "real.tar"),
            "evaluation.verifier": made["teacher"],
        },
    )
    report, pairs, answers = measure(*load(judged))
    assert report["images"] == 20
    assert pairs.shape[1:] == (2, 1, 8, 8)
    assert (
        report["verifier_agreement"] == report["teacher_agreement"]
    )  # the verifier is the teacher
    assert 0 < report["class_vendi_per_100"] <= 100
    assert report["statistics_gap"] > 0 and report["frechet_distance"] > 0
    assert "student_disagreement" not in report
    assert {answer.model for answer in answers} == {"teacher"}
    right = sum(answer.images for answer in answers if answer.label == answer.predicted)
    assert right / 20 == report["teacher_agreement"]

    path = write_params(judged, tmp_path / "params.yaml")
    assert main(["measure", "--params", str(path)]) == 0
    assert json.loads((tmp_path / "reports" / "measures.json").read_text()) == report
    assert (tmp_path / "reports" / "alike.png").is_file()


def test_a_student_on_images_of_another_recipe(made: Params, tmp_path: Path) -> None:
    tar = Path(made["paths"]["dataset"]) / "train/000000.tar"
    config, teacher = load(changed(made, {"evaluation.foreign": str(tar)}))
    assert "foreign_loss" not in measure(config, teacher)[0]  # there is no student yet
    assert main(["distill", "--params", str(write_params(made, tmp_path / "p.yaml"))]) == 0
    report, _, _ = measure(config, teacher)
    ((pixels, _),) = ordered_batches([tar], 99)
    images = teacher.preprocessing.normalise(pixels)
    student = load_student(config, teacher, STUDENT, config.distillation.seeds[0])
    with torch.no_grad():
        ours, theirs = student(images), teacher.network(images)
    expected = distillation_loss(ours, theirs, 8.0).item()
    assert expected > 0
    assert report["foreign_loss"] == pytest.approx(expected, rel=1e-4)
    assert report["foreign_agreement"] == share(ours.argmax(1), theirs.argmax(1))
    assert report["foreign_images"] == len(pixels)
    same = {"foreign_loss": 0.0, "foreign_agreement": 1.0, "foreign_images": len(pixels)}
    assert on_foreign(teacher.network, teacher, tar) == same


def test_no_foreign_images(
    made: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = write_params(changed(made, {"evaluation.foreign": "none.tar"}), tmp_path / "p.yaml")
    assert main(["measure", "--params", str(params)]) == 2
    assert "evaluation.foreign: there is no file none.tar" in capsys.readouterr().err


def test_what_cannot_be_measured_with_is_known_before_a_long_run(
    tiny: Params, tmp_path: Path
) -> None:
    check_evaluation(parse_params(tiny))
    write_blobs(tmp_path / "real.tar", 3)
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 200)
    whole = {"evaluation.data": str(tmp_path / "real.tar"), "evaluation.verifier": tiny["teacher"]}
    check_evaluation(parse_params(changed(tiny, whole)))
    gone = {**tiny["teacher"], "weights": "gone.safetensors"}
    for change, said in (
        ({"evaluation.data": "gone.tar"}, "evaluation.data: there is no file"),
        ({"evaluation.foreign": str(tmp_path / "bad.tar")}, "evaluation.foreign: "),
        ({"evaluation.verifier": gone}, "evaluation.verifier.weights: there is no file gone"),
    ):
        with pytest.raises(UserError, match=said):
            check_evaluation(parse_params(changed(tiny, {**whole, **change})))


def test_statistics_of_batches_merge_into_those_of_the_whole(made: Params) -> None:
    """In batches of any size the gap is what one batch of everything has."""
    config, teacher = load(made)
    whole = measure(config, teacher)[0]["statistics_gap"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.evaluation.features.BATCH", 7)
        assert measure(config, teacher)[0]["statistics_gap"] == pytest.approx(whole, rel=1e-4)


def test_no_dataset(tiny: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "--params", str(write_params(tiny, tmp_path / "p.yaml"))]) == 2
    assert "run synthesize first" in capsys.readouterr().err


def test_what_is_said_of_a_student(made: Params, tmp_path: Path) -> None:
    write_blobs(tmp_path / "real.tar", 30)
    params = changed(made, {"evaluation.data": str(tmp_path / "real.tar")})
    config, teacher = load(params)
    distill(student_jobs(config, teacher)[0], "cpu", lambda images: None)
    student = load_student(config, teacher, STUDENT, 0)

    def said(paths: list[Path]) -> tuple[Tensor, ...]:
        pixels, labels = (
            torch.cat(parts) for parts in zip(*ordered_batches(paths, 99), strict=True)
        )
        shown = teacher.preprocessing.normalise(pixels)
        with torch.no_grad():
            return student(shown), teacher.network(shown), labels

    ours, theirs, labels = said(sorted((dataset(made) / "train").glob("*.tar")))
    report, _, answers = measure(config, teacher)
    differ = ours.argmax(1) != theirs.argmax(1)
    assert report["student_disagreement"] == pytest.approx(differ.double().mean().item(), rel=1e-5)
    assert 0 < report["student_disagreement"] != (ours.argmax(1) != labels).double().mean().item()
    right = sum(
        each.images
        for each in answers
        if each.model == "student-0" and each.label == each.predicted
    )
    assert right == int((ours.argmax(1) == labels).sum())
    chances = theirs.double().softmax(1).sort(1, descending=True).values
    assert report["teacher_margin"] == pytest.approx(
        (chances[:, 0] - chances[:, 1]).mean().item(), rel=1e-4
    )
    ours, theirs, _ = said([tmp_path / "real.tar"])
    found = evaluate(config, teacher)
    assert found["agreement"] == share(ours.argmax(1), theirs.argmax(1))
