"""Finds where a network counts its channels, which no removed filter may change: splits, shuffles, padding, attention.

torch-pruning follows channels through such operators by guesses: on ShuffleNetV2 it divides by zero, on MobileViT and
on padded shortcuts it leaves a network that cannot run. Here its graph ends at every operator that is not known to
hand each channel on as it is, and the layers on both sides keep their filters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.models.widths import RESIZED

# By name, without underscores: each channel of the result comes from the same channel of the operands.
_LAYERS = {"conv2d", "linear", "batch_norm", "layer_norm", "prelu"}  # these may read parameters
_ARITHMETIC = {"add", "sub", "mul", "div", "truediv"}
_ELEMENTWISE = {
    *_ARITHMETIC, *(f"{side}{name}" for side in "ri" for name in _ARITHMETIC), "relu", "relu6", "leaky_relu", "elu",
    "hardtanh", "hardswish", "hardsigmoid", "silu", "mish", "gelu", "sigmoid", "tanh", "clamp", "dropout", "dropout2d",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "contiguous", "clone",
}  # fmt: skip
_FLATTENING = {"flatten", "view", "reshape", "squeeze"}
_CONCATENATIONS = {"cat", "concat", "concatenate"}


_SHORTCUT = "its channels meet the zero-padded ones of a shortcut, whose number is fixed"


@dataclass
class Watched:
    """A network as torch-pruning is to see it: through `forward(model, example)`, and no group with a marker pruned."""

    model: nn.ModuleDict  # the network, as `network`, and the markers
    forward: Callable[[nn.Module, Tensor], list[Tensor]]
    markers: dict[nn.Module, str]  # -> why no channel that meets it can go


def watch(network: nn.Module, example: Tensor) -> Watched:
    """Runs `network`, which it puts into eval mode, once; `example` is (1, C, H, W)."""
    network.eval()
    markers: list[tuple[str, nn.Module]] = []

    def forward(model: nn.Module, example: Tensor) -> list[Tensor]:
        with _Cuts(markers) as cuts:
            logits = model["network"](example)
        return [logits, *cuts.ends]  # torch-pruning looks from these backwards

    model = nn.ModuleDict({"network": network})
    forward(model, example)
    model["markers"] = nn.ModuleList(marker for _, marker in markers)
    reasons = {marker: _reason(name) for name, marker in markers}
    return Watched(model, forward, reasons | _unrecorded(network))


def _unrecorded(network: nn.Module) -> dict[nn.Module, str]:
    """The layers with parameters that `read_widths` passes over: narrower, they could not be loaded again."""
    others = [module for module in network.modules() if not isinstance(module, RESIZED)]
    return {
        module: f"its channels pass {type(module).__name__}, whose width model.json does not hold"
        for module in others
        if any(True for _ in module.parameters(recurse=False))
    }


def _reason(operator: str) -> str:
    return _SHORTCUT if operator == "pad" else f"its channels pass {operator}, which counts on their number"


class _Cuts(TorchFunctionMode):
    """Puts a marker in front of and behind each operator that counts channels, and cuts the gradient between them."""

    def __init__(self, markers: list[tuple[str, nn.Module]]):
        super().__init__()
        self.ends: list[Tensor] = []
        self._markers, self._used = markers, 0

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        value = function(*args, **kwargs)
        results = [value] if isinstance(value, Tensor) else value
        if not isinstance(results, (tuple, list)) or not any(isinstance(x, Tensor) and x.grad_fn for x in results):
            return value
        name = getattr(function, "__name__", "operator").strip("_")
        if _hands_on(name, args, kwargs, value):
            return value
        for tensor in _tensors(args, kwargs):
            if tensor.grad_fn is not None:
                self.ends.append(self._mark(name, tensor))
        results = [self._mark(name, x.detach().requires_grad_()) if isinstance(x, Tensor) else x for x in results]
        return results[0] if isinstance(value, Tensor) else type(value)(results)

    def _mark(self, name: str, x: Tensor) -> Tensor:
        """Runs `x` through a layer that torch-pruning knows and that hands it on: the next one, or a new one."""
        if self._used == len(self._markers):
            marker = nn.BatchNorm2d(x.shape[1]) if x.ndim == 4 else nn.LayerNorm(x.shape[-1])
            self._markers.append((name, marker.to(x.device).eval()))
        _, marker = self._markers[self._used]
        self._used += 1
        return marker(x)


def _hands_on(name: str, args: tuple, kwargs: dict[str, Any], value: Any) -> bool:
    """Whether torch-pruning reads this call right: each channel goes on as it is, or at a known place of a row."""
    if name in _LAYERS:
        return True
    if not isinstance(value, Tensor) or any(isinstance(x, nn.Parameter) for x in _tensors(args, kwargs)):
        return False
    if name in _CONCATENATIONS:
        return value.ndim in (2, 4) and (args[1:] or (kwargs.get("dim", 0),))[0] in (1, 1 - value.ndim)
    x = args[0]
    if name in _ELEMENTWISE:
        return len({_channels(operand) for operand in _tensors(args, kwargs)}) == 1
    if x.ndim != 4:
        return False
    if name in _FLATTENING:
        return value.ndim == 2 and value.shape[1] == x[0].numel()
    if name == "mean":
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        return isinstance(dims, (tuple, list)) and sorted(dim % 4 for dim in dims) == [2, 3]
    if name == "pad":
        return len(args[1]) <= 4
    if name == "getitem":
        return isinstance(args[1], tuple) and len(args[1]) <= 4 and all(part == slice(None) for part in args[1][:2])
    return False


def _channels(x: Tensor) -> int:
    return x.shape[1] if x.ndim == 4 else x.shape[-1]


def _tensors(args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among the arguments, one level deep."""
    values = [*args, *kwargs.values()]
    values = [x for value in values for x in (value if isinstance(value, (tuple, list)) else [value])]
    return [x for x in values if isinstance(x, Tensor)]
