"""One pass over the test images: the torch network and its deployable files, side by side."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from compress.data.dataset import Split
from compress.export import Runner
from compress.export.onnx_session import open_session
from compress.utils.missing import Missing
from compress.utils.statistics import mcnemar_p_value, paired_difference, wilson_interval
from compress.utils.tensors import to_device


@dataclass
class Predictions:
    """Of every test image, in order: its label, and what the network and its files say."""

    labels: torch.Tensor  # (N,)
    logits: torch.Tensor  # (N, K), the torch network's
    deployed_logits: torch.Tensor  # (N, K), model.onnx's
    target_logits: dict[str, torch.Tensor]  # (N, K) of each further target

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            "labels": self.labels,
            "top1": self.logits.argmax(1),
            "deployed_top1": self.deployed_logits.argmax(1),
            **{f"{name}_top1": logits.argmax(1) for name, logits in self.target_logits.items()},
        }


def onnx_runner(path: Path, threads: int) -> Runner:
    """model.onnx in ONNX Runtime, as what `predict` calls."""
    session = open_session(path, threads)
    return lambda images: session.run(["logits"], {"image": images})[0]


# Of each batch: images (N, C, H, W), labels (N,), and the classes (N,) that model.onnx gives.
Look = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def predict(
    network: nn.Module, runners: dict[str, Runner], split: Split, device: torch.device, look: Look | None = None
) -> Predictions:
    """Reads `split` once; each batch goes to `network`, to each of `runners`, `onnx` among them, then to `look`."""
    labels, logits = [], []
    deployed: dict[str, list[np.ndarray]] = {name: [] for name in runners}
    with torch.inference_mode():
        for images, truth in split.batches():
            labels.append(truth)
            logits.append(network(to_device(images, device)).float().cpu())
            for name, run in runners.items():
                deployed[name].append(run(images.numpy()))
            if look is not None:
                look(images, truth, torch.from_numpy(deployed["onnx"][-1]).argmax(1))
    found = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in deployed.items()}
    return Predictions(torch.cat(labels), torch.cat(logits), found.pop("onnx"), found)


def accuracy_figures(found: Predictions) -> dict[str, object]:
    """The accuracies of metrics.json, of the torch network and of the file."""
    labels, count = found.labels, len(found.labels)
    top1, deployed = found.logits.argmax(1), found.deployed_logits.argmax(1)
    right, deployed_right = int((top1 == labels).sum()), int((deployed == labels).sum())
    top5: float | Missing = Missing("top-5 says nothing with 5 classes or fewer")
    if found.logits.shape[1] > 5:
        top5 = 100 * float((found.logits.topk(5, 1).indices == labels[:, None]).any(1).double().mean())
    return {
        "top1_percent": 100 * right / count,
        "top1_ci95_percent": list(wilson_interval(right, count)),
        "top5_percent": top5,
        "loss": F.cross_entropy(found.logits, labels).item(),
        "images": count,
        "deployed_top1_percent": 100 * deployed_right / count,
        "deployed_top1_ci95_percent": list(wilson_interval(deployed_right, count)),
        "deployed_agreement_percent": 100 * int((top1 == deployed).sum()) / count,
    }


def validation_figures(run: Runner, val: Split, teacher_percent: float | None) -> dict[str, object]:
    """model.onnx on the images on which choices are made, and its points against the teacher's file on the same.

    `teacher_percent` is the teacher's `deployed_val_top1_percent`, None for the teacher itself.
    """
    answers = ((torch.from_numpy(run(images.numpy())).argmax(1), labels) for images, labels in val.batches())
    percent = 100 * sum(int((found == labels).sum()) for found, labels in answers) / len(val)
    delta = 0.0 if teacher_percent is None else percent - teacher_percent
    return {"deployed_val_top1_percent": percent, "deployed_val_delta_points": delta, "val_images": len(val)}


def target_accuracy(name: str, found: Predictions) -> dict[str, object]:
    """The accuracies of a further target, and its agreement with the torch network."""
    labels, top1, own = found.labels, found.logits.argmax(1), found.target_logits[name].argmax(1)
    right, count = int((own == labels).sum()), len(labels)
    return {
        "top1_percent": 100 * right / count,
        "top1_ci95_percent": list(wilson_interval(right, count)),
        "agreement_percent": 100 * int((own == top1).sum()) / count,
    }


def against_teacher(found: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor] | None) -> dict[str, object]:
    """File against file on the same images: agreement, and the points gained with their interval.

    `teacher` is None for the teacher itself, of which there is nothing to test.
    """
    labels = found["labels"]
    mine, theirs = found["deployed_top1"], (teacher or found)["deployed_top1"]
    gained = int(((mine == labels) & (theirs != labels)).sum())
    lost = int(((mine != labels) & (theirs == labels)).sum())
    delta, interval = paired_difference(gained, lost, len(labels))
    return {
        "teacher_agreement_percent": 100 * int((mine == theirs).sum()) / len(labels),
        "top1_delta_points": delta,
        "top1_delta_ci95_points": list(interval),
        "mcnemar_p_value": mcnemar_p_value(gained, lost) if teacher else Missing("the teacher is compared to itself"),
    }
