"""Detects a pretrained teacher that was trained on the validation images, which then mislead every choice.

On images that the teacher has memorised, a student that generalises better looks worse.
"""

import math
from typing import Any

from compress.utils.metric import TOP1, metric_of

_P_VALUE = 0.001  # one-sided: the warning is wrong once in a thousand runs


def seen_validation(record: dict[str, Any], metrics: dict[str, Any]) -> str | None:
    """Returns a warning for the log and the report, or None; takes the teacher's stage.json and metrics.json.

    A pretrained teacher has seen the validation images if it makes significantly fewer mistakes on them than on the
    test images (one-sided z-test of two proportions).
    """
    teacher, source = record["config"]["teacher"], record.get("validation", {}).get("from")
    pretrained = not teacher["epochs"] or teacher["checkpoint"] or teacher["weights"]
    if (
        not pretrained or source not in ("train", "own") or metric_of(metrics) is not TOP1
    ):  # the test compares proportions
        return None
    metric = metric_of(metrics)
    validation, test = metric.validation_percent(metrics), metric.percent(metrics)
    if _p_value(validation, metrics["val_images"], test, metrics["images"]) >= _P_VALUE:
        return None
    origin = {
        "train": "They are held out of train: set data.val_from=test, which takes a share of the test images instead.",
        "own": "They are the data's own split: put images into it that the teacher was not trained on, or take it away "
        "and set data.val_from=test.",
    }
    return (
        f"The teacher has {validation:.2f} % on the {metrics['val_images']:,} validation images and {test:.2f} % on "
        f"the {metrics['images']:,} test images: it was probably trained on the former, so choices made on them "
        f"(the epoch, max_drop_points, a search) are not to be trusted. {origin[source]}"
    )


def _p_value(percent: float, count: int, other_percent: float, other_count: int) -> float:
    """Returns the probability of so large a lead of `percent` if both proportions are equal."""
    pooled = (percent * count + other_percent * other_count) / (count + other_count) / 100
    spread = math.sqrt(pooled * (1 - pooled) * (1 / count + 1 / other_count))
    lead = (percent - other_percent) / 100
    return 0.5 * math.erfc(lead / spread / math.sqrt(2)) if spread > 0 else 1.0
