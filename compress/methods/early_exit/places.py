"""Finds the places of a network where an exit may stand: modules whose output alone decides what comes later."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.flop_counter import FlopCounterMode

from compress.training.train_outputs import find_logits
from compress.utils.errors import UserError

_SHARES = (1 / 3, 2 / 3)  # of the MACs, near which exits stand where no places are named
_NEAR = 1 / 6  # the largest distance from them
_INSIDE = 0.03  # what each level of modules around a place counts as distance: the end of a block is worth a detour

_NOT_CALLED = "it is not called"
_CALLED_AGAIN = "it is called more than once for an image"
_NO_MAP = "its output is no map (N, C, H, W) of more than one position"
_PASSED_BY = "other tensors pass it by, on which what comes later depends as well"


@dataclass(frozen=True)
class Place:
    """A module after which an exit may stand."""

    name: str
    shape: tuple[int, int, int]  # (C, H, W) of its output
    macs: int  # of one image, up to its end


class Places:
    """The modules of a network, and after which of them an exit may stand."""

    def __init__(self, network: nn.Module, image: Tensor):
        """Runs `network` in eval mode on `image` (1, C, H, W)."""
        self._known = [name for name, _ in network.named_modules() if name]
        self._places: dict[str, Place] = {}  # in the order in which they end
        self._reasons = dict.fromkeys(self._known, _NOT_CALLED)  # why not; empty: a place
        with _without_training(network):
            self.macs = self._count(network, image)
            self._find_cuts(network, image)

    def named(self, names: Sequence[str]) -> list[Place]:
        """Returns the places of these modules, in the order in which they end. Raises UserError where one is none."""
        received = f"early_exit.after=[{','.join(names)}]"
        for name in names:
            if name not in self._known:
                known = ", ".join(known for known in self._known if "." not in known)
                raise UserError(f"{received} with {name}", f"modules of the network: {known} or inside", "mend it")
            if reason := self._reasons[name]:
                others = ", ".join(place.name for place in self._distinct())
                raise UserError(
                    f"{received} with {name}: {reason}",
                    "modules called once, through whose output, a map, all that follows depends on the image",
                    f"name some of {others}, or none" if others else "leave early_exit out of the stages",
                )
        return [place for name, place in self._places.items() if name in names]

    def near_thirds(self) -> list[Place]:
        """Returns the places near a third and two thirds of the MACs, where blocks end if any does there.

        Raises UserError where there is none.
        """
        places, found = self._distinct(), {}
        for share in _SHARES:
            near = {place: abs(place.macs / self.macs - share) for place in places}
            near = {place: far + _INSIDE * place.name.count(".") for place, far in near.items() if far <= _NEAR}
            if near:
                nearest = min(near, key=near.__getitem__)
                found[nearest.name] = nearest
        if not found:
            shares = ", ".join(f"{place.name} at {100 * place.macs / self.macs:.0f} %" for place in places)
            reasons = "; ".join(sorted(set(self._reasons.values()) - {""}))
            raise UserError(
                f"early_exit.after=[] and a network without a place near a third or two thirds of its MACs: "
                f"{shares or f'no module is one ({reasons})'}",
                "a module through whose output, a map, all that follows depends on the image",
                "name places in early_exit.after, or leave early_exit out of the stages",
            )
        return list(found.values())

    def _distinct(self) -> list[Place]:
        """Returns one place for each number of MACs: the last, which is the outermost module and after activations."""
        return list({place.macs: place for place in self._places.values()}.values())

    def _count(self, network: nn.Module, image: Tensor) -> int:
        """Notes shape and MACs of each module that is called once and returns a map; returns the MACs of all."""
        with torch.no_grad(), FlopCounterMode(display=False) as counter:

            def note(name: str, output: Any) -> None:
                if self._reasons[name] != _NOT_CALLED:
                    self._reasons[name] = _CALLED_AGAIN
                    self._places.pop(name, None)
                elif isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1:
                    self._reasons[name] = _PASSED_BY
                    self._places[name] = Place(name, tuple(output.shape[1:]), counter.get_total_flops() // 2)
                else:
                    self._reasons[name] = _NO_MAP

            with _after_each(network, self._known, note):
                network(image)
        return counter.get_total_flops() // 2

    def _find_cuts(self, network: nn.Module, image: Tensor) -> None:
        """Keeps the places without which autograd's graph has no way from the image to the logits."""
        functions: dict[str, Node | None] = {}
        with (
            torch.enable_grad(),
            _after_each(network, list(self._places), lambda name, output: functions.update({name: output.grad_fn})),
        ):
            image = image.detach().clone().requires_grad_()
            end = find_logits(network(image)).grad_fn
        cuts = {function: _is_cut(function, end, image) for function in set(functions.values())}
        for name, function in functions.items():
            if cuts[function]:
                self._reasons[name] = ""
            else:
                del self._places[name]


def _is_cut(function: Node | None, end: Node | None, image: Tensor) -> bool:
    """Whether every way from `end` back to `image` in autograd's graph leads through `function`."""
    waiting, seen = [end], {function}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) is image:
            return False
        waiting += [source for source, _ in node.next_functions]
    return function is not None


@contextmanager
def _after_each(network: nn.Module, names: Sequence[str], note: Callable[[str, Any], None]) -> Iterator[None]:
    """Calls `note` with the name and the output of each module after each of its calls while the context lasts."""
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
        for name in names
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _without_training(network: nn.Module) -> Iterator[None]:
    """Puts the network into eval mode, with parameters that need no gradients: torch's counter fails with some."""
    trained = [value for value in network.parameters() if value.requires_grad]
    training = network.training
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        network.train(training)
        for value in trained:
            value.requires_grad_(True)
