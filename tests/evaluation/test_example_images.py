"""The images that the report shows: first those that only the teacher has right, then other disagreements."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from compress.data.dataset import Memory, Split
from compress.evaluation.example_images import COMPARED, SHOWN, ExampleImages

IMAGES = 60
torch.manual_seed(0)
NETWORK = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def split() -> Split:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, 4, 4), generator=generator).to(torch.uint8)
    index = torch.arange(IMAGES - 1, -1, -1)  # backwards: a position in the split is not one in `pixels`
    mean, std = torch.tensor([0.3, 0.4, 0.5]).view(1, 3, 1, 1), torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    return Split(Memory(pixels, torch.arange(IMAGES) % 2), index, mean, std, 7)


def collected(wrong: list[int], test: Split) -> dict[str, torch.Tensor]:
    """Of a teacher that is always right, and a stage that is wrong at the positions `wrong`."""
    teacher, deployed = test.labels.clone(), test.labels.clone()
    deployed[wrong] = 1 - deployed[wrong]
    return gathered(teacher, deployed, test).tensors(NETWORK, NETWORK, test, deployed)


def gathered(teacher: torch.Tensor, deployed: torch.Tensor, test: Split) -> ExampleImages:
    """The images of `test` after both files have predicted the classes `teacher` and `deployed`, (N,)."""
    examples, start = ExampleImages(teacher), 0
    for images, labels in test.batches():
        examples.add(images, labels, deployed[start : start + len(labels)])
        start += len(labels)
    return examples


def test_disagreements_come_first_and_images_as_they_were() -> None:
    test, wrong = split(), [5, 8, 41, 59]
    found = collected(wrong, test)
    assert found["index"].tolist() == wrong + [at for at in range(IMAGES) if at not in wrong][: SHOWN - len(wrong)]
    assert torch.equal(found["images"], test.pixels.images[test.index[found["index"]]].permute(0, 2, 3, 1))
    assert torch.equal(found["labels"], test.labels[found["index"]])
    assert (found["teacher_top1"] != found["deployed_top1"]).tolist() == [True] * 4 + [False] * (SHOWN - 4)
    for name in ("teacher_heatmap", "heatmap"):
        assert found[name].shape == (SHOWN, 4, 4)
        assert found[name].dtype == torch.uint8


def test_many_disagreements_leave_no_room_for_others() -> None:
    found = collected(list(range(IMAGES)), split())
    assert found["index"].tolist() == list(range(SHOWN))
    assert (found["teacher_top1"] != found["deployed_top1"]).all()


def test_what_the_teacher_alone_has_right_comes_first() -> None:
    """The teacher is wrong at 3 and 9, the stage at 9 and 20: at 9 they agree on the same mistake."""
    test = split()
    teacher, deployed = test.labels.clone(), test.labels.clone()
    teacher[[3, 9]] = 1 - teacher[[3, 9]]
    deployed[[9, 20]] = 1 - deployed[[9, 20]]
    found = gathered(teacher, deployed, test).tensors(NETWORK, NETWORK, test, deployed)
    assert found["index"].tolist()[:2] == [20, 3]
    assert 9 not in found["index"].tolist()


@pytest.mark.parametrize("images", [1, 20, IMAGES])
def test_heatmaps_are_compared_all_over_the_split(images: int) -> None:
    test = replace(split(), index=split().index[:images])
    examples = gathered(test.labels, test.labels, test)
    positions = examples.compared_positions
    assert len(positions) == len(positions.unique()) == min(images, COMPARED)
    assert positions[0] == 0
    assert positions[-1] == images - 1
    everyone = torch.cat([batch for batch, _ in test.batches()])
    assert torch.equal(torch.stack(examples.compared), everyone[positions])
    figures = examples.heatmap_figures(NETWORK, NETWORK)
    assert figures == {"grad_cam_correlation": pytest.approx(1.0), "grad_cam_images": len(positions)}
