"""A stage of one file, one dataclass and one line goes through all that the others go through."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from compress.config.schema import CacheConfig
from compress.models.artifact import read_tensors
from compress.pipeline import compute
from compress.pipeline.preflight import run_preflight
from compress.pipeline.run import run_pipeline
from compress.stages import STAGES, check_order, load_stage
from compress.utils.errors import UserError
from compress.utils.files import METRICS, MODEL, STAGE, digest_of_file, read_json
from tests.conftest import make_tiny_config
from tests.launch.test_command import tiny
from tests.rescale import STAGE as RESCALE
from tests.rescale import Config

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
ORDER = ["teacher", "prune", "rescale", "quantize"]


@pytest.fixture(autouse=True)
def _one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "rescale", RESCALE)


@pytest.fixture
def config(tiny_npz: Path, tmp_path: Path) -> Config:
    tiny = make_tiny_config(tiny_npz)
    given = {item.name: getattr(tiny, item.name) for item in fields(tiny) if item.name != "stop_below"}
    made = Config(**given | {"stages": ORDER, "cache": CacheConfig(str(tmp_path / "cache"))})
    return replace(made, quantize=replace(made.quantize, mode="ptq"))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that were computed, as they come."""
    names: list[str] = []
    monkeypatch.setattr(compute, "load_stage", lambda name: (names.append(name), load_stage(name))[1])
    return names


def test_it_runs_resumes_and_comes_from_the_cache(config: Config, computed: list[str], tmp_path: Path) -> None:
    run_pipeline(config, tmp_path / "first")
    assert computed == ORDER
    pruned, rescaled = (read_tensors(tmp_path / "first" / name / MODEL) for name in ("02_prune", "03_rescale"))
    assert {name for name in pruned if not pruned[name].equal(rescaled[name])} == {"linear.weight", "linear.bias"}
    assert rescaled["linear.bias"].equal(2 * pruned["linear.bias"])
    accuracies = [
        read_json(tmp_path / "first" / name / METRICS)["deployed_top1_percent"] for name in ("02_prune", "03_rescale")
    ]
    assert accuracies[0] == accuracies[1]
    assert read_json(tmp_path / "first" / "03_rescale" / STAGE)["notes"]["factor"] == 2.0
    for page in ("report.html", "report.md"):
        assert "03_rescale" in (tmp_path / "first" / page).read_text()

    (tmp_path / "first" / "04_quantize" / STAGE).unlink()  # a run that was killed in its last stage
    run_pipeline(config, tmp_path / "first")
    run_pipeline(config, tmp_path / "second")
    assert computed == ORDER
    run_pipeline(replace(config, rescale=replace(config.rescale, factor=3.0)), tmp_path / "third")
    assert computed == [*ORDER, "rescale", "quantize"]
    digests = [digest_of_file(tmp_path / run / "04_quantize" / MODEL) for run in ("first", "second")]
    assert digests[0] == digests[1]


def test_a_preflight_tries_it(config: Config, tmp_path: Path) -> None:
    found = run_preflight(config, tmp_path)
    assert list(found["expected"]) == ["teacher", "float", "int8"]
    with pytest.raises(UserError, match=r"TypeError.*rescale\.py, line"):
        run_preflight(replace(config, rescale=replace(config.rescale, factor="two")), tmp_path)


def test_its_place_is_checked_as_that_of_others() -> None:
    check_order(ORDER)
    with pytest.raises(UserError, match="quantize last"):
        check_order(["teacher", "quantize", "rescale"])


@pytest.mark.long
def test_a_search_varies_its_settings(tmp_path: Path, tiny_npz: Path) -> None:
    pytest.importorskip("optuna", reason="the extra search is not installed")
    from compress.launch.search.results import BEST, PARETO

    typed = [text for text in tiny(tiny_npz) if not text.startswith("cache.")]
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.rescale", "--multirun", "hydra/sweeper=optuna", *typed,
            "stages=[teacher,rescale]", "rescale.factor=0.5,3.0", "hydra.sweeper.trials=2", "teacher.model=resnet8",
            f"cache.dir={tmp_path}/cache", f"hydra.sweep.dir={tmp_path}/search",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trials = read_json(tmp_path / "search" / PARETO)["complete"]
    assert {float(trial["settings"]["rescale.factor"]) for trial in trials} == {0.5, 3.0}
    assert "rescale:" in (tmp_path / "search" / BEST).read_text()
