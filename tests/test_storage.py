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
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644
    done.clear()
    storage.remove(tmp_path / "x")
    assert done == ["directory"]
    storage.write_bytes(tmp_path / "new" / "y", b"y")
    assert done == ["directory", "directory", "file", "name", "directory"]
