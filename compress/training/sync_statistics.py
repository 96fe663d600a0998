"""Makes batch norm and fake quantization see the images of all processes, so that two train as one would."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class CpuSyncBatchNorm(_BatchNorm):
    """Synchronized batch norm on the CPU, over gloo, for which torch has no kernels; autograd differentiates it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (N, C, ...), in training by the mean and variance over the images of all processes."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        variance, mean = torch.var_mean(x.float(), [0, *range(2, x.dim())], correction=0)
        variance, mean = (
            variance.double(),
            mean.double(),
        )  # in float32 the squares of large means would swamp the variance
        count = x.numel() / x.shape[1]
        sums = _SumOfAll.apply(count * torch.stack([torch.ones_like(mean), mean, variance + mean.square()]))
        total, mean = sums[0], sums[1] / sums[0]
        variance = sums[2] / total - mean.square()
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_((variance * total / (total - 1)).float(), self.momentum)
        scale = torch.rsqrt(variance + self.eps)
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        shape = [1, -1, *[1] * (x.dim() - 2)]
        return torch.addcmul(shift.float().view(shape), x, scale.float().view(shape)).to(x.dtype)


class _SumOfAll(torch.autograd.Function):
    """Sums over all processes. The loss is such a sum, too, so the gradient is summed over all processes as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Sums a tensor of any shape, which is the same in all processes."""
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Sums the gradient in the same way."""
        return _SumOfAll.apply(gradient)


@contextmanager
def sync_statistics(network: nn.Module) -> Iterator[None]:
    """Shares the statistics of batch norm and the ranges of fake quantization among all processes, in this context.

    Parameters and buffers stay the same tensors under the same names.
    """
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, _BatchNorm)}
    quantizers = [module for module in network.modules() if hasattr(module, "common_ends")]
    for name, layer in layers.items():
        network.set_submodule(name, _synchronized(layer))
    for quantizer in quantizers:
        quantizer.common_ends = _common_ends
    try:
        yield
    finally:
        for name, layer in layers.items():
            network.set_submodule(name, layer)
        for quantizer in quantizers:
            quantizer.common_ends = None


def _synchronized(layer: _BatchNorm) -> _BatchNorm:
    kind = nn.SyncBatchNorm if layer.running_mean.is_cuda else CpuSyncBatchNorm
    shared = kind(layer.num_features, layer.eps, layer.momentum, layer.affine)
    shared.weight, shared.bias = layer.weight, layer.bias
    shared.running_mean, shared.running_var = layer.running_mean, layer.running_var
    shared.num_batches_tracked = layer.num_batches_tracked
    return shared.train(layer.training)


def _common_ends(ends: Tensor) -> Tensor:
    """Returns the lowest and the highest value (2,) of all processes."""
    reach = torch.stack([-ends[0], ends[1]])
    distributed.all_reduce(reach, distributed.ReduceOp.MAX)
    return torch.stack([-reach[0], reach[1]])
