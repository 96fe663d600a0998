"""Factorizes layers: replaces them by smaller ones, fits these to the outputs, and fine-tunes the network."""

import copy
import logging
from dataclasses import asdict
from typing import Any

from torch import nn

from compress.config.stage_settings import FactorizeConfig
from compress.evaluation.flops import count_cost
from compress.methods.distillation.fine_tuning import fine_tune
from compress.methods.factorization.choice import choose_ranks
from compress.methods.factorization.layers import Factors, rebuild_factorized
from compress.methods.factorization.ranks import FactorizableNetwork
from compress.methods.factorization.refit import decompose_layers, factorize_layers
from compress.methods.pruning.filter_length import set_unit_length
from compress.methods.pruning.limits import Whole
from compress.methods.pruning.trials import make_trials
from compress.models.artifact import Artifact
from compress.models.initialization import reinitialize
from compress.models.widths import read_widths
from compress.training.context import Context
from compress.training.loop import TrainSettings

log = logging.getLogger("compress")


def factorize(artifact: Artifact, config: FactorizeConfig, context: Context) -> Artifact:
    """Factorizes layers of the artifact's network and fine-tunes it.

    Where it factorizes any, the filters before batch norm are scaled to length 1, as prune does. With `reinitialize`
    all weights are new, and only the shape is kept.
    """
    network = artifact.network
    example = next(context.data.train.batches())[0][:1].to(context.device)
    params, macs = count_cost(network.eval(), context.data.shape)
    whole = Whole(read_widths(network), macs, params)
    trials = make_trials(network, whole, context, config.reconstruction_samples, config.target)
    factorizable = FactorizableNetwork(network, example, config.method, config.round_to)

    def decide() -> dict[str, Any]:
        choice = choose_ranks(factorizable, config, trials)
        return {"left": choice.left, "notes": choice.notes}

    decision = context.decide("ranks", decide)
    chosen, notes = factorizable.factors(decision["left"]), decision["notes"]
    layers = {name: factors.record() for name, factors in chosen.items()}
    if config.reinitialize:
        reinitialize(rebuild_factorized(network, layers))
    elif config.reconstruction_samples:
        original = copy.deepcopy(network)
        notes["unexplained_share"] = factorize_layers(network, original, chosen, trials.images())
    else:
        decompose_layers(network, chosen)
    if not chosen:
        _warn_of_nothing(factorizable, artifact.spec.architecture.get("model"))
    elif not config.reinitialize:
        set_unit_length(network, example)
    settings = TrainSettings("factorize", config.epochs, config.lr, schedule=config.schedule)
    notes["history"] = fine_tune(network, context, settings, config.distill)
    spec = artifact.spec.changed("factorize", layers=layers, settings=asdict(config))
    return Artifact(network, spec, _left_out(network, factorizable, chosen), notes)


def _left_out(
    network: nn.Module, factorizable: FactorizableNetwork, chosen: dict[str, Factors]
) -> list[dict[str, str]]:
    """Returns the layers that stay as they are, with the reasons."""
    kept = {group.layer for group in factorizable.groups} - chosen.keys()
    reasons = factorizable.left_out | dict.fromkeys(
        kept, "factors of it cost more accuracy for what they save than those of others"
    )
    return [{"layer": name, "reason": reasons[name]} for name, _ in network.named_modules() if name in reasons]


def _warn_of_nothing(factorizable: FactorizableNetwork, model: str | None) -> None:
    reasons = sorted(set(factorizable.left_out.values())) or ["the target is met without"]
    log.warning(
        "factorize: no layer of %s is factorized, so factorize changes nothing: %s. Leave factorize out of the stages, "
        "or ask for more by factorize.target or factorize.ratio",
        model,
        "; ".join(reasons),
    )
