"""Rounds: make shards, train a student on all there is, make the next shards against it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.dataset import claim, finalise, prune
from pipeline.distillation import DistillJob, distill, is_trained
from pipeline.errors import UserError
from pipeline.lock import locked
from pipeline.plan import derive_seed
from pipeline.provenance import is_current, read_record
from pipeline.running import Runner
from pipeline.storage import digest_file, digest_json
from pipeline.synthesis import (
    Competitor,
    Made,
    check,
    is_done,
    make_shard,
    plan_of,
    record_path,
    shard_spec,
    wanted_jobs,
)
from pipeline.teacher import Teacher


def synthesize(config: Config, run: Runner, only: range | None = None) -> list[Made]:
    """Bring the dataset to what ``config`` says, making just what is missing or stale.

    Args:
        run: how the jobs run (see :mod:`pipeline.running`).
        only: make no shard outside this range; the dataset-level files are then written only if
            no other shard is missing.

    Returns:
        What was made by this call.

    Raises:
        UserError: before any work, if something in ``config`` cannot be.
    """
    loaded = check(config, "dataset", "reports")
    if only is not None and only.start >= len(plan_of(config)):
        raise UserError(
            f"--shards {only.start}:{only.stop}: the plan ends at {len(plan_of(config))}"
        )
    with locked(Path(config.paths.dataset), "paths.dataset", shared=only is not None):
        return _rounds(config, loaded, run, only)


def _rounds(config: Config, loaded: Teacher, run: Runner, only: range | None) -> list[Made]:
    claim(Path(config.paths.dataset))
    prune(config)
    made: list[Made] = []
    for round_ in range(config.adaptive.rounds + 1):
        competitor = _competitor(config, loaded.digest, round_, run) if round_ else None
        jobs = wanted_jobs(config, loaded.digest, round_, competitor)
        missing = [job for job in jobs if not is_done(job)]
        todo = [job for job in missing if only is None or job.number in only]
        if todo:
            made += run(make_shard, todo, f"round {round_}")
        if (
            only is not None
            and only.stop <= jobs[-1].number + 1
            and round_ < config.adaptive.rounds
        ):
            return made
        if len(todo) < len(missing):
            if round_ < config.adaptive.rounds:
                raise UserError(
                    f"round {round_ + 1} competes with a student of all shards before it, and "
                    f"{len(missing) - len(todo)} of round {round_} are missing: make those first"
                )
            return made
    finalise(config, loaded)
    return made


def shard_states(config: Config, teacher_digest: str) -> dict[int, str]:
    """Of every planned shard: ``complete``, ``stale`` (made to other settings) or ``missing``."""
    root, students = Path(config.paths.dataset), dataset_students(config)
    states = {}
    for shard in plan_of(config):
        record = read_record(record_path(root, shard.number))
        spec = shard_spec(config, shard, teacher_digest, students.get(shard.round))
        if is_current(record, spec, root):
            states[shard.number] = "complete"
        else:
            states[shard.number] = "stale" if record else "missing"
    return states


def student_path(root: Path, round_: int) -> Path:
    """The weights of the student that ``round_`` competes with."""
    return root / "students" / f"{round_:06d}.safetensors"


def dataset_students(config: Config) -> dict[int, str]:
    """Of each adaptive round whose student is there: the digest of its weights."""
    root = Path(config.paths.dataset)
    paths = {round_: student_path(root, round_) for round_ in range(1, config.adaptive.rounds + 1)}
    return {round_: digest_file(path) for round_, path in paths.items() if path.is_file()}


def dataset_digest(root: Path, numbers: Sequence[int]) -> str:
    """A digest of the images of complete shards, from their records."""
    digests = []
    for number in numbers:
        record = read_record(record_path(root, number))
        if record is None:
            raise UserError(f"shard {number:06d} of {root} is missing: run synthesize first")
        digests.append(record.tar["sha256"])
    return digest_json(digests)


def _competitor(config: Config, teacher_digest: str, round_: int, run: Runner) -> Competitor:
    """The student of all rounds before, trained on their shards, on from its predecessor."""
    root = Path(config.paths.dataset)
    numbers = range(plan_of(config).of_round(round_).start)
    output = student_path(root, round_)
    job = DistillJob(
        name=f"student-of-round-{round_}",
        teacher=config.teacher,
        teacher_digest=teacher_digest,
        student=config.student,
        training=config.adaptive.training,
        shards=tuple(root / "train" / f"{number:06d}.tar" for number in numbers),
        dataset=dataset_digest(root, numbers),
        seed=derive_seed(config.synthesis.seed, round_),
        output=output,
        start=student_path(root, round_ - 1) if round_ > 1 else None,
    )
    if not is_trained(job):
        run(distill, [job], f"student of round {round_}")
    return Competitor(output, digest_file(output))
