"""Losses that pull a student's features to its teacher's, and the layers that some of them learn for it.

Features are lists of float32 tensors, one a level, shallow to deep: maps (N, C, H, W), tokens (N, T, C) or vectors
(N, C). Their shapes are given without N. No gradient reaches the teacher.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.methods.distillation.losses import relative_error
from compress.utils.errors import UserError

_DISTANCE_WEIGHT, _ANGLE_WEIGHT = 25.0, 50.0  # of `relations`
_MAX_REVIEW_CHANNELS = 512
_POOLED_SIZES = (4, 2, 1)  # of `review`

Shapes = list[tuple[int, ...]]


def attention_maps(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Returns the mean squared difference of attention maps, summed over levels (at; Zagoruyko & Komodakis 2017).

    An attention map is the mean square over channels at each position, scaled to length 1 in each image
    (arXiv:1612.03928, equation 2, p = 2). The mean is over images and positions, as in the authors' code. The networks
    may differ in channels; of different sizes the larger one is pooled to the smaller. Raises UserError for a level
    with a single position, whose map is always 1, and for levels of different kinds.
    """
    losses = []
    for level, (own, wanted) in enumerate(zip(student, teacher, strict=True), 1):
        _check_same_kind(level, own.shape[1:], wanted.shape[1:])
        own, wanted = _as_maps(own), _as_maps(wanted.detach())
        height, width = (min(sizes) for sizes in zip(own.shape[2:], wanted.shape[2:], strict=True))
        if height * width == 1:
            raise UserError(
                f"level {level} of the features with one position: {tuple(student[level - 1].shape[1:])} (student) and "
                f"{tuple(teacher[level - 1].shape[1:])} (teacher)",
                "maps (C, H, W) or tokens (T, C) with several positions, to compare where attention lies",
                "leave that layer out, or use rkd",
            )
        maps = [_attention(_resized(features, (height, width))) for features in (own, wanted)]
        losses.append(F.mse_loss(*maps))
    return torch.stack(losses).sum()


def relations(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns 25 times the distances' loss plus 50 times the angles' (rkd; Park et al. 2019, arXiv:1904.05068).

    It compares vectors (N, D1) and (N, D2), which need not have equal lengths. Distances between two images are divided
    by their mean in the batch; an angle is the cosine at one image between two others. Each loss is the mean of Huber's
    (with delta 1) over all pairs or triples. Distances need 2 images and angles 3, else they count 0. Equal vectors
    have no direction; their angles count 0. Memory grows with N^2 D + N^3.
    """
    pairs, teacher_pairs = _differences(student), _differences(teacher.detach())
    distances, teacher_distances = pairs.norm(dim=2), teacher_pairs.norm(dim=2)
    loss = _DISTANCE_WEIGHT * F.smooth_l1_loss(_over_mean(distances), _over_mean(teacher_distances))
    if len(student) < 3:
        return loss
    angles, teacher_angles = _cosines(pairs, distances), _cosines(teacher_pairs, teacher_distances)
    return loss + _ANGLE_WEIGHT * F.smooth_l1_loss(angles, teacher_angles)


class Projections(nn.Module):
    """Learned layers that bring a student's features to its teacher's shapes (FitNets; Romero et al. 2015).

    They are the regressor of arXiv:1412.6550, equation 3: for each level a 1x1 convolution with batch norm, after
    pooling or bilinear interpolation to the teacher's size. A level of equal shapes is passed on as it is.
    """

    def __init__(self, student_shapes: Shapes, teacher_shapes: Shapes):
        """Takes the shapes of each level. Raises UserError where a level is of different kinds, as maps and tokens."""
        super().__init__()
        self._teacher_shapes = [tuple(shape) for shape in teacher_shapes]
        self.levels = nn.ModuleList()
        for level, (own, wanted) in enumerate(zip(student_shapes, teacher_shapes, strict=True), 1):
            _check_same_kind(level, own, wanted)
            is_equal = tuple(own) == tuple(wanted)
            self.levels.append(
                nn.Identity() if is_equal else _convolution(_channels(own), _channels(wanted), kernel_size=1)
            )

    def forward(self, student: list[Tensor]) -> list[Tensor]:
        """Returns the features in the teacher's shapes, (N, *shape) each."""
        projected = []
        for layers, features, shape in zip(self.levels, student, self._teacher_shapes, strict=True):
            if not isinstance(layers, nn.Identity):
                features = _as_kind(layers(_resized(_as_maps(features), _size(shape))), shape)
            projected.append(features)
        return projected


def hints(projected: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Returns the `relative_error` of features of equal shapes, summed over levels (fitnet; see `Projections`).

    RepDistiller and mdistiller compare one layer by the mean squared error, and weigh it by 100 beside labels of 1. A
    weight of 10 for an error relative to the teacher's variance is less than that wherever this variance is above 0.1,
    and for three levels above 0.3, so that levels do not share it.
    """
    pairs = zip(projected, teacher, strict=True)
    return torch.stack([relative_error(own, wanted.detach()) for own, wanted in pairs]).sum()


class Review(nn.Module):
    """Fuses a student's features from deep to shallow into its teacher's shapes (Chen et al. 2021, arXiv:2104.09044).

    Each level is mixed with the one below it, which has been fused before, by two learned maps of attention (the
    paper's attention based fusion, ABF). Vectors are maps of size 1x1, such as the pooled features that the authors add
    as the deepest level.
    """

    def __init__(self, student_shapes: Shapes, teacher_shapes: Shapes):
        """Takes the shapes of each level, maps or vectors. Raises UserError for tokens."""
        super().__init__()
        self._teacher_shapes = [tuple(shape) for shape in teacher_shapes]
        for level, shapes in enumerate(zip(student_shapes, teacher_shapes, strict=True), 1):
            if any(len(shape) == 2 for shape in shapes):
                raise UserError(
                    f"level {level} of the features with the shapes {tuple(shapes[0])} (student) and "
                    f"{tuple(shapes[1])} (teacher)",
                    "maps (C, H, W) or vectors (C,), because review fuses with 3x3 convolutions",
                    "name another layer, or use at, fitnet or rkd",
                )
        width = min(_MAX_REVIEW_CHANNELS, student_shapes[-1][0])
        deepest = len(student_shapes) - 1
        self.fusions = nn.ModuleList(
            _Fusion(own[0], width, wanted[0], is_deepest=level == deepest)
            for level, (own, wanted) in enumerate(zip(student_shapes, teacher_shapes, strict=True))
        )

    def forward(self, student: list[Tensor]) -> list[Tensor]:
        """Returns the fused features in the teacher's shapes, (N, *shape) each, shallow to deep."""
        fused, deeper = [], None
        levels = list(zip(self.fusions, student, self._teacher_shapes, strict=True))
        for fusion, features, shape in reversed(levels):
            output, deeper = fusion(_as_maps(features), deeper, _size(shape))
            fused.append(_as_kind(output, shape))
        return fused[::-1]


class _Fusion(nn.Module):
    """One level of `Review`."""

    def __init__(self, channels: int, width: int, teacher_channels: int, is_deepest: bool):
        super().__init__()
        self.reduce = _convolution(channels, width, kernel_size=1)
        self.attention = None if is_deepest else nn.Sequential(nn.Conv2d(2 * width, 2, kernel_size=1), nn.Sigmoid())
        self.expand = _convolution(width, teacher_channels, kernel_size=3)
        for convolution in (self.reduce[0], self.expand[0]):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, features: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Returns the fused features with the teacher's channels and with `width` channels, both of `size`."""
        fused = self.reduce(features)
        if self.attention is not None:
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            shares = self.attention(torch.cat([fused, deeper], 1))  # (N, 2, H, W)
            fused = fused * shares[:, :1] + deeper * shares[:, 1:]
        fused = F.interpolate(fused, size, mode="nearest")
        return self.expand(fused), fused


def review(fused: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Returns the hierarchical context loss (HCL), summed over levels (review; see `Review`).

    For each level it is a weighted mean of squared errors: that of the features themselves weighs 1; those pooled to
    4x4, 2x2 and 1x1, where the features are larger, weigh half as much each time. The authors weigh it by 0.6 to 8,
    depending on the networks, and let it grow linearly over the first 20 epochs; this function does neither.
    """
    losses = []
    for own, wanted in zip(map(_as_maps, fused), map(_as_maps, teacher), strict=True):
        sizes = [size for size in _POOLED_SIZES if size < min(own.shape[2:])]
        pooled = [(own, wanted.detach())]
        pooled += [(F.adaptive_avg_pool2d(own, size), F.adaptive_avg_pool2d(wanted.detach(), size)) for size in sizes]
        weights = [0.5**step for step in range(len(pooled))]
        errors = [weight * F.mse_loss(*pair) for weight, pair in zip(weights, pooled, strict=True)]
        losses.append(torch.stack(errors).sum() / sum(weights))
    return torch.stack(losses).sum()


@dataclass(frozen=True)
class FeatureLoss:
    """A loss of features with its default weight, and the module whose outputs it takes in place of the student's."""

    loss: Callable[..., Tensor]
    weight: float
    module: Callable[[Shapes, Shapes], nn.Module] | None = None


FEATURE_LOSSES = {
    "at": FeatureLoss(attention_maps, weight=1000.0),
    "rkd": FeatureLoss(relations, weight=1.0),  # of one pair of vectors, in place of lists
    "fitnet": FeatureLoss(hints, weight=10.0, module=Projections),
    "review": FeatureLoss(review, weight=1.0, module=Review),
}


def _check_same_kind(level: int, own: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if len(own) != len(wanted):
        raise UserError(
            f"level {level} of the features with the shapes {tuple(own)} (student) and {tuple(wanted)} (teacher)",
            "two maps (C, H, W), two rows of tokens (T, C) or two vectors (C,)",
            "name layers of one kind for both networks",
        )


def _channels(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 2 else shape[0]


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the height and width of features of `shape` as maps."""
    if len(shape) == 3:
        return shape[1], shape[2]
    return (shape[0], 1) if len(shape) == 2 else (1, 1)


def _as_maps(features: Tensor) -> Tensor:
    """Returns tokens (N, T, C) as maps (N, C, T, 1), and vectors (N, C) as (N, C, 1, 1)."""
    if features.ndim == 3:
        return features.transpose(1, 2).unsqueeze(3)
    return features[:, :, None, None] if features.ndim == 2 else features


def _as_kind(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns maps (N, C, H, W) as what `_as_maps` made them of: maps, tokens or vectors of `shape`."""
    if len(shape) == 2:
        return maps.squeeze(3).transpose(1, 2)
    return maps.flatten(1) if len(shape) == 1 else maps


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the maps pooled to `size`, or interpolated where it is larger in one direction."""
    if maps.shape[2:] == size:
        return maps
    if maps.shape[2] >= size[0] and maps.shape[3] >= size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _convolution(channels: int, outputs: int, kernel_size: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, outputs, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def _attention(maps: Tensor) -> Tensor:
    """Returns the mean square over channels of each position, (N, H W), each row with length 1."""
    return F.normalize(maps.square().mean(1).flatten(1))


def _differences(vectors: Tensor) -> Tensor:
    """Returns the differences (N, N, D) of each two of the vectors (N, D)."""
    return vectors[None] - vectors[:, None]


def _over_mean(distances: Tensor) -> Tensor:
    """Returns distances (N, N) as multiples of the mean of those that are not 0."""
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / mean.masked_fill(mean == 0, 1)


def _cosines(differences: Tensor, distances: Tensor) -> Tensor:
    """Returns the cosine of the angle at each vector between each two others, (N, N, N)."""
    # F.normalize would divide by 1e-12 where two vectors are equal, and its gradient would be as large.
    directions = differences / distances.masked_fill(distances == 0, 1)[:, :, None]
    return directions @ directions.transpose(1, 2)
