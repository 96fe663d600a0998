"""Turns a classifier into a backbone: its forward pass ends at the last two feature maps, without the classifier."""

from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from compress.models.initialization import last_defined_layer
from compress.utils.errors import UserError

_LEAF_PACKAGES = ("torch.nn", "torchvision.ops")  # modules that stay whole: some of them act in train mode only


def to_backbone(classifier: nn.Module, example: Tensor, name: str) -> nn.Module:
    """Returns `classifier` without its last layers, from images to the last two feature maps of different sizes.

    The first one is the last tensor of its size, in MobileNets the expansion before the last stride, as the authors of
    SSDlite do (Sandler et al. 2018, section 6.2). `example` is (1, C, H, W). Layers keep their names, so that weights
    of the classifier can be loaded. Raises UserError where the forward pass cannot be traced, or has one size only.
    """
    graph_module = _traced(classifier, name)
    ShapeProp(graph_module).propagate(example)
    last, _ = last_defined_layer(classifier)
    maps: dict[tuple[int, int], fx.Node] = {}
    for node in graph_module.graph.nodes:
        module = graph_module.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.AdaptiveAvgPool2d) or node.target == last:
            break
        shape = getattr(node.meta.get("tensor_meta"), "shape", ())
        if node.op != "placeholder" and len(shape) == 4 and min(shape[2:]) > 1:
            maps[tuple(shape[2:])] = node
    if len(maps) < 2:
        raise UserError(
            f"{name}, with feature maps of {len(maps)} sizes above 1x1 for images of {example.shape[2]} pixels",
            "a classifier with two strides or more",
            "name another backbone, or raise data.image_size",
        )
    _end_at(graph_module, list(maps.values())[-2:])
    return graph_module


def _traced(classifier: nn.Module, name: str) -> fx.GraphModule:
    """Traces `classifier` in eval mode; layers whose output depends on the mode stay modules."""
    training = classifier.training
    try:
        graph = _Tracer().trace(classifier.eval())
    except Exception as error:  # whatever the tracer raises for a forward pass with branches
        raise UserError(
            f"{name} as a backbone: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            "a classifier whose forward pass has no branches that depend on values",
            "name another backbone",
        ) from error
    finally:
        classifier.train(training)
    return fx.GraphModule(classifier, graph)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        kind = type(module).__module__
        return super().is_leaf_module(module, name) or (
            kind.startswith(_LEAF_PACKAGES) and not isinstance(module, nn.Sequential)
        )


def _end_at(graph_module: fx.GraphModule, nodes: list[fx.Node]) -> None:
    """Lets the graph return `nodes` alone, in place, and removes the layers that it no longer calls."""
    graph = graph_module.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    graph.erase_node(output)
    graph.output(tuple(nodes))
    graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
