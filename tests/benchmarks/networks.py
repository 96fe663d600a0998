"""The three trained networks of the benchmarks and their images, from the shared data sets."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn

from compress.config.data_settings import DataConfig
from compress.data import load_data
from compress.models import Architecture, build
from compress.models.weights import load_checkpoint
from compress.utils.errors import UserError

CHECKPOINTS = {
    "resnet20": "resnet20-12fca82f.th",
    "resnet56": "resnet56-4bfd9763.th",
    "mobilenet_v2": "mobilenet_v2_imagenet_tfpad.pth",
}
CIFAR = Path("cifar10") / "cifar10_lossless_subset.npz"
IMAGENET = Path("imagenet_sample") / "imagenet_sample_1000_256.tar"
CIFAR_CALIBRATION, IMAGENET_CALIBRATION = 512, 128
CROP = 224


@dataclass
class Subject:
    """A trained float network, and the images that every contender gets."""

    name: str
    checkpoint: Path
    network: nn.Module  # in eval mode
    calibration: torch.Tensor  # (N, C, H, W) float32, normalised
    images: torch.Tensor  # (M, C, H, W), the test images, none of them in `calibration`
    labels: torch.Tensor  # (M,)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])


def load_subject(name: str, datasets: Path) -> Subject:
    """The network of that name in `CHECKPOINTS`. Raises UserError where a file is not there."""
    checkpoint = datasets / "checkpoints" / CHECKPOINTS[name]
    source = datasets / (IMAGENET if name == "mobilenet_v2" else CIFAR)
    for file in (checkpoint, source):
        if not file.is_file():
            raise UserError(f"no file {file}", "the shared data sets", "give their folder with --datasets FOLDER")
    images = imagenet_images(source) if name == "mobilenet_v2" else cifar_images(source)
    return Subject(name, checkpoint, load_network(checkpoint), *images)


def load_network(checkpoint: Path) -> nn.Module:
    """The network that a file of `CHECKPOINTS` belongs to, with its weights, in eval mode."""
    name = next(name for name, file in CHECKPOINTS.items() if file == checkpoint.name)
    imagenet = name == "mobilenet_v2"
    network = torchvision.models.mobilenet_v2() if imagenet else build(Architecture(name, "small", 3, 10))
    load_checkpoint(network, str(checkpoint))
    if imagenet:
        pad_as_tensorflow(network)
    return network.eval()


def pad_as_tensorflow(network: nn.Module) -> None:
    """Pad below and to the right alone before each 3x3 convolution of stride 2, in place, as these weights expect."""
    for block in list(network.modules()):
        if isinstance(block, torchvision.ops.Conv2dNormActivation) and block[0].stride == (2, 2):
            block[0].padding = (0, 0)
            block[0] = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), block[0])


def cifar_images(source: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Calibration images, drawn from train; test images and their labels."""
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # what these weights were trained with
    data = load_data(DataConfig(name="npz", root=str(source), **imagenet), 0)
    calibration = torch.cat([images for images, _ in data.train.take(CIFAR_CALIBRATION, 0).batches()])
    return calibration, torch.cat([images for images, _ in data.test.batches()]), data.test.labels


def imagenet_images(source: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A seeded draw of the thousand images for calibration; the others, and their labels, for testing.

    The files lie sorted by WordNet number, which is the order of the classes; pixels become -1 to 1.
    """
    with tarfile.open(source) as archive:
        members = sorted((member for member in archive if member.isfile()), key=lambda member: member.name)
        pixels = np.stack([center_crop(archive.extractfile(member).read()) for member in members])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    calibration, test = order[:IMAGENET_CALIBRATION], order[IMAGENET_CALIBRATION:].sort().values
    return images[calibration].contiguous(), images[test].contiguous(), test


def center_crop(file: bytes) -> np.ndarray:
    """An encoded image as uint8 (CROP, CROP, 3), cut out of its middle."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    left, top = (image.width - CROP) // 2, (image.height - CROP) // 2
    return np.asarray(image.crop((left, top, left + CROP, top + CROP)))
