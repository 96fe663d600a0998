"""Evaluates two networks of one graph on the same images, node by node, so that layers can be changed on the way."""

from torch import Tensor, fx, nn

from compress.models.graph.tracing import call_node


class PairedInterpreter:
    """A network that is being changed and its original; a node's value is kept until its last reader has run.

    `images` is a list of (N, C, H, W). Call `advance` on each node in turn; a layer may change until then.
    """

    def __init__(self, graph: fx.Graph, network: nn.Module, original: nn.Module, images: list[Tensor]):
        self.network, self.original, self.images = network, original, images
        self._values: dict[tuple[bool, fx.Node], dict[int, Tensor]] = {}
        self._order = {node: position for position, node in enumerate(graph.nodes)}
        self._last_use = {node: max((self._order[user] for user in node.users), default=-1) for node in graph.nodes}
        self._constants: set[fx.Node] = set()
        for node in graph.nodes:
            if node.op != "placeholder" and self._constants.issuperset(node.all_input_nodes):
                self._constants.add(node)

    def new(self, node: fx.Node) -> list[Tensor]:
        """The changed network's value at `node`, a tensor a chunk of images."""
        return [self._value(False, node, at) for at in range(len(self.images))]

    def old(self, node: fx.Node) -> list[Tensor]:
        """The original's value at `node`."""
        return [self._value(True, node, at) for at in range(len(self.images))]

    def is_settled(self, node: fx.Node, now: fx.Node) -> bool:
        """Whether the value at `node` is final at the turn of `now`: no parameter that is read later goes into it."""
        if self._order[node] < self._order[now]:
            return node not in self._constants
        module = self.network.get_submodule(node.target) if node.op == "call_module" else None
        if node in self._constants or (module is not None and any(True for _ in module.parameters())):
            return False
        return all(self.is_settled(source, now) for source in node.all_input_nodes)

    def forget(self, node: fx.Node) -> None:
        """Drops the changed network's value at `node`, and of the weights it reads: they have changed."""
        for stale in [node, *self._constants.intersection(node.all_input_nodes)]:
            self._values.pop((False, stale), None)

    def advance(self, node: fx.Node) -> None:
        """Evaluates `node` in both networks, and frees what no later node reads."""
        if node in self._constants:  # weights are read when their layer is: until then it may change
            return
        now = self._order[node]
        spent = [source for source in [node, *node.all_input_nodes] if self._last_use[source] <= now]
        for at in range(len(self.images)):  # chunk by chunk, so that input and output are never both whole
            for old in (False, True):
                self._value(old, node, at)
                for source in spent:
                    self._values.get((old, source), {}).pop(at, None)

    def _value(self, old: bool, node: fx.Node, at: int) -> Tensor:
        at = 0 if node in self._constants else at
        values = self._values.setdefault((old, node), {})
        if at not in values:
            if node.op == "placeholder":
                values[at] = self.images[at]
            else:
                inputs = {source: self._value(old, source, at) for source in node.all_input_nodes}
                values[at] = call_node(node, self.original if old else self.network, inputs)
        return values[at]
