"""The ablations: simpler ways to a network of the same shape with the same epochs, as changes of a run's config."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from compress.config.distill_losses import feature_losses
from compress.config.schema import Config
from compress.stages import STAGES


@dataclass
class Ablation:
    """A simpler way; `change` returns its config, `unfit` the reason why it would show nothing, or an empty text."""

    what: str
    change: Callable[[Config], Config]
    unfit: Callable[[Config], str]


def budget_epochs(config: Config) -> int:
    """Returns the number of epochs after the teacher."""
    return _epochs(config, config.stages[1:])


def _float_epochs(config: Config) -> int:
    """Returns the number of epochs between the teacher and int8 that shape the network itself, without its exits."""
    return _epochs(config, [name for name in config.stages[1:] if STAGES[name].followed_by is None])


def _epochs(config: Config, stages: list[str]) -> int:
    return sum(STAGES[name].epochs(getattr(config, name)) for name in stages)


def _random_pruned(config: Config) -> Config:
    return replace(config, prune=replace(config.prune, importance="random"))


def _labels_only(config: Config) -> Config:
    epochs = STAGES["distill"].epochs(config.distill)
    distill = replace(config.distill, losses=["kd"], alpha=0.0, hint_layers=[], teachers=[], rounds=1, epochs=epochs)
    prune, quantize = replace(config.prune, distill=False), replace(config.quantize, alpha=0.0)
    return replace(config, prune=prune, distill=distill, quantize=quantize)


def _from_scratch(config: Config) -> Config:
    """Puts all float epochs into one training from new weights, at the teacher's learning rate and schedule."""
    plain, teacher = _labels_only(config), config.teacher
    prune = replace(
        plain.prune,
        reinitialize=True,
        steps=1,
        sparsity_epochs=0,
        epochs=_float_epochs(config),
        lr=teacher.lr,
        schedule=teacher.schedule,
    )
    return replace(plain, stages=[name for name in config.stages if name != "distill"], prune=prune)


def _no_pruned_shape(config: Config) -> str:
    if "prune" not in config.stages or not config.prune.removes_filters:
        return "nothing is pruned"
    if "distill" in config.stages and config.distill.student:
        return "distill.student takes the place of the pruned network"
    return ""


def _no_choice(config: Config) -> str:
    if config.prune.importance == "random":
        return "prune.importance is random"
    if config.prune.target.max_drop_points is not None:
        return "prune.target.max_drop_points would find a larger network for it"
    return _no_pruned_shape(config)


def _no_training(config: Config) -> str:
    if config.prune.scope != "local" and (config.prune.steps > 1 or config.prune.sparsity_epochs):
        return "prune.steps or prune.sparsity_epochs decide the shape, which new weights would not get"
    return _no_pruned_shape(config) or ("" if _float_epochs(config) else "there is no epoch before int8")


def _no_distillation(config: Config) -> str:
    distill, quantize = config.distill, config.quantize
    compared = distill.alpha or feature_losses(distill.losses, distill.hint_layers)
    distilled = "distill" in config.stages and distill.epochs and compared
    distilled = distilled or ("prune" in config.stages and config.prune.distill and config.prune.epochs)
    aware = "quantize" in config.stages and quantize.mode == "qat" and quantize.epochs and quantize.alpha
    return "" if distilled or aware else "nothing is learned from the teacher"


ABLATIONS = {
    "random_pruned": Ablation("filters removed at random, all else the same", _random_pruned, _no_choice),
    "finetuned_without_distillation": Ablation(
        "the same network, trained as long on the labels alone", _labels_only, _no_distillation
    ),
    "dense_from_scratch": Ablation(
        "a network of the pruned shape, trained from new weights on the labels alone", _from_scratch, _no_training
    ),
}
