"""Shows where in an image a network finds its class: Grad-CAM, on the weights that ship."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor | None:
    """Returns heatmaps (N, H, W) from 0 to 1 for `classes` (N,) in images (N, C, H, W); None without a spatial tensor.

    Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2) at the last tensor that has rows and columns.
    The map is zero everywhere where nothing speaks for the class. `network` is in eval mode.
    """
    with torch.enable_grad():
        with _LastSpatial() as last:
            logits = network(images)
        if last.tensor is None:
            return None
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), last.tensor)
    weights = gradient.mean((2, 3), keepdim=True)
    maps = (weights * last.tensor).sum(1, keepdim=True).relu().detach()
    maps = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def mean_correlation(maps: Tensor, others: Tensor) -> float | None:
    """Returns the mean of Pearson's correlations of the heatmaps (N, H, W) of two networks for the same images.

    Pairs in which a map is the same everywhere have none and are left out; None where all do.
    """
    pairs = torch.stack([maps, others]).flatten(2).double()
    pairs = pairs - pairs.mean(2, keepdim=True)
    lengths = pairs.norm(dim=2)
    known = (lengths > 0).all(0)
    found = (pairs[0] * pairs[1]).sum(1)[known] / lengths[:, known].prod(0)
    return found.mean().item() if len(found) else None


class _LastSpatial(TorchFunctionMode):
    """Keeps the last computed tensor (N, C, H, W) of more than one position that depends on a weight."""

    tensor: Tensor | None = None

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        value = function(*args, **(kwargs or {}))
        computed = isinstance(value, Tensor) and value.grad_fn is not None
        if computed and value.dim() == 4 and value[0, 0].numel() > 1:
            self.tensor = value
        return value
