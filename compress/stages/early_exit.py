"""Gives the network exits, at which images leave that its first layers are sure of, and trains them."""

from dataclasses import asdict

import torch

from compress.config.conditional_settings import EarlyExitConfig
from compress.config.stage_settings import DistillConfig
from compress.methods.conditional.calibrate import calibrate_exits
from compress.methods.conditional.selection import set_choice
from compress.methods.conditional.training import ends_loss, freeze
from compress.methods.distillation.teacher_logits import require_teacher, teacher_function
from compress.methods.early_exit.network import EarlyExitNetwork
from compress.methods.early_exit.places import Places
from compress.methods.early_exit.shapes import ends_macs, exit_shapes
from compress.models.artifact import Artifact
from compress.training.context import Context
from compress.training.loop import TrainSettings, train


def early_exit(artifact: Artifact, config: EarlyExitConfig, context: Context) -> Artifact:
    """Adds exits after `config.after`, or after found modules, trains them and chooses their thresholds."""
    classes = len(context.data.classes)
    places = Places(artifact.network, torch.zeros(1, *context.data.shape, device=context.device))
    chosen = places.named(config.after) if config.after else places.near_thirds()
    shapes = exit_shapes(chosen, places.macs)
    network = EarlyExitNetwork(artifact.network, shapes, classes).to(context.device)
    history = _train(network, config, context)
    record = {
        "exits": [asdict(shape) for shape in shapes],
        "ends": [*({"after": shape.after} for shape in shapes), {"after": None}],
        "macs": ends_macs(chosen, shapes, classes, places.macs),
        "settings": asdict(config),
    }
    choice, notes = calibrate_exits(network.eval(), record, context.data.val, context.device)
    set_choice(network, choice.temperatures, choice.thresholds)
    return Artifact(network, artifact.spec.changed("early_exit", **record), notes=notes | {"history": history})


def _train(network: EarlyExitNetwork, config: EarlyExitConfig, context: Context) -> list[dict[str, float]]:
    """Trains the exits, and with train=all the network too, as distill does by default; returns a row an epoch."""
    whole = config.train == "all"
    defaults = DistillConfig()
    teacher_fn = teacher_function(context) if whole else None
    loss = ends_loss(teacher_fn, defaults.temperature, defaults.alpha, context.task)
    settings = TrainSettings(
        "early_exit",
        config.epochs,
        config.lr,
        before_epoch=(lambda epoch: None) if whole else freeze(network.network),
        teacher=require_teacher(context) if whole else None,
        schedule=config.schedule,
    )
    return train(network, loss, context, settings)
