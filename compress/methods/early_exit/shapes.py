"""Decides what exits are made of, from the maps they read and what they may cost."""

from collections.abc import Sequence

from compress.methods.early_exit.network import ExitShape
from compress.methods.early_exit.places import Place

_MACS_SHARE = 0.04  # the largest share of the network's MACs that an exit may take, if it is wider than the least
_LEAST_CHANNELS, _MOST_CHANNELS, _STEP = 16, 128, 16  # 128 are MSDNet's
_SMALL_MAP = 4  # pixels a side: a smaller map is pooled as it is
_MOST_CONVOLUTIONS = 2  # as MSDNet has


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
        height, width = -(-height // 2), -(-width // 2)
        total += 9 * inputs * shape.channels * height * width
        inputs = shape.channels
    return total + inputs * classes


def _shape(place: Place, most_macs: float) -> ExitShape:
    channels, height, width = place.shape
    convolutions, side = 0, min(height, width)
    while side > _SMALL_MAP and convolutions < _MOST_CONVOLUTIONS:
        convolutions, side = convolutions + 1, -(-side // 2)
    shape = ExitShape(place.name, channels, _LEAST_CHANNELS, convolutions)
    for wider in range(_LEAST_CHANNELS + _STEP, _MOST_CHANNELS + 1, _STEP):
        candidate = ExitShape(place.name, channels, wider, convolutions)
        if exit_macs(candidate, (height, width), 0) > most_macs:
            break
        shape = candidate
    return shape
