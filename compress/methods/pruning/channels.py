"""Finds the dimension of an operator's result that holds the unchanged channels of its operands.

Only operators that torch-pruning reads right are known here. Its graph is cut at all others (`channel_constraints.py`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Names are those of the functions, without underscores.
_ARITHMETIC = {"add", "sub", "mul", "div", "truediv"}
_ELEMENTWISE = {
    *_ARITHMETIC, *(f"{side}{name}" for side in "ri" for name in _ARITHMETIC), "subtract", "multiply", "divide",
    "true_divide", "neg", "negative", "abs", "square", "sqrt", "rsqrt", "reciprocal", "pow", "exp", "log", "erf",
    "relu", "relu6", "leaky_relu", "rrelu", "elu", "selu", "celu", "hardtanh", "hardswish", "hardsigmoid", "silu",
    "mish", "gelu", "sigmoid", "logsigmoid", "log_sigmoid", "tanh", "softplus", "softsign", "tanhshrink", "hardshrink",
    "softshrink", "threshold", "clamp", "clamp_min", "clamp_max", "clip", "maximum", "minimum", "where", "lerp",
    "dropout", "alpha_dropout", "contiguous", "clone", "to", "float",
}  # fmt: skip
_ON_PLANES = {  # each channel by itself, where the channels are the second dimension
    "max_pool2d", "avg_pool2d", "lp_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "dropout2d",
    "feature_dropout", "interpolate", "upsample", "upsample_nearest", "upsample_bilinear",
}  # fmt: skip
_VIEWS = {"flatten", "view", "reshape"}
_CONCATENATIONS = {"cat", "concat", "concatenate"}
_REDUCTIONS = {"mean", "sum", "amax", "amin"}
_MOVES = {"permute", "transpose", "swapaxes", "swapdims"}
_EXPANSIONS = {"expand", "expand_as"}


@dataclass
class Call:
    """An operator, what it was called with, and what it returned."""

    name: str
    args: tuple
    kwargs: dict[str, Any]
    value: Any
    dim_of: Callable[[Tensor], int | None]  # the dimension that holds a tensor's channels, where one is known

    def argument(self, at: int, *names: str, default: Any = None) -> Any:
        """Returns the argument at position `at`, or under one of its names."""
        if len(self.args) > at:
            return self.args[at]
        return next((self.kwargs[name] for name in names if name in self.kwargs), default)

    def listed(self, at: int, name: str) -> list[int]:
        """Returns whole numbers that were passed as a sequence or one by one: x.permute(0, 2, 1)."""
        value = self.argument(at, name)
        return [int(x) for x in (value if isinstance(value, (tuple, list)) else self.args[at:])]

    @property
    def source(self) -> Any:
        """Returns the first operand."""
        return self.argument(0, "input", "self", "x")

    def tensors(self) -> list[Tensor]:
        """Returns the tensors among the arguments, one level deep."""
        return tensors_in([*self.args, *self.kwargs.values()])


def tensors_in(values: Any) -> list[Tensor]:
    """Returns the tensors of a value or of a sequence of values, one level deep."""
    values = values if isinstance(values, (tuple, list)) else [values]
    values = [x for value in values for x in (value if isinstance(value, (tuple, list)) else [value])]
    return [x for x in values if isinstance(x, Tensor)]


def is_tracked(x: Tensor) -> bool:
    """Whether a tensor was computed from parameters: then it may hold channels."""
    return x.grad_fn is not None


def is_view(name: str) -> bool:
    """Whether torch-pruning needs layers around this operator to see the widths."""
    return name in _VIEWS


def is_elementwise(name: str) -> bool:
    """Whether an operator combines the numbers at one place of its operands."""
    return name in _ELEMENTWISE


def channel_dim(call: Call) -> int | None:
    """Returns the dimension of the channels in the result; None where the operator may mix, count or move channels."""
    if not isinstance(call.value, Tensor):
        return None
    if any(isinstance(x, nn.Parameter) and x.numel() > 1 for x in call.tensors()):
        return None  # a parameter outside of layers keeps its shape
    if call.name in _CONCATENATIONS:
        return _of_concatenation(call)
    if call.name in _ELEMENTWISE:
        return _of_elementwise(call)
    x = call.source
    dim = call.dim_of(x) if isinstance(x, Tensor) else None
    if dim is None:
        return None
    rules: dict[str, Callable[[Call, Tensor, int], int | None]] = {
        **dict.fromkeys(_ON_PLANES, _of_planes),
        **dict.fromkeys(_VIEWS, _of_view),
        **dict.fromkeys(_REDUCTIONS, _of_reduction),
        **dict.fromkeys(_MOVES, _of_move),
        **dict.fromkeys(_EXPANSIONS, _of_expansion),
        "squeeze": _of_squeeze,
        "unsqueeze": _of_unsqueeze,
        "pad": _of_padding,
        "getitem": _of_index,
    }
    rule = rules.get(call.name)
    return rule(call, x, dim) if rule else None


def _of_concatenation(call: Call) -> int | None:
    """torch-pruning adds up the widths of all parts, so each has to be known and to have channels in dimension 1."""
    parts, at = call.argument(0, "tensors"), call.argument(1, "dim", "axis", default=0)
    ndim = call.value.ndim
    known = all(call.dim_of(part) == 1 for part in parts)
    return 1 if known and ndim in (2, 4) and isinstance(at, int) and at in (1, 1 - ndim) else None


def _of_elementwise(call: Call) -> int | None:
    """All operands need equally many channels in one dimension, counted from the end as broadcasting does."""
    operands = [x for x in call.tensors() if is_tracked(x)]
    if not operands or any(call.dim_of(x) is None for x in operands):
        return None
    places = {(call.dim_of(x) - x.ndim, x.shape[call.dim_of(x)]) for x in operands}
    if len(places) > 1:
        return None
    place, _ = places.pop()
    constants = [x for x in call.tensors() if not is_tracked(x) and x.ndim >= -place]
    return None if any(x.shape[place] > 1 for x in constants) else place + call.value.ndim


def _of_planes(call: Call, x: Tensor, dim: int) -> int | None:
    return 1 if dim == 1 and x.ndim == 4 else None


def _of_view(call: Call, x: Tensor, dim: int) -> int | None:
    """A view keeps the order of numbers: channels stay apart where no dimension before or after them changes."""
    shape = call.value.shape
    kept_apart = shape[:2] == x.shape[:2] or shape == (x.shape[0], math.prod(x.shape[1:]))
    if dim == 1 and 2 <= len(shape) <= 5 and kept_apart:
        return 1
    if dim == x.ndim - 1 and len(shape) >= 2 and shape[-1] == x.shape[-1]:
        return len(shape) - 1
    return None


def _of_reduction(call: Call, x: Tensor, dim: int) -> int | None:
    dims = call.argument(1, "dim", "axis")
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, (tuple, list)) or not dims:
        return None
    gone = {at % x.ndim for at in dims}
    if dim in gone:
        return None
    return dim if call.value.ndim == x.ndim else dim - sum(at < dim for at in gone)


def _of_move(call: Call, x: Tensor, dim: int) -> int | None:
    if call.name == "permute":
        return [at % x.ndim for at in call.listed(1, "dims")].index(dim)
    pair = [call.argument(1, "dim0", "axis0"), call.argument(2, "dim1", "axis1")]
    if not all(isinstance(at, int) for at in pair):
        return None
    one, other = (at % x.ndim for at in pair)
    return {one: other, other: one}.get(dim, dim)


def _of_expansion(call: Call, x: Tensor, dim: int) -> int | None:
    at = dim + call.value.ndim - x.ndim
    return at if x.shape[dim] > 1 and call.value.shape[at] == x.shape[dim] and call.value.ndim < 5 else None


def _of_squeeze(call: Call, x: Tensor, dim: int) -> int | None:
    at = call.argument(1, "dim")
    if not isinstance(at, int) or at % x.ndim == dim:
        return None
    return dim - (at % x.ndim < dim and call.value.ndim < x.ndim)


def _of_unsqueeze(call: Call, x: Tensor, dim: int) -> int | None:
    at = call.argument(1, "dim")
    return dim + (at % call.value.ndim <= dim) if isinstance(at, int) else None


def _of_padding(call: Call, x: Tensor, dim: int) -> int | None:
    """`pad` has a pair of numbers a dimension, the last dimension first."""
    numbers = call.argument(1, "pad")
    if not isinstance(numbers, (tuple, list)):
        return None
    padded = {x.ndim - 1 - at // 2 for at, number in enumerate(numbers) if number != 0}
    return None if dim in padded else dim


def _of_index(call: Call, x: Tensor, dim: int) -> int | None:
    """Slices and numbers in other dimensions; torch-pruning reads no slices of tensors with 2 or 5 dimensions."""
    parts = call.argument(1)
    parts = parts if isinstance(parts, tuple) else (parts,)
    if parts.count(...) == 1 and not any(isinstance(part, Tensor) for part in parts):
        at = parts.index(...)
        parts = (*parts[:at], *[slice(None)] * (x.ndim - len(parts) + 1), *parts[at + 1 :])
    if not all(isinstance(part, (slice, int)) and not isinstance(part, bool) for part in parts):
        return None
    if len(parts) > dim and parts[dim] != slice(None):
        return None
    if x.ndim not in (3, 4) and any(isinstance(part, slice) and part != slice(None) for part in parts):
        return None
    return dim - sum(isinstance(part, int) for part in parts[:dim])
