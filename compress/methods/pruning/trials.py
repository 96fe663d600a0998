"""Collects what a search for a smaller network may look at: train images, the validation split, the file that ships."""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from compress.config.stage_settings import PruneTargetConfig
from compress.methods.distillation.teacher_logits import require_teacher
from compress.methods.pruning.importance import LabelledImages
from compress.methods.pruning.limits import ShippedFile, Whole
from compress.training.context import Context
from compress.training.validation import split_logits
from compress.utils.tensors import to_device

SENSITIVITY_IMAGES = 256
_FEWEST_SAMPLES = 256  # train images to judge by where none are used to refit
# Softens the outputs that sensitivity compares: a trained network is sure of its train images, so that at 1 a few of
# them decide. At 4 ResNet-56 with 2.16 times fewer MACs keeps 92.0 % after the refit, at 1 90.3 (tests/benchmarks).
SENSITIVITY_TEMPERATURE = 4.0


@dataclass
class Trials:
    """What a search may use to judge a candidate."""

    labelled: LabelledImages
    images: Callable[[], Tensor]  # (N, C, H, W), for refits
    distance: Callable[[Tensor, Tensor], Tensor]  # of outputs from a reference, (N,)
    val_percent: Callable[[nn.Module], float]  # the task's metric on validation
    whole: Whole
    whole_val_percent: float  # of the network before its first cut
    shipped: Callable[[], ShippedFile]


def make_trials(network: nn.Module, whole: Whole, context: Context, samples: int, target: PruneTargetConfig) -> Trials:
    """Returns the trials of `network`; `samples` train images, drawn by the seed, are those of the refit."""
    data, device, task = context.data, context.device, context.task
    images = data.train.take(samples or _FEWEST_SAMPLES, context.seed)
    batches = lambda: ((to_device(images, device), labels.to(device)) for images, labels in images.batches())
    all_images = cache(lambda: torch.cat([images for images, _ in batches()]))

    def val_percent(network: nn.Module) -> float:
        return task.score(split_logits(network, data.val, device), data.val.labels)

    return Trials(
        LabelledImages(batches, task.loss),
        all_images,
        lambda outputs, reference: task.distance(outputs, reference, SENSITIVITY_TEMPERATURE),
        val_percent,
        whole,
        val_percent(network) if target.max_drop_points is not None else math.nan,
        lambda: _shipped_file(all_images(), context),
    )


def _shipped_file(images: Tensor, context: Context) -> ShippedFile:
    if context.shipping is None:
        raise ValueError("received a limit on the file that ships, and no context.shipping; expected how it is made")
    # By name: what measures files must not decide the key of a stage without such a limit.
    module = importlib.import_module("compress.evaluation.shipped_file")
    return module.ShippedFile(require_teacher(context), images, context.shipping, context.task.files)
