"""Images without labels: the teacher's own answers stand in, so that every stage runs on them as on others."""

from dataclasses import replace

import torch
from torch import nn

from compress.data.dataset import NO_LABEL, Data, Split
from compress.tasks import TASKS
from compress.utils.tensors import to_device


@torch.no_grad()
def add_pseudo_labels(teacher: nn.Module, data: Data, device: torch.device) -> Data:
    """`data` with what `teacher` says of an image where it has no target, in train and in what was held out of it.

    "Accuracy" on these is agreement with the teacher. The test split keeps its own labels.
    """
    pixels, task = data.train.pixels, TASKS[data.task]
    unknown = torch.nonzero((pixels.labels == NO_LABEL).reshape(len(pixels.labels), -1).any(1)).flatten()
    images = replace(data.train, index=unknown)
    labels = pixels.labels.clone()
    answers = (teacher(to_device(batch, device)) for batch, _ in images.batches())
    labels[unknown] = torch.cat([task.pseudo_targets(answer).cpu() for answer in answers])

    def told(split: Split) -> Split:
        return replace(split, pixels=pixels.with_labels(labels)) if split.pixels is pixels else split

    return replace(data, train=told(data.train), val=told(data.val))
