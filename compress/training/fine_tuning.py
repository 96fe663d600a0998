"""Fine-tunes a pretrained network on few images: early layers train later and more slowly than late ones, or not."""

from collections.abc import Callable

import torch
from torch import nn

from compress.models.layer_calls import call_order


def blocks(network: nn.Module, image: torch.Tensor) -> list[nn.Module]:
    """Returns the blocks of `network` that have weights, in the order in which `image` (1, C, H, W) reaches them.

    The blocks are the network's children; a child that is a sequence is replaced by its own children.
    """
    parts = [
        part
        for child in network.children()
        for part in (child.children() if isinstance(child, nn.Sequential) else [child])
        if any(True for _ in part.parameters())
    ]
    owners: dict[nn.Module, list[nn.Module]] = {}
    for part in parts:
        for module in part.modules():
            owners.setdefault(module, []).append(part)
    return list(dict.fromkeys(part for module in call_order(network, image, owners) for part in owners[module]))


def layerwise_lr_scales(network: nn.Module, image: torch.Tensor, decay: float) -> dict[str, float]:
    """Returns each parameter's share of the learning rate, by name: `decay` to the power of its depth.

    The last block has depth 0 (Howard & Ruder 2018, "ULMFiT", section 3.2, "discriminative fine-tuning").
    """
    order = blocks(network, image)
    depth = {id(value): len(order) - 1 - at for at, part in enumerate(order) for value in part.parameters()}
    return {name: decay ** depth.get(id(value), 0) for name, value in network.named_parameters()}


def freeze_backbone(network: nn.Module, image: torch.Tensor, epochs: int) -> Callable[[int], None]:
    """Returns what to call before each epoch: only the last block trains up to epoch `epochs`, then all blocks do.

    A frozen block computes as in deployment; its batch norm keeps its statistics.
    """
    deep = blocks(network, image)[:-1]
    trained = [value for part in deep for value in part.parameters() if value.requires_grad]

    def before_epoch(epoch: int) -> None:
        for part in deep:
            part.train(epoch > epochs)
        for value in trained:  # parameters that were frozen from the start stay so
            value.requires_grad_(epoch > epochs)

    return before_epoch
