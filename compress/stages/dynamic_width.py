"""Trains the network at several widths, of which an image takes the narrowest that is sure of it."""

from dataclasses import asdict
from itertools import accumulate

import torch

from compress.config.options import as_typed
from compress.config.stage_settings import DistillConfig, DynamicWidthConfig
from compress.evaluation.flops import count_cost
from compress.methods.conditional.calibrate import calibrate_exits
from compress.methods.conditional.selection import set_choice
from compress.methods.conditional.training import ends_loss
from compress.methods.distillation.teacher_logits import require_teacher, teacher_function
from compress.methods.dynamic_width.channels import narrower_networks
from compress.methods.dynamic_width.shared_weights import SharedWeights
from compress.models.artifact import Artifact
from compress.models.widths import read_widths
from compress.training.context import Context
from compress.training.loop import TrainSettings, train


def dynamic_width(artifact: Artifact, config: DynamicWidthConfig, context: Context) -> Artifact:
    """Cuts narrower networks out of the artifact's, trains all with shared weights and chooses their thresholds."""
    network = artifact.network.eval()
    example = torch.zeros(1, *context.data.shape, device=context.device)
    received = f"dynamic_width.widths={as_typed(config.widths)}"
    narrower = narrower_networks(network, example, config.widths[:-1], config.round_to, received)
    shared = SharedWeights(network, narrower)
    history = _train(shared, config, context)
    made = shared.separate().eval()
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


def _train(network: SharedWeights, config: DynamicWidthConfig, context: Context) -> list[dict[str, float]]:
    """Trains all widths in each step, the narrower ones towards the widest, as distill does by default.

    It is the sandwich of Yu & Huang 2019, "Universally slimmable networks", arXiv:1903.05134, sections 3.2 and 3.3.
    Returns a row an epoch.
    """
    defaults = DistillConfig()
    loss = ends_loss(teacher_function(context), defaults.temperature, defaults.alpha, context.task)
    settings = TrainSettings(
        "dynamic_width", config.epochs, config.lr, teacher=require_teacher(context), schedule=config.schedule
    )
    return train(network, loss, context, settings)
