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
    because the head's maps are its answers. Attention has tensors of four dimensions that are no maps: what is inside
    of it is left out, and so is what does not have the image's proportions. `network` runs in eval mode, and stays in
    it.
    """
    found: dict[int, str] = {}
    for name, shape in _last_outputs(network, image).items():
        halvings = [_halvings(side, own) for side, own in zip(image.shape[2:], shape[2:], strict=True)]
        if shape[0] == len(image) and min(shape[2:]) > 1 and halvings[0] == halvings[1] >= 0:
            found[2 ** halvings[0]] = name
    return found


def _last_outputs(network: nn.Module, image: Tensor) -> dict[str, torch.Size]:
    """Returns the shape of what each module returned last, if it has four dimensions, in the order of the calls."""
    shapes: dict[str, torch.Size] = {}

    def note(name: str, output: object) -> None:
        shapes.pop(name, None)  # a module that is called again moves to the end
        if isinstance(output, Tensor) and output.ndim == 4:
            shapes[name] = output.shape

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
        for name, module in _candidates(network)
    ]
    try:
        with torch.no_grad():
            network.eval()(image)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _candidates(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the modules that may be compared, by name: not the network itself, and nothing inside of attention."""
    modules = dict(network.named_modules())
    backbone = "backbone." if isinstance(modules.get("backbone"), nn.Module) else ""
    attention = tuple(f"{name}." for name, module in modules.items() if "attention" in type(module).__name__.lower())
    return [
        (name, module)
        for name, module in modules.items()
        if name and name.startswith(backbone) and not name.startswith(attention)
    ]


def _halvings(side: int, own: int) -> int:
    """Returns how often `side` was halved, to the nearest whole number."""
    return round(math.log2(side / own))


def _shares(maps: Mapping[int, str]) -> str:
    return ", ".join(f"1/{reduction}" for reduction in sorted(maps)) or "none"
