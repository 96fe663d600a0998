"""Finds the sets of weights in a checkpoint, under its keys and prefixes, and chooses one of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from compress.utils.errors import UserError

_DEPTH = 4  # keys inside keys, at most
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa)(?:[._]|$)|averag|shadow", re.IGNORECASE)
# Counters that wrappers and tools add to the weights, and that no network computes with.
_COUNTERS = ("n_averaged", "total_ops", "total_params")
_WRAPPERS = ("_orig_mod", "module", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_FIRST_KEYS = ("state_dict", "model", "model_state_dict")  # where several keys hold equal weights

Tensors = dict[str, torch.Tensor]


@dataclass
class Candidate:
    """A set of weights in a checkpoint."""

    key: str  # the keys and the prefix of the set, joined by dots; empty for the file itself
    tensors: Tensors
    others: int = 0  # tensors under the same key without the prefix

    def missing(self, expected: Tensors) -> list[str]:
        """Returns the network's names that the set lacks; it may lack batch norm's counter, which changes nothing."""
        return [name for name in expected if name not in self.tensors and not name.endswith("num_batches_tracked")]

    def extra(self, expected: Tensors) -> list[str]:
        """Returns the names that the network lacks."""
        return [name for name in self.tensors if name not in expected]

    def fits(self, expected: Tensors) -> bool:
        """Whether the set has all names of the network and no others."""
        return not self.missing(expected) and not self.extra(expected)

    def shapes_fit(self, expected: Tensors) -> bool:
        """Whether the set has all names and shapes of the network, and no other names."""
        return self.fits(expected) and all(value.shape == expected[name].shape for name, value in self.tensors.items())

    @property
    def averaged(self) -> bool:
        """Whether the key shows that the weights are an average over the training."""
        return bool(_AVERAGED.search(self.key))


def candidates(content: object, expected: Tensors) -> list[Candidate]:
    """Returns the sets of weights in `content` that fit the names of `expected`, or the one that is nearest to them.

    A set also fits with a prefix before all its names, and without a prefix that all names of `expected` share. A dict
    of tensors has at least one set.
    """
    found = [
        fitting
        for key, tensors in _nested(content, "", _DEPTH)
        for fitting in _forms(Candidate(key, _without_counters(tensors)), expected)
    ]
    distinct: dict[tuple[int, ...], Candidate] = {}
    for one in sorted(found, key=lambda one: one.others):
        distinct.setdefault(tuple(map(id, one.tensors.values())), one)
    fitting = [one for one in distinct.values() if one.fits(expected)]
    fitting = [one for one in fitting if one.shapes_fit(expected)] or fitting
    # Where no set fits, the one with the most names of the network explains best what is wrong.
    return fitting or sorted(found, key=lambda one: -len(one.tensors.keys() & expected.keys()))[:1]


def choose(found: list[Candidate], path: str, key: str | None) -> tuple[Candidate, list[str]]:
    """Chooses the set to load from one or more; returns it with remarks for the log.

    It is the set that `key` names, else the averaged one, else the only one. Raises UserError where several remain,
    and for a `key` that names none.
    """
    keys = ", ".join(one.key or "the file itself" for one in found)
    if key is not None:
        named = [one for one in found if key in (one.key, one.key.rpartition(".")[2], one.key.partition(".")[0])]
        if len({id(one) for one in named}) != 1:
            raise UserError(
                f"teacher.checkpoint_key={key}", f"one of {keys}, the weights in {path} that fit", "name one"
            )
        return named[0], [f"{path}: took {key} of {keys}"] if len(found) > 1 else []
    if len(found) == 1:
        one = found[0]
        left = f"; {one.others} tensors beside it are no part of the network" if one.others else ""
        return one, [f"{path}: took {one.key}{left}"] if one.key else []
    averaged = [one for one in found if one.averaged]
    chosen = averaged if averaged else _one_of_equal(found)
    if len(chosen) > 1:
        chosen = _one_of_equal(chosen)
    if len(chosen) > 1:
        raise UserError(
            f"{path} with {len(found)} sets of weights: {keys}",
            "one that is to be loaded",
            f"set teacher.checkpoint_key={chosen[0].key}, for example",
        )
    what = "the averaged weights (EMA)" if averaged else "all are equal"
    other = next(one.key for one in found if one is not chosen[0])
    return chosen[0], [
        f"{path}: took {chosen[0].key or 'the file itself'}, {what}, of {keys}; "
        f"teacher.checkpoint_key={other} takes that one"
    ]


def _nested(content: object, key: str, depth: int) -> Iterator[tuple[str, Tensors]]:
    """Yields each dict in `content` that holds tensors by name, with the keys that lead to it."""
    if not isinstance(content, dict) or not depth:
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    by_name = all(isinstance(name, str) for name in content)
    if by_name and any(name.rpartition(".")[2] not in _COUNTERS for name in tensors):
        yield key, tensors
    inner = {str(name): value for name, value in content.items() if isinstance(value, dict)}
    parts = {name: value for name, value in inner.items() if _is_state(value)}
    if len(parts) > 1 and len(parts) == len(inner) and by_name:  # a set of weights for each part of the network
        yield key, tensors | {f"{part}.{name}": v for part, state in parts.items() for name, v in state.items()}
    for name, value in inner.items():
        if not name.isdigit():  # an optimizer's state
            yield from _nested(value, f"{key}.{name}".strip("."), depth - 1)


def _is_state(value: dict[Any, Any]) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())


def _without_counters(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if name.rpartition(".")[2] not in _COUNTERS}


def _forms(whole: Candidate, expected: Tensors) -> list[Candidate]:
    """Returns the forms of `whole` that fit `expected`: unchanged, without wrappers' names, or the part with a prefix.

    Where none fits, it returns the form with the most names of the network.
    """
    plain = Candidate(whole.key, _renamed(whole.tensors))
    tried = [whole, plain]
    for one in (whole, plain):
        for prefix in sorted(_prefixes(one.tensors)):
            inside = {name.removeprefix(prefix): v for name, v in one.tensors.items() if name.startswith(prefix)}
            others = len(one.tensors) - len(inside)
            shown = ".".join(part for part in prefix.split(".") if part and part not in _WRAPPERS)
            tried.append(Candidate(f"{one.key}.{shown}".strip("."), inside, others))
    shared = _shared_prefix(expected)
    if shared:
        tried += [
            Candidate(one.key, {shared + name: value for name, value in one.tensors.items()}, one.others)
            for one in list(tried)
        ]
    fitting = {tuple(map(id, one.tensors.values())): one for one in reversed(tried) if one.fits(expected)}
    if fitting:
        exact = [one for one in fitting.values() if not one.others]
        return (exact or list(fitting.values()))[::-1]
    return [max(tried, key=lambda one: (len(one.tensors.keys() & expected.keys()), -one.others))]


def _renamed(tensors: Tensors) -> Tensors:
    """Removes the parts of names that wrappers add, wherever they are."""
    return {".".join(part for part in name.split(".") if part not in _WRAPPERS): v for name, v in tensors.items()}


def _prefixes(tensors: Tensors) -> set[str]:
    """Returns each beginning of a name, up to a dot."""
    starts = set()
    for name in tensors:
        parts = name.split(".")
        starts |= {".".join(parts[:at]) + "." for at in range(1, len(parts))}
    return starts


def _shared_prefix(tensors: Tensors) -> str:
    """Returns the beginning that all names share, up to a dot."""
    names = [name.split(".")[:-1] for name in tensors]
    shared = []
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}." for part in shared)


def _one_of_equal(found: list[Candidate]) -> list[Candidate]:
    """Returns the first of equal sets, by the usual keys; all of them where they differ."""
    first = found[0].tensors
    for one in found[1:]:
        if one.tensors.keys() != first.keys() or not all(torch.equal(first[n], one.tensors[n]) for n in first):
            return found
    return sorted(found, key=lambda one: (*_FIRST_KEYS, one.key).index(one.key))[:1]
