"""Takes blocks and the rims of kernels out of a network, so that loading a network without them needs no search."""

from collections.abc import Iterable, Mapping

from torch import nn

SMALLEST_KERNEL = 3  # whose centre is one pixel: a smaller one would see no neighbours


def replace_by_identities(network: nn.Module, names: Iterable[str]) -> nn.Module:
    """Puts an identity in the place of each of these modules, in place; returns the network."""
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    return network


def kernel_sizes(layer: nn.Module) -> list[int]:
    """Returns the sizes that the kernel of a layer can have: its own and smaller odd ones; none where it cannot shrink.

    The output keeps its size, because the padding shrinks with the kernel.
    """
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return []
    size, other = layer.kernel_size
    if size != other or size % 2 == 0:
        return []
    fitting = [
        smaller
        for smaller in range(size, SMALLEST_KERNEL - 1, -2)
        if all(cut <= had for cut, had in zip(cut_padding(layer, smaller), layer.padding, strict=True))
    ]
    return fitting if len(fitting) > 1 else []


def cut_kernels(network: nn.Module, sizes: Mapping[str, int]) -> nn.Module:
    """Cuts the kernel of each of these layers to its centre of `sizes[name]` pixels a side, in place."""
    for name, size in sizes.items():
        layer = network.get_submodule(name)
        if size not in kernel_sizes(layer):
            raise ValueError(f"received a kernel of {size} for {name}; expected one of {kernel_sizes(layer)}")
        cut = cut_padding(layer, size)
        rim = (layer.kernel_size[0] - size) // 2
        centre = layer.weight.detach()[:, :, rim : rim + size, rim : rim + size].clone()
        layer.weight = nn.Parameter(centre, layer.weight.requires_grad)
        layer.kernel_size = (size, size)
        layer.padding = (layer.padding[0] - cut[0], layer.padding[1] - cut[1])
    return network


def cut_padding(layer: nn.Conv2d, size: int) -> tuple[int, int]:
    """Returns by how much less the input is padded, so that the output keeps its size."""
    rim = (layer.kernel_size[0] - size) // 2
    return layer.dilation[0] * rim, layer.dilation[1] * rim
