"""Recommends a setting where int8 loses accuracy, from the ranges of the channels."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compress.config.stage_settings import QuantizeConfig
from compress.methods.quantization.equalization import find_reader
from compress.models.graph.aten_patterns import CONVOLUTIONS, LINEARS, is_call, layer_name
from compress.models.graph.batch_norm import lift_modules, lower_conv_batch_norm
from compress.models.graph.capture import capture

_WIDE = 16  # times the median range: an ordinary channel then has 16 of the 256 steps


@dataclass(frozen=True)
class AccuracyDrop:
    """Points of the validation metric that int8 loses, with the 95 % interval."""

    points: float
    low: float
    high: float
    images: int
    metric: str  # as a report calls it, "top-1" for instance


@dataclass(frozen=True)
class Spread:
    """A layer whose output channel with the largest range decides the scale of all channels."""

    layer: str
    times: float  # largest magnitude of that channel, over the median of all channels
    can_be_equalized: bool


@torch.no_grad()
def widest_spread(network: nn.Module, images: Tensor) -> Spread | None:
    """Returns the layer of a float network whose output channels differ most in range on `images` (N, C, H, W)."""
    module = capture(network.cpu(), images[:1])
    lift_modules(module)
    lower_conv_batch_norm(module)
    ranges = _Ranges(module)
    ranges.run(images)
    if not ranges.ratios:
        return None
    node, times = max(ranges.ratios.items(), key=lambda item: item[1])
    return Spread(layer_name(node), times, isinstance(find_reader(node), fx.Node))


def advise(network: nn.Module, images: Tensor, config: QuantizeConfig, drop: AccuracyDrop) -> str:
    """Returns a sentence: the accuracy that int8 lost against the float `network`, a likely cause, and what to set."""
    lost = (
        f"int8 lost {drop.points:.2f} points of validation {drop.metric} against the float network "
        f"(95 % interval {drop.low:.2f} to {drop.high:.2f}, {drop.images} images)"
    )
    spread = widest_spread(network, images)
    wide = spread is not None and spread.times >= _WIDE
    cause = (
        f"; the widest channel of {spread.layer} reaches {spread.times:.0f} times as far as its median one"
        if wide
        else ""
    )
    settings = []
    if wide and spread.can_be_equalized and not config.equalize:
        settings.append("quantize.mode=ptq quantize.equalize=true, which evens out the ranges of channels")
    if config.max_drop_points is None:
        settings.append("quantize.max_drop_points=1, which keeps the layers that cost most in float")
    elif config.max_drop_points > 0:
        settings.append("a lower quantize.max_drop_points")
    if not wide and config.mode == "ptq":
        settings.append("quantize.mode=qat, which trains with the rounding")
    if not wide and config.mode == "qat":
        settings.append("more quantize.epochs")
    return f"{lost}{cause}. Try {'; or '.join(settings)}"


class _Ranges(fx.Interpreter):
    """Runs a captured graph, and records for each layer's output the largest channel range over the median one."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.ratios: dict[fx.Node, float] = {}

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if is_call(node, CONVOLUTIONS | LINEARS) and not any(user.op == "output" for user in node.users):
            dimension = 1 if is_call(node, CONVOLUTIONS) else value.ndim - 1
            reach = value.transpose(0, dimension).flatten(1).abs().amax(1)
            median = reach.median()
            if len(reach) > 1 and median > 0:
                self.ratios[node] = (reach.max() / median).item()
        return value
