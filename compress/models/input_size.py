"""Lets a network resize the images that it gets, so that its own input may have another size than the data's."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.utils.errors import UserError


@dataclass(frozen=True)
class ResizeInput:
    """A hook that resizes images before a network's forward pass: it is no layer, so that all layers keep their names.

    Images (N, C, H, W) are averaged over blocks of `block` pixels and then interpolated to `size`, bilinearly with
    align_corners=False. `antialias=True` would need no blocks, but OpenVINO 2026.4 passes over it without a word.
    """

    size: tuple[int, int]
    block: tuple[int, int]

    def __call__(self, network: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *others = arguments
        if max(self.block) > 1:
            images = F.avg_pool2d(images, self.block)
        return (F.interpolate(images, self.size, mode="bilinear", align_corners=False), *others)


def resize_input(network: nn.Module, example: Tensor, size: tuple[int, int]) -> None:
    """Lets `network`, in place, resize images like `example` (1, C, H, W) to `size` (H, W) before its first layer.

    A size that was set before no longer counts. The record ("resize_input", {"size": [H, W]}) repeats it on a network
    that is rebuilt. Raises UserError, and changes nothing, where the network does not accept images of that size, and
    where it returns something else than logits (N, K): the boxes of a detector are in pixels of its input.
    """
    before = network._forward_pre_hooks.copy()
    set_input_size(network, tuple(example.shape[1:]), size)
    try:
        _require_logits(network, example, size)
    except UserError:
        network._forward_pre_hooks = before
        raise


def set_input_size(network: nn.Module, shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    """Does what `resize_input` does, for images of `shape` (C, H, W), without running the network."""
    for key, hook in list(network._forward_pre_hooks.items()):
        if isinstance(hook, ResizeInput):
            del network._forward_pre_hooks[key]
    height, width = size
    if (height, width) != tuple(shape[1:]):
        hook = ResizeInput((height, width), (_block(shape[1], height), _block(shape[2], width)))
        network.register_forward_pre_hook(hook, prepend=True)


def _block(side: int, wanted: int) -> int:
    """Returns by how many pixels to average first: bilinear interpolation to less than half a side skips pixels."""
    block = 1
    while side // block > 2 * wanted and side % (2 * block) == 0:
        block *= 2
    return block


def _require_logits(network: nn.Module, example: Tensor, size: tuple[int, int]) -> None:
    received = f"{type(network).__name__} with an input of {size[0]}x{size[1]} pixels"
    training = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(example)
    except Exception as error:  # whatever a library or a user's network raises for a size that it does not accept
        cause = str(error).strip().splitlines()
        raise UserError(
            f"{received}: {type(error).__name__}: {cause[0] if cause else ''}",
            "a size that the network accepts",
            "name another size, or another network",
        ) from error
    finally:
        network.train(training)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{received}, which returns {found} for an image",
            "a network that returns logits (N, K): boxes of a detector are in pixels of its input",
            "set data.image_size, which resizes images with their boxes",
        )
