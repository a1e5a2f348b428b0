"""The source ``memory:package.Class``: teachers that exist only in this process.

A model is registered under the qualified name of its class. The last model of a class counts. A
weights file that a parameter file names is loaded into a copy of the registered model.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from pipeline.errors import UserError
from pipeline.teachers.source import Source

SCHEME = "memory"
_registered: dict[str, nn.Module] = {}


def register(model: nn.Module) -> str:
    """Remember ``model`` for this process, and return the source string that names it.

    Args:
        model: Any module. The wrappers DataParallel and DistributedDataParallel are taken off.

    Returns:
        ``memory:package.Class``, with the qualified name of the model's class.

    Raises:
        UserError: ``model`` is not a ``torch.nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model is of the type {type(model).__name__}: give an instance of torch.nn.Module"
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return register(model.module)
    name = _qualified(type(model))
    _registered[name] = model
    return f"{SCHEME}:{name}"


def registered(source: str, role: str = "teacher") -> nn.Module:
    """Return the model that :func:`register` gave the name ``source``.

    Args:
        source: ``memory:package.Class``, or the part after the colon.
        role: The section of the parameters that error messages name.

    Raises:
        UserError: This process has no such model.
    """
    name = source.removeprefix(f"{SCHEME}:")
    if name not in _registered:
        raise UserError(
            f"{role}.source {SCHEME}:{name} is a model that exists only in the Python process "
            "that registered it: pass the model to pipeline.synthesize(model=...) or "
            "pipeline.verify(model=...) in this process, or save its weights and name a factory "
            f"of its class in {role}.source"
        )
    return _registered[name]


class InMemory(Source):
    """A copy of a registered model. It serves as a teacher; a student needs new weights."""

    form = ""  # users do not write it: :func:`register` does

    def build(self, name: str, arguments: Mapping[str, Any], weights: str | None, role: str) -> Any:
        model = registered(name, role)
        if role == "student":
            raise UserError(
                f"student.source {SCHEME}:{name} is a trained model, and a student starts from "
                "new weights: name a factory, as in nets.py:factory"
            )
        try:
            return copy.deepcopy(model).cpu()
        except RuntimeError as error:
            raise UserError(
                f"{role}.source {SCHEME}:{name} cannot be copied ({error}): remove its "
                "parametrizations, or name a factory of its class"
            ) from error

    def code_digest(self, name: str, role: str) -> str | None:
        """Return the SHA-256 of the registered model's code.

        It covers the text that ``repr`` gives of the model, and the methods of all its classes
        outside of torch. It ignores comments, layout, and methods without source code, such as
        those typed at Python's prompt.
        """
        model = registered(name, role)
        classes = {type(module) for module in model.modules()}
        facts = [repr(model)]
        for kind in sorted(classes, key=_qualified):
            facts.append(_qualified(kind))
            if kind.__module__.partition(".")[0] != "torch":
                facts += _methods(kind)
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _qualified(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _methods(kind: type[Any]) -> Iterator[str]:
    for name, member in sorted(vars(kind).items()):
        if not inspect.isfunction(member):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(inspect.unwrap(member)))
            yield f"{name}: {ast.unparse(ast.parse(source))}"
        except (OSError, TypeError, SyntaxError):
            continue
