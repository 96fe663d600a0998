"""The parts of the detector that `detection_by_hand.py` makes: its images, its network and its boxes."""

import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.models import mobilenet_v2
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block, _normal_init
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, Image

CLASSES = ("Platelets", "RBC", "WBC")  # class 0 of the network is the background
SIZE = 320
EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)
SCORE, OVERLAP, CANDIDATES, DETECTIONS = 0.001, 0.55, 300, 300  # what torchvision's SSDlite keeps
FILL = [123.0, 117.0, 104.0]  # ImageNet's mean colour, as in torchvision's references
SCALES, RATIOS = [0.09, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95], [1.5, 2.0]  # of the default boxes


class Cells(Dataset):
    """Reads a split of BCCD as pairs of an image (3, 320, 320) from 0 to 1 and {"boxes": (M, 4) xyxy, "labels": (M,)}.

    Boxes without an area, of which BCCD has two, are dropped.
    """

    def __init__(self, root: Path, split: str, augmentation: str | None) -> None:
        names = (root / f"ImageSets/Main/{split}.txt").read_text().split()
        self.images = [root / f"JPEGImages/{name}.jpg" for name in names]
        self.objects = [list(ElementTree.parse(root / f"Annotations/{name}.xml").iter("object")) for name in names]
        distort, zoom_out = v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=FILL)
        lite = [v2.RandomIoUCrop(), v2.RandomHorizontalFlip()]
        presets = {None: [], "ssdlite": lite, "ssd": [distort, zoom_out, *lite]}  # torchvision's references
        common = [v2.Resize((SIZE, SIZE)), v2.SanitizeBoundingBoxes(), v2.ToDtype(torch.float32, scale=True)]
        self.transform = v2.Compose(presets[augmentation] + common + [v2.ToPureTensor()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image = Image(decode_image(str(self.images[index]), ImageReadMode.RGB))
        ends = ("xmin", "ymin", "xmax", "ymax")
        boxes = [[float(item.findtext(f"bndbox/{end}", "")) for end in ends] for item in self.objects[index]]
        labels = [1 + CLASSES.index(item.findtext("name")) for item in self.objects[index]]
        boxes = BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[-2:])
        return self.transform(image, {"boxes": boxes, "labels": torch.tensor(labels)})


class Backbone(nn.Module):
    """Returns six feature maps, of stride 16, 32 and four extra blocks, from ImageNet's MobileNetV2."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        network = mobilenet_v2()
        network.load_state_dict(torch.load(weights, weights_only=True))
        blocks = network.features
        c4, rest = blocks[14].conv[0], blocks[14].conv[1:]  # torchvision's extractor knows MobileNetV3 alone
        self.features = nn.ModuleList([nn.Sequential(*blocks[:14], c4), nn.Sequential(rest, *blocks[15:])])
        widths = pairwise((1280, 512, 256, 256, 128))
        self.extra = nn.ModuleList(_extra_block(*width, norm_layer=batch_norm) for width in widths)
        _normal_init(self.extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = []
        for block in [*self.features, *self.extra]:
            x = block(x)
            maps.append(x)
        return {str(index): feature_map for index, feature_map in enumerate(maps)}


class Core(nn.Module):
    """Returns box offsets (N, A, 4) and logits (N, A, C) of images from -1 to 1: what is pruned and exported."""

    def __init__(self, detector: SSD) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.head(list(self.backbone(x).values()))
        return found["bbox_regression"], found["cls_logits"]


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Returns the batch norm of torchvision's SSDlite."""
    return nn.BatchNorm2d(channels, eps=0.001, momentum=0.03)


def build(weights: Path) -> SSD:
    """Returns a detector whose backbone knows ImageNet."""
    boxes = DefaultBoxGenerator([RATIOS] * 6, scales=SCALES)
    head = SSDLiteHead([576, 1280, 512, 256, 256, 128], boxes.num_anchors_per_location(), 1 + len(CLASSES), batch_norm)
    kept = {"score_thresh": SCORE, "nms_thresh": OVERLAP, "detections_per_img": DETECTIONS}
    scale = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size, classes = (SIZE, SIZE), 1 + len(CLASSES)
    detector = SSD(Backbone(weights), boxes, size, classes, head=head, topk_candidates=CANDIDATES, **kept, **scale)
    return detector.to(memory_format=torch.channels_last)


@torch.no_grad()
def normalize_as_trained(detector: SSD, images: list[Tensor]) -> None:
    """Sets the statistics of the backbone's batch norms to those of their inputs, without changing what they compute.

    The checkpoint has its batch norms folded into the convolutions (mean 0, variance 1), so that normalising by the
    statistics of a batch would compute something else than the trained network.
    """
    norms = [module for module in detector.backbone.features.modules() if isinstance(module, nn.BatchNorm2d)]

    def start_at_input(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.add_(mean)

    hooks = [norm.register_forward_pre_hook(start_at_input) for norm in norms]
    Core(detector).eval()(torch.stack(images) * 2 - 1)
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def default_boxes(detector: SSD) -> np.ndarray:
    """Returns the default boxes (A, 4), xyxy in pixels."""
    maps = list(detector.eval().backbone(EXAMPLE).values())
    return detector.anchor_generator(ImageList(EXAMPLE, [(SIZE, SIZE)]), maps)[0].numpy()


def decode(offsets: np.ndarray, logits: np.ndarray, anchors: np.ndarray) -> dict[str, Tensor]:
    """Returns boxes (D, 4), scores and labels (D,) by falling score, as torchvision's SSD computes them."""
    corner, sizes = anchors[:, :2], anchors[:, 2:] - anchors[:, :2]
    centers = corner + sizes / 2 + offsets[:, :2] / 10 * sizes
    half = np.exp(np.minimum(offsets[:, 2:] / 5, math.log(1000 / 16))) * sizes / 2
    boxes = np.concatenate([centers - half, centers + half], 1).clip(0, SIZE)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    scores = exponentials / exponentials.sum(1, keepdims=True)
    kept: list[tuple[float, int, int]] = []  # score, label, anchor
    for label in range(1, scores.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")[:CANDIDATES]
        order = order[scores[order, label] > SCORE]
        kept += [(scores[i, label], label, i) for i in order[suppress(boxes[order])]]
    kept.sort(key=lambda item: -item[0])
    best, labels, chosen = zip(*kept[:DETECTIONS], strict=True) if kept else ((), (), ())
    found = {"scores": torch.tensor(best, dtype=torch.float32), "labels": torch.tensor(labels, dtype=torch.int64)}
    return {"boxes": torch.from_numpy(boxes[list(chosen)].reshape(-1, 4)), **found}


def suppress(boxes: np.ndarray) -> list[int]:
    """Returns the positions of the boxes (B, 4), best first, that overlap no better one by more than OVERLAP."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    shared = sides.clip(0).prod(2)
    overlaps = shared > OVERLAP * (areas[:, None] + areas - shared)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not overlaps[i, kept].any():
            kept.append(i)
    return kept
