"""Sums up what a layer reads and should return, in moments from which the best factors of any rank follow."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.methods.pruning.receptive import pixels, rows

_RIDGE = 1e-2  # share of the mean squared input: it draws a fit to the layer's own weight
_LEAST_SQUARE = 1e-12
_MAX_ROWS = 200_000  # positions on which a layer is fitted
MOST_INPUTS = 10_000  # of a filter: the matrix of their products would need more memory than the network


@dataclass
class Moments:
    """Moments of a layer's inputs x (C_in k k,) and of its targets y (C_out,) over the places of its output.

    They are central where the layer, or the batch norm after it, can add a constant.
    """

    inputs: Tensor  # (C_in k k, C_in k k), the mean of x x^T
    cross: Tensor  # (C_in k k, C_out), the mean of x y^T
    targets: Tensor  # (C_out,), the mean of y^2
    input_mean: Tensor  # (C_in k k,); zeros where they are not central
    target_mean: Tensor  # (C_out,)

    def metric(self) -> Tensor:
        """Returns the matrix A for which a change D of the weight costs the trace of D^T A D."""
        size = len(self.inputs)
        ridge = _RIDGE * self.inputs.diagonal().mean().clamp_min(_LEAST_SQUARE)
        return self.inputs + ridge * torch.eye(size, dtype=self.inputs.dtype, device=self.inputs.device)

    def best_weight(self, weight: Tensor) -> Tensor:
        """Returns the weight (C_in k k, C_out) with the least squared error, drawn to `weight` by the ridge.

        It is `weight` itself where the layer's inputs are still the original's.
        """
        return weight + torch.linalg.solve(self.metric(), self.cross - self.inputs @ weight)

    def error(self, weight: Tensor) -> float:
        """Returns the squared error of a layer with `weight` (C_in k k, C_out), as a share of the targets' square."""
        left = (weight * (self.inputs @ weight - 2 * self.cross)).sum() + self.targets.sum()
        return (left / self.targets.sum().clamp_min(_LEAST_SQUARE)).item()

    def output_mean(self, weight: Tensor) -> Tensor:
        """Returns the mean (C_out,) of what a layer with `weight` and without bias returns."""
        return self.input_mean @ weight

    def output_variance(self, weight: Tensor) -> Tensor:
        """Returns the variance (C_out,) of the same, where the moments are central."""
        return (weight * (self.inputs @ weight)).sum(0)


def measure_moments(layer: nn.Module, inputs: list[Tensor], targets: list[Tensor], central: bool) -> Moments:
    """Returns the moments of a layer's inputs and targets, in the shapes in which it reads and returns them."""
    # Whole images are skipped, not positions: gathering positions costs more than the products.
    step = max(1, math.ceil(sum(target.numel() / layer.weight.shape[0] for target in targets) / _MAX_ROWS))
    count, sums = 0, [torch.zeros(())] * 5
    for x, y in zip(inputs, targets, strict=True):
        seen, goals = rows(layer, x[::step]).float(), pixels(layer, y[::step]).float()
        count += len(seen)
        new = (seen.T @ seen, seen.T @ goals, goals.square().sum(0), seen.sum(0), goals.sum(0))
        sums = [total + part.double() for total, part in zip(sums, new, strict=True)]
    gram, cross, squares, x_mean, y_mean = (total / count for total in sums)
    if not central:
        return Moments(gram, cross, squares, torch.zeros_like(x_mean), torch.zeros_like(y_mean))
    gram, cross = gram - torch.outer(x_mean, x_mean), cross - torch.outer(x_mean, y_mean)
    return Moments(gram, cross, (squares - y_mean.square()).clamp_min(0), x_mean, y_mean)
