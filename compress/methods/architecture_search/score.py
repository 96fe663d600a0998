"""Says what sub-networks are worth without training them: cut, refitted or recalibrated, and compared on images."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.data.dataset import Data
from compress.methods.architecture_search.candidate import Candidate
from compress.methods.architecture_search.recalibration import recalibrate
from compress.methods.architecture_search.space import SearchSpace
from compress.methods.pruning.channel_groups import Kept
from compress.methods.pruning.reconstruction import Reference, reconstruct
from compress.methods.pruning.trials import Trials
from compress.utils.tensors import to_device

QUICK_IMAGES = 128  # train images on which a candidate is refitted before most are sorted out
JUDGED_IMAGES = 512  # on which outputs are compared

_CHUNK = 64


class Scorer:
    """Builds sub-networks and measures how far their outputs are from those of the network that came, in nats."""

    def __init__(self, space: SearchSpace, scores: Sequence[Tensor], trials: Trials, judged: Tensor):
        """Keeps the channels with the highest `scores` (channels,) of each group; `judged` is (N, C, H, W)."""
        self._space, self._scores, self._trials, self._judged = space, scores, trials, judged
        self._expected = self._outputs(space.network)
        self._references: dict[int | None, Reference] = {}
        self._resized: dict[int, nn.Module] = {}
        self.shared = False  # whether the network was trained so that its sub-networks work with its weights

    def quick(self, candidate: Candidate) -> float:
        """Returns the distance of a candidate that is refitted on few images, or recalibrated on them."""
        network, kept = self._space.build(candidate, self._scores)
        images = self._trials.images()[:QUICK_IMAGES]
        if self.shared:
            recalibrate(network, images)
        else:
            size = candidate.input_size
            if size not in self._references:
                self._references[size] = Reference(self._whole(size), images)
            self._references[size].refitted_outputs(network, kept)
        return self.distance(network)

    def finished(self, candidate: Candidate) -> tuple[nn.Module, Kept]:
        """Returns a candidate that is refitted on all images, and its remaining filters.

        With shared weights it is recalibrated, where that comes nearer to the outputs.
        """
        network, kept = self._space.build(candidate, self._scores)
        whole = self._whole(candidate.input_size)
        reconstruct(network, whole, kept, self._trials.images(), every=True)
        if not self.shared:
            return network, kept
        other, _ = self._space.build(candidate, self._scores)
        recalibrate(other, self._trials.images())
        return min((network, other), key=self.distance), kept

    @torch.no_grad()
    def distance(self, network: nn.Module) -> float:
        """Returns the mean distance of a network's outputs."""
        return self._trials.distance(self._outputs(network), self._expected).mean().item()

    def _whole(self, input_size: int | None) -> nn.Module:
        """Returns the whole network, to whose values on images of that size candidates are refitted."""
        if input_size is None:
            return self._space.network
        if input_size not in self._resized:
            network = copy.deepcopy(self._space.network)
            self._space.resize(network, input_size)
            recalibrate(network, self._trials.images())
            self._resized[input_size] = network
        return self._resized[input_size]

    @torch.no_grad()
    def _outputs(self, network: nn.Module) -> Tensor:
        network.eval()
        return torch.cat([network(images) for images in self._judged.split(_CHUNK)])


def judged_images(data: Data, samples: int, seed: int, device: torch.device) -> Tensor:
    """Returns images (N, C, H, W) that no refit sees: of validation, and where these are few of train.

    `samples` train images, drawn by the seed, are those of the refit.
    """
    val = data.val.take(JUDGED_IMAGES, seed)
    parts = [to_device(images, device) for images, _ in val.batches()]
    more = data.train.take(samples + JUDGED_IMAGES - len(val), seed)
    more.index = more.index[samples:]
    return torch.cat(parts + [to_device(images, device) for images, _ in more.batches()])
