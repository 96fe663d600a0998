"""Test images as the page shows them, next to the heatmaps of teacher and deployed file, as data: addresses."""

import base64
import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from compress.report.run_files import RunRecord, StageRecord

# Every 15th of the 256 colours of the map "inferno"; linear interpolation between them is at most 6 of 255 off. In this
# map equal steps of heat look equal, also to the colour-blind and in grey print.
_INFERNO = (
    "000003 090621 1d0c45 370961 500d6c 68166e 801f6b 982765 af315b "
    "c53d4d d94d3d e8612b f37918 fa9306 fbb014 f8cd37 f1e968 fcfea4"
)
_ROUNDED = (
    "An int8 file has no gradients: its heatmaps are those of its network before weights and activations are rounded."
)
_TINY, _LARGEST = 64, 160  # pixels a side: up to the first, pixels show as squares; above the second, images shrink


@dataclass(frozen=True)
class Picture:
    """One picture of a card."""

    address: str  # data:
    caption: str
    alt: str


@dataclass(frozen=True)
class Card:
    """One test image, its pictures and the predictions of both files."""

    index: int
    label: str
    teacher: str
    own: str
    teacher_right: bool
    own_right: bool
    pictures: list[Picture]

    @property
    def agree(self) -> bool:
        return self.teacher == self.own


@dataclass(frozen=True)
class Gallery:
    """The images of the page; those on which the files disagree are separate."""

    disagree: list[Card]
    agree: list[Card]
    takeaway: str
    tiny: bool
    heatmaps: bool
    heatmap_agreement: str
    heatmap_note: str  # what the heatmaps are taken of where it is not the file itself
    scale: str  # the heatmap's colours from low to high, as a data: address


def gallery(run: RunRecord) -> Gallery | None:
    """Returns the images that the last stage kept, each with a class; None where it kept none."""
    examples = run.last.examples
    if examples is None or "deployed_top1" not in examples or not len(examples["images"]):
        return None
    cards = [_card(run.last, examples, at) for at in range(len(examples["images"]))]
    ramp = np.tile(np.arange(256, dtype=np.uint8), (1, 1))
    return Gallery(
        disagree=[card for card in cards if not card.agree],
        agree=[card for card in cards if card.agree],
        takeaway=disagreement(run) or "How often the two files disagree is not known: the predictions are not there.",
        tiny=max(examples["images"].shape[1:3]) <= _TINY,
        heatmaps="heatmap" in examples,
        heatmap_agreement=_heatmap_agreement(run.last.metrics),
        heatmap_note=_ROUNDED if run.last.spec["quantization"] else "",
        scale=address(_heat_colours()[ramp]),
    )


def _heatmap_agreement(metrics: dict[str, Any]) -> str:
    correlation = metrics.get("grad_cam_correlation")
    if correlation is None:
        return ""
    return (
        f"For the class that the teacher names, the heatmaps of the two networks correlate by {correlation:.2f} on "
        f"average (1: they look at the same places), over {metrics['grad_cam_images']} test images."
    )


def disagreement(run: RunRecord) -> str:
    """Returns how often teacher and last stage disagree on test images, and who is right; empty where unknown."""
    last, teacher = run.last.predictions, run.teacher.predictions
    if len(run.stages) == 1 or last is None or teacher is None:
        return ""
    if "deployed_top1" not in last or "deployed_top1" not in teacher:  # a task without classes
        return ""
    labels, own, theirs = last["labels"], last["deployed_top1"], teacher["deployed_top1"]
    differ = own != theirs
    if not differ.any():
        return f"The teacher's file and {run.last.short}'s give all {len(labels):,} test images the same class."
    mine, teachers = int((differ & (own == labels)).sum()), int((differ & (theirs == labels)).sum())
    return (
        f"The two files give {int(differ.sum()):,} of {len(labels):,} test images different classes: the teacher's is "
        f"right on {teachers:,} of them, {run.last.short}'s on {mine:,}."
    )


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns the image (H, W, C) in grey under its heatmap (H, W) uint8, as RGB (H, W, 3): more heat, more colour."""
    grey = np.repeat(image.mean(2, keepdims=True), 3, 2)
    colour = _heat_colours()[heat]
    weight = 0.35 + 0.45 * heat[..., None] / 255
    return np.round((1 - weight) * grey + weight * colour).astype(np.uint8)


@cache
def _heat_colours() -> np.ndarray:
    """Returns the colours (256, 3), uint8 RGB, from no heat to the most."""
    known = np.array([list(bytes.fromhex(colour)) for colour in _INFERNO.split()])
    values, places = np.arange(256), np.linspace(0, 255, len(known))
    return np.stack([np.interp(values, places, known[:, channel]) for channel in range(3)], 1).round().astype(np.uint8)


def _card(stage: StageRecord, examples: dict[str, np.ndarray], at: int) -> Card:
    """Returns the card of the image at position `at` of `examples`, which `stage` kept."""
    classes = stage.spec["classes"]
    label, theirs, own = (int(examples[name][at]) for name in ("labels", "teacher_top1", "deployed_top1"))
    image = examples["images"][at]
    pictures = [Picture(address(image), "image", f"Test image {int(examples['index'][at])}, class {classes[label]}")]
    if "heatmap" in examples:
        for name, caption, said in (("teacher_heatmap", "teacher", theirs), ("heatmap", stage.short, own)):
            alt = f"Where the {caption} network looks for class {classes[said]}"
            pictures.append(Picture(address(overlay(image, examples[name][at])), caption, alt))
    return Card(
        int(examples["index"][at]),
        classes[label],
        classes[theirs],
        classes[own],
        theirs == label,
        own == label,
        pictures,
    )


def _visible(pixels: np.ndarray) -> np.ndarray:
    """Returns an image (H, W, C) as RGB (H, W, 3) or grey (H, W): drops transparency, averages unusual channels."""
    channels = pixels.shape[-1]
    if channels in (3, 4):
        return pixels[..., :3]
    return pixels[..., 0] if channels <= 2 else pixels.mean(-1).round().astype(np.uint8)


def address(pixels: np.ndarray, largest: int = _LARGEST) -> str:
    """Encodes an image (H, W, C) uint8 as a data: address: as PNG, or as JPEG of at most `largest` pixels a side."""
    image = Image.fromarray(_visible(pixels))
    form = "PNG" if max(image.size) <= _TINY or image.height == 1 else "JPEG"
    image.thumbnail((largest, largest) if image.height > 1 else image.size)
    content = io.BytesIO()
    image.save(content, form, **({"quality": 85} if form == "JPEG" else {"optimize": True}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
