"""Traces the calls of a network in eval mode, as far as they do not depend on values."""

import contextlib
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

_INPLACE_OPERATORS = {getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv", "floordiv", "pow")}

# Subclasses of these read their own width, which a trace would record as a number.
_SIZED = (nn.Conv2d, nn.Linear, nn.LayerNorm)


class _Tracer(fx.Tracer):
    """Keeps a module whose forward pass branches on values as one node."""

    module_stack: OrderedDict[str, Any]  # fx keeps here which modules are being called

    def __init__(self, image: Tensor | None):
        super().__init__()
        self._image = image
        self._values: dict[fx.Node, Any] = {}

    def create_node(self, kind: str, *arguments: Any, **options: Any) -> fx.Node:
        """Creates a node as fx does, and keeps its value for the image, which decides branches on shapes."""
        node = super().create_node(kind, *arguments, **options)
        if self._image is not None and all(source in self._values for source in node.all_input_nodes):
            with contextlib.suppress(Exception), _untraced_modules():  # a node that fails has no value
                self._values[node] = self._image if kind == "placeholder" else call_node(node, self.root, self._values)
        return node

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decides a branch on shapes, which all images share; a branch on an image's values cannot be traced."""
        value = self._values.get(obj.node)
        return bool(value) if isinstance(value, (bool, int, float)) else super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[fx.Proxy]:
        """Iterates over a sequence, which has equally many parts for every image."""
        value = self._values.get(obj.node)
        return iter([obj[at] for at in range(len(value))]) if isinstance(value, (tuple, list)) else super().iter(obj)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node: torch's own modules, and layers whose class is the user's or timm's."""
        return isinstance(m, _SIZED) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        around, known = self.module_stack.copy(), set(self.graph.nodes)
        try:
            value = super().call_module(m, forward, args, kwargs)
            self._refuse_lost_writes(m, known, value)
            return value
        except Exception:  # each kind of branch has an error of its own, and some are the user's
            self.module_stack = around
            for node in reversed([node for node in self.graph.nodes if node not in known]):
                if node.op != "get_attr":  # the tracer keeps those for the next reader
                    self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def _refuse_lost_writes(self, m: nn.Module, known: set[fx.Node], value: Any) -> None:
        """Raises TraceError where a value changes in place and is read by its old name: a graph cannot express it."""
        order = {node: position for position, node in enumerate(self.graph.nodes)}
        returned = {leaf.node for leaf in tree_leaves(value) if isinstance(leaf, fx.Proxy)}
        for node in order:
            if node in known or not node.args or not isinstance(node.args[0], fx.Node) or not self._writes(node):
                continue
            read_later = any(order[user] > order[node] for user in node.args[0].users)
            if read_later or node.args[0] in returned or (not node.users and node not in returned):
                raise fx.proxy.TraceError(f"{type(m).__name__} changes {node.args[0]} in place and reads it again")

    def _writes(self, node: fx.Node) -> bool:
        """Whether a call changes its first argument."""
        if node.op == "call_module":
            return bool(getattr(self.root.get_submodule(node.target), "inplace", False))
        return writes_in_place(node)


@contextlib.contextmanager
def _untraced_modules() -> Iterator[None]:
    """Lets modules compute values in a block during a trace, in which fx turns every call of a module into a node."""
    patched = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _symbolic_trace._orig_module_call, _symbolic_trace._orig_module_getattr
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = patched


def writes_in_place(node: fx.Node) -> bool:
    """Whether a call of a function or a method changes its first argument."""
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    if node.op != "call_function":
        return False
    if node.target in _INPLACE_OPERATORS or node.kwargs.get("inplace"):
        return True
    known = getattr(node.target, "__code__", None)
    names = known.co_varnames[: known.co_argcount] if known else ()
    return "inplace" in names[: len(node.args)] and bool(node.args[names.index("inplace")])


class _Constant:
    """A function that returns a tensor which a forward pass creates without its input."""

    def __init__(self, value: Tensor):
        self._value = value
        self.__name__ = "constant"

    def __call__(self) -> Tensor:
        return self._value


@contextlib.contextmanager
def _attributes_kept(network: nn.Module) -> Iterator[None]:
    """Restores modules' attributes after a block: a trace stores proxies in them, in a cache for example."""
    before = [(module, dict(vars(module))) for module in network.modules()]
    containers = [value for _, held in before for value in held.values() if type(value) in (dict, list)]
    contents = [(value, value.copy()) for value in containers]
    try:
        yield
    finally:
        for module, held in before:
            vars(module).clear()
            vars(module).update(held)
        for value, content in contents:
            value.clear()
            value.update(content) if isinstance(value, dict) else value.extend(content)


@torch.no_grad()
def trace(network: nn.Module, image: Tensor | None = None) -> fx.Graph:
    """Traces the calls of `network` in eval mode, as deep as possible.

    An `image` (1, C, H, W) decides branches on shapes.
    """
    whole = nn.Sequential()  # so that the network itself is a module that can become one node
    whole.network = network
    with _attributes_kept(network):
        graph = _Tracer(image).trace(whole)
    for node in graph.nodes:
        if node.op == "get_attr" and not node.target.startswith(
            "network"
        ):  # fx gave `whole` a tensor that is no buffer
            node.op, node.target = "call_function", _Constant(getattr(whole, node.target))
        if node.op in ("call_module", "get_attr"):
            node.target = node.target.removeprefix("network").removeprefix(".")
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return graph


def only_user(node: fx.Node) -> fx.Node | None:
    """Returns the only node that reads `node`; None where there are several or none."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def read_argument(node: fx.Node, at: int, name: str) -> fx.Node | None:
    """Returns the node that is the argument of `node` at position `at`, or under `name`."""
    value = node.args[at] if len(node.args) > at else node.kwargs.get(name)
    return value if isinstance(value, fx.Node) else None


def batch_norm_at(network: nn.Module, node: fx.Node | None) -> str | None:
    """Returns the name of the batch norm that `node` calls, as a module or inside timm's one with an activation."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_module":
        name = node.target
    elif node.target is F.batch_norm and (statistics := read_argument(node, 1, "running_mean")) is not None:
        name = statistics.target.rpartition(".")[0]
    else:
        return None
    return name if isinstance(network.get_submodule(name), nn.BatchNorm2d) else None


def call_node(node: fx.Node, root: nn.Module, inputs: dict[fx.Node, Tensor]) -> Tensor:
    """Computes `node` from the values of its inputs, with `root`'s modules and parameters, never in place."""
    arguments = fx.map_arg(node.args, inputs.__getitem__)
    options = fx.map_arg(node.kwargs, inputs.__getitem__)
    if writes_in_place(node) and arguments and isinstance(arguments[0], Tensor):
        arguments = (arguments[0].clone(), *arguments[1:])  # the value may have other readers
    if node.op == "call_module":
        return root.get_submodule(node.target)(*arguments, **options)
    if node.op == "call_method":
        return getattr(arguments[0], node.target)(*arguments[1:], **options)
    if node.op == "get_attr":
        return operator.attrgetter(node.target)(root)
    if node.op == "output":
        return arguments[0]
    return node.target(*arguments, **options)
