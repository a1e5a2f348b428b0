"""Locks at a URL of S3, which rest on conditional writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from s3fs import S3FileSystem
from upath import UPath

from benchmarks.faults.s3 import BUCKET, CREDENTIALS, s3_server
from pipeline.dataset import remote_lock
from pipeline.dataset.held_lock import Holder, NoLockError
from pipeline.dataset.layout import LOCK, is_lock, shared_lock_name
from pipeline.dataset.lock import locked, reading
from pipeline.errors import TryAgainError
from pipeline.storage import listing, location, read_bytes, remove, write_bytes
from pipeline.synthesis.outputs import check_claim
from tests.conftest import Params, changed, make

KEY = "paths.dataset"
OTHER_HOST = {"host": "elsewhere", "token": "0" * 32}


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def root(server: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> UPath:
    for name, value in {
        **CREDENTIALS,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server}",
    }.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    place = location(f"s3://{BUCKET}/{abs(hash(request.node.name))}")
    assert isinstance(place, UPath)
    return place


def left_by(root: UPath, name: str = LOCK, **facts: Any) -> None:
    """Write the lock of another run."""
    holder = Holder.this_process(facts.pop("parameters", None))
    write_bytes(root / name, replace(holder, **facts).to_bytes())


def test_a_second_run_is_refused(root: UPath) -> None:
    with locked(root, KEY) as lock:
        lock.check()
        for parameters in (None, "a"):
            with (
                pytest.raises(TryAgainError, match=r"in use by another run \(pid "),
                locked(root, KEY, parameters),
            ):
                pass
        assert list(listing(root)) == [LOCK] and check_claim(root, "dataset") is False
    assert listing(root) == {}


def test_runs_share_the_url_for_the_same_parameters(root: UPath) -> None:
    with locked(root, KEY, "a") as first, reading(root, KEY, "a") as second:
        assert len(listing(root)) == 2 and all(map(is_lock, listing(root)))
        with pytest.raises(TryAgainError, match="with other parameters"), locked(root, KEY, "b"):
            pass
        with pytest.raises(TryAgainError, match="in use by another run"), locked(root, KEY):
            pass
        first.check()
        assert second is not None
        second.check()
    assert listing(root) == {}


def test_two_runs_at_one_url_cannot_both_write(tiny: Params, root: UPath) -> None:
    params = changed(tiny, {"paths.dataset": str(root)})
    with locked(root, KEY), pytest.raises(TryAgainError, match="in use by another run"):
        make(params)
    assert listing(root) == {}
    assert make(params) == [0, 1]
    assert not [name for name in listing(root) if is_lock(name)]


@pytest.mark.parametrize("parameters", [None, "a"])
def test_a_lost_lock_is_noticed(root: UPath, parameters: str | None) -> None:
    with locked(root, KEY, parameters) as lock:
        assert lock.path is not None
        content = read_bytes(lock.path)
        remove(lock.path)
        with pytest.raises(TryAgainError, match=r"lost its lock .* its file was deleted"):
            lock.check()
        left_by(root, lock.path.name, **OTHER_HOST)
        with pytest.raises(TryAgainError, match=r"now it is held by another run \(pid .* on else"):
            lock.check()
    assert read_bytes(root / lock.path.name) != content  # The lock of the other run stays.


@pytest.mark.parametrize("name", [LOCK, shared_lock_name("0" * 32)])
def test_the_lock_of_a_killed_run_ends(
    root: UPath, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by(root, name, **OTHER_HOST)
    with pytest.raises(TryAgainError, match="on elsewhere"), locked(root, KEY):
        pass
    monkeypatch.setattr(remote_lock, "EXPIRY", -60.0)
    with locked(root, KEY) as lock:
        lock.check()
    assert listing(root) == {}


def test_a_process_that_ended_on_this_host_holds_nothing(root: UPath) -> None:
    left_by(root, pid=2**22 + 1, token="0" * 32)
    left_by(root, shared_lock_name("1" * 32), pid=2**22 + 1, token="1" * 32)
    with locked(root, KEY):
        assert list(listing(root)) == [LOCK]
    assert listing(root) == {}


def test_of_two_runs_that_find_an_expired_lock_one_takes_it(root: UPath) -> None:
    left_by(root, pid=2**22 + 1, token="0" * 32)
    path = root / LOCK
    etag = path.fs.info(path.path)["ETag"]
    first, second = Holder.this_process(None), Holder.this_process(None)
    assert remote_lock._put(path, first, IfMatch=etag)
    assert not remote_lock._put(path, second, IfMatch=etag)
    assert not remote_lock._put(path, second, mode="create")


def test_a_lock_is_renewed(root: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_lock, "REFRESH", 0.05)
    writes: list[str] = []
    real = remote_lock.write_bytes

    def counted(path: UPath, data: bytes) -> None:
        writes.append(path.name)
        real(path, data)

    monkeypatch.setattr(remote_lock, "write_bytes", counted)
    with locked(root, KEY) as lock:
        for _ in range(200):
            lock.check()
            if len(writes) > 1:
                break
    assert set(writes) == {LOCK} and listing(root) == {}


def test_a_store_without_conditional_writes(root: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a store may answer 501: then there is no lock, as at other URLs."""

    def refused(self: Any, path: str, value: bytes, **more: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(S3FileSystem, "pipe_file", refused)
    with locked(root, KEY) as lock:
        assert lock.path is None
        lock.check()


def test_an_error_of_the_store_is_no_lock(root: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Any, path: str, value: bytes, **more: Any) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(S3FileSystem, "pipe_file", failing)
    with pytest.raises(NoLockError, match=r"cannot be locked: .* read only"), locked(root, KEY):
        pass
    with reading(root, KEY, "a") as lock:
        assert lock is None
