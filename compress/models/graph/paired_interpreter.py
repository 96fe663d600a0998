"""Evaluates two networks of one graph on the same images, node by node, so that layers can change on the way."""

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, fx, nn

from compress.models.graph.residual_blocks import ResidualBlock
from compress.models.graph.tracing import call_node


class PairedInterpreter:
    """A network that is being changed, and its original as the reference.

    Each value is kept until its last reader has run. `images` is a list of (N, C, H, W). Call `step` on each node in
    turn; the layer that a node calls may change until then. `known` are values of the original that were computed
    before, from which others are computed where they are asked for; at nodes in `unchanged` both networks agree.
    `without` are blocks of the original in whose place the network passes their input on.
    """

    def __init__(
        self,
        graph: fx.Graph,
        network: nn.Module,
        original: nn.Module,
        images: list[Tensor],
        known: Mapping[fx.Node, list[Tensor]] | None = None,
        unchanged: Collection[fx.Node] = (),
        without: Iterable[ResidualBlock] = (),
    ):
        self.network, self.original, self.images = network, original, images
        self._known = known or {}
        self._values: dict[tuple[bool, fx.Node], dict[int, Tensor]] = {}
        self._order = {node: position for position, node in enumerate(graph.nodes)}
        self._last_use = {node: max((self._order[user] for user in node.users), default=-1) for node in graph.nodes}
        self.passed_on = {block.end: block.source for block in without}
        for end, source in self.passed_on.items():
            self._last_use[source] = max(self._last_use[source], self._order[end])
        self.left_out = {node for block in without for node in block.nodes}
        self._constants: set[fx.Node] = set()
        for node in graph.nodes:
            if node.op != "placeholder" and self._constants.issuperset(node.all_input_nodes):
                self._constants.add(node)
        self._unchanged = set(unchanged) - self._constants  # a layer that is refitted sets those of the norm after it

    def values(self, node: fx.Node) -> list[Tensor]:
        """Returns the changed network's value at `node`, a tensor for each chunk of images."""
        return [self._value(False, node, at) for at in range(len(self.images))]

    def reference_values(self, node: fx.Node) -> list[Tensor]:
        """Returns the original's value at `node`, a tensor for each chunk of images."""
        return [self._value(True, node, at) for at in range(len(self.images))]

    def is_final(self, node: fx.Node, now: fx.Node) -> bool:
        """Whether the value at `node` is final when `now` runs: it depends on no parameter that is read later."""
        if self._order[node] < self._order[now]:
            return node not in self._constants
        module = self.network.get_submodule(node.target) if node.op == "call_module" else None
        if node in self._constants or (module is not None and any(True for _ in module.parameters())):
            return False
        return all(self.is_final(source, now) for source in node.all_input_nodes)

    def invalidate(self, node: fx.Node) -> None:
        """Drops the changed network's value at `node` and the weights that it reads, because they have changed."""
        for stale in [node, *self._constants.intersection(node.all_input_nodes)]:
            self._values.pop((False, stale), None)

    def step(self, node: fx.Node) -> None:
        """Evaluates `node` in both networks, and frees the values that no later node reads."""
        if node in self._constants:  # weights are read when their layer runs: until then they may change
            return
        now = self._order[node]
        read = [node, *node.all_input_nodes, *([self.passed_on[node]] if node in self.passed_on else [])]
        spent = [source for source in read if self._last_use[source] <= now]
        for at in range(len(self.images)):  # chunk by chunk, so that input and output are never both whole
            for reference in (False, True):
                known = self._known and (reference or node in self._unchanged)
                skipped = not reference and node in self.left_out and node not in self.passed_on
                if not known and not skipped:
                    self._value(reference, node, at)
                for source in spent:
                    self._values.get((reference, source), {}).pop(at, None)

    def _value(self, reference: bool, node: fx.Node, at: int) -> Tensor:
        if node in self._known and (reference or node in self._unchanged):
            return self._known[node][at]
        reference = reference or node in self._unchanged
        at = 0 if node in self._constants else at
        values = self._values.setdefault((reference, node), {})
        if at not in values:
            if node.op == "placeholder":
                values[at] = self.images[at]
            elif not reference and node in self.passed_on:
                values[at] = self._value(False, self.passed_on[node], at)
            else:
                inputs = {source: self._value(reference, source, at) for source in node.all_input_nodes}
                values[at] = call_node(node, self.original if reference else self.network, inputs)
        return values[at]
