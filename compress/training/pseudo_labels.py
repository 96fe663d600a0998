"""Labels images that have no labels by the teacher's predictions, so that every stage can train on them."""

from dataclasses import replace

import torch
from torch import nn

from compress.data.dataset import NO_LABEL, Data, Split
from compress.tasks import TASKS
from compress.utils.tensors import to_device


@torch.no_grad()
def add_pseudo_labels(teacher: nn.Module, data: Data, device: torch.device) -> Data:
    """Returns `data` with the teacher's predictions as targets, for images of train or held out of it without any.

    "Accuracy" on these images is agreement with the teacher. The test split keeps its own labels.
    """
    pixels, task = data.train.pixels, TASKS[data.task]
    unknown = torch.nonzero((pixels.labels == NO_LABEL).reshape(len(pixels.labels), -1).any(1)).flatten()
    images = replace(data.train, index=unknown)
    labels = pixels.labels.clone()
    outputs = (teacher(to_device(batch, device)) for batch, _ in images.batches())
    labels[unknown] = torch.cat([task.pseudo_targets(logits).cpu() for logits in outputs])

    def with_labels(split: Split) -> Split:
        held_out = split.pixels.labels is pixels.labels  # of the same files
        return replace(split, pixels=split.pixels.with_labels(labels)) if held_out else split

    return replace(data, train=with_labels(data.train), val=with_labels(data.val))
