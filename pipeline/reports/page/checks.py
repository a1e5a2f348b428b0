"""Answers to what a sceptical reader asks, with a state: good, warn, bad or unknown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.reports.page.classes import ClassFacts
from pipeline.reports.page.figures import Accuracy, accuracies, find, verdict
from pipeline.reports.page.run import Run

State = Literal["good", "warn", "bad", "unknown"]
MUCH, LITTLE = 0.1, 0.02  # distance of a student from its teacher
UNEVEN = 2  # the largest class may have this many times the images of the smallest
REPEATS = 0.05  # near-duplicates are named if their share is above this
WORDS: dict[State, str] = {
    "good": "good",
    "warn": "careful",
    "bad": "bad",
    "unknown": "not known",
}


@dataclass(frozen=True, slots=True)
class Check:
    """A question, its answer, and how good the answer is."""

    question: str
    answer: str
    state: State

    @property
    def word(self) -> str:
        """The state in a word, for readers who do not see its colour."""
        return WORDS[self.state]


def percent(share: float, digits: int = 1) -> str:
    """A share as text, such as ``99.3 %``. A share below 1 is never rounded to 100 %."""
    text = f"{100 * share:.{digits}f}"
    if share < 1 and float(text) >= 100:
        text = f"{100 - 10.0**-digits:.{digits}f}"
    return f"{text}\u00a0%"


def points(difference: float) -> str:
    """A difference of shares as text, such as ``0.3 points``."""
    return f"{100 * abs(difference):.1f} points"


def headline(run: Run) -> tuple[str, str]:
    """Whether it worked: a short sentence, and a longer one with the baselines."""
    images, level = f"{run.tally.images:,} images", verdict(run).get("level")
    found = accuracies(run)
    teacher, student = find(found, "teacher"), find(found, "student")
    short = f"The {images} look {level}" if level else f"Nobody judged the {images} yet"
    if teacher and student:
        who = "students trained on them reach"
        if len(student.seeds) == 1:
            who = "a student trained on them reaches"
        reached = f"{who} {percent(student.value)}, the teacher "
        short += f"{': ' if level else '; '}{reached}{percent(teacher.value)}"
    return f"{short}.", _of_students(run)


def _of_students(run: Run) -> str:
    if not run.labelled:
        return "The images have no labels: they are for calibration and for losses of your own."
    found = accuracies(run)
    teacher, student = find(found, "teacher"), find(found, "student")
    if teacher and student:
        one = len(student.seeds) == 1
        who, was = ("student", "was") if one else ("students", "were")
        text = (
            f"The {who} learnt without real images and {was} measured on "
            f"{run.saved.evaluation['real_images']:,} real ones."
        )
        others = [
            f"{percent(each.value)} after training on {word}"
            for kind, word in (("noise", "noise"), ("procedural", "procedural pictures"))
            if (each := find(found, kind))
        ]
        return text + (f" The same student reaches {' and '.join(others)}." if others else "")
    held_out = run.saved.distillation.get("held_out")
    if held_out:
        return (
            f"Nobody measured the students on real images. On {held_out['images']} new synthetic "
            f"images their agreement with the teacher is {percent(held_out['agreement'])}."
        )
    if run.saved.logs:
        return "Students were trained, but nobody measured them on real images."
    return "No student was trained yet, so nobody knows what the images teach."


def checks(run: Run, classes: Sequence[ClassFacts]) -> list[Check]:
    """All questions, in the order in which a reader asks them."""
    found = accuracies(run)
    return [
        _complete(run),
        _unchanged(run),
        _usable(run),
        *([_labels(run)] if run.labelled else []),
        *_variety(run),
        *([_student(run, found)] if run.labelled else []),
        *_baselines(found),
        *([_sure(run, found)] if run.labelled else []),
        *_worst(run, classes),
        *_balance(classes),
    ]


def _complete(run: Run) -> Check:
    question = "Is the dataset complete?"
    assert run.dataset is not None
    planned, made = len(run.dataset), run.tally.images
    if made < planned:
        return Check(question, f"No: {planned - made:,} of {planned:,} images are missing.", "bad")
    shards = f"{run.tally.shards:,} shard{'s' if run.tally.shards != 1 else ''}"
    return Check(question, f"Yes: {made:,} images in {shards}, each with its record.", "good")


def _unchanged(run: Run) -> Check:
    text = (
        "The images of this page have the digests that their rows state. dreamshard verify "
        "compares every byte of the dataset"
    )
    text += (
        ", and dreamshard authenticate checks its signature."
        if run.signed
        else ". The dataset is unsigned: a change that rewrote the digests too would go unseen."
    )
    return Check("Is it unchanged since it was made?", text, "unknown")


def _usable(run: Run) -> Check:
    question, found = "Do the images look usable?", verdict(run)
    if not found:
        return Check(question, "Nobody judged them: run dreamshard measure.", "unknown")
    states: dict[str, State] = {"usable": "good", "doubtful": "warn", "unusable": "bad"}
    reasons = "; ".join(found["reasons"])
    return Check(question, f"They look {found['level']}: {reasons}.", states[found["level"]])


def _labels(run: Run) -> Check:
    tally = run.tally
    confirmed, confidence = tally.agreement / tally.images, tally.confidence / tally.images
    flaws = sum(tally.flaws.values())
    state: State = "good" if confirmed >= 0.98 else "warn" if confirmed >= 0.9 else "bad"
    marked = f" {flaws:,} are marked as flawed." if flaws else " None is marked as flawed."
    return Check(
        "Does the teacher confirm the labels?",
        f"{percent(confirmed)} of them, with a mean confidence of {percent(confidence)}.{marked}",
        "warn" if flaws and state == "good" else state,
    )


def _variety(run: Run) -> Iterator[Check]:
    measures = run.saved.measures
    if "near_duplicates" not in measures:
        return
    repeats = measures["near_duplicates"]
    text = f"{percent(repeats)} of the images have a near-duplicate."
    text += " A student learns little from a repeat." if repeats > REPEATS else ""
    state: State = "good" if repeats <= REPEATS else "warn" if repeats <= 0.4 else "bad"
    yield Check("Are the images different from each other?", text, state)


def _student(run: Run, found: Sequence[Accuracy]) -> Check:
    question = "How close is the student to its teacher?"
    teacher, student = find(found, "teacher"), find(found, "student")
    if not teacher or not student:
        return Check(question, f"{_of_students(run)}", "unknown")
    gap = teacher.value - student.value
    where = "below" if gap >= 0 else "above"
    state: State = "good" if gap <= LITTLE else "warn" if gap <= MUCH else "bad"
    text = f"{points(gap)} {where}: {percent(student.value)} and {percent(teacher.value)}."
    if abs(gap) < student.value - student.low:
        text += " The real images are too few to tell the two apart."
    return Check(question, text, state)


def _baselines(found: Sequence[Accuracy]) -> Iterator[Check]:
    student, teacher = find(found, "student"), find(found, "teacher")
    for kind, text in (("noise", "noise"), ("procedural", "procedural pictures")):
        baseline = find(found, kind)
        if not baseline or not student or not teacher:
            continue
        gain = student.value - baseline.value
        clear = student.low > baseline.high
        said = f"{points(gain)} {'more' if gain > 0 else 'less'} ({percent(baseline.value)})."
        if clear and teacher.value > baseline.value:
            closed = gain / (teacher.value - baseline.value)
            said += f" This is {percent(min(1.0, closed), 0)} of the way from there to the teacher."
        elif not clear:
            said += " The two intervals overlap, so the difference may be chance."
        yield Check(
            f"Do the images teach more than {text}?",
            said,
            "good" if clear else "warn" if gain > 0 else "bad",
        )


def _sure(run: Run, found: Sequence[Accuracy]) -> Check:
    question, student = "How sure is the student's figure?", find(found, "student")
    if not student:
        held_out = run.saved.distillation.get("held_out")
        images = f" on {held_out['images']} synthetic images only" if held_out else ""
        return Check(question, f"There is no accuracy on real images{images}.", "unknown")
    images, reach = run.saved.evaluation["real_images"], (student.high - student.low) / 2
    text = f"With {images:,} real images the accuracy is {percent(student.low)} to "
    text += f"{percent(student.high)} (95\u00a0% interval). "
    if len(student.seeds) > 1:
        low, high = min(student.seeds), max(student.seeds)
        text += f"The {len(student.seeds)} seeds reach {percent(low)} to {percent(high)}."
        spread = high - low
    else:
        text, spread = text + "Only one seed was trained: another one may differ.", 1.0
    wide = reach > LITTLE or spread > LITTLE
    return Check(question, text, "warn" if wide else "good")


def _worst(run: Run, classes: Sequence[ClassFacts]) -> Iterator[Check]:
    if len(classes) < 2:
        return
    assert run.rows is not None
    worst, question = classes[0], "Which class is worst?"
    if worst.student is not None:
        own = run.saved.judged == "synthetic"
        one = sum(name.startswith("student-") for name in run.saved.confusion) == 1
        who = "the first student" if own else "the student" if one else "students"
        do = "s" if own or one else ""
        right = percent(worst.student)
        text = f"Class {worst.name}: {who} get{do} {right} of its {run.saved.judged} images right"
        if worst.confused:
            names = {each.label: each.name for each in classes}
            given, share = worst.confused
            text += f" and take{do} {percent(share)} of them for {names.get(given, given)}"
        mean = sum(each.student or 0 for each in classes) / len(classes)
        state: State = "warn" if worst.student < mean - 0.05 else "good"
        if own:
            text += ". It learnt from these images; on real ones another class may be worst"
        yield Check(question, f"{text}.", state)
    elif worst.confidence is not None and worst.confirmed is not None:
        yield Check(
            question,
            f"Class {worst.name}: the teacher confirms {percent(worst.confirmed)} of its labels, "
            f"with a mean confidence of {percent(worst.confidence)}. Nobody measured students by "
            f"class: run dreamshard measure after dreamshard distill. {run.rows.read_from}".strip(),
            "good" if worst.confirmed >= 0.9 else "warn",
        )


def _balance(classes: Sequence[ClassFacts]) -> Iterator[Check]:
    if len(classes) < 2:
        return
    counts = [each.images for each in classes]
    least, most = min(counts), max(counts)
    if least == most:
        text = f"Yes: each of the {len(counts):,} classes has {most:,} images."
    else:
        few = next(each.name for each in classes if each.images == least)
        many = next(each.name for each in classes if each.images == most)
        text = f"They have from {least:,} (class {few}) to {most:,} images (class {many})."
    even = least * UNEVEN >= most
    yield Check("Are the classes balanced?", text, "good" if even else "warn")
