"""Goals are read strictly, and never run; a figure that is not there is told with its cause."""

import pytest

from compress.config.schema import SearchConfig
from compress.launch.search.objectives import MAXIMIZE, MINIMIZE, Constraint, Objective, parse_goals, take_figure
from compress.utils.errors import UserError

ACCURACY = "deployed_val_top1_percent"


def test_directions_are_known_or_written() -> None:
    goals = parse_goals(["top1_percent", "size_bytes", "minimize teacher_agreement_percent", "maximize images"], [])
    assert goals.objectives == [
        Objective("top1_percent", MAXIMIZE),
        Objective("size_bytes", MINIMIZE),
        Objective("teacher_agreement_percent", MINIMIZE),
        Objective("images", MAXIMIZE),
    ]
    assert parse_goals(["targets.openvino.latency_ms_p50"], []).objectives[0].direction == MINIMIZE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top1_delta_points >= -1", Constraint("top1_delta_points", ">=", -1.0)),
        (" size_bytes<=1e6 ", Constraint("size_bytes", "<=", 1e6)),
        ("targets.openvino.latency_ms_p50 <= +0.5", Constraint("targets.openvino.latency_ms_p50", "<=", 0.5)),
    ],
)
def test_constraints_are_a_figure_a_relation_and_a_number(text: str, expected: Constraint) -> None:
    assert parse_goals([ACCURACY], [text]).constraints == [expected]
    assert parse_goals([ACCURACY], [str(expected)]).constraints == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "top1_delta_points > -1",
        "top1_delta_points >= minus one",
        "-1 <= top1_delta_points",
        "size_bytes <= 1e6 and macs <= 1e6",
        "size_bytes <= nan",
        "size_bytes <= __import__('os').getpid()",
        "smallness >= 1",
        "",
    ],
)
def test_other_constraints_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"received hydra\.sweeper\.constraints with"):
        parse_goals([ACCURACY], [text])


@pytest.mark.parametrize("texts", [["images"], ["enlarge images"], ["size_bytes; exit"], [], ["macs", "minimize macs"]])
def test_other_objectives_are_refused(texts: list[str]) -> None:
    with pytest.raises(UserError, match=r"received hydra\.sweeper\.objectives"):
        parse_goals(texts, [])


@pytest.mark.parametrize("value", [-2.0, -1.0, 0.0, 3.5])
@pytest.mark.parametrize("relation", ["<=", ">="])
def test_an_excess_is_positive_where_the_bound_is_broken(relation: str, value: float) -> None:
    kept = value <= -1 if relation == "<=" else value >= -1
    assert (Constraint("macs", relation, -1.0).excess(value) <= 0) == kept


def test_a_figure_that_is_not_there_is_told_with_its_cause() -> None:
    metrics = {
        "energy_joule_per_image": None,
        "top1_ci95_percent": [1, 2],
        "targets": {"openvino": {"size_bytes": 7}},
        "unavailable": {"energy_joule_per_image": "no RAPL counter"},
    }
    assert take_figure(metrics, "targets.openvino.size_bytes") == 7.0
    for name, cause in (
        ("energy_joule_per_image", "no RAPL counter"),
        ("top1_ci95_percent", "no number"),
        ("targets.executorch.size_bytes", "has no such figure"),
        ("targets.openvino", "no number"),
    ):
        with pytest.raises(UserError, match=cause):
            take_figure(metrics, name)


def test_what_the_test_images_gave_is_known() -> None:
    constraints = ["top1_delta_points >= -1", "targets.openvino.top1_percent >= 90", "size_bytes <= 1e6"]
    goals = parse_goals(["deployed_top1_percent", "latency_ms_p50"], constraints)
    assert goals.on_test == ["deployed_top1_percent", "top1_delta_points", "targets.openvino.top1_percent"]
    usual = SearchConfig()
    assert parse_goals(usual.objectives, usual.constraints).on_test == []
