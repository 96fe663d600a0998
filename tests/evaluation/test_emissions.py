"""The estimate of what a stage takes: it disturbs nothing, tells nobody, and is missing where nothing can make it."""

import random
import socket
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.evaluation import emissions
from compress.evaluation.emissions import CO2, ENERGY, TRACKED, require_country, track_cost
from compress.evaluation.energy import NOT_INSTALLED
from compress.utils.errors import UserError
from compress.utils.missing import Unavailable, earlier_figures, with_causes

CPU = torch.device("cpu")

needs_codecarbon = pytest.mark.skipif(find_spec("codecarbon") is None, reason="the extra energy is not installed")


def compute() -> None:
    for _ in range(20):
        torch.ones(300, 300) @ torch.ones(300, 300)


def estimate(country: str | None) -> dict[str, float]:
    with track_cost(country, CPU) as figures:
        compute()
    return figures


def test_without_the_extra_the_cause_stands_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emissions, "find_spec", lambda name: None)
    figures = estimate("nowhere")
    assert tuple(figures) == TRACKED
    assert figures[ENERGY] == figures[CO2] == Unavailable(NOT_INSTALLED)
    require_country("nowhere")


@needs_codecarbon
@pytest.mark.parametrize("country", [None, "FRA"])
def test_co2_is_energy_times_the_mix_of_the_country(country: str | None) -> None:
    from codecarbon.input import DataSource

    mix = 475.0  # g/kWh, the IEA's figure for the world
    if country:
        mix = DataSource().get_global_energy_mix_data()[country]["carbon_intensity"]
        assert mix < 100
    figures = estimate(country)
    assert figures[ENERGY] > 0
    assert figures[CO2] == pytest.approx(figures[ENERGY] * mix / 1000)


@needs_codecarbon
def test_an_unknown_country_is_refused_before_any_work() -> None:
    require_country(None)
    require_country("DEU")
    with pytest.raises(UserError, match=r"measure\.country=Germany; expected a country's ISO 3166 alpha-3 code"):
        require_country("Germany")


@needs_codecarbon
def test_it_asks_and_tells_nobody_whatever_codecarbon_is_set_to(tmp_path: Path, monkeypatch, capfd) -> None:
    calls = []
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda *_: calls.append("connect"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: calls.append("look-up"))
    for name, value in {
        "EMISSIONS_ENDPOINT": "http://localhost:9",
        "SAVE_TO_API": "true",
        "OUTPUT_METHODS": "csv,api,prometheus",
        "ELECTRICITYMAPS_API_TOKEN": "token",
        "CO2_SIGNAL_API_TOKEN": "token",
        "CLOUD_PROVIDER": "gcp",
        "CLOUD_REGION": "europe-north1",
        "LOG_LEVEL": "debug",
        "ALLOW_MULTIPLE_RUNS": "false",
        "OUTPUT_DIR": str(tmp_path / "nowhere"),
    }.items():
        monkeypatch.setenv(f"CODECARBON_{name}", value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    figures = estimate(None)
    assert figures[CO2] == pytest.approx(figures[ENERGY] * 0.475)
    assert calls == []
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@needs_codecarbon
def test_random_numbers_go_on_as_without_it() -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    estimate(None)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


@needs_codecarbon
def test_a_stage_that_fails_leaves_no_thread() -> None:
    before = set(threading.enumerate())

    def fail() -> None:
        with track_cost(None, CPU):
            assert set(threading.enumerate()) > before
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


def test_missing_figures_are_null_and_come_back_with_their_cause() -> None:
    figures = {"a": 0.0, "b": Unavailable("no counter"), "c": [1]}
    metrics = with_causes(figures)
    assert metrics == {"a": 0.0, "b": None, "c": [1], "unavailable": {"b": "no counter"}}
    assert earlier_figures(metrics, figures) == figures
    assert earlier_figures(metrics, ["d"])["d"].cause
