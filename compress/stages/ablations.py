"""The ablations: simpler ways to a network as small with the same epochs, as changes of a run's config."""

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


def _shaping(config: Config) -> list[str]:
    """Returns the stages that make the network smaller, in order."""
    asked = {"prune": config.prune.removes_filters, "factorize": config.factorize.replaces_layers}
    return [name for name in config.stages if asked.get(name)]


def _distills_last(config: Config) -> bool:
    """Whether distillation follows the last stage that makes the network smaller; there is one."""
    return "distill" in config.stages[config.stages.index(_shaping(config)[-1]) :]


def _random_pruned(config: Config) -> Config:
    return replace(config, prune=replace(config.prune, importance="random"))


def _equal_ranks(config: Config) -> Config:
    return replace(config, factorize=replace(config.factorize, scope="local"))


def _uniform_architecture(config: Config) -> Config:
    return replace(config, search_architecture=replace(config.search_architecture, trials=0))


def _labels_only(config: Config) -> Config:
    epochs = STAGES["distill"].epochs(config.distill)
    distill = replace(config.distill, losses=["kd"], alpha=0.0, hint_layers=[], teachers=[], rounds=1, epochs=epochs)
    prune, factorize = replace(config.prune, distill=False), replace(config.factorize, distill=False)
    search, quantize = replace(config.search_architecture, distill=False), replace(config.quantize, alpha=0.0)
    return replace(
        config, prune=prune, factorize=factorize, search_architecture=search, distill=distill, quantize=quantize
    )


def _from_scratch(config: Config) -> Config:
    """Puts all float epochs into one training from new weights, at the teacher's learning rate and schedule.

    It starts after the last stage that makes the network smaller. The stages before do what they do in the run, because
    their networks decide the shape.
    """
    last, teacher = _shaping(config)[-1], config.teacher
    at = config.stages.index(last)
    settings = replace(
        getattr(config, last),
        reinitialize=True,
        distill=False,
        epochs=_float_epochs(config),
        lr=teacher.lr,
        schedule=teacher.schedule,
        **({"steps": 1, "sparsity_epochs": 0} if last == "prune" else {}),
    )
    stages = config.stages[: at + 1] + [name for name in config.stages[at + 1 :] if name != "distill"]
    return replace(config, stages=stages, quantize=replace(config.quantize, alpha=0.0), **{last: settings})


def _no_smaller_shape(config: Config) -> str:
    if not _shaping(config):
        return "nothing is pruned or factorized"
    if config.distill.student and _distills_last(config):
        return "distill.student takes the place of the smaller network"
    return ""


def _no_choice_of_filters(config: Config) -> str:
    if "prune" not in _shaping(config):
        return "nothing is pruned"
    if config.prune.importance == "random":
        return "prune.importance is random"
    if config.prune.target.max_drop_points is not None:
        return "prune.target.max_drop_points would find a larger network for it"
    return _no_smaller_shape(config)


def _no_choice_of_ranks(config: Config) -> str:
    if "factorize" not in _shaping(config):
        return "nothing is factorized"
    if config.factorize.scope == "local":
        return "factorize.scope is local"
    if config.factorize.target.max_drop_points is not None:
        return "factorize.target.max_drop_points would find a larger network for it"
    return _no_smaller_shape(config)


def _no_search(config: Config) -> str:
    if "search_architecture" not in config.stages:
        return "no architecture is searched"
    if not config.search_architecture.trials:
        return "search_architecture.trials is 0"
    if config.search_architecture.target.max_drop_points is not None:
        return "search_architecture.target.max_drop_points would find a larger network for it"
    return ""


def _no_training(config: Config) -> str:
    shaping = [name for name in config.stages if name in (*_shaping(config), "search_architecture")]
    if shaping[-1:] == ["search_architecture"]:
        return "search_architecture decides the shape by trained weights, and draws no new ones"
    if reason := _no_smaller_shape(config):
        return reason
    prune = config.prune
    if _shaping(config)[-1] == "prune" and prune.scope != "local" and (prune.steps > 1 or prune.sparsity_epochs):
        return "prune.steps or prune.sparsity_epochs decide the shape, which new weights would not get"
    if config.distill.student_image_size and _distills_last(config):
        return "it trains without distill, and so without distill.student_image_size"
    return "" if _float_epochs(config) else "there is no epoch before int8"


def _no_distillation(config: Config) -> str:
    distill, quantize = config.distill, config.quantize
    compared = distill.alpha or feature_losses(distill.losses, distill.hint_layers)
    distilled = "distill" in config.stages and distill.epochs and compared
    epochs = {"search_architecture": config.search_architecture.fine_tune_epochs}
    epochs |= {name: getattr(config, name).epochs for name in ("prune", "factorize")}
    tuned = [getattr(config, name) for name in epochs if name in config.stages and epochs[name]]
    distilled = distilled or any(settings.distill for settings in tuned)
    aware = "quantize" in config.stages and quantize.mode == "qat" and quantize.epochs and quantize.alpha
    return "" if distilled or aware else "nothing is learned from the teacher"


ABLATIONS = {
    "random_pruned": Ablation("filters removed at random, all else the same", _random_pruned, _no_choice_of_filters),
    "equal_ranks": Ablation(
        "ranks that fall alike in all layers, all else the same", _equal_ranks, _no_choice_of_ranks
    ),
    "uniform_architecture": Ablation(
        "the sub-network whose layers are all alike narrower, all else the same", _uniform_architecture, _no_search
    ),
    "finetuned_without_distillation": Ablation(
        "the same network, trained as long on the labels alone", _labels_only, _no_distillation
    ),
    "dense_from_scratch": Ablation(
        "a network of the same shape, trained from new weights on the labels alone", _from_scratch, _no_training
    ),
}
