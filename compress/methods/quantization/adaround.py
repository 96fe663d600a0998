"""Learns for each weight of a layer whether to round it up or down, from the layer's outputs at sampled positions."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from compress.methods.quantization.simulation import Grid, SimulatedLayer
from compress.models.graph.aten_patterns import LINEARS, argument, is_call, own_parameter

# These are the values of Nagel et al. 2020, arXiv:2004.10568, section 3.3 and its experiments.
_STRETCH = (-0.1, 1.1)  # gamma and zeta of the rectified sigmoid, equation 23
_BETA = (20.0, 2.0)  # the first and the last exponent of the regularizer, equation 24
_WARMUP = 0.2  # share of the steps without the regularizer

_REGULARIZATION = 1.0  # its weight; the error counts as a share of that of nearest rounding
_TRAVEL = 10.0  # how far the steps of Adam can move a weight's logit in all; 0 is undecided, 2.4 decided
_BATCH = 512  # positions a step

_MAX_POSITIONS = 16_384  # the rounding of a layer is learned from these
_MAX_FLOATS = 2**26  # their inputs take at most 256 MiB


@dataclass
class Samples:
    """A layer's inputs, its other addends and its targets at P output positions."""

    inputs: Tensor  # (groups, P, K), with K = C_in / groups times the kernel's size
    added: Tensor  # (P, C): the bias, and where a residual sum follows, the other addend
    targets: Tensor  # (P, C), after the activation
    activation: Callable[[Tensor], Tensor]

    def errors(self, weight: Tensor) -> Tensor:
        """Returns the mean squared error of each channel, (C,), with a weight (C, ...)."""
        return (self.outputs(weight, slice(None)) - self.targets).square().mean(0)

    def outputs(self, weight: Tensor, some: slice) -> Tensor:
        """Returns the outputs (P, C) at `some` of the positions."""
        groups, _, fan_in = self.inputs.shape
        sums = self.inputs[:, some] @ weight.reshape(groups, -1, fan_in).transpose(1, 2)  # (groups, P, C / groups)
        return self.activation(sums.transpose(0, 1).flatten(1) + self.added[some])


def learn_rounding(samples: Samples, weight: Tensor, grid: Grid, steps: int) -> Tensor:
    """Rounds `weight` (C, ...) up or down on `grid`, which has a scale for each channel, for the least error.

    Implements AdaRound (Nagel et al. 2020, arXiv:2004.10568), equations 22 to 25, on minibatches of positions instead
    of images: the same rows of the same product, drawn from all images at once. A channel for which nearest rounding
    is better keeps that.
    """
    scale, low, high = grid.scale.view(-1, *[1] * (weight.dim() - 1)), grid.low, grid.high
    below = (weight / scale).floor()
    nearest = grid(weight)
    unit = samples.errors(nearest).mean().clamp_min(1e-20)
    share = (weight / scale - below - _STRETCH[0]) / (_STRETCH[1] - _STRETCH[0])
    logit = torch.logit(share).requires_grad_()
    optimizer = torch.optim.Adam([logit], _TRAVEL / steps)
    batches = max(1, samples.inputs.shape[1] // _BATCH)
    with torch.enable_grad():
        for step in range(steps):
            up = _rectified_sigmoid(logit)
            start = step % batches * _BATCH
            some = slice(start, start + _BATCH)
            outputs = samples.outputs((below + up).clamp(low, high) * scale, some)
            loss = F.mse_loss(outputs, samples.targets[some]) / unit
            progress = (step / steps - _WARMUP) / (1 - _WARMUP)
            if progress > 0:
                beta = _BETA[0] + (_BETA[1] - _BETA[0]) * progress
                loss = loss + _REGULARIZATION * (1 - (2 * up - 1).abs().pow(beta)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    learned = (below + (logit.detach() >= 0)).clamp(low, high) * scale
    better = samples.errors(learned) < samples.errors(nearest)
    return torch.where(better.view(scale.shape), learned, nearest)


def sample(layer: SimulatedLayer, generator: torch.Generator) -> Samples:
    """Samples the layer at output positions of all images, in random order."""
    weight, bias = layer.parameter("weight"), own_parameter(layer.node, "bias")
    positions = min(_MAX_POSITIONS, _MAX_FLOATS // (_options(layer.node)["groups"] * weight[0].numel()))
    share = math.ceil(positions / len(layer.pair.images))
    parts = []
    for x, output, value, reference in zip(
        layer.inputs(), layer.outputs(False), layer.sums(False), layer.sums(True), strict=True
    ):
        _, _, height, width = _as_images(reference).shape
        drawn = torch.randperm(reference.numel() // reference.shape[1], generator=generator)[:share].to(x.device)
        image, row, column = drawn // (height * width), drawn // width % height, drawn % width
        added, target = (_as_images(y)[image, :, row, column] for y in (value - output, layer.activation(reference)))
        parts.append((_patches(_as_images(x), (image, row, column), layer.node, weight), added, target))
    inputs, added, targets = (torch.cat(part) for part in zip(*parts, strict=True))
    order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
    bias = 0 if bias is None else layer.parameter("bias")
    return Samples(inputs[order].transpose(0, 1).contiguous(), added[order] + bias, targets[order], layer.activation)


def _patches(x: Tensor, at: tuple[Tensor, Tensor, Tensor], node: Node, weight: Tensor) -> Tensor:
    """Returns the part of `x` (N, C, H, W) that output positions (image, row, column) read, as (P, groups, K)."""
    options, kernel = _options(node), [1, 1, *weight.shape[2:]][-2:]
    stride, padding, dilation = ([*[neutral] * 2, *options[name]][-2:] for name, neutral in _NEUTRAL.items())
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    image, *corner = at
    row, column = (
        corner[axis][:, None] * stride[axis] + torch.arange(kernel[axis], device=x.device) * dilation[axis]
        for axis in (0, 1)
    )
    seen = padded[image[:, None, None], :, row[:, :, None], column[:, None, :]]  # (P, kernel, kernel, C)
    return seen.permute(0, 3, 1, 2).reshape(len(image), options["groups"], -1)


_NEUTRAL = {"stride": 1, "padding": 0, "dilation": 1}


def _options(node: Node) -> dict[str, Any]:
    """Returns the options of a convolution, and for a linear layer those of a 1 x 1 convolution."""
    if is_call(node, LINEARS):
        return {"stride": [], "padding": [], "dilation": [], "groups": 1}
    return {name: argument(node, name) for name in (*_NEUTRAL, "groups")}


def _as_images(x: Tensor) -> Tensor:
    """Reshapes (N, C) and (N, C, L) to (N, C, 1, L)."""
    return x if x.dim() == 4 else x.reshape(*x.shape[:2], 1, -1)


def _rectified_sigmoid(logit: Tensor) -> Tensor:
    return (logit.sigmoid() * (_STRETCH[1] - _STRETCH[0]) + _STRETCH[0]).clamp(0, 1)
