"""The sets of weights in a checkpoint: under which key, behind which prefix, and which of them is taken."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from compress.utils.errors import UserError

_DEPTH = 4  # of keys in keys
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa)(?:[._]|$)|averag|shadow", re.IGNORECASE)
# What wrappers and tools leave among the weights: counters that no network computes with.
_COUNTERS = ("n_averaged", "total_ops", "total_params")
_WRAPPERS = ("_orig_mod", "module", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_FIRST_KEYS = ("state_dict", "model", "model_state_dict")  # where several keys hold equal weights

Tensors = dict[str, torch.Tensor]


@dataclass
class Candidate:
    """Weights as a checkpoint has them."""

    key: str  # where they lie: keys and a prefix, joined by dots; empty for the file itself
    tensors: Tensors
    others: int = 0  # tensors under the same key that are not behind the prefix

    def missing(self, own: Tensors) -> list[str]:
        """Names of the network that are not there; batch norm's counter of batches changes nothing and may lack."""
        return [name for name in own if name not in self.tensors and not name.endswith("num_batches_tracked")]

    def extra(self, own: Tensors) -> list[str]:
        """Names that the network has not."""
        return [name for name in self.tensors if name not in own]

    def fits(self, own: Tensors) -> bool:
        """Whether it has the network's names, all of them and no others."""
        return not self.missing(own) and not self.extra(own)

    def shapes_fit(self, own: Tensors) -> bool:
        """Whether it has the network's shapes too."""
        return self.fits(own) and all(value.shape == own[name].shape for name, value in self.tensors.items())

    @property
    def averaged(self) -> bool:
        """Whether its key says that the weights are an average over the training."""
        return bool(_AVERAGED.search(self.key))


def candidates(content: object, own: Tensors) -> list[Candidate]:
    """Every set of weights in `content`, those that fit the names of `own` first; at least one for a dict of tensors.

    A set counts as fitting behind any prefix that its names share, and where they lack one that all of `own` share.
    """
    found = [
        fitting
        for key, tensors in _nested(content, "", _DEPTH)
        for fitting in _behind_prefixes(Candidate(key, _without_counters(tensors)), own)
    ]
    distinct: dict[tuple[int, ...], Candidate] = {}
    for one in sorted(found, key=lambda one: one.others):
        distinct.setdefault(tuple(map(id, one.tensors.values())), one)
    fitting = [one for one in distinct.values() if one.fits(own)]
    fitting = [one for one in fitting if one.shapes_fit(own)] or fitting
    # Of sets that do not fit, the one with most of the names says best what is wrong.
    return fitting or sorted(found, key=lambda one: -len(one.tensors.keys() & own.keys()))[:1]


def choose(found: list[Candidate], path: str, key: str | None) -> tuple[Candidate, list[str]]:
    """The set to load, of one or more, and what is to be said of it.

    The averaged one where there is one, else the only one, or the one that `key` names. Raises UserError where several
    are left, and for a `key` that names none.
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
    """Each dict in `content` that holds tensors by name, with the keys that lead to it."""
    if not isinstance(content, dict) or not depth:
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    by_name = all(isinstance(name, str) for name in content)
    if by_name and any(name.rpartition(".")[2] not in _COUNTERS for name in tensors):
        yield key, tensors
    inner = {str(name): value for name, value in content.items() if isinstance(value, dict)}
    parts = {name: value for name, value in inner.items() if _is_state(value)}
    if len(parts) > 1 and len(parts) == len(inner) and by_name:  # a set of weights a part of the network
        yield key, tensors | {f"{part}.{name}": v for part, state in parts.items() for name, v in state.items()}
    for name, value in inner.items():
        if not name.isdigit():  # an optimizer's state
            yield from _nested(value, f"{key}.{name}".strip("."), depth - 1)


def _is_state(value: dict[Any, Any]) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())


def _without_counters(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if name.rpartition(".")[2] not in _COUNTERS}


def _behind_prefixes(whole: Candidate, own: Tensors) -> list[Candidate]:
    """`whole` as it is, or without wrappers' names and behind each prefix with which its names fit `own`.

    Where none fits, the one that has most names of the network.
    """
    plain = Candidate(whole.key, _renamed(whole.tensors))
    tried = [whole, plain]
    for one in (whole, plain):
        for prefix in sorted(_prefixes(one.tensors)):
            inside = {name.removeprefix(prefix): v for name, v in one.tensors.items() if name.startswith(prefix)}
            others = len(one.tensors) - len(inside)
            shown = ".".join(part for part in prefix.split(".") if part and part not in _WRAPPERS)
            tried.append(Candidate(f"{one.key}.{shown}".strip("."), inside, others))
    shared = _shared_prefix(own)
    if shared:
        tried += [
            Candidate(one.key, {shared + name: value for name, value in one.tensors.items()}, one.others)
            for one in list(tried)
        ]
    fitting = {tuple(map(id, one.tensors.values())): one for one in reversed(tried) if one.fits(own)}
    if fitting:
        exact = [one for one in fitting.values() if not one.others]
        return (exact or list(fitting.values()))[::-1]
    return [max(tried, key=lambda one: (len(one.tensors.keys() & own.keys()), -one.others))]


def _renamed(tensors: Tensors) -> Tensors:
    """The same without the parts of names that wrappers add, wherever they stand."""
    return {".".join(part for part in name.split(".") if part not in _WRAPPERS): v for name, v in tensors.items()}


def _prefixes(tensors: Tensors) -> set[str]:
    """Each start of a name, up to a dot."""
    starts = set()
    for name in tensors:
        parts = name.split(".")
        starts |= {".".join(parts[:at]) + "." for at in range(1, len(parts))}
    return starts


def _shared_prefix(tensors: Tensors) -> str:
    """What all names start with, up to the last dot that they share."""
    names = [name.split(".")[:-1] for name in tensors]
    shared = []
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}." for part in shared)


def _one_of_equal(found: list[Candidate]) -> list[Candidate]:
    """The first of sets that are equal, by the usual keys; all of them where they are not."""
    first = found[0].tensors
    for one in found[1:]:
        if one.tensors.keys() != first.keys() or not all(torch.equal(first[n], one.tensors[n]) for n in first):
            return found
    return sorted(found, key=lambda one: (*_FIRST_KEYS, one.key).index(one.key))[:1]
