"""One pass over the test images: the torch network and its deployable file, side by side."""

from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

from compress.data.splits import Split
from compress.measure.statistics import paired_difference, wilson_interval
from compress.train import to_device


@dataclass
class Predictions:
    """Of every test image, in order: its label, and what the network and its file say."""

    labels: torch.Tensor  # (N,)
    logits: torch.Tensor  # (N, K), the torch network's
    deployed_logits: torch.Tensor  # (N, K), model.onnx's

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            "labels": self.labels,
            "top1": self.logits.argmax(1),
            "deployed_top1": self.deployed_logits.argmax(1),
        }


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """model.onnx in ONNX Runtime, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def predict(network: nn.Module, path: Path, split: Split, device: torch.device, threads: int) -> Predictions:
    """Reads `split` once, and gives each batch to `network` and to the file at `path`."""
    session = open_session(path, threads)
    parts = []
    with torch.inference_mode():
        for images, labels in split.batches():
            deployed = session.run(["logits"], {"image": images.numpy()})[0]
            parts.append((labels, network(to_device(images, device)).float().cpu(), torch.from_numpy(deployed)))
    return Predictions(*(torch.cat(column) for column in zip(*parts, strict=True)))


def accuracy_figures(found: Predictions) -> dict[str, object]:
    """The accuracies of metrics.json, of the torch network and of the file."""
    labels, count = found.labels, len(found.labels)
    top1, deployed = found.logits.argmax(1), found.deployed_logits.argmax(1)
    right, deployed_right = int((top1 == labels).sum()), int((deployed == labels).sum())
    top5 = None
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


def against_teacher(found: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor]) -> dict[str, object]:
    """File against file on the same images: agreement, and the points gained with their interval."""
    labels = found["labels"]
    mine, theirs = found["deployed_top1"], teacher["deployed_top1"]
    gained = int(((mine == labels) & (theirs != labels)).sum())
    lost = int(((mine != labels) & (theirs == labels)).sum())
    delta, interval = paired_difference(gained, lost, len(labels))
    return {
        "teacher_agreement_percent": 100 * int((mine == theirs).sum()) / len(labels),
        "top1_delta_points": delta,
        "top1_delta_ci95_points": list(interval),
    }
