"""Compensates for removed filters without training: refits each layer that lost inputs to its original outputs."""

import contextlib
import math
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compress.methods.pruning.receptive import channel_dim, computes_weight, pixels, rows
from compress.models.graph.paired_interpreter import PairedInterpreter
from compress.models.graph.tracing import batch_norm_at, only_user, read_argument, trace

_RIDGE = 1e-2  # share of the mean squared input: less overfits a thousand images and hinders fine-tuning
_LEAST_SQUARE = 1e-12  # gives inputs that are all zero a solution
_MAX_ROWS = 200_000  # positions on which a layer is fitted
_CHUNK = 64  # images at a time

_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d)  # they change nothing in eval mode

_GROUPS = "a convolution in groups"
_COMPUTED = "its weight is computed from other parameters"
_REPEATED = "it is called more than once"
_OPAQUE = "a block around it branches on values, or changes values in place"


@torch.no_grad()
def reconstruct(
    network: nn.Module, original: nn.Module, kept: dict[str, list[int]], images: Tensor
) -> dict[str, float]:
    """Refits, in place and in order, the layers of `network` that lost inputs; returns the error of each.

    Least squares from the pruned network's own inputs to the original's outputs (He et al. 2017, "Channel pruning",
    equation 5). Where a residual sum follows, the target is the original's sum, so that errors do not add up along
    the shortcuts. Batch norm receives the statistics of its new inputs, and an affine map that keeps what it computes.
    `kept` lists the remaining filters of each layer that lost some; `images` is (N, C, H, W). An error is the squared
    one as a share of the target's variance. `skipped_layers` returns the layers that cannot be refitted.
    """
    graph = trace(original.eval(), images[:1])
    errors = {}
    with _without_inplace(network, original):
        pair = PairedInterpreter(graph, network.eval(), original, list(images.split(_CHUNK)))
        refitted = set(_layers_that_lost_inputs(network, original)) - {
            row["layer"] for row in _skipped(network, original, graph)
        }
        repeated = _repeated(graph)
        for node in graph.nodes:
            norm = _batch_norm(pair, node)
            source = _source(node)
            if node.op == "call_module" and node.target in refitted:
                old = original.get_submodule(node.target)
                filters = torch.tensor(kept.get(node.target, range(_outputs(old))), device=old.weight.device)
                errors[node.target] = _refit(pair, node, filters)
            elif norm is not None and node.target not in repeated and getattr(source, "target", None) not in refitted:
                _set_input_statistics(norm, pair.values(source))
            pair.step(node)
    return errors


def skipped_layers(network: nn.Module, original: nn.Module, image: Tensor | None = None) -> list[dict[str, str]]:
    """Returns the layers that lost inputs and that `reconstruct` skips for images like `image`, with the reasons."""
    return _skipped(network, original, trace(original.eval(), image))


def _skipped(network: nn.Module, original: nn.Module, graph: fx.Graph) -> list[dict[str, str]]:
    reached, repeated = {node.target for node in graph.nodes if node.op == "call_module"}, _repeated(graph)
    reasons = {}
    for name in _layers_that_lost_inputs(network, original):
        layer = network.get_submodule(name)
        if getattr(layer, "groups", 1) > 1:
            reasons[name] = _GROUPS
        elif computes_weight(layer):
            reasons[name] = _COMPUTED
        elif name in repeated:
            reasons[name] = _REPEATED
        elif name not in reached:
            reasons[name] = _OPAQUE
    return [
        {"layer": name, "reason": f"not refitted to the inputs that it lost: {reason}"}
        for name, reason in reasons.items()
    ]


def _repeated(graph: fx.Graph) -> set[str]:
    """Returns the modules that are called more than once: a fit for one call does not suit the other."""
    times = Counter(node.target for node in graph.nodes if node.op == "call_module")
    return {name for name, count in times.items() if count > 1}


def _source(node: fx.Node) -> fx.Node | None:
    """Returns the node that a layer reads."""
    return read_argument(node, 0, "input") or next(iter(node.all_input_nodes), None)


def _refit(pair: PairedInterpreter, node: fx.Node, kept: Tensor) -> float:
    """Fits one convolution or linear layer, and the batch norm after it; returns the residual variance."""
    layer = pair.network.get_submodule(node.target)
    follower = only_user(node)
    norm = _batch_norm(pair, follower)
    end = node if norm is None else follower
    dim = channel_dim(layer)
    targets = [value.index_select(dim, kept) for value in pair.reference_values(end)]
    other = _other_addend(pair.network, end)
    # An addend that comes later still changes: its own refit compensates for this layer.
    if (
        other is not None
        and pair.is_final(other, end)
        and _shape(pair.reference_values(other)) == _shape(pair.reference_values(end))
    ):
        shortcuts = zip(pair.reference_values(other), pair.values(other), strict=True)
        targets = [
            target + reference.index_select(dim, kept) - value
            for target, (reference, value) in zip(targets, shortcuts, strict=True)
        ]
    fit = _least_squares(layer, pair.values(_source(node)), targets, norm is not None or layer.bias is not None)
    layer.weight.copy_(fit.weight.T.reshape(layer.weight.shape))
    if norm is not None:
        if layer.bias is not None:
            layer.bias.zero_()
        _set_statistics(norm, fit)
    elif layer.bias is not None:
        layer.bias.copy_(fit.intercept)
    return fit.residual_variance


def _set_statistics(norm: nn.BatchNorm2d, fit: "_Fit") -> None:
    """Sets batch norm's statistics to those of the refitted filters' outputs, and its affine map to that of the fit."""
    norm.running_mean.copy_(fit.mean)
    norm.running_var.copy_(fit.variance)
    norm.weight.copy_((fit.variance + norm.eps).sqrt())
    norm.bias.copy_(fit.mean + fit.intercept)


@dataclass
class _Fit:
    weight: Tensor  # (C_in k k, C_out)
    intercept: Tensor  # (C_out,)
    mean: Tensor  # (C_out,) of the outputs without the intercept
    variance: Tensor
    residual_variance: float  # squared error as a share of the targets' variance


def _least_squares(layer: nn.Module, inputs: list[Tensor], targets: list[Tensor], intercept: bool) -> _Fit:
    """Fits the layer's weights to its inputs and targets, in the shapes in which it reads and returns them.

    With `intercept` false the intercept is 0: no parameter could hold another.
    """
    # Whole images are skipped, not positions: gathering positions costs more than the solution.
    step = max(1, math.ceil(sum(target.numel() / _outputs(layer) for target in targets) / _MAX_ROWS))
    pairs = [
        (rows(layer, x[::step]).float(), pixels(layer, y[::step]).float()) for x, y in zip(inputs, targets, strict=True)
    ]
    few = sum(len(seen) for seen, _ in pairs) < pairs[0][0].shape[1]
    solution = (_solve_for_places if few else _solve_for_weights)(pairs, intercept)
    fitted, goals = [_with_ones(seen) @ solution.float() for seen, _ in pairs], [goals for _, goals in pairs]
    (mean, variance), (_, goal_variance) = _moments(fitted), _moments(goals)
    error = sum((x - y).double().square().sum() for x, y in zip(fitted, goals, strict=True))
    residual = error / (goal_variance.sum() * sum(map(len, goals))).clamp_min(1e-12)
    weight, intercepts = solution[:-1], solution[-1]
    return _Fit(weight.float(), intercepts.float(), (mean - intercepts).float(), variance.float(), residual.item())


def _moments(chunks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the mean and the variance (C,) of values (places, C), in double precision, without a copy of all."""
    count = sum(map(len, chunks))
    mean = sum(chunk.double().sum(0) for chunk in chunks) / count
    return mean, sum((chunk.double() - mean).square().sum(0) for chunk in chunks) / count


def _solve_for_weights(pairs: list[tuple[Tensor, Tensor]], intercept: bool) -> Tensor:
    """Solves for the weights, the intercepts in the last row, (C_in k k + 1, C_out), by the inputs' Gram matrix."""
    gram = cross = torch.zeros(())
    for seen, goals in pairs:
        seen = _with_ones(seen)
        gram = gram + (seen.T @ seen).double()
        cross = cross + (seen.T @ goals).double()
    ridge = _RIDGE * gram.diagonal()[:-1].mean().clamp_min(_LEAST_SQUARE)
    damping = ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    damping[-1, -1] = 0
    solution, columns = torch.zeros_like(cross), len(cross) - (not intercept)
    solution[:columns] = torch.linalg.solve((gram + damping)[:columns, :columns], cross[:columns])
    return solution


def _solve_for_places(pairs: list[tuple[Tensor, Tensor]], intercept: bool) -> Tensor:
    """Solves for the same by the Gram matrix of the places, which is smaller where there are fewer places than inputs.

    A linear layer after a flattened VGG has 25,088 inputs, and an image is one place. W = X' (X X' + ridge)^-1 Y.
    """
    seen, goals = (torch.cat(parts).double() for parts in zip(*pairs, strict=True))
    ridge = _RIDGE * seen.square().sum().div(seen.shape[1]).clamp_min(_LEAST_SQUARE)
    means = [x.mean(0) if intercept else torch.zeros_like(x[0]) for x in (seen, goals)]
    seen, goals = seen - means[0], goals - means[1]
    damping = ridge * torch.eye(len(seen), dtype=seen.dtype, device=seen.device)
    weight = seen.T @ torch.linalg.solve(seen @ seen.T + damping, goals)
    return torch.cat([weight, (means[1] - means[0] @ weight)[None]])


def _with_ones(rows: Tensor) -> Tensor:
    """Appends a column of ones, for the intercept."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def _set_input_statistics(norm: nn.BatchNorm2d, inputs: list[Tensor]) -> None:
    """Sets batch norm's statistics to those of its inputs, where training starts, without changing what it computes."""
    values = torch.cat([pixels(norm, x) for x in inputs])
    mean, variance = values.mean(0), values.var(0, correction=0)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.bias.copy_(shift + mean * scale)


def _batch_norm(pair: PairedInterpreter, node: fx.Node | None) -> nn.BatchNorm2d | None:
    """Returns the changed network's batch norm that `node` calls, if its statistics and affine map can be set."""
    name = batch_norm_at(pair.network, node)
    norm = pair.network.get_submodule(name) if name else None
    if node is None or norm is None or norm.running_mean is None or not norm.affine:
        return None
    return norm if node.target not in _repeated(node.graph) else None


def _layers_that_lost_inputs(network: nn.Module, original: nn.Module) -> list[str]:
    """Returns the names of the convolutions and linear layers that lost inputs."""
    lost = []
    for name, layer in network.named_modules():
        old = original.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels < old.in_channels and layer.groups < layer.in_channels:
                lost.append(name)
        elif isinstance(layer, nn.Linear) and layer.in_features < old.in_features:
            lost.append(name)
    return lost


def _outputs(layer: nn.Module) -> int:
    return layer.weight.shape[0]


def _shape(values: list[Tensor]) -> torch.Size | None:
    return values[0].shape if isinstance(values[0], Tensor) else None


def _other_addend(network: nn.Module, node: fx.Node) -> fx.Node | None:
    """Returns the other side of the sum that alone reads `node`, if there is one."""
    user = only_user(node)
    while user is not None and _is_identity(network, user):
        node, user = user, only_user(user)
    if user is None or user.target not in _SUMS or len(user.args) != 2 or user.kwargs:
        return None
    others = [side for side in user.args if side is not node]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _is_identity(network: nn.Module, node: fx.Node) -> bool:
    """Whether `node` returns its input unchanged in eval mode."""
    if node.op == "call_module":
        return isinstance(network.get_submodule(node.target), _IDENTITIES)
    return getattr(node.target, "__name__", "") == "stochastic_depth"


@contextlib.contextmanager
def _without_inplace(*networks: nn.Module) -> Iterator[None]:
    """Switches in-place activations off in a block: they must not overwrite values that are read later."""
    changed = [module for network in networks for module in network.modules() if getattr(module, "inplace", False)]
    for module in changed:
        module.inplace = False
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True
