from __future__ import annotations

import heapq
import itertools
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale import devices as scale
from benchmarks.scale import records
from pipeline.dataset.plan import plan_of
from pipeline.estimation.cost import (
    RoundSpeed,
    cost,
    cost_table,
    dataset_bytes,
    show_bytes,
)
from pipeline.estimation.device_timing import (
    describe_timing,
    mean_speeds,
    probe_devices,
)
from pipeline.estimation.sample_bytes import sample_bytes
from pipeline.estimation.stopwatch import FEWEST, MOST, fewest_steps, separate_times
from pipeline.params import parse_params
from pipeline.synthesis.job import Made, ShardJob
from pipeline.synthesis.shard_states import missing_jobs, shard_states
from tests.conftest import Params, changed, dataset, load, make


def earliest_free(sizes: list[int], seconds: float, devices: int) -> float:
    """When the last shard ends if each goes to the device that is free first."""
    free = [0.0] * devices
    for size in sizes:
        heapq.heapreplace(free, free[0] + size * seconds)
    return max(free)


@pytest.mark.parametrize(
    ("shards", "last", "devices"),
    list(itertools.product((1, 2, 3, 8, 9, 16, 17), (1, 600, 1000), (1, 2, 3, 8, 64))),
)
def test_the_waves_end_when_the_last_shard_does(shards: int, last: int, devices: int) -> None:
    sizes = [1000] * (shards - 1) + [last]
    found = cost([sizes], [RoundSpeed(image=0.5)], devices)
    assert found.wall == pytest.approx(earliest_free(sizes, 0.5, devices))
    assert found.waves == -(-shards // devices)
    assert found.images == sum(sizes)
    assert found.busy == pytest.approx(0.5 * sum(sizes))
    assert found.busy <= found.held * (1 + 1e-9)


def test_the_last_wave_leaves_devices_idle() -> None:
    found = cost([[1000] * 1280], [RoundSpeed(image=0.4)], 512)
    assert (found.waves, found.wall) == (3, 1200.0)
    assert found.held == 512 * 1200
    assert found.efficiency == pytest.approx(1280 / (3 * 512))


def test_rounds_follow_each_other_and_wait_for_their_student() -> None:
    speeds = [
        RoundSpeed(image=1.0, start=7.0),
        RoundSpeed(image=2.0, start=10.0, student=100.0),
    ]
    found = cost([[10, 10, 10], [10, 5]], speeds, 2)
    assert found.waves == 2 + 1
    assert found.wall == (7 + 2 * 10) + (100 + 10 + 2 * 10)
    assert found.busy == (2 * 7 + 30) + (100 + 2 * 10 + 2 * 15)


def test_a_table_has_a_line_for_each_number_of_devices() -> None:
    bounds = [(0, 0, 3600), (0, 3600, 7200), (1, 7200, 10800)]
    lines = cost_table(bounds, [RoundSpeed(image=1.0)] * 2, [1, 2])
    assert [line.split() for line in lines[1:]] == [
        ["1", "1", "3", "3", "h", "0", "min", "3", "100%"],
        ["2", "1.5", "2", "2", "h", "0", "min", "4", "75%"],
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (1.5e13, "15 TB"),
        (2e16, "2e+04 TB"),
    ],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert show_bytes(count) == text


@pytest.mark.parametrize(
    "changes", [{}, {"soft_labels": True}, {"captions": "a photo of a {}"}, {"views": 64}]
)
def test_a_dataset_is_no_larger_than_estimated(tiny: Params, changes: Params) -> None:
    changes = {f"synthesis.{name}": value for name, value in changes.items()}
    changes["synthesis.images"] = 200
    params = changed(tiny, {**changes, "synthesis.shard_size": 100, "synthesis.batch_size": 100})
    make(params)
    estimate = dataset_bytes(200, 2, sample_bytes(parse_params(params)))
    found = sum(path.stat().st_size for path in dataset(params).glob("*/*"))
    assert 0.7 * estimate < found < 1.1 * estimate


def test_no_dataset_of_small_shards_is_larger_than_estimated(tiny: Params) -> None:
    """Then what a shard takes beside its images is most of it."""
    params = changed(tiny, {"synthesis.images": 12, "synthesis.shard_size": 2})
    make(params)
    estimate = dataset_bytes(12, 6, sample_bytes(parse_params(params)))
    assert sum(path.stat().st_size for path in dataset(params).glob("*/*")) < estimate


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_probe_does_the_real_work_elsewhere(
    tiny: Params, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    from pipeline.estimation import stopwatch as module

    monkeypatch.setattr(module, "ENOUGH", 0.05)
    made = []
    make_shard = module.make_shard

    def watched(job: ShardJob, *rest: Any) -> Made:
        made.append((job.spec["round"], job.spec["iterations"], job.images))
        assert not Path(job.config.paths.dataset).is_relative_to(dataset(tiny))
        return make_shard(job, *rest)

    monkeypatch.setattr(module, "make_shard", watched)
    changes = {"adaptive.rounds": rounds, "synthesis.min_confidence": 1.0}
    config = parse_params(changed(tiny, changes))
    (found,) = probe_devices(config)

    assert not dataset(tiny).exists()
    batch = plan_of(config).shard(0).batches[0].size
    assert made[:2] == [(0, FEWEST + 1, batch), (0, FEWEST, batch)]
    assert made[2][:2] > (0, FEWEST)
    assert {round_ for round_, _, _ in made} == ({0, 1} if rounds else {0})
    assert len(found.speeds) == rounds + 1
    assert all(speed.image > 0 and speed.start >= 0 for speed in found.speeds)
    assert [speed.student > 0 for speed in found.speeds] == [False] + [True] * rounds
    assert found.memory > 50e6
    lines = describe_timing([found], plan_of(config))
    assert len(lines) == min(rounds, 1) + 2
    assert "a shard of 12 images, " in lines[1]
    assert mean_speeds([found, found]) == found.speeds


@pytest.mark.parametrize("keep", [1.0, 0.7, 0.5])
def test_a_probe_makes_all_candidates_once(
    tiny: Params, monkeypatch: pytest.MonkeyPatch, keep: float
) -> None:
    from pipeline.estimation import stopwatch as module
    from pipeline.inversion import selection as filtering

    monkeypatch.setattr(module, "ENOUGH", 0.0)
    made, sizes = [], []
    make_shard, invert = module.make_shard, filtering.invert

    def counted(job: ShardJob, *rest: Any) -> Made:
        made.append(job.images)
        return make_shard(job, *rest)

    def seen(engine: Any, labels: Any, *rest: Any) -> Any:
        sizes.append(len(labels))
        return invert(engine, labels, *rest)

    monkeypatch.setattr(module, "make_shard", counted)
    monkeypatch.setattr(filtering, "invert", seen)
    strict = {"synthesis.confirmed": True, "synthesis.max_similarity": 0.01}
    config = parse_params(changed(tiny, {**strict, "synthesis.keep": keep}))
    probe_devices(config)
    batch = plan_of(config).shard(0).batches[0]
    assert sizes == [batch.candidates] * (len(made) + 1)  # and once for the result
    assert set(made) == {batch.size}


def test_more_iterations_cost_more(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.estimation import stopwatch as module

    monkeypatch.setattr(module, "ENOUGH", 0.2)
    few, many = (
        probe_devices(parse_params(changed(tiny, {"synthesis.iterations": n})))[0].speeds[0].image
        for n in (10, 10_000)
    )
    assert many > 10 * few


@pytest.mark.parametrize("step", [0.001, 0.03, 5.0])
def test_start_step_and_remaining_time_are_separated_despite_disturbances(step: float) -> None:
    """The first call compiles for a minute; every third one after it is held up for a second."""
    calls: list[int] = []

    def seconds(steps: int) -> float:
        calls.append(steps)
        held_up = 1.0 if len(calls) % 3 == 0 else 0.0
        return 60.0 * (len(calls) == 1) + 0.5 + step * steps + held_up * step * 20

    start, base, found = separate_times(seconds, FEWEST)
    assert (start, base, found) == pytest.approx((60.0, 0.5, step))
    assert all(one != other for one, other in itertools.pairwise(calls))
    assert max(calls) <= FEWEST + MOST


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.6, 0.9, 1.0])
def test_the_fewest_steps_have_all_sizes(share: float) -> None:
    """Each size compiles by itself, and so must be among the first steps."""
    for steps in (fewest_steps(share), fewest_steps(share) + 1):
        small = round(share * steps)
        assert 0 < small < steps or share in (0.0, 1.0)
    assert fewest_steps(share) <= 15


def test_the_benchmarks_stand_ins_for_shards_are_complete(tiny: Params, tmp_path: Path) -> None:
    """For those of ``benchmarks.scale.devices`` and of ``benchmarks.scale.records``."""
    config, teacher = load(tiny)
    for job in missing_jobs(config, teacher.digest, 0, None, range(2)):
        scale.publish(job)
    assert set(shard_states(config, teacher.digest).values()) == {"complete"}

    (tmp_path / "many").mkdir()
    params = records.scene(tmp_path / "many", 3)
    records.make_records(params)
    config, teacher = load(params)
    assert shard_states(config, teacher.digest) == {n: "complete" for n in range(3)}
