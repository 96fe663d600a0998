"""Decides what exits are made of, from the maps they read and what they may cost."""

from collections.abc import Sequence
from dataclasses import replace

from compress.methods.early_exit.network import ExitShape
from compress.methods.early_exit.places import Place

_MACS_SHARE = 0.08  # the largest share of the network's MACs that an exit may take, if it is wider than the least
_LEAST_CHANNELS, _MOST_CHANNELS, _STEP = 16, 128, 16
_SMALL_MAP = 4  # pixels a side: a larger map is made smaller, at most twice
_MOST_STRIDED = 2


def exit_shapes(places: Sequence[Place], macs: int) -> list[ExitShape]:
    """Returns the shape of an exit at each place of a network with so many MACs."""
    return [_shape(place, _MACS_SHARE * macs) for place in places]


def ends_macs(places: Sequence[Place], shapes: Sequence[ExitShape], classes: int, macs: int) -> list[int]:
    """Returns the MACs of an image that leaves at each exit, and last of one that goes to the end."""
    spent, found = 0, []
    for place, shape in zip(places, shapes, strict=True):
        spent += exit_macs(shape, place.shape[1:], classes)
        found.append(place.macs + spent)
    return [*found, macs + spent]


def exit_macs(shape: ExitShape, size: tuple[int, int], classes: int) -> int:
    """Returns the MACs of an exit on a map of `size` (H, W)."""
    (height, width), inputs, total = size, shape.in_channels, 0
    for _ in range(shape.convolutions):
        height, width = -(-height // shape.stride), -(-width // shape.stride)
        total += 9 * inputs * shape.channels * height * width
        inputs = shape.channels
    return total + shape.blocks * 2 * 9 * inputs**2 * height * width + inputs * classes


def _shape(place: Place, most_macs: float) -> ExitShape:
    """Returns the widest exit that the MACs allow; on the large maps of early layers it has a residual block."""
    channels, height, width = place.shape
    strided, side = 0, min(height, width)
    while side > _SMALL_MAP and strided < _MOST_STRIDED:
        strided, side = strided + 1, -(-side // 2)
    blocks = 1 if strided == _MOST_STRIDED else 0
    shape = ExitShape(place.name, channels, _LEAST_CHANNELS, max(1, strided), 2 if strided else 1, blocks)
    for wider in range(_LEAST_CHANNELS + _STEP, _MOST_CHANNELS + 1, _STEP):
        if exit_macs(replace(shape, channels=wider), (height, width), 0) > most_macs:
            break
        shape = replace(shape, channels=wider)
    return shape
