"""`python -m compress models [NAME...]`: lists networks with their sizes, so that one can be chosen before training.

Without a name, lists the zoo; torchvision/* and timm/*edge* name networks of the libraries, ssdlite* detectors.
"""

import argparse
import sys
from fnmatch import fnmatchcase
from importlib.util import find_spec

import torch
from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from torch import nn

from compress.config.stage_settings import TeacherConfig
from compress.evaluation.flops import count_cost
from compress.models import ZOO, Architecture, build, check_model, stem_for
from compress.models.from_config import anchors_for
from compress.models.registry import LIBRARIES, SSDLITE, SSDLITE320, find_entry, is_detector
from compress.models.third_party import timm_names, torchvision_names
from compress.utils.errors import UserError
from compress.utils.units import count_text, size_text

_COLOURS = 3
_ANCHORS = TeacherConfig()  # the default ones
_MOST_BUILT = 30  # networks; a longer list has names only, because figures need the network to be built
_BYTES_A_FILTER = 12  # its bias, the scale of its weights and the scale of its bias, 32 bits each


def main(arguments: list[str] | None = None) -> int:
    """Prints the table for `arguments`, which default to those of the process; returns the exit status."""
    options = _parse(arguments)
    try:
        names = _names(options.names)
    except UserError as error:
        print(f"compress: {error}", file=sys.stderr)
        return 2
    if len(names) > _MOST_BUILT and options.names:
        print("\n".join(names))
        print(f"{len(names)} networks; a pattern that fits {_MOST_BUILT} or fewer shows their sizes")
        return 0
    stem = stem_for("auto", options.image_size)
    table = Table(box=SIMPLE_HEAD, padding=0)
    for heading in ("name", "params", "MACs", "int8"):
        table.add_column(heading, justify="left" if heading == "name" else "right", no_wrap=True)
    table.add_column("paper")
    for name in names:
        table.add_row(name, *_row(name, stem, options))
    get_console().print(table)
    print(
        f"for colour images of {options.image_size} pixels a side and {options.classes} classes; stem={stem}\n"
        "int8: a byte a weight, biases and scales; without the graph around them\n"
        'torchvision/NAME and timm/NAME too: python -m compress models "timm/*edge*"\n'
        'detectors: python -m compress models "ssdlite*"'
    )
    return 0


def _names(patterns: list[str]) -> list[str]:
    """Returns the names that match any of `patterns`, or the zoo's. Raises UserError where a pattern matches none."""
    if not patterns:
        return list(ZOO)
    found: list[str] = []
    for pattern in patterns:
        library, slash, _ = pattern.partition("/")
        known = list(ZOO)
        if pattern.startswith(SSDLITE):
            known = [SSDLITE320, *(f"{SSDLITE}/{name}" for name in ZOO)]
        if slash and library in LIBRARIES:
            known = [
                f"{library}/{name}" for name in (torchvision_names() if library == "torchvision" else timm_names())
            ]
        fitting = [name for name in known if fnmatchcase(name, pattern)]
        if not fitting:
            check_model(pattern, "NAME")
        found += fitting
    return list(dict.fromkeys(found))


def _row(name: str, stem: str, options: argparse.Namespace) -> list[str]:
    """Returns the figures of a network and its paper or library, or the reason why it cannot be built."""
    entry = find_entry(name)
    if entry.timm and find_spec("timm") is None:
        return [*["-"] * 3, escape('pip install "compress[timm]" first')]
    size = options.image_size
    try:
        with torch.device("meta"):  # shapes without values: no weight is drawn, nothing is multiplied
            network = build(
                Architecture(name, stem, _COLOURS, options.classes, size, anchors_for(name, _ANCHORS))
            ).eval()
            parameters, macs = count_cost(network, (_COLOURS, size, size))
    except Exception:  # a library's network may only take other image sizes, and not each is a backbone
        if name in ZOO:
            raise
        return [*["-"] * 3, "not a backbone" if is_detector(name) else f"not at {size} pixels"]
    return [count_text(parameters), count_text(macs), size_text(int8_bytes(network)), entry.paper]


def int8_bytes(network: nn.Module) -> int:
    """Returns the bytes of the numbers in the int8 file of `network`, with batch norm folded and no filter removed."""
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    folded = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    weights, filters = (sum(sizes) for sizes in zip(*((m.weight.numel(), len(m.weight)) for m in layers), strict=True))
    inside = {parameter for module in (*layers, *folded) for parameter in module.parameters()}
    floats = sum(parameter.numel() for parameter in network.parameters() if parameter not in inside)
    return weights + _BYTES_A_FILTER * filters + 4 * floats


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m compress models", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="names or patterns: resnet*, torchvision/*, timm/*edge*"
    )
    parser.add_argument("--image-size", type=int, default=32, help="pixels a side (%(default)s)")
    parser.add_argument("--classes", type=int, default=10, help="%(default)s")
    return parser.parse_args(arguments)
