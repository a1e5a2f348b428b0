"""Verify a finished dataset: read all of it and report every problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from pipeline.config.schema import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.layout import CLAIM, SIGNATURE, dataset_names
from pipeline.stages.answers import Judges
from pipeline.stages.file_problems import file_problems, student_problems
from pipeline.stages.shard_problems import shard_problems
from pipeline.storage import Location, exists, listing, location, read_bytes
from pipeline.synthesis.entries import Entry, entries_of
from pipeline.synthesis.index_files import index_files
from pipeline.synthesis.outputs import claim_bytes
from pipeline.synthesis.shard_states import survey
from pipeline.teachers.teacher import Teacher


def verify(
    config: Config, teacher: Teacher, agreement: float, report: Callable[[int], object]
) -> list[str]:
    """Check that a dataset is complete and correct.

    Of each shard: the record exists and was made to today's parameters; tar and Parquet file have
    the recorded digests; the tar holds the planned samples and nothing else; every image decodes
    to the teacher's input and has exactly one row. All columns of a row that follow from the plan,
    the tar or the networks are computed again and compared. Of the dataset: the class balance, the
    index files, the students of adaptive rounds, the share of labels that the teacher confirms,
    and that its folder holds no other file and no link.

    Args:
        config: all parameters.
        teacher: the teacher.
        agreement: the least share of images to which the teacher must give the intended class.
        report: called with the number of images read since its last call.

    Returns:
        One line for each problem.
    """
    root, plan = location(config.paths.dataset), Dataset.planned(config).plan
    files = listing(root)
    captions = config.synthesis.captions is not None
    names = dataset_names(len(plan), config.adaptive.rounds, captions) | {SIGNATURE}
    judges = Judges(config, teacher, root)
    problems: list[str] = []
    labels: Counter[int] = Counter()
    entries: list[Entry] = []
    confirmed = 0
    for found in survey(config, teacher.digest, files=files):
        shard = shard_problems(found, files, judges)
        problems += [f"shard {found.shard.name}: {text}" for text in shard.problems]
        labels.update(shard.labels)
        confirmed += shard.confirmed
        entries += entries_of([found])
        report(len(found.shard.labels))
    problems += _balance_problems(plan.labels.tolist(), labels)
    total = sum(labels.values())
    if total and confirmed / total < agreement:
        problems.append(
            f"the teacher confirms {confirmed / total:.1%} of labels, less than {agreement:.1%}"
        )
    if len(entries) == len(plan):  # else a shard is missing, which has been reported
        expected = {**index_files(config, entries, teacher), CLAIM: claim_bytes("dataset")}
        problems += _index_file_problems(expected, root)
    problems += student_problems(config, root)
    problems += file_problems(root, files, names)
    return problems


def _balance_problems(planned: Iterable[int], found: Counter[int]) -> Iterator[str]:
    counts = Counter(planned)
    wrong = {label for label in counts | found if counts[label] != found[label]}
    if wrong:
        label = min(wrong)
        yield (
            f"balance: {len(wrong)} classes do not have their planned count "
            f"(class {label}: {found[label]} of {counts[label]})"
        )


def _index_file_problems(expected: Mapping[str, bytes], root: Location) -> Iterator[str]:
    for name, content in expected.items():
        if not exists(root / name):
            yield f"{name} is missing"
        elif read_bytes(root / name) != content:
            yield f"{name} differs from what the records say: run finalize, which writes it again"
