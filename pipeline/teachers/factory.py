"""The user's own sources: ``module:factory`` and ``path/to/file.py:factory``."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.source_digest import parse_source, tree_digest
from pipeline.teachers.source import Source, error_line, imported_text
from pipeline.teachers.used_code import used_digest
from pipeline.teachers.user_code import user_code


class Factory(Source):
    """A function that returns the network. It is imported and called because the user named it."""

    form = "module:factory"

    def build(self, name: str, arguments: Mapping[str, Any], weights: str | None, role: str) -> Any:
        factory = _factory(name, role)
        with user_code(name.rpartition(":")[0], role, "called"):
            return factory(**arguments)

    def code_file(self, name: str, role: str) -> Path | None:
        origin, _, _ = name.rpartition(":")
        if origin.endswith(".py"):
            return Path(origin)
        try:
            file = inspect.getsourcefile(inspect.unwrap(_factory(name, role)))
        except TypeError:  # a partial, or another callable without source code
            file = sys.modules[origin].__file__
        return Path(file) if file else None

    def code_digest(self, name: str, role: str) -> str | None:
        file = self.code_file(name, role)
        if file is None:
            return None
        origin, _, function = name.rpartition(":")
        if origin.endswith(".py"):  # such a file is run at each call
            return used_digest(file.read_text(encoding="utf-8"), file.stem, {function})
        text = imported_text(file)
        if origin == "__main__":
            return tree_digest(parse_source(text))
        # A module may have imported the factory from `file`, under another name.
        own = getattr(inspect.unwrap(_factory(name, role)), "__qualname__", function)
        return used_digest(text, file.stem, {function, own.partition(".")[0]})

    def public(self, name: str) -> str:
        origin, _, function = name.rpartition(":")
        return f"{Path(origin).resolve().name}:{function}" if origin.endswith(".py") else name


def _factory(name: str, role: str) -> Callable[..., Any]:
    origin, _, function = name.rpartition(":")
    module = _import_file(origin, role) if origin.endswith(".py") else _import(origin, role)
    factory = getattr(module, function, None)
    if not callable(factory):
        raise UserError(f"{role}.source: {origin} has no function {function!r}")
    return factory  # type: ignore[no-any-return]


def _import(origin: str, role: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        with user_code(origin, role, "imported"):
            return importlib.import_module(origin)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{role}.source: module {origin!r} cannot be imported: {error_line(error)}"
        ) from error


def _import_file(origin: str, role: str) -> Any:
    path = Path(origin)
    if not path.is_file():
        raise UserError(f"{role}.source: there is no file {origin}")
    name = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with user_code(origin, role, "imported"):
            spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{role}.source: {origin} failed: {error_line(error)}") from error
    return module
