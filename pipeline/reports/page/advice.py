"""Advice on how to make the result better, from the figures of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.evaluation.verdict import LIMITS, STEADY
from pipeline.reports.page.charts import is_falling
from pipeline.reports.page.checks import LITTLE, REPEATS, UNEVEN, percent, points
from pipeline.reports.page.classes import ClassFacts
from pipeline.reports.page.figures import accuracies, find, verdict
from pipeline.reports.page.run import Run

FALL = 0.05  # if the total loss fell by this share in its last tenth, it has not settled
BEHIND = 0.05  # a class is named if its accuracy is this much below the mean
FEW = 0.01  # a 95 % interval that reaches farther than this to each side is wide
_AGAINST = {
    "contrast": "check teacher.input.mean and std with dreamshard probe; a wrong scale gives grey "
    "images",
    "saturated": "raise synthesis.objective.l2 or tv, or lower synthesis.objective.learning_rate",
    "confirmed": "raise synthesis.iterations, or set synthesis.confirmed: true, which makes "
    "images again that the teacher takes for another class",
    "gap": "raise synthesis.batch_size or synthesis.objective.feature, or try more iterations",
    "steady": "raise synthesis.objective.jitter, or set zoom and colour, so that the class "
    "survives small changes",
    "taught": "look at the images: noise, or the same few images again and again, teach little. "
    "Try more images or iterations",
}


@dataclass(frozen=True, slots=True)
class Advice:
    """One advice.

    Attributes:
        found: the problem, as a sentence.
        do: what to do about it, as a sentence.
    """

    found: str
    do: str


def advice(run: Run, classes: Sequence[ClassFacts]) -> list[Advice]:
    """All advice, the most important first; empty if no figure asks for a change."""
    return [
        *_of_the_dataset(run),
        *_of_the_verdict(run),
        *_of_the_images(run),
        *_of_the_students(run),
        *_of_the_classes(run, classes),
        *_of_the_measurement(run),
    ]


def _of_the_dataset(run: Run) -> Iterator[Advice]:
    assert run.dataset is not None and run.rows is not None
    missing = len(run.dataset) - run.tally.images
    if missing > 0:
        yield Advice(
            f"{missing:,} of {len(run.dataset):,} planned images are missing.",
            "Run dreamshard synthesize: it makes the missing shards alone.",
        )
    reported = run.saved.synthesis.get("images")
    if reported is not None and reported != run.tally.images:
        yield Advice(
            f"The reports are about {reported:,} images, but the dataset has {run.tally.images:,}.",
            "Run dreamshard synthesize, distill, measure and evaluate again.",
        )
    elif not run.saved.measures and run.saved.synthesis:
        yield Advice("Nobody measured how varied the images are.", "Run dreamshard measure.")


def _of_the_verdict(run: Run) -> Iterator[Advice]:
    found = verdict(run)
    if not found:  # without reports, the records still have the confirmed labels
        found = {"level": "", "confirmed": run.tally.agreement / run.tally.images}
    if found["level"] == "usable" or (not run.labelled and not found["level"]):
        return
    views = [found["views"][name] for name in STEADY if name in found.get("views", {})]
    values = {**found, "steady": sum(views) / len(views) if views else 1.0}
    for limit in LIMITS:
        value = values.get(limit.name)
        if value is not None and limit.level(value) != "usable":
            text = limit.complaint.format(value)
            yield Advice(f"{text[0].upper()}{text[1:]}.", _sentence(_AGAINST[limit.name]))


def _of_the_images(run: Run) -> Iterator[Advice]:
    flaws = run.tally.flaws
    if flaws:
        text = ", ".join(f"{count:,} {word}" for word, count in sorted(flaws.items()))
        yield Advice(
            f"Images are still flawed after the last attempt: {text}.",
            "Raise synthesis.attempts, or leave out the rows whose column flaw is set.",
        )
    repeats = run.saved.measures.get("near_duplicates", 0.0)
    if repeats > REPEATS:
        yield Advice(
            f"{percent(repeats)} of the images have a near-duplicate. A student learns little from "
            "a repeat.",
            "Set synthesis.max_similarity to 0.95, which makes repeats within a shard again.",
        )
    curves = run.tally.mean_curves()
    if curves:
        last = curves[max(curves)]
        names = list(zip(last["iteration"].tolist(), last["total"].tolist(), strict=True))
        fall = is_falling(names)
        if fall > FALL:
            yield Advice(
                f"The total loss still fell by {percent(fall, 0)} in the last tenth of the "
                "iterations.",
                "Try more synthesis.iterations, on a few images first.",
            )


def _of_the_students(run: Run) -> Iterator[Advice]:
    found = accuracies(run)
    teacher, student = find(found, "teacher"), find(found, "student")
    if run.saved.synthesis and not run.saved.logs and run.labelled:
        yield Advice("No student was trained.", "Run dreamshard distill.")
    if not teacher or not student:
        return
    best = max((each for each in found if each.kind in ("noise", "procedural")), default=None,
               key=lambda each: each.value)  # fmt: skip
    if best and student.low <= best.high and teacher.low > student.high:
        yield Advice(
            f"The student is not clearly better than {best.name[0].lower()}{best.name[1:]}.",
            "The optimised images may teach no more than simple pictures: look at the verdict, and "
            "try other parameters on a few images with dreamshard probe.",
        )
    gap = teacher.value - student.value
    if gap > LITTLE:
        yield Advice(
            f"The student is {points(gap)} below its teacher.",
            f"Make more images (synthesis.images, now {run.tally.images:,}) and train longer "
            "(distillation.steps). More images need more steps.",
        )
        if _still_learns(run):
            yield Advice(
                "The student's agreement with the teacher still rose at the end of the training.",
                "Raise distillation.steps.",
            )


def _still_learns(run: Run) -> bool:
    """Whether the mean agreement of the last tenth is clearly above that of the tenth before."""
    gains = []
    for name, curves in run.saved.logs.items():
        values = [value for _, value in curves.get("agreement", [])]
        tenth = len(values) // 10
        if name.startswith("student-") and tenth:
            last, before = values[-tenth:], values[-2 * tenth : -tenth]
            gains.append(sum(last) / tenth - sum(before) / tenth)
    return bool(gains) and sum(gains) / len(gains) > 0.01


def _of_the_classes(run: Run, classes: Sequence[ClassFacts]) -> Iterator[Advice]:
    known = [each for each in classes if each.student is not None]
    if not known:
        return
    mean = sum(each.student or 0.0 for each in known) / len(known)
    weak = [each for each in known if (each.student or 0.0) < mean - BEHIND]
    if weak:
        names = ", ".join(each.name for each in weak[:8]) + (" ..." if len(weak) > 8 else "")
        yield Advice(
            f"On {run.saved.judged} images students are more than {points(BEHIND)} below their "
            f"mean in these classes: {names}.",
            "Give these classes more images: write a table into synthesis.images_per_class.",
        )
    counts = [each.images for each in classes]
    if min(counts) * UNEVEN < max(counts):
        least = min(classes, key=lambda each: each.images)
        yield Advice(
            f"Class {least.name} has {least.images:,} images, and the largest class has "
            f"{max(counts):,}.",
            "Make the numbers equal by synthesis.images_per_class, unless they differ on purpose.",
        )


def _of_the_measurement(run: Run) -> Iterator[Advice]:
    found = accuracies(run)
    student = find(found, "student")
    if run.saved.logs and not student:
        yield Advice(
            "Without real images no figure proves what a student learnt.",
            "Set evaluation.data to a tar of a few tens of real images a class, then run "
            "dreamshard evaluate.",
        )
    if student is None:
        return
    if len(student.seeds) == 1:
        yield Advice(
            "One seed does not show how much the result varies.",
            "Set distillation.seeds: [0, 1, 2].",
        )
    if not find(found, "noise") or not find(found, "procedural"):
        yield Advice(
            "A baseline is missing, so the gain over simple pictures is not known.",
            "Set distillation.noise_baseline and distillation.procedural_baseline to true.",
        )
    reach = (student.high - student.low) / 2
    if reach > FEW:
        images = run.saved.evaluation["real_images"]
        yield Advice(
            f"With {images:,} real images the student's accuracy is known only to about "
            f"{percent(reach)} to each side.",
            "Use more real images in evaluation.data: four times as many halve this interval.",
        )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
