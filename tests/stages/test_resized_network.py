"""A network that resizes its input goes through the stages like any other, and is rebuilt from its files."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.config.schema import Config
from compress.config.stage_settings import FactorizeConfig
from compress.evaluation.flops import count_cost
from compress.evaluation.inference import onnx_runner
from compress.export.onnx import export_onnx
from compress.methods.restore import restore
from compress.models.artifact import Artifact, write_model
from compress.models.input_size import resize_input
from compress.stages.factorize import factorize
from compress.stages.prune import prune
from compress.stages.quantize import quantize
from compress.training.context import Context
from tests.stages.taught import taught

CPU = torch.device("cpu")


@pytest.fixture
def context(tiny_config: Config, tmp_path: Path) -> Iterator[Context]:
    yield from taught(replace(tiny_config, teacher=replace(tiny_config.teacher, epochs=1)), tmp_path)


@pytest.fixture
def resized(context: Context) -> Artifact:
    artifact = copy.deepcopy(context.teacher)
    resize_input(artifact.network, torch.zeros(1, *context.data.shape), (6, 6))
    return replace(artifact, spec=artifact.spec.changed("resize_input", size=[6, 6]))


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_it_is_pruned_factorized_quantized_rebuilt_and_written(
    context: Context, resized: Artifact, tiny_config: Config, tmp_path: Path, mode: str
) -> None:
    images = torch.cat([images for images, _ in context.data.val.batches()])
    macs = count_cost(resized.network, context.data.shape)[1]
    assert macs < 0.7 * count_cost(context.teacher.network, context.data.shape)[1]
    small = prune(resized, replace(tiny_config.prune, epochs=0), context)
    small = factorize(small, FactorizeConfig(round_to=2, reconstruction_samples=64, epochs=0), context)
    assert count_cost(small.network, context.data.shape)[1] < 0.6 * macs
    made = {"float": small, "int8": quantize(small, replace(tiny_config.quantize, mode=mode), context)}
    for name, artifact in made.items():
        (tmp_path / name).mkdir()
        write_model(artifact, tmp_path / name)
        rebuilt = restore(tmp_path / name, CPU)
        methods = ["resize_input", "prune", "factorize", "quantize"]
        assert [change["method"] for change in rebuilt.spec.changes] == methods[: 3 + (name == "int8")]
        assert rebuilt.spec.input["shape"] == list(context.data.shape)
        export_onnx(artifact.network, tmp_path / name / "model.onnx", context.data.shape)
        (found,) = onnx_runner(tmp_path / name / "model.onnx", 1)(images.numpy())
        with torch.no_grad():
            wanted = artifact.network.eval()(images) if name == "float" else artifact.network(images)
            spread = wanted.max() - wanted.min()
            assert (rebuilt.network(images) - wanted).abs().max() < 1e-5 * spread
            tolerance = 1e-5 if name == "float" else 0.05
            assert (torch.from_numpy(found) - wanted).abs().max() < tolerance * spread
