"""Compensates for the rounding of a calibrated network, layer by layer from input to output."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from compress.methods.quantization.adaround import learn_rounding, sample
from compress.methods.quantization.pt2e import require_ranges
from compress.methods.quantization.simulation import SimulatedLayer, simulate
from compress.models.graph.aten_patterns import CONVOLUTIONS, LINEARS, is_call, layer_name, own_parameter


@dataclass
class Correction:
    """The result of `correct`, by the names of the layers."""

    # {layer: [before, after]}: squared error of its output as a share of its square, after corrected layers
    errors: dict[str, list[float]] = field(default_factory=dict)
    left_out: list[dict[str, str]] = field(default_factory=list)  # {layer, reason}


@torch.no_grad()
def correct(
    prepared: GraphModule, images: list[Tensor], rounding_steps: int, correct_bias: bool, seed: int
) -> Correction:
    """Corrects, in place, the weights and biases of a network on which `calibrate` has run.

    `images` are chunks (N, C, H, W). With `rounding_steps` above 0 each weight is moved to one of the two values of
    its grid around it (AdaRound, Nagel et al. 2020, arXiv:2004.10568). With `correct_bias` each bias absorbs the mean
    error of its channel (Nagel et al. 2019, arXiv:1906.04721, section 4.2, on images instead of batch-norm statistics).
    A layer reads the quantized network's input, and its target is the float network's output. Where a residual sum
    follows, the target is the float sum, so that a layer also corrects the shortcut. Ranges stay, so that `convert`
    rounds to the grid that was used here. Raises ValueError where a tensor was never observed.
    """
    require_ranges(prepared)
    pair, correction = simulate(prepared, images), Correction()
    generator = torch.Generator().manual_seed(seed)
    for node in prepared.graph.nodes:
        if is_call(node, CONVOLUTIONS | LINEARS) and own_parameter(node, "weight") is None:
            correction.left_out.append(
                {"layer": layer_name(node), "reason": "not corrected: its weight is computed or shared"}
            )
        elif is_call(node, CONVOLUTIONS | LINEARS):
            layer = SimulatedLayer.at(node, pair)
            before = layer.error()
            if rounding_steps:
                samples = sample(layer, generator)
                layer.change("weight", learn_rounding(samples, layer.parameter("weight"), layer.grid(), rounding_steps))
            if correct_bias and own_parameter(node, "bias") is None:
                correction.left_out.append(
                    {"layer": layer_name(node), "reason": "bias not corrected: it has none of its own"}
                )
            elif correct_bias:
                layer.change("bias", layer.parameter("bias") + _mean_error(layer))
            correction.errors[layer_name(node)] = [before, layer.error()]
        pair.step(node)
    for name, parameter in prepared.named_parameters():
        parameter.copy_(pair.network.get_parameter(name))
    return correction


def _mean_error(layer: SimulatedLayer) -> Tensor:
    """Returns (C,): the float sums minus the quantized ones, as a mean over images and positions."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for value, reference in zip(layer.sums(False), layer.sums(True), strict=True):
        total = total + (reference - value).double().transpose(0, 1).flatten(1).sum(1)
        count += reference.numel() // reference.shape[1]
    return (total / count).float()
