"""The metric by which the networks of a task are compared, and its keys in metrics.json. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A metric in percent, higher is better; its key is part of keys of metrics.json."""

    key: str
    train_key: str  # the key of what each training step counts, for which no whole split is needed
    label: str  # in the heads of tables
    name: str  # in sentences
    p_value: str  # the key of the paired test against the teacher

    def percent(self, metrics: Mapping[str, Any]) -> float:
        """Returns the metric of the deployable file on the test images."""
        return metrics[f"deployed_{self.key}_percent"]

    def interval(self, metrics: Mapping[str, Any]) -> tuple[float, float]:
        """Returns the 95 % interval of `percent`."""
        low, high = metrics[f"deployed_{self.key}_ci95_percent"]
        return low, high

    def validation_percent(self, metrics: Mapping[str, Any]) -> float:
        """Returns the metric of the deployable file on the validation images."""
        return metrics[f"deployed_val_{self.key}_percent"]

    def delta(self, metrics: Mapping[str, Any]) -> float:
        """Returns the difference to the teacher's file on the same images, in points."""
        return metrics[f"{self.key}_delta_points"]

    def delta_interval(self, metrics: Mapping[str, Any]) -> tuple[float, float]:
        """Returns the 95 % interval of `delta`, in points."""
        low, high = metrics[f"{self.key}_delta_ci95_points"]
        return low, high


TOP1 = Metric("top1", "top1", "top-1", "top-1 accuracy", "mcnemar_p_value")
AUROC = Metric("auroc", "label_accuracy", "AUROC", "mean AUROC", "bootstrap_p_value")
MAP50 = Metric("map50", "image_ap50", "mAP50", "mean average precision at an IoU of 0.5", "bootstrap_p_value")
_METRICS = {metric.key: metric for metric in (TOP1, AUROC, MAP50)}


def metric_of(metrics: Mapping[str, Any]) -> Metric:
    """Returns the metric of a stage's metrics.json; files of earlier versions name none and have top-1."""
    return _METRICS[metrics.get("metric", TOP1.key)]
