"""Picks test images in which a stage's file and the teacher's find different objects."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from compress.data.boxes import FLAG, OBJECT
from compress.data.dataset import Split
from compress.evaluation.example_images import to_bytes
from compress.tasks.base import Predictions
from compress.utils.average_precision import found_objects

SHOWN = 12


def example_boxes(split: Split, predictions: Predictions, teacher: Predictions) -> dict[str, Tensor]:
    """Returns examples.safetensors: images as uint8 (K, H, W, C), and their places in `split` (K,).

    The images in which only one of both files finds an object come first, those with most such objects at the
    beginning. The images of `split` are read again.
    """
    index = torch.from_numpy(most_different(predictions, teacher))
    chosen = replace(split, index=split.index[index])
    images = torch.cat([to_bytes(images, split) for images, _ in chosen.batches()])
    return {"images": images, "index": index}


def most_different(predictions: Predictions, teacher: Predictions) -> np.ndarray:
    """Returns the places of at most SHOWN images, (K,) int64, by the number of objects that only one file finds."""
    targets = predictions["labels"].numpy()
    own, theirs = (found_objects(one["deployed_detections"].numpy(), targets)[0] for one in (predictions, teacher))
    differ: np.ndarray = ((own != theirs) & (targets[..., FLAG] == OBJECT)).sum(1)
    return np.argsort(-differ, kind="stable")[:SHOWN]
