"""Turns a detector of the user's own into the form that all stages know: images to rows, one for each anchor."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.models.anchor_rows import priors, to_rows
from compress.models.ssd import Detector, TorchvisionSSD, from_torchvision_ssd
from compress.utils.errors import UserError

fx.wrap("to_rows")  # one node of a trace, as in `compress.models.ssd`

_EXPECTED = (
    "torchvision's SSD, or a network that returns box regressions (N, A, 4) and class logits (N, A, K + 1), background "
    "first, with its anchors (A, 4), x1, y1, x2, y2 in pixels, as the attribute `anchors`"
)


class UserDetector(nn.Module):
    """A user's network whose outputs are joined with its anchors: images (N, C, S, S) -> rows (N, A, 9 + K + 1)."""

    def __init__(self, network: nn.Module, anchors: Tensor, side: int):
        """`anchors` is (A, 4) in pixels; `side` is S."""
        super().__init__()
        self.network = network
        self.register_buffer("priors", priors(anchors, side), persistent=False)  # the user's code determines them

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.network(images)
        regression, logits = outputs.values() if isinstance(outputs, Mapping) else outputs
        return to_rows(regression, self.priors, logits)


DETECTORS = (UserDetector, Detector)  # what `to_detector` returns


def to_detector(network: nn.Module, name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Returns `network` as a detector for images of `shape` (C, S, S); messages call it `name`.

    Raises UserError for a network that is none, and for one with other outputs.
    """
    detector: nn.Module
    if isinstance(network, TorchvisionSSD):
        detector = from_torchvision_ssd(network, shape)
    else:
        detector = UserDetector(network, _anchors(network, name), shape[1])
    outputs = _outputs(detector, network, name, shape)
    if outputs.shape[2] != 9 + classes + 1:
        raise UserError(
            f"{name} with logits of {outputs.shape[2] - 9} classes",
            f"{classes + 1}: the background and the {classes} of the data",
            "mend its head",
        )
    return detector


def _anchors(network: nn.Module, name: str) -> Tensor:
    anchors = getattr(network, "anchors", None)
    if not isinstance(anchors, Tensor) or anchors.ndim != 2 or anchors.shape[1] != 4:
        found = f"anchors {tuple(anchors.shape)}" if isinstance(anchors, Tensor) else "no tensor `anchors`"
        raise UserError(f"{name} with {found}", _EXPECTED, "set it where the network is built")
    return anchors.detach().float().cpu()


def _outputs(detector: nn.Module, network: nn.Module, name: str, shape: tuple[int, int, int]) -> Tensor:
    try:
        with torch.no_grad():
            return detector.eval()(torch.zeros(2, *shape))
    except Exception as error:  # outputs in another form, or of other sizes, fail in many ways
        cause = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UserError(f"{name}, {_returned(network, shape)} ({cause})", _EXPECTED, "mend its outputs") from error


def _returned(network: nn.Module, shape: tuple[int, int, int]) -> str:
    """Describes what the network returns for two images."""
    try:
        with torch.no_grad():
            outputs: Any = network.eval()(torch.zeros(2, *shape))
    except Exception:  # the caller's error names the cause
        return "which fails on such images"
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    if isinstance(values, Tensor):
        return f"which returns a tensor {tuple(values.shape)}"
    return "which returns " + ", ".join(str(tuple(getattr(value, "shape", ()))) for value in values)
