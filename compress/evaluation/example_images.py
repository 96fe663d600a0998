"""Picks test images on which a stage's file and the teacher's disagree, with a heatmap of each network."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from compress.data.dataset import Split
from compress.evaluation.grad_cam import grad_cam, mean_correlation
from compress.utils.missing import Unavailable

SHOWN = 24
COMPARED = 32  # images whose heatmaps are compared, whatever the predictions


@dataclass
class ExampleImages:
    """Picks images while the test split is read; `teacher_top1` (N,) are the predictions of the teacher's file."""

    teacher_top1: Tensor
    seen: int = 0
    lost: list[tuple[int, Tensor]] = field(default_factory=list)  # position in the split, image (C, H, W)
    differ: list[tuple[int, Tensor]] = field(default_factory=list)  # in another way than that only the teacher is right
    agree: list[tuple[int, Tensor]] = field(default_factory=list)  # both files are right
    compared: list[Tensor] = field(default_factory=list)  # the images at `compared_positions`

    @cached_property
    def compared_positions(self) -> Tensor:
        """Returns positions all over the split, (M,): one that is sorted by class begins with a single class."""
        last = len(self.teacher_top1) - 1
        return torch.linspace(0, last, min(COMPARED, last + 1)).round().long()

    def add(self, images: Tensor, labels: Tensor, classes: Tensor) -> None:
        """Adds the next images (N, C, H, W) of the split, with their labels and the predictions of the stage's file."""
        here = self.compared_positions - self.seen
        self.compared += images[here[(here >= 0) & (here < len(images))]]
        theirs = self.teacher_top1[self.seen : self.seen + len(labels)]
        for at in range(len(labels)):
            if theirs[at] != classes[at]:
                group = self.lost if theirs[at] == labels[at] else self.differ
            elif classes[at] == labels[at]:
                group = self.agree
            else:
                continue
            if len(group) < SHOWN:
                group.append((self.seen + at, images[at].clone()))
        self.seen += len(labels)

    def heatmap_figures(self, teacher: nn.Module, network: nn.Module) -> dict[str, float | int | Unavailable]:
        """Returns how alike the heatmaps of both float networks are for the classes of the teacher's file.

        The correlation is a mean over images from all over the split.
        """
        images, classes = torch.stack(self.compared), self.teacher_top1[self.compared_positions]
        maps = [grad_cam(one, images, classes) for one in (teacher, network)]
        found = None if maps[0] is None or maps[1] is None else mean_correlation(maps[0], maps[1])
        none = Unavailable("the network has no tensor with rows and columns that speaks for a class")
        return {"grad_cam_correlation": none if found is None else found, "grad_cam_images": len(images)}

    def tensors(self, teacher: nn.Module, network: nn.Module, split: Split, deployed_top1: Tensor) -> dict[str, Tensor]:
        """Returns examples.safetensors: images as uint8 (K, H, W, C), their predictions, and both heatmaps.

        Images that only the teacher's file classifies correctly come first, then other disagreements.
        `teacher` and `network` are float networks in eval mode. Without a heatmap of each there is none of either.
        Returns an empty dict where no image was picked.
        """
        chosen = (self.lost + self.differ + self.agree)[:SHOWN]
        if not chosen:
            return {}
        index = torch.tensor([position for position, _ in chosen])
        images = torch.stack([image for _, image in chosen])
        found = {
            "images": to_bytes(images, split),
            "index": index,
            "labels": split.labels[index],
            "teacher_top1": self.teacher_top1[index],
            "deployed_top1": deployed_top1[index],
        }
        theirs = grad_cam(teacher, images, found["teacher_top1"])
        own = grad_cam(network, images, found["deployed_top1"])
        if theirs is None or own is None:
            return found
        return found | {"teacher_heatmap": _bytes(theirs), "heatmap": _bytes(own)}


def to_bytes(images: Tensor, split: Split) -> Tensor:
    """Returns the normalised `images` (N, C, H, W) of `split` as uint8 (N, H, W, C)."""
    pixels = (images * split.std + split.mean).mul(255).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()


def _bytes(maps: Tensor) -> Tensor:
    return maps.mul(255).round().to(torch.uint8)
