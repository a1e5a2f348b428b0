"""Teachers that exist only in this process: ``memory:package.Class``.

A model is registered under the qualified name of its class. The last model of a class counts. A
weights file that a parameter file names is loaded into a copy of the registered model.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from pipeline.errors import UserError

SCHEME = "memory"
_registered: dict[str, nn.Module] = {}


def register(model: nn.Module) -> str:
    """Remember ``model`` for this process, and return the source string that names it.

    Args:
        model: any module. DataParallel and DistributedDataParallel are taken off.

    Returns:
        ``memory:package.Class``, with the qualified name of the model's class.

    Raises:
        UserError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model is of the type {type(model).__name__}: give an instance of torch.nn.Module"
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return register(model.module)
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    _registered[name] = model
    return f"{SCHEME}:{name}"


def registered(source: str, role: str = "teacher") -> nn.Module:
    """The model that :func:`register` gave the name ``source``.

    Args:
        source: ``memory:package.Class``, or the part after the colon.
        role: the section of the parameters that the error points at.

    Raises:
        UserError: this process has no such model.
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


def builder(name: str, role: str) -> Callable[..., nn.Module]:
    """A factory that copies the registered model to the CPU.

    Raises:
        UserError: there is no such model, or ``role`` is ``student``, whose weights must be new.
    """
    model = registered(name, role)
    if role == "student":
        raise UserError(
            f"student.source {SCHEME}:{name} is a trained model, and a student starts from new "
            "weights: name a factory, as in nets.py:factory"
        )

    def factory() -> nn.Module:
        try:
            return copy.deepcopy(model).cpu()
        except RuntimeError as error:
            raise UserError(
                f"{role}.source {SCHEME}:{name} cannot be copied ({error}): remove its "
                "parametrizations, or name a factory of its class"
            ) from error

    return factory


def code_digest(name: str, role: str) -> str:
    """SHA-256 of what the registered model computes, apart from its tensors.

    Covers the text that ``repr`` gives of the model, and the code of the methods of all its classes
    outside of torch. Comments and layout do not count. A method without source code, as one typed
    at Python's prompt, does not count either.
    """
    model = registered(name, role)
    classes = {type(module) for module in model.modules()}
    facts = [repr(model)]
    for kind in sorted(classes, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"):
        facts.append(f"{kind.__module__}.{kind.__qualname__}")
        if kind.__module__.partition(".")[0] != "torch":
            facts += _methods(kind)
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _methods(kind: type[Any]) -> Iterator[str]:
    for name, member in sorted(vars(kind).items()):
        if not inspect.isfunction(member):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(inspect.unwrap(member)))
            yield f"{name}: {ast.unparse(ast.parse(source))}"
        except (OSError, TypeError, SyntaxError):
            continue
