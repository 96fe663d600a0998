"""The figure by which the networks of a task are compared, and where metrics.json has it. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A figure in percent, the more the better; keys of metrics.json are made of its own."""

    key: str
    train_key: str  # of what each training step counts, which needs no whole split
    label: str  # in the heads of tables
    name: str  # in sentences
    p_value: str  # the key of the paired test against the teacher

    def percent(self, metrics: Mapping[str, Any]) -> float:
        """The figure of the deployable file on the test images."""
        return metrics[f"deployed_{self.key}_percent"]

    def interval(self, metrics: Mapping[str, Any]) -> tuple[float, float]:
        """Its 95 % interval."""
        low, high = metrics[f"deployed_{self.key}_ci95_percent"]
        return low, high

    def validation_percent(self, metrics: Mapping[str, Any]) -> float:
        """The figure of the file on the validation images."""
        return metrics[f"deployed_val_{self.key}_percent"]

    def delta(self, metrics: Mapping[str, Any]) -> float:
        """Points against the teacher's file on the same images."""
        return metrics[f"{self.key}_delta_points"]

    def delta_interval(self, metrics: Mapping[str, Any]) -> tuple[float, float]:
        """The 95 % interval of these points."""
        low, high = metrics[f"{self.key}_delta_ci95_points"]
        return low, high


TOP1 = Metric("top1", "top1", "top-1", "top-1 accuracy", "mcnemar_p_value")
AUROC = Metric("auroc", "label_accuracy", "AUROC", "mean AUROC", "bootstrap_p_value")
_METRICS = {metric.key: metric for metric in (TOP1, AUROC)}


def metric_of(metrics: Mapping[str, Any]) -> Metric:
    """The metric that a stage's metrics.json is about; folders of earlier versions have top-1 and do not say so."""
    return _METRICS[metrics.get("metric", TOP1.key)]
