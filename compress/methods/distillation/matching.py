"""Pairs layers of two networks by the resolution of their outputs, so that nobody has to know the layers' names."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress.utils.errors import UserError

_MOST_PAIRS = 4


def match_by_resolution(student: nn.Module, teacher: nn.Module, image: Tensor) -> dict[str, str]:
    """Returns the teacher's layer by the name of the student's, for the lowest resolutions that both have, at most 4.

    `image` is (1, C, H, W). Raises UserError where no resolution is in both.
    """
    student_maps, teacher_maps = maps_by_reduction(student, image), maps_by_reduction(teacher, image)
    common = sorted(student_maps.keys() & teacher_maps.keys())[-_MOST_PAIRS:]
    if not common:
        raise UserError(
            "distill.losses with a loss of layers, where the outputs of the student's have the resolutions "
            f"{_shares(student_maps)} and those of the teacher's {_shares(teacher_maps)}",
            "a resolution, as a share of the image's side, at which both have outputs (N, C, H, W)",
            "name layers of both in distill.hint_layers, or take losses of the outputs alone, as kd",
        )
    return {student_maps[reduction]: teacher_maps[reduction] for reduction in common}


def maps_by_reduction(network: nn.Module, image: Tensor) -> dict[int, str]:
    """Returns the last module with outputs (N, C, H, W) at each resolution, by the factor 1, 2, 4, ... that is lost.

    Maps of one pixel are left out, because they have no places to compare; of a detector only the backbone counts,
    because the head's maps are its answers. `network` runs in eval mode, and stays in it.
    """
    sizes = _map_sizes(network, image)
    found: dict[int, str] = {}
    for name, (height, width) in sizes.items():
        if min(height, width) > 1 and height <= image.shape[2]:
            found[2 ** round(math.log2(image.shape[2] / height))] = name
    return found


def _map_sizes(network: nn.Module, image: Tensor) -> dict[str, tuple[int, int]]:
    """Returns height and width of the output of each module that returns a map, in the order of their last calls."""
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str, output: object) -> None:
        sizes.pop(name, None)  # a module that is called again moves to the end
        if isinstance(output, Tensor) and output.ndim == 4:
            sizes[name] = (output.shape[2], output.shape[3])

    backbone = "backbone." if isinstance(getattr(network, "backbone", None), nn.Module) else ""
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
        for name, module in network.named_modules()
        if name and name.startswith(backbone)
    ]
    try:
        with torch.no_grad():
            network.eval()(image)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def _shares(maps: Mapping[int, str]) -> str:
    return ", ".join(f"1/{reduction}" for reduction in sorted(maps)) or "none"
