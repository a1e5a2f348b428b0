"""Batches that are too large for the memory are made in parts, with the same bytes every time."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from pipeline.dataset.plan import Batch, derive_seed, make_plan
from pipeline.dataset.stream import ordered_batches
from pipeline.device.memory import enough_memory, is_out_of_memory
from pipeline.distillation.step import Training
from pipeline.errors import UserError
from pipeline.estimation.device_timing import probe_devices
from pipeline.execution.runner import JobsFailed, open_runner
from pipeline.inversion import batch_parts
from pipeline.inversion.batch_parts import Report, invert_in_parts, partitions
from pipeline.inversion.engine import Engine
from pipeline.inversion.invert import invert
from pipeline.objective.presets import Objective
from pipeline.params import parse_params
from pipeline.stages.repair import repair
from pipeline.stages.verify import verify
from pipeline.synthesis import engine_cache
from tests.conftest import Params, changed, dataset, load, make, tree
from tests.inversion.test_fingerprints import cosines
from tests.synthesis.test_filtered_runs import rows

CPU_ERROR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
)
ERRORS = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), CPU_ERROR, MemoryError()]

Capacity = Callable[..., list[int]]


@pytest.fixture
def capacity(monkeypatch: pytest.MonkeyPatch) -> Capacity:
    """``capacity(most, error)``: from now on a step of more than ``most`` images raises ``error``.

    ``new`` drops the cached engine, as a new process would. Returns the sizes of all steps.
    """
    real = Engine.step

    def limit(most: int, error: Exception = ERRORS[0], new: bool = True) -> list[int]:
        tried: list[int] = []

        def step(self: Engine, images: Tensor, *others: Tensor) -> Any:
            tried.append(len(images))
            if len(images) > most:
                self._total(images, *others)  # as far as the loss
                self.teacher.network(images)  # and into the next step
                raise error
            return real(self, images, *others)

        monkeypatch.setattr(Engine, "step", step)
        if new:
            engine_cache._cached_engine.cache_clear()
        return tried

    return limit


def whole(size: int, seed: int) -> Batch:
    """A batch that keeps all its candidates."""
    return Batch(size, seed, size)


def record(params: Params, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (dataset(params) / "metadata" / f"{number:06d}.json").read_bytes()
    )
    return found


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_made_in_halves(
    tiny: Params, capacity: Capacity, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    tried = capacity(3, error)
    assert make(tiny) == [0, 1]
    assert record(tiny, 0)["batches"] == [3, 3, 3, 3]
    assert record(tiny, 1)["batches"] == [2, 2, 2, 2]
    # The first batch of each size tries that size twice. Later batches know that 3 images fit.
    assert [size for size in tried if size > 3] == [6, 6, 4, 4]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [
        "the memory does not hold 6 images at once: they are optimised 3 at a time, and each "
        "shard's record says so"
    ]
    config, teacher = load(tiny)
    assert verify(config, teacher, 0.0, lambda images: None) == []
    layout = make_plan(config.synthesis, config.adaptive, 3)
    for shard in layout:
        rows = pq.read_table(dataset(tiny) / "metadata" / f"{shard.name}.parquet").to_pylist()
        assert [row["cls"] for row in rows] == shard.labels.tolist()
        sizes = record(tiny, shard.number)["batches"]
        assert [row["batch"] for row in rows] == [i for i, n in enumerate(sizes) for _ in range(n)]
        assert [row["seed"] for row in rows] == [
            derive_seed(batch.seed, 2, half)
            for batch in shard.batches
            for half in (0, 1)
            for _ in range(batch.size // 2)
        ]
        assert len({row["sha256"] for row in rows}) == len(rows)
        assert [row["attempt"] for row in rows] == [0] * len(rows)


def test_a_shard_in_parts_is_complete_and_comes_out_the_same_again(
    tiny: Params, capacity: Capacity, tmp_path: Path
) -> None:
    capacity(3)
    make(tiny)
    before = tree(dataset(tiny))
    assert make(tiny) == []
    for number in (1, 0):
        capacity(3)
        (dataset(tiny) / "metadata" / f"{number:06d}.json").unlink()
        assert make(tiny) == [number]
        assert tree(dataset(tiny)) == before
    with (dataset(tiny) / "train" / "000001.tar").open("r+b") as file:
        file.write(b"?")
    capacity(3)
    config, teacher = load(tiny)
    with open_runner(config) as run:
        assert repair(config, teacher, run) == ["shard 000001"]
    assert tree(dataset(tiny)) == before
    capacity(100)
    assert make(tiny) == []  # a larger device takes what a smaller one made
    other = changed(tiny, {"paths.dataset": str(tmp_path / "whole")})
    make(other)
    assert record(other, 0)["batches"] == [6, 6]
    assert tree(tmp_path / "whole")["train/000000.tar"] != before["train/000000.tar"]


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(9, [9]), (8, [5, 4]), (4, [3, 2, 2, 2]), (2, None)],
)
def test_parts_are_halved_until_they_fit(
    tiny: Params, capacity: Capacity, most: int, sizes: list[int] | None
) -> None:
    """A part has the same images as a batch of its labels and seed, whatever failed before it."""
    _, teacher = load(tiny)
    labels, batch = torch.arange(9) % 3, whole(9, 7)
    told: list[float] = []

    def made(part: Batch, of_part: Tensor, before: list[Any], tell: Report) -> Any:
        return invert(engine, of_part, part.seed, 4, lambda steps: tell(part.size * steps / 4))

    capacity(most)
    with Engine(teacher, Objective(flip=False)) as engine:
        if sizes is None:
            with pytest.raises(UserError, match=r"even 3 images .* synthesis.batch_size"):
                invert_in_parts(engine, batch, labels, made, told.append)
            return
        found = invert_in_parts(engine, batch, labels, made, told.append)
    assert [part.size for part, _ in found] == sizes
    assert sum(told) == pytest.approx(9)
    capacity(100)
    for (part, result), of_part in zip(found, labels.split(sizes), strict=True):
        with Engine(teacher, Objective(flip=False)) as fresh:
            alone = invert(fresh, of_part, part.seed, 4)
        assert torch.equal(result.pixels, alone.pixels)
        assert result.curve == alone.curve


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 64, 250])
def test_parts_are_as_equal_as_can_be_and_of_their_own_seeds(size: int) -> None:
    found = list(partitions(whole(size, 3)))
    assert found[0] == [whole(size, 3)]
    seeds = [part.seed for parts in found for part in parts]
    assert len(set(seeds)) == len(seeds)
    for parts in found:
        sizes = [part.size for part in parts]
        assert sum(sizes) == size
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1
    assert len(found) == 1 or min(part.size for part in found[-1]) == 2
    for more, fewer in itertools.pairwise(found):
        assert len(fewer) <= 2 * len(more)


def test_parts_have_their_share_of_the_candidates() -> None:
    for size, candidates in itertools.product(range(1, 30), range(1, 60)):
        if candidates < size:
            continue
        for parts in partitions(Batch(size, 0, candidates)):
            assert sum(part.candidates for part in parts) == candidates
            assert all(part.candidates >= part.size for part in parts)
            assert parts[0].candidates == max(part.candidates for part in parts)


def test_candidates_count_against_the_memory(tiny: Params, capacity: Capacity) -> None:
    tried = capacity(4)
    # 6 candidates for 4 images: two parts of 3 candidates for 2 images.
    params = changed(tiny, {"synthesis.keep": 0.67})
    make(params)
    assert max(tried) == 6 and 3 in tried
    assert set(record(tiny, 0)["batches"]) == {2}
    config, teacher = load(params)
    assert verify(config, teacher, 0.0, lambda images: None) == []


def test_a_process_that_knows_the_limit_makes_what_one_that_finds_it_makes(
    tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A size fails if it is above the capacity, in any order of the batches."""
    monkeypatch.setattr(batch_parts, "release", lambda device: None)
    _, teacher = load(tiny)

    def sizes(size: int, most: int, known: int | None) -> list[int] | None:
        def made(part: Any, labels: Tensor, before: list[Any], tell: Any) -> Any:
            if part.candidates > most:
                raise ERRORS[0]
            return part

        engine = Engine(teacher, Objective())
        if known is not None:
            engine.capacity.record_failure(known)
        try:
            found = invert_in_parts(
                engine, whole(size, 0), torch.zeros(size).long(), made, lambda n: None
            )
        except UserError:
            return None
        return [part.size for part, _ in found]

    for most, size in itertools.product((2, 3, 4, 5, 8, 13), range(1, 40)):
        fresh = sizes(size, most, None)
        assert all(sizes(size, most, known) == fresh for known in (most + 1, most + 2, 2 * most))


def test_too_little_memory_for_anything_is_one_error(tiny: Params, capacity: Capacity) -> None:
    tried = capacity(1)
    with pytest.raises(UserError, match=r"even 2 images .* synthesis.checkpointing to true"):
        make(changed(tiny, {"execution.retries": 5}))
    assert tried == [6, 6, 3, 3, 2, 2]
    assert not list((dataset(tiny) / "train").glob("0*"))


def test_memory_kept_of_earlier_work_does_not_split(
    tiny: Params, capacity: Capacity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A size is not too large if it fits after the memory was released."""
    make(tiny)
    whole = tree(dataset(tiny))
    shutil.rmtree(dataset(tiny))
    tried = capacity(100)
    real, failed = Engine.step, []

    def step(self: Engine, images: Tensor, *others: Tensor) -> Any:
        if len(tried) == 3 and not failed:
            failed.append(len(images))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, images, *others)

    monkeypatch.setattr(Engine, "step", step)
    make(tiny)
    assert failed == [6]
    assert tree(dataset(tiny)) == whole


def test_what_fitted_before_does_not_split_later(tiny: Params, capacity: Capacity) -> None:
    """Another process took the memory. If that decided the parts, a rerun would differ."""
    make(tiny)
    whole = tree(dataset(tiny))
    shutil.rmtree(dataset(tiny))
    capacity(100)
    make(changed(tiny, {"synthesis.images": 12}))
    capacity(2, new=False)
    with pytest.raises(JobsFailed, match="held 6 images at once before but does not hold 4 now"):
        make(tiny)
    capacity(100)
    assert make(tiny) == [1]
    assert tree(dataset(tiny)) == whole


def test_a_step_that_failed_is_given_back_before_the_next(tiny: Params) -> None:
    _, teacher = load(tiny)
    kept: list[weakref.ref[Tensor]] = []

    def made(part: Batch, labels: Tensor, before: list[Any], tell: Report) -> Any:
        assert all(ref() is None for ref in kept)
        images = torch.zeros(part.size, 1, 8, 8, requires_grad=True)
        kept.append(weakref.ref(images))
        raise torch.OutOfMemoryError("CUDA out of memory")

    gc.disable()
    try:
        with Engine(teacher, Objective()) as engine, pytest.raises(UserError):
            invert_in_parts(engine, whole(4, 0), torch.zeros(4).long(), made, lambda images: None)
    finally:
        gc.enable()
    assert len(kept) == 4


def test_other_errors_are_tried_again_as_ever(tiny: Params, capacity: Capacity) -> None:
    capacity(3, RuntimeError("something else"))
    with pytest.raises(JobsFailed, match="something else"):
        make(tiny)


def test_a_probe_measures_the_parts(
    tiny: Params, capacity: Capacity, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.estimation import stopwatch

    monkeypatch.setattr(stopwatch, "ENOUGH", 0.01)
    tried = capacity(3)
    (found,) = probe_devices(parse_params(tiny))
    assert found.speeds[0].image > 0
    assert set(tried) == {6, 3}


def test_compiling_out_of_memory_is_not_taken_for_a_teacher_that_does_not_compile(
    tiny: Params, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, teacher = load(tiny)
    calls: list[int] = []

    def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def run(images: Tensor, *others: Tensor) -> Any:
            calls.append(len(images))
            if len(images) > 2:
                raise CPU_ERROR
            if calls.count(2) == 1:
                raise ValueError("no compiler")
            return function(images, *others)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    with Engine(teacher, Objective(flip=False), compiled=True) as engine:
        with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
            invert(engine, torch.tensor([0, 1, 2]), 0, 1)
        assert not caplog.records
        engine.forget()
        invert(engine, torch.tensor([0, 1]), 0, 1)
    assert ["no compiler" in record.getMessage() for record in caplog.records] == [True]


def test_a_student_without_memory_is_one_error(
    tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Training, number: int, pixels: Tensor) -> Any:
        raise CPU_ERROR

    monkeypatch.setattr(Training, "step", step)
    params = changed(tiny, {"adaptive.rounds": 1, "execution.retries": 5})
    with pytest.raises(UserError, match=r"batches of 5: lower .*adaptive.training.batch_size"):
        make(params)


def test_what_says_that_memory_is_out() -> None:
    assert all(is_out_of_memory(error) for error in ERRORS)
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 50)
    assert is_out_of_memory(real.value)
    with pytest.raises(UserError, match="buy more"), enough_memory("buy more"):
        torch.empty(1 << 50)
    with pytest.raises(ValueError, match="other"), enough_memory("buy more"):
        raise ValueError("other")


def test_parts_see_each_others_images(tiny: Params, capacity: Capacity) -> None:
    capacity(3)
    params = changed(tiny, {"synthesis.max_similarity": 0.3, "synthesis.images": 6})
    make(params)
    assert record(params, 0)["batches"] == [3, 3]
    ((pixels, _),) = ordered_batches([dataset(params) / "train" / "000000.tar"], 12)
    fine = torch.tensor([row["flaw"] is None for row in rows(params)])
    assert int(fine.sum()) > 2
    assert float(cosines(pixels[fine]).max()) <= 0.3 + 1e-6
