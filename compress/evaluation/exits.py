"""Measures a file in which images end early on test images: how many end where, how often right, and in what time.

The time of such a file depends on the image. A fixed one, or noise, would leave always at one exit, so all its figures
are taken on test images, in the mix in which they come.
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.config.schema import MeasureConfig
from compress.data.dataset import Split
from compress.evaluation.benchmark import Benchmark, take_all
from compress.evaluation.benchmark_job import BenchmarkJob
from compress.evaluation.example_images import to_bytes
from compress.export.onnx_ends import last_end_alone
from compress.export.onnx_session import open_session
from compress.methods.conditional.graph import GraphEnds
from compress.methods.conditional.thresholds import confidence
from compress.models.artifact import Artifact
from compress.utils.exit_names import EXIT_INDEX, NEVER, THRESHOLDS
from compress.utils.statistics import paired_difference
from compress.utils.tensors import to_device

_TIMED_IMAGES = 500  # of the test split at most, drawn once; each is timed alone
_ROUNDS = 5  # calls of each image, whose median counts: a mean of single calls is that of what interrupted them
_SHOWN = 12  # easy and hard images, so many of each, for the report


@dataclass(frozen=True)
class ExitEvaluation:
    """Who leaves where, on all test images."""

    mean_macs: float
    figures: dict[str, Any]  # metrics.json's `exits`
    tensors: dict[str, Tensor]  # exits.safetensors

    def shares(self) -> list[float]:
        """Returns the share of the images that leaves at each end."""
        return [row["share_percent"] / 100 for row in self.figures["ends"]]


def evaluate_exits(path: Path, artifact: Artifact, split: Split, device: torch.device, threads: int) -> ExitEvaluation:
    """Runs the file `path` of an artifact on all images of `split`, once as it is and once with nobody leaving."""
    record = artifact.spec.exits or {}
    session, never = open_session(path, threads), np.full(len(record["ends"]) - 1, NEVER, np.float32)
    torch_ends = ends_of(artifact.network)
    temperature = artifact.network.get_buffer("exits.0.temperature").item()
    parts = []
    with torch.inference_mode():
        for images, _ in split.batches():
            chosen, index = session.run(["logits", EXIT_INDEX], {"image": images.numpy()})
            (end,) = session.run(["logits"], {"image": images.numpy(), THRESHOLDS: never})
            sure = confidence(torch_ends(to_device(images, device))[0].float().cpu(), temperature)
            parts.append((*map(torch.from_numpy, (chosen, end, index)), sure))
    chosen, end, exit_index, sure = (torch.cat(column) for column in zip(*parts, strict=True))
    predicted = chosen.argmax(1)
    right, end_right = predicted == split.labels, end.argmax(1) == split.labels
    rows = [_row(record, at, exit_index == at, right) for at in range(len(record["macs"]))]
    gained, lost = int((right & ~end_right).sum()), int((~right & end_right).sum())
    points, interval = paired_difference(gained, lost, len(right))
    figures = {
        "ends": rows,
        "to_the_end_top1_percent": 100 * end_right.double().mean().item(),
        "delta_points_to_the_end": points,
        "delta_ci95_points_to_the_end": list(interval),
    }
    mean_macs = torch.tensor(record["macs"], dtype=torch.float64)[exit_index].mean().item()
    pictures = _pictures(split, exit_index, sure, predicted, len(record["ends"]) - 1)
    return ExitEvaluation(mean_macs, figures, {"exit_index": exit_index} | pictures)


def exit_benchmark(
    path: Path, teacher: Path, split: Split, config: MeasureConfig, threads: int, no_energy: str | None
) -> tuple[Benchmark, dict[str, Any]]:
    """Measures the file `path` as `benchmark` does, but on images of `split`, one after the other.

    The latency has a mean over the images, too, each with the median of its calls, by which the speed-up is counted.
    Returns also what metrics.json's `exits` has of the times: those of the same images where nobody leaves, and those
    of the last end alone, in a file without the others.
    """
    images = np.concatenate([images.numpy() for images, _ in split.take(_TIMED_IMAGES, 0).batches()])
    with tempfile.TemporaryDirectory() as scratch_dir:
        file, last_end = Path(scratch_dir) / "images.npy", Path(scratch_dir) / "last_end.onnx"
        np.save(file, images)
        last_end.write_bytes(last_end_alone(path).SerializeToString())
        job = BenchmarkJob(
            (),
            str(path),
            images.shape[1:],
            threads,
            str(teacher),
            config.batch_size,
            _ROUNDS * len(images),
            images=str(file),
            last_end=str(last_end),
        )
        measured = take_all(job, no_energy)
    own, theirs = (_mean_ms(calls) for calls in measured.calls_ms["single_ms"])
    times = {
        "timed_images": len(images),
        **_latency("to_the_end", measured.calls_ms["to_the_end_ms"]),
        **_latency("last_end", measured.calls_ms["last_end_ms"]),
        "latency_share": own / _mean_ms(measured.calls_ms["last_end_ms"]),
    }
    mean = {"latency_ms_mean": own, "speedup_vs_teacher": theirs / own}
    return replace(measured, figures=measured.figures | mean), times


def _latency(name: str, calls: list[float]) -> dict[str, float]:
    """Returns the figures of some calls, by their names in metrics.json."""
    return {
        f"{name}_latency_ms_mean": _mean_ms(calls),
        f"{name}_latency_ms_p50": statistics.median(calls),
        f"{name}_latency_ms_p95": float(np.percentile(calls, 95)),
    }


def _mean_ms(calls: list[float]) -> float:
    """Returns the mean over the images of the median of each one's calls, of which the rounds follow each other."""
    return float(np.median(np.reshape(calls, (_ROUNDS, -1)), 0).mean())


def ends_of(network: nn.Module) -> Callable[[Tensor], Sequence[Tensor]]:
    """Returns the function from images to the logits of all ends, of a float network with exits or a quantized one."""
    return GraphEnds(network).ends if isinstance(network, GraphModule) else network.ends


def _row(record: dict[str, Any], at: int, here: Tensor, right: Tensor) -> dict[str, Any]:
    """Returns the figures of those images that leave at an end."""
    return {
        **record["ends"][at],
        "macs": record["macs"][at],
        "images": int(here.sum()),
        "share_percent": 100 * here.double().mean().item(),
        "top1_percent": 100 * right[here].double().mean().item() if here.any() else None,
    }


def _pictures(split: Split, exit_index: Tensor, sure: Tensor, predicted: Tensor, end: int) -> dict[str, Tensor]:
    """Returns the images that leave first with most confidence, and those that go to the end with least at the first.

    Each group has images as uint8 (K, H, W, C), their positions in the split, labels, predictions and confidences.
    """
    found: dict[str, Tensor] = {}
    for name, rows, descending in (("easy", exit_index == 0, True), ("hard", exit_index == end, False)):
        places = rows.nonzero()[:, 0]
        chosen = places[sure[places].argsort(descending=descending, stable=True)][:_SHOWN]
        if not len(chosen):
            continue
        images = torch.cat([images for images, _ in replace(split, index=split.index[chosen]).batches()])
        group = {
            "images": to_bytes(images, split),
            "index": chosen,
            "labels": split.labels[chosen],
            "predicted": predicted[chosen],
            "confidence": sure[chosen],
        }
        found |= {f"{name}_{key}": value for key, value in group.items()}
    return found
