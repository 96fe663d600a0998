"""Searches for the best sub-network within a target: narrower layers, fewer blocks, smaller kernels, smaller images."""

import logging
from dataclasses import asdict
from typing import Any

from torch import nn

from compress.config.search_settings import SearchArchitectureConfig
from compress.evaluation.flops import count_cost
from compress.methods.architecture_search.budget import budget_of
from compress.methods.architecture_search.candidate import Candidate
from compress.methods.architecture_search.choice import choose
from compress.methods.architecture_search.score import Scorer, judged_images
from compress.methods.architecture_search.search import Search
from compress.methods.architecture_search.space import FEW_WIDTHS, MOST_WIDTHS, SearchSpace
from compress.methods.architecture_search.store import Store
from compress.methods.architecture_search.supernet import sandwich_loss, smallest_trained
from compress.methods.distillation.fine_tuning import fine_tune
from compress.methods.pruning.filter_length import set_unit_length
from compress.methods.pruning.filters import known_scores
from compress.methods.pruning.importance import score_channels
from compress.methods.pruning.limits import Whole
from compress.methods.pruning.reconstruction import skipped_layers
from compress.methods.pruning.trials import make_trials
from compress.models.artifact import Artifact
from compress.models.layer_calls import LAYERS
from compress.models.widths import read_widths
from compress.training.context import Context
from compress.training.loop import TrainSettings, train

log = logging.getLogger("compress")


def search_architecture(artifact: Artifact, config: SearchArchitectureConfig, context: Context) -> Artifact:
    """Returns the best sub-network of the artifact's network that meets `config.target`, refitted and fine-tuned.

    With `config.epochs` all sub-networks are trained together first. Raises UserError, before it trains or searches,
    where the smallest one misses the target.
    """
    original = artifact.network
    search = _search(original, config, context)
    history = _train_shared(search, config, context)

    def decide() -> dict[str, Any]:
        with search.store.locked():
            choice = choose(search, config.target.asked(), config.trials, config.pick, context.seed)
        return {"candidate": choice.candidate.record(), "notes": choice.notes}

    decision = context.decide("architecture", decide)
    candidate, notes = Candidate.from_record(decision["candidate"]), decision["notes"]
    network, kept = search.scorer.finished(candidate)
    before, after = read_widths(original), read_widths(network)
    left_out = _left_out(network, search.space)
    if candidate == search.space.whole:
        log.warning("search_architecture: the whole network meets the target, so nothing of it goes")
    else:
        set_unit_length(network, search.space.example)
    settings = TrainSettings(
        "search_architecture", config.fine_tune_epochs, config.lr, part="fine-tuning", schedule=config.schedule
    )
    notes["history"] = history + fine_tune(network, context, settings, config.distill)
    notes["filters"] = {
        name: (width[0], after[name][0] if name in after else 0) for name, width in before.items() if len(width) > 1
    }
    changed = {name: width for name, width in after.items() if width != before[name]}
    record = {"widths": changed, "settings": asdict(config), "kept_filters": kept}
    spec = artifact.spec.changed("search_architecture", **candidate.changes(), **record)
    if candidate.input_size:
        spec = spec.changed("resize_input", size=[candidate.input_size] * 2)
    return Artifact(network, spec, left_out, notes)


def _search(network: nn.Module, config: SearchArchitectureConfig, context: Context) -> Search:
    """Returns the search before its first candidate."""
    example = next(context.data.train.batches())[0][:1].to(context.device)
    params, macs = count_cost(network.eval(), context.data.shape)
    whole = Whole(read_widths(network), macs, params)
    trials = make_trials(network, whole, context, config.reconstruction_samples, config.target)
    of_file = config.target.asked_of_file()
    few = FEW_WIDTHS if of_file else MOST_WIDTHS
    space = SearchSpace(network, example, config.round_to, few, config.input_sizes)
    scores = known_scores(space.prunable, score_channels(space.prunable, config.importance, trials.labelled))
    judged = judged_images(context.data, config.reconstruction_samples, context.seed, context.device)
    budget = budget_of(space, config.target.asked(), trials)
    store = Store(context.search_dir)
    return Search(space, scores, budget, trials, Scorer(space, scores, trials, judged), store)


def _train_shared(search: Search, config: SearchArchitectureConfig, context: Context) -> list[dict[str, float]]:
    """Trains the network so that its sub-networks work with its weights; an earlier search's weights are taken over."""
    if not config.epochs:
        return []
    network, store = search.space.network, search.store
    search.scorer.shared = True
    if context.decide("shared weights", lambda: {"kept": store.has_weights})["kept"]:
        return store.load_weights(network)
    # Where a clock decides the budget, a restart must not train another one.
    smallest = context.decide("smallest", lambda: smallest_trained(search.space, search.budget).record())
    loss = sandwich_loss(search.space, search.scores, Candidate.from_record(smallest), context)
    settings = TrainSettings(
        "search_architecture", config.epochs, config.lr, part="shared weights", last=False, schedule=config.schedule
    )
    history = [*train(network, loss, context, settings)]  # a copy: `context.finished` holds the rows
    if context.ranks.is_rank_zero:
        store.save_weights(network, history)
    return history


def _left_out(network: nn.Module, space: SearchSpace) -> list[dict[str, str]]:
    """Returns the layers that kept all filters, and those that were not refitted, with the reasons."""
    rows = [
        {
            "layer": name,
            "reason": space.prunable.fixed.get(name, "the sub-network that was taken keeps all its filters"),
        }
        for name, module in network.named_modules()
        if isinstance(module, LAYERS) and module.weight.shape[0] == space.prunable.before[name][0]
    ]
    return rows + skipped_layers(network, space.network, space.example)
