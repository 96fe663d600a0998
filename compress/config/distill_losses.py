"""Reads `distill.losses`, NAME or NAME=WEIGHT each, and checks that each loss makes sense for the task."""

import math
from collections.abc import Sequence

from compress.utils.errors import UserError
from compress.utils.nearest import did_you_mean

LOGIT_LOSSES = ("kd", "kd_standardized", "dkd", "dist", "mlkd")  # of the outputs; `distill.alpha` weighs their sum
FEATURE_LOSSES = ("at", "rkd", "fitnet", "review")  # of layers
_ONE_CLASS_AN_IMAGE = "it compares a distribution over classes, one for each image"
# The losses that make no sense for a task, with the reason.
_REFUSED = {
    "multilabel": dict.fromkeys(("kd_standardized", "dkd", "dist", "mlkd"), _ONE_CLASS_AN_IMAGE),
    "detection": dict.fromkeys(("kd_standardized", "dkd", "dist", "mlkd"), _ONE_CLASS_AN_IMAGE)
    | {"rkd": "it compares whole images with each other, which have several objects here"},
}


def parse_losses(texts: Sequence[str]) -> dict[str, float | None]:
    """Returns the weight of each loss by name, None where none is given.

    Raises UserError for an unknown or repeated name, and for a weight that is negative or no number.
    """
    weights: dict[str, float | None] = {}
    names = (*LOGIT_LOSSES, *FEATURE_LOSSES)
    for text in texts:
        name, equals, number = text.partition("=")
        received = f"distill.losses with {text}"
        if name not in names:
            raise UserError(received, f"names among {', '.join(names)}", f"{did_you_mean(name, names)}mend that name")
        if name in weights:
            raise UserError(f"{received}, where {name} stands before", "each loss once", "remove the repeated one")
        weights[name] = _weight(number, received) if equals else None
    return weights


def _weight(number: str, received: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = -1.0
    if not (weight >= 0 and math.isfinite(weight)):
        raise UserError(received, "NAME or NAME=WEIGHT with a weight of 0 or more", "write it so, as kd=1.0")
    return weight


def feature_losses(losses: Sequence[str], hint_layers: Sequence[str]) -> dict[str, float | None]:
    """Returns the losses of layers with their weights: those of `losses`, or fitnet where only layers are named."""
    named = {name: weight for name, weight in parse_losses(losses).items() if name in FEATURE_LOSSES}
    return {"fitnet": None} if hint_layers and not named else named


def logit_losses(losses: Sequence[str]) -> dict[str, float | None]:
    """Returns the losses of the outputs with their weights."""
    return {name: weight for name, weight in parse_losses(losses).items() if name in LOGIT_LOSSES}


def check_task(losses: Sequence[str], task: str) -> None:
    """Raises UserError for a loss that makes no sense for the task."""
    for name in parse_losses(losses):
        if reason := _REFUSED.get(task, {}).get(name):
            allowed = [known for known in (*LOGIT_LOSSES, *FEATURE_LOSSES) if known not in _REFUSED[task]]
            raise UserError(
                f"distill.losses with {name} for data.task={task}: {reason}",
                f"losses among {', '.join(allowed)}",
                f"remove {name}",
            )
