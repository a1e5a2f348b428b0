"""What the page says to a sceptical reader, and what it advises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from pipeline.reports.page.advice import advice
from pipeline.reports.page.checks import Check, checks, headline, percent
from pipeline.reports.page.classes import class_facts, matrix, worst_pairs
from pipeline.reports.page.figures import interval
from pipeline.reports.page.run import Run
from tests.reports.page.conftest import CONFUSION, EVALUATION, LOGS, VERDICT

Reports = Callable[..., Run]


def plain(text: str) -> str:
    return text.replace("\xa0", " ")


def answer(run: Run, question: str) -> tuple[str, str]:
    """The answer to the question that begins so, and its state."""
    found: list[Check] = checks(run, class_facts(run))
    (check,) = [check for check in found if check.question.startswith(question)]
    return plain(check.answer), check.state


def advised(run: Run) -> str:
    found = advice(run, class_facts(run))
    return plain(" | ".join(f"{each.found} {each.do}" for each in found))


def test_the_headline_has_the_verdict_and_both_baselines(full: Run) -> None:
    short, long = map(plain, headline(full))
    assert short == (
        "The 20 images look usable: students trained on them reach 90.0 %, the teacher 95.0 %."
    )
    assert "on 2,000 real ones" in long
    assert "40.0 % after training on noise and 60.0 % after training on procedural" in long


def test_the_headline_of_a_dataset_alone_promises_nothing(bare: Run) -> None:
    assert headline(bare) == (
        "Nobody judged the 20 images yet.",
        "No student was trained yet, so nobody knows what the images teach.",
    )


def test_every_question_is_answered(full: Run) -> None:
    assert answer(full, "Is the dataset complete")[1] == "good"
    assert answer(full, "Do the images look usable")[1] == "good"
    assert answer(full, "Are the images different") == (
        "20.0 % of the images have a near-duplicate. A student learns little from a repeat.",
        "warn",
    )
    assert answer(full, "How close") == ("5.0 points below: 90.0 % and 95.0 %.", "warn")
    assert "91 % of the way" in answer(full, "Do the images teach more than noise")[0]
    text, state = answer(full, "How sure")
    assert "88.6 % to 91.2 %" in text and "The 2 seeds reach 89.0 % to 91.0 %" in text
    assert state == "warn"  # the seeds are two points apart
    assert answer(full, "Which class is worst") == (
        "Class middle: students get 82.0 % of its real images right and take 18.0 % of them for "
        "bottom.",
        "warn",
    )
    assert answer(full, "Is it unchanged") == (
        "The images of this page have the digests that their rows state. dreamshard verify "
        "compares every byte of the dataset. The dataset is unsigned: a change that rewrote the "
        "digests too would go unseen.",
        "unknown",
    )
    assert "authenticate" in answer(replace(full, signed=True), "Is it unchanged")[0]


def test_the_balance_of_the_classes_is_told(full: Run) -> None:
    for counts, said in (
        ((7, 7, 7), ("Yes: each of the 3 classes has 7 images.", "good")),
        ((6, 4, 8), ("They have from 4 (class middle) to 8 images (class bottom).", "good")),
        ((6, 3, 8), ("They have from 3 (class middle) to 8 images (class bottom).", "warn")),
    ):
        tally = replace(full.tally, counts=Counter(dict(enumerate(counts))))
        assert answer(replace(full, tally=tally), "Are the classes balanced") == said


def test_one_student_is_one(with_reports: Reports) -> None:
    evaluation = {**EVALUATION, "student_accuracies": {"0": 0.9}}
    confusion = {name: CONFUSION[name] for name in ("teacher", "student-0")}
    run = with_reports(evaluation=evaluation, confusion=confusion)
    short, long = map(plain, headline(run))
    assert "a student trained on them reaches 90.0 %" in short
    assert "The student learnt without real images and was measured" in long
    assert "the student gets 80.0 %" in answer(run, "Which class is worst")[0]


def test_a_gain_within_chance_is_called_so(with_reports: Reports) -> None:
    evaluation = {**EVALUATION, "real_images": 50, "procedural_baseline_accuracy": 0.88}
    text, state = answer(with_reports(evaluation=evaluation), "Do the images teach more than proc")
    assert "may be chance" in text and state == "warn"
    worse = {**EVALUATION, "procedural_baseline_accuracy": 0.94}
    assert answer(with_reports(evaluation=worse), "Do the images teach more than proc")[1] == "bad"


def test_missing_images_are_said_first(full: Run) -> None:
    tally = replace(full.tally, images=12)
    run = replace(full, tally=tally)
    assert answer(run, "Is the dataset complete") == (
        "No: 8 of 20 images are missing.",
        "bad",
    )
    assert advised(run).startswith("8 of 20 planned images are missing. Run dreamshard synthesize")


def test_advice_follows_from_the_figures(full: Run) -> None:
    text = advised(full)
    assert "20.0 % of the images have a near-duplicate" in text
    assert "5.0 points below its teacher. Make more images (synthesis.images, now 20)" in text
    assert (
        "On real images students are more than 5.0 points below their mean in these classes: middle"
        in text
    )
    assert "With 2,000 real images the student" in text
    assert "distillation.seeds" not in text and "baseline is missing" not in text


@pytest.mark.parametrize(
    ("reports", "said"),
    [
        ({"synthesis": {"images": 20}}, "No student was trained. Run dreamshard distill."),
        ({"synthesis": {"images": 99}}, "The reports are about 99 images, but the dataset has 20"),
        ({"logs": LOGS}, "Without real images no figure proves what a student learnt."),
        (
            {"evaluation": {**EVALUATION, "student_accuracies": {"0": 0.9}}},
            "Set distillation.seeds: [0, 1, 2].",
        ),
        (
            {
                "synthesis": {
                    "verdict": {**VERDICT, "level": "unusable", "contrast": 0.01, "confirmed": 1.0}
                }
            },
            "check teacher.input.mean and std with dreamshard probe",
        ),
    ],
)
def test_advice_names_what_is_missing(
    with_reports: Reports, reports: Mapping[str, Any], said: str
) -> None:
    assert said.lower() in advised(with_reports(**reports)).lower()


def test_the_records_alone_tell_of_unconfirmed_labels(bare: Run) -> None:
    doubtful = replace(bare, tally=replace(bare.tally, agreement=10.0))
    assert "The teacher confirms only 50% of the labels. Raise synthesis.iterations" in advised(
        doubtful
    )
    assert "confirms only" not in advised(replace(bare, tally=replace(bare.tally, agreement=20.0)))


def test_classes_are_sorted_by_the_students_then_by_the_teacher(full: Run, bare: Run) -> None:
    assert [facts.name for facts in class_facts(full)] == ["middle", "bottom", "top"]
    worst = class_facts(full)[0]
    assert worst.student == pytest.approx(0.82) and worst.teacher == 1.0 and worst.judged == 50
    confidences = [facts.confidence or 0 for facts in class_facts(bare) if facts.confirmed == 1]
    assert confidences == sorted(confidences)


def test_without_real_images_the_first_student_names_the_worst_class(
    with_reports: Reports,
) -> None:
    confusion = {name: CONFUSION[name] for name in ("teacher", "student-0")}
    run = with_reports(confusion=confusion, judged="synthetic", logs=LOGS)
    assert answer(run, "Which class is worst") == (
        "Class middle: the first student gets 80.0 % of its synthetic images right and takes "
        "20.0 % of them for bottom. It learnt from these images; on real ones another class may "
        "be worst.",
        "warn",
    )
    assert "On synthetic images students are more than 5.0 points below" in advised(run)


def test_a_confusion_is_counted() -> None:
    assert matrix(CONFUSION["teacher"], [0, 2]) == [[1.0, 0.0], [0.1, 0.9]]
    assert worst_pairs(CONFUSION["student-0"]) == [(1, 2, 10), (2, 0, 5)]


def test_an_interval_is_wilsons() -> None:
    low, high = interval(0.5, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
    assert interval(1.0, 10)[0] < 0.8 and interval(1.0, 10)[1] == 1.0


def test_nearly_all_is_never_called_all() -> None:
    assert [plain(percent(share)) for share in (1.0, 0.9999, 0.5)] == [
        "100.0 %",
        "99.9 %",
        "50.0 %",
    ]
