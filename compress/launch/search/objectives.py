"""The objectives and constraints of a search: figures of metrics.json to optimize, and bounds to keep."""

import re
from dataclasses import dataclass
from typing import Any

from compress.utils.errors import UserError

MAXIMIZE, MINIMIZE = "maximize", "minimize"

_BETTER = {
    MAXIMIZE: (
        "deployed_val_top1_percent",
        "deployed_val_delta_points",
        "deployed_top1_percent",
        "deployed_agreement_percent",
        "top1_percent",
        "top5_percent",
        "top1_delta_points",
        "deployed_val_auroc_percent",
        "deployed_auroc_percent",
        "auroc_percent",
        "auroc_delta_points",
        "deployed_label_accuracy_percent",
        "label_accuracy_percent",
        "deployed_val_map50_percent",
        "deployed_map50_percent",
        "map50_percent",
        "map50_delta_points",
        "deployed_map_percent",
        "map_percent",
        "deployed_balanced_accuracy_percent",
        "deployed_macro_f1_percent",
        "grad_cam_correlation",
        "teacher_agreement_percent",
        "agreement_percent",
        "throughput_images_per_s",
        "speedup_vs_teacher",
        "speedup_vs_onnx",
    ),
    MINIMIZE: (
        "latency_ms_p50",
        "latency_ms_p95",
        "latency_ms_mean",
        "size_bytes",
        "params",
        "macs",
        "mean_macs",
        "loss",
        "deployed_calibration_error_percent",
        "deployed_calibration_error_at_temperature_percent",
        "peak_memory_bytes",
        "energy_joule_per_image",
        "estimated_energy_mj_per_image",
        "training_energy_kwh_estimate",
        "training_co2_kg_estimate",
        "cuda_latency_ms_p50",
        "cuda_latency_ms_p95",
        "cuda_peak_memory_bytes",
    ),
}
DIRECTIONS = {name: direction for direction, names in _BETTER.items() for name in names}

_ON_VALIDATION = (
    "deployed_val_top1_percent", "deployed_val_auroc_percent", "deployed_val_map50_percent",
    "deployed_val_delta_points",
)  # fmt: skip
_ACCURACIES = (
    *_ON_VALIDATION,
    *("deployed_top1_percent", "top1_percent", "top5_percent", "top1_delta_points", "deployed_agreement_percent"),
    *("deployed_auroc_percent", "auroc_percent", "auroc_delta_points"),
    *("deployed_label_accuracy_percent", "label_accuracy_percent"),
    *("deployed_map50_percent", "map50_percent", "map50_delta_points", "deployed_map_percent", "map_percent"),
    *("teacher_agreement_percent", "agreement_percent"),
)
_ON_TEST = (*(name for name in _ACCURACIES if name not in _ON_VALIDATION), "loss")

_TIMES = (
    *("latency_ms_p50", "latency_ms_p95", "latency_ms_mean"),
    *("throughput_images_per_s", "speedup_vs_teacher", "speedup_vs_onnx"),
)

_NUMBER = r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Objective:
    """A figure to optimize."""

    figure: str
    direction: str  # MAXIMIZE or MINIMIZE

    @property
    def is_accuracy(self) -> bool:
        return self.direction == MAXIMIZE and _last(self.figure) in _ACCURACIES

    def __str__(self) -> str:
        return f"{self.direction} {self.figure}"


@dataclass(frozen=True)
class Constraint:
    """A figure with its bound."""

    figure: str
    relation: str  # <= or >=
    bound: float

    @property
    def is_accuracy_floor(self) -> bool:
        return self.relation == ">=" and _last(self.figure) in _ACCURACIES

    def excess(self, value: float) -> float:
        """Returns how far `value` is beyond the bound; 0 or less where the bound is kept."""
        return value - self.bound if self.relation == "<=" else self.bound - value

    def __str__(self) -> str:
        return f"{self.figure} {self.relation} {self.bound:.12g}"


@dataclass(frozen=True)
class Goals:
    """All objectives, the most important one first, and all constraints."""

    objectives: list[Objective]
    constraints: list[Constraint]

    @property
    def figures(self) -> list[str]:
        """The figures that a trial is judged by, each once."""
        aims = [objective.figure for objective in self.objectives]
        bounds = [constraint.figure for constraint in self.constraints]
        return list(dict.fromkeys(aims + bounds))

    @property
    def timed(self) -> list[str]:
        """Those figures that other programs on the machine would change."""
        return [name for name in self.figures if _last(name) in _TIMES]

    @property
    def on_test(self) -> list[str]:
        """Those figures that were measured on the test images."""
        return [name for name in self.figures if _last(name) in _ON_TEST]


def parse_goals(objectives: list[str], constraints: list[str]) -> Goals:
    """Parses goals as users type them: "FIGURE", "minimize FIGURE", "FIGURE >= NUMBER" or "FIGURE <= NUMBER".

    A figure of another runtime has a name like `targets.openvino.latency_ms_p50`. Raises UserError for anything else.
    """
    goals = Goals([_objective(text) for text in objectives], [_constraint(text) for text in constraints])
    named = [objective.figure for objective in goals.objectives]
    if not named or len(set(named)) < len(named):
        raise UserError(
            f"hydra.sweeper.objectives=[{','.join(objectives)}]",
            "one figure of metrics.json or more, each once",
            "set hydra.sweeper.objectives=[deployed_val_top1_percent,latency_ms_p50], for example",
        )
    return goals


def take_figure(metrics: dict[str, Any], name: str) -> float:
    """Returns the number `name` of metrics.json, which may be nested: `targets.openvino.size_bytes`.

    Raises UserError where there is no such number, with the cause that metrics.json names.
    """
    value: Any = metrics
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    causes = metrics.get("unavailable", {})
    cause = causes.get(name) or ("it is no number" if value is not None else "metrics.json has no such figure")
    raise UserError(f"no {name} of a trial: {cause}", "a number to judge it by", "search for figures that are there")


def _objective(text: str) -> Objective:
    found = re.fullmatch(rf"\s*(?:({MAXIMIZE}|{MINIMIZE})\s+)?([\w.]+)\s*", text)
    if not found:
        raise _mistake("objectives", text, "a figure of metrics.json, with maximize or minimize before it or without")
    direction, figure = found.groups()
    if direction is None and _last(figure) not in DIRECTIONS:
        expected = f"a direction before it, or one of which it is known: {', '.join(DIRECTIONS)}"
        raise _mistake("objectives", figure, expected)
    return Objective(figure, direction or DIRECTIONS[_last(figure)])


def _constraint(text: str) -> Constraint:
    found = re.fullmatch(rf"\s*([\w.]+)\s*(<=|>=)\s*({_NUMBER})\s*", text)
    if not found:
        raise _mistake("constraints", text, 'FIGURE <= NUMBER or FIGURE >= NUMBER, e.g. "top1_delta_points >= -1"')
    figure, relation, bound = found.groups()
    if _last(figure) not in DIRECTIONS:
        raise _mistake("constraints", text, f"a figure among {', '.join(DIRECTIONS)}")
    return Constraint(figure, relation, float(bound))


def _mistake(key: str, received: str, expected: str) -> UserError:
    return UserError(f"hydra.sweeper.{key} with {received}", expected, "mend that entry")


def _last(figure: str) -> str:
    return figure.rpartition(".")[2]
