"""The calls of a network in eval mode, as far as they do not depend on values."""

from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn import functional as F


class _Tracer(fx.Tracer):
    """Where a module's forward pass branches on values it stays one node, and what is inside stays as it is."""

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        around = self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except (fx.proxy.TraceError, TypeError):
            self.module_stack = around
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def trace(network: nn.Module) -> fx.Graph:
    """The calls of `network` in eval mode, as deep as they can be traced."""
    whole = nn.Sequential()  # so that the network itself is a module among others
    whole.network = network
    graph = _Tracer().trace(whole)
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = node.target.removeprefix("network.")
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))  # of blocks that were given up
    return graph


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that alone reads `node`, if one does."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def batch_norm_at(network: nn.Module, node: fx.Node | None) -> str | None:
    """The name of the batch norm that `node` calls: as a module, or inside one of timm's with an activation."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_module":
        name = node.target
    elif node.target is F.batch_norm:
        name = node.args[1].target.rpartition(".")[0]
    else:
        return None
    return name if isinstance(network.get_submodule(name), nn.BatchNorm2d) else None
