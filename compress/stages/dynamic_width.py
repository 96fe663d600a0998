"""Trains the network at several widths, of which an image takes the narrowest that is sure of it."""

from dataclasses import asdict
from itertools import accumulate

import torch
from torch import nn

from compress.config.conditional_settings import DynamicWidthConfig
from compress.config.options import as_typed
from compress.config.stage_settings import DistillConfig, PruneConfig
from compress.evaluation.flops import count_cost
from compress.methods.conditional.calibrate import calibrate_exits
from compress.methods.conditional.selection import set_choice
from compress.methods.conditional.training import ends_loss, freeze
from compress.methods.distillation.teacher_logits import require_teacher, teacher_function
from compress.methods.dynamic_width.channels import Narrower, narrower_networks
from compress.methods.dynamic_width.network import DynamicWidthNetwork
from compress.methods.dynamic_width.shared_weights import SharedWeights
from compress.methods.pruning.filter_length import set_unit_length
from compress.methods.pruning.reconstruction import reconstruct
from compress.models.artifact import Artifact
from compress.models.widths import read_widths
from compress.training.context import Context
from compress.training.loop import TrainSettings, train
from compress.utils.tensors import to_device


def dynamic_width(artifact: Artifact, config: DynamicWidthConfig, context: Context) -> Artifact:
    """Cuts narrower networks out of the artifact's, trains them, alone or with it, and chooses their thresholds."""
    network = artifact.network.eval()
    example = torch.zeros(1, *context.data.shape, device=context.device)
    received = f"dynamic_width.widths={as_typed(config.widths)}"
    narrower = narrower_networks(network, example, config.widths[:-1], config.round_to, received)
    train_them = _train_all if config.train == "all" else _train_narrower
    made, history = train_them(network, narrower, config, context)
    widths = [*made.narrower, made.network]
    record = {
        "channels": [read_widths(narrow) for narrow in made.narrower],
        "ends": [{"width": share} for share in config.widths],
        "macs": list(accumulate(count_cost(each, context.data.shape)[1] for each in widths)),
        "settings": asdict(config),
    }
    choice, notes = calibrate_exits(made, record, context.data.val, context.device)
    set_choice(made, choice.temperatures, choice.thresholds)
    return Artifact(made, artifact.spec.changed("dynamic_width", **record), notes=notes | {"history": history})


def _train_narrower(
    network: nn.Module, narrower: list[Narrower], config: DynamicWidthConfig, context: Context
) -> tuple[DynamicWidthNetwork, list[dict[str, float]]]:
    """Refits the narrower networks as prune does, and trains them towards `network`, which stays as it is."""
    images = context.data.train.take(PruneConfig().reconstruction_samples, context.seed)
    inputs = torch.cat([to_device(batch, context.device) for batch, _ in images.batches()])
    for narrow in narrower:
        reconstruct(narrow.network, network, narrow.kept, inputs)
        set_unit_length(narrow.network, inputs[:1])
    made = DynamicWidthNetwork([narrow.network for narrow in narrower], network)
    defaults = DistillConfig()
    loss = ends_loss(None, defaults.temperature, defaults.alpha, context.task)
    settings = TrainSettings(
        "dynamic_width", config.epochs, config.lr, before_epoch=freeze(network), schedule=config.schedule
    )
    history = train(made, loss, context, settings)
    return made.eval(), history


def _train_all(
    network: nn.Module, narrower: list[Narrower], config: DynamicWidthConfig, context: Context
) -> tuple[DynamicWidthNetwork, list[dict[str, float]]]:
    """Trains all widths in each step, with shared weights, the narrower ones towards the widest.

    It is the sandwich of Yu & Huang 2019, "Universally slimmable networks", arXiv:1903.05134, sections 3.2 and 3.3.
    """
    shared, defaults = SharedWeights(network, narrower), DistillConfig()
    loss = ends_loss(teacher_function(context), defaults.temperature, defaults.alpha, context.task)
    settings = TrainSettings(
        "dynamic_width", config.epochs, config.lr, teacher=require_teacher(context), schedule=config.schedule
    )
    history = train(shared, loss, context, settings)
    return shared.separate().eval(), history
