"""Where in an image a network finds its class: Grad-CAM, on the weights that ship."""

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.quantization.pt2e import capture


def heatmaps(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor | None:
    """(N, H, W) from 0 to 1 for images (N, C, H, W): what speaks for `classes` (N,); None without a spatial tensor.

    Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2) at the last tensor that has rows and columns.
    An image in which nothing speaks for the class has zeros alone.
    """
    graph = network if isinstance(network, fx.GraphModule) else capture(network, images)
    evaluation = _LastSpatial(graph)
    with torch.enable_grad():
        logits = evaluation.run(images)
        if evaluation.tensor is None:
            return None
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), evaluation.tensor)
    weights = gradient.mean((2, 3), keepdim=True)
    maps = (weights * evaluation.tensor).sum(1, keepdim=True).relu().detach()
    maps = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


class _LastSpatial(fx.Interpreter):
    """Keeps the last tensor (N, C, H, W) of more than one position that depends on a weight."""

    tensor: Tensor | None = None

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        computed = n.op not in ("get_attr", "placeholder") and isinstance(value, Tensor) and value.requires_grad
        if computed and value.dim() == 4 and value[0, 0].numel() > 1:
            self.tensor = value
        return value
