"""A record is checked against the files that it names, and the lock before a shard is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.layout import LOCK, marker_name
from pipeline.dataset.lock import locked
from pipeline.errors import TryAgainError
from pipeline.synthesis import publish_shard as publish_module
from pipeline.synthesis.make_shard import make_shard
from pipeline.synthesis.shard_states import missing_jobs
from tests.conftest import Params, changed, dataset, load, make, tree
from tests.synthesis.shards import states


@pytest.mark.parametrize("name", ["train/000000.tar", "metadata/000000.parquet"])
def test_another_run_replaces_a_file_by_one_of_the_same_size(
    tiny: Params, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = publish_module.write_json

    def late(path: Path, value: Any) -> None:
        file = dataset(tiny) / name
        file.write_bytes(file.read_bytes()[::-1])
        real(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(publish_module, "write_json", late)
        with pytest.raises(TryAgainError, match=rf"{name} was replaced by another run while shard"):
            make(changed(tiny, {"synthesis.images": 12}))
    assert states(tiny)[0] == "missing"
    assert make(tiny) == [0, 1]


def test_a_run_that_lost_its_lock_writes_no_shard(tiny: Params) -> None:
    config, teacher = load(tiny)
    (job, _) = missing_jobs(config, teacher.digest, 0, None, range(2))
    with locked(dataset(tiny), "paths.dataset") as lock:
        (dataset(tiny) / LOCK).unlink()
        with pytest.raises(TryAgainError, match="lost its lock"):
            make_shard(replace(job, lock=lock), "cpu", lambda images: None)
        assert list(tree(dataset(tiny))) == [marker_name(0, "failed")]


def test_a_run_that_loses_its_lock_stops(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    real = publish_module.write_json

    def thief(path: Path, value: Any) -> None:
        (dataset(tiny) / LOCK).unlink(missing_ok=True)
        real(path, value)

    monkeypatch.setattr(publish_module, "write_json", thief)
    with pytest.raises(TryAgainError, match=r"its file was deleted\. Another run may write there"):
        make(tiny)
    assert list(states(tiny).values()) == ["complete", "missing"]
