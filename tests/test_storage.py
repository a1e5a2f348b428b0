from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pipeline import storage


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = {"fsync": os.fsync, "replace": os.replace}

    def fsync(handle: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real["fsync"](handle)

    def rename(source: str, target: Path) -> None:
        done.append("name")
        real["replace"](source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    storage.write_bytes(tmp_path / "x", b"x")
    assert done == ["file", "name", "directory"]
    done.clear()
    storage.remove(tmp_path / "x")
    assert done == ["directory"]
    storage.write_bytes(tmp_path / "new" / "y", b"y")
    assert done == ["directory", "directory", "file", "name", "directory"]


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o007, 0o660)])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        storage.write_bytes(tmp_path / "new" / "x", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "x").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~mask


def test_deleted_files_stay_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their directory is synced, and a missing file is no error."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    (tmp_path / "x").touch()
    storage.remove_all(tmp_path, ["x", "none"])
    assert not (tmp_path / "x").exists() and synced == [tmp_path.stat().st_ino]


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x" / "mine").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="a folder is in the place of this file: move it"):
        storage.write_bytes(tmp_path / "x", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
