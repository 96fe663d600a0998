"""Rebuilds the network of a stage's folder from model.json and model.safetensors alone."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.methods.dynamic_width.network import rebuild_dynamic_width
from compress.methods.early_exit.network import rebuild_early_exit
from compress.methods.factorization.layers import rebuild_factorized
from compress.models import Architecture, build
from compress.models.artifact import Artifact, Spec, read_model, read_outputs
from compress.models.input_size import set_input_size
from compress.models.outputs import require_recorded_outputs
from compress.models.sub_network import cut_kernels, replace_by_identities
from compress.models.widths import set_widths


def restore(folder: Path, device: torch.device) -> Artifact:
    """Returns the artifact of a finished stage, in eval mode on `device`.

    Raises UserError where its network computes something else than the stage recorded.
    """
    spec, tensors = read_model(folder)
    network = _loaded(spec, tensors)
    if spec.quantization is not None:
        from compress.methods.quantization.pt2e import convert  # imported here because it takes seconds

        network = convert(network)
    _require_same(folder, spec, network)
    return Artifact(network.to(device, memory_format=torch.channels_last), spec)


def restore_float(folder: Path) -> nn.Module:
    """Returns the float network of a finished stage, in eval mode; of a quantized stage the one before rounding.

    Raises UserError as `restore` does.
    """
    spec, tensors = read_model(folder)
    network = _loaded(spec, tensors)
    if spec.quantization is None:
        _require_same(folder, spec, network)
        return network
    from compress.methods.quantization.pt2e import convert, without_rounding  # imported here because it takes seconds

    _require_same(folder, spec, convert(network))
    return without_rounding(network)


def float_network(spec: Spec) -> nn.Module:
    """Builds the network before quantization, in eval mode, with its pruned widths and new weights.

    All parameters require gradients: the stages after the teacher train all of them.
    """
    network = build(Architecture(**spec.architecture)).eval()
    set_widths(network, {})  # a state can then be loaded into buffers that were expanded
    for change in spec.changes:
        if change["method"] != "quantize":
            network = _REBUILD[change["method"]](network, change, spec)
    return network.requires_grad_(True)


def _loaded(spec: Spec, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Builds the network and loads `tensors`; for a quantized stage the network prepared for quantization."""
    network = float_network(spec)
    if spec.quantization is not None:
        network = _REBUILD["quantize"](network, spec.quantization, spec)
    else:
        _untie(network, tensors)
    state = network.state_dict()  # with the versions of its layers, without which some classes refuse to load
    state.clear()
    state.update(tensors)
    network.load_state_dict(state)
    return network


def _rebuild_pruned(network: nn.Module, change: dict[str, Any], spec: Spec) -> nn.Module:
    set_widths(network, change["widths"])
    return network


def _rebuild_factorized(network: nn.Module, change: dict[str, Any], spec: Spec) -> nn.Module:
    return rebuild_factorized(network, change["layers"])


def _rebuild_searched(network: nn.Module, change: dict[str, Any], spec: Spec) -> nn.Module:
    replace_by_identities(network, change["left_out_blocks"])
    cut_kernels(network, change["kernels"])
    set_widths(network, change["widths"])
    return network


def _rebuild_early_exit(network: nn.Module, change: dict[str, Any], spec: Spec) -> nn.Module:
    return rebuild_early_exit(network, change["exits"], len(spec.classes))


def _rebuild_dynamic_width(network: nn.Module, change: dict[str, Any], spec: Spec) -> nn.Module:
    return rebuild_dynamic_width(network, change["channels"])


def _rebuild_resized(network: nn.Module, change: dict[str, Any], spec: Spec) -> nn.Module:
    set_input_size(network, tuple(spec.input["shape"]), tuple(change["size"]))
    return network


def _rebuild_quantized(network: nn.Module, change: dict[str, Any], spec: Spec) -> nn.Module:
    """Inserts observers or fake quantization into the float network, which `convert` then turns into int8."""
    from compress.methods.quantization.mixed_precision import exclude_layers  # imported here because it takes seconds
    from compress.methods.quantization.pt2e import prepare

    example = torch.zeros(1, *spec.input["shape"])
    prepared = prepare(network, example, change["weight_bits"], change["mode"] == "qat", change["calibration"])
    return exclude_layers(prepared, change["float_layers"])


# The method of a change -> the function that repeats it on the network before it, with its record and the spec.
_REBUILD = {
    "prune": _rebuild_pruned,
    "factorize": _rebuild_factorized,
    "search_architecture": _rebuild_searched,
    "early_exit": _rebuild_early_exit,
    "dynamic_width": _rebuild_dynamic_width,
    "resize_input": _rebuild_resized,
    "quantize": _rebuild_quantized,
}


def _untie(network: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copies a parameter that layers share where `tensors` has different values for them, in place."""
    first: dict[int, str] = {}
    for name, value in list(network.named_parameters(remove_duplicate=False)):
        other = first.setdefault(id(value), name)
        if other != name and not torch.equal(tensors[other], tensors[name]):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, nn.Parameter(value.detach().clone()))


def _require_same(folder: Path, spec: Spec, network: nn.Module) -> None:
    recorded = read_outputs(folder)
    if recorded is not None:
        quantized = spec.quantization is not None
        require_recorded_outputs(network, recorded, tuple(spec.input["shape"]), folder, quantized)
