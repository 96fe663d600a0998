"""Cuts narrower networks out of a network: at each width the most important channels, those of a narrower one too."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.methods.pruning.channel_groups import Kept, PrunableNetwork
from compress.methods.pruning.filters import known_scores
from compress.methods.pruning.importance import score_channels
from compress.utils.errors import UserError

IMPORTANCE = "l1"  # prune's default


@dataclass(frozen=True)
class Narrower:
    """A network with fewer channels than another one, and which of its channels these are."""

    network: nn.Module
    kept: Kept  # the filters of layers that have fewer
    # Name of a parameter -> the rows and the columns that it has of the whole network's; no columns of a vector.
    places: dict[str, tuple[Tensor, ...]]


def narrower_networks(
    network: nn.Module, example: Tensor, shares: Sequence[float], round_to: int, received: str
) -> list[Narrower]:
    """Returns a network for each share of the channels, in multiples of `round_to`; `example` is (1, C, H, W).

    All groups of channels that go together keep the same share, the ones with the largest scores. Raises UserError,
    about the setting `received`, where no layer has fewer channels than in the network before.
    """
    prunable = PrunableNetwork(network, example, round_to)
    scores = known_scores(prunable, score_channels(prunable, IMPORTANCE)) if prunable.groups else []
    found, before = [], [group.channels for group in prunable.groups]
    for share in sorted(shares, reverse=True):
        left = [group.allowed(share * group.channels) for group in prunable.groups]
        if left == before:
            raise _no_narrower(prunable, share, received)
        found.append(_narrower(prunable, left, scores))
        before = left
    return found[::-1]


def _narrower(prunable: PrunableNetwork, left: list[int], scores: list[Tensor]) -> Narrower:
    rows, columns = (_numbers_left(prunable, left, scores, dim) for dim in (0, 1))
    narrow, kept = prunable.pruned_copy(left, scores)
    names = [name for name, _ in narrow.named_parameters()]
    places = {name: tuple(part[name] for part in (rows, columns) if name in part) for name in names}
    return Narrower(narrow, kept, places)


@torch.no_grad()
def _numbers_left(prunable: PrunableNetwork, left: list[int], scores: list[Tensor], dim: int) -> dict[str, Tensor]:
    """Returns which numbers along a dimension stay of each parameter that has it, by its name.

    The parameters are filled with these numbers while the network is pruned.
    """
    parameters = [value for value in prunable.network.parameters() if value.dim() > dim]
    trained = [value.clone() for value in parameters]
    try:
        for value in parameters:
            along = value.movedim(dim, 0)
            along.copy_(torch.arange(len(along)).view(-1, *(1,) * (value.dim() - 1)).expand_as(along))
        narrow, _ = prunable.pruned_copy(left, scores)
    finally:
        for value, before in zip(parameters, trained, strict=True):
            value.copy_(before)
    named = {name: value.movedim(dim, 0) for name, value in narrow.named_parameters() if value.dim() > dim}
    return {name: along.reshape(len(along), -1)[:, 0].long() for name, along in named.items()}


def _no_narrower(prunable: PrunableNetwork, share: float, received: str) -> UserError:
    reasons = sorted(set(prunable.fixed.values())) if not prunable.groups else []
    why = f": {'; '.join(reasons)}" if reasons else ""
    return UserError(
        f"{received}, while no layer has fewer channels at {share:g} than at the next width{why}",
        "widths at which layers differ, in multiples of dynamic_width.round_to",
        "set widths further apart, lower dynamic_width.round_to, or leave dynamic_width out of the stages",
    )
