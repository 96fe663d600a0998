"""Runs the torch network and its deployable files on the same images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from compress.data.dataset import Split
from compress.export import Runner
from compress.export.onnx_session import open_session
from compress.tasks.base import Task
from compress.utils.exit_names import EXIT_INDEX
from compress.utils.tensors import to_device


@dataclass
class Outputs:
    """The target of every test image, in order, and the outputs of the network and its files."""

    targets: torch.Tensor  # (N, ...)
    logits: torch.Tensor  # (N, K) or (N, A, 9 + K + 1), the torch network's
    deployed: dict[str, torch.Tensor]  # the same of each file, model.onnx's under "onnx"


def onnx_runner(path: Path, threads: int) -> Runner:
    """Returns the runner of model.onnx in ONNX Runtime, which returns the outputs of its task."""
    session = open_session(path, threads)
    names = [output.name for output in session.get_outputs() if output.name != EXIT_INDEX]
    return lambda images: session.run(names, {"image": images})


# Called with each batch: images (N, C, H, W), targets (N, ...), and the outputs (N, ...) of model.onnx.
AfterBatch = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def predict(
    network: nn.Module,
    runners: dict[str, Runner],
    split: Split,
    device: torch.device,
    task: Task,
    after_batch: AfterBatch | None = None,
) -> Outputs:
    """Reads `split` once; each batch goes to `network`, to all `runners`, `onnx` among them, then to `after_batch`."""
    targets, logits = [], []
    deployed: dict[str, list[torch.Tensor]] = {name: [] for name in runners}
    with torch.inference_mode():
        for images, truth in split.batches():
            targets.append(truth)
            logits.append(network(to_device(images, device)).float().cpu())
            for name, run in runners.items():
                deployed[name].append(task.files.join(run(images.numpy())))
            if after_batch is not None:
                after_batch(images, truth, deployed["onnx"][-1])
    return Outputs(torch.cat(targets), torch.cat(logits), {name: torch.cat(parts) for name, parts in deployed.items()})


def split_outputs(run: Runner, split: Split, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the outputs (N, ...) of a file on all images of `split`, and their targets (N, ...)."""
    pairs = [(task.files.join(run(images.numpy())), targets) for images, targets in split.batches()]
    logits, targets = zip(*pairs, strict=True)
    return torch.cat(logits), torch.cat(targets)


def validation_figures(
    outputs: torch.Tensor, targets: torch.Tensor, task: Task, teacher_percent: float | None
) -> dict[str, object]:
    """Returns the metric of model.onnx on the validation images, and its difference to the teacher's file in points.

    `teacher_percent` is the metric of the teacher's file, None for the teacher itself.
    """
    percent = task.score(outputs, targets)
    delta = 0.0 if teacher_percent is None else percent - teacher_percent
    return {
        f"deployed_val_{task.metric.key}_percent": percent,
        "deployed_val_delta_points": delta,
        "val_images": len(targets),
    }
