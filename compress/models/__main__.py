"""`python -m compress.models`: the zoo as a table, so that a network can be chosen before anything is trained."""

import argparse
import sys
from importlib.util import find_spec

import torch
from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from torch import nn

from compress.measure.cost import count_cost
from compress.models import ZOO, Architecture, build, stem_for
from compress.units import count_text, size_text

_COLOURS = 3
_BYTES_A_FILTER = 12  # its bias in 32 bits, the scale of its weights, and that of the bias


def main() -> int:
    """Prints the table; returns the exit status."""
    options = _parse(sys.argv[1:])
    stem = stem_for("auto", options.image_size)
    table = Table(box=SIMPLE_HEAD, padding=0)
    for heading in ("name", "params", "MACs", "int8"):
        table.add_column(heading, justify="left" if heading == "name" else "right", no_wrap=True)
    table.add_column("paper")
    for name, entry in ZOO.items():
        if entry.timm and find_spec("timm") is None:
            table.add_row(name, *["-"] * 3, escape('pip install "compress[timm]" first'))
            continue
        with torch.device("meta"):  # shapes without values: no weight is drawn, nothing is multiplied
            network = build(Architecture(name, stem, _COLOURS, options.classes)).eval()
            parameters, macs = count_cost(network, (_COLOURS, options.image_size, options.image_size))
        table.add_row(name, count_text(parameters), count_text(macs), size_text(int8_bytes(network)), entry.paper)
    get_console().print(table)
    print(
        f"for colour images of {options.image_size} pixels a side and {options.classes} classes; stem={stem}\n"
        "int8: a byte a weight, biases and scales; without the graph around them"
    )
    return 0


def int8_bytes(network: nn.Module) -> int:
    """What the numbers in the int8 file of `network` take, with batch norm folded and no filter removed."""
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    folded = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    weights, filters = (sum(sizes) for sizes in zip(*((m.weight.numel(), len(m.weight)) for m in layers), strict=True))
    inside = {parameter for module in (*layers, *folded) for parameter in module.parameters()}
    floats = sum(parameter.numel() for parameter in network.parameters() if parameter not in inside)
    return weights + _BYTES_A_FILTER * filters + 4 * floats


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m compress.models", description=__doc__)
    parser.add_argument("--image-size", type=int, default=32, help="pixels a side (%(default)s)")
    parser.add_argument("--classes", type=int, default=10, help="%(default)s")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
