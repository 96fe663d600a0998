"""Networks of several widths that share their weights while they are trained (slimmable networks, Yu et al. 2019).

Each width has its own norms, because the statistics of a sum depend on how many channels it adds up
(arXiv:1812.08928, section 3.3).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compress.methods.conditional.selection import select
from compress.methods.dynamic_width.channels import Narrower
from compress.methods.dynamic_width.network import DynamicWidthNetwork, WidthExit
from compress.training.train_outputs import find_logits

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
)


class SharedWeights(nn.Module):
    """In train mode: images (N, C, H, W) -> the logits (N, K) of each width, the narrowest first.

    In eval mode it selects among them, as the network that is made of it. The narrower networks have no weights of
    their own but those of norms: all others are the places that `Narrower.places` names of the widest network's, to
    which their gradients go.
    """

    def __init__(self, network: nn.Module, narrower: Sequence[Narrower]):
        """Takes the networks over; `narrower` are cut out of `network`, the narrowest first."""
        super().__init__()
        self.network = network
        self.narrower = nn.ModuleList(narrow.network for narrow in narrower)
        self.exits = nn.ModuleList(WidthExit() for _ in narrower)
        own = {name for name, module in network.named_modules() if isinstance(module, _NORMS)}
        self._places = [
            {name: at for name, at in narrow.places.items() if name.rpartition(".")[0] not in own}
            for narrow in narrower
        ]
        for narrow, places in zip(self.narrower, self._places, strict=True):
            for name in places:
                module, _, leaf = name.rpartition(".")
                narrow.get_submodule(module)._parameters[leaf] = None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Returns the logits of all widths in train mode, and the chosen ones in eval mode."""
        outputs = [functional_call(narrow, self._taken(at), (images,)) for at, narrow in enumerate(self.narrower)]
        ends = tuple(find_logits(output) for output in (*outputs, self.network(images)))
        return ends if self.training else select(ends, self.exits)

    @torch.no_grad()
    def separate(self) -> DynamicWidthNetwork:
        """Returns a network of the same widths, each with weights of its own; this one cannot be used any more."""
        for at, narrow in enumerate(self.narrower):
            for name, value in self._taken(at).items():
                module, _, leaf = name.rpartition(".")
                narrow.get_submodule(module)._parameters[leaf] = nn.Parameter(value.clone())
        return DynamicWidthNetwork(list(self.narrower), self.network)

    def _taken(self, at: int) -> dict[str, Tensor]:
        """Returns the shared weights of a narrower network, by name."""
        whole = dict(self.network.named_parameters(remove_duplicate=False))
        return {name: _take(whole[name], places) for name, places in self._places[at].items()}


def _take(value: Tensor, places: Sequence[Tensor]) -> Tensor:
    for dim, numbers in enumerate(places):
        if len(numbers) < value.shape[dim]:
            value = value.index_select(dim, numbers.to(value.device))
    return value
