"""The sub-networks from which a search starts: uniform ones, and those that a sensitivity of all parts proposes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from compress.methods.architecture_search.budget import Budget, fitted
from compress.methods.architecture_search.candidate import Candidate
from compress.methods.architecture_search.space import SearchSpace
from compress.methods.pruning.allocation import Curve, Path, Shrinkable, cheapest_path
from compress.methods.pruning.cost import Cost
from compress.methods.pruning.target import meet_limits

_DEPTHS = (0.125, 0.0, 0.25, 0.375, 0.5)  # shares of the blocks that seeds leave out; the first at all levels
_LEAST_SAVED = 1e-6  # share of a cost: a block that saves none is the last to go
_UNIFORM_DEPTHS = (0.25, 0.5)  # the same of uniform seeds, evenly spread


@dataclass(frozen=True)
class Part:
    """A block or a kernel, which shrinks as a group of channels does: `channels` is the number of its smaller forms."""

    name: str
    channels: int
    step: int = 1

    def allowed(self, left: float) -> int:
        """Returns the nearest form below `left`; 0 is the smallest."""
        return min(self.channels, max(0, int(left)))


class Parts:
    """All that shrinks in a space, in one order: groups of channels, blocks, kernels."""

    def __init__(self, space: SearchSpace):
        self.space = space
        self.blocks = [Part(name, 1) for name in space.blocks]
        self.kernels = [Part(name, len(sizes) - 1) for name, sizes in space.kernels.items()]
        self.all: list[Shrinkable] = [*space.groups, *self.blocks, *self.kernels]

    @property
    def whole(self) -> list[int]:
        """Returns the numbers of the whole network."""
        return [part.channels for part in self.all]

    def candidate(self, left: Sequence[int]) -> Candidate:
        """Returns the candidate in which so much of each part is left."""
        groups, blocks = len(self.space.groups), len(self.blocks)
        gone = [part.name for part, count in zip(self.blocks, left[groups:], strict=False) if not count]
        sizes = {
            part.name: self.space.kernels[part.name][part.channels - count]
            for part, count in zip(self.kernels, left[groups + blocks :], strict=True)
        }
        return self.space.candidate(left[:groups], gone, sizes)

    def blocks_by_price(self, curves: Sequence[Curve], cost: Cost) -> list[int]:
        """Returns the numbers of the blocks, the one first that costs the least distance for what it saves alone."""
        first = len(self.space.groups)
        whole = cost.of(self.space.widths(self.space.whole))

        def price(number: int) -> float:
            without = self.space.candidate(self.space.whole.left, [self.blocks[number - first].name])
            return dict(curves[number])[0] / max(whole - cost.of(self.space.widths(without)), _LEAST_SAVED * whole)

        return sorted(range(first, first + len(self.blocks)), key=price)

    def singles(self) -> Iterator[tuple[int, int]]:
        """Yields the number of each block and kernel, and each smaller form of it."""
        first = len(self.space.groups)
        for number, part in enumerate([*self.blocks, *self.kernels], first):
            for count in reversed(range(part.channels)):
                yield number, count

    def path(self, curves: Sequence[Curve], cost: Cost, start: Sequence[int]) -> Path:
        """Returns the path from `start` that loses the least distance for what it saves; `curves` has one of each."""
        known: dict[tuple[int, ...], float] = {}
        layers = [self._layers(number) for number in range(len(self.all))]
        near = [[other for other, theirs in enumerate(layers) if theirs & own] for own in layers]

        def spent(left: list[int], number: int) -> float:
            key = (number, *(left[other] for other in near[number]))
            if key not in known:
                widths = self.space.widths(self.candidate(left))
                own = (name for name in widths if self.space.layer_of(name) in layers[number])
                known[key] = sum(cost.of_layer(name, widths[name]) for name in own)
            return known[key]

        def saved(left: list[int], number: int, fewer: int) -> float:
            return spent(left, number) - spent([*left[:number], fewer, *left[number + 1 :]], number)

        return cheapest_path(self.all, curves, start, saved)

    def _layers(self, number: int) -> set[str]:
        """Returns the layers whose cost depends on a part."""
        groups = len(self.space.groups)
        if number < groups:
            return set(self.space.groups[number].reads)
        name = [*self.blocks, *self.kernels][number - groups].name
        return {layer for layer in self.space.prunable.before if layer == name or layer.startswith(f"{name}.")}


def uniform_seeds(space: SearchSpace, budget: Budget) -> Iterator[tuple[Candidate, float]]:
    """Yields networks whose layers are all alike narrower, with all blocks or evenly fewer, and their levels."""
    for level in budget.levels:
        yield fitted(space, space.whole, budget.at(level)), level
    wanted = budget.levels[0]
    for size in space.input_sizes:
        yield fitted(space, space.candidate(space.whole.left, input_size=size), budget.at(wanted)), wanted
    for share in _UNIFORM_DEPTHS if space.blocks else ():
        without = [name for at, name in enumerate(space.blocks) if int((at + 1) * share) > int(at * share)]
        yield fitted(space, space.candidate(space.whole.left, without), budget.at(wanted)), wanted


def sensitive_seeds(
    parts: Parts, curves: Sequence[Curve], cost: Cost, budget: Budget, pruned: Callable[[Budget], Candidate]
) -> Iterator[tuple[Candidate, float]]:
    """Yields networks that lose what they need least, and their levels.

    `pruned` returns what the stage prune would. The others lack some blocks, those that cost the least distance for
    what they save, and their widths and kernels follow from the curves. How many blocks does not: the distances of
    several do not add up. Of ResNet-56 with a third of the MACs, 17 blocks less make 0.54 nats, and 3 less 0.19.
    """
    wanted, order = budget.levels[0], parts.blocks_by_price(curves, cost)
    others: list[Curve] = [[] if number in order else curve for number, curve in enumerate(curves)]
    for at, count in enumerate(dict.fromkeys(round(share * len(order)) for share in _DEPTHS)):
        start = parts.whole
        for number in order[:count]:
            start[number] = 0
        path = parts.path(others, cost, start)
        for level in budget.levels if at == 0 else (wanted,):
            yield _first(parts, path, budget.at(level)), level
        for size in parts.space.input_sizes if at == 0 else ():
            yield _first(parts, path, budget.at(wanted), size), wanted
    for level in budget.levels:
        yield pruned(budget.at(level)), level


def _first(parts: Parts, path: Path, budget: Budget, input_size: int | None = None) -> Candidate:
    """Returns the first network on a path that meets the budget."""

    def made(left: Sequence[int]) -> Candidate:
        return replace(parts.candidate(left), input_size=input_size)

    return made(meet_limits(path, budget.limits, lambda left: parts.space.widths(made(left))).left)
