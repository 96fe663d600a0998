"""What a search prints: every setting is there in full, whatever its length, in 80 columns."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from compress.launch.search import results
from compress.launch.search.objectives import parse_goals
from compress.launch.search.trials import COMPLETE, Trial

SETTINGS = {
    "distill.temperature": 0.6436378296983221,
    "distill.hint_layers": "[layer1.0.conv1,layer2]",
    "data.root": f"/data/{'x' * 90}",
}


def test_long_settings_wrap_and_are_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    monkeypatch.setattr(results, "get_console", lambda: console)
    figures = {"deployed_top1_percent": 92.0, "latency_ms_p50": 0.25, "size_bytes": 9000.0, "top1_delta_points": -0.5}
    goals = parse_goals(["deployed_top1_percent", "latency_ms_p50"], ["size_bytes <= 1e6"])
    results.print_results(tmp_path, [Trial(3, COMPLETE, SETTINGS, "3", "host", figures)], goals)
    lines = console.export_text().splitlines()
    assert max(map(len, lines[:12])) <= 80
    text = "".join("".join(lines).split())  # a line may end at each space and inside a long word
    for part in ("distill.temperature0.6436,", "distill.hint_layers[layer1.0.conv1,layer2],", SETTINGS["data.root"]):
        assert part in text
