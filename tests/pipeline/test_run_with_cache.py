"""Runs that share stages: one computes, the others take; what differs in any way is computed."""

from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from compress.config.schema import CacheConfig, Config
from compress.pipeline import compute
from compress.pipeline.code_digest import code_digest, code_files
from compress.pipeline.experiment import run_experiment
from compress.pipeline.run import run_pipeline
from compress.stages import STAGES, load_stage
from compress.utils.errors import UserError
from compress.utils.files import METRICS, MODEL, STAGE, digest_of_file, finished_stage, read_json
from tests.conftest import make_tiny_config

pytestmark = pytest.mark.e2e


@pytest.fixture
def config(tiny_npz: Path, tmp_path: Path) -> Config:
    stages = ["teacher", "prune"]
    config = replace(make_tiny_config(tiny_npz), stages=stages, cache=CacheConfig(str(tmp_path / "cache")))
    config.teacher.model = "plain"
    return config


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that were computed, as they come."""
    names: list[str] = []
    monkeypatch.setattr(compute, "load_stage", lambda name: (names.append(name), load_stage(name))[1])
    return names


def test_a_second_run_takes_what_is_the_same(config: Config, computed: list[str], tmp_path: Path) -> None:
    run_pipeline(config, tmp_path / "first")
    run_pipeline(config, tmp_path / "second")
    assert computed == ["teacher", "prune"]
    other = replace(config, prune=replace(config.prune, ratio=0.25))
    run_pipeline(other, tmp_path / "third")
    assert computed == ["teacher", "prune", "prune"]
    for name in ("01_teacher", "02_prune"):
        first, second = (tmp_path / run / name for run in ("first", "second"))
        record = read_json(second / STAGE)
        assert finished_stage(second, record["key"]) == record
        assert record["files"] == read_json(first / STAGE)["files"]
    events = EventAccumulator(str(tmp_path / "second" / "tensorboard" / "stages")).Reload()
    assert len(events.Scalars("summary/size_bytes")) == 2  # curves are with the run that computed the stages
    record = read_json(tmp_path / "third" / "01_teacher" / STAGE)
    assert record["config"]["prune"]["ratio"] == 0.25  # the run's own settings, not those of the run that made it
    assert (tmp_path / "second" / "report.html").is_file()


def test_taken_or_computed_the_weights_are_the_same(config: Config, tmp_path: Path) -> None:
    run_pipeline(config, tmp_path / "first")
    run_pipeline(replace(config, cache=CacheConfig(enabled=False)), tmp_path / "second")
    run_pipeline(replace(config, stages=["teacher"]), tmp_path / "third")
    run_pipeline(config, tmp_path / "third")  # the teacher taken, pruning taken behind it
    digests = [digest_of_file(tmp_path / run / "02_prune" / MODEL) for run in ("first", "second", "third")]
    assert len(set(digests)) == 1


@pytest.mark.parametrize("change", ["seed", "train", "data", "code"])
def test_whatever_makes_a_stage_is_in_its_key(
    config: Config, computed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    config = replace(config, stages=["teacher"], teacher=replace(config.teacher, epochs=1))
    run_pipeline(config, tmp_path / "first")
    if change == "seed":
        config = replace(config, seed=1)
    elif change == "train":
        config = replace(config, train=replace(config.train, momentum=0.8))
    elif change == "data":
        config = replace(config, data=replace(config.data, val_fraction=0.3))
    else:
        monkeypatch.setattr(compute, "code_digest", lambda *_: "of other code")
    run_pipeline(config, tmp_path / "second")
    assert computed == ["teacher", "teacher"]


def test_figures_are_taken_anew_where_they_would_differ(config: Config, computed: list[str], tmp_path: Path) -> None:
    config = replace(config, stages=["teacher"])
    run_pipeline(config, tmp_path / "first")
    run_pipeline(replace(config, threads=2), tmp_path / "second")
    assert computed == ["teacher"]
    threads = [
        read_json(tmp_path / run / "01_teacher" / METRICS)["environment"]["threads"] for run in ("first", "second")
    ]
    assert threads == [1, 2]


def test_a_damaged_entry_is_computed_again(
    config: Config, computed: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, stages=["teacher"])
    run_pipeline(config, tmp_path / "first")
    digest = digest_of_file(tmp_path / "first" / "01_teacher" / MODEL)
    (entry,) = (tmp_path / "cache").glob(f"??/*/{MODEL}")
    content = entry.read_bytes()
    entry.unlink()
    entry.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run_pipeline(config, tmp_path / "second")
    assert computed == ["teacher", "teacher"]
    assert "is not as it was written" in caplog.text
    assert digest_of_file(tmp_path / "second" / "01_teacher" / MODEL) == digest


def test_a_folder_in_use_is_refused(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From inside the first run: the same process is a living holder."""

    def start_another(*_: object) -> None:
        run_experiment(config, tmp_path / "run")

    monkeypatch.setattr("compress.pipeline.experiment.run_pipeline", start_another)
    with pytest.raises(UserError, match=r"in which process .* writes; expected a folder that no other run uses"):
        run_experiment(config, tmp_path / "run")


def test_figures_are_taken_anew_where_the_code_that_takes_them_changed(
    config: Config, computed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, stages=["teacher"])
    run_pipeline(config, tmp_path / "run")
    before = read_json(tmp_path / "run" / "01_teacher" / STAGE)
    monkeypatch.setattr(compute, "_MEASURE", ("compress.evaluation.evaluate",))
    run_pipeline(config, tmp_path / "run")
    after = read_json(tmp_path / "run" / "01_teacher" / STAGE)
    assert computed == ["teacher"]
    assert before["conditions"]["code"] != after["conditions"]["code"]
    assert before["key"] == after["key"]


def test_how_images_are_read_is_in_every_stages_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of before an image was read otherwise must not be taken."""
    seen: list[str] = []
    monkeypatch.setattr("compress.pipeline.code_digest.digest_of_file", lambda path: seen.append(path.name) or "digest")
    code_digest.cache_clear()
    code_digest("compress.data")
    code_digest.cache_clear()
    assert {"images.py", "image_layout.py", "image_folder.py", "builtin.py", "labels.py"} <= set(seen)


# Of each stage: modules that decide its weights or its model.onnx, and modules that do not.
INSIDE = {
    "teacher": {
        "stages.teacher",
        "training.loop",
        "training.step",
        "data.image_folder",
        "utils.images",
        "models.registry",
    },
    "prune": {"stages.prune", "methods.pruning.filters", "methods.pruning.reconstruction", "methods.restore"},
    "search_architecture": {
        "stages.search_architecture",
        "methods.architecture_search.trials",
        "methods.pruning.reconstruction",
        "utils.numbered_sampler",
    },
    "factorize": {"stages.factorize", "methods.factorization.refit", "methods.pruning.least_squares"},
    "distill": {"stages.distill", "methods.distillation.losses", "methods.restore", "training.pseudo_labels"},
    "early_exit": {"stages.early_exit", "methods.conditional.thresholds", "methods.conditional.training"},
    "dynamic_width": {"stages.dynamic_width", "methods.dynamic_width.channels", "methods.conditional.thresholds"},
    "quantize": {"stages.quantize", "methods.quantization.quantizer", "methods.quantization.sensitivity"},
}
COUNTING = ("prune", "search_architecture", "factorize", "dynamic_width")  # stages that count MACs
OUTSIDE = ("launch", "pipeline", "report", "evaluation", "training.tensorboard", "utils.console", "config")


def covers(part: str, names: set[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for name in names)


@pytest.mark.parametrize("name", STAGES)
def test_a_key_holds_the_code_that_decides_the_result_and_no_other(name: str) -> None:
    settings = getattr(Config(), name)
    files = code_files(*compute.computing_modules(name, name == "teacher", settings))
    names = {full.removeprefix("compress.") for full in files}
    assert names >= INSIDE[name] | {"export.onnx", "models.artifact"}
    counted = {"evaluation", "evaluation.flops"} if name in COUNTING else set()
    # It reads the weights of losses and the names of teachers from settings.
    counted |= {"config.distill_losses", "config.distill_teachers"} if name == "distill" else set()
    assert [part for part in OUTSIDE if covers(part, names - counted)] == []
    others = {other for other in STAGES if other != name}
    assert [other for other in others if f"stages.{other}" in names] == []
    methods = {key: {"pruning"} for key in COUNTING} | {"search_architecture": {"pruning", "architecture_search"}}
    rebuilt = {"factorization", "early_exit", "dynamic_width", "quantization"}  # by `restore`
    allowed = methods.get(name, set()) | (rebuilt if name != "teacher" else set())
    foreign = {"pruning", "architecture_search", *rebuilt} - allowed
    assert [method for method in foreign if covers(f"methods.{method}", names)] == []


def test_the_figures_conditions_hold_what_is_loaded_by_name() -> None:
    names = set(code_files(*compute.measuring_modules(["onnx", "openvino"])))
    assert names >= {
        f"compress.{name}" for name in ("evaluation.benchmark_worker", "evaluation.profiler", "export.openvino")
    }
    assert "compress.export.executorch" not in names
    assert not covers("compress.report", names)


def test_code_is_followed_through_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "top.py").write_text("from own.low import number\n")
    (package / "low.py").write_text("number = 1\n")
    (package / "page.py").write_text("from own import top\n")
    monkeypatch.setattr("compress.pipeline.code_digest._PACKAGE", package)
    found = []
    for name, text in (("low", "number = 1\n"), ("low", "number = 2\n"), ("page", "from own import low\n")):
        (package / f"{name}.py").write_text(text)
        code_digest.cache_clear()
        found.append(code_digest("own.top"))
    code_digest.cache_clear()
    assert found[0] != found[1] == found[2]
