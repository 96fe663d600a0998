"""Images without labels: the teacher's own answers stand in, so that every stage runs on them as on others."""

from dataclasses import replace

import torch
from torch import nn

from compress.data.dataset import NO_LABEL, Data, Split
from compress.utils.tensors import to_device


@torch.no_grad()
def add_pseudo_labels(teacher: nn.Module, data: Data, device: torch.device) -> Data:
    """`data` with the likeliest class of `teacher` where an image has none, in train and in what was held out of it.

    "Accuracy" on these is agreement with the teacher. The test split keeps its own labels.
    """
    pixels = data.train.pixels
    unknown = torch.nonzero(pixels.labels == NO_LABEL).flatten()
    images = replace(data.train, index=unknown)
    labels = pixels.labels.clone()
    labels[unknown] = torch.cat([teacher(to_device(batch, device)).argmax(1).cpu() for batch, _ in images.batches()])

    def told(split: Split) -> Split:
        return replace(split, pixels=replace(pixels, labels=labels)) if split.pixels is pixels else split

    return replace(data, train=told(data.train), val=told(data.val))
