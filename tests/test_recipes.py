"""Every recipe runs to its end on tiny data, in its own combination of settings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from compress import data as data_sets
from compress.config.compose import register, to_config
from compress.config.paths import CONF, RECIPES
from compress.config.schema import Config
from compress.data.builtin import ARRAYS
from compress.models import Architecture, build
from compress.pipeline.run import run_pipeline
from tests.conftest import real_measure, tiny_arrays
from tests.drawn_shapes import write_shapes

pytestmark = pytest.mark.e2e

SMALL = [
    "cache.enabled=false", "data.image_size=16", "data.batch_size=32", "threads=1", "prune.reconstruction_samples=48",
    "factorize.reconstruction_samples=48", "search_architecture.reconstruction_samples=48",
    "search_architecture.trials=4",
    "quantize.calibration_samples=48", "measure.repetitions=3", "measure.batch_size=2",
]  # fmt: skip


def tiny_source(colours: int) -> tuple[dict, list[str]]:
    """The tiny arrays as a data set's loader returns them, with ten classes as all the recipes' sets have."""
    arrays = tiny_arrays()
    splits = {}
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], np.arange(len(arrays[f"{split}_labels"])) % 10
        images = np.repeat(images[..., None], colours, axis=3) if colours > 1 else images
        splits[split] = (images, labels)
    return splits, [str(label) for label in range(10)]


WHOLE = "mobilenet_int8"  # with its own network and real figures: of the others the settings are the subject
OTHERS = sorted({path.stem for path in RECIPES.glob("*.yaml")} - {WHOLE})
LONG = {"ssdlite_voc_int8"}  # ssdlite_bccd_int8 is a chain of the same stages


@pytest.mark.long  # .ci/run runs it on its own images
def test_the_first_recipe_runs_to_its_end_on_its_own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with real_measure():
        summary, config = run_small(WHOLE, tmp_path, monkeypatch)
    assert_compressed(summary, config)
    assert (tmp_path / "04_quantize" / "model.onnx").is_file()


@pytest.mark.parametrize("recipe", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in OTHERS])
def test_a_recipe_runs_to_its_end(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if recipe.startswith("ssdlite"):
        pytest.importorskip("torchmetrics", reason="the extra detection is not installed")
    summary, config = run_small(recipe, tmp_path, monkeypatch)
    assert_compressed(summary, config)
    assert (tmp_path / summary["stages"][-1]["stage"] / "model.onnx").is_file()


def run_small(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Config]:
    """The summary of a recipe on tiny data, and the config that it ran with."""
    for name in ARRAYS:
        monkeypatch.setitem(data_sets.ARRAYS, name, lambda config, name=name: tiny_source(3 if name == "npz" else 1))
    config = small_config(recipe, tmp_path)
    return run_pipeline(config, tmp_path), config


def assert_compressed(summary: dict[str, Any], config: Config) -> None:
    """Every stage is there, and the last file is as much smaller as int8 and the ratio of filters make it."""
    stages = [f"{number:02}_{name}" for number, name in enumerate(config.stages, 1)]
    assert [row["stage"] for row in summary["stages"]] == stages
    last = summary["stages"][-1]
    for name in ("factorize", "search_architecture"):
        if name in config.stages:
            assert last["times_fewer_macs"] > 0.99 / getattr(config, name).target.macs_share
            return
    if {"early_exit", "dynamic_width"} & set(config.stages):
        assert last["metrics"]["mean_macs"] <= last["metrics"]["macs"] < 1.5 * summary["stages"][0]["metrics"]["macs"]
        return
    boxes = config.data.task == "detection"  # anchors and decoding stay, and the shortcuts' widths
    assert last["times_smaller"] > (2 if boxes else 4)
    assert last["times_fewer_macs"] > (1.3 if boxes else 0.95 / (1 - config.prune.ratio))


def small_config(recipe: str, folder: Path) -> Config:
    """The recipe with the least data and epochs that still go through all of it."""
    changes = [f"recipe={recipe}", *SMALL]
    for stage in ("teacher", "prune", "distill", "early_exit", "dynamic_width", "quantize"):
        changes.append(f"{stage}.epochs=1")
    if recipe in (
        "transfer_mobilenet_int8",
        "unlabelled_int8",
        "xray_transfer_int8",
    ):  # files of images are tests/data's
        changes += ["data=npz", "teacher.weights=null", "teacher.freeze_epochs=0"]
    if recipe.startswith("ssdlite"):
        write_shapes(folder / "shapes", {"train": 32, "val": 8, "test": 8})
        changes += [f"data.root={folder}/shapes", "data.image_size=32", "teacher.anchor_scales=[0.3,0.9]"]
        changes += ["teacher.weights=null", "teacher.model=ssdlite/resnet8", "prune.layer_ratios=[]", "prune.ratio=0.5"]
    elif recipe != WHOLE:
        changes.append("teacher.model=resnet8")
    if recipe.startswith("resnet56_cifar"):
        torch.manual_seed(0)
        torch.save(build(Architecture("resnet8", "small", 3, 10)).state_dict(), folder / "teacher.pth")
        changes += [f"teacher.checkpoint={folder}/teacher.pth", "teacher.epochs=0", "early_exit.after=[]"]
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return to_config(compose("config", changes))
