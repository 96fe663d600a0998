"""Picks test images on which a stage's file and the teacher's disagree, with a heatmap of each network."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compress.data.dataset import Split
from compress.evaluation.grad_cam import grad_cam, mean_correlation
from compress.utils.missing import Unavailable

SHOWN = 24
COMPARED = 32  # images of which the heatmaps are compared, whatever the predictions


@dataclass
class ExampleImages:
    """Picks images while the test split is read; `teacher_top1` (N,) are the predictions of the teacher's file."""

    teacher_top1: Tensor
    seen: int = 0
    differ: list[tuple[int, Tensor]] = field(default_factory=list)  # position in the split, image (C, H, W)
    agree: list[tuple[int, Tensor]] = field(default_factory=list)  # both files are right
    first: list[Tensor] = field(default_factory=list)  # of the split

    def add(self, images: Tensor, labels: Tensor, classes: Tensor) -> None:
        """Adds the next images (N, C, H, W) of the split, with their labels and the predictions of the stage's file."""
        self.first += images[: COMPARED - len(self.first)].clone()
        theirs = self.teacher_top1[self.seen : self.seen + len(labels)]
        for at in range(len(labels)):
            if len(self.differ) < SHOWN and theirs[at] != classes[at]:
                self.differ.append((self.seen + at, images[at].clone()))
            elif len(self.agree) < SHOWN and theirs[at] == classes[at] == labels[at]:
                self.agree.append((self.seen + at, images[at].clone()))
        self.seen += len(labels)

    def heatmap_figures(self, teacher: nn.Module, network: nn.Module) -> dict[str, float | int | Unavailable]:
        """Returns how alike the heatmaps of both float networks are for the classes of the teacher's file.

        The correlation is a mean over the first images of the split.
        """
        images = torch.stack(self.first)
        maps = [grad_cam(one, images, self.teacher_top1[: len(images)]) for one in (teacher, network)]
        found = None if maps[0] is None or maps[1] is None else mean_correlation(maps[0], maps[1])
        none = Unavailable("the network has no tensor with rows and columns that speaks for a class")
        return {"grad_cam_correlation": none if found is None else found, "grad_cam_images": len(images)}

    def tensors(self, teacher: nn.Module, network: nn.Module, split: Split, deployed_top1: Tensor) -> dict[str, Tensor]:
        """Returns examples.safetensors: images as uint8 (K, H, W, C), their predictions, and both heatmaps.

        `teacher` and `network` are float networks in eval mode. Without a heatmap of each there is none of either.
        Returns an empty dict where no image was picked.
        """
        chosen = (self.differ + self.agree)[:SHOWN]
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
