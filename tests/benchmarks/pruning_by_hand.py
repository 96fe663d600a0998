"""Prunes with torch-pruning's own pruners, and trains and quantizes the result by this project's stages.

The pruners rank filters and remove them, without sparsity learning before and without a refit after. torch-pruning
follows the padded shortcuts of CIFAR's ResNets by a guess that fails; `inner` therefore lets only the first
convolution of each block lose filters, which are the layers that this project prunes too.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from compress.evaluation.flops import count_cost
from compress.evaluation.inference import onnx_runner, split_outputs
from compress.export.onnx import export_onnx
from compress.models.artifact import Artifact
from compress.pipeline.compute import RunContext, seed_everything, stage_seed
from compress.stages import load_stage
from compress.tasks import TASKS
from compress.training.context import Context
from compress.training.tensorboard import TensorBoardWriter
from tests.benchmarks.rows import CannotMakeError

_STEPS = 400  # to a ratio of 1, as in torch-pruning's examples; large steps would spare layers that lose all filters
_FAILURES = (AttributeError, IndexError, RuntimeError, ValueError, ZeroDivisionError)  # of torch-pruning's graph


class CannotPruneError(CannotMakeError):
    """torch-pruning failed on a network, or returned one that cannot run or is too large."""


@dataclass(frozen=True)
class Pruner:
    """A pruner of torch-pruning, its importance, and its further settings."""

    kind: Callable[..., Any]
    importance: Callable[[], Any]
    settings: dict[str, bool] = field(default_factory=dict)


_IMPORTANCE, _PRUNER = torch_pruning.importance, torch_pruning.pruner
PRUNERS = {
    "MagnitudePruner-local": Pruner(_PRUNER.MagnitudePruner, lambda: _IMPORTANCE.MagnitudeImportance(p=1)),
    "MagnitudePruner-global": Pruner(
        _PRUNER.MagnitudePruner, lambda: _IMPORTANCE.MagnitudeImportance(p=1), {"global_pruning": True}
    ),
    # over all layers, as network slimming ranks them (Liu et al. 2017, arXiv:1708.06519)
    "BNScalePruner": Pruner(_PRUNER.BNScalePruner, _IMPORTANCE.BNScaleImportance, {"global_pruning": True}),
    "GroupNormPruner-isomorphic": Pruner(
        _PRUNER.GroupNormPruner,
        lambda: _IMPORTANCE.GroupMagnitudeImportance(p=2),
        {"global_pruning": True, "isomorphic": True},
    ),
}


def prune_by_hand(network: nn.Module, name: str, inner: bool, macs_share: float, example: Tensor) -> nn.Module:
    """Returns a copy of `network`, pruned in small steps until at most `macs_share` of its MACs are left.

    `example` is (N, C, H, W). Raises CannotPruneError where torch-pruning fails or does not reach that.
    """
    most = macs_share * _macs(network.eval(), example)
    network = copy.deepcopy(network)
    try:
        pruner = _pruner(network, PRUNERS[name], inner, example)
        for _ in range(_STEPS):
            pruner.step()
            if _macs(network, example) <= most:
                return network
    except _FAILURES as error:
        raise CannotPruneError(f"{type(error).__name__}: {error}") from error
    raise CannotPruneError(f"{_macs(network, example)} MACs are left, more than {most:.0f}")


def _pruner(network: nn.Module, pruner: Pruner, inner: bool, example: Tensor) -> Any:
    ignored = [
        layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
        or (inner and isinstance(layer, nn.Conv2d) and not name.endswith(".conv1"))  # the stem has no dot
    ]
    settings = {"pruning_ratio": 1.0, "iterative_steps": _STEPS, "ignored_layers": ignored} | pruner.settings
    return pruner.kind(network, example, pruner.importance(), **settings)


def _macs(network: nn.Module, example: Tensor) -> int:
    return count_cost(network, tuple(example.shape[1:]))[1]


def run_stage(name: str, artifact: Artifact | None, teacher: Artifact | None, run: RunContext) -> Artifact:
    """Runs a stage in this process, with the seed that a whole run gives it."""
    seed = stage_seed(run.config, name)
    seed_everything(seed)
    with TensorBoardWriter(None) as curves:
        context = Context(run.data, teacher, run.config.train, run.device, seed, curves)
        return load_stage(name)(artifact, getattr(run.config, name), context)


def train_by_hand(network: nn.Module, teacher: Artifact, run: RunContext) -> Tensor:
    """Distills and quantizes a pruned network as the recipe does; returns what `file_right` does of its file."""
    artifact = Artifact(network.to(run.device, memory_format=torch.channels_last), teacher.spec)
    for name in ("distill", "quantize"):
        artifact = run_stage(name, artifact, teacher, run)
    return file_right(artifact.network, run)


def file_right(network: nn.Module, run: RunContext) -> Tensor:
    """Returns which test images the ONNX file of `network` has right, bool (N,). It moves the network to the CPU."""
    task = TASKS[run.data.task]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(network.cpu(), path, run.data.shape, task.files)
        logits, labels = split_outputs(onnx_runner(path, run.threads), run.data.test, task)
    return logits.argmax(1) == labels
