"""Fits the weights of a layer to inputs and outputs by least squares."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.methods.pruning.receptive import pixels, rows

_RIDGE = 1e-2  # share of the mean squared input: less overfits a thousand images and hinders fine-tuning
_LEAST_SQUARE = 1e-12  # gives inputs that are all zero a solution
_MAX_ROWS = 200_000  # positions on which a layer is fitted
_MAX_VALUES = 20_000_000  # that a depthwise layer reads there


@dataclass
class Fit:
    """The weights that fit best, and what a layer with them returns."""

    weight: Tensor  # (C_in k k, C_out)
    intercept: Tensor  # (C_out,)
    mean: Tensor  # (C_out,) of the outputs without the intercept
    variance: Tensor
    residual_variance: float  # squared error as a share of the targets' variance


def least_squares(layer: nn.Module, inputs: list[Tensor], targets: list[Tensor], intercept: bool) -> Fit:
    """Fits the layer's weights to its inputs and targets, in the shapes in which it reads and returns them.

    With `intercept` false the intercept is 0: no parameter could hold another.
    """
    # Whole images are skipped, not positions: gathering positions costs more than the solution.
    step = max(1, math.ceil(sum(target.numel() / layer.weight.shape[0] for target in targets) / _MAX_ROWS))
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
    return Fit(weight.float(), intercepts.float(), (mean - intercepts).float(), variance.float(), residual.item())


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each filter reads one channel, its own."""
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels == layer.out_channels


def least_squares_by_channel(layer: nn.Conv2d, inputs: list[Tensor], targets: list[Tensor], intercept: bool) -> Fit:
    """Fits a depthwise layer: the same as `least_squares`, for each channel alone; the weight is (k k, C)."""
    channels, places = layer.out_channels, sum(target.numel() for target in targets) / layer.out_channels
    size = layer.weight[0].numel()
    step = max(1, math.ceil(places * channels * size / _MAX_VALUES))
    seen = torch.cat([rows(layer, x[::step]).float() for x in inputs]).view(-1, channels, size)
    goals = torch.cat([pixels(layer, y[::step]).float() for y in targets])  # (places, C)
    ones = seen.new_full((*seen.shape[:2], 1), float(intercept))
    seen = torch.cat([seen, ones], 2).transpose(0, 1).double()  # (C, places, k k + 1)
    goals = goals.T[..., None].double()
    gram = seen.transpose(1, 2) @ seen
    ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2)[:, :-1].mean(1).clamp_min(_LEAST_SQUARE)
    damping = torch.eye(size + 1, dtype=gram.dtype, device=gram.device) * ridge[:, None, None]
    damping[:, -1, -1] = 0 if intercept else 1
    solution = torch.linalg.solve(gram + damping, seen.transpose(1, 2) @ goals)  # (C, k k + 1, 1)
    weight, intercepts = solution[:, :-1, 0], solution[:, -1, 0] * intercept
    fitted = (seen @ solution)[..., 0]
    variance = goals[..., 0].var(1, correction=0)
    residual = (fitted - goals[..., 0]).square().mean(1).sum() / variance.sum().clamp_min(1e-12)
    mean, spread = fitted.mean(1), fitted.var(1, correction=0)
    return Fit(weight.T.float(), intercepts.float(), (mean - intercepts).float(), spread.float(), residual.item())


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
