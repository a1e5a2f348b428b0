"""Find the state dicts in the content of a file of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

StateDict = dict[str, Tensor]
# The usual names of a state dict in a dictionary, in the order of preference.
_USUAL = ("state_dict", "model", "model_state_dict", "net", "network", "model_state", "params")
_DEEPEST = 3  # levels of dictionaries in which state dicts are looked for
_SHOWN = 12  # keys that a message lists


def find_states(content: Any) -> dict[str, StateDict]:
    """Find all state dicts in the content of a file.

    Args:
        content: What the file holds.

    Returns:
        The state dicts by their places: keys joined by points, and the empty text for the content
        itself. Usual names come first.

    Example::

        find_states({"epoch": 3, "net": {"weight": torch.zeros(2)}})  # {"net": {"weight": ...}}
    """
    if not isinstance(content, dict):
        return {}
    own = _tensors(content)
    if len(own) == len(content) and own:
        return {"": own}
    nested = dict(_nested(content, "", 1))
    order = sorted(nested, key=lambda place: (_rank(place), place.count(".")))
    states = {place: nested[place] for place in order}
    if any(tensor.ndim for tensor in own.values()):
        states[""] = own  # tensors with entries such as `epoch` next to them
    return states


def state_at(content: Any, place: str) -> StateDict:
    """Return the state dict at a place; empty where there is none.

    Args:
        content: The content of a file.
        place: Dictionary keys, joined by points. The last ones may be a prefix of names instead, as
            in ``state_dict.encoder``.
    """
    value, rest = content, place
    while rest and isinstance(value, dict):
        at = next((k for k in _heads(rest) if isinstance(value.get(k), dict)), None)
        if at is None:
            start = f"{rest}."
            return {
                name.removeprefix(start): tensor
                for name, tensor in _tensors(value).items()
                if name.startswith(start)
            }
        value, rest = value[at], rest[len(at) + 1 :]
    return _tensors(value) if isinstance(value, dict) else {}


def shown(keys: tuple[str, ...]) -> str:
    """List the first keys for a message."""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(key[:60] for key in keys[:_SHOWN]) + more


def _nested(content: Mapping[Any, Any], place: str, depth: int) -> Iterator[tuple[str, StateDict]]:
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, dict):
            continue
        tensors, here = _tensors(value), f"{place}{key}"
        if tensors and any(tensor.ndim for tensor in tensors.values()):
            yield here, tensors
        elif depth < _DEEPEST:
            yield from _nested(value, f"{here}.", depth + 1)


def _rank(place: str) -> int:
    first = place.partition(".")[0]
    return _USUAL.index(first) if first in _USUAL else len(_USUAL)


def _tensors(content: Mapping[Any, Any]) -> StateDict:
    """The tensors of a dictionary. Keys that are no text, as an optimizer has, do not count."""
    return {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def _heads(place: str) -> Iterator[str]:
    """``a.b.c``, ``a.b``, ``a``: the keys that a place may begin with."""
    parts = place.split(".")
    return (".".join(parts[:end]) for end in range(len(parts), 0, -1))
