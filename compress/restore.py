"""A stage's folder -> the network it holds, rebuilt from model.json and model.safetensors alone."""

from pathlib import Path

import torch
from torch import nn

from compress.artifact import Artifact, Spec, read_model
from compress.models import Architecture, build
from compress.models.widths import set_widths
from compress.quantization.float_layers import keep_float
from compress.quantization.pt2e import convert, prepare


def restore(folder: Path, device: torch.device) -> Artifact:
    """The artifact of a whole stage, in eval mode on `device`."""
    spec, tensors = read_model(folder)
    network = float_network(spec)
    if spec.quantization is None:
        network.load_state_dict(tensors)
    else:
        settings = spec.quantization
        example = torch.zeros(1, *spec.input["shape"])
        prepared = prepare(
            network, example, settings["weight_bits"], settings["mode"] == "qat", settings["calibration"]
        )
        keep_float(prepared, settings["float_layers"])
        prepared.load_state_dict(tensors)
        network = convert(prepared)
    return Artifact(network.to(device, memory_format=torch.channels_last), spec)


def float_network(spec: Spec) -> nn.Module:
    """The network before quantization, in eval mode, with its pruned widths and fresh weights."""
    network = build(Architecture(**spec.architecture)).eval()
    set_widths(network, spec.widths)
    return network
