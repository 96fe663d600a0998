"""Prunes filters: removes them, refits the remaining layers to compensate, and fine-tunes the network."""

import copy
import logging
from collections import Counter
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from compress.config.stage_settings import PruneConfig
from compress.evaluation.flops import count_cost
from compress.methods.distillation.fine_tuning import fine_tune
from compress.methods.distillation.losses import label_loss
from compress.methods.pruning.channel_groups import Kept, PrunableNetwork
from compress.methods.pruning.cut import choose_cut
from compress.methods.pruning.filter_length import set_unit_length
from compress.methods.pruning.filters import remove_filters
from compress.methods.pruning.limits import Whole
from compress.methods.pruning.reconstruction import reconstruct, skipped_layers
from compress.methods.pruning.sparsity import sparsity_penalty
from compress.methods.pruning.trials import Trials, make_trials
from compress.models.artifact import Artifact
from compress.models.initialization import reinitialize
from compress.models.widths import read_widths
from compress.training.context import Context
from compress.training.loop import TrainSettings, train

log = logging.getLogger("compress")


def prune(artifact: Artifact, config: PruneConfig, context: Context) -> Artifact:
    """Removes filters from the artifact's network and fine-tunes it, in as many steps as asked.

    Where it removes any, the filters before batch norm are scaled to length 1, so that the learning rates of this and
    of later stages mean the same for every network.
    """
    network = artifact.network
    before = read_widths(network)
    example = next(context.data.train.batches())[0][:1].to(context.device)
    trials = _trials(network, config, context)
    # A copy: `context.finished` holds the rows of each training, and saves them.
    history = [*_learn_sparsity(network, example, config, context)] if config.sparsity_epochs else []
    kept: Kept = {}
    errors: dict[str, float] = {}
    notes: dict[str, Any] = {}
    steps: list[dict[str, Any]] = []
    for step in range(1, config.steps + 1):
        original = copy.deepcopy(network)
        prunable = PrunableNetwork(network, example, config.round_to)
        gone, notes = _decide(prunable, config, trials, context, step)
        pruned = remove_filters(prunable, gone, config)
        pruned.left_out = [row for row in pruned.left_out if row["layer"] not in kept]  # no step before took filters
        if not config.reinitialize and config.reconstruction_samples and pruned.kept:
            errors |= reconstruct(network, original, pruned.kept, trials.images())
            pruned.left_out += skipped_layers(network, original, example)
        if config.reinitialize:
            reinitialize(network)
        elif pruned.kept:
            set_unit_length(network, example)
        kept |= {layer: [kept[layer][at] for at in new] if layer in kept else new for layer, new in pruned.kept.items()}
        history += _fine_tune(network, config, context, step)
        if config.steps > 1:
            steps.append(_step_row(prunable, before, trials, context) | _search_of(notes))
    after = read_widths(network)
    if config.removes_filters:
        _warn_where_nothing_pruned(kept, artifact.spec.architecture.get("model"), pruned.left_out)
    changed = {name: width for name, width in after.items() if width != before[name]}
    spec = artifact.spec.changed("prune", widths=changed, settings=asdict(config), kept_filters=kept)
    notes |= {"steps": steps} if steps else {}
    notes |= {"filters": {name: (before[name][0], width[0]) for name, width in after.items() if len(width) > 1}}
    notes |= {"unexplained_share": errors, "history": history}
    return Artifact(network, spec, pruned.left_out, notes)


def _trials(network: nn.Module, config: PruneConfig, context: Context) -> Trials:
    """Returns what the choice of filters may look at."""
    params, macs = count_cost(network.eval(), context.data.shape)
    whole = Whole(read_widths(network), macs, params)
    return make_trials(network, whole, context, config.reconstruction_samples, config.target)


def _learn_sparsity(
    network: nn.Module, example: Tensor, config: PruneConfig, context: Context
) -> list[dict[str, float]]:
    """Trains the network with a penalty that weakens the filters that it can do without."""
    penalty = sparsity_penalty(PrunableNetwork(network, example), config.sparsity, config.sparsity_weight)
    context.notes["sparsity_left_out"] = penalty.left_out
    loss = label_loss(context.train.label_smoothing, context.task)
    settings = TrainSettings(
        "prune",
        config.sparsity_epochs,
        config.lr,
        penalty=penalty,
        part="sparsity",
        last=False,
        schedule=config.schedule,
    )
    return train(network, loss, context, settings)


def _decide(
    prunable: PrunableNetwork, config: PruneConfig, trials: Trials, context: Context, step: int
) -> tuple[list[list[int]], dict[str, Any]]:
    """Returns the channels to remove from each group, and notes; a restart takes what the first start chose."""

    def decide() -> dict[str, Any]:
        cut = choose_cut(prunable, config, trials, step)
        return {"gone": prunable.lowest(cut.left, cut.scores), "notes": cut.notes}

    decision = context.decide(f"step {step}", decide)
    return decision["gone"], decision["notes"]


def _fine_tune(network: nn.Module, config: PruneConfig, context: Context, step: int) -> list[dict[str, float]]:
    """Trains for the step's share of the epochs, on the labels or on the teacher's outputs."""
    epochs = config.epochs * step // config.steps - config.epochs * (step - 1) // config.steps
    part = f"step {step} of {config.steps}" if config.steps > 1 else ""
    settings = TrainSettings("prune", epochs, config.lr, part=part, last=step == config.steps, schedule=config.schedule)
    return fine_tune(network, context, settings, config.distill)


def _step_row(
    prunable: PrunableNetwork, before: dict[str, list[int]], trials: Trials, context: Context
) -> dict[str, float]:
    """Returns what a step reached, for stage.json."""
    after = read_widths(prunable.network)
    left = [sum(width[0] for width in widths.values() if len(width) > 1) for widths in (before, after)]
    return {
        "macs_share": trials.whole.costs(prunable, after)["macs_share"],
        "filters_left_percent": 100 * left[1] / left[0],
        f"val_{context.task.metric.key}_percent": trials.val_percent(prunable.network),
    }


def _search_of(notes: dict[str, Any]) -> dict[str, Any]:
    """Returns the tries that led to a step's cut; the notes of the next step replace them."""
    return {"search": notes["target"]["search"]} if "target" in notes else {}


def _warn_where_nothing_pruned(kept: Kept, model: str | None, left_out: list[dict[str, str]]) -> None:
    if kept:
        return
    reasons = Counter(row["reason"] for row in left_out)
    (reason, count), *_ = reasons.most_common(1) or [("there is none that can", 0)]
    log.warning(
        "prune: no layer of %s loses a filter, so prune changes nothing; of %d layers: %s. Leave prune out of the "
        "stages, or see preflight=true",
        model,
        count,
        reason,
    )
