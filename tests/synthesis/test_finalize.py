from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dataset.layout import CLAIM
from pipeline.dataset.lock import locked
from pipeline.errors import TryAgainError, UserError
from pipeline.stages.finalize import finalize
from pipeline.synthesis.spec import parameters_digest
from tests.conftest import Params, changed, dataset, load, make, tree
from tests.synthesis.shards import files, shard_files


def test_shard_ranges_add_up_to_the_whole(tiny: Params, tmp_path: Path) -> None:
    make(tiny)
    parts = changed(tiny, {"paths.dataset": str(tmp_path / "parts")})
    assert make(parts, range(0, 1)) == [0]
    assert files(tmp_path / "parts") == sorted([CLAIM, *shard_files(0)])
    assert make(parts, range(1, 2)) == [1]
    assert files(tmp_path / "parts") == sorted([CLAIM, *shard_files(0, 1)])
    finalize(*load(parts))
    assert tree(tmp_path / "parts") == tree(dataset(tiny))


def test_shard_ranges_in_another_order(tiny: Params, tmp_path: Path) -> None:
    make(tiny)
    parts = changed(tiny, {"paths.dataset": str(tmp_path / "parts")})
    assert make(parts, range(1, 2)) == [1]
    assert make(parts, range(1, 2)) == []
    assert files(tmp_path / "parts") == sorted([CLAIM, *shard_files(1)])
    assert make(parts, range(0, 2)) == [0]
    finalize(*load(parts))
    assert tree(tmp_path / "parts") == tree(dataset(tiny))


def test_finalize_names_what_is_missing(tiny: Params) -> None:
    params = changed(tiny, {"synthesis.shard_size": 4})
    make(params, range(1, 3))
    with pytest.raises(
        UserError, match=r"3 of 5 .*\(000000, 000003-000004\), the first 000000 \(missing\)"
    ):
        finalize(*load(params))
    assert files(dataset(params)) == sorted([CLAIM, *shard_files(1, 2)])
    other = changed(params, {"synthesis.iterations": 3})
    make(params)
    with pytest.raises(
        UserError, match=r"5 of 5 .*\(stale: synthesis.iterations changed from 4 to 3\)"
    ):
        finalize(*load(other))


def test_the_last_range_may_reach_beyond_the_plan(tiny: Params) -> None:
    """The last of an array of jobs with equal ranges may end beyond the plan, in any order."""
    assert make(tiny, range(1, 8)) == [1]
    assert files(dataset(tiny)) == sorted([CLAIM, *shard_files(1)])
    with pytest.raises(UserError, match="the plan ends at 2"):
        make(tiny, range(8, 16))
    assert make(tiny, range(0, 1)) == [0]
    assert files(dataset(tiny)) == sorted([CLAIM, *shard_files(0, 1)])


@pytest.mark.parametrize("change", [{"synthesis.iterations": 5}, {"synthesis.seed": 7}])
def test_ranges_of_other_parameters_are_refused(tiny: Params, change: dict[str, int]) -> None:
    config, teacher = load(tiny)
    with locked(dataset(tiny), "paths.dataset", parameters_digest(config, teacher.digest)):
        with pytest.raises(TryAgainError, match="in use by a run with other parameters"):
            make(changed(tiny, change), range(1, 2))
        assert make(tiny, range(1, 2)) == [1]
