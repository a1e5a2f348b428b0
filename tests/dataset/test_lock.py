"""Locks on local folders."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from pipeline.dataset.layout import LOCK
from pipeline.dataset.lock import locked, reading
from pipeline.errors import TryAgainError, UserError

KEY = "paths.dataset"


def test_the_lock_lies_inside_and_goes_with_the_run(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    with locked(root, KEY) as lock:
        assert os.listdir(root) == [LOCK] and os.listdir(tmp_path) == ["dataset"]
        assert json.loads((root / LOCK).read_text())["pid"] == os.getpid()
        lock.check()
        with (
            pytest.raises(TryAgainError, match=rf"in use by another run \(pid {os.getpid()} on "),
            locked(root, KEY),
        ):
            pass
    assert os.listdir(root) == []


def test_another_path_to_the_folder_has_the_same_lock(tmp_path: Path) -> None:
    """As two mounts of one folder have."""
    root = tmp_path / "dataset"
    with locked(root, KEY):
        other = root.rename(tmp_path / "elsewhere")
        with pytest.raises(TryAgainError, match="in use by another run"), locked(other, KEY):
            pass
        with pytest.raises(TryAgainError), reading(other, KEY, "a"):
            pass


@pytest.mark.parametrize("parameters", [None, "a"])
def test_a_deleted_lock_is_noticed(tmp_path: Path, parameters: str | None) -> None:
    with locked(tmp_path, KEY, parameters) as lock:
        (tmp_path / LOCK).unlink()
        with pytest.raises(TryAgainError, match=rf"pid {os.getpid()} .* its file was deleted"):
            lock.check()
        with locked(tmp_path, KEY) as second:
            with pytest.raises(TryAgainError, match=r"now it is held by another run \(pid"):
                lock.check()
            second.check()


def test_runs_with_the_same_parameters_share_a_lock(tmp_path: Path) -> None:
    with locked(tmp_path, KEY, "a") as first, locked(tmp_path, KEY, "a") as second:
        first.check()
        second.check()
        with (
            pytest.raises(TryAgainError, match="in use by a run with other parameters"),
            locked(tmp_path, KEY, "b"),
        ):
            pass
        with pytest.raises(TryAgainError, match="in use by another run"), locked(tmp_path, KEY):
            pass
        second.check()
    assert os.listdir(tmp_path) == []
    with locked(tmp_path, KEY, "b"):
        pass


def test_the_first_of_two_may_leave_first(tmp_path: Path) -> None:
    first = locked(tmp_path, KEY, "a")
    first.__enter__()
    with locked(tmp_path, KEY, "a") as second:
        first.__exit__(None, None, None)
        second.check()
        with pytest.raises(TryAgainError), locked(tmp_path, KEY):
            pass
    assert os.listdir(tmp_path) == []


def _hold(root: Path, ready: multiprocessing.synchronize.Event) -> None:
    with locked(root, KEY):
        ready.set()
        signal.pause()


def test_a_killed_run_leaves_a_lock_that_blocks_nobody(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(TryAgainError, match=f"pid {process.pid} "), locked(tmp_path, KEY):
        pass
    process.kill()
    process.join()
    assert os.listdir(tmp_path) == [LOCK]
    with locked(tmp_path, KEY, "a"), reading(tmp_path, KEY, "a"):
        pass
    assert os.listdir(tmp_path) == []


def _share(root: Path, count: int) -> None:
    for _ in range(count):
        with locked(root, KEY, "a") as lock:
            lock.check()


def test_many_runs_that_share_a_lock_come_and_go(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=_share, args=(tmp_path, 30)) for _ in range(6)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0] * 6
    assert os.listdir(tmp_path) == []


def test_reading_makes_no_folder(tmp_path: Path) -> None:
    with reading(tmp_path / "none", KEY, "a") as lock:
        assert lock is None and os.listdir(tmp_path) == []


@pytest.mark.parametrize("parameters", [None, "a"])
@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "text", "folder", "pipe"])
def test_what_a_user_put_in_the_place_of_a_lock_is_not_written(
    tmp_path: Path, kind: str, parameters: str | None
) -> None:
    root, mine = tmp_path / "dataset", tmp_path / "mine.txt"
    root.mkdir()
    mine.write_text("precious")
    if kind == "link":
        (root / LOCK).symlink_to(mine)
    elif kind == "dangling":
        (root / LOCK).symlink_to(tmp_path / "nothing")
    elif kind == "hard link":
        (root / LOCK).hardlink_to(mine)
    elif kind == "text":
        (root / LOCK).write_text("precious")
    elif kind == "folder":
        (root / LOCK).mkdir()
    else:
        os.mkfifo(root / LOCK)
    message = rf"paths.dataset .*{LOCK} is .*move it elsewhere"
    with pytest.raises(UserError, match=message), locked(root, KEY, parameters):
        pass
    assert mine.read_text() == "precious" and not (tmp_path / "nothing").exists()
    assert os.path.lexists(root / LOCK)


@pytest.mark.parametrize("content", [b"", b"\0" * 170, b'{"host": "a", "pi'])
def test_a_lock_that_a_power_loss_cut_off_blocks_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK).write_bytes(content)
    with locked(tmp_path, KEY) as lock:
        lock.check()
    assert not (tmp_path / LOCK).exists()
