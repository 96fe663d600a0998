"""Hydra's sweep syntax becomes a space, and nothing outside it is ever proposed."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from compress.config.schema import SearchConfig
from compress.launch.search.space import Dimension, read_space
from compress.utils.errors import UserError
from tests.launch.search.fake import fake_trials


def space_of(*overrides: str) -> list[Dimension]:
    return read_space(OverridesParser.create().parse_overrides(list(overrides)))[1]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("prune.ratio=interval(0.2,0.8)", FloatDistribution(0.2, 0.8)),
        ("distill.temperature=interval(1,4)", FloatDistribution(1.0, 4.0)),
        ("quantize.max_drop_points=interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("distill.lr=tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("distill.epochs=interval(1,9)", IntDistribution(1, 9)),
        ("distill.epochs=tag(log,interval(1,64))", IntDistribution(1, 64, log=True)),
        ("prune.round_to=range(8,33,8)", IntDistribution(8, 32, step=8)),
        ("prune.round_to=range(32,7,-8)", IntDistribution(8, 32, step=8)),
        ("prune.ratio=range(0.1,0.45,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("prune.importance=l1,l2", CategoricalDistribution(["l1", "l2"])),
        ("distill.temperature=choice(1,2,2,4)", CategoricalDistribution(["1", "2", "4"])),
        ("stages=[teacher,prune],[teacher]", CategoricalDistribution(["[teacher,prune]", "[teacher]"])),
        ("data=digits,npz", CategoricalDistribution(["digits", "npz"])),
    ],
)
def test_each_form_becomes_its_distribution(override: str, expected: object) -> None:
    (dimension,) = space_of(override)
    assert dimension == Dimension(override.partition("=")[0], expected)


@pytest.mark.parametrize(
    "override",
    [
        "prune.ratio=interval(0.8,0.2)",
        "prune.ratio=interval(0,inf)",
        "prune.ratio=tag(log,interval(0,0.5))",
        "prune.ratio=tag(often,interval(0.1,0.5))",
        "distill.epochs=interval(1,2.5)",
        "distill.epochs=range(1,3,0.5)",
        "distill.epochs=tag(log,range(2,9,2))",
        "prune.ratio=range(0.5,0.1)",
        "prune.importance=interval(0,1)",
        "prune.unheard=interval(0,1)",
        "data=interval(0,1)",
        "prune.importance=tag(log,choice(l1,l2))",
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(override: str) -> None:
    with pytest.raises(UserError, match=override.partition("=")[0]):
        space_of(override)


def test_the_last_of_two_holds_and_the_rest_is_kept_as_typed() -> None:
    typed = ["prune.ratio=0.3", "distill.alpha=0.1,0.2", "seed=1", "prune.ratio=interval(0.1,0.2)", "distill.alpha=0.7"]
    fixed, space = read_space(OverridesParser.create().parse_overrides(typed))
    assert fixed == ["distill.alpha=0.7", "seed=1"]
    assert [dimension.key for dimension in space] == ["prune.ratio"]
    with pytest.raises(UserError, match="nothing to search"):
        space_of("prune.ratio=0.3")


def test_a_step_leaves_no_noise_in_the_last_digit() -> None:
    (dimension,) = space_of("prune.ratio=range(0.1,0.95,0.1)")
    assert dimension.typed(0.1 + 2 * 0.1) == "prune.ratio=0.3"
    (dimension,) = space_of("prune.ratio=interval(0.1,0.9)")
    assert dimension.typed(0.1 + 2 * 0.1) == "prune.ratio=0.30000000000000004"


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsgaii", "random"])
@pytest.mark.parametrize("goals", [["size_bytes"], ["size_bytes", "latency_ms_p50"]], ids=len)
def test_no_sampler_ever_proposes_what_is_not_in_the_space(tmp_path: Path, sampler: str, goals: list[str]) -> None:
    space = space_of(
        "prune.ratio=interval(0.2,0.8)",
        "distill.lr=tag(log,interval(1e-4,1e-1))",
        "distill.epochs=interval(1,3)",
        "prune.round_to=range(8,33,8)",
        "quantize.mode=ptq,qat",
    )
    settings = SearchConfig(sampler=sampler, objectives=goals, constraints=["macs <= 40"], storage="sqlite://")
    trials = fake_trials(tmp_path, settings, space=space)
    for number in range(12):  # TPE and GP propose at random until they have ten
        trial = trials.ask(12)
        for dimension in space:
            value = trial.settings[dimension.key]
            assert dimension.distribution._contains(dimension.distribution.to_internal_repr(value))
        assert isinstance(trial.settings["distill.epochs"], int)
        assert 0.2 <= trial.settings["prune.ratio"] <= 0.8
        assert trial.settings["prune.round_to"] in (8, 16, 24, 32)
        figures = {"size_bytes": trial.settings["prune.ratio"], "latency_ms_p50": number % 5, "macs": 10 * (number % 7)}
        trials.complete(trial, figures, {})


def test_a_trials_number_decides_what_is_drawn_for_it(tmp_path: Path) -> None:
    """Else a search that goes on, or a second process on the study, would draw the same again."""

    def drawn(folder: str, numbers: int) -> list[dict]:
        found = []
        for _ in range(numbers):
            trials = fake_trials(tmp_path / folder, SearchConfig(sampler="random"))  # each time as a new start
            trial = trials.ask(numbers)
            trials.fail(trial, "it is not run")
            found.append(trial.settings)
        return found

    first = drawn("a", 4)
    assert drawn("b", 4) == first
    assert len({settings["prune.ratio"] for settings in first}) == 4
