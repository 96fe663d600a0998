"""A real search from the command line: three trials of which one fails, and the recipe that it leaves."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from compress.config.compose import register, to_config
from compress.config.data_settings import DataConfig
from compress.config.paths import CONF
from compress.config.schema import Config, StopBelowConfig
from compress.config.stage_settings import DistillConfig, PruneConfig, QuantizeConfig, TeacherConfig
from compress.launch.search.best_recipe import recipe_text
from compress.launch.search.objectives import DIRECTIONS
from compress.pipeline.preprocessing import with_preprocessing
from compress.pipeline.run import run_pipeline
from compress.utils.files import METRICS, MODEL, STAGE, digest_of_file, read_json
from tests.launch.test_command import assert_refused, command, tiny

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[3]
LAST = "03_distill"


def search(folder: Path, npz: Path, *arguments: str) -> subprocess.CompletedProcess:
    typed = [text for text in tiny(npz) if not text.startswith("cache.")]
    return subprocess.run(
        command(
            "--multirun", "hydra/sweeper=optuna", *typed, f"cache.dir={folder}/cache",
            f"hydra.sweep.dir={folder}/search", *arguments,
        ),
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_npz: Path) -> tuple[Path, subprocess.CompletedProcess]:
    """The second choice is a layer that no network has: such a trial fails after its teacher and its pruning."""
    folder = tmp_path_factory.mktemp("searched")
    done = search(
        folder, tiny_npz, "stages=[teacher,prune,distill]",
        "train.precision=float32",  # as the tests' own process
        "distill.hint_layers=[],[layer9]", "prune.ratio=range(0.3,0.61,0.3)",
        "hydra.sweeper.sampler=random", "hydra.sweeper.seed=15", "hydra.sweeper.trials=3",
        'hydra.sweeper.constraints=["deployed_val_delta_points >= -90"]',
    )  # fmt: skip
    return folder / "search", done


def test_it_ends_with_the_pareto_set_and_a_recipe(searched: tuple[Path, subprocess.CompletedProcess]) -> None:
    folder, done = searched
    assert done.returncode == 0, done.stderr
    found = read_json(folder / "pareto.json")
    assert found["trials"] == {"complete": 2, "given_up": 0, "failed": 1, "running": 0}
    assert found["constraints"] == ["deployed_val_delta_points >= -90"]
    assert found["study"] == "mobilenet_int8"
    (failed,) = found["failed"]
    assert "distill.hint_layers with layer9" in failed["reason"]
    assert failed["settings"]["distill.hint_layers"] == "[layer9]"
    best = found["best"]
    assert best["feasible"]
    metrics = read_json(folder / best["folder"] / LAST / METRICS)
    for name, value in (best["figures"] | best["on_test"]).items():
        assert value == metrics[name]
    assert "2 complete, 1 failed" in done.stdout
    assert str(folder / "best.yaml") in done.stdout


def test_the_page_shows_the_trials_and_why_one_failed(searched: tuple[Path, subprocess.CompletedProcess]) -> None:
    folder, _ = searched
    page = (folder / "report.html").read_text()
    found = read_json(folder / "pareto.json")
    for row in found["complete"]:
        assert f'href="{row["folder"]}/report.html"' in page
    assert "distill.hint_layers with layer9" in page
    assert "prune.ratio" in page


def test_its_recipe_repeats_the_best_trial(searched: tuple[Path, subprocess.CompletedProcess], tmp_path: Path) -> None:
    """The resolved config is the trial's, and so are the weights: the cache has every stage of it."""
    folder, _ = searched
    trial = folder / read_json(folder / "pareto.json")["best"]["folder"]
    config = with_preprocessing(composed(folder / "best.yaml"))
    recorded = read_json(trial / LAST / STAGE)["config"]
    assert json.loads(json.dumps(config, default=vars)) == recorded
    before = {path.parent.name for path in Path(config.cache.dir).glob(f"*/*/{STAGE}")}
    run_pipeline(config, tmp_path)
    assert {path.parent.name for path in Path(config.cache.dir).glob(f"*/*/{STAGE}")} == before
    for stage in ("01_teacher", LAST):
        assert digest_of_file(tmp_path / stage / MODEL) == digest_of_file(trial / stage / MODEL)


def test_a_direction_is_known_of_every_figure_that_has_one(searched: tuple[Path, subprocess.CompletedProcess]) -> None:
    folder, _ = searched
    best = read_json(folder / "pareto.json")["best"]["folder"]
    metrics = read_json(folder / best / LAST / METRICS)
    figures = {name for name, value in metrics.items() if not isinstance(value, (list, dict, str))}
    without = {"images", "val_images", "mcnemar_p_value", "grad_cam_images", "temperature"}
    assert figures - without <= set(DIRECTIONS)
    of_other_tasks = {
        name for name in DIRECTIONS if any(part in name for part in ("auroc", "label_accuracy", "map50", "map_"))
    }
    of_exits = {"latency_ms_mean", "mean_macs"}
    of_further_targets = {"agreement_percent", "speedup_vs_onnx"}
    assert set(DIRECTIONS) - figures - of_other_tasks == of_exits | of_further_targets


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["prune.ratio=0.5"], "nothing to search"),
        (["prune.ratio=interval(0.2,1.5)"], "prune.ratio=1.5"),
        (["prune.ratoi=interval(0.2,0.5)"], "prune.ratoi"),
        (["prune.ratio=interval(0.2,0.5)", "preflight=true"], "preflight=true"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_any_trial(
    tmp_path: Path, tiny_npz: Path, arguments: list[str], part: str
) -> None:
    assert_refused(search(tmp_path, tiny_npz, *arguments), part)
    assert not (tmp_path / "search").exists()


def composed(recipe: Path | str, *overrides: str) -> Config:
    register([f"recipe={recipe}"])
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return to_config(compose("config", [f"recipe={recipe}", *overrides]))


def test_floors_reach_a_trial_as_they_are_typed() -> None:
    given = composed("mobilenet_int8", "stop_below.prune=[0.0,89.33333333333333]")
    assert given.stop_below == StopBelowConfig(prune=[0.0, 89.33333333333333])


CONFIGS = [
    Config(),
    Config(seed=7, stages=["teacher", "quantize"], device="cpu", controls=False),
    Config(
        data=DataConfig(name="fashion_mnist", root="a folder: with, signs", mean=[0.5], std=[1e-5], flip=False),
        prune=PruneConfig(ratio=0.30000000000000004, lr=1e-7),
        teacher=TeacherConfig(factory="my.package:network", checkpoint="x.pth", epochs=0),
        distill=DistillConfig(student="resnet20", hint_layers=["layer1", "true", "1e3"]),
        quantize=QuantizeConfig(mode="ptq", max_drop_points=0.5, rounding="adaround"),
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_recipe_is_the_config_that_it_was_made_of(tmp_path: Path, config: Config) -> None:
    given = replace(config, stop_below=StopBelowConfig(distill=[50.0]))
    (tmp_path / "made.yaml").write_text(recipe_text(given, ["what it is", "and why"]))
    text = (tmp_path / "made.yaml").read_text()
    assert text.startswith("# what it is\n# and why\n")
    assert "\nseed:" in text
    named = [f"teacher.factory={config.teacher.factory}"] if config.teacher.factory else []  # a recipe may not
    assert composed(tmp_path / "made.yaml", *named) == config
