"""Counts the parameters and multiply-accumulates of a network."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_cost(network: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Returns (parameters, MACs) of one image (C, H, W) through `network`, a float network in eval mode.

    torch's counter counts convolutions and matrix products, two operations a multiply-accumulate. Batch norm and
    activations do not count, as is usual.
    """
    parameter = next(network.parameters())
    image = torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device)
    trained = [value for value in network.parameters() if value.requires_grad]
    network.requires_grad_(False)  # the counter fails where a parameter that could be trained is a layer's input
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(image)
    finally:
        for value in trained:
            value.requires_grad_(True)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2
