"""Ranks the channels of a network by torch-pruning's measures of importance, under the names that it gives them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning.dependency import Group

from compress.methods.pruning.channel_constraints import requiring_gradients
from compress.methods.pruning.channel_groups import ChannelGroup, PrunableNetwork
from compress.models.layer_calls import LAYERS
from compress.utils.errors import UserError

_measures = torch_pruning.importance
_FROM_WEIGHTS: dict[str, Callable[[], Any]] = {
    "l1": lambda: _measures.GroupMagnitudeImportance(
        p=1
    ),  # Li et al. 2017, over groups as Fang et al. 2023, "DepGraph"
    "l2": lambda: _measures.GroupMagnitudeImportance(p=2),
    "random": _measures.RandomImportance,
    "bn_scale": _measures.BNScaleImportance,  # Liu et al. 2017, "Network slimming"
    "lamp": _measures.LAMPImportance,  # Lee et al. 2021
    "fpgm": lambda: _fpgm_score,  # He et al. 2019, "Filter pruning via geometric median"
}
_SINGLE_IMAGES = 128  # whose squared gradients estimate the curvature: each takes a backward pass of its own


@dataclass
class LabelledImages:
    """The images and targets on which importances are measured, and the loss whose change counts."""

    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]  # -> images (N, C, H, W) and targets, in one order
    loss: Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> a mean over the images


def score_channels(
    prunable: PrunableNetwork, importance: str, images: LabelledImages | None = None
) -> list[Tensor | None]:
    """Returns the score of each channel (channels,) of each group; None for a group that has no score.

    `images` are needed by taylor (Molchanov et al. 2019), hessian (LeCun et al. 1989), obdc (Wang et al. 2019,
    "EigenDamage") and activation. Raises UserError where no group has a score.
    """
    with requiring_gradients(prunable.network):
        measure = _measure(prunable.network, importance, images)
    whole: dict[int, Tensor | None] = {}
    scores: list[Tensor | None] = []
    for group in prunable.groups:
        if id(group.group) not in whole:
            whole[id(group.group)] = _score(measure, group)
        score = whole[id(group.group)]
        scores.append(None if score is None else score[group.places])
    prunable.network.zero_grad(set_to_none=True)
    if prunable.groups and all(score is None for score in scores):
        raise UserError(
            f"prune.importance={importance} for a network in which no layer has what it reads",
            "batch norm with weights for bn_scale",
            "set prune.importance=l1",
        )
    return scores


def _score(measure: Any, group: ChannelGroup) -> Tensor | None:
    """Returns the score of each of torch-pruning's channels; parts of a grouped convolution lose theirs together."""
    with torch.no_grad():
        score = measure(group.group)
    return None if score is None else score.view(group.parts, -1).mean(0).cpu()


def _measure(network: nn.Module, importance: str, images: LabelledImages | None) -> Any:
    if importance in _FROM_WEIGHTS:
        return _FROM_WEIGHTS[importance]()
    if images is None:
        raise ValueError(f"received prune.importance={importance} without images; expected labelled ones")
    return {"taylor": _taylor, "hessian": _hessian, "obdc": _obdc, "activation": _activation}[importance](
        network.eval(), images
    )


def _fpgm_score(group: Group) -> Tensor | None:
    """Ranks by all layers but what convolutions in groups read, on which torch-pruning's measure fails."""
    ranked = Group()
    ranked._DG = group._DG
    for item in group:
        layer = item.dep.target.module
        if getattr(layer, "groups", 1) == 1 or group._DG.is_out_channel_pruning_fn(item.dep.handler):
            ranked.items.append(item)
    return _measures.FPGMImportance()(ranked)


def _taylor(network: nn.Module, images: LabelledImages) -> Any:
    network.zero_grad(set_to_none=True)
    with torch.enable_grad():
        for batch, targets in images.batches():
            images.loss(network(batch), targets).backward()
    _fill_gradients(network)
    return _measures.GroupTaylorImportance()


def _hessian(network: nn.Module, images: LabelledImages) -> Any:
    """Returns the measure by the mean squared gradients of single images, which it expects as the gradients.

    torch-pruning's own `accumulate_grad` forgets all images but the last.
    """
    for parameter, square in _squared_gradients(network, images).items():
        parameter.grad = square
    _fill_gradients(network)
    return _measures.GroupHessianImportance()


def _obdc(network: nn.Module, images: LabelledImages) -> Any:
    """Returns the measure by the same squares, of filters alone: the diagonal of the Fisher matrix.

    torch-pruning's own estimate of it fails for convolutions in groups and for those with a bias.
    """
    squares = _squared_gradients(network, images)
    measure = _measures.OBDCImportance(num_classes=-1)
    measure.modules = [module for module in network.modules() if isinstance(module, LAYERS)]
    measure.steps = 1
    for module in measure.modules:
        module.weight.grad = squares.get(module.weight, torch.zeros_like(module.weight))
        measure.Fisher[module] = module.weight.grad.flatten(1)
    return measure


def _activation(network: nn.Module, images: LabelledImages) -> Any:
    """Returns the measure by the mean magnitude of what each layer reads, over all images, not only the last batch."""
    totals: dict[nn.Module, Tensor] = {}
    seen: dict[nn.Module, int] = {}

    def add(layer: nn.Module, x: Tensor) -> None:
        magnitude = x.abs().flatten(0, -2) if isinstance(layer, nn.Linear) else x.abs().mean((2, 3))
        totals[layer] = totals.get(layer, 0) + magnitude.sum(0)
        seen[layer] = seen.get(layer, 0) + len(magnitude)

    layers = [module for module in network.modules() if isinstance(module, LAYERS)]
    hooks = [
        layer.register_forward_hook(
            lambda layer, inputs, kwargs, _: add(layer, inputs[0] if inputs else kwargs["input"]), with_kwargs=True
        )
        for layer in layers
    ]
    with torch.no_grad():
        for batch, _ in images.batches():
            network(batch)
    for hook in hooks:
        hook.remove()
    means = {layer: totals[layer] / seen[layer] for layer in totals}
    return lambda group: _activation_score(group, means)


def _activation_score(group: Any, means: dict[nn.Module, Tensor]) -> Tensor | None:
    """Lets torch-pruning combine the means of a group: it reads them from the layers, where they do not stay."""
    measure = _measures.ActivationImportance()
    layers = [dep.target.module for dep, _ in group if dep.target.module in means]
    for layer in layers:
        layer._importance = means[layer]
    try:
        return measure(group)
    finally:
        for layer in layers:
            vars(layer).pop("_importance", None)


def _squared_gradients(network: nn.Module, images: LabelledImages) -> dict[nn.Parameter, Tensor]:
    """Returns the mean over single images of the squared gradient of each parameter."""
    squares: dict[nn.Parameter, Tensor] = {}
    count = 0
    with torch.enable_grad():
        for batch, targets in images.batches():
            for at in range(min(len(batch), _SINGLE_IMAGES - count)):
                network.zero_grad(set_to_none=True)
                images.loss(network(batch[at : at + 1]), targets[at : at + 1]).backward()
                for parameter in network.parameters():
                    if parameter.grad is not None:
                        squares[parameter] = squares.get(parameter, 0) + parameter.grad.square()
                count += 1
            if count == _SINGLE_IMAGES:
                break
    network.zero_grad(set_to_none=True)
    return {parameter: square / count for parameter, square in squares.items()}


def _fill_gradients(network: nn.Module) -> None:
    """Gives parameters that the loss does not reach a gradient of 0, which torch-pruning reads without looking."""
    for parameter in network.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
