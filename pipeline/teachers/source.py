"""The base class of teacher sources, and what a source can say about its models.

A source turns the text ``SCHEME:NAME`` of ``teacher.source`` or ``student.source`` into a network.
A new source is one module with a subclass of :class:`Source`, and one entry in
:mod:`pipeline.teachers.registry`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.teachers.used_code import used_digest

if TYPE_CHECKING:
    from pipeline.teachers.origin import Origin

PRETRAINED = "pretrained"


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What a source's metadata says about a model. None: the metadata does not say.

    ``classes`` is for sources that know it before the network is built. ``mean`` and ``std`` are
    those of ``(pixel / 255 - mean) / std``, one value for each channel.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    class_names: tuple[str, ...] | None = None
    license: str | None = None
    classes: int | None = None


class Source:
    """One kind of source. Subclasses must implement :meth:`build`; the rest has defaults.

    In all methods ``name`` is the source's text after the scheme, and ``role`` ("teacher",
    "student") is the section of the parameters that error messages name.

    Attributes:
        form: How a user writes this source, such as ``timm:NAME``.
        package: The Python package that holds the models, whose version is part of the teacher's
            digest. None: no package.
        classes_argument: The keyword argument that sets the number of classes. None: there is none.
        random_without_weights: Whether a network has random weights when the parameters name none.
        student: A source of students for ``dreamshard init`` to propose. None: the same source.
    """

    form: ClassVar[str]
    package: ClassVar[str | None] = None
    classes_argument: ClassVar[str | None] = None
    random_without_weights: ClassVar[bool] = False
    student: ClassVar[str | None] = None

    def build(self, name: str, arguments: Mapping[str, Any], weights: str | None, role: str) -> Any:
        """Build the network, without reading ``weights``.

        Args:
            name: The model.
            arguments: Keyword arguments of the model.
            weights: The weights that will be loaded: they may select a variant of the model.
            role: The section that error messages name.

        Raises:
            UserError: There is no such model, or a package is missing.
        """
        raise NotImplementedError

    def weights(self, name: str, weights: str, role: str) -> Path | None:
        """The local file of published weights, fetched if necessary.

        Returns:
            The file, or None where ``weights`` is not the name of published weights.

        Raises:
            UserError: The source publishes no such weights.
            TryAgainError: The file is not cached and cannot be fetched now.
        """
        if weights != PRETRAINED:
            return None
        raise UserError(
            f"{role}.weights is {PRETRAINED!r}, but {role}.source {name} publishes no weights: "
            "name a file, or null for the weights that the factory sets itself"
        )

    def describe(self, name: str, arguments: Mapping[str, Any], weights: str | None) -> Description:
        """What the metadata says about the model and these weights. By default nothing."""
        return Description()

    def version(self) -> str | None:
        """The version of :attr:`package`."""
        return importlib.metadata.version(self.package) if self.package else None

    def rename(self, network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of a state dict that was published for an older version of a model."""
        return state

    def origin(self, network: nn.Module) -> Origin | None:
        """What was read for a network of :meth:`build`, if that included its weights."""
        return None

    def model_file(self, name: str) -> Path | None:
        """The user's file that holds both the network and its weights, where there is one."""
        return None

    def code_file(self, name: str, role: str) -> Path | None:
        """The user's file that defines the model, or None where a package does."""
        return None

    def code_digest(self, name: str, role: str) -> str | None:
        """SHA-256 of the code of :meth:`code_file` that ``name`` uses, as this process runs it."""
        file = self.code_file(name, role)
        used = {name.rpartition(":")[2]}
        return None if file is None else used_digest(imported_text(file), file.stem, used)

    def public(self, name: str) -> str:
        """``name`` without the folders of this machine, for files that are published."""
        origin, _, last = name.rpartition(":")  # such as `hf:FOLDER` and `timm:local-dir:FOLDER`
        if not Path(last).is_dir():
            return name
        return f"{origin}:{Path(last).resolve().name}".removeprefix(":")


@functools.cache
def imported_text(file: Path) -> str:
    """The text of a module that is imported once a process: later edits are not what runs."""
    return file.read_text(encoding="utf-8")


def import_package(package: str, source: str, role: str, extra: str | None = None) -> Any:
    """Import an optional package.

    Args:
        package: The package.
        source: The source that needs it.
        role: The section that error messages name.
        extra: The extra of dreamshard that installs it. None: the one with the same name.

    Raises:
        UserError: The package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{role}.source {source} needs the package {package}: "
            f"pip install -c constraints.txt -e '.[{extra or package}]'"
        ) from error


def error_line(error: BaseException) -> str:
    """The type and the first line of an exception of a library or of the user's code."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
