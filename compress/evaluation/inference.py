"""One pass over the test images: the torch network and its deployable files, side by side."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compress.data.dataset import Split
from compress.export import Runner
from compress.export.onnx_session import open_session
from compress.tasks.base import Task
from compress.utils.tensors import to_device


@dataclass
class Outputs:
    """Of every test image, in order: its target, and what the network and its files say."""

    targets: torch.Tensor  # (N, ...)
    logits: torch.Tensor  # (N, K), the torch network's
    deployed: dict[str, torch.Tensor]  # (N, K) of each file, model.onnx's under "onnx"


def onnx_runner(path: Path, threads: int) -> Runner:
    """model.onnx in ONNX Runtime, as what `predict` calls."""
    session = open_session(path, threads)
    return lambda images: session.run(["logits"], {"image": images})[0]


# Of each batch: images (N, C, H, W), targets (N, ...), and the logits (N, K) that model.onnx gives.
Look = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def predict(
    network: nn.Module, runners: dict[str, Runner], split: Split, device: torch.device, look: Look | None = None
) -> Outputs:
    """Reads `split` once; each batch goes to `network`, to each of `runners`, `onnx` among them, then to `look`."""
    targets, logits = [], []
    deployed: dict[str, list[torch.Tensor]] = {name: [] for name in runners}
    with torch.inference_mode():
        for images, truth in split.batches():
            targets.append(truth)
            logits.append(network(to_device(images, device)).float().cpu())
            for name, run in runners.items():
                deployed[name].append(torch.from_numpy(np.asarray(run(images.numpy()))))
            if look is not None:
                look(images, truth, deployed["onnx"][-1])
    return Outputs(torch.cat(targets), torch.cat(logits), {name: torch.cat(parts) for name, parts in deployed.items()})


def split_outputs(run: Runner, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits (N, K) of a file on all images of `split`, and their targets (N, ...)."""
    pairs = [(torch.from_numpy(np.asarray(run(images.numpy()))), targets) for images, targets in split.batches()]
    logits, targets = zip(*pairs, strict=True)
    return torch.cat(logits), torch.cat(targets)


def validation_figures(run: Runner, val: Split, task: Task, teacher_percent: float | None) -> dict[str, object]:
    """model.onnx on the images on which choices are made, and its points against the teacher's file on the same.

    `teacher_percent` is the teacher's own figure, None for the teacher itself.
    """
    percent = task.score(*split_outputs(run, val))
    delta = 0.0 if teacher_percent is None else percent - teacher_percent
    return {
        f"deployed_val_{task.metric.key}_percent": percent,
        "deployed_val_delta_points": delta,
        "val_images": len(val),
    }
