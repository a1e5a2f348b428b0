"""Types that training scripts save next to a state dict, read as objects without content.

PyTorch's reader with ``weights_only=True`` refuses a file for a single unknown type. The types here
are common and hold no weights. Each is replaced by :class:`Inert`, so that no code of them runs.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import Any

import torch

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_DTYPES = (
    *("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"),
    *("Float16", "Float32", "Float64", "Complex64", "Complex128", "Str", "DateTime64"),
)
_BUILTINS = ("dict", "float", "frozenset", "int", "list", "object", "range", "slice", "str")
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_OTHERS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "collections.deque",
    "copy_reg._reconstructor",
    "decimal.Decimal",
    "fractions.Fraction",
    "numpy.dtype",
    "numpy.ndarray",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "torch.torch_version.TorchVersion",
    "typing.Any",
    "uuid.UUID",
)
NAMES = (
    *_OTHERS,
    *(f"{module}.{name}" for module in _NUMPY for name in ("scalar", "_reconstruct")),
    *(f"numpy.dtypes.{name}DType" for name in _DTYPES),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
)


class Inert:
    """Stands for any object of :data:`NAMES`, and drops what the file says about it."""

    def __new__(cls, *_: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def inert_types() -> contextlib.AbstractContextManager[Any]:
    """Let ``torch.load`` with ``weights_only=True`` read the types of :data:`NAMES` as inert."""
    inert: list[Any] = [(Inert, name) for name in NAMES]
    return torch.serialization.safe_globals([*inert, (_plain, "collections.defaultdict")])


def _plain(*_: Any) -> OrderedDict[Any, Any]:
    """An empty dictionary in place of a ``defaultdict``, whose entries the reader then adds."""
    return OrderedDict()
