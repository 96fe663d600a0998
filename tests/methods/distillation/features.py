"""Seeded features of several levels, and NumPy's pooling, for tests of losses of layers."""

import numpy as np
import torch
from torch import Tensor

STUDENT_SHAPES = [(3, 8, 8), (5, 4, 4), (6, 4, 4)]
TEACHER_SHAPES = [(4, 8, 8), (5, 4, 4), (8, 2, 2)]


def features(seed: int, *shape: int) -> Tensor:
    """Numbers of a normal distribution, the same for each seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def levels(seed: int, shapes: list[tuple[int, ...]], images: int = 4) -> list[Tensor]:
    """Features of each level, of other seeds each."""
    return [features(seed + level, images, *shape) for level, shape in enumerate(shapes)]


def double(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def pooled(maps: np.ndarray, size: int) -> np.ndarray:
    """Adaptive average pooling (N, C, H, W) to a size that divides H and W."""
    images, channels, height, width = maps.shape
    return maps.reshape(images, channels, size, height // size, size, width // size).mean((3, 5))
