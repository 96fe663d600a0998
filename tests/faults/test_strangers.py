"""Files from a stranger: recipes, runs and networks that try to run code, or to reach outside their folder."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hydra import compose, initialize_config_dir
from onnx import TensorProto, helper

from compress.config.compose import recipe_files, register, to_config, with_output_folders
from compress.config.paths import CONF
from compress.config.schema import Config
from compress.export.predict import load
from compress.report.run_files import load_run
from compress.utils.errors import UserError
from compress.utils.files import ONNX, SPEC, STAGE, finish_stage, read_json, write_json
from tests.report.tiny_run import write_tiny_run


def composed(path: Path | str, *overrides: str) -> Config:
    arguments = [f"recipe={path}", *overrides]
    register(arguments)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return to_config(compose("config", arguments))


@pytest.mark.parametrize("name", ["mine.yaml", "./mine.yaml", "deep/mine.yaml", "../mine.yaml", "{here}/mine.yaml"])
def test_a_recipe_from_a_file_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    name = name.format(here=tmp_path / "here")
    Path(name).write_text("defaults:\n  - override /data: npz\nprune:\n  ratio: 0.25\nseed: 3\n")
    config = composed(name, "data.root=x.npz", "seed=4")
    assert (config.prune.ratio, config.data.name, config.seed) == (0.25, "npz", 4)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("prune:\n  _target_: os.system\n  ratio: 0.5\n", "_target_"),
        ("_target_: os.system\n", "_target_"),
        ("hydra:\n  launcher:\n    _target_: os.system\n", "the key hydra"),
        ("hydra:\n  sweeper:\n    n: 1\n", "the key hydra"),
        ("teacher:\n  factory: os:system\n", "the key factory"),
        ("data:\n  root: ${oc.env:HOME}\n", "interpolation"),
        ("export:\n  targets: ['${eval:1+1}']\n", "interpolation"),
        ("prune:\n  ratio: !!python/object/apply:os.system [id]\n", "cannot be read"),
        ("defaults:\n  - override /hydra/launcher: evil\n", "under defaults"),
        ("defaults:\n  - /data: npz\n", "under defaults"),
        ("defaults:\n  - override /data: ../../evil\n", "under defaults"),
        ("defaults: evil\n", "under defaults"),
        ("- a list\n", "list"),
        ("prune: [\n", "cannot be read"),
    ],
)
def test_a_recipe_that_is_more_than_settings_is_refused(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="expected a recipe") as refusal:
        composed(path)
    assert part in refusal.value.received


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        composed(tmp_path / "nowhere.yaml")


def test_a_key_that_the_schema_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("command: rm\n")
    with pytest.raises(Exception, match="command"):
        composed(tmp_path / "more.yaml")


def test_a_run_of_a_recipe_from_a_file_goes_below_its_name() -> None:
    plain = ["recipe=mobilenet_int8", "--multirun"]
    assert with_output_folders(plain) == plain
    found = with_output_folders(["--multirun", "recipe=outputs/a/best.yaml", "seed=1"])
    assert found[:2] + found[4:] == ["--multirun", "recipe=outputs/a/best.yaml", "seed=1"]
    assert found[2].startswith("hydra.run.dir=outputs/best/")
    assert found[3].startswith("hydra.sweep.dir=outputs/best/sweep_")
    assert "hydra.run.dir=here" in with_output_folders(["recipe=a.yaml", "hydra.run.dir=here"])
    assert not [text for text in with_output_folders(["recipe=a.yaml", "hydra.run.dir=here"]) if "outputs/a/$" in text]
    assert recipe_files(["recipe=a.yaml,'b/c.yaml',digits"]) == ["a.yaml", "b/c.yaml"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run as a stranger could send it."""
    write_tiny_run(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["../outside", "/etc", "..", "01_teacher/../../outside", "a\\..\\b", ""])
def test_a_summary_that_leads_outside_its_run_is_refused(run: Path, name: str) -> None:
    (run / "summary.json").write_text(json.dumps({"stages": [{"stage": name}]}))
    with pytest.raises(UserError, match="names of files in that folder"):
        load_run(run)


def test_a_record_that_leads_outside_its_stage_is_refused(run: Path) -> None:
    (run.parent / "secret").write_text("x")
    record = read_json(run / "01_teacher" / STAGE)
    record["files"]["../../secret"] = "0" * 64
    (run / "01_teacher" / STAGE).write_text(json.dumps(record))
    with pytest.raises(UserError, match="names of files in that folder"):
        load_run(run)


def test_overrides_that_make_objects_are_refused(run: Path, tmp_path: Path) -> None:
    (run / ".hydra" / "overrides.yaml").write_text(f"!!python/object/apply:os.mkdir [{tmp_path}/made]")
    with pytest.raises(UserError, match=r"overrides\.yaml, which cannot be read"):
        load_run(run)
    assert not (tmp_path / "made").exists()


def test_a_network_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    from compress.methods.restore import float_network
    from compress.models.artifact import Spec

    with pytest.raises(UserError, match=r"model=os\.system"):
        float_network(Spec({"model": "os.system", "stem": "small", "in_channels": 1, "classes": 2}, ["a", "b"], {}))


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname"])
def test_weights_outside_the_folder_of_a_network_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    stage = tmp_path / "stage"
    stage.mkdir()
    monkeypatch.chdir(stage)
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "w"], ["logits"])],
        "reads_outside",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [4])],
        [weights],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (stage / ONNX).write_bytes(network.SerializeToString())
    write_json(stage / SPEC, {"classes": ["a"], "input": {}, "quantization": None})
    finish_stage(stage, {"key": "k"})
    with pytest.raises(Exception, match="External data path"):
        load(stage)
    onnx.load(stage / ONNX, load_external_data=False)  # the file itself is a whole network
