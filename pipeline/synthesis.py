"""From parameters to shards: what each is to be made from, whether it is, and how."""

from __future__ import annotations

import functools
import hashlib
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from pipeline import (
    cores,
    depthwise,
    filtering,
    inversion,
    objective,
    plan,
    shards,
    sources,
    splitting,
    statistics,
    teacher,
    views,
    warm,
)
from pipeline import engine as engine_module
from pipeline import precision as precision_module
from pipeline.code import source_digest
from pipeline.config import (
    AdaptiveConfig,
    Config,
    DistillationConfig,
    StudentConfig,
    SynthesisConfig,
)
from pipeline.engine import Engine
from pipeline.errors import TryAgainError, UserError
from pipeline.filtering import Flaw, Kept, Rules, flaw_counts, invert_surely
from pipeline.imitation import FeatureMaps, Imitation
from pipeline.libraries import split
from pipeline.markers import marked
from pipeline.objective import Objective
from pipeline.plan import Batch, Plan, ShardPlan, make_plan
from pipeline.precision import Precision, PrecisionChoice
from pipeline.provenance import ShardRecord, encode_rows, is_current, read_record, versions
from pipeline.shards import Sample, write_tar
from pipeline.soundness import check_soundness
from pipeline.splitting import Report, invert_in_parts
from pipeline.storage import (
    Location,
    check_writable,
    digest_bytes,
    digest_file,
    digest_json,
    location,
    remove,
    replacing,
    size_of,
    write_bytes,
    write_json,
)
from pipeline.teacher import Teacher, cached_teacher, load_teacher
from pipeline.warm import Pool, earlier_pool

# The modules whose code decides what the pixels are; a change in one makes every shard stale.
_PIXEL_CODE = (
    depthwise,
    engine_module,
    filtering,
    inversion,
    objective,
    plan,
    precision_module,
    shards,
    sources,
    splitting,
    statistics,
    teacher,
    views,
    warm,
)


@dataclass(frozen=True, slots=True)
class Competitor:
    """The student that a round competes with: its weights file and their digest."""

    weights: Location
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardJob:
    """All a worker needs to make one shard."""

    config: Config
    number: int
    spec: dict[str, Any]
    competitor: Competitor | None
    images: int

    def __str__(self) -> str:
        return f"shard-{self.number:06d}"


@dataclass(frozen=True, slots=True)
class Made:
    """What making a shard took. Not published: it depends on the machine."""

    number: int
    images: int
    seconds: float


def plan_of(config: Config) -> Plan:
    """The plan, laid out once for the many shards that one process makes."""
    synthesis, adaptive = config.synthesis.model_dump_json(), config.adaptive.model_dump_json()
    return _cached_plan(synthesis, adaptive, config.teacher.classes)


@cores.one_thread()
def check(config: Config, *outputs: str) -> Teacher:
    """Everything that can be wrong before the first gradient. Returns the teacher, on the CPU.

    ``outputs`` names the fields of ``paths`` that must take files.

    Raises:
        UserError: what is wrong and what to do.
    """
    loaded = load_teacher(config.teacher, torch.device("cpu"))
    if config.synthesis.objective.resolve().feature > 0:
        published = config.teacher.weights is None and split(config.teacher.source)[0]
        check_soundness(loaded, random=published in ("torchvision", "timm", "hf"))
    if config.adaptive.rounds:
        check_student(config, loaded, "adaptive.training", config.adaptive.training)
        batch = config.adaptive.training.batch_size
        first = sum(end - start for round_, start, end in plan_of(config).bounds if round_ == 0)
        if batch > first:
            raise UserError(
                f"adaptive.training.batch_size is {batch}, but the first round has {first} images"
            )
    for name in outputs:
        check_writable(location(getattr(config.paths, name)), f"paths.{name}")
    return loaded


@cores.one_thread()
def check_student(
    config: Config, loaded: Teacher, section: str, training: DistillationConfig
) -> None:
    """The student exists, answers the teacher's input with as many logits, and has what
    ``section``, its training, asks for."""
    network = sources.build_network(config.student.source, config.student.arguments, "student")
    teacher.check_classes(network.eval(), loaded.shape, loaded.classes, "student")
    teacher.check_classes(network.train(), loaded.shape, loaded.classes, "student in training mode")
    if training.imitation:
        images = torch.zeros(2, *loaded.shape)
        try:
            Imitation(FeatureMaps(loaded.network, images), FeatureMaps(network, images))
        except UserError as error:
            raise UserError(f"{section}.imitation must be 0: {error}") from error


def round_spec(
    config: Config, round_: int, teacher_digest: str, student: str | None
) -> dict[str, Any]:
    """What the bytes of all shards of a round follow from."""
    return {
        "round": round_,
        "class_names": digest_json(config.teacher.class_names),
        "iterations": config.synthesis.iterations,
        "attempts": config.synthesis.attempts,
        "min_confidence": config.synthesis.min_confidence,
        "confirmed": config.synthesis.confirmed,
        "max_similarity": config.synthesis.max_similarity,
        "keep": config.synthesis.keep,
        "warm": config.adaptive.warm if round_ else 0.0,
        "objective": asdict(round_objective(config, round_)),
        "soft_labels": config.synthesis.soft_labels,
        "threads": config.synthesis.threads,
        "precision": config.synthesis.precision,
        "compile": config.synthesis.compile,
        "checkpointing": config.synthesis.checkpointing,
        "teacher": teacher_digest,
        "student": student,
        "code": _code_digest(),
        "torch": torch.__version__.partition("+")[0],
    }


def shard_spec(of_round: dict[str, Any], shard: ShardPlan) -> dict[str, Any]:
    """All that the bytes of a shard follow from; ``of_round`` is its round's."""
    return {
        **of_round,
        "shard": shard.number,
        "first": shard.first,
        "labels": digest_bytes(shard.labels.astype("<i2").tobytes()),
        "batches": [[batch.size, batch.seed] for batch in shard.batches],
    }


def round_objective(config: Config, round_: int) -> Objective:
    """The objective of a round: only adaptive rounds have a student to compete with."""
    base = config.synthesis.objective.resolve()
    if not round_:
        return replace(base, compete=0.0)
    return replace(base, compete=config.compete, masked=config.adaptive.masked)


def record_path(root: Location, number: int) -> Location:
    return root / "metadata" / f"{number:06d}.json"


def is_done(job: ShardJob) -> bool:
    root = location(job.config.paths.dataset)
    record = read_record(record_path(root, job.number))
    return is_current(record, job.spec, lambda name: size_of(root / name))


def make_shard(job: ShardJob, device: str, report: Report) -> Made:
    """Make one shard: tar, then rows, then the record. Overwrites a stale one.

    ``report`` is told of progress in images; a batch of ``n`` adds up to ``n``.
    """
    started = time.perf_counter()
    if is_done(job):  # by a worker that was given up for lost, or by a run of other shards
        return Made(job.number, job.images, 0.0)
    config, shard = job.config, plan_of(job.config).shard(job.number)
    root = location(config.paths.dataset)
    cores.use(config.synthesis.threads)
    with marked(root, job.number) as alive:

        def told(images: float) -> None:
            alive()
            report(images)

        with _engine(job, device) as engine:
            batches: list[tuple[Batch, Kept]] = []
            pool = _pool(job, shard)
            for batch in shard.batches:
                earlier = [kept.images.pixels for _, kept in batches]
                batches += _invert(job, shard, batch, earlier, pool, engine, told)
        _publish(job, shard, batches, engine.precision, root)
    return Made(job.number, job.images, time.perf_counter() - started)


def _pool(job: ShardJob, shard: ShardPlan) -> Pool | None:
    """What the images of an adaptive round start from. That it is always the same follows from the
    digest of the student, which learnt from all earlier shards."""
    share = job.config.adaptive.warm
    if not (shard.round and share):
        return None
    before = plan_of(job.config).of_round(shard.round).start
    return earlier_pool(location(job.config.paths.dataset), shard.number, before, share)


def _invert(
    job: ShardJob,
    shard: ShardPlan,
    batch: Batch,
    earlier: list[Tensor],
    pool: Pool | None,
    engine: Engine,
    report: Report,
) -> list[tuple[Batch, Kept]]:
    start, synthesis = sum(map(len, earlier)), job.config.synthesis
    labels = torch.from_numpy(shard.labels[start : start + batch.size].astype(np.int64))
    rules = Rules(
        attempts=synthesis.attempts,
        min_confidence=synthesis.min_confidence,
        confirmed=synthesis.confirmed,
        max_similarity=synthesis.max_similarity,
    )

    def make(part: Batch, of_part: Tensor, before: list[Kept], tell: Report) -> Kept:
        return invert_surely(
            engine,
            of_part,
            part.seed,
            synthesis.iterations,
            rules,
            part.candidates,
            [*earlier, *(kept.images.pixels for kept in before)],
            progress=lambda steps: tell(part.size * steps / synthesis.iterations),
            pool=pool,
        )

    return invert_in_parts(engine, batch, labels, make, report)


def _publish(
    job: ShardJob,
    shard: ShardPlan,
    batches: list[tuple[Batch, Kept]],
    precision: Precision,
    root: Location,
) -> None:
    if is_done(job):  # another run was faster, and what it wrote is whole
        return
    remove(record_path(root, shard.number))  # from here on it is not complete
    tar, parquet = f"train/{shard.name}.tar", f"metadata/{shard.name}.parquet"
    rows = list(_rows(job, shard, batches))
    samples = _samples(rows, batches, job.config.synthesis.soft_labels)
    with replacing(root / tar) as file:
        members = write_tar(file, samples)
        tar_facts = file_facts(file)
    for row, member in zip(rows, members, strict=True):
        row["offset"], row["size"] = member.offset, member.size
        row["sha256"] = bytes.fromhex(member.sha256)
    facts = teacher_facts(job.config)
    del facts["license"], facts["input"]["interpolation"]  # they may change and leave the shard
    encoded = encode_rows(rows, {"spec": job.spec, "teacher": facts})
    write_bytes(root / parquet, encoded)
    agree = [row["teacher_pred"] == row["cls"] for row in rows]
    record = ShardRecord.of(
        shard=shard.name,
        round=shard.round,
        first=shard.first,
        images=len(rows),
        spec=job.spec,
        spec_sha256=digest_json(job.spec),
        files={tar: tar_facts, parquet: file_facts(io.BytesIO(encoded))},
        class_counts=_class_counts(shard),
        batches=[batch.size for batch, _ in batches],
        precision=precision,
        agreement=round(sum(agree) / len(agree), 6),
        confidence=round(sum(row["teacher_prob"] for row in rows) / len(rows), 6),
        replaced=flaw_counts(kept.replaced for _, kept in batches),
        flaws=flaw_counts(kept.flaws for _, kept in batches),
        curve=_mean_curve(batches),
        versions=versions(),
    )
    write_json(record_path(root, shard.number), record.to_json())


def teacher_facts(config: Config) -> dict[str, Any]:
    """What the teacher is, without the paths that it had on this machine."""
    facts = config.teacher.model_dump(mode="json", exclude={"weights", "sha256"})
    return {**facts, "source": sources.public_source(config.teacher.source)}


def file_facts(file: IO[bytes]) -> dict[str, Any]:
    """Digests and size, as the record and the dataset's index files name them."""
    digests = {}
    for algorithm in ("sha256", "md5"):
        file.seek(0)
        digests[algorithm] = hashlib.file_digest(file, algorithm).hexdigest()  # type: ignore[arg-type]
    return {**digests, "size": file.seek(0, io.SEEK_END)}


def _rows(
    job: ShardJob, shard: ShardPlan, batches: list[tuple[Batch, Kept]]
) -> Iterator[dict[str, Any]]:
    names = job.config.teacher.class_names
    weights = round_objective(job.config, shard.round)
    index = 0
    for number, (batch, kept) in enumerate(batches):
        columns = _columns(kept, shard.labels[index : index + batch.size], weights)
        for position in range(batch.size):
            label = int(shard.labels[index])
            yield {
                "key": shard.key(index),
                "shard": f"{shard.name}.tar",
                "index": index,
                "cls": label,
                "class_name": names[label] if names else str(label),
                "round": shard.round,
                "batch": number,
                "iterations": job.config.synthesis.iterations,
                "height": kept.images.pixels.shape[2],
                "width": kept.images.pixels.shape[3],
                **{name: values[position] for name, values in columns.items()},
            }
            index += 1


def _columns(kept: Kept, labels: plan.Labels, weights: Objective) -> dict[str, list[Any]]:
    """What the networks and the objective say of each image of a batch."""
    intended = torch.from_numpy(labels.astype(np.int64))
    result = kept.images
    terms, logits, student = result.terms, result.logits, result.student_logits
    columns: dict[str, list[Any]] = {
        "seed": result.seeds.tolist(),
        "attempt": result.attempts.tolist(),
        "replaced": [Flaw(value).word for value in kept.replaced.tolist()],
        "flaw": [Flaw(value).word for value in kept.flaws.tolist()],
        "factor_classification": terms.factors[:, 0].tolist(),
        "factor_tv": terms.factors[:, 1].tolist(),
        "loss_total": terms.total(weights).tolist(),
        "loss_classification": terms.classification.tolist(),
        "loss_tv": terms.tv.tolist(),
        "loss_l2": terms.l2.tolist(),
        "loss_feature": terms.feature.tolist(),
        "teacher_pred": logits.argmax(1).tolist(),
        "teacher_prob": result.confidence(intended).tolist(),
        "teacher_entropy": filtering.entropy(logits).tolist(),
    }
    if student is not None:
        assert terms.compete is not None
        columns["loss_compete"] = terms.compete.tolist()
        columns["student_pred"] = student.argmax(1).tolist()
        columns["student_prob"] = student.softmax(1).gather(1, intended[:, None])[:, 0].tolist()
        columns["js_divergence"] = objective.jensen_shannon(logits, student).tolist()
    return columns


def _samples(
    rows: Sequence[dict[str, Any]], batches: list[tuple[Batch, Kept]], soft_labels: bool
) -> Iterator[Sample]:
    images = (image for _, kept in batches for image in kept.images.pixels.numpy())
    logits = (values for _, kept in batches for values in kept.images.logits.half().numpy())
    for row, pixels, values in zip(rows, images, logits, strict=True):
        facts = {name: row[name] for name in ("cls", "class_name", "round", "teacher_pred")}
        facts["teacher_prob"] = float(f"{row['teacher_prob']:.6g}")
        yield Sample(row["key"], pixels, row["cls"], facts, values if soft_labels else None)


def _class_counts(shard: ShardPlan) -> dict[str, int]:
    labels, counts = np.unique(shard.labels, return_counts=True)
    return {str(label): int(count) for label, count in zip(labels, counts, strict=True)}


def _mean_curve(batches: list[tuple[Batch, Kept]]) -> list[dict[str, float]]:
    curves = [kept.images.curve for _, kept in batches]
    return [
        {name: float(f"{np.mean([p[name] for p in points]):.6g}") for name in points[0]}
        for points in zip(*curves, strict=True)
    ]


@functools.lru_cache(maxsize=2)
def _cached_plan(synthesis: str, adaptive: str, classes: int) -> Plan:
    return make_plan(
        SynthesisConfig.model_validate_json(synthesis),
        AdaptiveConfig.model_validate_json(adaptive),
        classes,
    )


@functools.cache
def _code_digest() -> str:
    return source_digest(Path(str(module.__file__)) for module in _PIXEL_CODE)


def _engine(job: ShardJob, device: str) -> Engine:
    """The engine of the shard's round; a worker keeps it, compiled, for the shards that follow."""
    config, competitor = job.config, job.competitor
    loaded = cached_teacher(config.teacher.model_dump_json(), job.spec["teacher"], device)
    return _cached_engine(
        loaded,
        round_objective(config, job.spec["round"]),
        config.synthesis.precision,
        config.synthesis.compile,
        config.synthesis.checkpointing,
        config.student.model_dump_json() if competitor else "",
        competitor,
    )


@functools.lru_cache(maxsize=1)
def _cached_engine(
    loaded: Teacher,
    weights: Objective,
    precision: PrecisionChoice,
    compiled: bool,
    checkpointing: bool,
    section: str,
    competitor: Competitor | None,
) -> Engine:
    student = None
    if competitor is not None:
        if digest_file(competitor.weights) != competitor.sha256:
            raise TryAgainError(
                f"{competitor.weights} is not the student that the round began with: "
                "another run trained it anew; run the same command again"
            )
        architecture = StudentConfig.model_validate_json(section)
        student = sources.build_network(architecture.source, architecture.arguments, "student")
        sources.load_weights(student, competitor.weights, "student")
        student.eval().requires_grad_(False).to(loaded.device)
    return Engine(loaded, weights, precision, compiled, student, checkpointing)
