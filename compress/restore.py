"""A stage's folder -> the network it holds, rebuilt from model.json and model.safetensors alone."""

from pathlib import Path

import torch
from torch import nn

from compress.artifact import Artifact, Spec, read_model
from compress.models import Architecture, build
from compress.models.widths import set_widths
from compress.quantization.float_layers import keep_float
from compress.quantization.pt2e import convert, prepare, without_rounding


def restore(folder: Path, device: torch.device) -> Artifact:
    """The artifact of a whole stage, in eval mode on `device`."""
    spec, tensors = read_model(folder)
    network = _loaded(spec, tensors)
    if spec.quantization is not None:
        network = convert(network)
    return Artifact(network.to(device, memory_format=torch.channels_last), spec)


def restore_float(folder: Path) -> nn.Module:
    """The float network of a whole stage, in eval mode; of a quantized stage the weights that were to be rounded."""
    spec, tensors = read_model(folder)
    network = _loaded(spec, tensors)
    return network if spec.quantization is None else without_rounding(network)


def float_network(spec: Spec) -> nn.Module:
    """The network before quantization, in eval mode, with its pruned widths and fresh weights."""
    network = build(Architecture(**spec.architecture)).eval()
    set_widths(network, spec.widths)
    return network


def _loaded(spec: Spec, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """The network that has these tensors: of a quantized stage the one prepared for it."""
    network, settings = float_network(spec), spec.quantization
    if settings is not None:
        example = torch.zeros(1, *spec.input["shape"])
        network = prepare(network, example, settings["weight_bits"], settings["mode"] == "qat", settings["calibration"])
        keep_float(network, settings["float_layers"])
    network.load_state_dict(tensors)
    return network
