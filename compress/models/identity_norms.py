"""Gives batch norm that was folded into the convolutions before it its statistics back, so that it can be trained."""

import torch
from torch import Tensor, nn


def identity_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Returns the batch norms that only shift: those of converted checkpoints, whose convolutions hold the rest.

    In training they would normalise by the batch, which their convolutions never were made for.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    return [norm for norm in norms if norm.affine and _is_identity(norm)]


def set_statistics(network: nn.Module, norms: list[nn.BatchNorm2d], images: Tensor) -> None:
    """Sets the statistics of `norms` to those of their inputs on `images` (N, C, H, W), in place.

    Scale and shift undo them, so that the network computes the same in eval mode, and nearly so in training.
    """

    def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        scale, mean, variance = norm.weight.clone(), x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        norm.bias.add_(scale * mean)

    hooks = [norm.register_forward_pre_hook(observe) for norm in norms]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(images)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()


def _is_identity(norm: nn.BatchNorm2d) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or bool(mean.any()) or not bool(norm.bias.any()):
        return False  # a shift of zero everywhere is that of new weights
    near_one = (variance - 1).abs().max() <= 2 * norm.eps and (norm.weight - 1).abs().max() <= 2 * norm.eps
    return bool(near_one)
