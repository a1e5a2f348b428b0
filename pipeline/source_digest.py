"""A digest of Python source that ignores comments, docstrings and layout."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parent


def source_files(names: Iterable[str], root: Path = PACKAGE) -> list[Path]:
    """The Python files of folders and single files below ``root``, in a fixed order.

    Args:
        names: folders, of which all files count, or single files ending in ``.py``.
        root: the folder of this package.
    """
    files: list[Path] = []
    for name in names:
        path = root / name
        files += [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
    return files


@functools.cache
def package_digest(names: tuple[str, ...]) -> str:
    """SHA-256 over this package's code in folders and single files, as this process began with it.

    Args:
        names: the names that :func:`source_files` takes.
    """
    return source_digest(source_files(names))


def source_digest(files: Iterable[Path]) -> str:
    """SHA-256 over the code of ``files``, in the order given."""
    return tree_digest(*(parse_source(file.read_text(encoding="utf-8")) for file in files))


def parse_source(text: str) -> ast.Module:
    """Parse Python source, and leave out its docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        _drop_texts(node)
    return tree


def tree_digest(*trees: ast.Module) -> str:
    """SHA-256 over parsed code, in the order given."""
    digest = hashlib.sha256()
    for tree in trees:
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


def _drop_texts(node: ast.AST) -> None:
    """Remove the docstrings of a body, those below a field included."""
    body = getattr(node, "body", None)
    if isinstance(body, list):
        node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
