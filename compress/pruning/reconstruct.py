"""Makes up for removed filters without training: each layer that lost inputs is refitted to what it used to give."""

import contextlib
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.lockstep import Lockstep
from compress.tracing import batch_norm_at, only_user, trace

_RIDGE = 1e-2  # of the mean squared input: less overfits a thousand images, and is then harder to fine-tune
_ROWS = 200_000  # positions a layer is fitted on, at most
_CHUNK = 64  # images at a time

_SUMS = {operator.add, operator.iadd, torch.add}


@torch.no_grad()
def reconstruct(
    network: nn.Module, original: nn.Module, kept: dict[str, list[int]], images: Tensor
) -> dict[str, float]:
    """Refits, in place and in order, the layers of `network` that lost inputs; their errors.

    Least squares from the pruned network's own inputs to the original's outputs (He et al. 2017, "Channel pruning",
    equation 5). Where a residual sum follows, the target is the original's sum, so that errors do not add up along
    the shortcuts. Batch norm gets the statistics of its new inputs, and an affine map that keeps what it computes.
    `kept` names the filters that are left of each layer that lost some; `images` is (N, C, H, W). The errors are
    squared, as shares of the target's variance. `not_refitted` tells which layers are out of reach.
    """
    graph = trace(original.eval())
    errors = {}
    with _without_inplace(network, original):
        pair = Lockstep(graph, network.eval(), original, list(images.split(_CHUNK)))
        for node in graph.nodes:
            layer, old = pair.layers(node)
            norm = _batch_norm(pair, node)
            if _is_refitted(layer, old):
                filters = torch.tensor(kept.get(node.target, range(_outputs(old))))
                errors[node.target] = _refit(pair, node, filters)
            elif norm is not None and not _is_refitted(*pair.layers(node.args[0])):
                _adopt_statistics(norm, pair.new(node.args[0]))
            pair.advance(node)
    return errors


def not_refitted(network: nn.Module, original: nn.Module) -> list[dict[str, str]]:
    """The layers, each with the reason, that lost inputs and that `reconstruct` passes over."""
    reached = {node.target for node in trace(original.eval()).nodes if node.op == "call_module"}
    lost = [(name, m) for name, m in network.named_modules() if _lost_inputs(m, original.get_submodule(name))]
    reasons = {
        name: "a convolution in groups" if getattr(layer, "groups", 1) > 1 else "a block around it branches on values"
        for name, layer in lost
        if getattr(layer, "groups", 1) > 1 or name not in reached
    }
    return [
        {"layer": name, "reason": f"not refitted to the inputs that it lost: {reason}"}
        for name, reason in reasons.items()
    ]


def _refit(pair: Lockstep, node: fx.Node, kept: Tensor) -> float:
    """Fits one convolution or linear layer, with the batch norm behind it; returns the share left unexplained."""
    layer, _ = pair.layers(node)
    follower = only_user(node)
    norm = _batch_norm(pair, follower)
    end = node if norm is None else follower
    targets = [value[:, kept] for value in pair.old(end)]
    other = _other_addend(end)
    # An addend that comes later still changes: its own refit makes up for this layer.
    if other is not None and pair.is_settled(other, end) and pair.old(other)[0].shape == pair.old(end)[0].shape:
        shortcuts = zip(pair.old(other), pair.new(other), strict=True)
        targets = [target + old[:, kept] - new for target, (old, new) in zip(targets, shortcuts, strict=True)]
    fit = _least_squares(layer, pair.new(node.args[0]), targets, norm is not None or layer.bias is not None)
    layer.weight.copy_(fit.weight.T.reshape(layer.weight.shape))
    if norm is not None:
        if layer.bias is not None:
            layer.bias.zero_()
        _set_statistics(norm, fit)
    elif layer.bias is not None:
        layer.bias.copy_(fit.intercept)
    return fit.unexplained


def _set_statistics(norm: nn.BatchNorm2d, fit: "_Fit") -> None:
    """Gives batch norm the statistics of the refitted filters' outputs, and the affine map that computes the fit."""
    norm.running_mean.copy_(fit.mean)
    norm.running_var.copy_(fit.variance)
    norm.weight.copy_((fit.variance + norm.eps).sqrt())
    norm.bias.copy_(fit.mean + fit.intercept)


@dataclass
class _Fit:
    weight: Tensor  # (C_in k k, C_out)
    intercept: Tensor  # (C_out,)
    mean: Tensor  # (C_out,), of the outputs without the intercept
    variance: Tensor
    unexplained: float  # squared error as a share of the targets' variance


def _least_squares(layer: nn.Module, inputs: list[Tensor], targets: list[Tensor], intercept: bool) -> _Fit:
    """The layer's best weights for inputs (N, C_in, H, W) -> targets (N, C_out, H', W'), in double precision.

    With `intercept` false it is 0: there is no parameter to hold another.
    """
    # Images are left out, not positions: gathering the positions costs more than the solution.
    step = max(1, math.ceil(sum(target.numel() / target.shape[1] for target in targets) / _ROWS))
    pairs = [(_rows(layer, x[::step]), _pixels(y[::step])) for x, y in zip(inputs, targets, strict=True)]
    gram = cross = total = 0
    for rows, goals in pairs:
        rows = _with_ones(rows)
        gram = gram + (rows.T @ rows).double()
        cross = cross + (rows.T @ goals).double()
        total = total + goals.double().sum(0)
    count = sum(len(goals) for _, goals in pairs)
    damping = _RIDGE * gram.diagonal()[:-1].mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    damping[-1, -1] = 0
    solution, columns = torch.zeros_like(cross), len(cross) - (not intercept)
    solution[:columns] = torch.linalg.solve((gram + damping)[:columns, :columns], cross[:columns])
    weight = solution[:-1]
    mean = gram[-1, :-1] / count @ weight
    variance = ((weight * (gram[:-1, :-1] / count @ weight)).sum(0) - mean**2).clamp_min(0)
    error = sum((goals - _with_ones(rows) @ solution.float()).double().square().sum() for rows, goals in pairs)
    spread = sum((goals.double() - total / count).square().sum() for _, goals in pairs)
    return _Fit(*(x.float() for x in (weight, solution[-1], mean, variance)), (error / spread.clamp_min(1e-12)).item())


def _with_ones(rows: Tensor) -> Tensor:
    """A last column of ones, for the intercept."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """What each output position sees: (N H' W', C_in k k) of a convolution, (N, C_in) of a linear layer."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2).flatten(0, 1)


def _pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N H W, C); (N, C) as it is."""
    return x.permute(0, 2, 3, 1).flatten(0, 2) if x.ndim == 4 else x


def _adopt_statistics(norm: nn.BatchNorm2d, inputs: list[Tensor]) -> None:
    """Gives batch norm its inputs' statistics without changing what it computes: training then starts from there."""
    pixels = torch.cat([_pixels(x) for x in inputs])
    mean, variance = pixels.mean(0), pixels.var(0, correction=0)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.bias.copy_(shift + mean * scale)


def _batch_norm(pair: Lockstep, node: fx.Node | None) -> nn.BatchNorm2d | None:
    """The changed network's batch norm that `node` calls."""
    name = batch_norm_at(pair.network, node)
    return pair.network.get_submodule(name) if name else None


def _lost_inputs(layer: nn.Module, old: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels < old.in_channels and layer.groups < layer.in_channels
    return isinstance(layer, nn.Linear) and layer.in_features < old.in_features


def _is_refitted(layer: nn.Module | None, old: nn.Module | None) -> bool:
    return _lost_inputs(layer, old) and getattr(layer, "groups", 1) == 1


def _outputs(layer: nn.Module) -> int:
    return layer.weight.shape[0]


def _other_addend(node: fx.Node) -> fx.Node | None:
    """The other side of the sum that `node` alone goes into."""
    user = only_user(node)
    if user is None or user.target not in _SUMS or len(user.args) != 2:
        return None
    others = [side for side in user.args if side is not node]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


@contextlib.contextmanager
def _without_inplace(*networks: nn.Module) -> Iterator[None]:
    """Activations must not overwrite values that are still to be read."""
    changed = [module for network in networks for module in network.modules() if getattr(module, "inplace", False)]
    for module in changed:
        module.inplace = False
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True
