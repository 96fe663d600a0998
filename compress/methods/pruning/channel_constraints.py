"""Finds where a network counts its channels, which no removed filter may change: splits, shuffles, padding, attention.

torch-pruning follows channels through such operators by guesses: on ShuffleNetV2 it divides by zero, on MobileViT and
on padded shortcuts it returns a network that cannot run. Here its graph ends at every operator that is not known to
pass each channel on unchanged, and the layers on both sides keep their filters.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.methods.pruning.channels import Call, channel_dim, is_elementwise, is_tracked, is_view, tensors_in
from compress.models.widths import has_width

LOGITS = "its outputs are the logits"
_PARAMETER = "a parameter whose width model.json does not hold"
_SHORTCUT = "its channels meet the zero-padded ones of a shortcut, whose number is fixed"

# The operators that read a layer's own parameters: the layer's class, and the dimension of the channels.
_OF_LAYERS = {
    "conv2d": (nn.Conv2d, 1),
    "linear": (nn.Linear, -1),
    "batch_norm": (nn.modules.batchnorm._BatchNorm, 1),
    "group_norm": (nn.GroupNorm, 1),
    "instance_norm": (nn.modules.instancenorm._InstanceNorm, 1),
    "layer_norm": (nn.LayerNorm, -1),
    "prelu": (nn.PReLU, 1),
}
_LAYERS = tuple(kind for kind, _ in _OF_LAYERS.values())

_OF_SHAPES = {  # new tensors that hold nothing of the one that they are made for
    *(f"new_{name}" for name in ("zeros", "ones", "full", "empty", "tensor")),
    *(f"{name}_like" for name in ("zeros", "ones", "full", "empty", "rand", "randn")),
}


@dataclass
class TracedModel:
    """A network for torch-pruning, which calls `forward(model, example)` and must prune no group with a barrier."""

    model: nn.ModuleDict  # "network" and "barriers"
    forward: Callable[[nn.Module, Tensor], list[Tensor]]
    barriers: dict[nn.Module, str]  # -> why no channel that meets it can be removed
    called: set[nn.Module]  # the layers that the network runs


def trace_channels(network: nn.Module, example: Tensor) -> TracedModel:
    """Runs `network` once in eval mode, and finds its barriers; `example` is (1, C, H, W).

    Its parameters must require gradients, by which torch-pruning follows the channels.
    """
    network.eval()
    barriers: list[tuple[str | None, nn.Module]] = []
    fixed = _unrecorded(network) | _tied(network)
    called: set[nn.Module] = set()

    def forward(model: nn.Module, example: Tensor) -> list[Tensor]:
        cuts = _BarrierMode(barriers, fixed)
        with torch.enable_grad(), cuts, cuts.owners(network, called):
            outputs = model["network"](example)
        for output in _leaves(outputs):
            cuts.end(LOGITS, output)
        return cuts.ends  # from which torch-pruning walks backwards

    model = nn.ModuleDict({"network": network})
    forward(model, example)
    model["barriers"] = nn.ModuleList(barrier for _, barrier in barriers)
    reasons = {barrier: reason for reason, barrier in barriers if reason}
    return TracedModel(model, forward, reasons | fixed, called)


@contextlib.contextmanager
def requiring_gradients(network: nn.Module) -> Iterator[None]:
    """Lets all parameters require gradients in a block, and freezes those that did not again, by name."""
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    for name in frozen:
        parameter = network.get_parameter(name)
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    try:
        yield
    finally:
        for name in frozen:
            network.get_parameter(name).requires_grad_(False)


def _unrecorded(network: nn.Module) -> dict[nn.Module, str]:
    """Returns the layers with parameters that `read_widths` skips: if narrowed, they could not be loaded again."""
    return {
        module: f"its channels pass {type(module).__name__}, whose width model.json does not hold"
        for module in network.modules()
        if not has_width(module)
        and (isinstance(module, _LAYERS) or any(True for _ in module.parameters(recurse=False)))
    }


def _tied(network: nn.Module) -> dict[nn.Module, str]:
    """Returns the layers that share a parameter, with the reason: pruning it in one layer would separate them."""
    owners: dict[int, list[str]] = {}
    for name, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {
        network.get_submodule(name): f"its channels are those of a parameter that {' and '.join(names)} share"
        for names in owners.values()
        if len(names) > 1
        for name in names
    }


def _leaves(outputs: Any) -> list[Tensor]:
    """Returns those tensors among a network's outputs that were computed from parameters."""
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, (tuple, list)):
        return [x for output in outputs for x in _leaves(output)]
    return [outputs] if isinstance(outputs, Tensor) and is_tracked(outputs) else []


def _reason(name: str, operands: list[Tensor], causes: list[str]) -> str:
    """Returns why channels cannot pass an operator; `causes` are the reasons of the cuts before its operands."""
    if name == "pad":
        return _SHORTCUT
    if any(isinstance(x, nn.Parameter) for x in operands) or any(_PARAMETER in cause for cause in causes):
        return f"its channels pass {name} with {_PARAMETER}"
    if any(not is_tracked(x) and x.numel() > 1 for x in operands):
        return f"its channels pass {name} with a tensor of fixed width"
    if is_elementwise(name):
        return next(iter(causes), f"its channels pass {name}, where they meet channels in another dimension")
    return f"its channels pass {name}, which counts on their number"


def _name_of(function: Callable) -> str:
    name = getattr(function, "__name__", "operator")
    if name == "__get__":  # an attribute such as x.data
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    return name.strip("_")


class _BarrierMode(TorchFunctionMode):
    """Puts a barrier before and after each operator that counts channels, and cuts the gradient between them."""

    def __init__(self, barriers: list[tuple[str | None, nn.Module]], fixed: dict[nn.Module, str]):
        super().__init__()
        self.ends: list[Tensor] = []
        self._barriers, self._used = barriers, 0
        self._fixed = fixed
        self._owners: list[nn.Module] = []
        self._dims: dict[int, int] = {}  # id of a tensor -> the dimension of its channels
        self._reasons: dict[int, str] = {}  # id of a result that was cut -> the reason
        self._causes: dict[int, str] = {}  # id of a tensor -> the reason of the cut before its channels
        self._held: list[Tensor] = []  # these tensors, so that no other tensor gets one of their ids

    @contextlib.contextmanager
    def owners(self, network: nn.Module, called: set[nn.Module]) -> Iterator[None]:
        """Keeps the running layer at the end of `_owners` in a block, and adds the layers that ran to `called`."""

        def enter(module: nn.Module, _: Any) -> None:
            self._owners.append(module)
            called.add(module)

        def leave(module: nn.Module, _: Any, output: Any) -> None:
            self._owners.pop()
            if isinstance(output, Tensor) and id(output) in self._reasons:  # its barrier stands for it in the graph
                self._fixed.setdefault(module, self._reasons[id(output)])

        layers = [module for module in network.modules() if isinstance(module, _LAYERS)]
        hooks = [hook for layer in layers for hook in (_first_hook(layer, enter), layer.register_forward_hook(leave))]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        changes_parameter = bool(args) and isinstance(args[0], nn.Parameter)  # only where gradients are off
        with contextlib.nullcontext() if changes_parameter else torch.enable_grad():
            return self._follow(_name_of(function), function, args, kwargs or {})

    def _follow(self, name: str, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        if name in ("detach", "data") and is_tracked(args[0]):
            return args[0]  # the channels go on although the gradients end
        if name in _OF_LAYERS and self._uses_own_parameters(name, args, kwargs):
            return self._run_layer(name, function, args, kwargs)
        value = function(*args, **kwargs)
        operands = tensors_in([*args, *kwargs.values()])
        results = operands if name == "setitem" else tensors_in(value)
        if not results or name in _OF_SHAPES or not any(is_tracked(x) for x in [*operands, *results]):
            return value
        causes = [self._causes[id(x)] for x in operands if id(x) in self._causes]
        dim = channel_dim(Call(name, args, kwargs, value, self._dim_of))
        if dim is None:
            computed = self._fixed.get(self._owners[-1]) if name in _OF_LAYERS and self._owners else None
            outside = f"its channels pass {name} with a weight that is read outside of its layer"
            reason = computed or (outside if name in _OF_LAYERS else _reason(name, operands, causes))
            return self._cut(reason, operands, value)
        if is_view(name):
            value = self._view_between_barriers(function, args, kwargs, dim)
        self._note(value, dim, next(iter(causes), None))
        return value

    def _cut(self, reason: str, operands: list[Tensor], value: Any) -> Any:
        for tensor in operands:
            if is_tracked(tensor):
                self.end(reason, tensor)
        if value is None or isinstance(value, Tensor):
            return value if value is None else self._begin(reason, value)
        parts = [self._begin(reason, x) if isinstance(x, Tensor) else x for x in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)

    def end(self, reason: str, x: Tensor) -> None:
        """Adds a barrier for the layers that compute the channels of `x`."""
        x = torch.view_as_real(x) if x.is_complex() else x
        self.ends.append(self._add_barrier(reason, x if x.ndim > 1 else x.reshape(1, -1), self._dim_of(x)))

    def _begin(self, reason: str, x: Tensor) -> Tensor:
        """Adds a barrier for the layers that read `x`, where a new graph starts."""
        if not x.is_floating_point():
            return x.detach().requires_grad_().clone() if x.is_complex() else x
        x = x.detach().requires_grad_().clone()  # no leaf: it may be changed in place
        if x.ndim > 1:
            x = self._add_barrier(reason, x, None)
            self._reasons[id(x)] = reason
            self._note(x, _usual_dim(x), reason)
        return x

    def _add_barrier(self, reason: str | None, x: Tensor, dim: int | None) -> Tensor:
        """Runs `x` through the next barrier, or a new one: a layer without effect that torch-pruning knows."""
        if self._used == len(self._barriers):
            dim = _usual_dim(x) if dim is None else dim
            norms = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
            of_planes = dim == 1 and x.ndim in norms
            # It has no parameters, which torch-pruning would count when it ranks channels.
            barrier = norms[x.ndim](x.shape[1], affine=False) if of_planes else nn.LayerNorm(x.shape[-1], 1e-5, False)
            self._barriers.append((reason, barrier.to(x.device, x.dtype).eval()))
        _, barrier = self._barriers[self._used]
        self._used += 1
        return barrier(x)

    def _note(self, x: Tensor, dim: int, cause: str | None) -> None:
        self._held.append(x)
        self._dims[id(x)] = dim
        if cause:
            self._causes[id(x)] = cause

    def _dim_of(self, x: Tensor) -> int | None:
        return self._dims.get(id(x))

    def _uses_own_parameters(self, name: str, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether the running layer calls its operator with its own parameters; otherwise the layer is not pruned."""
        kind, _ = _OF_LAYERS[name]
        if not self._owners or not isinstance(self._owners[-1], kind):
            return False
        owner = self._owners[-1]
        own = {id(x) for x in [*owner.parameters(recurse=False), *owner.buffers(recurse=False)]}
        operands = tensors_in([*args, *kwargs.values()])
        source = args[0] if args else kwargs.get("input")
        if any(x is not source and id(x) not in own for x in operands):
            self._fixed[owner] = _computed_reason(owner)
            return False
        return True

    def _run_layer(self, name: str, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Returns the layer's result; cuts the graph before it where the channels are in another dimension."""
        x = args[0] if args else kwargs["input"]
        dim = _OF_LAYERS[name][1] % x.ndim
        if name == "prelu" and self._owners[-1].num_parameters == 1 and self._dim_of(x) is not None:
            dim = self._dim_of(x)
        if is_tracked(x) and self._dim_of(x) != dim:
            reason = self._causes.get(id(x), f"its channels are not in the dimension that {name} reads")
            self.end(reason, x)
            x = self._add_barrier(reason, x.detach().requires_grad_(), dim)
            args, kwargs = ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})
        value = function(*args, **kwargs)
        self._note(value, dim, None)
        return value

    def _view_between_barriers(self, function: Callable, args: tuple, kwargs: dict[str, Any], dim: int) -> Tensor:
        """Puts a view between two barriers: torch-pruning infers from them how the view changes the width."""
        x = args[0] if args else kwargs["input"]
        x = self._add_barrier(None, x, self._dim_of(x))
        value = function(x, *args[1:], **kwargs) if args else function(**{**kwargs, "input": x})
        return self._add_barrier(None, value, dim)


def _first_hook(layer: nn.Module, hook: Callable) -> Any:
    return layer.register_forward_pre_hook(hook, prepend=True)


def _usual_dim(x: Tensor) -> int:
    return 1 if x.ndim in (2, 4) else x.ndim - 1


def _computed_reason(layer: nn.Module) -> str:
    """Returns why a layer whose forward pass computes its weight cannot lose channels, and what computes it."""
    how = [type(part).__name__ for parts in getattr(layer, "parametrizations", {}).values() for part in parts]
    how += [type(hook).__name__ for hook in layer._forward_pre_hooks.values() if hasattr(hook, "compute_weight")]
    by = f" ({', '.join(how)}; torch.nn.utils can remove it and leave the weight)" if how else ""
    return f"its channels meet {type(layer).__name__}, whose weight is computed from other parameters{by}"
