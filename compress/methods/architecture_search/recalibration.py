"""Gives batch norm the statistics of the inputs that it has in a sub-network with shared weights."""

import torch
from torch import Tensor, nn

_CHUNK = 64


@torch.no_grad()
def recalibrate(network: nn.Module, images: Tensor) -> None:
    """Takes the mean and variance of each batch norm's inputs over `images` (N, C, H, W), in place.

    Yu & Huang 2019, "Universally slimmable networks", section 3.4. The network ends in eval mode.
    """
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for chunk in images.split(_CHUNK):
        network(chunk)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
