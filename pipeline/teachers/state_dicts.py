"""Choose among the state dicts of a file, and fit the names to a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.teachers.checkpoints import Checkpoint
from pipeline.teachers.places import StateDict, shown

# Entries that tools add to a state dict: torch's AveragedModel and the profiler thop.
_BOOKKEEPING = ("n_averaged", "num_batches_tracked", "total_ops", "total_params")
_WRAPPERS = (("_orig_mod",), ("module",), ("_orig_mod", "module"))  # torch.compile, DataParallel
Rename = Callable[[StateDict], StateDict]


@dataclass(frozen=True, slots=True)
class Fit:
    """A state dict under names that fit a network as well as possible.

    Attributes:
        state: The tensors, by the names of the network.
        how: How the names differ from those of the file; empty where they are the same.
        missing: Names of the network that the state dict lacks.
        unexpected: Names that the network lacks.
        fits: Whether all names and shapes fit.
    """

    state: StateDict
    how: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    fits: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """The state dict that was chosen.

    Attributes:
        fit: The state dict.
        note: What the user may not expect about the choice; empty where there is nothing.
        doubtful: Whether another state dict of the file would fit too.
        advice: What to try if it does not fit.
    """

    fit: Fit
    note: str
    doubtful: bool
    advice: str


def choose_state(network: nn.Module, checkpoint: Checkpoint, rename: Rename) -> Choice:
    """Choose the state dict of a file that fits a network.

    Args:
        network: The network.
        checkpoint: The file's content. Its first state dict that fits is chosen, else the first.
        rename: Gives a state dict of an older version of a library's network its new names.
    """
    expected = expected_tensors(network)
    fits = {
        place: fit_names(state, expected, checkpoint.aliases, rename)
        for place, state in checkpoint.states.items()
    }
    fitting = [place for place, fit in fits.items() if fit.fits]
    place = fitting[0] if fitting else next(iter(fits))
    notes = [f"the state dict `{place}` is taken"] if place else []
    if len(fitting) > 1:
        others = ", ".join(f"`{other or 'the file itself'}`" for other in fitting[1:])
        notes.append(f"{others} would fit too: weights_key chooses")
    if fits[place].how:
        notes.append(fits[place].how)
    advice = "" if fitting else _advice(checkpoint, place, expected, rename)
    return Choice(fits[place], "; ".join(notes), len(fitting) > 1, advice)


def expected_tensors(network: nn.Module) -> StateDict:
    """The tensors of a network's state dict, without other extra state."""
    state: Mapping[str, object] = network.state_dict()
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def fit_names(
    state: StateDict, expected: StateDict, aliases: Mapping[str, str], rename: Rename
) -> Fit:
    """Find the variant of the names that fits a network, or the one that comes nearest.

    The variants are the names themselves, without a prefix that all share, without the parts that
    torch.compile and DataParallel insert, and with a prefix that all names of the network share.
    """
    variants = [
        (how, _complete(variant, expected, aliases)) for how, variant in _variants(state, expected)
    ]
    fits = [_compare(variant, expected, how) for how, variant in variants]
    renamed = []
    if not any(fit.fits for fit in fits):
        for how, variant in variants:
            if (new := rename(variant)) is not variant:
                renamed.append(_compare(_complete(new, expected, aliases), expected, how))
    return min(
        [*fits, *renamed],
        key=lambda fit: (not fit.fits, len(fit.missing) + len(fit.unexpected)),
    )


def was_folded(fit: Fit, expected: StateDict) -> bool:
    """Whether the file lacks exactly the BatchNorm layers, and has biases in their place.

    Every other difference of names has a commoner cause, and then the answer is no.
    """
    layers = {name.rpartition(".")[0] for name in expected if name.endswith(".running_mean")}
    missing = {name.rpartition(".")[0] for name in fit.missing}
    biases = (name.removesuffix(".bias") for name in fit.unexpected)
    return (
        bool(layers)
        and missing == layers
        and bool(fit.unexpected)
        and all(name.endswith(".bias") for name in fit.unexpected)
        and all(f"{layer}.weight" in expected for layer in biases)
    )


def _variants(state: StateDict, expected: StateDict) -> Iterator[tuple[str, StateDict]]:
    yield "", state
    for prefix in _common_prefixes(state):
        short = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        yield f"the prefix `{prefix}` of all names is taken off", short
    for parts in _WRAPPERS:
        names = {
            name: ".".join(part for part in name.split(".") if part not in parts) for name in state
        }
        if len(set(names.values())) == len(names) and any(a != b for a, b in names.items()):
            how = f"{' and '.join(f'`{part}.`' for part in parts)} is taken out of all names"
            yield how, {names[name]: tensor for name, tensor in state.items()}
    for prefix in _common_prefixes(expected):
        how = f"the prefix `{prefix}` of the network is put before all names"
        yield how, {prefix + name: tensor for name, tensor in state.items()}


def _common_prefixes(names: Iterable[str]) -> list[str]:
    """The prefixes that all names share, shortest first: ``module.``, ``module._orig_mod.``.

    Counters that tools keep at the first level do not count.
    """
    rows = [name.split(".") for name in names if name not in _BOOKKEEPING]
    prefixes: list[str] = []
    while rows and all(len(row) > len(prefixes) + 1 for row in rows):
        parts = {row[len(prefixes)] for row in rows}
        if len(parts) > 1:
            break
        prefixes.append(f"{prefixes[-1] if prefixes else ''}{parts.pop()}.")
    return prefixes


def _complete(state: StateDict, expected: StateDict, aliases: Mapping[str, str]) -> StateDict:
    """Drop bookkeeping that the network lacks, and fill in names that share a tensor."""
    kept = {
        name: tensor
        for name, tensor in state.items()
        if name in expected or name.rpartition(".")[2] not in _BOOKKEEPING
    }
    missing = [name for name in expected if name not in kept]
    if not missing:
        return kept
    known = {_memory(expected[name]): name for name in kept if name in expected}
    for name in missing:
        other = aliases.get(name, known.get(_memory(expected[name])))
        if other in kept:
            kept[name] = kept[other]
    return kept


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """What two tensors have in common if they are one; unlike for tensors without memory."""
    if not tensor.numel() or tensor.device.type == "meta":
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _compare(state: StateDict, expected: StateDict, how: str) -> Fit:
    # Old files lack BatchNorm's step counter, which eval mode does not read.
    missing = tuple(
        name for name in expected if name not in state and not name.endswith("num_batches_tracked")
    )
    unexpected = tuple(name for name in state if name not in expected)
    same = all(state[name].shape == expected[name].shape for name in state if name in expected)
    return Fit(state, how, missing, unexpected, not missing and not unexpected and same)


def _advice(checkpoint: Checkpoint, place: str, expected: StateDict, rename: Rename) -> str:
    """What to try with a file of which no state dict fits."""
    for other, state in checkpoint.states.items():
        for start in dict.fromkeys(name.partition(".")[0] for name in state):
            part = {
                name.removeprefix(f"{start}."): tensor
                for name, tensor in state.items()
                if name.startswith(f"{start}.")
            }
            if part and fit_names(part, expected, {}, rename).fits:
                key = f"{other}.{start}".removeprefix(".")
                return f"; its names that begin with `{start}.` fit: set weights_key to {key}"
    others = [other for other in checkpoint.states if other != place]
    if others:
        names = ", ".join(f"`{other or 'the file itself'}`" for other in others)
        return f"; this is `{place}`, and {names} of the file fits no better"
    return f"; the file holds {shown(checkpoint.keys)}" if place else ""
