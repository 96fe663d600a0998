"""The networks by name: the source of each, its adaptation to small images, and its paper."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from compress.models.cifar_resnet import CifarResNet
from compress.models.depthwise import Depthwise
from compress.models.stems import small_stem
from compress.models.vgg import small_vgg
from compress.models.wide_resnet import WideResNet


@dataclass
class Entry:
    """A network of torchvision or of timm, by its name there, or one of this project."""

    paper: str
    torchvision: str | None = None
    timm: str | None = None
    own: Callable[[int, int], nn.Module] | None = None  # (channels, classes)
    small: Callable[[nn.Module], None] | None = small_stem  # applies stem=small in place; None: made for 32 pixels


LIBRARIES = ("torchvision", "timm")  # the libraries in LIBRARY/NAME
SSDLITE = "ssdlite"  # the detector in ssdlite/BACKBONE
SSDLITE320 = "ssdlite320_mobilenet_v3_large"  # torchvision's detector

ZOO = {
    "depthwise": Entry("Howard et al. 2017 (a short example)", own=Depthwise),
    "mobilenet_v1": Entry("Howard et al. 2017", timm="mobilenetv1_100"),
    "mobilenet_v2": Entry("Sandler et al. 2018", torchvision="mobilenet_v2"),
    "mobilenet_v3_small": Entry("Howard et al. 2019", torchvision="mobilenet_v3_small"),
    "mobilenet_v3_large": Entry("Howard et al. 2019", torchvision="mobilenet_v3_large"),
    "squeezenet1_0": Entry("Iandola et al. 2016", torchvision="squeezenet1_0"),
    "squeezenet1_1": Entry("Iandola et al. 2016 (release 1.1)", torchvision="squeezenet1_1"),
    "shufflenet_v2_x0_5": Entry("Ma et al. 2018", torchvision="shufflenet_v2_x0_5"),
    "shufflenet_v2_x1_0": Entry("Ma et al. 2018", torchvision="shufflenet_v2_x1_0"),
    "mnasnet1_0": Entry("Tan et al. 2018", torchvision="mnasnet1_0"),
    "efficientnet_b0": Entry("Tan & Le 2019", torchvision="efficientnet_b0"),
    "efficientnet_lite0": Entry("Tan & Le 2019 (without its gates)", timm="efficientnet_lite0"),
    "mobilevit_xxs": Entry("Mehta & Rastegari 2021", timm="mobilevit_xxs"),
    "resnet18": Entry("He et al. 2015", torchvision="resnet18"),
    "resnet34": Entry("He et al. 2015", torchvision="resnet34"),
    "resnet50": Entry("He et al. 2015", torchvision="resnet50"),
    "vgg16_bn": Entry("Simonyan & Zisserman 2014", torchvision="vgg16_bn", small=small_vgg),
    **{
        f"resnet{depth}": Entry("He et al. 2015, section 4.2", own=partial(CifarResNet, depth), small=None)
        for depth in (8, 20, 32, 44, 56, 110)
    },
    **{
        f"wrn_{depth}_{width}": Entry("Zagoruyko & Komodakis 2016", own=partial(WideResNet, depth, width), small=None)
        for depth, width in ((16, 2), (40, 2), (28, 10))
    },
}


def is_detector(name: str) -> bool:
    """Whether `name` is a detector of the registry: ssdlite/BACKBONE, or torchvision's SSDlite."""
    return name == SSDLITE320 or name.startswith(f"{SSDLITE}/")


def backbone_name(name: str) -> str:
    """Returns the name of the classifier that a detector is built on; any other name as it is."""
    return "mobilenet_v3_large" if name == SSDLITE320 else name.removeprefix(f"{SSDLITE}/")


def find_entry(name: str) -> Entry:
    """Returns the entry of `name`: a name in ZOO, or torchvision/NAME or timm/NAME, which is built as published.

    A detector has the entry of its backbone. Raises KeyError for any other name.
    """
    name = backbone_name(name)
    library, slash, network = name.partition("/")
    if slash and library == "torchvision":
        return Entry(library, torchvision=network, small=None)
    if slash and library == "timm":
        return Entry(library, timm=network, small=None)
    return ZOO[name]
