"""Trains a network so that its sub-networks work with its weights, too."""

import random
import zlib
from collections.abc import Sequence

from torch import Tensor, nn

from compress.data.dataset import Batch
from compress.methods.architecture_search.budget import Budget, fitted
from compress.methods.architecture_search.candidate import Candidate
from compress.methods.architecture_search.shared_weights import SharedWeights
from compress.methods.architecture_search.space import SearchSpace
from compress.methods.distillation.losses import label_loss
from compress.training.context import Context
from compress.training.step import LossFn
from compress.training.train_outputs import find_logits

_RANDOM = 2  # sub-networks a step between the largest and the smallest, as Yu & Huang 2019 take
_LEFT_OUT = 0.5  # share of the blocks that the smallest one lacks


def sandwich_loss(space: SearchSpace, scores: Sequence[Tensor], smallest: Candidate, context: Context) -> LossFn:
    """Returns the loss of a weight-sharing network with sub-networks down to `smallest`.

    The whole network learns from the labels; the smallest sub-network and random ones learn from what it returns
    (the sandwich rule and in-place distillation: Yu & Huang 2019, "Universally slimmable networks", section 3; depth
    and kernels as Cai et al. 2020, "Once-for-all", and Yu et al. 2020, "BigNAS").
    """
    shared, task = SharedWeights(space, scores), context.task
    whole_loss = label_loss(context.train.label_smoothing, task)

    def loss(network: nn.Module, examples: Batch) -> tuple[Tensor, Tensor]:
        value, logits = whole_loss(network, examples)
        draw = random.Random(_number(examples, context))
        for candidate in [smallest, *(random_candidate(space, smallest, draw) for _ in range(_RANDOM))]:
            own = find_logits(shared.run(candidate, examples.images)).float()
            value = value + task.distance(own, logits.detach()).mean()
        return value, logits

    return loss


def smallest_trained(space: SearchSpace, budget: Budget) -> Candidate:
    """Returns the smallest sub-network that is trained: every second block, the smallest kernels, the lowest budget."""
    without = space.blocks[1 :: round(1 / _LEFT_OUT)]
    kernels = {name: min(sizes) for name, sizes in space.kernels.items()}
    widest = space.candidate(space.whole.left, without, kernels)
    return fitted(space, widest, budget.at(min(budget.levels)))


def random_candidate(space: SearchSpace, smallest: Candidate, draw: random.Random) -> Candidate:
    """Returns a sub-network between the smallest and the whole one."""
    left = [
        draw.choice([width for width in group.widths if width >= least])
        for group, least in zip(space.groups, smallest.left, strict=True)
    ]
    without = [name for name in smallest.without if draw.random() < 0.5]
    kernels = {name: draw.choice(sizes) for name, sizes in space.kernels.items()}
    return space.candidate(left, without, kernels, draw.choice([None, *space.input_sizes]))


def _number(examples: Batch, context: Context) -> int:
    """Returns a number that follows from a batch, so that a restart draws the same; all processes get the first's."""
    own = zlib.crc32(examples.positions.cpu().numpy().tobytes()) ^ context.seed
    (number,) = context.ranks.all_reduce_max(own if context.ranks.is_rank_zero else -1)
    return int(number)
