"""Prunes filters: removes them, refits the remaining layers to compensate, and fine-tunes the network."""

import copy
import logging
from collections import Counter
from dataclasses import asdict

import torch

from compress.config.schema import PruneConfig
from compress.methods.distillation.losses import label_loss
from compress.methods.pruning.filter_length import set_unit_length
from compress.methods.pruning.filters import prune_filters
from compress.methods.pruning.reconstruction import reconstruct, skipped_layers
from compress.models.artifact import Artifact
from compress.models.initialization import initialize
from compress.models.widths import read_widths
from compress.training.context import Context
from compress.training.loop import TrainSettings, train
from compress.utils.tensors import to_device

log = logging.getLogger("compress")


def prune(artifact: Artifact, config: PruneConfig, context: Context) -> Artifact:
    """Removes filters from the artifact's network and fine-tunes it on the task's loss.

    Where it removes any, the filters before batch norm are scaled to length 1, so that the learning rates of this and
    of later stages mean the same for every network.
    """
    network = artifact.network
    before = read_widths(network)
    example = next(context.data.train.batches())[0][:1].to(context.device)
    original = copy.deepcopy(network)
    pruned = prune_filters(network, example, config)
    if (config.ratio or config.layer_ratios) and not pruned.kept:
        _warn_of_nothing_pruned(artifact.spec.architecture.get("model"), pruned.left_out)
    after = read_widths(network)
    errors, left_out = {}, pruned.left_out
    if config.reconstruction_samples and pruned.kept and not config.reinitialize:
        samples = context.data.train.take(config.reconstruction_samples, context.seed)
        images = torch.cat([to_device(images, context.device) for images, _ in samples.batches()])
        errors = reconstruct(network, original, pruned.kept, images)
        left_out = left_out + skipped_layers(network, original, example)
    if config.reinitialize:
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        initialize(network)
    elif pruned.kept:
        set_unit_length(network, example)
    filters = {name: (before[name][0], width[0]) for name, width in after.items() if len(width) > 1}

    loss = label_loss(context.train.label_smoothing, context.task)
    history = train(network, loss, context, TrainSettings("prune", config.epochs, config.lr))
    changed = {name: width for name, width in after.items() if width != before[name]}
    spec = artifact.spec.changed("prune", widths=changed, settings=asdict(config), kept_filters=pruned.kept)
    return Artifact(network, spec, left_out, {"filters": filters, "unexplained_share": errors, "history": history})


def _warn_of_nothing_pruned(model: str | None, left_out: list[dict[str, str]]) -> None:
    reasons = Counter(row["reason"] for row in left_out)
    (reason, count), *_ = reasons.most_common(1) or [("there is none that can", 0)]
    log.warning(
        "prune: no layer of %s loses a filter, so prune changes nothing; of %d layers: %s. Leave prune out of the "
        "stages, or see preflight=true",
        model,
        count,
        reason,
    )
