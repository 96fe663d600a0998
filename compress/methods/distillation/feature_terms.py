"""Compares layers of student and teacher in a training step, by the losses of layers that the settings name."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compress.methods.distillation.feature_losses import FEATURE_LOSSES
from compress.utils.errors import UserError

Shape = tuple[int, ...]  # of one image's output, as (C, H, W)
_OF_ONE_KIND = ("at", "fitnet", "review")  # losses that compare maps with maps, and tokens with tokens


@dataclass(frozen=True)
class FeatureTerms:
    """The losses of layers, and the outputs that hooks record for them in each forward pass."""

    weights: dict[str, float] = field(default_factory=dict)  # by the name of the loss
    layers: dict[str, str] = field(default_factory=dict)  # the teacher's by the student's, in the student's order
    student: dict[str, Tensor] = field(default_factory=dict)  # outputs (N, ...) by layer
    teacher: dict[str, Tensor] = field(default_factory=dict)
    learned: dict[str, list[Tensor]] = field(default_factory=dict)  # what learned parts made of the student's, by loss

    def clear(self) -> None:
        """Removes the outputs: a step that ran out of memory did not, and they keep memory in use."""
        for outputs in (self.student, self.teacher, self.learned):
            outputs.clear()

    def values(self) -> Iterator[Tensor]:
        """Yields the weighted terms of the last forward passes, each a scalar in float32."""
        own = [self.student[layer].float() for layer in self.layers]
        wanted = [self.teacher[layer].float() for layer in self.layers.values()]
        for name, weight in self.weights.items():
            learned = [output.float() for output in self.learned.get(name, own)]
            for value in _loss(name, learned, wanted):
                yield weight * value


def _loss(name: str, own: list[Tensor], wanted: list[Tensor]) -> Iterator[Tensor]:
    """Yields the terms of one loss, from outputs (N, ...) of each layer, shallow to deep."""
    compare = FEATURE_LOSSES[name].loss
    if name == "fitnet":  # a term for each layer: their sum in another order would have other last bits than before
        for features, teacher_features in zip(own, wanted, strict=True):
            yield compare([features], [teacher_features])
    elif name == "rkd":
        yield compare(_embedding(own[-1]), _embedding(wanted[-1]))
    else:
        yield compare(own, wanted)


def _embedding(features: Tensor) -> Tensor:
    """Returns (N, C) from maps (N, C, H, W) or tokens (N, T, C): their mean over the places."""
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features


def learned_parts(names: list[str], shapes: list[tuple[Shape, Shape]]) -> nn.ModuleDict:
    """Returns the modules that losses train beside the student, by loss; those without parameters are left out.

    `shapes` are those of the student's and of the teacher's outputs of each pair of layers.
    """
    own, wanted = [list(each) for each in zip(*shapes, strict=True)]
    parts = {name: kind(own, wanted) for name in names if (kind := FEATURE_LOSSES[name].module)}
    return nn.ModuleDict({name: part for name, part in parts.items() if any(True for _ in part.parameters())})


def check_outputs(terms: FeatureTerms) -> list[tuple[Shape, Shape]]:
    """Returns the shapes of each pair of layers in the last forward passes, without the images' dimension.

    Raises UserError where a layer returned no tensor, and where two outputs cannot be compared.
    """
    shapes = []
    for layer, teacher_layer in terms.layers.items():
        pair = [outputs.get(name) for outputs, name in ((terms.student, layer), (terms.teacher, teacher_layer))]
        own, wanted = (tuple(output.shape[1:]) if isinstance(output, torch.Tensor) else None for output in pair)
        received = f"distill.hint_layers with {layer}: {own} in the student, {wanted} in the teacher"
        if own is None or wanted is None:
            raise UserError(received, "modules that run, and return a tensor", "name others")
        needing = [name for name in terms.weights if name in _OF_ONE_KIND]
        if needing and len(own) != len(wanted):
            raise UserError(
                f"{received}, for each image, and distill.losses with {needing[0]}",
                "outputs of one kind: two maps (C, H, W), two rows of tokens (T, C) or two vectors (C,)",
                "name others, or set distill.hint_layers=[]",
            )
        shapes.append((own, wanted))
    return shapes


class WithLearnedParts(nn.Module):
    """A student with the learned parts of its losses, for a training; its network is used alone afterwards.

    The parts run inside the forward pass, so that the optimizer, the state of a training and several processes need to
    know nothing of them. Images (N, C, H, W) -> what the network returns.
    """

    def __init__(self, network: nn.Module, parts: nn.ModuleDict, terms: FeatureTerms) -> None:
        super().__init__()
        self.parts = parts  # before the network: the loop lays out the gradient of the last batch norm, the network's
        self.network = network
        self._terms = terms

    def forward(self, images: Tensor) -> Tensor:
        output = self.network(images)
        if torch.is_grad_enabled():  # not `self.training`: see `TrainOutputs`, which changes the modes of modules
            features = [self._terms.student[layer] for layer in self._terms.layers]
            self._terms.learned.update({name: part(features) for name, part in self.parts.items()})
        return output
