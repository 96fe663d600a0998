"""Finds the logits of a network in train mode, also where it returns something else than in eval mode.

Auxiliary heads, deep supervision and pairs of outputs exist only in training: the deployed files do not have them, and
after pruning they no longer fit. Such a forward pass runs as in eval mode, with its layers in train mode.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel

from compress.training.out_of_memory import is_out_of_memory
from compress.utils.errors import UserError
from compress.utils.user_code import first_line, user_line

log = logging.getLogger("compress")

_LOGITS = "logits"


class TrainOutputs:
    """Calls a network in train mode and returns its logits; one object for each training."""

    def __init__(self, dims: int = 2) -> None:
        """Expects outputs of `dims` dimensions."""
        self._dims = dims
        self._as_in_eval: list[nn.Module] | None = None  # modules whose own forward pass runs as in eval mode

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Returns the logits (N, K) in float32. Raises UserError where `network` returns none in train mode."""
        if self._as_in_eval is None:
            output = self._first_output(network, images)
        else:
            # The modes stay after the call, because a forward pass may run again for its gradient.
            for module in self._as_in_eval:
                module.training = False
            output = network(images)
        return find_logits(output).float()

    def _first_output(self, network: nn.Module, images: Tensor) -> Any:
        if not isinstance(network, nn.Module) or isinstance(network, fx.GraphModule) or not network.training:
            self._as_in_eval = []
            return network(images)
        failed = None
        try:
            output = network(images)
        except Exception as error:  # a head that pruning did not see, for one; raised below where it is something else
            if is_out_of_memory(error):
                raise
            failed, output = error, None
        if isinstance(output, Tensor) and output.ndim == self._dims:
            self._as_in_eval = []
            return output
        inner = _unwrapped(network)
        modules = _find_modules(inner, images[:2])
        if modules is None and failed is not None:
            raise failed
        self._as_in_eval = modules or []
        _report(inner, self._as_in_eval, output, failed)
        return self.logits(network, images)


def find_logits(output: Any) -> Tensor:
    """Returns the logits (N, K) in a network's output: the tensor, the entry `logits`, or the first tensor.

    Raises UserError where there is none.
    """
    named = output.get(_LOGITS) if isinstance(output, Mapping) else getattr(output, _LOGITS, None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, Tensor):
        return output
    tensors = list(_tensors(output).values())
    if not tensors or tensors[0].ndim != 2:
        raise UserError(
            f"a network that returns {describe(output)} in train mode",
            "logits (N, K), alone, as the first tensor, or as the entry 'logits'",
            "let its forward pass return the logits first",
        )
    return tensors[0]


def describe(output: Any) -> str:
    """Describes what a network returned: the shape of each tensor, with its name or number."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    tensors = ", ".join(f"{name} {tuple(value.shape)}" for name, value in _tensors(output).items())
    return f"a {type(output).__name__} with {tensors or 'no tensor'}"


def _tensors(output: Any) -> dict[str, Tensor]:
    """Returns the tensors inside tuples, lists and dicts, in order, by name or number."""
    if isinstance(output, Tensor):
        return {"": output}
    if isinstance(output, Mapping):
        items = list(output.items())
    elif hasattr(output, "_fields"):
        items = list(zip(output._fields, output, strict=True))
    else:
        items = list(enumerate(output)) if isinstance(output, (tuple, list)) else []
    return {f"{name}.{inner}".rstrip("."): value for name, part in items for inner, value in _tensors(part).items()}


def _find_modules(network: nn.Module, images: Tensor) -> list[nn.Module] | None:
    """Returns the fewest modules that must run as in eval mode for `network` to return the same as in eval mode.

    Returns None where no choice of modules works.
    """
    composed = [module for module in network.modules() if module is network or any(True for _ in module.children())]
    own = {type(module) for module in composed if not type(module).__module__.startswith("torch.nn.")}
    choices = [[network], *([module for module in composed if type(module) is kind] for kind in own), composed]
    with _unchanged(network, images.device), torch.no_grad():
        expected = network.eval()(images)
        for chosen in choices:
            _set_modes(network, composed, chosen)
            try:
                output = network(images)
            except Exception:  # another choice may do; where none does, the caller raises what it saw itself
                continue
            if isinstance(output, Tensor) and output.shape == expected.shape:
                return chosen
    return None


def _set_modes(network: nn.Module, composed: list[nn.Module], chosen: list[nn.Module]) -> None:
    """Puts single layers into eval mode, so that a try changes no statistics, and containers into train mode."""
    network.eval()
    for module in composed:
        module.training = module not in chosen


@contextmanager
def _unchanged(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Restores the modes, the buffers and the random state at the end."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        yield
    for module, training in modes:
        module.training = training
    for buffer, before in buffers:
        if not torch.equal(buffer, before):
            buffer.copy_(before)


def _unwrapped(network: nn.Module) -> nn.Module:
    """Returns the network inside the wrappers of several processes."""
    while isinstance(network, DistributedDataParallel) or type(network).__name__ == "_FabricModule":
        network = network.module
    return network


def _report(network: nn.Module, modules: list[nn.Module], output: Any, failed: Exception | None) -> None:
    """Logs which outputs are not trained, and how the forward pass runs instead."""
    if failed is not None:
        place = user_line(failed)
        outcome = f"raises {first_line(failed)}" + (f" ({place})" if place else "")
    else:
        outcome = f"returns {describe(output)}"
    if not modules:
        log.info(
            "in train mode the network %s: the first is taken for the logits; the auxiliary ones are not trained",
            outcome,
        )
        return
    names = ", ".join(sorted({type(module).__name__ for module in modules}))
    log.info(
        "in train mode the network %s: auxiliary outputs%s are not trained, the forward pass of %s runs as in eval "
        "mode and its layers as in train mode",
        outcome, "" if failed is None else ", whose layers do not fit here,", names,
    )  # fmt: skip
