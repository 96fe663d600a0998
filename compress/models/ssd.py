"""SSDlite: a detector of light layers on any classifier of the registry (Sandler et al. 2018, section 6.2).

Head, extra blocks and anchors are torchvision's, so that its checkpoints can be loaded.
"""

import itertools
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, fx, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block, _normal_init

from compress.models.anchor_rows import priors, to_rows
from compress.models.backbone import to_backbone
from compress.models.registry import SSDLITE320
from compress.models.third_party import download_error
from compress.utils.errors import UserError

fx.wrap("to_rows")  # one node of a trace: fx cannot expand a buffer by a number that it traces

_EXTRA_CHANNELS = (512, 256, 256, 128)  # at most: none is wider than the backbone
_NORM = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)  # torchvision's for SSDlite


class Detector(nn.Module):
    """A backbone, a head and anchors: images (N, C, S, S) -> rows (N, A, 9 + K + 1), see `anchor_rows`."""

    def __init__(self, backbone: nn.Module, head: nn.Module, anchors: Tensor, side: int):
        """`anchors` is (A, 4) in pixels; `side` is S."""
        super().__init__()
        self.backbone, self.head = backbone, head
        self.register_buffer("priors", priors(anchors, side), persistent=False)  # the architecture determines them

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.head(_maps(self.backbone, images))
        return to_rows(outputs["bbox_regression"], self.priors, outputs["cls_logits"])


class SSDliteBackbone(nn.Module):
    """The feature maps of a classifier, and extra blocks that halve the last one until it is 1x1 or there are four."""

    def __init__(self, features: nn.Module, channels: int, extra_blocks: int):
        """`channels` are those of the last of the `features`."""
        super().__init__()
        self.features = features
        widths = [channels, *(min(width, channels) for width in _EXTRA_CHANNELS[:extra_blocks])]
        self.extra = nn.ModuleList(_extra_block(before, after, _NORM) for before, after in itertools.pairwise(widths))
        _normal_init(self.extra)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = list(self.features(images))
        for block in self.extra:
            maps.append(block(maps[-1]))
        return maps


def ssdlite(
    classifier: nn.Module, name: str, shape: tuple[int, int, int], classes: int, anchors: dict[str, list[float]]
) -> Detector:
    """Builds SSDlite on `classifier`, whose `name` is for errors, for images of `shape` (C, S, S).

    `anchors` has the scales, as shares of S, and the aspect ratios. Raises UserError for a number of scales that does
    not fit the feature maps, and for a classifier that cannot be a backbone.
    """
    channels, side, _ = shape
    example = torch.zeros(1, channels, side, side)
    features = to_backbone(classifier, example, name)
    with torch.no_grad():
        maps = features(example)
    backbone = SSDliteBackbone(features, maps[-1].shape[1], _extra_blocks(maps[-1].shape[2]))
    return _with_head(backbone.eval(), side, example, classes, anchors)


def ssdlite320(
    shape: tuple[int, int, int], classes: int, anchors: dict[str, list[float]], weights: str | None = None
) -> Detector:
    """Builds torchvision's ssdlite320_mobilenet_v3_large, with its names of layers, for images of `shape` (C, S, S).

    `weights` is COCO_V1, without its class layers where the number of classes differs, or the name of ImageNet weights
    of the backbone. Raises UserError for other names, for weights that cannot be fetched, and for grey images.
    """
    channels, side, _ = shape
    if channels != 3:
        raise UserError(
            f"{SSDLITE320} for images of {channels} channels",
            "3 channels",
            "set teacher.model=ssdlite/mobilenet_v3_large, or data.channels=3",
        )
    network, state = _published(weights)
    example = torch.zeros(1, channels, side, side)
    detector = _with_head(network.backbone.eval(), side, example, classes, anchors)
    own = detector.state_dict()
    detector.load_state_dict(own | {name: value for name, value in state.items() if own[name].shape == value.shape})
    return detector


def _published(weights: str | None) -> tuple[nn.Module, dict[str, Tensor]]:
    """Returns torchvision's detector with weights of its backbone, and the tensors of a trained detector, if any."""
    from torchvision.models import MobileNet_V3_Large_Weights
    from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights, ssdlite320_mobilenet_v3_large

    trained, of_backbone = SSDLite320_MobileNet_V3_Large_Weights, MobileNet_V3_Large_Weights
    known = [*trained.__members__, *of_backbone.__members__]
    if weights not in (None, *known):
        raise UserError(
            f"teacher.weights={weights}", f"one of {', '.join(known)}", f"name one of these for {SSDLITE320}"
        )
    try:
        backbone = of_backbone[weights] if weights in of_backbone.__members__ else None
        network = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=backbone)
        state = trained[weights].get_state_dict(check_hash=True) if weights in trained.__members__ else {}
    except OSError as error:
        raise download_error(weights, error) from error
    return network, state


def from_torchvision_ssd(network: TorchvisionSSD, shape: tuple[int, int, int]) -> Detector:
    """Returns the detector inside torchvision's SSD, with its weights and anchors, for images of `shape` (C, S, S)."""
    channels, side, _ = shape
    with torch.no_grad():
        maps = _maps(network.backbone.eval(), torch.zeros(1, channels, side, side))
    return Detector(network.backbone, network.head, _anchors(network.anchor_generator, maps, side), side)


def _with_head(
    backbone: nn.Module, side: int, example: Tensor, classes: int, anchors: dict[str, list[float]]
) -> Detector:
    with torch.no_grad():
        maps = _maps(backbone, example)
    generator = _generator(anchors, len(maps))
    head = SSDLiteHead(
        [one.shape[1] for one in maps], generator.num_anchors_per_location(), classes + 1, norm_layer=_NORM
    )
    return Detector(backbone, head, _anchors(generator, maps, side), side)


def _extra_blocks(size: int) -> int:
    """Returns how many blocks halve a map of `size` until it is 1x1, at most four."""
    count = 0
    while size > 1 and count < len(_EXTRA_CHANNELS):
        size, count = (size + 1) // 2, count + 1
    return count


def _maps(backbone: nn.Module, images: Tensor) -> list[Tensor]:
    """Returns the feature maps; torchvision's backbones name them."""
    maps = backbone(images)
    return list(maps.values()) if isinstance(maps, Mapping) else list(maps)


def _generator(anchors: dict[str, list[float]], levels: int) -> DefaultBoxGenerator:
    """Returns torchvision's generator; of two scales those between are spaced evenly, as in SSD (Liu et al. 2016)."""
    scales, ratios = anchors["scales"], [list(anchors["ratios"])] * levels
    if len(scales) == 2:
        return DefaultBoxGenerator(ratios, min_ratio=scales[0], max_ratio=scales[1])
    if len(scales) != levels + 1:
        raise UserError(
            f"teacher.anchor_scales with {len(scales)} values for {levels} feature maps",
            f"the smallest and the largest, or {levels + 1}: one a map, and one above the last",
            "mend teacher.anchor_scales",
        )
    return DefaultBoxGenerator(ratios, scales=list(scales))


def _anchors(generator: DefaultBoxGenerator, maps: list[Tensor], side: int) -> Tensor:
    """Returns the anchors (A, 4) in pixels, in the order of the head's outputs."""
    with torch.device("cpu"):  # the generator holds sizes there, also while a network is built without values
        images = ImageList(torch.zeros(1, 1, side, side), [(side, side)])
        (anchors,) = generator(images, [torch.zeros(1, 1, *one.shape[2:]) for one in maps])
    return anchors.to(maps[0].device)
