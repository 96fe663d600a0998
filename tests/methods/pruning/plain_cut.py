"""Removes filters as the stage prune does by a plain ratio, without refit and training."""

import math

from torch import Tensor, nn

from compress.config.stage_settings import PruneConfig
from compress.methods.pruning.channel_groups import PrunableNetwork
from compress.methods.pruning.cut import choose_cut
from compress.methods.pruning.filters import Pruned, remove_filters
from compress.methods.pruning.importance import LabelledImages
from compress.methods.pruning.limits import Whole
from compress.methods.pruning.trials import Trials


def prune_filters(network: nn.Module, example: Tensor, config: PruneConfig) -> Pruned:
    """Removes the share `config.ratio` of each layer in place, or of all; `example` is (1, C, H, W).

    The importance must not need images.
    """
    prunable = PrunableNetwork(network, example, config.round_to)
    cut = choose_cut(prunable, config, _trials(prunable))
    return remove_filters(prunable, prunable.lowest(cut.left, cut.scores), config)


def _trials(prunable: PrunableNetwork) -> Trials:
    """Returns trials that a plain ratio needs: the widths. All else raises where it is asked for."""

    def unasked(*arguments: object) -> object:
        raise AssertionError("a plain ratio asked for images, accuracy or a file")

    whole = Whole(prunable.before, math.nan, math.nan)
    return Trials(LabelledImages(unasked, unasked), unasked, unasked, unasked, whole, math.nan, unasked)
