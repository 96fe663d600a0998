"""The preflight tells what a run would find, and trains nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from compress.config.schema import Config
from compress.models.user_model import USER_MODELS, register_user_model, user_model_digest
from compress.pipeline.experiment import run_experiment
from compress.pipeline.preflight import PREFLIGHT, run_preflight
from compress.pipeline.run import run_pipeline
from compress.utils.errors import UserError
from compress.utils.files import METRICS, SPEC, STAGE, read_json, training_file

SHAPE = (1, 8, 8)


def own(config: Config, function: str) -> Config:
    config.teacher = replace(config.teacher, factory=f"tests.own_networks:{function}", epochs=1)
    config.quantize = replace(config.quantize, mode="ptq")
    return config


@pytest.mark.e2e
def test_what_it_expects_is_what_the_run_finds(tmp_path: Path, tiny_config: Config) -> None:
    """On a network of the user's own, named by its function."""
    config = own(tiny_config, "plain")
    run_experiment(replace(config, preflight=True), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [PREFLIGHT]
    found = read_json(tmp_path / PREFLIGHT)
    run_pipeline(config, tmp_path)
    stages = {"teacher": "01_teacher", "float": "02_prune", "int8": "04_quantize"}
    for name, stage in stages.items():
        metrics = read_json(tmp_path / stage / METRICS)
        assert (found["expected"][name]["macs"], found["expected"][name]["params"]) == (
            metrics["macs"],
            metrics["params"],
        )
        assert found["expected"][name]["size_bytes"] == pytest.approx(metrics["size_bytes"], rel=0.01)
    widths = read_json(tmp_path / "02_prune" / SPEC)["widths"]
    lost = {row["layer"]: row["left"] for row in found["layers"] if row["left"] < row["filters"]}
    assert lost == {name: width[0] for name, width in widths.items() if name in lost}
    kept = {row["layer"]: row["reason"] for row in found["layers"] if row["left"] == row["filters"]}
    assert kept == {row["layer"]: row["reason"] for row in read_json(tmp_path / "02_prune" / STAGE)["left_out"]}
    left_out = read_json(tmp_path / "04_quantize" / STAGE)["left_out"]
    assert [row["layer"] for row in found["stays_float"]] == [row["layer"] for row in left_out]


@pytest.mark.e2e
def test_it_names_the_targets_of_each_stage(tmp_path: Path, tiny_config: Config, capsys: pytest.CaptureFixture) -> None:
    """The filters before pruning are those of the factorized network."""
    config = replace(tiny_config, stages=["teacher", "factorize", "prune"])
    config.factorize.target.macs_share = config.prune.target.macs_share = 0.8
    config.factorize.target.estimated_energy_share = config.prune.target.estimated_energy_share = 0.9
    found = run_preflight(config, tmp_path)
    assert list(found["targets"]) == ["factorize", "prune"]
    assert all(target["reached"]["macs_share"] <= 0.8 for target in found["targets"].values())
    assert all(0 < target["reached"]["estimated_energy_share"] <= 0.9 for target in found["targets"].values())
    assert found["expected"]["float"]["macs"] <= 0.64 * found["expected"]["teacher"]["macs"]
    assert any(row["layer"].endswith(".0") and row["left"] < row["filters"] for row in found["layers"])
    printed = capsys.readouterr().out
    assert "factorize.target.macs_share: 0.8 asked, " in printed
    assert "prune.target.estimated_energy_share: 0.9 asked, " in printed


def test_a_network_that_cannot_be_traced_is_told_with_the_cause(tmp_path: Path, tiny_config: Config) -> None:
    with pytest.raises(UserError, match=r"branching, which cannot be .*data-dependent"):
        run_preflight(own(tiny_config, "branching"), tmp_path)


def test_a_run_of_such_a_network_ends_before_it_trains(tmp_path: Path, tiny_config: Config) -> None:
    config = own(tiny_config, "branching")
    config.train.checkpoint_minutes = 0  # a state after each step, kept until the stage is finished
    with pytest.raises(UserError, match=r"branching, which cannot be exported: .*data-dependent"):
        run_pipeline(config, tmp_path)
    assert not training_file(tmp_path / "01_teacher").exists()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("os.system", "package.module:function"),
        ("tests.nowhere:plain", "No module named"),
        ("tests.own_networks:missing", "missing"),
        ("tests.own_networks:no_network", "returned str"),
        ("tests.own_networks:three_grey_classes", "(2, 3) for two images"),
    ],
)
def test_a_function_that_gives_no_such_network_is_refused(name: str, part: str) -> None:
    with pytest.raises(UserError) as refusal:
        register_user_model(name, SHAPE, 4, seed=0)
    assert part in str(refusal.value)


def test_a_functions_weights_are_the_seeds() -> None:
    digests = []
    for seed in (0, 0, 1):
        register_user_model("tests.own_networks:plain", SHAPE, 3, seed)
        digests.append(user_model_digest(USER_MODELS["tests.own_networks:plain"]))
    assert digests[0] == digests[1] != digests[2]
