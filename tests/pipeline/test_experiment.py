"""Repeats and controls: each is a run of its own on the same budget, and is set against the run on the same images."""

import copy
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from compress.config.schema import CacheConfig, Config, StopBelowConfig
from compress.config.stage_settings import DistillConfig, PruneConfig, QuantizeConfig
from compress.config.validation import check
from compress.models import Architecture, build
from compress.models.artifact import read_tensors
from compress.models.widths import read_widths
from compress.pipeline.ablations import check_ablations
from compress.pipeline.experiment import run_experiment, seed_statistics
from compress.stages import STAGES
from compress.utils.errors import EarlyStopped, UserError
from compress.utils.files import CONTROLS, METRICS, MODEL, PREDICTIONS, REPEATS, SPEC, STAGE, digest_of_file, read_json
from tests.conftest import make_tiny_config
from tests.methods.pruning.plain_cut import prune_filters

pytestmark = pytest.mark.e2e

CONTROL_NAMES = ["random_pruned", "finetuned_without_distillation", "dense_from_scratch"]


def config_for(npz: Path, cache: Path) -> Config:
    config = replace(make_tiny_config(npz), cache=CacheConfig(str(cache)))
    config.quantize = replace(config.quantize, mode="ptq")
    config.teacher.model, config.teacher.epochs = "plain", 1
    config.repeat.seeds = [3]
    config.controls = True
    return config


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory, tiny_npz: Path) -> Path:
    """A run of all four stages, its controls, and the same on a second seed."""
    folder = tmp_path_factory.mktemp("study")
    run_experiment(config_for(tiny_npz, folder / "cache"), folder)
    return folder


def test_repeats_are_runs_on_the_other_seeds(studied: Path) -> None:
    found = read_json(studied / REPEATS)
    assert found["seeds"] == [0, 3]
    for row in found["stages"]:
        folders = (studied, studied / "repeats" / "seed_3")
        values = [read_json(folder / row["stage"] / METRICS)["size_bytes"] for folder in folders]
        assert row["figures"]["size_bytes"]["values"] == values
        assert row["figures"]["deployed_top1_percent"]["std"] >= 0
    assert len({digest_of_file(folder / "01_teacher" / MODEL) for folder in folders}) == 2
    assert not (studied / "repeats" / "seed_3" / CONTROLS).exists()


def test_controls_are_set_against_the_last_file_on_the_same_images(studied: Path) -> None:
    found = read_json(studied / CONTROLS)
    assert [row["name"] for row in found["controls"]] == CONTROL_NAMES
    assert found["left_out"] == [
        {"control": "equal_ranks", "reason": "nothing is factorized"},
        {"control": "uniform_architecture", "reason": "no architecture is searched"},
    ]
    assert found["budget_epochs"] == 2
    own = read_tensors(studied / "04_quantize" / PREDICTIONS)
    for row in found["controls"]:
        stage = sorted((studied / "controls" / row["name"]).glob("0*_quantize"))[-1]
        theirs = read_tensors(stage / PREDICTIONS)
        hits = [(tensors["deployed_top1"] == own["labels"]).double().mean().item() for tensors in (theirs, own)]
        assert row["against"] == "04_quantize"
        assert row["deployed_top1_percent"] == pytest.approx(100 * hits[0])
        assert row["delta_points"] == pytest.approx(100 * (hits[0] - hits[1]))
        assert row["delta_ci95_points"][0] <= row["delta_points"] <= row["delta_ci95_points"][1]


def test_controls_share_what_is_the_same_and_no_more(studied: Path) -> None:
    def digest(run: str, stage: str, file: str = MODEL) -> str:
        return digest_of_file(studied / run / stage / file)

    for name in CONTROL_NAMES:
        assert digest(f"controls/{name}", "01_teacher") == digest("", "01_teacher")
    taught, plain, chance = (
        "controls/finetuned_without_distillation",
        "controls/dense_from_scratch",
        "controls/random_pruned",
    )
    shared = [read_json(studied / run / "02_prune" / STAGE)["files"] for run in ("", taught)]
    assert shared[0] == shared[1]
    assert digest(taught, "03_distill") != digest("", "03_distill")
    assert read_json(studied / plain / "02_prune" / SPEC)["widths"] == read_json(studied / "02_prune" / SPEC)["widths"]
    assert read_json(studied / chance / "02_prune" / SPEC)["widths"] == read_json(studied / "02_prune" / SPEC)["widths"]
    assert len({digest(run, "02_prune") for run in ("", plain, chance)}) == 3
    history = read_json(studied / plain / "02_prune" / STAGE)["notes"]["history"]
    assert len(history) == 2  # prune's epoch and distill's


def test_the_pages_show_both(studied: Path) -> None:
    for page in ("report.html", "report.md"):
        text = (studied / page).read_text()
        for name in CONTROL_NAMES:
            assert name.replace("_", " ") in text
        assert "seeds" in text


def test_nothing_is_computed_twice(studied: Path, tiny_npz: Path) -> None:
    records = {path: path.stat().st_mtime_ns for path in studied.rglob(STAGE)}
    tables = [read_json(studied / name) for name in (REPEATS, CONTROLS)]
    runs = 4 + 4 + 4 + 4 + 3  # stages: the run's, the other seed's, those of three controls
    assert len(records) == runs + (4 + 4 + 3 + 2 + 2)  # and in the cache, each once
    found = run_experiment(config_for(tiny_npz, studied / "cache"), studied)
    assert found["metrics"] == read_json(studied / "04_quantize" / METRICS)  # what a search judges the run by
    assert {stage: len(curve) for stage, curve in found["validation"].items()} == {
        "teacher": 1,
        "prune": 1,
        "distill": 1,
        "quantize": 0,
    }
    assert {path: path.stat().st_mtime_ns for path in studied.rglob(STAGE)} == records
    assert [read_json(studied / name) for name in (REPEATS, CONTROLS)] == tables


def test_a_run_without_hope_ends_where_it_is_told(studied: Path, tiny_npz: Path, tmp_path: Path) -> None:
    """Behind a stage that was taken, too. A repeat or a control is there to be worse, and goes on."""
    config = config_for(tiny_npz, studied / "cache")
    curves = {stage: curve for stage, curve in run_experiment(config, studied)["validation"].items() if curve}
    run_experiment(replace(config, stop_below=StopBelowConfig(**curves)), studied)
    hopeless = StopBelowConfig(prune=[curves["prune"][0] + 0.5])
    with pytest.raises(EarlyStopped, match="as the best of 1 epochs of prune"):
        run_experiment(replace(config, stop_below=hopeless), tmp_path)
    assert sorted(path.parent.name for path in tmp_path.glob(f"*/{STAGE}")) == ["01_teacher", "02_prune"]


def test_every_stage_may_be_given_a_floor() -> None:
    assert {item.name for item in fields(StopBelowConfig)} == set(STAGES)


def test_tables_of_an_earlier_study_do_not_stay(tmp_path: Path, tiny_npz: Path) -> None:
    for name in (REPEATS, CONTROLS):
        (tmp_path / name).write_text("{}")
    run_experiment(replace(make_tiny_config(tiny_npz), stages=["teacher"]), tmp_path)
    assert not any((tmp_path / name).exists() for name in (REPEATS, CONTROLS))


def test_spread_is_that_of_a_sample() -> None:
    records = [{"a": 1.0, "b": None, "c": [1]}, {"a": 2.0, "b": 1.0, "c": [2]}, {"a": 6.0, "b": 2.0, "c": [3]}]
    assert seed_statistics(records) == {"a": {"mean": 3.0, "std": pytest.approx(7**0.5), "values": [1.0, 2.0, 6.0]}}
    assert seed_statistics(records[:1])["a"] == {"mean": 1.0, "std": 0.0, "values": [1.0]}


@pytest.mark.parametrize(
    "config",
    [
        Config(stages=["teacher"]),
        Config(stages=["teacher", "quantize"], quantize=QuantizeConfig(mode="ptq")),
        Config(stages=["teacher", "prune"], prune=PruneConfig(importance="random", epochs=0)),
        Config(stages=["teacher", "distill"], distill=DistillConfig(student="resnet20", alpha=0.0)),
    ],
)
def test_controls_that_tell_nothing_are_refused(config: Config) -> None:
    check_ablations(config)
    with pytest.raises(UserError, match=r"controls=true with stages=.*expected a run that a control can stand against"):
        check_ablations(replace(config, controls=True))


@pytest.mark.parametrize(("seeds", "part"), [([1, 1], "each seed once"), ([-1], "repeat.seeds=-1")])
def test_seeds_that_cannot_be_are_refused(seeds: list[int], part: str) -> None:
    config = Config()
    config.repeat.seeds = seeds
    with pytest.raises(UserError, match=part):
        check(config)


def test_random_importance_follows_the_seed_and_not_the_norms() -> None:
    torch.manual_seed(0)
    network = build(Architecture("resnet8", "small", 1, 3)).eval()
    kept = []
    for seed, importance in ((0, "random"), (0, "random"), (1, "random"), (0, "l1")):
        pruned = copy.deepcopy(network)
        torch.manual_seed(seed)
        config = PruneConfig(ratio=0.5, round_to=1, importance=importance)
        kept.append(prune_filters(pruned, torch.zeros(1, 1, 8, 8), config).kept)
    assert kept[0] == kept[1]
    assert len({str(one) for one in kept}) == 3
    assert all(len(kept[0][layer]) == len(kept[3][layer]) for layer in kept[3])
    assert read_widths(pruned) != read_widths(network)
