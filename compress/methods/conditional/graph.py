"""The ends of a captured network with exits: reads them from its graph, in which images are already selected."""

from collections.abc import Sequence

from torch import Tensor, fx, nn
from torch.fx import GraphModule, Node

from compress.models.graph.aten_patterns import result_values


class GraphEnds(nn.Module):
    """A captured network with exits, float, prepared or int8, that returns what `EarlyExitNetwork` does.

    It shares all layers and tensors with `module`, the captured one.
    """

    def __init__(self, module: GraphModule):
        super().__init__()
        graph = fx.Graph()
        copies: dict[Node, Node] = {}
        graph.graph_copy(module.graph, copies)
        (result,) = (node for node in module.graph.nodes if node.op == "output")
        graph.output(tuple(copies[node] for node in (*result_values(module.graph), *result.all_input_nodes)))
        self.module = GraphModule(module, graph)

    def ends(self, images: Tensor) -> Sequence[Tensor]:
        """Returns the logits (N, K) of each exit, in order, and last those of the end."""
        return self.module(images)[:-1]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Returns the chosen logits in eval mode, and those of all ends in train mode."""
        *ends, chosen = self.module(images)
        return tuple(ends) if self.training else chosen
