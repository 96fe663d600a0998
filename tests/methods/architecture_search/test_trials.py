"""What is proposed: within levels of the budget, descended from the seeds, and the same after a restart."""

import math
import random
from functools import cache

import pytest
import torch

from compress.evaluation.flops import count_cost
from compress.methods.architecture_search.budget import Budget, fitted
from compress.methods.architecture_search.candidate import Candidate
from compress.methods.architecture_search.seeds import Parts, sensitive_seeds, uniform_seeds
from compress.methods.architecture_search.space import SearchSpace
from compress.methods.architecture_search.trials import Genes, Trial, pareto_front, run_trials
from compress.methods.pruning.target import Limit
from tests.own_networks import Blocks

LEVELS = (1.0, 0.8, 1.3)


@cache
def space() -> SearchSpace:
    torch.manual_seed(0)
    return SearchSpace(Blocks(3, 3).eval(), torch.zeros(1, 3, 16, 16), round_to=2, input_sizes=(12,))


def budget(share: float = 0.5) -> Budget:
    _, macs = count_cost(space().network, (3, 16, 16))
    return Budget([Limit("macs_share", share, space().macs(macs), macs)], LEVELS)


def share_of(candidate: Candidate) -> float:
    return budget().share(space().widths(candidate))


def scored(candidate: Candidate) -> Trial:
    """A made-up distance: wide layers help, and so does every block."""
    distance = 1 / sum(map(math.sqrt, candidate.left)) + 0.01 * len(candidate.without)
    return Trial(candidate, distance, share_of(candidate))


def test_widths_fill_the_budget_and_never_exceed_it() -> None:
    smallest = share_of(space().smallest)
    draw = random.Random(0)
    for _ in range(20):
        left = [draw.choice(group.widths) for group in space().groups]
        candidate = space().candidate(left, draw.sample(space().blocks, 1), {}, draw.choice([None, 12]))
        for level in LEVELS:
            found = fitted(space(), candidate, budget().at(level))
            assert (found.without, found.input_size) == (candidate.without, candidate.input_size)
            assert smallest < share_of(found) <= level
            whole = fitted(space(), candidate, budget().at(100))
            assert share_of(found) > 0.7 * level or found == whole


def test_a_proposal_is_what_was_encoded() -> None:
    genes = Genes(space(), budget())
    wanted = fitted(space(), space().candidate(space().whole.left, space().blocks[:1], {}, 12), budget())
    seen: list[Candidate] = []

    def score(candidate: Candidate) -> Trial:
        seen.append(candidate)
        return scored(candidate)

    run_trials(genes, [(wanted, 1.0)], score, 1, 0)
    assert seen == [wanted]


def test_the_seeds_are_the_parents_of_what_follows() -> None:
    seeds = [(fitted(space(), space().whole, budget().at(level)), level) for level in LEVELS] * 6
    found = run_trials(Genes(space(), budget()), seeds, scored, 48, 0)
    children = [trial.candidate for trial in found[len(seeds) :]]
    assert sum(len(candidate.without) for candidate in children) < 0.3 * len(children)  # at random: half of three
    assert len(set(children)) > 10


def test_the_same_trials_follow_from_the_same_seed() -> None:
    seeds = list(uniform_seeds(space(), budget()))
    one, same, other = (run_trials(Genes(space(), budget()), seeds, scored, 40, seed) for seed in (0, 0, 1))
    assert one == same != other


def test_seeds_lose_the_cheapest_blocks_and_the_least_needed_channels_first() -> None:
    parts = Parts(space())
    groups = [[(group.channels, 0.0), (group.widths[0], 0.1)] for group in space().groups]
    blocks = [[(1, 0.0), (0, distance)] for distance in (0.5, 0.01, 0.2)]
    kernels = [[(1, 0.0), (0, 0.001)] for _ in parts.kernels]
    cost = budget().limits[0].cost
    found = list(sensitive_seeds(parts, [*groups, *blocks, *kernels], cost, budget(), lambda at: space().whole))
    without = {candidate.without for candidate, _ in found}
    assert without == {(), (space().blocks[1],), (space().blocks[1], space().blocks[2])}
    cut = [candidate for candidate, level in found if level == 1.0 and candidate != space().whole]
    assert all(share_of(candidate) <= 1 for candidate in cut)
    assert any(candidate.kernels for candidate in cut)
    assert any(candidate.input_size == 12 for candidate in cut)


@pytest.mark.parametrize("order", [1, -1])
def test_the_front_is_what_nothing_beats_in_both(order: int) -> None:
    whole = space().whole
    trials = [Trial(whole, distance, share) for distance, share in [(3, 1), (2, 2), (2, 3), (2.5, 2), (1, 4), (1, 5)]]
    assert [(t.distance, t.share) for t in pareto_front(trials[::order])] == [(3, 1), (2, 2), (1, 4)]
