"""Which test images are kept for the boxes of a report: those in which only one of two files finds an object."""

import numpy as np
import torch

from compress.data.dataset import Memory, Split
from compress.evaluation.example_boxes import SHOWN, example_boxes
from compress.tasks.base import Predictions
from compress.utils.detections import pad

CAT, DOG, DIFFICULT = [0, 2.0, 2.0, 12.0, 12.0], [1, 14.0, 14.0, 30.0, 30.0], [1, 2.0, 20.0, 10.0, 30.0]


def predicted(missed: dict[int, list[int]], images: int = 20, score: float = 0.9) -> Predictions:
    """Each image has a cat, a dog and a difficult dog; of image i the objects in missed[i] are not found."""
    objects = [[*CAT, 0], [*DOG, 0], [*DIFFICULT, 1]]
    found = []
    for image in range(images):
        kept = [row for at, row in enumerate(objects) if at not in missed.get(image, [])]
        found.append(np.array([[row[0], score, *row[1:5]] for row in kept], np.float32).reshape(-1, 6))
    labels = torch.tensor([objects] * images)
    return {"labels": labels, "deployed_detections": torch.from_numpy(pad(found))}


def numbered(images: int = 20) -> Split:
    """A split whose image i, the last of the pixels first, is of the one colour i."""
    pixels = torch.arange(images, dtype=torch.uint8)[:, None, None, None].expand(images, 3, 32, 32).contiguous()
    mean = torch.full((1, 3, 1, 1), 0.5)
    labels = torch.zeros(images, 1, 6)
    return Split(Memory(pixels.flip(0), labels), torch.arange(images).flip(0), mean, mean, batch_size=4)


def test_the_images_with_most_differences_come_first_then_the_others_in_order() -> None:
    found = example_boxes(numbered(), predicted({7: [0], 9: [0, 1]}), predicted({11: [1], 9: [2]}))
    assert found["index"].tolist() == [9, 7, 11, 0, 1, 2, 3, 4, 5, 6, 8, 10]
    assert len(found["index"]) == SHOWN
    assert found["images"].shape == (SHOWN, 32, 32, 3)
    assert found["images"].dtype == torch.uint8
    assert found["images"][:, 0, 0, 0].tolist() == found["index"].tolist()


def test_difficult_objects_and_unsure_detections_make_no_difference() -> None:
    found = example_boxes(numbered(), predicted({5: [2]}), predicted({}))
    assert found["index"].tolist() == list(range(SHOWN))
    unsure = example_boxes(numbered(), predicted({}, score=0.4), predicted({3: [0]}))
    assert 3 not in unsure["index"]  # the teacher finds fewer objects there than elsewhere
    assert unsure["index"].tolist()[:3] == [0, 1, 2]


def test_a_small_split_is_kept_whole() -> None:
    found = example_boxes(numbered(3), predicted({2: [0]}, images=3), predicted({}, images=3))
    assert found["index"].tolist() == [2, 0, 1]
