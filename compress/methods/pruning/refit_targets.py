"""Finds what a layer should return in a network whose earlier layers have changed, and where its constant can go."""

import contextlib
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from compress.methods.pruning.least_squares import Fit
from compress.methods.pruning.receptive import channel_dim
from compress.models.graph.paired_interpreter import PairedInterpreter
from compress.models.graph.residual_blocks import is_sum, is_unchanged
from compress.models.graph.tracing import batch_norm_at, only_user, read_argument


def refit_targets(
    pair: PairedInterpreter, node: fx.Node, kept: Tensor | None = None
) -> tuple[nn.BatchNorm2d | None, list[Tensor]]:
    """Returns the batch norm after a layer, where the fit may set it, and the targets of the layer, or of the norm.

    Where a residual sum follows, they make up for the error of its other side. `kept` are the remaining filters.
    """
    layer = pair.original.get_submodule(node.target)
    follower = only_user(node)
    norm = batch_norm_of(pair, follower)
    end = node if norm is None else follower
    dim = channel_dim(layer)
    own = (lambda value: value) if kept is None else (lambda value: value.index_select(dim, kept))
    targets = [own(value) for value in pair.reference_values(end)]
    other = _other_addend(pair.network, end)
    # An addend that comes later still changes: its own refit compensates for this layer.
    if (
        other is not None
        and pair.is_final(other, end)
        and _shape(pair.reference_values(other)) == _shape(pair.reference_values(end))
    ):
        shortcuts = zip(pair.reference_values(other), pair.values(other), strict=True)
        targets = [
            target + own(reference) - value for target, (reference, value) in zip(targets, shortcuts, strict=True)
        ]
    return norm, targets


def ends_branch(pair: PairedInterpreter, node: fx.Node) -> bool:
    """Whether a layer's output, after its batch norm, is an addend of a sum whose other side is final before it."""
    follower = only_user(node)
    end = node if batch_norm_of(pair, follower) is None else follower
    other = _other_addend(pair.network, end)
    return other is not None and pair.is_final(other, end)


def batch_norm_of(pair: PairedInterpreter, node: fx.Node | None) -> nn.BatchNorm2d | None:
    """Returns the changed network's batch norm that `node` calls, if its statistics and affine map can be set."""
    name = batch_norm_at(pair.network, node)
    norm = pair.network.get_submodule(name) if name else None
    if node is None or norm is None or norm.running_mean is None or not norm.affine:
        return None
    return norm if node.target not in repeated(node.graph) else None


def set_statistics(norm: nn.BatchNorm2d, fit: Fit) -> None:
    """Sets batch norm's statistics to those of the refitted filters' outputs, and its affine map to that of the fit."""
    norm.running_mean.copy_(fit.mean)
    norm.running_var.copy_(fit.variance)
    norm.weight.copy_((fit.variance + norm.eps).sqrt())
    norm.bias.copy_(fit.mean + fit.intercept)


def source_of(node: fx.Node) -> fx.Node | None:
    """Returns the node that a layer reads."""
    return read_argument(node, 0, "input") or next(iter(node.all_input_nodes), None)


def repeated(graph: fx.Graph) -> set[str]:
    """Returns the modules that are called more than once: a fit for one call does not suit the other."""
    times = Counter(node.target for node in graph.nodes if node.op == "call_module")
    return {name for name, count in times.items() if count > 1}


def _shape(values: list[Tensor]) -> torch.Size | None:
    return values[0].shape if isinstance(values[0], Tensor) else None


def _other_addend(network: nn.Module, node: fx.Node) -> fx.Node | None:
    """Returns the other side of the sum that alone reads `node`, if there is one."""
    user = only_user(node)
    while user is not None and is_unchanged(network, user):
        node, user = user, only_user(user)
    if user is None or not is_sum(user):
        return None
    others = [side for side in user.args if side is not node]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


@contextlib.contextmanager
def without_inplace(*networks: nn.Module) -> Iterator[None]:
    """Switches in-place activations off in a block: they must not overwrite values that are read later."""
    changed = [module for network in networks for module in network.modules() if getattr(module, "inplace", False)]
    for module in changed:
        module.inplace = False
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True
